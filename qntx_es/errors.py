"""Everything this project refuses or fails with, by name.

The docstring of an error is its default message, and the message ends with the remedy, so an
error that reaches a terminal at night says what to do next. Where an error speaks of one thing
in particular, its maker says so in a message of its own.
"""

import inspect
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import partial
from typing import Any


class QntxError(Exception):
    """Something in qntx-es was refused or failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or ""))


# What is said: refused before the database.


class InvalidAttestation(QntxError):
    """An attestation is not one the log can hold."""


class InvalidId(InvalidAttestation):
    """An id, context, actor or entity is empty, too long or holds control characters."""


class InvalidPayload(InvalidAttestation):
    """A payload is not a JSON object, or does not fit its class."""


class NotFinite(InvalidPayload):
    """A payload holds NaN or an infinity, which JSON cannot say. Leave it out, or use null."""


class InvalidText(InvalidPayload):
    """A text holds NUL or a lone surrogate, which databases cut or refuse. Remove or escape it."""


class DuplicateKey(InvalidPayload):
    """A JSON object names a key twice, so that readers would disagree about it. Name it once."""


class UpcastFailed(InvalidPayload):
    """An upcaster could not lift an old payload. It must take whatever its version allowed."""


class SchemaVersionTooNew(QntxError):
    """A payload was written by newer code than this. Upgrade this host: nothing is passed over."""


class TooDeep(InvalidPayload):
    """A payload is nested deeper than 64 levels. Flatten it, or attest its parts."""


class TooLarge(InvalidAttestation):
    """A payload is larger than 1 MiB. Attest a reference to it, or its parts."""


class TooMany(QntxError):
    """One append holds more than 10 000 attestations. Append them in several parts."""


class AxError(QntxError):
    """A query means nothing."""


class AxSyntaxError(AxError):
    """The text of a query is not understood; `column` (from 1) says where."""

    def __init__(self, what: str, *, text: str, column: int) -> None:
        self.column = column
        line = " ".join(text.splitlines()) if len(text.splitlines()) > 1 else text
        super().__init__(f"column {column}: {what}\n  {line}\n  {' ' * (column - 1)}^")


class AxTooComplex(AxError):
    """A query has at most 4 KiB of text, 200 parts in its condition, and 20 of them nested."""


class AxTimeout(AxError):
    """A query took too long. Narrow it, or have the path it looks at indexed (`Domain.index`)."""


class InvalidTime(QntxError):
    """A time has no zone, so it names no instant. Give it one: `datetime(..., tzinfo=UTC)`."""


class ForeignContext(QntxError):
    """A domain may only attest in the contexts it declared in `emits`."""


class ForeignActor(QntxError):
    """A domain may only speak as the actors it declared in `actors`."""


class UnknownContext(QntxError):
    """No enabled domain knows this context."""

    def __init__(self, context: str, known: Iterable[str]) -> None:
        super().__init__(f"no context `{context}`{did_you_mean(context, known)}")


class ConflictingAttestation(QntxError):
    """Another attestation with this id is in the log already. Use a new id for a new statement."""

    def __init__(self, attestation_id: str, position: int | None = None) -> None:
        where = "in this append" if position is None else f"at position {position}"
        where = "in the inbox" if position == 0 else where
        super().__init__(
            f"id {attestation_id} already names another attestation {where}: "
            "a new statement needs a new id"
        )


class InvalidCondition(QntxError):
    """This condition cannot be checked."""


class AppendConditionFailed(QntxError):
    """Something was appended that must not be there; nothing was written. Read on, decide anew."""

    def __init__(self, message: str, position: int) -> None:
        self.position = position
        super().__init__(f"{message}: nothing was appended. Read on from there and decide anew")


class LogRegression(QntxError):
    """The log ends before what was read of it: it was restored, or it is another one."""

    def __init__(self, after: int, head: int, remedy: str = "Read it anew") -> None:
        super().__init__(
            f"position {after} was read, and the log ends at {head}: it was restored from a "
            f"backup, or it is another log. {remedy}"
        )


class ConditionNeedsOwnTransaction(QntxError):
    """With `session=` the order comes after the commit, too late to refuse. Append without it."""


class OtherDatabase(QntxError):
    """This session is not of the log's database, so they could not commit together."""


