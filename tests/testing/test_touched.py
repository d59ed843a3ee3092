"""What a handler reaches for beside its arguments is told with what it breaks, as a hint."""

import socket
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import Column, String

from qntx_es import Domain, Payload, Recorded, Rows
from qntx_es.testing import InconsistentReplay, poll, replay

curious = Domain("curious")
notes = curious.table("notes", Column("entity", String, primary_key=True), Column("note", String))


class Noted(Payload, context="noted"):
    """Something was noted."""


@curious.project(Noted)
def look_around(noted: Recorded[Noted], rows: Rows) -> None:
    """Note what a file of the system says, and knock at a door behind which nobody is."""
    with Path("/dev/urandom").open("rb") as chance:
        rows.put(notes, entity=noted.entity, note=chance.read(8).hex())
    with suppress(OSError), socket.socket() as door:
        door.connect(("127.0.0.1", 1))


def test_files_and_servers_are_named_where_rows_differ() -> None:
    """The report names handler, file and server; the property remains the judge."""
    with pytest.raises(InconsistentReplay) as failed:
        replay(curious, [curious.attest(Noted(), entity="a")], [poll(1)])

    assert failed.value.cause == "nothing"
    assert (
        "Seen meanwhile: `look_around` opens /dev/urandom; `look_around` connects to "
        "('127.0.0.1', 1)." in str(failed.value)
    )
