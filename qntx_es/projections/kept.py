"""What stays with the name of a table through a swap: who may do what, and what is said of it.

A rename leaves owner, grants, comments and storage options with the old table, so they are given to
the one that takes its place, in the transaction of the swap. Nobody then has a right that he had
not, or lacks one: what default privileges gave the fresh table is taken back. Everything is granted
by the owner afterwards, whoever granted it before. What the domain's own code comments stays as
the code has it. SQLite has none of this.
"""

from collections.abc import Iterable

from sqlalchemy import Connection, TextClause, text

from qntx_es.projections.cursor import Cursor
from qntx_es.projections.generations import suffixed


def hand_down(connection: Connection, live: Cursor, tables: Iterable[str]) -> None:
    """Give tables that were just renamed what those had that were `live` under their names.

    After the renames, for nobody can grant a right on a table from its rename to the commit.
    """
    if connection.dialect.name == "sqlite":
        return
    names = sorted(tables)
    pairs = {"old": [suffixed(name, live.generation) for name in names], "new": names}
    # An owner's own rights change hands with the table, so grants are compared after it.
    for statements in (_OWNERS, _REVOKED_AND_GRANTED, _COMMENTS, _OPTIONS):
        for statement in connection.execute(statements, pairs).scalars().all():
            # As it is: what somebody calls a role or says in a comment is no placeholder.
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def _of_pairs(asked: str) -> TextClause:
    """Ask for all tables at once, for readers wait meanwhile; the answer is statements."""
    pairs = """
    WITH pair AS (
        SELECT to_regclass(unnest(CAST(:old AS text[]))) AS old,
            to_regclass(unnest(CAST(:new AS text[]))) AS new
    )"""
    return text(pairs + asked)


_OWNERS = _of_pairs(
    """
    SELECT format('ALTER TABLE %s OWNER TO %I', pair.new, pg_get_userbyid(old.relowner))
    FROM pair JOIN pg_class AS old ON old.oid = pair.old JOIN pg_class AS new ON new.oid = pair.new
    WHERE old.relowner <> new.relowner
    """
)
# Revoking a right to a table takes the same right to its columns too, so all of that comes first.
_REVOKED_AND_GRANTED = _of_pairs(
    """, rights AS (
        SELECT pair.new AS of, oid = pair.old AS is_old, NULL AS attname, one.*
        FROM pair JOIN pg_class ON oid IN (pair.old, pair.new),
            aclexplode(COALESCE(relacl, acldefault('r', relowner))) AS one
        UNION ALL
        SELECT pair.new, found.attrelid = pair.old, found.attname, one.*
        FROM pair JOIN pg_attribute AS found ON attrelid IN (pair.old, pair.new),
            aclexplode(attacl) AS one
        WHERE EXISTS (SELECT FROM pg_attribute AS there
            WHERE there.attrelid = pair.new AND there.attname = found.attname)
    ), old AS (
        SELECT of, attname, grantee, privilege_type, is_grantable FROM rights WHERE is_old
    ), new AS (
        SELECT of, attname, grantee, privilege_type, is_grantable FROM rights WHERE NOT is_old
    ), changes AS (
        SELECT 'REVOKE %s%s ON %s FROM %s' AS said, * FROM (
            SELECT * FROM new EXCEPT SELECT * FROM old) AS surplus
        UNION ALL
        SELECT 'GRANT %s%s ON %s TO %s', * FROM (
            SELECT * FROM old EXCEPT SELECT * FROM new) AS missing
    )
    SELECT format(
        said, privilege_type, '(' || quote_ident(attname) || ')', of,
        CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END
    ) || CASE WHEN is_grantable AND said LIKE 'GRANT%' THEN ' WITH GRANT OPTION' ELSE '' END
    FROM changes ORDER BY said DESC
    """
)
_COMMENTS = _of_pairs(
    """
    SELECT format('COMMENT ON TABLE %s IS %L', pair.new, description)
    FROM pair JOIN pg_description ON objoid = pair.old
    WHERE classoid = 'pg_class'::regclass AND objsubid = 0
    AND obj_description(pair.new, 'pg_class') IS NULL
    UNION ALL
    SELECT format('COMMENT ON COLUMN %s.%I IS %L', pair.new, new.attname, description)
    FROM pair JOIN pg_description ON objoid = pair.old
    JOIN pg_attribute AS old ON old.attrelid = pair.old AND old.attnum = objsubid
    JOIN pg_attribute AS new ON new.attrelid = pair.new AND new.attname = old.attname
    WHERE classoid = 'pg_class'::regclass AND col_description(pair.new, new.attnum) IS NULL
    """
)
_OPTIONS = _of_pairs(
    """
    SELECT format('ALTER TABLE %s SET (%s)', pair.new, string_agg(
        format('%s%I = %L', prefix, option_name, option_value), ', '))
    FROM pair JOIN pg_class AS live ON live.oid = pair.old, LATERAL (
        SELECT '' AS prefix, * FROM pg_options_to_table(live.reloptions)
        UNION ALL
        SELECT 'toast.', options.* FROM pg_class AS toast,
            pg_options_to_table(toast.reloptions) AS options
        WHERE toast.oid = live.reltoastrelid
    ) AS options
    GROUP BY pair.new
    """
)
