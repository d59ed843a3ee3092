"""Named places where a test may stop, fail or kill the real code.

Crash windows are found by crashing in them, so the places stand in the code itself and not in
a patched copy of it. Outside tests no plan is set, and a point is one comparison. The names live
in one tuple: a misspelt point fails when the plan is made, and none can rot unseen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

POINTS = (
    "append.before_commit",
    "append.after_commit",
    "pass.after_lock",
    "pass.before_inline",
    "pass.before_commit",
    "pass.after_commit",
    "import.before_commit",
    "import.after_commit",
    "batch.after_look",
    "batch.after_read",
    "batch.before_flush",
    "batch.before_append",
    "batch.before_move",
    "batch.before_commit",
    "batch.after_commit",
    "rebuild.after_planned",
    "rebuild.in_fill",
    "rebuild.after_fill",
    "rebuild.before_fence",
    "rebuild.before_swap",
    "rebuild.before_commit",
    "rebuild.after_commit",
    "rebuild.before_drop",
    "job.after_start",
    "job.before_outcome",
    "job.after_outcome",
    "schedule.before_fire",
)

_Plan = Callable[[str], None]
_plan: _Plan | None = None


def point(name: str) -> None:
    """Do nothing, or what the plan in force says for this point."""
    if _plan is not None:
        _plan(name)


@contextmanager
def planned(plan: dict[str, Callable[[], None]]) -> Iterator[None]:
    """Let each named point call its action until the block ends; `ValueError` for unknown names."""
    global _plan  # noqa: PLW0603 - one plan a process is the whole idea: no object to hand around
    unknown = sorted(set(plan) - set(POINTS))
    if unknown:
        message = f"no fault points named {', '.join(unknown)}"
        raise ValueError(message)

    def act(name: str) -> None:
        if name in plan:
            plan[name]()

    before, _plan = _plan, act
    try:
        yield
    finally:
        _plan = before
