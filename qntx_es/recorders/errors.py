"""Our errors and the database's, by the names the library gives to the same troubles.

Its applications catch its classes: on `IntegrityError` they read again and decide anew, on
`OperationalError` they try again later. The message stays ours, and says the remedy.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from eventsourcing import persistence
from sqlalchemy.exc import DBAPIError, IntegrityError

from qntx_es.errors import (
    AppendConditionFailed,
    ConflictingAttestation,
    InvalidAttestation,
    LogRegression,
    QntxError,
    TooMany,
)

FIRST = "somebody was first, and nothing was recorded: read again and decide anew"
_CONFLICTS = (AppendConditionFailed, ConflictingAttestation, LogRegression)
_REFUSED = (InvalidAttestation, TooMany)


@contextmanager
def library_errors() -> Iterator[None]:
    """Raise what goes wrong in the block as one of the library's persistence errors."""
    try:
        yield
    except IntegrityError as error:
        raise persistence.IntegrityError(f"{FIRST} ({error.orig})") from error
    except DBAPIError as error:
        # Both follow PEP 249, so the classes have the same names.
        named = getattr(persistence, type(error).__name__, persistence.DatabaseError)
        raise named(str(error.orig)) from error
    except _CONFLICTS as error:
        raise persistence.IntegrityError(str(error)) from error
    except _REFUSED as error:
        raise persistence.DataError(str(error)) from error
    except QntxError as error:
        raise persistence.OperationalError(str(error)) from error
