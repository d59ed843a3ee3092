"""How a command ends: with which code, and with what last words.

Scripts read the code, people the words, and both must be able to rely on them: a named error is
one line on stderr that says what to do, never a traceback. What is no named error is a bug, and
shows as one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from qntx_es.cli.output import complain, shown
from qntx_es.config import InvalidConfig
from qntx_es.errors import (
    AxError,
    AxTimeout,
    DomainRefused,
    InvalidExpectation,
    QntxError,
    UnknownContext,
    UnknownDerive,
    UnknownDomain,
    UnknownHandler,
)

FAILURE = 1
USAGE = 2
DIFFERENCE = 3
INTERRUPTED = 130

OF_USAGE = (
    AxError,
    InvalidConfig,
    InvalidExpectation,
    UnknownContext,
    UnknownDerive,
    UnknownDomain,
    UnknownHandler,
)


@contextmanager
def named_errors() -> Iterator[None]:
    """End the command where it is refused, fails by name, or is interrupted."""
    try:
        yield
    except QntxError as error:
        complain(message_of(error))
        raise typer.Exit(code_of(error)) from error
    except KeyboardInterrupt:
        complain("interrupted: what is committed stays, and the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None


def code_of(error: QntxError) -> int:
    """Return the exit code of an error: usage where the command line names what is not there."""
    is_of_usage = isinstance(error, OF_USAGE) and not isinstance(error, AxTimeout)
    return USAGE if is_of_usage else FAILURE


def message_of(error: QntxError) -> str:
    """Return an error as one line, or as the list of problems it is."""
    if isinstance(error, DomainRefused):
        problems = (f"  - {shown(problem)}" for problem in error.problems)
        return "\n".join([f"domain `{error.domain}` is refused:", *problems])
    if isinstance(error, AxError):
        return "\n".join(map(shown, str(error).split("\n")))  # its caret stands below its column
    return shown(str(error))
