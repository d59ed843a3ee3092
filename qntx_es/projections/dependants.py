"""What others have made on the live tables, and would lose with a swap.

A renamed table takes along whatever holds on to it by identity, so a view would go on showing the
old rows, and be in the way when these are dropped. On PostgreSQL that is everything but what the
database makes of itself; only what stands in a function's text follows the name. On SQLite views,
foreign keys and other tables' triggers follow the name, and a trigger goes with its table.

It is looked for before the fill, where nothing is lost yet, and again under the locks of the swap.
"""

from collections.abc import Iterable

from sqlalchemy import Connection, bindparam, text

from qntx_es.database import Database
from qntx_es.domain import Domain
from qntx_es.errors import ForeignDependants
from qntx_es.projections.cursor import cursors_of
from qntx_es.projections.generations import found_tables


def refuse_planned(database: Database, domain: Domain) -> None:
    """Raise `ForeignDependants` where a domain's live tables cannot be swapped as they stand."""
    with database.read() as connection:
        live = {name for one in cursors_of(connection, domain.name) for name in one.tables}
        refuse_dependants(connection, domain.name, found_tables(connection, live))


def refuse_dependants(connection: Connection, domain: str, live: Iterable[str]) -> None:
    """Raise `ForeignDependants` where others made something on these tables of a domain."""
    on_sqlite = connection.dialect.name == "sqlite"
    found = connection.execute(_ON_SQLITE if on_sqlite else _ON_POSTGRESQL, {"live": [*live]})
    if names := sorted(found.scalars()):
        raise ForeignDependants(domain, names)


_ON_SQLITE = text(
    "SELECT 'trigger ' || name || ' on table ' || lower(tbl_name) FROM sqlite_master"
    " WHERE type = 'trigger' AND lower(tbl_name) IN :live"
).bindparams(bindparam("live", expanding=True))
# A view is a rule of its table, and is named as what it is. Constraints and defaults of the live
# tables themselves depend on their own columns; a trigger that is internal belongs to a constraint.
_ON_POSTGRESQL = text(
    """
    WITH live AS (
        SELECT oid, reltype, relname, relrowsecurity FROM pg_class
        WHERE oid = ANY (CAST(CAST(:live AS text[]) AS regclass[]))
    ), held (refclassid, refobjid) AS (
        SELECT 'pg_class'::regclass, oid FROM live
        UNION ALL
        SELECT 'pg_type'::regclass, unnest(ARRAY[pg_type.oid, typarray])
        FROM live JOIN pg_type ON pg_type.oid = reltype
    )
    SELECT CASE WHEN view.oid IS NULL
        THEN pg_describe_object(classid, objid, objsubid)
        ELSE pg_describe_object('pg_class'::regclass, view.oid, 0) END
    FROM held JOIN pg_depend USING (refclassid, refobjid)
    LEFT JOIN pg_rewrite ON classid = 'pg_rewrite'::regclass AND pg_rewrite.oid = objid
    LEFT JOIN pg_class AS view ON view.oid = ev_class AND view.relkind IN ('v', 'm')
    LEFT JOIN pg_trigger ON classid = 'pg_trigger'::regclass AND pg_trigger.oid = objid
    LEFT JOIN pg_constraint ON classid = 'pg_constraint'::regclass AND pg_constraint.oid = objid
    LEFT JOIN pg_attrdef ON classid = 'pg_attrdef'::regclass AND pg_attrdef.oid = objid
    WHERE (deptype = 'n' OR classid IN (
        'pg_trigger'::regclass, 'pg_policy'::regclass, 'pg_rewrite'::regclass,
        'pg_publication_rel'::regclass))
    AND tgisinternal IS NOT TRUE
    AND NOT EXISTS (SELECT FROM live WHERE live.oid IN (conrelid, adrelid))
    UNION
    SELECT 'row-level security of table ' || relname FROM live WHERE relrowsecurity
    """
)
