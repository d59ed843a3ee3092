"""Which code a read model was made by, as one number, since nobody remembers to raise a version.

It is the hash of what the domain itself says: the source of its handlers and upcasters, its tables,
and the schemas of its payloads. What handlers call is not followed.

It is kept with the cursor of the rows that the code made. Where the code has another one under the
same version these rows are *unproved*: they may well be right, and only a verify can tell.
"""

import inspect
import json
from collections.abc import Callable
from hashlib import sha256
from textwrap import dedent
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Table

from qntx_es.columns import default_of
from qntx_es.domain import Domain
from qntx_es.folds import Fold

# The code that runs is what was read when it was first asked for, whoever edits the file since.
_KNOWN: WeakKeyDictionary[Domain, str | None] = WeakKeyDictionary()


def fingerprint(domain: Domain) -> str | None:
    """Return the fingerprint of a domain's code; None where its source cannot be read."""
    if domain not in _KNOWN:
        _KNOWN[domain] = _read(domain)
    return _KNOWN[domain]


def is_unproved(domain: Domain, built_by: str | None) -> bool:
    """Tell whether rows of this version were made, or last verified, by other code."""
    ours = fingerprint(domain)
    return ours is not None and ours != built_by


def _read(domain: Domain) -> str | None:
    functions: list[Callable[..., object]] = [one.function for one in domain.projects]
    functions += [one.function for one in domain.derives]
    functions += [one.function for one in domain.upcasters]
    try:
        sources = [_source_of(function) for function in functions]
    except (OSError, TypeError):
        return None
    schemas = {
        context: _steady(domain.chain(payload).schemas())
        for context, payload in domain.payloads.items()
    }
    tables = {name: _spelt(table) for name, table in domain.tables.items()}
    said = json.dumps([sources, tables, schemas], sort_keys=True, default=repr)
    return sha256(said.encode()).hexdigest()


def _source_of(function: Callable[..., object]) -> str:
    if isinstance(function, Fold):
        return f"{function.name} by {dict(function.key)!r} of {dict(function.measures)!r}"
    return dedent(inspect.getsource(function if inspect.isroutine(function) else type(function)))


def _spelt(table: Table) -> list[list[object]]:
    return [
        [one.name, repr(one.type), one.nullable, one.primary_key, default_of(one)]
        for one in table.columns
    ]


def _steady(schemas: object) -> object:
    """Return schemas without the order of sets inside defaults: it is another in each process."""
    return _sorted(schemas) if '"uniqueItems"' in json.dumps(schemas) else schemas


def _sorted(schema: Any, *, is_default: bool = False) -> Any:  # noqa: ANN401 - any part of a schema
    if isinstance(schema, dict):
        return {
            name: _sorted(inside, is_default=is_default or name == "default")
            for name, inside in schema.items()
        }
    if not isinstance(schema, list):
        return schema
    inside = [_sorted(one, is_default=is_default) for one in schema]
    return sorted(inside, key=json.dumps) if is_default else inside
