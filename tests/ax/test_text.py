"""The text of a query: what it means, how it may be written, and how a mistake is shown."""

from datetime import UTC, datetime, timedelta

import pytest

from qntx_es import Attestation, Ax, AxError, AxSyntaxError, AxTooComplex, Glob, Host
from qntx_es.ax import All, Compare, Contains, Exists, Not, OneOf, Some, parse

NOON = datetime(2026, 1, 4, 12, tzinfo=UTC)
DAY = datetime(2026, 1, 4, tzinfo=UTC)
END = DAY + timedelta(days=1) - timedelta(microseconds=1)
LANGUAGE = Compare(("language",), "=", "Go")
COMPLEX = Compare(("complexity",), ">", 3)


@pytest.mark.parametrize(
    ("text", "ax"),
    [
        ("", Ax()),
        ("github.com/teranos/QNTX", Ax(entities="github.com/teranos/QNTX")),
        ("a, b is c, d by e, f", Ax(entities=("a", "b"), contexts=("c", "d"), actors=("e", "f"))),
        ("a are b via c", Ax(entities="a", contexts="b", actors="c")),
        ("a = b ⌬ c", Ax(entities="a", contexts="b", actors="c")),
        ("IS b LIMIT 3", Ax(contexts="b", limit=3)),
        (
            "github.com/* is repository_*",
            Ax(entities=Glob("github.com/*"), contexts=Glob("repository_*")),
        ),
        ('"a*" is "is"', Ax(entities="a*", contexts="is")),
        ("island", Ax(entities="island")),
        ("since 2026-01-04", Ax(since=DAY)),
        ("until 2026-01-04", Ax(until=END)),
        ("on 2026-01-04", Ax(since=DAY, until=END)),
        ("between 2026-01-04 and 2026-01-04T12:00:00Z", Ax(since=DAY, until=NOON)),
        ("since 2026-01-04T13:00+01:00 until now", Ax(since=NOON, until=NOON)),
        (
            "since 3 days ago until yesterday",
            Ax(since=NOON - timedelta(days=3), until=DAY - timedelta(microseconds=1)),
        ),
        ("on today", Ax(since=DAY, until=END)),
        ('where language = "Go"', Ax(where=LANGUAGE)),
        ('where complexity > 3 and language = "Go"', Ax(where=All((COMPLEX, LANGUAGE)))),
        (
            'where complexity > 3 or language = "Go" and not a.b exists',
            Ax(where=Some((COMPLEX, All((LANGUAGE, Not(Exists(("a", "b")))))))),
        ),
        (
            'where (complexity > 3 or language = "Go") and a exists',
            Ax(where=All((Some((COMPLEX, LANGUAGE)), Exists(("a",))))),
        ),
        (
            'where a in (1, -2.5, "x", true, null)',
            Ax(where=OneOf(("a",), (1, -2.5, "x", True, None))),
        ),
        ('where "a.b".c contains "x"', Ax(where=Contains(("a.b", "c"), "x"))),
        ('where a."b c".d != null', Ax(where=Compare(("a", "b c", "d"), "!=", None))),
    ],
)
def test_a_text_means_a_query(text: str, ax: Ax) -> None:
    """Each way of writing means one query, and that query as text means itself."""
    assert parse(text, as_of=NOON) == ax
    assert parse(str(ax)) == ax


@pytest.mark.parametrize(
    ("text", "column", "cure"),
    [
        ("a iz b", 3, "did you mean `is`"),
        ("a is b bby c", 8, "did you mean `by`"),
        ("a is b sinse 2026-01-04", 8, "did you mean `since`"),
        ("a is b since 2026-13-04", 14, "2026-01-04"),
        ("a is b wher c = 1", 8, "did you mean `where`"),
        ("a is b where c = Go", 18, '"Go"'),
        ('a is b where c = "Go', 18, "closing quote"),
        ("a is b where c > null", 14, "compare it by = or !="),
        ("a is b where c contians 3", 16, "did you mean `contains`"),
        ("a is b limt 10", 8, "did you mean `limit`"),
        ("a is b limit ten", 14, "a whole number"),
        ("a is", 5, "ends too early"),
        ("a is b where c. = 1", 14, "dot"),
    ],
)
def test_a_mistake_is_shown_where_it_is_with_its_cure(text: str, column: int, cure: str) -> None:
    """The error names the column, points at it below the text, and says what to write."""
    with pytest.raises(AxSyntaxError) as refused:
        parse(text, as_of=NOON)

    said, shown, caret = str(refused.value).split("\n")
    assert refused.value.column == column
    assert said.startswith(f"column {column}: ")
    assert cure in said
    assert shown.strip() == text
    assert caret.index("^") == shown.index(text) + column - 1


