"""A log that was restored without its read models moves nothing until somebody has seen to it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import Column, Integer, String, text

from qntx_es import Attestation, Domain, Host, LogRegression, Payload, Recorded, Rows

KEPT = 3
HostOf = Callable[[], Host]


class Moved(Payload, context="moved"):
    """Something moved."""


def make() -> Domain:
    """Make a domain that counts moves."""
    domain = Domain("ledger")
    counts = domain.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0),
    )

    @domain.project(Moved)
    def count(moved: Recorded[Moved], rows: Rows) -> None:
        rows.add(counts, moved.entity, moves=1)

    return domain


def moves(count: int) -> list[Attestation]:
    """Return as many moves."""
    return [Attestation(context="moved", entity="e", actor="a", payload={}) for _ in range(count)]


@pytest.fixture
def host_of(url: str) -> Iterator[HostOf]:
    """Make hosts over one database."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Host(url, [make()]))


def restore_an_older_log(host: Host) -> None:
    """Leave of the log what an older dump had, as a restore of its table alone does."""
    with host.database.write() as connection:
        if host.database.is_sqlite:
            asked = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND sql LIKE '%DELETE%'"
            for name in connection.execute(text(asked)).scalars().all():
                connection.execute(text(f'DROP TRIGGER "{name}"'))
        else:
            connection.execute(text("ALTER TABLE qntx_attestations DISABLE TRIGGER USER"))
        gone = text("DELETE FROM qntx_attestations WHERE position > :kept")
        connection.execute(gone, {"kept": KEPT})


@pytest.mark.restored
def test_an_older_log_under_newer_cursors_is_refused(host_of: HostOf) -> None:
    """Whoever lived through it and whoever comes later is told what to do, and nothing moves."""
    host = host_of()
    host.upgrade()
    host.append(moves(5))
    host.catch_up()
    before = [(one.name, one.position) for one in host.statuses()]

    restore_an_older_log(host)

    told = r"position 5 was read, and the log ends at 3.* the read models .* same backup"
    with pytest.raises(LogRegression, match=told):
        host.catch_up()
    late = host_of()
    # An append would let the log grow past the cursors, and then it would look like its own.
    for what in (lambda: late.append(moves(3)), late.catch_up, late.upgrade):
        with pytest.raises(LogRegression, match=told):
            what()
    assert [(one.name, one.position) for one in late.statuses()] == before
    assert "beyond the end of the log" in str({one.name: one.why for one in late.statuses()})
    assert late.log.head() == KEPT
