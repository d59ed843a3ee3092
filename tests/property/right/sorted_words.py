"""A set is sorted before it is written, and a text is hashed by hashlib."""

from hashlib import sha256

from sqlalchemy import Column, Integer, String

from qntx_es import Domain, Payload, Recorded, Rows

domain = Domain("notes")
notes = domain.table(
    "notes",
    Column("entity", String, primary_key=True),
    Column("words", String),
    Column("shelf", Integer),
)


class Noted(Payload, context="noted"):
    """Something was noted."""

    words: list[str]


@domain.project(Noted)
def keep(noted: Recorded[Noted], rows: Rows) -> None:
    """Keep each word once, in order."""
    words = " ".join(sorted({*noted.payload.words, "the", "of"}))
    shelf = sha256(noted.entity.encode()).digest()[0] % 8
    rows.put(notes, entity=noted.entity, words=words, shelf=shelf)