# The log and its database.


class NotYetCommitted(QntxError):
    """This receipt has no position yet: what it stands for is not committed."""


class PositionPending(QntxError):
    """The attestations are committed and safe, but not sequenced yet. Ask again later."""


class DatabaseUnavailable(QntxError):
    """The database cannot be reached. Check that it runs and that the URL is right."""


class DatabaseMissing(QntxError):
    """There is no database yet. Run `qntx-es db upgrade`."""


class LogBusy(QntxError):
    """Another process holds the database's write lock for too long. Try again when it is done."""


class CorruptAttestation(QntxError):
    """The log was changed behind its guards. Restore it from a backup, or import an export."""

    def __init__(self, position: int) -> None:
        self.position = position
        super().__init__(
            f"position {position} of the log is missing: the log was changed behind its guards. "
            "Restore it from a backup, or import an export"
        )


class ImportRefused(QntxError):
    """An import is refused as a whole: nothing was appended."""

    def __init__(
        self,
        what: str,
        *,
        line: int | None = None,
        remedy: str = "Export the log again, or copy the file anew",
    ) -> None:
        self.line = line
        where = "" if line is None else f"line {line}: "
        super().__init__(f"{where}{what.rstrip('.')}. Nothing was imported. {remedy}")


class StorageFull(QntxError):
    """The disk is full; nothing was written. Make room: what waits goes on by itself."""


class UnsupportedDatabase(QntxError):
    """Only SQLite (3.35 or newer) and PostgreSQL (14 or newer, with psycopg 3) are supported."""


class SchemaOutdated(QntxError):
    """The tables are older than this code. Run `qntx-es db upgrade`."""


class SchemaTooNew(QntxError):
    """The tables are newer than this code. Upgrade qntx-es on this machine."""


class MissingExtra(QntxError):
    """A part of qntx-es that is installed separately is missing."""

    def __init__(self, extra: str) -> None:
        super().__init__(f"this needs an extra: pip install 'qntx-es[{extra}]'")


# Domains and their read models.


class DomainRefused(QntxError):
    """A domain cannot be registered."""

    def __init__(self, domain: str, problems: Sequence[str]) -> None:
        self.domain = domain
        self.problems = tuple(problems)
        listed = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"domain `{domain}` is refused:\n{listed}")


class UnknownDomain(QntxError):
    """No enabled domain has this name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no domain `{name}`{did_you_mean(name, known)}")


class ForeignTable(QntxError):
    """A domain may only touch its own tables. Read another domain's attestations instead."""


class ForeignDomain(QntxError):
    """A domain may only use its own logger and configuration."""


class ForeignRow(QntxError):
    """A domain whose entities are independent reached for another entity's row."""


class InvalidRow(QntxError):
    """A row does not fit its table."""


class LossyValue(QntxError):
    """A value would come back from the database as another one."""


class InvalidDerivation(QntxError):
    """A handler gave back what it may not."""


class DerivationTooDeep(QntxError):
    """A chain of derivations passed 64 links: it feeds itself. Break the cycle."""

    def __init__(self, chain: Iterable[tuple[int, str]]) -> None:
        told = " → ".join(f"{context} ({position})" for position, context in chain)
        super().__init__(
            "a chain of derivations passed 64 links: it feeds itself. Break the cycle. From the "
            f"first cause, by position: {told}"
        )


class LeaseLost(QntxError):
    """Another runner moved this cursor; this batch was undone and will be read again."""


class StandingBy(LeaseLost):
    """Another host projects here, for as long as it renews its lease."""

    def __init__(self, domain: str, holder: str, seconds_left: float) -> None:
        self.holder = holder
        self.seconds_left = seconds_left
        super().__init__(f"`{domain}` is held by {holder}, for {seconds_left:.1f} s unless renewed")


class RangeGone(LeaseLost):
    """The domain's slices were cut in another way meanwhile: look which ranges there are now."""


class BatchStuck(QntxError):
    """A batch does not end, and can never commit. Mend what its handler waits for, and restart."""


