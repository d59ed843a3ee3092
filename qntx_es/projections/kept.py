"""What stays with the name of a table through a swap: who may do what, and what is said of it.

A rename leaves owner, grants, comments and storage options with the old table, so they are given to
the one that takes its place, in the transaction of the swap. Nobody then has a right that he had
not, or lacks one: what default privileges gave the fresh table is taken back. Everything is granted
by the owner afterwards, whoever granted it before. What the domain's own code comments stays as
the code has it. SQLite has none of this.
"""

from collections.abc import Iterable

from sqlalchemy import Connection, text

from qntx_es.projections.cursor import Cursor
from qntx_es.projections.generations import suffixed


def hand_down(connection: Connection, live: Cursor, tables: Iterable[str]) -> None:
    """Give tables that were just renamed what those had that were `live` under their names.

    After the renames, for nobody can grant a right on a table from its rename to the commit.
    """
    if connection.dialect.name == "sqlite":
        return
    for name in sorted(tables):
        pair = {"old": suffixed(name, live.generation), "new": name}
        # An owner's own rights change hands with the table, so grants are compared after it.
        for statements in (_OWNER, _REVOKED_AND_GRANTED, _COMMENTS, _OPTIONS):
            for statement in connection.execute(statements, pair).scalars().all():
                # As it is: what somebody calls a role or says in a comment is no placeholder.
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


# Each gives statements, quoted by the database itself.

_OWNER = text(
    """
    SELECT format('ALTER TABLE %s OWNER TO %I', new.oid::regclass, pg_get_userbyid(old.relowner))
    FROM pg_class AS old, pg_class AS new
    WHERE old.oid = to_regclass(:old) AND new.oid = to_regclass(:new)
    AND old.relowner <> new.relowner
    """
)
# Revoking a right to a table takes the same right to its columns too, so all of that comes first.
_REVOKED_AND_GRANTED = text(
    """
    WITH rights AS (
        SELECT pg_class.oid, NULL AS attname, one.*
        FROM pg_class, aclexplode(COALESCE(relacl, acldefault('r', relowner))) AS one
        WHERE oid IN (to_regclass(:old), to_regclass(:new))
        UNION ALL
        SELECT attrelid, attname, one.*
        FROM pg_attribute, aclexplode(attacl) AS one
        WHERE attrelid IN (to_regclass(:old), to_regclass(:new)) AND NOT attisdropped
    ), old AS (
        SELECT attname, grantee, privilege_type, is_grantable FROM rights
        WHERE oid = to_regclass(:old) AND (attname IS NULL OR attname IN (
            SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(:new)))
    ), new AS (
        SELECT attname, grantee, privilege_type, is_grantable FROM rights
        WHERE oid = to_regclass(:new)
    ), changes AS (
        SELECT 'REVOKE %s%s ON %s FROM %s' AS said, * FROM (
            SELECT * FROM new EXCEPT SELECT * FROM old) AS surplus
        UNION ALL
        SELECT 'GRANT %s%s ON %s TO %s', * FROM (
            SELECT * FROM old EXCEPT SELECT * FROM new) AS missing
    )
    SELECT format(
        said, privilege_type, '(' || quote_ident(attname) || ')', to_regclass(:new),
        CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END
    ) || CASE WHEN is_grantable AND said LIKE 'GRANT%' THEN ' WITH GRANT OPTION' ELSE '' END
    FROM changes ORDER BY said DESC
    """
)
_COMMENTS = text(
    """
    SELECT format('COMMENT ON TABLE %s IS %L', to_regclass(:new), description)
    FROM pg_description
    WHERE classoid = 'pg_class'::regclass AND objoid = to_regclass(:old) AND objsubid = 0
    AND obj_description(to_regclass(:new), 'pg_class') IS NULL
    UNION ALL
    SELECT format('COMMENT ON COLUMN %s.%I IS %L', to_regclass(:new), new.attname, description)
    FROM pg_description
    JOIN pg_attribute AS old ON old.attrelid = objoid AND old.attnum = objsubid
    JOIN pg_attribute AS new ON new.attname = old.attname AND new.attrelid = to_regclass(:new)
    WHERE classoid = 'pg_class'::regclass AND objoid = to_regclass(:old) AND objsubid > 0
    AND col_description(new.attrelid, new.attnum) IS NULL
    """
)
_OPTIONS = text(
    """
    SELECT format('ALTER TABLE %s SET (%s)', to_regclass(:new), string_agg(
        format('%s%I = %L', prefix, option_name, option_value), ', '))
    FROM pg_class AS live, LATERAL (
        SELECT '' AS prefix, * FROM pg_options_to_table(live.reloptions)
        UNION ALL
        SELECT 'toast.', options.* FROM pg_class AS toast,
            LATERAL pg_options_to_table(toast.reloptions) AS options
        WHERE toast.oid = live.reltoastrelid
    ) AS options
    WHERE live.oid = to_regclass(:old)
    HAVING count(*) > 0
    """
)
