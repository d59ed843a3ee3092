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
    WHEN coalesce(
        (SELECT new.position = position + 1 AND new.recorded_at >= recorded_at
         FROM qntx_attestations ORDER BY position DESC LIMIT 1),
        new.position = 1
      ) IS NOT 1
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
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
    DECLARE
      first bigint; last bigint; size bigint; earliest bigint; latest bigint; before bigint;
      is_tagged boolean;
    BEGIN
      SELECT min(position), max(position), count(*), min(recorded_at), max(recorded_at),
        bool_or(tags IS NOT NULL),
        (SELECT recorded_at FROM {schema}.qntx_attestations
         WHERE position = min(fresh.position) - 1)
      INTO first, last, size, earliest, latest, is_tagged, before FROM fresh;
      IF size = 0 THEN
        RETURN NULL;
      END IF;
      -- Behind one that is there, without a hole: what is there already, the key refuses.
      IF last - first + 1 <> size OR NOT (first = 1 OR coalesce(before <= earliest, false))
        OR (earliest < latest AND EXISTS
             (SELECT 1 FROM
               (SELECT recorded_at, lag(recorded_at) OVER (ORDER BY position) AS earlier
                FROM fresh) AS pair
              WHERE recorded_at < earlier))
      THEN
        RAISE EXCEPTION 'qntx_attestations: an insert must continue the log'
          USING ERRCODE = 'integrity_constraint_violation';
      END IF;
      IF is_tagged THEN
        INSERT INTO {schema}.qntx_tags (tag, position)
        SELECT DISTINCT one.tag, fresh.position
        FROM fresh, json_array_elements_text(fresh.tags::json) AS one(tag);
      END IF;
      RETURN NULL;
    END $$
    """,
    """
    CREATE FUNCTION qntx_tags_are_true() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
    BEGIN
      IF EXISTS
        (SELECT 1 FROM fresh LEFT JOIN {schema}.qntx_attestations AS said USING (position)
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

# An append in one way there and back. What commits in between is a procedure, and so may not name
# its schemas in a SET: every table and function is named with its schema. What it calls looks for
# all else in the catalogue, where nobody can put a function of his own. In PL/pgSQL a statement
# has a snapshot of its own, so the head is read behind the lock, as it must be. Plans are kept,
# since making them costs as much as what they plan; and made while a table is small they would
# read all of it for ever, but for `enable_seqscan`.
#
# `qntx_waiting` finds what waits: whole transactions, at most some ten thousand rows. Whoever took
# in all that he saw remembers in his session up to which transaction all is settled, and does not
# look there again: dead rows that somebody's old snapshot keeps would be waded through each time.
#
# `qntx_move` is the one statement from inbox to log, so exactly once. Whole transactions, ordered
# by each one's *last* number: by number alone they interleave, by their first an effect precedes
# its cause, since who has read a commit draws later numbers.
#
# `qntx_take_in` moves all that waits, or answers false where a host must do it: to set an id aside
# that the log has by now, or to project inline.
#
# `qntx_append`: whoever finds the lock free appends behind the head, commits and looks again.
# Whoever finds it taken commits to the inbox and queues for the lock. When it is his, a holder
# before him has moved his rows with those of all who waited, or he moves them. He answers the head
# before his first, or -1 (a host must see to what is in the inbox) or -2 (nothing is done, and a
# host must): the latter two also where somebody else's are under these ids. `qntx_settle` queues
# in the same way for what a caller's transaction has left.
APPENDING_POSTGRESQL = (
    """
    CREATE FUNCTION qntx_lock() RETURNS bigint LANGUAGE sql STABLE AS $$
      SELECT (x'716E7478'::bigint << 32) + '{literal}.qntx_attestations'::regclass::oid::bigint
    $$
    """,
    """
    CREATE FUNCTION qntx_settled() RETURNS text LANGUAGE sql STABLE AS $$
      SELECT 'qntx.settled_'::text || '{literal}.qntx_attestations'::regclass::oid::text
    $$
    """,
    """
    CREATE FUNCTION qntx_unsettled() RETURNS xid8 LANGUAGE sql STABLE AS $$
      SELECT coalesce(nullif(current_setting({schema}.qntx_settled(), true), ''), '0')::xid8
    $$
    """,
    """
    CREATE FUNCTION qntx_any_waits() RETURNS boolean LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
    DECLARE
      bound xid8 := {schema}.qntx_unsettled(); any_waits boolean; settled text;
    BEGIN
      SELECT EXISTS (SELECT FROM {schema}.qntx_inbox WHERE tx >= bound),
        pg_snapshot_xmin(pg_current_snapshot())::text
      INTO any_waits, settled;
      IF NOT any_waits THEN
        PERFORM set_config({schema}.qntx_settled(), settled, false);
      END IF;
      RETURN any_waits;
    END $$
    """,
    """
    CREATE FUNCTION qntx_waiting(
      OUT txs xid8[], OUT contexts text[], OUT has_twins boolean, OUT settled text
    ) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
    DECLARE
      bound xid8 := {schema}.qntx_unsettled(); size bigint;
    BEGIN
      SELECT array_agg(DISTINCT waits.tx), array_agg(DISTINCT waits.context), count(*),
        coalesce(bool_or(waits.is_twin), false), pg_snapshot_xmin(pg_current_snapshot())::text
      INTO txs, contexts, size, has_twins, settled
      FROM (
        SELECT tx, context,
          (SELECT true FROM {schema}.qntx_attestations AS said WHERE said.id = inbox.id LIMIT 1)
            AS is_twin
        FROM {schema}.qntx_inbox AS inbox WHERE tx >= bound LIMIT 10001
      ) AS waits;
      IF size > 10000 THEN
        SELECT array_agg(whole.tx) INTO txs
        FROM (
          SELECT tx, sum(count(*)) OVER (ORDER BY max(number)) - count(*) AS before
          FROM {schema}.qntx_inbox WHERE tx >= bound GROUP BY tx
        ) AS whole
        WHERE whole.before < 10000;
        SELECT array_agg(DISTINCT inbox.context), coalesce(bool_or(
          (SELECT true FROM {schema}.qntx_attestations AS said WHERE said.id = inbox.id LIMIT 1)
        ), false)
        INTO contexts, has_twins FROM {schema}.qntx_inbox AS inbox WHERE inbox.tx = ANY(txs);
        settled := NULL;
      END IF;
    END $$
    """,
    """
    CREATE FUNCTION qntx_move(txs xid8[], head bigint, recorded bigint, settled text)
    RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
    DECLARE
      size bigint;
    BEGIN
      WITH moved AS (
        DELETE FROM {schema}.qntx_inbox WHERE tx = ANY(txs) RETURNING *
      ), whole AS (
        SELECT *, max(number) OVER (PARTITION BY tx) AS last FROM moved
      )
      INSERT INTO {schema}.qntx_attestations (position, recorded_at, id, context, entity, actor,
        slice, depth, schema_version, caused_by, correlation_id, tags, payload)
      SELECT head + row_number() OVER (ORDER BY last, number), recorded, id, context, entity, actor,
        slice, depth, schema_version, caused_by, correlation_id, tags, payload
      FROM whole;
      GET DIAGNOSTICS size = ROW_COUNT;
      IF settled IS NOT NULL THEN
        PERFORM set_config({schema}.qntx_settled(), settled, false);
      END IF;
      RETURN size;
    END $$
    """,
    """
    CREATE FUNCTION qntx_head(OUT head bigint, OUT recorded bigint) LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
    BEGIN
      SELECT position, recorded_at INTO head, recorded
      FROM {schema}.qntx_attestations ORDER BY position DESC LIMIT 1;
      head := coalesce(head, 0);
      recorded := greatest(recorded, floor(extract(epoch FROM clock_timestamp()) * 1000000.0));
    END $$
    """,
    """
    CREATE FUNCTION qntx_take_in(inline text[]) RETURNS boolean LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
    DECLARE
      waits record; now record;
    BEGIN
      WHILE {schema}.qntx_any_waits() LOOP
        SELECT * INTO waits FROM {schema}.qntx_waiting();
        IF waits.has_twins OR waits.contexts && inline THEN
          RETURN false;
        END IF;
        SELECT * INTO now FROM {schema}.qntx_head();
        PERFORM {schema}.qntx_move(waits.txs, now.head, now.recorded, waits.settled);
        EXIT WHEN waits.settled IS NOT NULL;
      END LOOP;
      RETURN true;
    END $$
    """,
    """
    CREATE FUNCTION qntx_sequence(
      inline text[],
      ids text[], contexts text[], entities text[], actors text[], slices int[], depths int[],
      schema_versions int[], causes text[], correlation_ids text[], tags text[], payloads text[]
    ) RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
    DECLARE
      head bigint; recorded bigint;
    BEGIN
      IF EXISTS (SELECT FROM {schema}.qntx_inbox WHERE tx >= {schema}.qntx_unsettled())
        AND NOT {schema}.qntx_take_in(inline)
      THEN
        RETURN -2;
      END IF;
      SELECT position, recorded_at INTO head, recorded
      FROM {schema}.qntx_attestations ORDER BY position DESC LIMIT 1;
      head := coalesce(head, 0);
      recorded := greatest(recorded, floor(extract(epoch FROM clock_timestamp()) * 1000000.0));
      INSERT INTO {schema}.qntx_attestations (position, recorded_at, id, context, entity, actor,
        slice, depth, schema_version, caused_by, correlation_id, tags, payload)
      SELECT head + said.ordinal, recorded, said.id, said.context, said.entity, said.actor,
        said.slice, said.depth, said.schema_version, said.caused_by, said.correlation_id, said.tags,
        said.payload
      FROM unnest(ids, contexts, entities, actors, slices, depths, schema_versions, causes,
        correlation_ids, tags, payloads) WITH ORDINALITY AS said(id, context, entity, actor,
        slice, depth, schema_version, caused_by, correlation_id, tags, payload, ordinal);
      RETURN head;
    END $$
    """,
    """
    CREATE FUNCTION qntx_drop(
      ids text[], contexts text[], entities text[], actors text[], slices int[], depths int[],
      schema_versions int[], causes text[], correlation_ids text[], tags text[], payloads text[]
    ) RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
    BEGIN
      IF EXISTS (SELECT FROM {schema}.qntx_attestations WHERE id = ANY(ids)) THEN
        RETURN false;
      END IF;
      INSERT INTO {schema}.qntx_inbox (whole, id, context, entity, actor, slice, depth,
        schema_version, caused_by, correlation_id, tags, payload)
      SELECT true, said.id, said.context, said.entity, said.actor, said.slice, said.depth,
        said.schema_version, said.caused_by, said.correlation_id, said.tags, said.payload
      FROM unnest(ids, contexts, entities, actors, slices, depths, schema_versions, causes,
        correlation_ids, tags, payloads) WITH ORDINALITY AS said(id, context, entity, actor,
        slice, depth, schema_version, caused_by, correlation_id, tags, payload, ordinal)
      ORDER BY said.ordinal;
      RETURN true;
    END $$
    """,
    """
    CREATE FUNCTION qntx_join(
      inline text[],
      ids text[], contexts text[], entities text[], actors text[], schema_versions int[],
      all_tags text[], payloads text[]
    ) RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
    DECLARE
      size bigint; first bigint; last bigint;
    BEGIN
      IF NOT EXISTS (SELECT FROM {schema}.qntx_attestations WHERE id = ids[1]) THEN
        PERFORM {schema}.qntx_take_in(inline);
      END IF;
      SELECT count(*), min(there.position - said.ordinal), max(there.position - said.ordinal)
      INTO size, first, last
      FROM unnest(ids, contexts, entities, actors, schema_versions, all_tags, payloads)
        WITH ORDINALITY AS said(id, context, entity, actor, schema_version, tags, payload, ordinal)
      CROSS JOIN LATERAL (SELECT * FROM {schema}.qntx_attestations AS one
        WHERE one.id = said.id LIMIT 1) AS there
      WHERE there.context = said.context AND there.entity = said.entity
        AND there.actor = said.actor AND there.schema_version = said.schema_version
        AND there.payload = said.payload AND there.tags IS NOT DISTINCT FROM said.tags;
      RETURN CASE WHEN size = cardinality(ids) AND first = last THEN first ELSE -1 END;
    END $$
    """,
    """
    CREATE PROCEDURE qntx_pass(INOUT is_done boolean, inline text[]) LANGUAGE plpgsql AS $$
    BEGIN
      LOOP
        is_done := NOT {schema}.qntx_any_waits();
        IF is_done OR current_setting('transaction_isolation') <> 'read committed' THEN
          RETURN;
        END IF;
        is_done := NOT pg_try_advisory_xact_lock({schema}.qntx_lock());
        IF is_done THEN
          RETURN;
        END IF;
        is_done := {schema}.qntx_take_in(inline);
        COMMIT;
        IF NOT is_done THEN
          RETURN;
        END IF;
      END LOOP;
    END $$
    """,
    """
    CREATE FUNCTION qntx_waits(wanted text) RETURNS boolean LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
    BEGIN
      RETURN EXISTS (SELECT FROM {schema}.qntx_inbox WHERE id = wanted);
    END $$
    """,
    """
    CREATE PROCEDURE qntx_settle(
      INOUT is_done boolean, patience text, inline text[], wanted text
    ) LANGUAGE plpgsql AS $$
    BEGIN
      is_done := NOT {schema}.qntx_waits(wanted);
      IF is_done OR current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN;
      END IF;
      PERFORM set_config('lock_timeout', patience, true);
      PERFORM pg_advisory_xact_lock({schema}.qntx_lock());
      is_done := NOT {schema}.qntx_waits(wanted) OR {schema}.qntx_take_in(inline);
      COMMIT;
      IF is_done THEN
        CALL {schema}.qntx_pass(is_done, inline);
      END IF;
    END $$
    """,
    """
    CREATE PROCEDURE qntx_append(
      INOUT head bigint, INOUT is_done boolean, patience text, inline text[],
      ids text[], contexts text[], entities text[], actors text[], slices int[], depths int[],
      schema_versions int[], causes text[], correlation_ids text[], tags text[], payloads text[]
    ) LANGUAGE plpgsql AS $$
    BEGIN
      is_done := true;
      head := -2;
      IF current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN;
      END IF;
      IF pg_try_advisory_xact_lock({schema}.qntx_lock()) THEN
        head := {schema}.qntx_sequence(inline, ids, contexts, entities, actors, slices, depths,
          schema_versions, causes, correlation_ids, tags, payloads);
        IF head < 0 THEN
          RETURN;
        END IF;
      ELSE
        PERFORM set_config('lock_timeout', patience, true);
        IF NOT {schema}.qntx_drop(ids, contexts, entities, actors, slices, depths,
          schema_versions, causes, correlation_ids, tags, payloads)
        THEN
          RETURN;
        END IF;
        COMMIT;
        PERFORM set_config('lock_timeout', patience, true);
        -- Its own statement: together with what is read next, two passes would share a position.
        PERFORM pg_advisory_xact_lock({schema}.qntx_lock());
        head := {schema}.qntx_join(inline, ids, contexts, entities, actors, schema_versions, tags,
          payloads);
        COMMIT;
        -- Whoever has the lock by now looks again in his turn, and most often somebody has.
        IF NOT pg_try_advisory_xact_lock({schema}.qntx_lock()) THEN
          RETURN;
        END IF;
      END IF;
      COMMIT;
      CALL {schema}.qntx_pass(is_done, inline);
    END $$
    """,
)

# What indexes on payload paths hold: a number, or the beginning of a text, as text that sorts by
# code point as its values do (n and the bits of a float in their order, s, b), else null. A row of
# an index may have 2 704 bytes, so a text ends after 256 characters.
KEYS_POSTGRESQL = (
    """
    CREATE FUNCTION qntx_key(payload text, path text[]) RETURNS text LANGUAGE plpgsql
    IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    DECLARE
      found jsonb := payload::jsonb #> path; exact numeric; number float8; bits text;
    BEGIN
      CASE jsonb_typeof(found)
        WHEN 'string' THEN RETURN 's' || left(found #>> '{}', 256);
        WHEN 'boolean' THEN RETURN 'b' || (found #>> '{}');
        WHEN 'number' THEN
          exact := (found #>> '{}')::numeric;
          number := CASE
            WHEN abs(exact) <= 1.7976931348623157e308 THEN exact::text::float8
            WHEN exact > 0 THEN 'Infinity' ELSE '-Infinity' END;
          bits := encode(float8send(number + 0.0), 'hex');
          IF number < 0 THEN
            RETURN 'n' || translate(bits, '0123456789abcdef', 'fedcba9876543210');
          END IF;
          RETURN 'n' || translate(left(bits, 1), '01234567', '89abcdef') || substr(bits, 2);
        ELSE RETURN NULL;
      END CASE;
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
    literal = schema.replace("'", "''")
    written = (*GUARDS_POSTGRESQL, *APPENDING_POSTGRESQL, *KEYS_POSTGRESQL)
    return [one.replace("{schema}", schema).replace("{literal}", literal) for one in written]


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
    for column in ("entity", "context", "actor"):
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
    op.create_table(
        "qntx_digests",
        sa.Column("position", POSITION, primary_key=True, autoincrement=False),
        sa.Column("digest", WORDS, nullable=False),
    )
    epochs = op.create_table("qntx_epoch", sa.Column("epoch", WORDS, primary_key=True))
    op.bulk_insert(epochs, [{"epoch": str(uuid4())}])


def create_inbox() -> None:
    """Make the table where what is committed waits for its position."""
    op.create_table(
        "qntx_inbox",
        sa.Column("id", WORDS, primary_key=True),
        sa.Column("number", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("tx", sa.Text, nullable=False),
        sa.Column("whole", sa.Boolean, nullable=False),
        *said(),
    )
    op.execute(
        sa.text(
            "ALTER TABLE qntx_inbox ALTER tx TYPE xid8 USING tx::xid8, "
            "ALTER tx SET DEFAULT pg_current_xact_id()"
        )
    )
    op.create_index("qntx_inbox_tx", "qntx_inbox", ["tx"])


def create_projectors() -> None:
    """Make the tables of cursors, leases, failures, rebuilds and drifts."""
    op.create_table(
        "qntx_cursors",
        sa.Column("domain", WORDS, primary_key=True),
        sa.Column("first_slice", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("last_slice", sa.SmallInteger, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("derives_from", sa.BigInteger, nullable=False),
        sa.Column("tables", WORDS, nullable=False),
        sa.Column("paused_by", WORDS),
        sa.Column("paused_at", sa.BigInteger),
        sa.Column("pause_reason", WORDS),
        sa.Column("fingerprint", WORDS),
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
        sa.Column("first_slice", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("state", WORDS, nullable=False),
        sa.Column("cursor", sa.BigInteger, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("handler", WORDS, nullable=False),
        sa.Column("error", WORDS, nullable=False),
        sa.Column("traceback", WORDS, nullable=False),
        sa.Column("failed_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "qntx_parked",
        sa.Column("domain", WORDS, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("entity", WORDS, primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("handler", WORDS, nullable=False),
        sa.Column("error", WORDS, nullable=False),
    )
    op.create_table(
        "qntx_rebuilds",
        sa.Column("domain", WORDS, primary_key=True),
        sa.Column("holder", WORDS, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("fingerprint", WORDS),
        sa.Column("state", WORDS, nullable=False),
        sa.Column("target", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("looked_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "qntx_fills",
        sa.Column("domain", WORDS, primary_key=True),
        sa.Column("first_slice", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("last_slice", sa.SmallInteger, nullable=False),
        sa.Column("holder", WORDS, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("kept", WORDS),
    )
    op.create_table(
        "qntx_drifts",
        sa.Column("domain", WORDS, primary_key=True),
        sa.Column("entity", WORDS, primary_key=True),
        sa.Column("table", WORDS, primary_key=True),
        sa.Column("found_at", sa.BigInteger, nullable=False),
        sa.Column("detail", WORDS, nullable=False),
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