@pytest.mark.parametrize(
    "text",
    [
        "a" * 4_097,
        "limit 10001",
        "limit 99999999999999999999",
        "where " + "(" * 300 + "a exists" + ")" * 300 + " and " + "not " * 30 + "a exists",
        "where a in (" + ", ".join("1" for _ in range(201)) + ")",
    ],
)
def test_a_query_has_limits(text: str) -> None:
    """Too long, too deep, too many: each is refused by name before any database is asked."""
    with pytest.raises(AxTooComplex):
        parse(text)


def test_the_limits_themselves_are_within() -> None:
    """What is as large as it may be is a query."""
    assert parse("limit 10000").limit == 10_000
    assert parse("a" * 512).entities == ("a" * 512,)
    assert parse("where a in (" + ", ".join("1" for _ in range(199)) + ")").where is not None
    with pytest.raises(AxError):
        parse("a" * 513)


# The queries of the decision record that all this came from.

SAID = [
    (
        "ixgest-git@user",
        "repository_ingested",
        "github.com/teranos/QNTX",
        {"commit_count": 150, "language": "Go"},
    ),
    (
        "code-analyzer@system",
        "file_analyzed",
        "domains/code/plugin.go",
        {"complexity": 12, "coverage": 85.3, "last_modified": "2026-01-04"},
    ),
    ("code@plugin", "repository_ready", "github.com/teranos/QNTX", {"trigger": "finance_analysis"}),
    (
        "ixgest-git@user",
        "repository_cloned",
        "github.com/teranos/QNTX",
        {"path": "/srv/qntx", "branch": "main"},
    ),
    (
        "code-analyzer@system",
        "repository_analyzed",
        "github.com/teranos/QNTX",
        {"files": 250, "loc": 45000, "complexity": 3.2},
    ),
]


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ("is repository_ingested", [1]),
        ("github.com/teranos/QNTX is repository_analyzed by code-analyzer@system", [5]),
        ("domains/code/plugin.go is file_analyzed limit 1", [2]),
        ("github.com/*", [1, 3, 4, 5]),
        ("by code-analyzer@system where complexity > 3", [2, 5]),
        ("where coverage = 85.3", [2]),
        ('where trigger = "finance_analysis"', [3]),
        ('is repository_* where language = "Go" or branch exists', [1, 4]),
        ("where complexity >= 3.2 and complexity < 12", [5]),
    ],
)
def test_the_log_is_asked_in_words(url: str, text: str, positions: list[int]) -> None:
    """A query as text finds the same on both databases."""
    with Host(url) as host:
        host.upgrade()
        host.append(
            [
                Attestation(actor=actor, context=context, entity=entity, payload=payload)  # type: ignore[arg-type]
                for actor, context, entity, payload in SAID
            ]
        )
        assert [one.position for one in host.ax(text)] == positions


def test_what_is_injected_stays_a_text(url: str) -> None:
    """A name or value full of SQL finds what is called so, and does nothing else."""
    hostile = "'; DROP TABLE qntx_attestations; --"
    with Host(url) as host:
        host.upgrade()
        host.append(
            Attestation(actor=hostile, context="seen", entity=hostile, payload={hostile: hostile})
        )
        where = Compare((hostile,), "=", hostile)
        asked = Ax(entities=hostile, actors=hostile, where=where)

        assert [one.position for one in host.ax(str(asked))] == [1]
        assert host.ax(Ax(where=Compare((hostile,), "=", "x' OR '1'='1"))) == []
        assert host.log.head() == 1
