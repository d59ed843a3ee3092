"""Ids, names and the canonical text: what an attestation is before any database is asked."""

import copy
import json
import pickle
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from qntx_es import (
    Attestation,
    DuplicateKey,
    InvalidId,
    InvalidPayload,
    InvalidText,
    InvalidTime,
    NotFinite,
    Payload,
    QntxError,
    Recorded,
    TooDeep,
    TooLarge,
    computed_id,
)
from qntx_es.attestation import (
    NAME_BYTES_MAX,
    NAME_CHARACTERS_MAX,
    PAYLOAD_BYTES_MAX,
    PAYLOAD_DEPTH_MAX,
    canonical,
    canonical_json,
    derived_id,
    instant,
    microseconds,
    new_id,
    parse_payload,
    slice_of,
)

JAN = datetime(2026, 1, 4, 12, tzinfo=UTC)


class Anything(Payload, context="anything"):
    """A payload that lets through whatever it is given."""

    value: Any


def said(payload: Any = None, **parts: Any) -> Attestation:  # noqa: ANN401 - often the wrong thing
    """Say something small."""
    context = payload.context if isinstance(payload, Payload) else "seen"
    names = {"context": context, "entity": "e", "actor": "ann"} | parts
    return Attestation(payload={} if payload is None else payload, **names)


def nested(depth: int) -> dict[str, Any]:
    """Return an object of so many levels."""
    value: Any = {}
    for _ in range(depth - 1):
        value = {"a": value}
    assert isinstance(value, dict)
    return value


# Ids.


def test_a_new_id_is_a_uuid_of_version_seven() -> None:
    """A new id is a UUIDv7, and the time it names is now."""
    before = time.time_ns() // 1_000_000
    made = new_id()
    after = time.time_ns() // 1_000_000

    assert str(UUID(made)) == made
    assert UUID(made).version == 7
    assert UUID(made).variant == "specified in RFC 4122"
    assert before <= int(made.replace("-", "")[:12], 16) <= after


def test_new_ids_follow_the_clock() -> None:
    """Ids made later sort later, microsecond for microsecond, and are never equal."""
    made = [(time.time_ns(), new_id()) for _ in range(5_000)]

    assert len({one for _, one in made}) == len(made)
    far_apart = made[::50]
    assert [one for _, one in far_apart] == sorted(one for _, one in far_apart)


def test_a_computed_id_depends_on_its_parts_alone() -> None:
    """The same parts meet in one id, for ever; any other parts, however cut, in another."""
    assert computed_id("a", "b") == computed_id("a", "b")
    assert computed_id("a", "b") == "00000000-0000-81cf-af2d-c0d324ab659d"
    others = [("ab",), ("a", "b", ""), ("b", "a"), ('a","b',), ("a,b",)]
    assert len({computed_id(*parts) for parts in [("a", "b"), *others]}) == 6
    assert UUID(computed_id("a")).version == 8


def test_a_computed_id_is_ordered_by_its_time() -> None:
    """The time stands in front, and a time without a zone is none."""
    later = JAN + timedelta(milliseconds=1)

    assert computed_id("a", at=JAN)[:13] == "019b88e0-ea00"
    assert computed_id("a", at=JAN) < computed_id("a", at=later)
    assert computed_id("a", at=JAN) == computed_id(
        "a", at=JAN.astimezone(datetime.now(UTC).astimezone().tzinfo)
    )
    assert computed_id("a", at=datetime(1960, 1, 1, tzinfo=UTC))[:13] == "00000000-0000"
    with pytest.raises(InvalidTime):
        computed_id("a", at=datetime(2026, 1, 4))  # noqa: DTZ001 - that is what is refused


def test_a_computed_id_of_text_that_cannot_be_stored_is_refused_by_name() -> None:
    """A lone surrogate among the parts is refused like anywhere else."""
    with pytest.raises(QntxError):
        computed_id("\ud800")