class CutRefused(QntxError):
    """This domain's slices cannot be cut like that; nothing was changed."""


class ScrubRefused(QntxError):
    """This domain is not scrubbed: say by_entity=True if its entities are independent."""


class CursorWouldRegress(QntxError):
    """A cursor only moves forward. To go back, rebuild."""


class ProjectorStopped(QntxError):
    """A handler failed; its projector stands before the attestation until the handler is mended."""

    def __init__(self, domain: str, *, position: int, handler: str, error: str) -> None:
        self.domain = domain
        self.position = position
        super().__init__(
            f"projector `{domain}` stopped at position {position}: handler `{handler}` raised "
            f"{error}. Mend the handler and run it again"
        )


class TableAltered(ProjectorStopped):
    """Somebody altered a live table by hand. Run `qntx-es projections rebuild`."""

    def __init__(self, domain: str, *, position: int, found: Sequence[str]) -> None:
        self.domain = domain
        self.position = position
        self.found = tuple(found)
        QntxError.__init__(
            self,
            f"projector `{domain}` stopped at position {position}, for somebody altered its "
            f"tables: {', '.join(found)}. The log has all that was in them: "
            f"run `qntx-es projections rebuild {domain}`",
        )


class ProjectorOutdated(QntxError):
    """A domain's tables are of another version. Run `qntx-es projections rebuild`."""


class ProjectorPaused(QntxError):
    """Somebody paused this projector. `qntx-es projections resume` lets it go on."""

    def __init__(self, domain: str, pause: str) -> None:
        self.domain = domain
        super().__init__(
            f"projector `{domain}` is {pause}. `qntx-es projections resume {domain}` lets it go on"
        )


class ProjectorUnowned(QntxError):
    """No running host holds the lease of this projector: run one that has its domain."""

    def __init__(self, domain: str) -> None:
        super().__init__(
            f"no running host projects `{domain}`. Run one that does: `qntx-es run`, host.running()"
        )


class EntityParked(QntxError):
    """What is said about this entity waits, since a handler failed."""

    def __init__(self, domain: str, *, entity: str, position: int, error: str) -> None:
        self.entity = entity
        self.position = position
        super().__init__(
            f"`{domain}` has parked `{entity}` at position {position}: {error}. Mend the handler, "
            f"then: qntx-es projections retry {domain}"
        )


class RebuildLost(QntxError):
    """Another rebuild of this domain began, or the database lost what was filled: this gives way.

    Live tables are untouched. Run it again unless another is running.
    """


class NothingToRetry(QntxError):
    """Nothing stands or is parked there. `qntx-es projections status` names what does."""


class SkipRefused(QntxError):
    """What has had its effect cannot be skipped: only a rebuild takes it out of the rows."""


class LedgerChanged(QntxError):
    """A skip was said or withdrawn while tables were rebuilt. Live is untouched: run it again."""


class NoWorkers(QntxError):
    """Ranges cannot be filled by other processes here. Rebuild without workers."""


class RebuiltAlready(QntxError):
    """Another host has rebuilt this model meanwhile: its tables are of this version."""


class RebuildRunning(QntxError):
    """The fresh tables of this domain are another's: one rebuild or verify of it at a time."""

    def __init__(self, domain: str, holder: str) -> None:
        who, process, _ = holder.rsplit(":", 2)
        super().__init__(
            f"the fresh tables of `{domain}` are held by {who}, process {process}. Let it finish, "
            "or interrupt it: one that died is forgotten after a minute"
        )


class RebuildDiffers(QntxError):
    """What a rebuild holds is not what was expected, so it was not swapped; live is untouched.

    `found` is the `Comparison`.
    """

    def __init__(self, domain: str, unexpected: Sequence[str], found: Any) -> None:  # noqa: ANN401 - a Comparison
        self.found = found
        super().__init__(
            f"`{domain}` was not swapped: {', '.join(unexpected)} would change, and that was not "
            "expected. Live rows are as they were. Mend the handlers, or expect it"
        )


