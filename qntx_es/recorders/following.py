"""Following the log: what is there, and then what comes, without a thread and without a rush.

Who waits is woken by the bell when something is recorded in this process, and looks by himself
for what others record: after 10 ms first, then twice as long, at most half a second.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

from qntx_es.recorders.desk import Bell

PAUSE_SECONDS = 0.01
PAUSE_SECONDS_MAX = 0.5
LOOK_ROWS = 500

T = TypeVar("T")
Look: TypeAlias = Callable[[int], tuple[Sequence[T], int]]


class Following(Generic[T]):
    """Hands out one by one what `look` finds behind a position.

    `look` returns what it found and how far it has looked, so that what does not match is
    searched once.
    """

    def __init__(self, bell: Bell, after: int, look: Look[T]) -> None:
        self._bell = bell
        self._after = after
        self._look = look
        self._found: deque[T] = deque()
        self._pause = PAUSE_SECONDS
        self._is_stopped = False

    def take(self) -> T:
        """Return the next, waiting for it. Raises `StopIteration` once it is stopped."""
        while True:
            # Heard before looking: what is rung meanwhile ends the wait at once.
            heard = self._bell.times
            if self._is_stopped:
                raise StopIteration
            if self._found:
                return self._found.popleft()
            found, self._after = self._look(self._after)
            if found:
                self._found.extend(found)
                self._pause = PAUSE_SECONDS
                continue
            self._bell.wait(heard, self._pause)
            self._pause = min(2 * self._pause, PAUSE_SECONDS_MAX)

    def stop(self) -> None:
        """Let the one who waits go, and hand out nothing more."""
        self._is_stopped = True
        self._bell.ring()