def test_a_derived_id_carries_the_time_of_its_source() -> None:
    """It stands beside its source and depends on source and parts alone."""
    source = "019b88f5-3a00-7abc-8123-456789abcdef"

    derived = derived_id(source, "code", "analyse", "0")

    assert derived == derived_id(source, "code", "analyse", "0")
    assert derived[:13] == source[:13]
    assert derived != derived_id(source, "code", "analyse", "1")
    assert derived != derived_id(source[:-1] + "0", "code", "analyse", "0")
    assert derived_id(derived, "next")[:13] == source[:13]
    assert UUID(derived).version == 8


@pytest.mark.parametrize(
    "source",
    [
        "a",
        "x" * 512,
        "019b88f5-3a00-4abc-8123-456789abcdef",
        "zzzzzzzz-zzzz-7zzz-zzzz-zzzzzzzzzzzz",
        "-19b88f5-3a00-7abc-8123-456789abcdef",
        "ünïcöde-3a00-7abc-8123-456789abcdef!",
    ],
)
def test_a_source_with_an_id_of_its_own_making_has_derived_ids_too(source: str) -> None:
    """Any id may be derived from, and what comes out is always a UUID."""
    assert UUID(derived_id(source, "a")).version == 8


@pytest.mark.slices
@pytest.mark.parametrize(
    ("entity", "slice_number"),
    [
        ("a", 559),
        ("github.com/teranos/QNTX", 757),
        ("⌬", 709),
        ("e\u0301", 109),
        ("\u00e9", 303),
        ("x" * 512, 751),
    ],
)
def test_an_entity_keeps_its_slice_for_ever(entity: str, slice_number: int) -> None:
    """Slices are stored: an entity that moved to another would be projected by nobody."""
    assert slice_of(entity) == slice_number


# Names.


PARTS = ("id", "context", "entity", "actor", "caused_by")
NO_NAMES = [
    "",
    "x" * (NAME_CHARACTERS_MAX + 1),
    "é" * (NAME_CHARACTERS_MAX + 1),
    "€" * (NAME_BYTES_MAX // 3 + 1),
    "a\x00b",
    "a\nb",
    "\x7f",
    "\x85",
    "\ud800",
    7,
    b"bytes",
]


@pytest.mark.parametrize(
    ("part", "name"),
    [
        *((part, name) for part in PARTS for name in NO_NAMES),
        *((part, None) for part in ("context", "entity", "actor")),  # of the others: none given
    ],
    ids=repr,
)
def test_a_name_that_cannot_be_kept_is_refused(part: str, name: object) -> None:
    """Empty, too long, controlling or no text at all: refused by name for each part."""
    with pytest.raises(InvalidId):
        said(**{part: name})


@pytest.mark.parametrize(
    "name",
    [
        "x" * NAME_CHARACTERS_MAX,
        "é" * NAME_CHARACTERS_MAX,
        "😀" * (NAME_BYTES_MAX // 4),
        " ",
        "e\u0301",
        "\u202eright to left",
        "'; drop table x; --",
        "__proto__",
    ],
)
def test_a_name_at_the_edge_is_kept_as_it_is(name: str) -> None:
    """Long, odd and hostile names are plain text."""
    one = said(entity=name, actor=name, context=name, id=name)

    assert (one.entity, one.actor, one.context, one.id) == (name,) * 4


@pytest.mark.parametrize("correlation", ["", "a\nb"])
def test_a_correlation_that_cannot_be_kept_is_refused(correlation: str) -> None:
    """A correlation is an id like any other."""
    with pytest.raises(InvalidId):
        said(correlation_id=correlation)


@pytest.mark.parametrize("version", [-1, 1 << 31, 1 << 63, "1", 1.0, True, None], ids=repr)
@pytest.mark.parametrize("part", ["schema_version", "depth"])
def test_a_number_that_no_database_keeps_is_refused(part: str, version: object) -> None:
    """Version and depth are small whole numbers, and what one database refuses both refuse."""
    with pytest.raises(QntxError):
        said(**{part: version})


# The canonical text.


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "{}"),
        ({"b": 1, "a": 2}, '{"a":2,"b":1}'),
        ({"a": [True, False, None]}, '{"a":[true,false,null]}'),
        ({"a": 0.0, "b": -0.0}, '{"a":0.0,"b":-0.0}'),
        ({"a": 1, "b": 1.0}, '{"a":1,"b":1.0}'),
        ({"a": 2**80}, '{"a":1208925819614629174706176}'),
        ({"a": 2**53 + 1}, '{"a":9007199254740993}'),
        ({"a": -(2**63)}, '{"a":-9223372036854775808}'),
        ({"a": 0.1}, '{"a":0.1}'),
        ({"a": 1e16}, '{"a":1e+16}'),
        ({"a": 5e-324}, '{"a":5e-324}'),
        ({"a": 1.7976931348623157e308}, '{"a":1.7976931348623157e+308}'),
        ({"a": "é"}, '{"a":"é"}'),
        ({"a": "e\u0301"}, '{"a":"e\u0301"}'),
        ({"a": "😀"}, '{"a":"😀"}'),
        ({"a": "\u2028\u202e\ufeff"}, '{"a":"\u2028\u202e\ufeff"}'),
        ({"a": '"\\/\b\f\n\r\t\x01\x7f'}, '{"a":"\\"\\\\/\\b\\f\\n\\r\\t\\u0001\x7f"}'),
        ({"😀": 1, "\uffff": 2, "a": 3, "A": 4, "": 5}, '{"":5,"A":4,"a":3,"\uffff":2,"😀":1}'),
        ({"a": ("x", ["y"])}, '{"a":["x",["y"]]}'),
        ({"__proto__": {"constructor": "'; drop table x"}},
         '{"__proto__":{"constructor":"\'; drop table x"}}'),
    ],
)  # fmt: skip
def test_a_payload_has_one_text_for_ever(value: dict[str, Any], text: str) -> None:
    """Golden: what was written once is written so for ever, and reads back as it was."""
    assert canonical(value) == text
    assert canonical(json.loads(text)) == text
    assert said(value).text == text


