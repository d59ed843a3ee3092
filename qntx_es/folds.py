"""Read models that are declared and not coded: what a fold keeps of each attestation, by key.

A fold is called with a recorded attestation and the rows, as a project handler is, and that call is
all it means. A database may fold many attestations by one statement (`projections/folding.py`)
where, and only where, that gives the same rows.

It looks at the fields that it names and at no other, and holds a payload against those alone,
unless its class looks at several fields at once.

Null says nothing: it adds nothing to a total, and is never the least, the most, the first or the
last of anything. A row is made for its key all the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, create_model
from sqlalchemy import Column, Table, types

from qntx_es.attestation import Payload, Recorded
from qntx_es.columns import Instant, default_of
from qntx_es.errors import did_you_mean
from qntx_es.rows import Rows

Verb: TypeAlias = Literal["count", "total", "least", "most", "first", "last"]
KeyPaths: TypeAlias = str | Sequence[str] | Mapping[str, str]

PAYLOAD = "payload"
OF_THE_LOG: Mapping[str, type] = {
    "entity": str,
    "actor": str,
    "position": int,
    "recorded_at": datetime,
}
FITS: Mapping[type, type[types.TypeEngine[Any]]] = {
    int: types.Integer,
    float: types.Float,
    str: types.String,
    bool: types.Boolean,
    datetime: Instant,
}
# What is looked at before it is changed.
COMPARED: tuple[Verb, ...] = ("least", "most", "first")


@dataclass(frozen=True, slots=True)
class Measure:
    """What a column of a fold keeps; made by `count`, `total`, `least`, `most`, `first`, `last`."""

    verb: Verb
    path: str = "position"


def count() -> Measure:
    """Count the attestations of each key."""
    return Measure("count")


def total(path: str) -> Measure:
    """Add up what lies at a path: integers, since a sum of floats depends on their order."""
    return Measure("total", path)


def least(path: str) -> Measure:
    """Keep the least of what lies at a path; texts are compared by code point."""
    return Measure("least", path)


def most(path: str) -> Measure:
    """Keep the most of what lies at a path; texts are compared by code point."""
    return Measure("most", path)


def first(path: str) -> Measure:
    """Keep what lay at a path when it was first said."""
    return Measure("first", path)


def last(path: str) -> Measure:
    """Keep what lay at a path when it was last said."""
    return Measure("last", path)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a path leads: to a column of the log, or by `keys` into the payload."""

    path: str
    kind: type
    is_nullable: bool = False
    keys: tuple[str, ...] = ()

    def read(self, recorded: Recorded[Any]) -> Any:  # noqa: ANN401 - the payload's class decides
        """Return what an attestation says there; None where it says nothing."""
        if not self.keys:
            return getattr(recorded, self.path)
        return reduce(_inside, self.keys, recorded.payload)


