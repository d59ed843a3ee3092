"""How an attempt ends: one transaction with all that it said, fenced by its token.

Outcomes are decided at the head, many in one pass. For each the row must be running under this very
token and worker, in this very log; otherwise nothing of it is appended, whatever the handler has
swallowed. What cannot be appended at all, being too much of it, fails that job and no other.
"""

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Event
from time import monotonic

from pydantic import BaseModel
from sqlalchemy import bindparam, select

from qntx_es import faults
from qntx_es.attestation import Attestation, Payload, derived_id, instant
from qntx_es.errors import (
    ConflictingAttestation,
    DatabaseUnavailable,
    GiveUp,
    InvalidAttestation,
    InvalidOutcome,
    InvalidPayload,
    JobStopped,
    JobSuspends,
    LogBusy,
    PositionPending,
    PulseBehind,
    QntxError,
    Snooze,
    StaleToken,
    StorageFull,
    TooMany,
    TryAgain,
)
from qntx_es.jobs import COST_MAX, DELAY_MAX, EARLIEST, LATEST
from qntx_es.log import Log, Turn
from qntx_es.pulse.attempts import Attempt, Claimed, bounded
from qntx_es.pulse.claim import is_behind
from qntx_es.pulse.statements import (
    RESULT_BYTES_MAX,
    STATE_BYTES_MAX,
    JobAdvanced,
    JobCancelled,
    JobFailed,
    JobReleased,
    JobSnoozed,
    JobSucceeded,
    JobSuspended,
)
from qntx_es.pulse.tables import jobs, pulse
from qntx_es.tables import epochs

# What one pass carries at most; a single job may say more.
PASS_ATTESTATIONS = 2_000
PASS_BYTES = 4 << 20
LOOK_SECONDS = 0.05
PATIENCE_SECONDS = 10.0
ERROR_CHARACTERS = 2_048
FRAMES = 20
# What may pass: an outcome is worth waiting for it.
PASSING = (PulseBehind, DatabaseUnavailable, LogBusy, PositionPending, StorageFull)
# What is wrong with an outcome itself: another try would meet it again.
REFUSED = (InvalidAttestation, TooMany, ConflictingAttestation)

# After these no further attempt can help.
FINAL = (GiveUp, InvalidPayload, InvalidOutcome)

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Ended:
    """An attempt that came back: what it said, and its outcome as of the moment of the decision."""

    attempt: Attempt
    outcome: Callable[[datetime], Attestation]
    said: Sequence[Attestation] = ()
    positions: list[int] = field(default_factory=list)
    is_stale: bool = False

    @property
    def claimed(self) -> Claimed:
        """The job it was an attempt of."""
        return self.attempt.claimed

    @property
    def outcome_id(self) -> str:
        """The id of the outcome: there is one for each start."""
        return _outcome_id(self.claimed)