@pytest.mark.parametrize(
    ("value", "error", "where"),
    [
        ({"a": [0, 1, 2, float("nan")]}, NotFinite, "$.a[3]"),
        ({"a": {"b": float("inf")}}, NotFinite, "$.a.b"),
        ({"a": float("-inf")}, NotFinite, "$.a"),
        ({"a": "x\x00y"}, InvalidText, "$.a"),
        ({"x\x00y": 1}, InvalidText, "$"),
        ({"a": "\ud800"}, InvalidText, "$.a"),
        ({"\udfff": 1}, InvalidText, "$"),
        ({"a": "\ud83d" + "\ude00"}, InvalidText, "$.a"),
        ({"a": {1: "x"}}, InvalidPayload, "$.a"),
        ({None: 1}, InvalidPayload, "$"),
        ({("a",): 1}, InvalidPayload, "$"),
        ({"a": b"bytes"}, InvalidPayload, "$.a"),
        ({"a": {1, 2}}, InvalidPayload, "$.a"),
        ({"a": JAN}, InvalidPayload, "$.a"),
        ({"a": 1j}, InvalidPayload, "$.a"),
        ({"a": object()}, InvalidPayload, "$.a"),
        ({"a": 10**5000}, InvalidPayload, "number"),
        ([], InvalidPayload, "list"),
        ("{}", InvalidPayload, "str"),
        (b"{}", InvalidPayload, "bytes"),
        (7, InvalidPayload, "int"),
    ],
)
def test_what_a_database_would_change_is_refused_with_its_place(
    value: Any,  # noqa: ANN401 - the wrong thing
    error: type[QntxError],
    where: str,
) -> None:
    """Each refusal has a name and says where."""
    with pytest.raises(error) as raised:
        said(value)

    assert where in str(raised.value)


def test_depth_is_counted_in_levels() -> None:
    """64 levels are kept, 65 refused, lists and objects alike, and a circle is too deep."""
    assert said(nested(PAYLOAD_DEPTH_MAX)).payload == nested(PAYLOAD_DEPTH_MAX)
    lists: Any = []
    for _ in range(PAYLOAD_DEPTH_MAX - 2):
        lists = [lists]
    assert said({"a": lists}).payload == {"a": lists}

    circle: list[Any] = []
    circle.append(circle)
    for value in (nested(PAYLOAD_DEPTH_MAX + 1), {"a": [lists]}, {"a": circle}):
        with pytest.raises(TooDeep):
            said(value)