class ForeignDependants(QntxError):
    """What others made on live tables would be lost with them. Drop it, rebuild, make it anew.

    `found` names it.
    """

    def __init__(self, domain: str, found: Sequence[str]) -> None:
        self.found = tuple(found)
        super().__init__(
            f"`{domain}` is not rebuilt, for what others made on its tables would be lost with "
            f"them: {', '.join(found)}. Live tables are untouched. Drop it, run "
            f"`qntx-es projections rebuild {domain}`, and make it anew"
        )


class InvalidExpectation(QntxError):
    """What may change in a rebuild is `same` (nothing), or TABLE.COLUMN of the domain."""


class PrefixRefused(QntxError):
    """Tables under this prefix cannot be made, or are not there. Choose another one."""


class BeyondHead(QntxError):
    """The log does not reach so far, so nothing can be made of it up to there."""


class UnknownDerive(QntxError):
    """The domain has no derive handler of this name."""

    def __init__(self, domain: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"`{domain}` has no derive handler `{name}`{did_you_mean(name, known)}")


class SwapBusy(QntxError):
    """A long reader kept the tables from being swapped. Live tables are untouched: try again."""


class WaitTimeout(QntxError):
    """The position was not reached in time. `qntx-es projections status` says why."""


# Pulse.


class UnknownHandler(QntxError):
    """No enabled domain has this job handler."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no job handler `{name}`{did_you_mean(name, known)}")


class PulseBehind(QntxError):
    """The queue has not followed the log: nothing is decided on old rows. Its status says why."""


class StaleToken(QntxError):
    """This attempt was given up for lost, and its outcome no longer counts."""


class InvalidRequest(QntxError):
    """A job cannot be asked for in this way."""


class InvalidOutcome(QntxError):
    """What a job returns, or goes on from, is a JSON value of bounded size."""


class JobStopped(QntxError):
    """This attempt was asked to stop: return, or let this error pass, and it ends cancelled."""


class GiveUp(QntxError):
    """Raised by a job handler: a further attempt cannot help."""


class TryAgain(QntxError):
    """Raised by a job handler: this attempt failed, and the next one is to come after `delay`.

    Without a delay the handler's backoff says when.
    """

    def __init__(self, message: str | None = None, *, delay: timedelta | None = None) -> None:
        self.delay = delay
        super().__init__(message or "this attempt failed: try again")

    def __reduce__(self) -> tuple[object, ...]:
        return partial(TryAgain, delay=self.delay), (str(self),)


class Snooze(QntxError):
    """Raised by a job handler: call again at `until`, or after `delay`; this was no attempt."""

    def __init__(self, *, until: datetime | None = None, delay: timedelta | None = None) -> None:
        if (until is None) == (delay is None):
            raise ValueError("until an instant or for a delay: until= or delay=")
        if until is not None and until.tzinfo is None:
            raise ValueError("an instant has a zone: until=datetime.now(UTC) + …")
        self.until = until
        self.delay = delay
        super().__init__(f"wait {'until' if until else 'for'} {until or delay}")

    def __reduce__(self) -> tuple[object, ...]:
        return partial(Snooze, until=self.until, delay=self.delay), ()


class JobSuspends(QntxError):
    """Raised by `job.suspend`: run again with `state` once no child is open."""

    def __init__(self, state: object) -> None:
        self.state = state
        super().__init__()

    def __reduce__(self) -> tuple[object, ...]:
        return JobSuspends, (self.state,)


# The kit that proves domains.


class InconsistentReplay(QntxError):
    """The same log gave other rows, or derived otherwise, under a plan that must not show.

    `cause` is what made the difference when it was tried alone: `clock`, `restart`, `batch`, ….
    """

    def __init__(self, message: str | None = None, *, cause: str | None = None) -> None:
        self.cause = cause
        super().__init__(message)


class NoStrategy(QntxError):
    """No attestations can be drawn for this. Give your own: `attestations(…, strategies={…})`."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End a message with the nearest known name, or with all of them where none is near."""
    names = sorted(set(known))
    near = get_close_matches(name, names, n=1)
    if near:
        return f"; did you mean `{near[0]}`?"
    return f"; known: {', '.join(names)}" if names else "; none is known"
