"""The log with its guards and tags, the inbox, and what projectors keep beside their rows."""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

WORDS = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
POSITION = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# An id or a version that is there is refused here too, since INSERT OR REPLACE would overwrite its
# row and fire no other trigger. FAIL and not ABORT, wherever an insert leads: SQLite would keep a
# journal for every row inserted, to be able to undo it, and take up to twice the time.
GUARDS_SQLITE = (
    """
    CREATE TRIGGER qntx_attestations_continue BEFORE INSERT ON qntx_attestations
    WHEN new.position IS NOT 1 + (SELECT coalesce(max(position), 0) FROM qntx_attestations)
      OR new.recorded_at <
         (SELECT recorded_at FROM qntx_attestations WHERE position = new.position - 1)
      OR EXISTS (SELECT 1 FROM qntx_attestations WHERE id = new.id)
      OR (new.entity_version IS NOT NULL AND EXISTS
           (SELECT 1 FROM qntx_attestations
            WHERE entity = new.entity AND entity_version = new.entity_version))
    BEGIN
      SELECT RAISE(FAIL, 'qntx_attestations: an insert must continue the log');
    END
    """,
    """
    CREATE TRIGGER qntx_attestations_no_update BEFORE UPDATE ON qntx_attestations
    BEGIN
      SELECT RAISE(ABORT, 'qntx_attestations is append-only');
    END
    """,
    """
    CREATE TRIGGER qntx_attestations_no_delete BEFORE DELETE ON qntx_attestations
    BEGIN
      SELECT RAISE(ABORT, 'qntx_attestations is append-only');
    END
    """,
    """
    CREATE TRIGGER qntx_attestations_tag AFTER INSERT ON qntx_attestations
    WHEN new.tags IS NOT NULL
    BEGIN
      INSERT INTO qntx_tags (tag, position)
      SELECT DISTINCT value, new.position FROM json_each(new.tags);
    END
    """,
    """
    CREATE TRIGGER qntx_tags_true BEFORE INSERT ON qntx_tags
    WHEN NOT EXISTS
      (SELECT 1 FROM qntx_attestations AS said, json_each(said.tags) AS one
       WHERE said.position = new.position AND one.value = new.tag)
    BEGIN
      SELECT RAISE(FAIL, 'qntx_tags: the attestation has no such tag');
    END
    """,
    """
    CREATE TRIGGER qntx_tags_no_update BEFORE UPDATE ON qntx_tags
    BEGIN
      SELECT RAISE(ABORT, 'qntx_tags is append-only');
    END
    """,
    """
    CREATE TRIGGER qntx_tags_no_delete BEFORE DELETE ON qntx_tags
    BEGIN
      SELECT RAISE(ABORT, 'qntx_tags is append-only');
    END
    """,
)

# One check a statement, over its transition table: a check a row would halve the append rate.
GUARDS_POSTGRESQL = (
    """
    CREATE FUNCTION qntx_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      RAISE EXCEPTION '% is append-only', TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
    END $$
    """,
    """
    CREATE FUNCTION qntx_continue_log() RETURNS trigger LANGUAGE plpgsql
    SET search_path = {schema}, pg_temp AS $$
    DECLARE
      first bigint; last bigint; size bigint;
    BEGIN
      SELECT min(position), max(position), count(*) INTO first, last, size FROM fresh;
      IF size = 0 THEN
        RETURN NULL;
      END IF;
      IF first < 1 OR last - first + 1 <> size
        OR last <> (SELECT max(position) FROM qntx_attestations)
        OR (first > 1 AND NOT EXISTS
             (SELECT 1 FROM qntx_attestations WHERE position = first - 1))
        OR EXISTS
             (SELECT 1 FROM
               (SELECT recorded_at, lag(recorded_at) OVER (ORDER BY position) AS before
                FROM qntx_attestations WHERE position BETWEEN first - 1 AND last) AS pair
              WHERE recorded_at < before)
      THEN
        RAISE EXCEPTION 'qntx_attestations: an insert must continue the log'
          USING ERRCODE = 'integrity_constraint_violation';
      END IF;
      INSERT INTO qntx_tags (tag, position)
      SELECT DISTINCT one.tag, fresh.position
      FROM fresh, json_array_elements_text(fresh.tags::json) AS one(tag);
      RETURN NULL;
    END $$
    """,
    """
    CREATE FUNCTION qntx_tags_are_true() RETURNS trigger LANGUAGE plpgsql
    SET search_path = {schema}, pg_temp AS $$
    BEGIN
      IF EXISTS
        (SELECT 1 FROM fresh LEFT JOIN qntx_attestations AS said USING (position)
         WHERE said.tags IS NULL OR NOT fresh.tag IN
           (SELECT one.tag FROM json_array_elements_text(said.tags::json) AS one(tag)))
      THEN
        RAISE EXCEPTION 'qntx_tags: the attestation has no such tag'
          USING ERRCODE = 'integrity_constraint_violation';
      END IF;
      RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER qntx_tags_no_change
    BEFORE UPDATE OR DELETE OR TRUNCATE ON qntx_tags
    FOR EACH STATEMENT EXECUTE FUNCTION qntx_refuse_change()
    """,
    """
    CREATE TRIGGER qntx_tags_true
    AFTER INSERT ON qntx_tags REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION qntx_tags_are_true()
    """,
    "ALTER TABLE qntx_tags ENABLE ALWAYS TRIGGER qntx_tags_no_change",
    "ALTER TABLE qntx_tags ENABLE ALWAYS TRIGGER qntx_tags_true",
    """
    CREATE TRIGGER qntx_attestations_no_change
    BEFORE UPDATE OR DELETE OR TRUNCATE ON qntx_attestations
    FOR EACH STATEMENT EXECUTE FUNCTION qntx_refuse_change()
    """,
    """
    CREATE TRIGGER qntx_attestations_continue
    AFTER INSERT ON qntx_attestations REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION qntx_continue_log()
    """,
    "ALTER TABLE qntx_attestations ENABLE ALWAYS TRIGGER qntx_attestations_no_change",
    "ALTER TABLE qntx_attestations ENABLE ALWAYS TRIGGER qntx_attestations_continue",
)

