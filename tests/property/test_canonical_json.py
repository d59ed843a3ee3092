"""The canonical text: one value, one text, the same on both databases and for ever."""

import json
import math
import struct
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine

from qntx_es import Attestation, QntxError
from qntx_es.attestation import canonical, parse_payload
from qntx_es.database import Database
from qntx_es.log import Log
from qntx_es.sequencer import Sequencer

TEXTS = st.text() | st.text(alphabet="\x00\ud800\udc00é\u0301e😀\u202e\ufeff\"\\'%:?")
NUMBERS = (
    st.integers()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | st.sampled_from([0.0, -0.0, 2**53 + 1, 5e-324, 1e16, 1e15, 1e-7])
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
PAYLOADS = st.dictionaries(TEXTS, VALUES, max_size=5)
FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def same(one: Any, other: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Compare types, signs of zero and order-free objects, which `==` does not."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


def is_sayable(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Say from nothing but the rules whether a value may be kept."""
    if isinstance(value, dict):
        return all(is_sayable(key) and is_sayable(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_sayable, value))
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return "\x00" not in value and not any("\ud800" <= one <= "\udfff" for one in value)
    return True


@given(PAYLOADS)
@example({"a": [-0.0, 0.0, 2**80, 2**53 + 1], "é": "e\u0301", "😀": "\uffff"})
@example({"a": "\x00"})
@example({"\ud800": 1})
@example({"a": [[float("nan")]]})
def test_decoding_what_was_encoded_gives_the_same_value(payload: dict[str, Any]) -> None:
    """What may be kept comes back as it was, to the sign of a zero; all else is refused by name."""
    try:
        written = canonical(payload)
    except QntxError:
        assert not is_sayable(payload)
        return

    assert is_sayable(payload)
    read = json.loads(written)
    assert same(read, payload)
    assert canonical(read) == written
    assert same(parse_payload(written), payload)
    assert same(parse_payload(written.encode()), payload)


@given(PAYLOADS.filter(is_sayable), st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_show(payload: dict[str, Any], random: Any) -> None:  # noqa: ANN401
    """However the keys were put in, the text is one, and they stand sorted by code point."""
    keys = list(payload)
    random.shuffle(keys)

    written = canonical({key: payload[key] for key in keys})

    assert written == canonical(payload)
    assert list(json.loads(written)) == sorted(payload)
    assert written == json.dumps(
        json.loads(written), ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )


@given(st.text() | st.binary() | st.from_regex(r'\{("[ab]": ?[0-9.eE+-]{1,9},? ?)*\}'))
@example('{"a": 1' + "0" * 5_000 + "}")
@example('{"a":' * 5_000)
@example('{"a": 1e999}')
def test_any_text_is_read_or_refused_by_name(text: str | bytes) -> None:
    """No text that people write ends in an exception of anybody else's."""
    try:
        payload = parse_payload(text)
        canonical(payload)
    except QntxError:
        return
    assert isinstance(payload, dict)


@pytest.fixture
def logs(sqlite_url: str, postgres_url: str) -> Iterator[list[Log]]:
    """Open an empty log on each database, side by side."""
    databases = [Database(sqlite_url), Database(postgres_url)]
    for database in databases:
        database.upgrade()
    yield [Log(database, Sequencer(database)) for database in databases]
    for database in databases:
        database.close()


NAMES = st.text(min_size=1, max_size=20) | st.sampled_from(["é" * 512, "x" * 513, "", "a\nb", "%s"])


@settings(max_examples=25, suppress_health_check=FIXTURES)
@given(payload=PAYLOADS, entity=NAMES, actor=NAMES, version=st.integers() | st.integers(0, 9))
def test_both_logs_hold_the_same_bytes(
    logs: list[Log], payload: dict[str, Any], entity: str, actor: str, version: int
) -> None:
    """SQLite and PostgreSQL give back the same bytes, and what one refuses both refuse by name."""
    outcomes = []
    for log in logs:
        try:
            one = Attestation(
                context="seen",
                entity=entity,
                actor=actor,
                payload=payload,
                schema_version=version,
                id=f"id-{log.head()}",
            )
            receipt = log.append(one)
        except QntxError as error:
            outcomes.append((type(error).__name__, log.head()))
            continue
        (read,) = log.read(after=receipt.position - 1)
        assert (read.text, read.entity, read.actor) == (one.text, entity, actor)
        assert same(read.payload, payload)
        row = read.row
        outcomes.append((*row[:7], *row[8:]))  # type: ignore[arg-type]

    assert outcomes[0] == outcomes[1]


@pytest.fixture
def callers(sqlite_url: str, postgres_url: str) -> Iterator[list[Engine]]:
    """Open a caller's own engine on each database."""
    engines = [create_engine(sqlite_url), create_engine(postgres_url)]
    yield engines
    for engine in engines:
        engine.dispose()


CHARACTERS = (
    "\x01\x1f\x7f\x85\xa0\u2028é\u0301\u200d\u202e\ufeff\ufffd\uffff😀\U0010ffff\"\\\\/%:?$'{}"
)
WORDS = (
    "",
    "%s",
    ":n",
    "$1",
    "?",
    "\\u0000",
    "\\x00",
    "'; drop table qntx_attestations; --",
    "null",
)
BATCH = 500


def any_text(random: Random) -> str:
    """Return a text of characters that somebody got wrong once, or of any at all."""
    if random.random() < 0.2:
        return random.choice(WORDS)
    anything = chr(random.choice((random.randint(1, 0xD7FF), random.randint(0xE000, 0x10FFFF))))
    return "".join(random.choices(CHARACTERS + anything, k=random.randint(0, 8)))


def any_number(random: Random) -> float:
    """Return an integer of any size, or any float that is finite."""
    if random.random() < 0.5:
        return random.randint(-1, 1) * random.getrandbits(random.choice((3, 53, 54, 64, 200)))
    (number,) = struct.unpack("d", random.randbytes(8))
    return float(number) if math.isfinite(number) else -0.0


def any_value(random: Random, depth: int) -> Any:  # noqa: ANN401 - any JSON value
    """Return a JSON value of at most so many levels."""
    kind = random.randrange(7 if depth else 5)
    if kind < 2:
        return any_text(random)
    if kind < 4:
        return any_number(random)
    if kind == 4:
        return random.choice((None, True, False))
    size = random.randint(0, 3)
    if kind == 5:
        return [any_value(random, depth - 1) for _ in range(size)]
    return {any_text(random): any_value(random, depth - 1) for _ in range(size)}


@settings(max_examples=20, suppress_health_check=FIXTURES)
@given(seed=st.integers(0, 2**64))
def test_ten_thousand_payloads_come_back_as_the_same_bytes(
    logs: list[Log], callers: list[Engine], seed: int
) -> None:
    """Whatever may be kept, both databases give back to the byte, by every way in."""
    random = Random(seed)  # noqa: S311 - a draw for each character would take minutes
    payloads = [
        {any_text(random): any_value(random, 4) for _ in range(random.randint(0, 4))}
        for _ in range(BATCH)
    ]
    start = logs[0].head()
    many = [
        Attestation(
            context="seen",
            entity=f"e\u0301😀\u202e{n}",
            actor="ann",
            payload=payload,
            tags=(f"t{n}",),
            id=f"{start}-{n}",
        )
        for n, payload in enumerate(payloads)
    ]

    read = []
    for log, engine in zip(logs, callers, strict=True):
        log.append(many[: BATCH // 2])
        with engine.begin() as caller:
            receipts = log.append(many[BATCH // 2 :], session=caller)
        assert receipts[-1].position == start + BATCH
        read.append(list(log.read(after=start)))

    for one, *found in zip(many, *read, strict=True):
        for other in found:
            assert (other.id, other.text, other.entity) == (one.id, one.text, one.entity)
    for payload, one in zip(payloads, many, strict=True):
        assert same(json.loads(one.text), payload)
    without_times = [[(*one.row[:7], *one.row[8:]) for one in log] for log in read]
    assert without_times[0] == without_times[1]
