"""The one line: a domain's replay consistency as a test function.

    test_orders = replay_consistency(orders)

Each example draws a log and a plan: other batches, crashes, second offerings, a rebuild, another
clock, all that must not show. The log is run live by that plan and folded from nothing, and both
have to be the same. So one run asks for many properties, and a failure shrinks to the one step and
the few attestations that matter; what is the cause is then tried alone.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from qntx_es import faults
from qntx_es.attestation import Attestation
from qntx_es.domain import Domain
from qntx_es.errors import DomainRefused, InconsistentReplay, did_you_mean
from qntx_es.testing import strategies
from qntx_es.testing.bench import Kind, On, kinds_of
from qntx_es.testing.circumstances import KINDS, Changed
from qntx_es.testing.differences import differences
from qntx_es.testing.hashseeds import ask_by_hash_seed
from qntx_es.testing.plans import (
    POINTS,
    Append,
    Cut,
    Fail,
    Lift,
    Poll,
    Rebuild,
    Restart,
    Step,
    Travel,
    under,
)
from qntx_es.testing.pruning import Enough, Verdicts, pruned
from qntx_es.testing.replay import Stage, fold_of, run_on, stage_of
from qntx_es.testing.report import again_by, told
from qntx_es.testing.strategies import Histories

EXAMPLES, FEW = 25, 5
BATCH_MAX = 5
STEPS_MAX = 4
RANGES_MAX = 3
DETERMINISM = (*KINDS, "hashseed")
CHECKS = ("batch", "crash", "twice", "derive", "rebuild", "travel", "recovery", *DETERMINISM)
DECLARED = ("entity", "upcast")
REBUILD_POINTS = tuple(one for one in faults.POINTS if one.startswith("rebuild."))


class _Found(Exception):
    """A log and a plan are not consistent."""


def replay_consistency(
    domain: Domain,
    *,
    on: On = "sqlite",
    checks: Iterable[str] | None = None,
    examples: int | None = None,
    attestations: Histories | None = None,
) -> Callable[[], None]:
    """Return a test: however a log is replayed, the domain makes the same rows of it.

    `checks` are some of `batch`, `crash`, `twice`, `derive`, `rebuild`, `travel`, `recovery`,
    `determinism` or one of its parts (`clock`, `zone`, `environment`, `random`, `uuid`, `keys`,
    `hashseed`), `entity` for a domain that is `by_entity`, `upcast` for one that has upcasters;
    by default all. `examples` is how
    many logs are tried, by default 25 unless a Hypothesis profile says otherwise; `attestations`
    what they are made of. The test raises `InconsistentReplay`, also where no example reached a
    handler. Raises `ValueError` for a check that there is not.
    """
    wanted = _checked(checks)
    kinds = kinds_of(on)

    def test() -> None:
        __tracebackhide__ = True
        for kind in kinds:
            _check(domain, wanted, kind, examples, attestations, _asked_to_reproduce(test))

    test.__name__ = f"test_{domain.name}"
    test.__qualname__ = test.__name__
    test.__doc__ = f"However its log is replayed, `{domain.name}` makes the same rows of it."
    return test


def _checked(checks: Iterable[str] | None) -> frozenset[str]:
    if checks is None:
        return frozenset((*CHECKS, *DECLARED))
    given_ = set(checks)
    if "determinism" in given_:
        given_ = given_ - {"determinism"} | set(DETERMINISM)
    known = (*CHECKS, *DECLARED, "determinism")
    for unknown in sorted(given_.difference(known)):
        raise ValueError(f"no check is named `{unknown}`{did_you_mean(unknown, known)}")
    return frozenset(given_)


def _check(  # noqa: PLR0913, PLR0917 - the parts of a test
    domain: Domain,
    checks: frozenset[str],
    kind: Kind,
    examples: int | None,
    histories: Histories | None,
    reproduced: Any,  # noqa: ANN401 - Hypothesis' own
) -> None:
    __tracebackhide__ = True
    try:
        stage = stage_of(domain)
    except DomainRefused as refused:
        raise InconsistentReplay(f"{refused}\n\nNo host takes it up.", cause="refused") from None
    stage.subject.reached.clear()
    contexts: set[str] = set()
    drawn = strategies.attestations(domain) if histories is None else histories
    asked = settings_of(examples)
    _try(stage, checks, kind, drawn, asked, contexts, reproduced)
    for payload in _unreached(stage, contexts) if histories is None else ():
        # By chance alone nobody spoke of it: a few examples that do.
        begun = strategies.attestations(domain, starts_with=payload, entities=1)
        few = settings(asked, max_examples=FEW)
        _try(stage, checks, kind, begun, few, contexts, None)
    missing = _handlers_unreached(stage, contexts)
    if missing:
        raise InconsistentReplay(
            f"no example reached {', '.join(f'`{one}`' for one in missing)} of {domain.name}, and "
            "what did not run proves nothing.\n\nDraw what it handles: "
            f"attestations({domain.name}, then=[…], strategies={{…}})",
            cause="unreached",
        )


def _try(  # noqa: PLR0913, PLR0917 - the parts of a test
    stage: Stage,
    checks: frozenset[str],
    kind: Kind,
    histories: Histories,
    asked: settings,
    contexts: set[str],
    reproduced: Any,  # noqa: ANN401 - Hypothesis' own
) -> None:
    __tracebackhide__ = True
    verdicts = Verdicts(lambda log, plan: _is_consistent(stage, log, plan, kind, checks))

    def consistent(example: tuple[list[Attestation], list[Step]]) -> None:
        log, plan = example
        contexts.update(one.context for one in log)
        if not verdicts.of_drawn(log, plan):
            raise _Found

    consistent.__name__ = f"{stage.subject.domain.name}_on_{kind}"  # a name in the example database
    test = asked(given(_examples(stage.subject.domain, histories, checks))(consistent))
    if reproduced is not None:
        vars(test)["_hypothesis_internal_use_reproduce_failure"] = reproduced
    try:
        test()
    except _Found as found:
        raise _failure(stage, kind, verdicts, _blob_of(found)) from None
    except Enough:
        raise _failure(stage, kind, verdicts, "") from None


def _failure(stage: Stage, kind: Kind, verdicts: Verdicts, blob: str) -> InconsistentReplay:
    log, plan = pruned(*verdicts.least(), verdicts.of)
    return told(stage, log, plan, kind, again_by(blob)) or InconsistentReplay(
        f"{stage.subject.domain.name} made other rows of this log, and then the same again: it "
        "looks at a thread, the network, a file. Do that in a job, and project what it attests",
        cause="nothing",
    )


def _is_consistent(
    stage: Stage,
    log: Sequence[Attestation],
    plan: Sequence[Step],
    kind: Kind,
    checks: Collection[str],
) -> bool:
    planned = run_on(stage, log, plan, kind)
    if planned.error is not None:
        return False
    domain = stage.subject.domain
    asked = ask_by_hash_seed(domain, planned.exported) if "hashseed" in checks else None
    folded = fold_of(stage, log, plan, planned, kind)
    by_hash_seed = asked is not None and asked.result()
    return not by_hash_seed and not differences(domain, folded, planned)


def settings_of(examples: int | None, by_default: int = EXAMPLES) -> settings:
    """Return Hypothesis' settings for so many examples: of the profile, or else ours."""
    told_by_profile = settings().max_examples
    is_default = told_by_profile == settings.get_profile("default").max_examples
    return settings(
        max_examples=examples or (by_default if is_default else told_by_profile),
        deadline=None,
        phases=[one for one in settings().phases if one is not Phase.explain],  # traces every line
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def _blob_of(found: BaseException) -> str:
    """Return what Hypothesis says of how to reproduce its example."""
    for note in getattr(found, "__notes__", ()):
        start = note.find("@reproduce_failure(")
        if start >= 0:
            return str(note[start : note.index(")", start) + 1])
    return ""


def _asked_to_reproduce(test: Callable[[], None]) -> Any:  # noqa: ANN401 - Hypothesis' own
    return getattr(test, "_hypothesis_internal_use_reproduce_failure", None)


def _unreached(stage: Stage, contexts: Collection[str]) -> list[Any]:
    missing = _handlers_unreached(stage, contexts)
    read = stage.subject.handlers
    return list(dict.fromkeys(one.payload for one in read if one.name in missing))


def _handlers_unreached(stage: Stage, contexts: Collection[str]) -> list[str]:
    subject = stage.subject
    folds = {one.name for one in subject.domain.folds}
    return [
        one.name
        for one in subject.handlers
        if one.name not in subject.reached
        and not (one.name in folds and one.payload.context in contexts)
    ]


# Plans, drawn.


def _examples(
    domain: Domain, histories: Histories, checks: frozenset[str]
) -> SearchStrategy[tuple[list[Attestation], list[Step]]]:
    @st.composite
    def examples(draw: DrawFn) -> tuple[list[Attestation], list[Step]]:
        log = draw(histories)
        return log, [*draw(_plans(domain, len(log), checks))]

    return examples()


@st.composite
def _plans(draw: DrawFn, domain: Domain, length: int, checks: frozenset[str]) -> list[Step]:
    plan: list[Step] = []
    changed: list[Changed] = [one for one in KINDS if one in checks and draw(st.booleans())]
    if changed:
        plan.append(under(*changed))
    if "recovery" in checks and draw(_one_in(4)):
        plan.append(Fail(draw(st.integers(1, length))))
    if "entity" in checks and domain.by_entity and draw(_one_in(2)):
        plan.append(Cut(draw(st.integers(2, RANGES_MAX))))
    if "upcast" in checks and domain.upcasters and draw(_one_in(2)):
        plan.append(Lift())
    steps = _steps(checks)
    if steps is not None:
        plan += draw(st.lists(steps, max_size=STEPS_MAX))
    if "rebuild" in checks and draw(_one_in(4)):
        point = st.sampled_from(REBUILD_POINTS)
        plan.append(Rebuild(draw(point) if draw(_one_in(4)) else None))
    is_failing = any(isinstance(one, Fail) for one in plan)
    if "travel" in checks and not is_failing and draw(_one_in(3)):
        plan.append(Travel(draw(st.integers(1, length))))
    return plan


def _steps(checks: frozenset[str]) -> SearchStrategy[Step] | None:
    sizes = st.integers(1, BATCH_MAX)
    found: list[SearchStrategy[Step]] = []
    if checks & {"batch", "derive"}:
        found += [st.builds(Poll, sizes), st.builds(Poll, sizes), st.builds(Append, sizes)]
    if "twice" in checks:
        found.append(st.builds(Poll, sizes, times=st.just(2)))
    if "crash" in checks:
        found.append(st.builds(Poll, sizes, st.sampled_from(POINTS)))
        found.append(st.builds(Restart))
    return st.one_of(found) if found else None


def _one_in(count: int) -> SearchStrategy[bool]:
    """Return a strategy that is True once in so many times, and shrinks to False."""
    return st.integers(0, count - 1).map(lambda number: number == count - 1)
