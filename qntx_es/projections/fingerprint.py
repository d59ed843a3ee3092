"""Which code a read model was made by, as one number, since nobody remembers to raise a version.

It is the hash of what the domain itself says: the source of its handlers and upcasters, its tables,
and the schemas of its payloads. What handlers call is not followed.
"""

import inspect
import json
from collections.abc import Callable
from hashlib import sha256
from textwrap import dedent

from sqlalchemy import Table

from qntx_es.columns import default_of
from qntx_es.domain import Domain
from qntx_es.folds import Fold


def fingerprint(domain: Domain) -> str | None:
    """Return the fingerprint of a domain's code; None where its source cannot be read."""
    functions: list[Callable[..., object]] = [one.function for one in domain.projects]
    functions += [one.function for one in domain.derives]
    functions += [one.function for one in domain.upcasters]
    try:
        sources = [_source_of(function) for function in functions]
    except (OSError, TypeError):
        return None
    schemas = {
        context: domain.chain(payload).schemas() for context, payload in domain.payloads.items()
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