# An append, a pass and a wait, each in one way there and back. In PL/pgSQL every statement has a
# snapshot of its own, so the head is read behind the lock, as it must be.
#
# `qntx_move` is the one statement from inbox to log, so exactly once. Whole transactions, ordered
# by each one's *last* number: by number alone they interleave, by their first an effect precedes
# its cause, since who has read a commit draws later numbers. It ends before a transaction with an
# id that the log has by now: that one the host sets aside first. `qntx_take_in` moves all that
# waits, or answers false where a host must do it: to set something aside, or to project inline.
APPENDING_POSTGRESQL = (
    """
    CREATE FUNCTION qntx_lock() RETURNS bigint LANGUAGE sql STABLE
    SET search_path = {schema}, pg_temp AS $$
      SELECT (x'716E7478'::bigint << 32) + 'qntx_attestations'::regclass::oid::bigint
    $$
    """,
    """
    CREATE FUNCTION qntx_door() RETURNS bigint LANGUAGE sql STABLE
    SET search_path = {schema}, pg_temp AS $$
      SELECT (x'716E7479'::bigint << 32) + 'qntx_attestations'::regclass::oid::bigint
    $$
    """,
    """
    CREATE FUNCTION qntx_move(head bigint, recorded bigint) RETURNS SETOF text
    LANGUAGE sql SET search_path = {schema}, pg_temp AS $$
      WITH waiting AS (
        SELECT inbox.tx, max(inbox.number) AS last, count(*) AS size,
          bool_or(EXISTS (SELECT FROM qntx_attestations AS said WHERE said.id = inbox.id)) AS twin
        FROM qntx_inbox AS inbox GROUP BY inbox.tx
      ), counted AS (
        SELECT tx, last, sum(size) OVER (ORDER BY last) - size AS before,
          bool_or(twin) OVER (ORDER BY last) AS is_behind_twin
        FROM waiting
      ), moved AS (
        DELETE FROM qntx_inbox AS inbox USING counted
        WHERE inbox.tx = counted.tx AND counted.before < 10000 AND NOT counted.is_behind_twin
        RETURNING counted.last, inbox.*
      )
      INSERT INTO qntx_attestations (position, recorded_at, id, context, entity, actor, slice,
        depth, schema_version, caused_by, correlation_id, tags, payload)
      SELECT head + row_number() OVER (ORDER BY last, number), recorded, id, context, entity, actor,
        slice, depth, schema_version, caused_by, correlation_id, tags, payload
      FROM moved
      RETURNING context
    $$
    """,
    """
    CREATE FUNCTION qntx_take_in(inline text[]) RETURNS boolean
    LANGUAGE plpgsql SET search_path = {schema}, pg_temp AS $$
    DECLARE
      head bigint; before bigint; clock bigint;
    BEGIN
      WHILE EXISTS (SELECT FROM qntx_inbox) LOOP
        IF EXISTS (SELECT FROM qntx_inbox AS waits WHERE waits.context = ANY(inline)
             OR EXISTS (SELECT FROM qntx_attestations AS said WHERE said.id = waits.id)) THEN
          RETURN false;
        END IF;
        SELECT position, recorded_at INTO head, before
        FROM qntx_attestations ORDER BY position DESC LIMIT 1;
        clock := floor(extract(epoch FROM clock_timestamp()) * 1000000);
        PERFORM qntx_move(coalesce(head, 0), greatest(clock, before));
      END LOOP;
      RETURN true;
    END $$
    """,
    """
    CREATE FUNCTION qntx_pass(inline text[]) RETURNS boolean
    LANGUAGE plpgsql SET search_path = {schema}, pg_temp AS $$
    BEGIN
      IF NOT EXISTS (SELECT FROM qntx_inbox) OR NOT pg_try_advisory_xact_lock(qntx_lock()) THEN
        RETURN true;
      END IF;
      PERFORM pg_advisory_xact_lock(qntx_door());
      RETURN qntx_take_in(inline);
    END $$
    """,
    """
    CREATE FUNCTION qntx_append(
      inline text[],
      ids text[], contexts text[], entities text[], actors text[], slices int[], depths int[],
      schema_versions int[], causes text[], correlation_ids text[], tags text[], payloads text[]
    ) RETURNS bigint LANGUAGE plpgsql SET search_path = {schema}, pg_temp AS $$
    DECLARE
      head bigint; before bigint; clock bigint; dropped int;
    BEGIN
      IF NOT pg_try_advisory_xact_lock(qntx_lock()) THEN
        INSERT INTO qntx_inbox (whole, id, context, entity, actor, slice, depth, schema_version,
          caused_by, correlation_id, tags, payload)
        SELECT true, said.id, said.context, said.entity, said.actor, said.slice, said.depth,
          said.schema_version, said.caused_by, said.correlation_id, said.tags, said.payload
        FROM unnest(ids, contexts, entities, actors, slices, depths, schema_versions, causes,
          correlation_ids, tags, payloads) WITH ORDINALITY AS said(id, context, entity, actor,
          slice, depth, schema_version, caused_by, correlation_id, tags, payload, ordinal)
        ORDER BY said.ordinal
        ON CONFLICT (id) DO NOTHING;
        GET DIAGNOSTICS dropped = ROW_COUNT;
        IF dropped < cardinality(ids) THEN
          RAISE unique_violation USING MESSAGE = 'an id waits in qntx_inbox already';
        END IF;
        RETURN -1;
      END IF;
      PERFORM pg_advisory_xact_lock(qntx_door());
      IF NOT qntx_take_in(inline) THEN
        RETURN -2;
      END IF;
      SELECT position, recorded_at INTO head, before
      FROM qntx_attestations ORDER BY position DESC LIMIT 1;
      clock := floor(extract(epoch FROM clock_timestamp()) * 1000000);
      INSERT INTO qntx_attestations (position, recorded_at, id, context, entity, actor, slice,
        depth, schema_version, caused_by, correlation_id, tags, payload)
      SELECT coalesce(head, 0) + said.ordinal, greatest(clock, before), said.id, said.context,
        said.entity, said.actor, said.slice, said.depth, said.schema_version, said.caused_by,
        said.correlation_id, said.tags, said.payload
      FROM unnest(ids, contexts, entities, actors, slices, depths, schema_versions, causes,
        correlation_ids, tags, payloads) WITH ORDINALITY AS said(id, context, entity, actor,
        slice, depth, schema_version, caused_by, correlation_id, tags, payload, ordinal);
      RETURN coalesce(head, 0);
    END $$
    """,
    """
    CREATE FUNCTION qntx_await(wanted text[], patience text, inline text[])
    RETURNS TABLE (id text, "position" bigint, context text, actor text, entity text,
      schema_version int, payload text, tags text)
    LANGUAGE plpgsql SET search_path = {schema}, pg_temp AS $$
    #variable_conflict use_column
    BEGIN
      PERFORM set_config('lock_timeout', patience, true);
      PERFORM pg_advisory_xact_lock_shared(qntx_door());
      IF EXISTS (SELECT FROM qntx_inbox WHERE qntx_inbox.id = ANY(wanted))
        AND pg_try_advisory_xact_lock(qntx_lock())
      THEN
        PERFORM pg_advisory_xact_lock(qntx_door());
        PERFORM qntx_take_in(inline);
      END IF;
      RETURN QUERY
      SELECT id, position, context, actor, entity, schema_version, payload, tags
      FROM qntx_attestations WHERE id = ANY(wanted);
    END $$
    """,
)


