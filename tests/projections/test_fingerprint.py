"""Rows made by other code under the same version are unproved, until somebody proves them."""

import linecache
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import BigInteger, Column, String, update

from qntx_es import Attestation, Domain, Host, Payload, Recorded, Rows, faults
from qntx_es.projections.cursor import cursors_of
from qntx_es.projections.fingerprint import fingerprint
from qntx_es.projections.status import ProjectorStatus
from qntx_es.tables import cursors

HostOf = Callable[..., Host]
# Sets that schemas tell of, and all else that may be spelt otherwise in another process.
SOURCE = '''
from datetime import datetime
from pydantic import BaseModel
from sqlalchemy import JSON, BigInteger, Column, DateTime, String
from qntx_es import Domain, Payload, first, last
from qntx_es.projections.fingerprint import fingerprint

class Mix(BaseModel):
    colours: frozenset[str] = frozenset({"red", "green", "blue", "white", "black"})

class Painted(Payload, context="painted", schema_version=2):
    mix: Mix = Mix()
    others: dict[str, set[str]] = {"more": {"cyan", "magenta", "yellow", "pink"}}
    coats: int = 1
    dried_at: datetime | None = None

domain = Domain("walls")
walls = domain.table(
    "walls",
    Column("entity", String(64), primary_key=True),
    Column("first", BigInteger), Column("coats", BigInteger),
    Column("at", DateTime(timezone=True)), Column("notes", JSON, default={"a": 1}),
)
domain.fold(Painted, into=walls, key="entity", first=first("position"), coats=last("payload.coats"))

@domain.upcast(Painted, from_=1)
def lift(values):
    return values

@domain.project(Painted)
def paint(painted, rows):
    """Paint."""
    rows.put(walls, entity=painted.entity, at=painted.payload.dried_at)

print(fingerprint(domain))
'''


class Moved(Payload, context="moved"):
    """Something moved."""


def make(*, by_two: bool = False, inline: bool = False) -> Domain:
    """Make a domain that counts moves; by two in the same version, but only of what is odd."""
    domain = Domain("ledger", inline=inline)
    counts = domain.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("moves", BigInteger, nullable=False, default=0),
    )
    if by_two:

        @domain.project(Moved)
        def move_odd(moved: Recorded[Moved], rows: Rows) -> None:
            rows.add(counts, moved.entity, moves=2 if moved.entity == "odd" else 1)
    else:

        @domain.project(Moved)
        def move(moved: Recorded[Moved], rows: Rows) -> None:
            rows.add(counts, moved.entity, moves=1)

    return domain


def append(host: Host, entity: str = "a") -> int:
    """Append a move, and return its position."""
    return host.append(Attestation(context="moved", entity=entity, actor="x", payload={})).position


def status(host: Host) -> ProjectorStatus:
    """Return how the projector stands."""
    return {one.name: one for one in host.statuses()}["ledger"]


def test_a_fingerprint_is_the_same_in_every_process(tmp_path: Path) -> None:
    """Neither hash seeds nor addresses are in it: a restart makes nobody unproved."""
    source = tmp_path / "walls.py"
    source.write_text(SOURCE)

    said = {
        subprocess.run(
            [sys.executable, str(source)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }

    assert len(said) == 1
    assert len(said.pop().strip()) == 64


@pytest.mark.parametrize("inline", [False, True])
def test_rows_of_other_code_are_unproved_until_verified(host_of: HostOf, *, inline: bool) -> None:
    """The status names the remedy, the projector goes on, and a verify of equal rows ends it."""
    append(before := host_of(make(inline=inline)))
    before.catch_up()
    host = host_of(make(by_two=True, inline=inline))

    moving = "inline" if inline else "live"
    assert status(before).state == moving

    unproved = status(host)
    append(host)
    host.catch_up()

    assert unproved.state == "unproved"
    assert unproved.why is not None
    assert unproved.why.endswith(": qntx-es projections verify ledger")
    assert (status(host).state, status(host).lag) == ("unproved", 0)
    assert host.verify("ledger").is_same
    assert status(host).state == moving
    assert status(before).state == "unproved"


def test_a_verify_that_finds_a_difference_proves_nothing(host_of: HostOf) -> None:
    """Rows that the code makes otherwise stay unproved; a rebuild makes them its own."""
    append(before := host_of(make()), "odd")
    before.catch_up()
    host = host_of(make(by_two=True))

    assert host.verify("ledger").is_same is False
    assert status(host).state == "unproved"
    host.rebuild("ledger")
    append(host)
    host.catch_up()
    assert status(host).state == "live"


def test_a_running_host_says_so_of_what_it_moves(host_of: HostOf) -> None:
    """Unproved stands in the place of live and of standby alike; what is worse stands before."""
    append(before := host_of(make()))
    before.catch_up()
    host, other = host_of(make(by_two=True)), host_of(make(by_two=True))

    with host.running(), other.running():
        host.wait_for(append(host), "ledger")
        assert {status(host).state, status(other).state} == {"unproved"}
        host.pause("ledger")
        assert status(host).state == "paused"


def test_who_has_no_code_says_nothing_of_it(host_of: HostOf) -> None:
    """Without the code there is nothing to compare; without its source neither."""
    append(before := host_of(make()))
    before.catch_up()
    made: dict[str, Any] = {}
    exec("def move_in_the_dark(moved, rows): pass", made)  # noqa: S102 - it has no source
    linecache.clearcache()
    dark = Domain("ledger")
    dark.project(Moved)(made["move_in_the_dark"])

    assert status(host_of()).state == "live"
    assert fingerprint(dark) is None
    assert status(host_of(dark)).state == "live"


def test_a_batch_in_hand_takes_no_proof_back(host_of: HostOf) -> None:
    """A batch that began before a verify ended moves the cursor, and leaves it proved."""
    append(before := host_of(make()))
    before.catch_up()
    host = host_of(make(by_two=True))
    append(host)
    proofs = iter([host.verify])

    def prove() -> None:
        if (verify := next(proofs, None)) is not None:
            assert verify("ledger").is_same

    with faults.planned({"batch.after_read": prove}):
        host.catch_up()

    assert (status(host).state, status(host).lag) == ("live", 0)


def test_a_fingerprint_is_kept_with_every_range(host_of: HostOf) -> None:
    """A domain that is cut keeps it in all of its cursors, and a proof is of all of them."""
    domain = Domain("ledger", by_entity=True)
    host = host_of(domain)
    host.cut("ledger", into=3)
    with host.database.write() as connection:
        first = cursors_of(connection, "ledger")
        connection.execute(update(cursors).values(fingerprint="another"))
    assert status(host).state == "unproved"

    host.verify("ledger")

    with host.database.read() as connection:
        found = cursors_of(connection, "ledger")
    assert {one.fingerprint for one in (*first, *found)} == {fingerprint(domain)}
    assert len(found) == 3
