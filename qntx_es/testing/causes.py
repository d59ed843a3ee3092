"""Why a replay is another one, found by trying each cause alone.

What failed changed several things at once. On the shortest log that shows it each of them is tried
by itself against a fold in which nothing is changed, so that the cause is known and not guessed;
those that make no difference are named as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qntx_es.attestation import Attestation, computed_id
from qntx_es.testing.bench import Kind
from qntx_es.testing.circumstances import KINDS
from qntx_es.testing.differences import differences
from qntx_es.testing.hashseeds import differs_by_hash_seed
from qntx_es.testing.memory import Change
from qntx_es.testing.plans import (
    Cut,
    Fail,
    Lift,
    Rebuild,
    Step,
    Travel,
    poll,
    restart,
)
from qntx_es.testing.replay import Outcome, Stage, fold_again, run_on

NOTHING = "nothing"
REFUSED = "refused"
PLAN = "plan"
# What each is called among those that are not the cause.
NAMES = {
    NOTHING: "chance",
    "clock": "clock",
    "zone": "zone",
    "environment": "environment",
    "uuid": "random bytes",
    "random": "random seed",
    "keys": "order of keys",
    "hashseed": "hash seed",
    "restart": "restart",
    "batch": "batch size",
    "twice": "second offering",
}
LIKELY = {
    NOTHING: (
        "makes something else of the same log each time: a thread, the network, a file",
        "Do that in a job, which ends in attestations, and project those",
    ),
    "clock": (
        "reads the clock",
        "Use `recorded_at` of the attestation, or say the time in its payload",
    ),
    "zone": (
        "reads the time zone or the locale of the machine",
        "Give every datetime a zone (UTC), and format nothing by locale",
    ),
    "environment": (
        "reads the environment of the process",
        "Say it in an attestation, or write it down as a constant: a new value is a new `version`",
    ),
    "uuid": (
        "draws random bytes of the system (uuid, secrets)",
        "Derive ids from the attestation's: `computed_id(recorded.id, …)`",
    ),
    "random": (
        "draws random numbers",
        "Seed a generator of its own with the attestation's id: `Random(recorded.id)`",
    ),
    "keys": (
        "depends on the order of keys in a payload",
        "Sort them before you go through them",
    ),
    "hashseed": (
        "depends on the order of a set, or on `hash()`",
        "Sort the set; take `hashlib` for a hash that lasts",
    ),
    "restart": (
        "keeps a value in its module, a closure or a default argument between attestations",
        "Keep it in a row: `rows.get`, `rows.put`, `rows.add`",
    ),
    "batch": (
        "sees how the log is cut into batches: it reads or writes past `rows`",
        "Use `rows.get`, `rows.select` and `rows.execute`, which see what was put before",
    ),
    "twice": (
        "does something that is not undone with its batch",
        "Write to `rows` alone; what goes outside is a job's",
    ),
}
BY_STEP: Sequence[tuple[type, str, str]] = (
    (Rebuild, "gives other rows when it is rebuilt", "Let handlers look at their arguments alone"),
    (Travel, "gives other rows when it is folded up to a position only", "Look at nothing ahead"),
    (Fail, "swallows a failure, or looks across entities while one waits", "Let errors pass"),
    (Lift, "reads old payloads otherwise than new ones", "Let upcasters be pure and total"),
    (Cut, "is not `by_entity`: its entities depend on one another", "Leave `by_entity` out"),
)


@dataclass(frozen=True, slots=True)
class Cause:
    """What makes the difference, what to do, what else makes one, and what was tried in vain."""

    name: str
    says: str
    remedy: str
    also: tuple[str, ...] = ()
    innocent: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()


def cause_of(stage: Stage, log: Sequence[Attestation], plan: Sequence[Step], kind: Kind) -> Cause:
    """Return why a plan gives something else than a fold of the same log."""
    log = _at_length(log)
    made = run_on(stage, log, [poll(1) for _ in log], kind)
    changes = tuple(stage.subject.memory.changes())
    folded = fold_again(stage, made, kind)
    trials: dict[str, Callable[[], bool]] = {
        NOTHING: lambda: (
            _differ(stage, folded, fold_again(stage, made, kind)) or _differ(stage, folded, made)
        )
    }
    for one in ("uuid", "clock", "zone", "environment", "random", "keys"):
        trials[one] = _under(stage, made, folded, kind, one)
    by_hash_seed = differs_by_hash_seed(stage.subject.domain, made.exported)
    if by_hash_seed is not None:
        trials["hashseed"] = lambda: by_hash_seed
    for name, steps in _plans(len(log)).items():
        trials[name] = _planned(stage, log, steps, kind)
    found = [name for name, trial in trials.items() if trial()]
    innocent = tuple(NAMES[name] for name in trials if name not in found)
    if not found:
        says, remedy = _of_steps(plan)
        return Cause(PLAN, says, remedy, innocent=innocent)
    likely, *also = (NOTHING,) if NOTHING in found else found
    is_kept = likely == "restart"
    return Cause(
        likely,
        *LIKELY[likely],
        also=tuple(NAMES[one] for one in also),
        innocent=() if likely == NOTHING else innocent,
        changes=changes if is_kept else (),
    )


def _at_length(log: Sequence[Attestation]) -> list[Attestation]:
    """Return a log that is long enough for each cause: said again, and of other entities as well.

    The shortest log may be of one attestation, after which nothing can be seen of a restart.
    """
    again = [_said_again(one, one.entity) for one in log]
    return [*log, *again, *(_said_again(one, f"{one.entity}2") for one in log)]


def _said_again(said: Attestation, entity: str) -> Attestation:
    return Attestation(
        context=said.context,
        entity=entity,
        actor=said.actor,
        payload=said.payload,
        id=computed_id("again", said.id, entity),
        schema_version=said.schema_version,
        caused_by=said.caused_by,
        correlation_id=said.correlation_id,
        tags=said.tags,
    )


def _plans(length: int) -> dict[str, list[Step]]:
    return {
        "restart": [step for _ in range(length) for step in (poll(1), restart())],
        "batch": [poll(max(2, length))],
        "twice": [poll(1, times=2) for _ in range(length)],
    }


def _under(
    stage: Stage, made: Outcome, folded: Outcome, kind: Kind, one: str
) -> Callable[[], bool]:
    assert one in KINDS  # noqa: S101 - a misspelt one would be innocent for ever
    return lambda: _differ(stage, folded, fold_again(stage, made, kind, changed=frozenset((one,))))


def _planned(
    stage: Stage, log: Sequence[Attestation], plan: list[Step], kind: Kind
) -> Callable[[], bool]:
    def differs() -> bool:
        made = run_on(stage, log, plan, kind)
        return _differ(stage, fold_again(stage, made, kind), made)

    return differs


def _differ(stage: Stage, folded: Outcome, planned: Outcome) -> bool:
    return bool(differences(stage.subject.domain, folded, planned))


def _of_steps(plan: Sequence[Step]) -> tuple[str, str]:
    for kind, says, remedy in BY_STEP:
        if any(isinstance(step, kind) for step in plan):
            return says, remedy
    return "depends on something that none of the trials changes alone", "See the plan above"
