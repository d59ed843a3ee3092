"""A batch may write more keys than a statement takes parameters, in any order, beside another."""

import threading
from contextlib import closing

import pytest
from sqlalchemy import Column, Integer, func, select

from qntx_es import Attestation, Domain, Host, Payload, Recorded, Rows, faults
from qntx_es.attestation import slice_of
from qntx_es.projections.slices import ALL

KEYS = 70_000  # PostgreSQL takes 65 535 parameters
BOUND = 60


class Swept(Payload, context="swept"):
    """Every cell was gone over, from the last to the first if so said."""

    is_backwards: bool


def make() -> Domain:
    """Make a domain of independent entities that all add to the same cells."""
    domain = Domain("grid", by_entity=True)
    cells = domain.table(
        "cells",
        Column("cell", Integer, primary_key=True),
        Column("times", Integer, nullable=False, default=0),
    )

    @domain.project(Swept)
    def sweep(swept: Recorded[Swept], rows: Rows) -> None:
        for cell in range(KEYS)[:: -1 if swept.payload.is_backwards else 1]:
            rows.add(cells, cell, times=1)

    return domain


@pytest.mark.many_keys
def test_two_workers_write_the_same_keys_crosswise(url: str) -> None:
    """Seventy thousand each, one from the first and one from the last on: both are done."""
    low, high = ALL.cut(2)
    names = [f"e{n}" for n in range(100)]
    entities = [next(one for one in names if slices.holds(one)) for slices in (low, high)]
    assert slice_of(entities[0]) < slice_of(entities[1])
    domain = make()
    with closing(Host(url, [domain])) as host:
        host.upgrade()
        host.cut("grid", into=2)
        for entity, is_backwards in zip(entities, (False, True), strict=True):
            swept = Swept(is_backwards=is_backwards)
            host.append(Attestation(context="swept", entity=entity, actor="a", payload=swept))
        both = threading.Barrier(2)
        troubles: list[BaseException] = []

        def run(one: int) -> None:
            try:
                host._projectors["grid"].runners[one].batches.step(1)  # noqa: SLF001 - one batch each, at once
            except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
                troubles.append(error)

        def meet() -> None:
            both.wait(BOUND)

        threads = [threading.Thread(target=run, args=(n,)) for n in range(2)]
        with faults.planned({"batch.after_read": meet}):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(BOUND)

        assert troubles == []
        (table,) = domain.tables.values()
        asked = select(func.count(), func.min(table.c.times), func.max(table.c.times))
        with host.database.read() as connection:
            assert tuple(connection.execute(asked).one()) == (KEYS, 2, 2)
