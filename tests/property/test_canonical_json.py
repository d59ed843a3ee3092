"""The canonical text: one value, one text, the same on both databases and for ever."""

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

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
