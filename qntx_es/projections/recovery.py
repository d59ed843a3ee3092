"""What becomes of a handler that fails.

The one file that may catch everything, because a handler is somebody else's code and its failure
is a state of the projector, not an accident of ours. What is the database's trouble passes through:
that is waited out, and never held against an attestation.

What a domain may choose is for failures of its handlers. What cannot be read is never skipped: no
handler has seen it. What newer code wrote is neither skipped nor parked: a newer host goes on.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import FrameType, FunctionType

from sqlalchemy import Connection, delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from qntx_es.database import is_trouble
from qntx_es.domain import Domain, OnFailure
from qntx_es.errors import (
    BatchStuck,
    DatabaseMissing,
    DatabaseUnavailable,
    InvalidPayload,
    LeaseLost,
    LogBusy,
    QntxError,
    SchemaVersionTooNew,
    StorageFull,
)
from qntx_es.projections.cursor import Cursor
from qntx_es.tables import failures

ATTEMPTS = 3
STOPPED, STUCK = "stopped", "stuck"
# Waited out by trying the whole batch again; never a reason to blame a handler.
OF_THE_DATABASE = (
    DatabaseMissing,
    DatabaseUnavailable,
    LogBusy,
    StorageFull,
    LeaseLost,
)
TEXT_MAX = 8_192
# What is blamed in place of a handler where somebody altered the tables.
TABLES = "its tables"


class Kind(StrEnum):
    """Whose failure it is: the handler's, the payload's, or of code that is too old."""

    HANDLER = "handler"
    DECODE = "decode"
    NEWER_SCHEMA = "newer schema"

    @classmethod
    def of(cls, error: BaseException) -> "Kind":
        """Return which kind of failure an error is."""
        if isinstance(error, SchemaVersionTooNew):
            return cls.NEWER_SCHEMA
        return cls.DECODE if isinstance(error, InvalidPayload) else cls.HANDLER


@dataclass(slots=True)
class InHand:
    """The attestation and the handler a projector is at."""

    position: int = 0
    handler: str = ""


class HandlerFailed(QntxError):
    """A handler raised; the batch is undone.

    `at` is where the projector was: at the attestation itself, or at a retry that works it off.
    """

    def __init__(self, in_hand: InHand, error: BaseException) -> None:
        self.raised = error
        self.kind = Kind.of(error)
        self.position = self.at = in_hand.position
        self.handler = in_hand.handler
        self.error = _storable("".join(traceback.format_exception_only(error)).strip())
        self.traceback = _storable("".join(traceback.format_exception(error, chain=False)))
        super().__init__(f"{self.handler} at position {self.position} raised {self.error}")


def stuck_at(domain: Domain, frame: FrameType) -> HandlerFailed:
    """Return that a batch does not end, blamed on the handler that the frame is inside of."""
    stack = "".join(traceback.format_stack(frame))
    failed = HandlerFailed(_in_hand_at(domain, frame), BatchStuck())
    failed.traceback = _storable(stack)
    return failed


def _in_hand_at(domain: Domain, frame: FrameType) -> InHand:
    functions: list[tuple[str, object]] = [(one.name, one.function) for one in domain.projects]
    functions += [(one.name, one.function) for one in domain.derives]
    handlers = {one.__code__: name for name, one in functions if isinstance(one, FunctionType)}
    at: FrameType | None = frame
    while at is not None:
        if at.f_code in handlers:
            recorded = at.f_locals.get(at.f_code.co_varnames[0])
            return InHand(getattr(recorded, "position", 0), handlers[at.f_code])
        at = at.f_back
    return InHand(0, frame.f_code.co_name)


@contextmanager
def blamed(in_hand: InHand) -> Iterator[None]:
    """Turn whatever a handler raises into `HandlerFailed`, named after what is in hand."""
    try:
        yield
    except OF_THE_DATABASE:
        raise
    except DBAPIError as error:
        if is_trouble(error):
            raise
        raise HandlerFailed(in_hand, error) from error
    except (Exception, SystemExit) as error:
        raise HandlerFailed(in_hand, error) from error


def choice_of(on_failure: OnFailure, failed: HandlerFailed) -> OnFailure:
    """Return what becomes of a failure in a domain that has chosen `on_failure`."""
    if failed.at != failed.position:
        return "park"  # where it is, while the projector goes on
    if failed.kind is Kind.NEWER_SCHEMA or (failed.kind is Kind.DECODE and on_failure == "skip"):
        return "stop"
    return on_failure


def record_failure(
    connection: Connection, cursor: Cursor, failed: HandlerFailed, now: int, state: str = STOPPED
) -> None:
    """Keep why a projector stands at a cursor; it is of the past once the cursor has moved."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    values = {
        "state": state,
        "cursor": cursor.position,
        "position": failed.position,
        "handler": failed.handler,
        "error": failed.error,
        "traceback": failed.traceback,
        "failed_at": now,
    }
    key = {"domain": cursor.domain, "first_slice": cursor.slices.first}
    said = dialect.insert(failures).values(**key, **values)
    connection.execute(said.on_conflict_do_update(index_elements=[*key], set_=values))


def forget_failure(connection: Connection, domain: str) -> None:
    """Forget why a projector stands: other code, or other tables, are to try again."""
    connection.execute(delete(failures).where(failures.c.domain == domain))


def _storable(text: str) -> str:
    """Return what a database keeps of somebody's words: their end, with nothing it refuses."""
    spelt = text[-TEXT_MAX:].replace("\x00", "\\0")
    return spelt.encode(errors="backslashreplace").decode()
