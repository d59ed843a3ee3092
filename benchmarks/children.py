"""Processes that play a part in a benchmark: the script again, told which."""

import subprocess
import sys

LEAVING_SECONDS_MAX = 60.0


class Child:
    """A process of its own that plays a part of a script; it leaves when it is told to."""

    def __init__(self, script: str, part: str, url: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - a benchmark's own script
            [sys.executable, script, "--part", part, "--url", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def say(self) -> str:
        """Return the next line that it says."""
        if self._process.stdout is None or not (line := self._process.stdout.readline()):
            message = "it ended without a word"
            raise RuntimeError(message)
        return line.strip()

    def leave(self) -> None:
        """Let it end, and wait for that."""
        self._process.communicate(timeout=LEAVING_SECONDS_MAX)


def await_the_end() -> None:
    """Tell whoever started this process that it is up, and stay until told to leave."""
    print("up", flush=True)
    sys.stdin.read()