class Fold:
    """What one context adds to one table: `key` finds the row, `measures` say what is kept in it.

    Both are by column, the key in the order of the table's.
    """

    def __init__(
        self,
        payload: type[Payload],
        table: Table,
        key: Mapping[str, Source],
        measures: Mapping[str, tuple[Verb, Source]],
    ) -> None:
        self.payload = payload
        self.table = table
        self.key = key
        self.measures = measures
        self.name = f"{table.name}: {', '.join(measures)}"
        self._added = _of_verbs(measures, ("count", "total"))
        self._kept = _of_verbs(measures, (*COMPARED, "last"))
        self._narrow = narrowed(payload, self.fields)
        self._is_compared = any(verb in COMPARED for verb, _ in self._kept.values())
        self.is_by_entity = [one.path for one in key.values()] == ["entity"]
        # Amounts may come in any order; what is kept is of one entity, or of nobody in particular.
        self.is_apart_by_entity = not self._kept or "entity" in [one.path for one in key.values()]

    def __call__(self, recorded: Recorded[Any], rows: Rows) -> None:
        """Write what follows from one attestation: this is what a fold means."""
        recorded = self._narrowed(recorded)
        (_, *key), table = self._row_of(recorded), self.table
        if self._kept:
            row = rows.get(table, *key) if self._is_compared else None
            kept = {}
            for name, (verb, source) in self._kept.items():
                value = source.read(recorded)
                if value is not None and _is_kept(verb, value, row and row[name]):
                    kept[name] = value
            rows.put(table, **dict(zip(self.key, key, strict=True)), **kept)
        if self._added:
            amounts = {
                name: 1 if verb == "count" else source.read(recorded) or 0
                for name, (verb, source) in self._added.items()
            }
            rows.add(table, *key, **amounts)

    def keys(self, recorded: Recorded[Any]) -> Sequence[tuple[Any, ...]]:
        """Name the row to read ahead."""
        return [self._row_of(self._narrowed(recorded))]

    @property
    def sources(self) -> dict[str, Source]:
        """Where each column's value is found."""
        return {**self.key, **{name: source for name, (_, source) in self.measures.items()}}

    @property
    def fields(self) -> list[str]:
        """The fields of the payload that it looks at."""
        return list(dict.fromkeys(one.keys[0] for one in self.sources.values() if one.keys))

    @property
    def read_as(self) -> type[BaseModel]:
        """The class that a payload of its own version is held against."""
        return self._narrow or self.payload

    def _narrowed(self, recorded: Recorded[Any]) -> Recorded[Any]:
        if self._narrow is None or recorded.schema_version != self.payload.schema_version:
            return recorded
        return recorded.read_by(self._narrow.__pydantic_validator__.validate_json)

    def _row_of(self, recorded: Recorded[Any]) -> tuple[Any, ...]:
        return (self.table, *[source.read(recorded) for source in self.key.values()])


def narrowed(payload: type[BaseModel], fields: Sequence[str]) -> type[BaseModel] | None:
    """Return a class of some of the fields, or None where one is not to be told from the others."""
    decorators = payload.__pydantic_decorators__
    its_own = [one for one in payload.__mro__ if one is not BaseModel]
    is_more_than_its_fields = (
        decorators.validators
        or decorators.field_validators
        or decorators.root_validators
        or decorators.model_validators
        or payload.__pydantic_custom_init__
        or payload.__pydantic_post_init__
        or any("__get_pydantic_core_schema__" in vars(one) for one in its_own)
        or payload.model_config.get("extra") == "forbid"
    )
    if is_more_than_its_fields:
        return None
    chosen: dict[str, Any] = {
        name: (payload.model_fields[name].annotation, payload.model_fields[name]) for name in fields
    }
    return create_model(payload.__name__, __config__=payload.model_config, **chosen)


def fold_of(
    payload: type[Payload], table: Table, key: KeyPaths, measures: Mapping[str, Measure]
) -> Fold | list[str]:
    """Return a fold, or everything that keeps it from being one."""
    problems: list[str] = []
    found: dict[str, Source] = {}
    paths = _by_column(table, key)
    if isinstance(paths, str):
        return [paths]
    for name, path in paths.items():
        source = _source_of(payload, path)
        if isinstance(source, str):
            problems.append(f"key `{name}`: {source}")
            continue
        found[name] = source
        problems += [f"key `{name}`: {one}" for one in _key_problems(table.c[name], source)]
    kept: dict[str, tuple[Verb, Source]] = {}
    for name, measure in measures.items():
        source = _source_of(payload, measure.path)
        said = f"{name}={measure.verb}({measure.path if measure.verb != 'count' else ''})"
        if isinstance(source, str):
            problems.append(f"`{said}`: {source}")
            continue
        kept[name] = (measure.verb, source)
        problems += [f"`{said}`: {one}" for one in _problems(table, name, measure.verb, source)]
    problems += _missing(table, measures)
    return problems or Fold(payload, table, found, kept)


def _by_column(table: Table, key: KeyPaths) -> dict[str, str] | str:
    """Return the paths of a key in the order of the table's key, or why they do not fit it."""
    names = [column.name for column in table.primary_key.columns]
    given = (key,) if isinstance(key, str) else tuple(key)
    paths = dict(key) if isinstance(key, Mapping) else dict(zip(names, given, strict=False))
    if len(given) != len(names) or set(paths) != set(names):
        return (
            f"the key of `{table.name}` is ({', '.join(names)}), so key= gives a path for each of "
            f"them, and for nothing else"
        )
    return {name: paths[name] for name in names}


