"""What is wrong is refused by name, on both databases alike, and nothing of it is written."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import func, select

from qntx_es import (
    Attestation,
    ConflictingAttestation,
    Domain,
    DuplicateKey,
    ForeignActor,
    ForeignContext,
    Host,
    InvalidId,
    InvalidPayload,
    InvalidText,
    NotFinite,
    Payload,
    QntxError,
    Recorded,
    Rows,
    TooDeep,
    TooLarge,
    TooMany,
)
from qntx_es.attestation import parse_payload
from qntx_es.tables import attestations, inbox


class Seen(Payload, context="seen"):
    """Something was counted."""

    n: int


class Other(Payload, context="other"):
    """Something else."""

    words: str = "x"


def deep(levels: int) -> dict[str, Any]:
    """Return an object of so many levels."""
    return {"a": deep(levels - 1)} if levels > 1 else {}


def said(payload: Any = None, **parts: Any) -> Attestation:  # noqa: ANN401 - often the wrong thing
    """Say something small."""
    names = {"context": "seen", "entity": "a", "actor": "ann"} | parts
    return Attestation(payload={"n": 1} if payload is None else payload, **names)


@pytest.fixture
def host(url: str) -> Iterator[Host]:
    """Open a host whose one domain reads what it emits."""
    domain = Domain("code", emits=("seen",))

    @domain.project(Seen)
    def count(seen: Recorded[Seen], rows: Rows) -> None: ...

    host = Host(url, [domain])
    host.upgrade()
    host.append(said(id="first"))
    yield host
    host.close()


def written(host: Host) -> list[int]:
    """Count what any append could have left."""
    tables = [attestations] if host.database.is_sqlite else [attestations, inbox]
    with host.database.read() as connection:
        return [
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in tables
        ]


REFUSED: dict[str, tuple[Callable[[], Any], type[QntxError]]] = {
    "NaN": (lambda: said({"n": float("nan")}), NotFinite),
    "infinity": (lambda: said({"n": [1, {"a": float("-inf")}]}), NotFinite),
    "1e400": (lambda: said(parse_payload('{"n": 1e400}')), NotFinite),
    "NaN as text": (lambda: said(parse_payload('{"n": NaN}')), NotFinite),
    "NUL": (lambda: said({"n": 1, "a": "\x00"}), InvalidText),
    "NUL in a key": (lambda: said({"n": 1, "\x00": 1}), InvalidText),
    "surrogate": (lambda: said({"n": 1, "a": "\ud800"}), InvalidText),
    "escaped surrogate": (lambda: said(parse_payload('{"n": 1, "a": "\\ud800"}')), InvalidText),
    "escaped NUL": (lambda: said(parse_payload('{"n": 1, "a": "\\u0000"}')), InvalidText),
    "bad UTF-8": (lambda: said(parse_payload(b'{"n": "\xc3("}')), InvalidText),
    "double key": (lambda: said(parse_payload('{"n": 1, "n": 1}')), DuplicateKey),
    "number for a key": (lambda: said({1: 1}), InvalidPayload),
    "no object": (lambda: said([1]), InvalidPayload),
    "too deep": (lambda: said(deep(65)), TooDeep),
    "too large": (lambda: said({"a": "x" * (1 << 20)}), TooLarge),
    "too many": (lambda: [said() for _ in range(10_001)], TooMany),
    "no int": (lambda: said({"n": "many"}), InvalidPayload),
    "a field is missing": (lambda: said({}), InvalidPayload),
    "empty id": (lambda: said(id=""), InvalidId),
    "long id": (lambda: said(id="x" * 513), InvalidId),
    "id of too many bytes": (lambda: said(id="€" * 342), InvalidId),
    "NUL in an entity": (lambda: said(entity="a\x00"), InvalidId),
    "surrogate in an actor": (lambda: said(actor="\udfff"), InvalidId),
    "new line in a context": (lambda: said(context="a\nb"), InvalidId),
    "other bytes": (lambda: said({"n": 2}, id="first"), ConflictingAttestation),
    "one id twice": (lambda: [said(id="x"), said({"n": 2}, id="x")], ConflictingAttestation),
    "framework's context": (lambda: said(context="qntx.append_refused"), ForeignContext),
    "Pulse's context": (lambda: said(context="pulse.job_succeeded"), ForeignContext),
    "schedule of a stranger": (lambda: said(context="pulse.schedule_fired"), ForeignContext),
    "bad request": (lambda: said({}, context="pulse.job_requested"), InvalidPayload),
    "another class in the context": (lambda: said(Other(), context="seen"), InvalidPayload),
    "huge version": (lambda: said(schema_version=1 << 40), QntxError),
    "huge depth": (lambda: said(depth=1 << 40), QntxError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_append_is_refused_by_name_and_leaves_nothing(host: Host, name: str) -> None:
    """Each bad input has its error; nothing is in the log or waiting, and good ones go on."""
    make, error = REFUSED[name]
    before = written(host)

    def append() -> None:
        made = make()
        host.append([said(), *made] if isinstance(made, list) else [said(), made])

    with pytest.raises(error):
        append()

    assert written(host) == before
    assert host.append(said()).position == 2


def test_what_only_looks_bad_is_accepted_and_exact(host: Host) -> None:
    """Odd numbers, odd Unicode and hostile words come back byte for byte."""
    odd = {
        "n": 1, "zero": -0.0, "2^53+1": 2**53 + 1, "2^80": 2**80, "nfc": "é", "nfd": "e\u0301",
        "emoji": "👩‍👩‍👧", "rtl": "\u202eabc", "'; drop table qntx_attestations; --": "%s :x ?",
        "__proto__": None, "select": [], "": {}, "payload": {"payload": 1}, "bom": "\ufeff",
    }  # fmt: skip
    one = said(odd, entity="'; drop table qntx_attestations; --", actor="\u202e")

    host.append(one)

    read = host.ax()[-1]
    assert (read.text, read.entity, read.actor) == (one.text, one.entity, one.actor)
    assert repr(read.payload) == repr(one.payload)


def test_a_domain_refuses_what_it_may_not_say() -> None:
    """In a domain's own hands a foreign context or actor does not become an attestation."""
    domain = Domain("code", emits=("seen",), actors=("code@system",))

    with pytest.raises(ForeignContext):
        domain.attest(Other(), entity="a")
    with pytest.raises(ForeignActor):
        domain.attest(Seen(n=1), entity="a", actor="eve")
