"""P26: an import of an export is the same log, and whatever else a file may be is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from qntx_es import Attestation, Host, ImportRefused
from qntx_es.testing import PostgresServer

FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
IN_MEMORY = "sqlite://"
CHARACTERS = st.characters(exclude_categories=["Cc", "Cs"])
NAMES = st.text(CHARACTERS, min_size=1, max_size=12)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
NUMBERS = (
    st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([-0.0, 5e-324, 1e16, 1e23, 2**53 + 1])
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
SAID = st.fixed_dictionaries(
    {
        "context": NAMES,
        "entity": NAMES,
        "actor": NAMES,
        "payload": st.dictionaries(TEXTS, VALUES, max_size=3),
        "schema_version": st.integers(1, 2**31 - 1),
        "caused_by": st.none() | NAMES,
        "correlation_id": st.none() | NAMES,
        "depth": st.integers(0, 64),
        "tags": st.lists(NAMES, max_size=4),
    }
)
# What is said, and which of it as an append that numbers the attestations of its entity.
LOGS = st.lists(st.tuples(SAID, st.booleans()), max_size=6)


@contextmanager
def host_on(url: str) -> Iterator[Host]:
    """Open a host on an upgraded database."""
    with Host(url) as host:
        host.upgrade()
        yield host


def fill(host: Host, log: list[tuple[dict[str, Any], bool]]) -> None:
    """Append, one at a time, so that each has an instant of its own."""
    versions: dict[str, int] = {}
    for parts, is_numbered in log:
        said = Attestation(**parts)
        version = versions.get(said.entity, 0)
        host.log.append(said, expected_version=version if is_numbered else None)
        versions[said.entity] = version + is_numbered


def exported(host: Host) -> bytes:
    """Return what an export writes."""
    stream = BytesIO()
    host.export_log(stream)
    return stream.getvalue()


@settings(max_examples=10, suppress_health_check=FIXTURES)
@given(log=LOGS)
def test_import_of_an_export_is_the_same_log(
    postgres_server: PostgresServer, log: list[tuple[dict[str, Any], bool]]
) -> None:
    """From SQLite to PostgreSQL and back: same rows, same digest, same file."""
    url = postgres_server.create_database()
    with host_on(IN_MEMORY) as first, host_on(IN_MEMORY) as third:
        fill(first, log)
        file = exported(first)
        with host_on(url) as second:
            imported = [host.import_log(BytesIO(file)).digest for host in (second, third)]
            copies = [exported(second), exported(third)]
            rows = [[one.row for one in host.log.read()] for host in (first, second, third)]
        postgres_server.drop_database(url)

        assert copies == [file, file]
        assert imported == [first.log.digest(), third.log.digest()]
        assert rows[0] == rows[1] == rows[2]
        assert len(rows[0]) == len(log)


@pytest.fixture(scope="module")
def empty() -> Iterator[Host]:
    """Open a log that stays empty, whatever is tried on it."""
    with host_on(IN_MEMORY) as host:
        yield host


@pytest.fixture(scope="module")
def file() -> bytes:
    """Export a log with something of everything."""
    with host_on(IN_MEMORY) as host:
        said = {"context": "seen", "actor": "ünï 😀", "payload": {"é": [0.1, 2**80, "\\\n"]}}
        log: list[Any] = [
            ({**said, "entity": f"e{n % 2}", "tags": ["t"] * n}, n < 3) for n in range(6)
        ]
        fill(host, log)
        return exported(host)


def refused_at(host: Host, file: bytes) -> int | None:
    """Return the line by which a file is refused, having seen that nothing came of it."""
    with pytest.raises(ImportRefused) as raised:
        host.import_log(BytesIO(file))
    assert host.log.head() == 0
    return raised.value.line


def line_at(file: bytes, offset: int) -> int:
    """Return the line that a byte belongs to."""
    return file.count(b"\n", 0, offset) + 1


@settings(max_examples=150, suppress_health_check=FIXTURES)
@given(data=st.data())
def test_one_other_byte_is_refused_by_its_line(empty: Host, file: bytes, data: Any) -> None:  # noqa: ANN401
    """A byte that is changed, removed, doubled or put in is found in the line it stands in."""
    offset = data.draw(st.integers(0, len(file) - 1))
    how = data.draw(st.sampled_from(["change", "remove", "put in"]))
    byte = data.draw(st.binary(min_size=1, max_size=1) | st.sampled_from([b"\n", b" ", b'"', b"0"]))
    put = b"" if how == "remove" else byte
    rest = file[offset:] if how == "put in" else file[offset + 1 :]
    other = file[:offset] + put + rest
    assume(other != file)

    assert refused_at(empty, other) == line_at(file, first_difference(file, other))


def first_difference(file: bytes, other: bytes) -> int:
    """Return where two files part."""
    pairs = zip(file, other, strict=False)
    return next((n for n, (one, two) in enumerate(pairs) if one != two), min(len(file), len(other)))


@settings(max_examples=100, suppress_health_check=FIXTURES)
@given(data=st.data())
def test_a_line_out_of_place_is_refused_by_it(empty: Host, file: bytes, data: Any) -> None:  # noqa: ANN401
    """Lines that are removed, doubled or swapped are missed or found where they stand."""
    lines = file.splitlines(keepends=True)
    which = data.draw(st.integers(0, len(lines) - 1))
    how = data.draw(st.sampled_from(["remove", "double", "swap"]))
    if how == "remove":
        line, other = which + 1, lines[:which] + lines[which + 1 :]
    elif how == "double":
        line, other = which + 2, lines[: which + 1] + lines[which:]
    else:
        with_which = data.draw(st.integers(0, len(lines) - 1).filter(lambda n: n != which))
        line, other = min(which, with_which) + 1, list(lines)
        other[which], other[with_which] = lines[with_which], lines[which]

    assert refused_at(empty, b"".join(other)) == line


@settings(max_examples=60, suppress_health_check=FIXTURES)
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0)
def test_a_file_that_is_cut_is_refused_where_it_ends(
    empty: Host, file: bytes, share: float
) -> None:
    """Cut anywhere, between lines or in one, a file is truncated at the line that is not there."""
    cut = file[: int(share * len(file))]

    assert refused_at(empty, cut) == line_at(file, len(cut))
