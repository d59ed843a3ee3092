"""What is wrong is refused by name, on both databases alike, and nothing of it is written."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from qntx_es import (
    AppendConditionFailed,
    Attestation,
    Ax,
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
    "too large together": (
        lambda: [said({"n": 1, "x": "x" * 1_048_000}) for _ in range(17)],
        TooLarge,
    ),
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
def test_a_bad_append_is_refused_by_name_and_leaves_nothing(
    host: Host, name: str, record_property: Callable[[str, object], None]
) -> None:
    """Each bad input has its error, in a caller's transaction too, of which nothing is left.

    Nothing is in the log or waiting, and good ones go on.
    """
    make, error = REFUSED[name]
    before = written(host)
    record_property("qntx.refused", 1)

    def append(session: Connection | None = None) -> None:
        made = make()
        many = made if isinstance(made, list) else [made]
        host.append([said(), *many], session=session)

    with pytest.raises(error):
        append()
    with host.database.write() as caller, pytest.raises(error):
        append(caller)

    assert written(host) == before
    assert host.append(said()).position == 2


# What may stand in an id, a context, an actor, an entity or a tag, and what may not.
BAD_NAMES = {
    "empty": "",
    "513 characters": "x" * 513,
    "1025 bytes": "é" * 511 + "€",
    "NUL": "a\x00b",
    "new line": "a\nb",
    "escape": "a\x1b[2J",
    "delete": "a\x7fb",
    "C1 control": "a\x85b",
    "surrogate": "a\ud800",
    "no text": 1,
}
ODD_NAMES = {
    "512 characters": "x" * 512,
    "1024 bytes": "é" * 512,
    "emoji": "👩\u200d👩\u200d👧",
    "right to left": "\u202eabc",
    "decomposed": "e\u0301",
    "space": " ",
    "SQL": "'; drop table qntx_attestations; --",
    "parameters": "%s :x ? $1",
}
NAMED = ("id", "context", "actor", "entity", "caused_by", "correlation_id", "tags")


def named(part: str, name: Any) -> Attestation:  # noqa: ANN401 - often the wrong thing
    """Say something with this name in one place."""
    return said(**{part: (name,) if part == "tags" else name})


@pytest.mark.parametrize("part", NAMED)
def test_a_bad_name_is_refused_wherever_it_stands(
    host: Host, part: str, record_property: Callable[[str, object], None]
) -> None:
    """Empty, too long, with control characters or no text at all: `InvalidId`, and no row."""
    before = written(host)
    record_property("qntx.refused", len(BAD_NAMES))

    for name in BAD_NAMES.values():
        with pytest.raises(InvalidId):
            host.append([said(), named(part, name)])

    assert written(host) == before


def test_an_odd_name_is_kept_wherever_it_stands(host: Host) -> None:
    """Up to the last byte of the limits, every name comes back as it was, by every way in."""
    many = [named(part, name) for name in ODD_NAMES.values() for part in NAMED]
    many += [
        Attestation(
            context=name, entity=name, actor=name, id=f"{name[:-1]}!", payload={}, tags=(name,)
        )
        for name in ODD_NAMES.values()
    ]

    host.append(many[::2])
    with host.database.write() as caller:
        receipts = host.append(many[1::2], session=caller)

    assert receipts[-1].position == len(many) + 1
    read = list(host.log.read(after=1))
    for one, found in zip([*many[::2], *many[1::2]], read, strict=True):
        for part in NAMED:
            assert getattr(found, part) == getattr(one, part)


def test_as_many_tags_as_may_be(host: Host) -> None:
    """32 tags of 512 characters are kept; a 33rd is too many, and a text is no tuple of texts."""
    most = [f"{n:02}{'é' * 510}" for n in range(32)]
    before = written(host)
    for tags, error in (([*most, "one more"], TooMany), ("abc", InvalidId), ((1,), InvalidId)):
        with pytest.raises(error):
            host.append(said(tags=tags))
    assert written(host) == before

    host.append(said(tags=most))

    assert host.ax(entities=most[-1])[0].tags == tuple(most)


def test_the_largest_and_the_deepest_payload_are_kept(host: Host) -> None:
    """One byte or one level less than what is refused comes back whole."""
    largest = {"n": 1, "a": "x" * ((1 << 20) - len('{"a":"","n":1}'))}
    deepest = {"n": 1, "a": deep(63)}

    host.append([said(largest), said(deepest)])

    assert [dict(one.payload) for one in host.log.read(after=1)] == [largest, deepest]
    for payload in (largest | {"n": 10}, {"n": 1, "a": deep(64)}):
        with pytest.raises((TooLarge, TooDeep)):
            said(payload)


TOLD: dict[str, tuple[Callable[[], Any], str]] = {
    "path of a NaN": (lambda: said({"a": [1, 2, {"b": float("nan")}]}), r"\$\.a\[2\]\.b"),
    "path of a NUL": (lambda: said({"a": ["\x00"]}), r"\$\.a\[0\]"),
    "offset of bad UTF-8": (lambda: parse_payload(b'{"n": "\xc3("}'), "byte 7"),
    "the double key": (lambda: parse_payload('{"a": {"k": 1, "k": 2}}'), "'k'"),
    "the field": (lambda: said({"n": "many"}), "n: "),
    "where the id is": (lambda: said({"n": 2}, id="first"), "position 1"),
    "a twin beside it": (lambda: [said(id="x"), said({"n": 2}, id="x")], "in this append"),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_refusal_says_where(host: Host, name: str) -> None:
    """The message names the place: a path, a byte, a key, a field, a position."""
    make, told = TOLD[name]

    def append() -> None:
        made = make()
        host.append(made if isinstance(made, list) else [made])

    with pytest.raises(QntxError, match=told):
        append()


def test_a_condition_that_is_not_met_says_where(host: Host) -> None:
    """Both kinds of condition name the position that stands against them, and write nothing."""
    host.append(said(entity="b"), expected_version=0)
    before = written(host)

    for condition in ({"unless": Ax(entities="b")}, {"expected_version": 0}):
        with pytest.raises(AppendConditionFailed, match="position 2") as caught:
            host.append(said(entity="b"), **condition)
        assert caught.value.position == 2

    assert written(host) == before


HOSTILE = ("__proto__", "constructor", "select", "'; drop table x; --", "model_dump", "__init__")


def test_no_name_of_a_field_is_special(host: Host) -> None:
    """Fields named like SQL, like a method, or like a prototype are plain data."""
    payload = {"n": 1} | {name: {name: name} for name in HOSTILE}

    host.append(said(payload))

    assert dict(host.ax()[-1].payload) == payload


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