class Completion:
    """Decides outcomes for one worker."""

    def __init__(self, log: Log, *, secrets: Iterable[str] = ()) -> None:
        self._log = log
        self._secrets = tuple(one for one in secrets if one)
        self.stale_tokens = 0

    def returned(self, attempt: Attempt, result: object) -> Ended:
        """Return how an attempt ends that came back with a result."""
        if isinstance(result, BaseModel):
            result = result.model_dump(mode="json")
        try:
            bounded(result, RESULT_BYTES_MAX, "a result")
        except InvalidOutcome as error:
            return self.raised(attempt, error)
        token, cost, took = attempt.claimed.job.token, _cost(attempt), attempt.took_ms

        # Made here, by the thread that ran it: under the lock others would wait for it.
        succeeded = JobSucceeded(
            token=token, result=result, cost=cost, took_ms=took, progress=attempt.told
        )
        stated = _stated(attempt.claimed, succeeded)
        return Ended(attempt, lambda _: stated, attempt.store.said)

    def raised(self, attempt: Attempt, error: BaseException) -> Ended:
        """Return how an attempt ends whose handler raised."""
        token, cost, took = attempt.claimed.job.token, _cost(attempt), attempt.took_ms
        if isinstance(error, JobSuspends):
            state = error.state
            try:
                bounded(state, STATE_BYTES_MAX, "a state")
            except InvalidOutcome as refused:
                return self.raised(attempt, refused)
            suspended = JobSuspended(token=token, state=state, cost=cost, took_ms=took)
            waits = _stated(attempt.claimed, suspended)
            return Ended(attempt, lambda _: waits, attempt.store.said)
        if isinstance(error, Snooze):
            until, delay = error.until, _bounded(error.delay or timedelta(0))
            return Ended(
                attempt,
                lambda now: _stated(
                    attempt.claimed,
                    JobSnoozed(
                        token=token,
                        run_at=now + delay if until is None else min(max(until, EARLIEST), LATEST),
                        cost=cost,
                        took_ms=took,
                    ),
                ),
            )
        if isinstance(error, JobStopped) and attempt.reason == "draining":
            return self.released(attempt)
        if isinstance(error, JobStopped) and attempt.reason == "cancelled":
            obeyed = _stated(attempt.claimed, JobCancelled(token=token, cost=cost, took_ms=took))
            return Ended(attempt, lambda _: obeyed)
        text = self._told(error)
        logger.warning("job %s, attempt %d: %s", attempt.claimed.job.handler, _nth(attempt), text)
        pause = _pause(attempt, error)
        return Ended(
            attempt,
            lambda now: _stated(
                attempt.claimed,
                JobFailed(
                    token=token,
                    error=text,
                    retry_at=None if pause is None else now + pause,
                    cost=cost,
                    took_ms=took,
                    progress=attempt.told,
                ),
            ),
        )

    def released(self, attempt: Attempt) -> Ended:
        """Return how an attempt ends that its worker gives back."""
        token, cost = attempt.claimed.job.token, _cost(attempt)
        released = JobReleased(token=token, reason="its worker ends", cost=cost)
        given_back = _stated(attempt.claimed, released)
        return Ended(attempt, lambda _: given_back)

    def advance(self, attempt: Attempt, state: object) -> None:
        """Commit what an attempt said so far. Raises `StaleToken`."""
        job = attempt.claimed.job
        faults.point("job.before_advance")
        # An attempt may advance many times, so the id is any, made once: sent again it is known.
        said = pulse.attest(
            JobAdvanced(token=job.token, state=state), entity=job.id, caused_by=job.id
        )
        ended = Ended(attempt, lambda _: said, list(attempt.store.said))
        self._decide([ended], is_outcome=False)
        if ended.is_stale:
            raise StaleToken
        attempt.store.committed(ended.positions)

    def conclude(self, outcomes: Sequence[Ended]) -> None:
        """State outcomes, in as few passes as they fit in; never raises for one of them."""
        faults.point("job.before_outcome")
        for group in _groups(outcomes):
            self._conclude(group)
        faults.point("job.after_outcome")

    def _conclude(self, group: Sequence[Ended]) -> None:
        try:
            self._decide(group, is_outcome=True)
        except REFUSED as error:
            if len(group) > 1:
                for one in group:
                    self._conclude([one])
                return
            refused = self.raised(group[0].attempt, GiveUp(f"what it said is refused: {error}"))
            group[0].outcome, group[0].said = refused.outcome, ()
            self._conclude(group)
            return
        except QntxError as error:
            # The attempts lapse in their time, with their worker or at their deadlines.
            logger.error("outcomes of %d jobs could not be stated: %s", len(group), error)  # noqa: TRY400 - the message is the remedy
            for one in group:
                one.is_stale = True
            return
        for one in group:
            if one.is_stale:
                self.stale_tokens += 1
                logger.warning("the outcome of job %s: %s", one.claimed.job.id, StaleToken())
            elif one.said:
                one.attempt.store.committed(one.positions)

    def _decide(self, group: Sequence[Ended], *, is_outcome: bool) -> None:
        """Decide, waiting for a queue that is only being swapped."""
        deadline = monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self._decide_once(group, is_outcome=is_outcome)
            except PASSING:
                if monotonic() > deadline:
                    raise
            else:
                return
            # Draining or not, an outcome is worth the wait, and who moved the queue may be gone.
            Event().wait(LOOK_SECONDS)
            self._catch_up()

    def _catch_up(self) -> None:
        try:
            self._log.catch_up_inline()
        except QntxError as error:
            logger.info("the queue did not follow the log: %s", error)

    def _decide_once(self, group: Sequence[Ended], *, is_outcome: bool) -> None:
        chosen: list[Ended] = []

        def decide(turn: Turn) -> Iterator[Attestation]:
            chosen.clear()
            if is_behind(turn):
                raise PulseBehind
            entitled = _entitled(turn, group)
            now = instant(turn.now)
            for one in group:
                if one.claimed.job.token not in entitled:
                    continue
                chosen.append(one)
                yield from one.said
                yield one.outcome(now)

        receipts = iter(self._log.decide(decide))
        for one in chosen:
            one.positions = [next(receipts).position for _ in one.said]
            next(receipts)
        for one in set_apart(group, chosen):
            one.is_stale = not (is_outcome and self._is_there(one))

    def _is_there(self, one: Ended) -> bool:
        """Tell whether it is this very outcome, whose answer was lost, that ended the attempt."""
        if self._log.get(one.outcome_id) is None:
            return False
        found = [self._log.get(said.id) for said in one.said]
        one.positions = [said.position for said in found if said is not None]
        return True

    def _told(self, error: BaseException) -> str:
        """Say what was raised, then where: the last frames, as far as there is room."""
        kind = "".join(traceback.format_exception_only(error)).strip()
        cause = error.__cause__
        if cause is not None:
            kind += f"\ncaused by {''.join(traceback.format_exception_only(cause)).strip()}"
        frames = "".join(traceback.format_tb(error.__traceback__, limit=-FRAMES))
        half = ERROR_CHARACTERS // 2
        for secret in self._secrets:
            kind, frames = kind.replace(secret, "***"), frames.replace(secret, "***")
        told = f"{kind[:half]}\n{frames[-half:]}"
        return told.replace("\x00", "\\0").encode(errors="backslashreplace").decode()


