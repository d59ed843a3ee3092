"""What depends on the order of a set is found, though one process never sees two orders."""

import pytest
from sqlalchemy import Column, String

from qntx_es import Domain, Payload, Recorded, Rows
from qntx_es.testing import InconsistentReplay, replay_consistency

shop = Domain("shop")
sales = shop.table("sales", Column("entity", String, primary_key=True), Column("note", String))


class Sold(Payload, context="sold"):
    """Something was sold."""

    amount: int = 1


@shop.project(Sold)
def keep(sold: Recorded[Sold], rows: Rows) -> None:
    """Note two words in the order that a set has them."""
    words = {f"amount {sold.payload.amount}", "sale", "till"}
    rows.put(sales, entity=sold.entity, note=" ".join(words))


def test_the_order_of_a_set_is_found() -> None:
    """Interpreters with other hash seeds disagree, and the set is named as the likely cause."""
    with pytest.raises(InconsistentReplay) as failed:
        replay_consistency(shop)()

    assert failed.value.cause == "hashseed"
    told = str(failed.value)
    assert "under another hash seed (P9)" in told
    assert "first at position 1" in told
    assert "`keep` depends on the order of a set, or on `hash()`" in told
    assert told.count("hash seed 0: entity='a', note=") == 1
