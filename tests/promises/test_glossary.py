"""One word for each thing: the glossary's words are ours, the rejected ones are nobody's."""

import re
from pathlib import Path

import qntx_es
from qntx_es.tables import metadata

ROOT = Path(__file__).parents[2]
ROWS = re.findall(
    r"^\| ([^|]+) \| ([^|]+) \|([^|]*)\|$", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE
)
REJECTED = {
    word.strip()
    for _, _, rejected in ROWS[1:]
    for word in rejected.split(",")
    if re.fullmatch(r"[a-z]+", word.strip())
}
WORDS = {word.strip() for said, _, _ in ROWS for word in said.split(",")}


def words_of(name: str) -> set[str]:
    """Return the words an identifier is made of, in lower case."""
    return {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def test_no_public_name_uses_a_rejected_word() -> None:
    """No exported name and no table is made of a word that the glossary rejects."""
    names = [*qntx_es.__all__, *metadata.tables]

    assert {"event", "offset", "checkpoint"} <= REJECTED
    assert [name for name in names if words_of(name) & (REJECTED - WORDS)] == []


def test_every_rejected_word_has_a_better_one() -> None:
    """A word is never both ours and rejected, but for those that name two things."""
    assert {"queue", "retry"} >= REJECTED & WORDS


def test_decisions_are_short() -> None:
    """A decision record is at most forty lines, and says when to look again or what was gained."""
    records = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))

    assert records
    assert [one.name for one in records if len(one.read_text().splitlines()) > 40] == []
