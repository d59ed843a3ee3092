"""What must not have been said before an append: decided at the head, and exact.

Whoever decides on what he has read says how far he has read. What lies below a head never changes,
so the long way from there to the head is searched without any lock, and only the few attestations
that came meanwhile are searched under it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from qntx_es.attestation import Attestation, checked_name
from qntx_es.ax import Ax, Span
from qntx_es.errors import AppendConditionFailed, InvalidCondition, LogRegression
from qntx_es.searches import bounds, searched
from qntx_es.tables import attestations as log


@dataclass(frozen=True, slots=True)
class Condition:
    """Nothing that `unless` asks for lies behind `after`; `versions` are the entities' largest."""

    unless: tuple[Ax, ...] = ()
    after: int = 0
    versions: Mapping[str, int] = field(default_factory=dict)

    def check(self, connection: Connection, after: int, head: int) -> None:
        """Search the positions after…head. Raises `AppendConditionFailed`, `LogRegression`."""
        if self.after > head:
            raise LogRegression(self.after, head)
        for ax in self.unless:
            begin, end = bounds(connection, ax, max(after, self.after), head)
            asked = searched(connection, (log.c.position,), ax, Span(1, begin, end))
            found = connection.execute(asked).scalar_one_or_none()
            if found is not None:
                raise AppendConditionFailed(f"position {found} is what must not be", found)

    def check_versions(self, connection: Connection) -> None:
        """Compare each entity's largest version, under the lock. Raises `AppendConditionFailed`."""
        for entity, expected in self.versions.items():
            newest = (
                select(log.c.entity_version, log.c.position)
                .where(log.c.entity == entity, log.c.entity_version.is_not(None))
                .order_by(log.c.entity_version.desc())
                .limit(1)
            )
            version, position = connection.execute(newest).one_or_none() or (0, 0)
            if version != expected:
                raise AppendConditionFailed(
                    f"`{entity}` is at version {version} (position {position}), not {expected}",
                    position,
                )

    def numbers_of(self, fresh: Iterable[Attestation]) -> dict[str, int]:
        """Return, by id, the versions of those whose entity has one, from the next one on."""
        newest = dict(self.versions)
        numbers = {}
        for one in fresh:
            if one.entity in newest:
                newest[one.entity] += 1
                numbers[one.id] = newest[one.entity]
        return numbers


def condition_of(
    attestations: Sequence[Attestation],
    unless: Ax | Sequence[Ax] | None,
    after: int | None,
    expected_version: int | Mapping[str, int] | None,
) -> Condition | None:
    """Return what was asked for, or None for nothing. Raises `InvalidCondition`."""
    if unless is None and expected_version is None:
        if after is not None:
            raise InvalidCondition("`after` says how far was read: of what? Give `unless` too")
        return None
    searched = (unless,) if isinstance(unless, Ax) else tuple(unless or ())
    for ax in searched:
        if ax.limit is not None:
            raise InvalidCondition("`unless` has a limit: whether anything is there needs none")
    if after is not None and (type(after) is not int or after < 0):
        raise InvalidCondition(f"after={after!r} is no position: 0, or that of an attestation")
    versions = _versions_of(attestations, expected_version)
    return Condition(searched, after or 0, versions)


def _versions_of(
    attestations: Sequence[Attestation], expected: int | Mapping[str, int] | None
) -> Mapping[str, int]:
    if expected is None:
        return {}
    about = {one.entity for one in attestations}
    if not isinstance(expected, Mapping):
        if len(about) > 1:
            raise InvalidCondition(
                "one `expected_version` for several entities: give a mapping, entity to version"
            )
        expected = dict.fromkeys(about, expected)
    for entity, version in expected.items():
        checked_name(entity, "entity")
        if type(version) is not int or version < 0:
            raise InvalidCondition(f"expected_version {version!r} of `{entity}` is no version")
        if entity not in about:
            raise InvalidCondition(f"expected_version of `{entity}`, of which nothing is said")
    return expected
