"""The words of a title are its index, in the order that a set has them."""

from sqlalchemy import Column, String

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "hashseed"

domain = Domain("titles")
index = domain.table("index", Column("entity", String, primary_key=True), Column("words", String))


class Titled(Payload, context="titled"):
    """It has a title."""

    title: str = "a rose is a rose"


@domain.project(Titled)
def keep_words(titled: Recorded[Titled], rows: Rows) -> None:
    """Keep each word once."""
    words = {*titled.payload.title.split(), "the", "of", "and"}
    rows.put(index, entity=titled.entity, words=" ".join(words))