@pytest.mark.parametrize("letter", ["x", "é", "😀"])
def test_size_is_counted_in_bytes(letter: str) -> None:
    """1 MiB of canonical UTF-8 is kept, one byte more refused."""
    room = PAYLOAD_BYTES_MAX - len('{"a":""}')
    fitting = letter * (room // len(letter.encode()))
    rest = "y" * (room - len(fitting.encode()))

    assert len(said({"a": fitting + rest}).text.encode()) == PAYLOAD_BYTES_MAX
    with pytest.raises(TooLarge):
        said({"a": fitting + rest + "y"})


@pytest.mark.parametrize(
    ("text", "error", "where"),
    [
        ('{"a": 1, "a": 1}', DuplicateKey, "'a'"),
        ('{"b": [{"a": 1, "a": 2}]}', DuplicateKey, "'a'"),
        ('{"a": 1, "\\u0061": 2}', DuplicateKey, "'a'"),
        ('{"a": NaN}', NotFinite, "NaN"),
        ('{"a": -Infinity}', NotFinite, "-Infinity"),
        ("[]", InvalidPayload, "[]"),
        ("null", InvalidPayload, "null"),
        ("", InvalidPayload, "line 1 column 1"),
        ("{'a': 1}", InvalidPayload, "line 1 column 2"),
        ('{"a": 1} x', InvalidPayload, "column 10"),
        ("\ufeff{}", InvalidPayload, "BOM"),
        (b'{"a": "\xff"}', InvalidText, "byte 7"),
        ('{"a":' + "[" * 100_000, TooDeep, "64"),
        ('{"a": 1' + "0" * 5_000 + "}", InvalidPayload, "number"),
        ('{"a": -1' + "0" * 5_000 + "}", InvalidPayload, "number"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_text_that_people_wrote_is_refused_by_name(
    text: str | bytes, error: type[QntxError], where: str
) -> None:
    """What a lenient parser would change in silence, or die of, is refused with its place."""
    with pytest.raises(error) as raised:
        parse_payload(text)

    assert where in str(raised.value)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1E+999"])
def test_a_number_beyond_all_floats_is_refused_with_its_path(number: str) -> None:
    """`1e400` reads as an infinity, which is refused at its place."""
    with pytest.raises(NotFinite, match=r"\$\.a"):
        said(parse_payload('{"a": ' + number + "}"))


def test_text_that_people_wrote_is_read_exactly() -> None:
    """Big numbers, both zeros and any Unicode come through."""
    text = '{"a": -0.0, "b": 1208925819614629174706176, "c": "\\ud83d\\ude00", "d": 1E2}'

    assert said(parse_payload(text)).text == (
        '{"a":-0.0,"b":1208925819614629174706176,"c":"😀","d":100.0}'
    )


# Payload classes.


class Inner(BaseModel):
    """A model that is no payload, whose own setting would write NaN as null."""

    number: float


class Outer(Payload, context="outer"):
    """A payload that holds another model."""

    inner: Inner


class Raw(Payload, context="raw"):
    """A payload of bytes."""

    raw: bytes


def test_a_payload_object_has_the_text_of_its_fields() -> None:
    """A payload object and its fields are the same statement."""
    one = said(Outer(inner=Inner(number=1.5)))

    assert one.text == '{"inner":{"number":1.5}}'
    assert one.payload_class is Outer
    assert said({"inner": {"number": 1.5}}, id=one.id, context=Outer.context) == one


def circle() -> list[Any]:
    """Return a list that holds itself."""
    made: list[Any] = []
    made.append(made)
    return made


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (Outer(inner=Inner(number=float("nan"))), NotFinite),
        (Anything(value=Inner(number=float("inf"))), NotFinite),
        (Anything(value=float("nan")), NotFinite),
        (Anything(value="\ud800"), InvalidText),
        (Anything(value="\x00"), InvalidText),
        (Anything(value=object()), InvalidPayload),
        (Anything(value={1: "a", "1": "b"}), InvalidPayload),
        (Anything(value=nested(65)), TooDeep),
        (Anything(value=nested(300)), InvalidPayload),
        (Anything(value=circle()), InvalidPayload),
        (Raw(raw=b"\xff"), InvalidPayload),
    ],
    ids=[
        "inner NaN", "inner infinity", "NaN", "surrogate", "NUL", "object", "keys that meet",
        "65 levels", "300 levels", "circle", "bytes",
    ],
)  # fmt: skip
def test_what_a_payload_object_hides_is_refused_by_name(
    payload: Payload, error: type[QntxError]
) -> None:
    """Whatever a payload class lets through, the log's own rules still hold, by name."""
    with pytest.raises(error):
        said(payload)


def test_a_payload_says_its_context_and_version() -> None:
    """The class is bound to its context, and a class without one has none."""

    class Versioned(Payload, context="versioned", schema_version=3):
        """A payload of the third version."""

    assert (Versioned.context, Versioned.schema_version) == ("versioned", 3)
    assert Payload.context == ""
    with pytest.raises(InvalidId):
        type("Bad", (Payload,), {"__module__": __name__}, context="a\nb")


def test_an_attestation_cannot_say_a_payload_in_anothers_context() -> None:
    """A payload object belongs in the context of its class."""
    with pytest.raises(QntxError):
        Attestation(context="seen", entity="e", actor="ann", payload=Anything(value=1))


# The value.


def test_an_attestation_cannot_be_changed() -> None:
    """Setting a part is refused, and what was decoded is a copy."""
    one = said({"a": [1]})
    with pytest.raises(AttributeError):
        one.entity = "other"

    one.payload["a"].append(2)

    assert one.payload == {"a": [1]}
    assert one.text == '{"a":[1]}'


def test_later_changes_of_the_mapping_change_nothing() -> None:
    """An attestation keeps what was said when it was said."""
    given = {"a": [1]}
    one = said(given)

    given["a"].append(2)

    assert one.payload == {"a": [1]}


def test_two_are_the_same_when_id_and_bytes_agree() -> None:
    """Key order does not count, type of number does, and causes do not."""
    one = said({"a": 1, "b": 2}, id="x")

    assert one == said({"b": 2, "a": 1}, id="x")
    assert one == said({"a": 1, "b": 2}, id="x", caused_by="y")
    assert one != said({"a": 1.0, "b": 2}, id="x")
    assert one != said({"a": 1, "b": 2}, id="y")
    assert one != "x"
    assert len({one, said({"b": 2, "a": 1}, id="x")}) == 1


def test_an_attestation_can_be_copied_and_sent_to_another_process() -> None:
    """A value survives `copy` and `pickle`."""
    one = said({"a": 1})

    assert copy.deepcopy(one) == one
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301 - our own


def test_errors_can_be_sent_from_another_process() -> None:
    """An error raised in a worker process reaches its caller as itself."""
    with pytest.raises(NotFinite) as raised:
        said({"a": float("nan")})

    sent = pickle.loads(pickle.dumps(raised.value))  # noqa: S301 - our own

    assert (type(sent), str(sent)) == (NotFinite, str(raised.value))


def test_a_recorded_payload_that_does_not_fit_names_its_place() -> None:
    """What was stored and does not fit the reader's class is refused with its position."""

    class Strict(Payload, context="seen"):
        """A payload of one number."""

        n: int

    row = (7, "id", "seen", "ann", "e", '{"n":"x"}', 1, 0, None, None, 0, None, None)
    recorded = Recorded(row, Strict.model_validate_json)

    with pytest.raises(InvalidPayload, match="position 7"):
        _ = recorded.payload


def test_instants_are_exact() -> None:
    """Microseconds come and go without rounding over the whole calendar."""
    for at in (
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        JAN,
    ):
        assert instant(microseconds(at)) == at
    with pytest.raises(InvalidTime):
        microseconds(datetime(2026, 1, 1))  # noqa: DTZ001 - that is what is refused


def test_a_json_value_that_is_no_object_has_a_text_too() -> None:
    """Documents in rows may be any JSON value."""
    assert canonical_json([1, "a", None]) == '[1,"a",null]'
    assert canonical_json("é") == '"é"'
    assert canonical_json(None) == "null"