def upgrade() -> None:
    """Make every table of the first version, and the log's guards."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    create_log()
    if not is_sqlite:
        create_inbox()
    create_projectors()
    create_recorders()
    for statement in GUARDS_SQLITE if is_sqlite else on_postgresql():
        op.execute(sa.text(statement))


def on_postgresql() -> list[str]:
    """Return what is made there, its schema named and temporary tables looked for last.

    So nobody's table of the same name can stand in for ours.
    """
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    written = (*GUARDS_POSTGRESQL, *APPENDING_POSTGRESQL)
    return [statement.replace("{schema}", schema) for statement in written]


def said() -> list[sa.Column[object]]:
    """Return the columns that the log and the inbox have in common."""
    return [
        sa.Column("context", WORDS, nullable=False),
        sa.Column("entity", WORDS, nullable=False),
        sa.Column("actor", WORDS, nullable=False),
        sa.Column("slice", sa.SmallInteger, nullable=False),
        sa.Column("depth", sa.Integer, nullable=False),
        sa.Column("schema_version", sa.Integer, nullable=False),
        sa.Column("caused_by", WORDS),
        sa.Column("correlation_id", WORDS),
        sa.Column("tags", WORDS),
        sa.Column("payload", WORDS, nullable=False),
    ]


def create_log() -> None:
    """Make the table of attestations with its indexes, its tags and its epoch."""
    op.create_table(
        "qntx_attestations",
        sa.Column("position", POSITION, primary_key=True, autoincrement=False),
        sa.Column("id", WORDS, nullable=False, unique=True),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.Column("entity_version", sa.Integer),
        *said(),
    )
    for column in ("entity", "context"):
        op.create_index(f"qntx_attestations_{column}", "qntx_attestations", [column, "position"])
    is_numbered = sa.text("entity_version IS NOT NULL")
    op.create_index(
        "qntx_attestations_version",
        "qntx_attestations",
        ["entity", "entity_version"],
        unique=True,
        sqlite_where=is_numbered,
        postgresql_where=is_numbered,
    )
    op.create_table(
        "qntx_tags",
        sa.Column("tag", WORDS, primary_key=True),
        sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
        sqlite_with_rowid=False,
    )
    epochs = op.create_table("qntx_epoch", sa.Column("epoch", WORDS, primary_key=True))
    op.bulk_insert(epochs, [{"epoch": str(uuid4())}])


def create_inbox() -> None:
    """Make the table where what is committed waits for its position."""
    op.create_table(
        "qntx_inbox",
        sa.Column("number", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("tx", sa.Text, nullable=False),
        sa.Column("whole", sa.Boolean, nullable=False),
        sa.Column("id", WORDS, nullable=False, unique=True),
        *said(),
    )
    op.execute(
        sa.text(
            "ALTER TABLE qntx_inbox ALTER tx TYPE xid8 USING tx::xid8, "
            "ALTER tx SET DEFAULT pg_current_xact_id()"
        )
    )


def create_projectors() -> None:
    """Make the tables of cursors, leases, failures and rebuilds."""
    op.create_table(
        "qntx_cursors",
        sa.Column("domain", WORDS, primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("derives_from", sa.BigInteger, nullable=False),
        sa.Column("tables", WORDS, nullable=False),
    )
    op.create_table(
        "qntx_leases",
        sa.Column("name", WORDS, primary_key=True),
        sa.Column("holder", WORDS, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "qntx_failures",
        sa.Column("domain", WORDS, primary_key=True),
        sa.Column("cursor", sa.BigInteger, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("handler", WORDS, nullable=False),
        sa.Column("error", WORDS, nullable=False),
        sa.Column("traceback", WORDS, nullable=False),
        sa.Column("failed_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "qntx_rebuilds",
        sa.Column("domain", WORDS, primary_key=True),
        sa.Column("holder", WORDS, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("state", WORDS, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("target", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("looked_at", sa.BigInteger, nullable=False),
    )


def create_recorders() -> None:
    """Make what the recorders of eventsourcing applications keep beside the log."""
    op.create_table(
        "qntx_tracking",
        sa.Column("recorder", WORDS, primary_key=True),
        sa.Column("application", WORDS, primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "qntx_snapshots",
        sa.Column("recorder", WORDS, primary_key=True),
        sa.Column("purpose", WORDS, primary_key=True),
        sa.Column("entity", WORDS, primary_key=True),
        sa.Column("entity_version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("context", WORDS, nullable=False),
        sa.Column("state", sa.LargeBinary, nullable=False),
    )
