"""What may change in a rebuild, said beforehand, so that its proof can be reviewed like a diff."""

from collections.abc import Iterable, Iterator

from qntx_es.domain import Domain
from qntx_es.errors import InvalidExpectation, did_you_mean
from qntx_es.projections.comparison import Comparison, TableProof

SAME = "same"


def expectation(domain: Domain, said: Iterable[str]) -> tuple[str, ...]:
    """Return what was said, checked: `same`, or columns that may change, or nothing at all.

    Raises `InvalidExpectation`.
    """
    given = tuple(dict.fromkeys(said))
    if SAME in given and len(given) > 1:
        raise InvalidExpectation(f"`{SAME}` is that nothing changes: name columns, or say it alone")
    known = [f"{table.name}.{one.name}" for table in domain.tables.values() for one in table.c]
    for one in given:
        if one != SAME and one not in known:
            raise InvalidExpectation(
                f"`{one}` is no TABLE.COLUMN of `{domain.name}`{did_you_mean(one, known)}"
            )
    return given


def unexpected(found: Comparison, expected: Iterable[str]) -> list[str]:
    """Say what changed that was not expected to; where nothing was said, all may change."""
    allowed = set(expected)
    if not allowed:
        return []
    changed = [one for proof in found.tables for one in _changed(proof) if one not in allowed]
    return changed + [f"what `{one.handler}` derives" for one in found.derived if not one.is_same]


def _changed(proof: TableProof) -> Iterator[str]:
    if proof.live is None or proof.rebuilt is None:
        yield f"the table {proof.table}"
        return
    yield from (f"{proof.table}.{column}" for column in proof.columns)
    if proof.missing or proof.surplus:
        yield f"the rows of {proof.table}"
