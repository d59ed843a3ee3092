"""A process to be stopped and killed, since a thread cannot die of SIGKILL alone."""

import os
import select
import signal
import subprocess
import sys
import time
from typing import Self

SECONDS_MAX = 30.0


class Process:
    """A program's text, run by this very Python with these arguments; killed at the end (`with`).

    It finds the modules that this process finds. Whatever waits for it gives up after
    `seconds_max` with `TimeoutError`.
    """

    def __init__(self, program: str, *arguments: str, seconds_max: float = SECONDS_MAX) -> None:
        self._seconds_max = seconds_max
        self._process = subprocess.Popen(  # noqa: S603 - this very Python, and a test's own program
            [sys.executable, "-c", program, *arguments],
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    @property
    def number(self) -> int:
        """The number that the system gives it."""
        return self._process.pid

    def line(self) -> str:
        """Return the next line that it prints; empty when it has ended."""
        said = self._process.stdout
        deadline = time.monotonic() + self._seconds_max
        found = bytearray()
        while said is not None and not found.endswith(b"\n"):
            ready, _, _ = select.select([said], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"process {self.number} printed no line")
            piece = said.read(1)
            if not piece:
                break
            found += piece
        return found.decode().rstrip("\n")

    def say(self, line: str) -> None:
        """Write a line for it to read."""
        if self._process.stdin is not None:
            self._process.stdin.write(f"{line}\n".encode())

    def stop(self) -> None:
        """Let it stand still wherever it is."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on after a stop."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> int:
        """Kill it wherever it is, and return how it ended."""
        self._process.kill()
        return self.wait()

    def wait(self) -> int:
        """Return how it ended, once it has: its exit code, or less than 0 for a signal."""
        try:
            return self._process.wait(self._seconds_max)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"process {self.number} does not end") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