def _source_of(payload: type[Payload], path: str) -> Source | str:
    """Return where a path leads, or why it leads nowhere."""
    head, *keys = path.split(".")
    if not keys and head in OF_THE_LOG:
        return Source(path, OF_THE_LOG[head])
    if head != PAYLOAD or not keys:
        return f"no path `{path}`; a path is {', '.join(OF_THE_LOG)}, or payload.<field>"
    model: type[BaseModel] = payload
    is_nullable = False
    for depth, key in enumerate(keys, 1):
        if key not in model.model_fields:
            known = model.model_fields
            return f"{model.__name__} has no field `{key}`{did_you_mean(key, known)}"
        kind, may_be_null = _kind_of(model.model_fields[key].annotation)
        is_nullable = is_nullable or may_be_null
        if depth == len(keys):
            if kind not in FITS:
                return (
                    f"`{path}` may be of any kind; a fold takes int, float, str, bool and datetime"
                )
            return Source(path, kind, is_nullable, tuple(keys))
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return f"nothing is known of what lies inside `{key}` of {model.__name__}"
        model = kind
    raise AssertionError(path)  # a path has a last key


def _kind_of(annotation: Any) -> tuple[Any, bool]:  # noqa: ANN401 - an annotation is anything
    """Return the class that a field holds, and whether it may hold null instead."""
    if get_origin(annotation) is Annotated:
        return _kind_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        others = [one for one in get_args(annotation) if one is not NoneType]
        if len(others) == 1:
            return _kind_of(others[0])[0], True
    return annotation, False


def _key_problems(column: Column[Any], source: Source) -> list[str]:
    found = _kind_problems(column, source)
    if source.is_nullable:
        found.append(f"`{source.path}` may be null, and a key never is")
    return found


def _problems(table: Table, name: str, verb: Verb, source: Source) -> list[str]:
    if name not in table.c:
        return [f"`{table.name}` has no such column{did_you_mean(name, table.c.keys())}"]
    column = table.c[name]
    if column.primary_key:
        return ["it is part of the key, which key= gives"]
    default = default_of(column)
    if verb in ("count", "total"):
        if source.kind is float or isinstance(column.type, types.Float):
            return ["the sum of floats depends on their order; add up integers of a smaller unit"]
        if source.kind is not int:
            return [f"`{source.path}` is a {source.kind.__name__}, and only integers add up"]
        found = _kind_problems(column, source)
        if not column.nullable and default is None:
            found.append("the column has nothing to start from; give it default=0")
        return found
    found = _kind_problems(column, source)
    if source.kind is bool and verb in ("least", "most"):
        found.append("of True and False neither is the least; use first or last")
    if default is not None:
        found.append("NULL is what stands there before anything is said; leave out its default=")
    if not column.nullable and source.is_nullable:
        found.append(f"`{source.path}` may be null, so the column must be nullable")
    return found


def _kind_problems(column: Column[Any], source: Source) -> list[str]:
    if isinstance(column.type, FITS[source.kind]):
        return []
    kind = source.kind.__name__
    return [f"`{source.path}` is a {kind}, and {column.type!r} takes none"]


def _missing(table: Table, measures: Mapping[str, Measure]) -> list[str]:
    if not measures:
        return ["it keeps nothing; name a column, such as commits=count()"]
    return [
        f"a new row of `{table.name}` needs `{column.name}`; keep it too, or give it a default="
        for column in table.columns
        if not (column.primary_key or column.nullable or column.name in measures)
        and default_of(column) is None
    ]


def _of_verbs(
    measures: Mapping[str, tuple[Verb, Source]], verbs: Sequence[Verb]
) -> dict[str, tuple[Verb, Source]]:
    return {name: one for name, one in measures.items() if one[0] in verbs}


def _is_kept(verb: Verb, value: Any, now: Any) -> bool:  # noqa: ANN401 - the column decides
    """Tell whether a value takes the place of what a row holds now."""
    if verb == "last" or now is None:
        return True
    return bool(value < now) if verb == "least" else verb == "most" and bool(value > now)


def _inside(holder: Any, key: str) -> Any:  # noqa: ANN401 - the payload's class decides
    return None if holder is None else getattr(holder, key)