def _outcome_id(claimed: Claimed) -> str:
    return derived_id(claimed.start, "outcome")


def _stated(claimed: Claimed, outcome: Payload) -> Attestation:
    job = claimed.job.id
    return pulse.attest(outcome, entity=job, id=_outcome_id(claimed), caused_by=job)


def set_apart(group: Iterable[Ended], chosen: Iterable[Ended]) -> list[Ended]:
    """Return those of a group that were not chosen."""
    tokens = {one.claimed.job.token for one in chosen}
    return [one for one in group if one.claimed.job.token not in tokens]


def _entitled(turn: Turn, group: Iterable[Ended]) -> set[int]:
    """Return the tokens under which a job runs that these are attempts of."""
    claims = {one.claimed.job.id: one.claimed for one in group}
    (epoch,) = turn.read(select(epochs.c.epoch))[0]
    rows = turn.connection.execute(_STANDS, {"ids": list(claims)})
    return {
        row.token
        for row in rows
        if row.status == "running"
        and row.token == (claimed := claims[row.job]).job.token
        and (row.worker, epoch) == (claimed.worker, claimed.epoch)
    }


_STANDS = select(jobs.c.job, jobs.c.status, jobs.c.token, jobs.c.worker).where(
    jobs.c.job.in_(bindparam("ids", expanding=True))
)


def _groups(outcomes: Iterable[Ended]) -> Iterator[list[Ended]]:
    group: list[Ended] = []
    count = size = 0
    for one in outcomes:
        more = sum(len(said.text) for said in one.said)
        if group and (count + len(one.said) > PASS_ATTESTATIONS or size + more > PASS_BYTES):
            yield group
            group, count, size = [], 0, 0
        group.append(one)
        count, size = count + len(one.said) + 1, size + more
    if group:
        yield group


def _pause(attempt: Attempt, error: BaseException) -> timedelta | None:
    """Return how long until the next attempt, None where there is none."""
    job, options = attempt.claimed.job, attempt.claimed.handler.options
    kinds: tuple[type[BaseException], ...] = (*FINAL, *options.give_up_on)
    if isinstance(error, kinds) or job.attempt > options.retries:
        return None
    if isinstance(error, TryAgain) and error.delay is not None:
        return _bounded(error.delay)
    return _bounded(options.backoff.pause(job.id, job.attempt))


def _bounded(pause: timedelta) -> timedelta:
    return min(max(pause, timedelta(0)), DELAY_MAX)


def _cost(attempt: Attempt) -> int:
    return min(attempt.spent, COST_MAX)


def _nth(attempt: Attempt) -> int:
    return attempt.claimed.job.attempt


__all__ = ["Completion", "Ended"]
