"""The framework's own tables, all `qntx_*`; a domain's tables are made by its host, not here.

The first Alembic revision makes exactly these, which a test holds against the databases. Texts
are compared by code point on both databases, so that an order never depends on a locale. Instants
are microseconds since 1970 in UTC: equal, exact and ordered on both.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    FetchedValue,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import UserDefinedType

REVISION = "0001"
VERSION_TABLE = "qntx_alembic_version"

metadata = MetaData()

Words = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
# SQLite makes INTEGER, and only INTEGER, the key of the row itself.
Position = BigInteger().with_variant(Integer(), "sqlite")

# Few attestations have a version, so few have a place in that index.
IS_NUMBERED = text("entity_version IS NOT NULL")


class TransactionId(UserDefinedType[int]):
    """PostgreSQL's xid8: a transaction's number, never reused."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Name the type as PostgreSQL does."""
        return "xid8"


def _said() -> list[Column[object]]:
    return [
        Column("context", Words, nullable=False),
        Column("entity", Words, nullable=False),
        Column("actor", Words, nullable=False),
        Column("slice", SmallInteger, nullable=False),
        Column("depth", Integer, nullable=False),
        Column("schema_version", Integer, nullable=False),
        Column("caused_by", Words),
        Column("correlation_id", Words),
        Column("tags", Words),
        Column("payload", Words, nullable=False),
    ]


# The payload stands last: a scan that skips a row need not follow it to its overflow pages.
attestations = Table(
    "qntx_attestations",
    metadata,
    Column("position", Position, primary_key=True, autoincrement=False),
    Column("id", Words, nullable=False, unique=True),
    Column("recorded_at", BigInteger, nullable=False),
    Column("entity_version", Integer),
    *_said(),
    Index("qntx_attestations_entity", "entity", "position"),
    Index("qntx_attestations_context", "context", "position"),
    Index("qntx_attestations_actor", "actor", "position"),
    Index(
        "qntx_attestations_version",
        "entity",
        "entity_version",
        unique=True,
        sqlite_where=IS_NUMBERED,
        postgresql_where=IS_NUMBERED,
    ),
)

# What the tags of the log's rows say, one row a tag: the database itself writes it, by trigger.
tags = Table(
    "qntx_tags",
    metadata,
    Column("tag", Words, primary_key=True),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

# One row: which log this is, wherever its database is copied or restored to.
epochs = Table(
    "qntx_epoch",
    metadata,
    Column("epoch", Words, primary_key=True),
)

# The digest of the log at every 10 000th position, so that a certificate need not read all of it.
digests = Table(
    "qntx_digests",
    metadata,
    Column("position", Position, primary_key=True, autoincrement=False),
    Column("digest", Words, nullable=False),
)

# PostgreSQL only: what is committed there has no position yet. SQLite has one writer and no need.
inbox = Table(
    "qntx_inbox",
    metadata,
    Column("id", Words, primary_key=True),
    Column("number", BigInteger, Identity(always=True), nullable=False),
    Column("tx", TransactionId, FetchedValue(), nullable=False),
    Column("whole", Boolean, nullable=False),
    *_said(),
    Index("qntx_inbox_tx", "tx"),
    info={"only_on": "postgresql"},
)

# One row for each range of slices that is projected by itself; nearly always that is one.
cursors = Table(
    "qntx_cursors",
    metadata,
    Column("domain", Words, primary_key=True),
    Column("first_slice", SmallInteger, primary_key=True, autoincrement=False),
    Column("last_slice", SmallInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("derives_from", BigInteger, nullable=False),
    Column("tables", Words, nullable=False),
    Column("paused_by", Words),
    Column("paused_at", BigInteger),
    Column("pause_reason", Words),
    Column("fingerprint", Words),
)

leases = Table(
    "qntx_leases",
    metadata,
    Column("name", Words, primary_key=True),
    Column("holder", Words, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)

failures = Table(
    "qntx_failures",
    metadata,
    Column("domain", Words, primary_key=True),
    Column("first_slice", SmallInteger, primary_key=True, autoincrement=False),
    Column("state", Words, nullable=False),
    Column("cursor", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("handler", Words, nullable=False),
    Column("error", Words, nullable=False),
    Column("traceback", Words, nullable=False),
    Column("failed_at", BigInteger, nullable=False),
)

# Whose attestations wait, from which position on, since a handler failed there.
parked = Table(
    "qntx_parked",
    metadata,
    Column("domain", Words, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("entity", Words, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("handler", Words, nullable=False),
    Column("error", Words, nullable=False),
)

rebuilds = Table(
    "qntx_rebuilds",
    metadata,
    Column("domain", Words, primary_key=True),
    Column("holder", Words, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("fingerprint", Words),
    Column("state", Words, nullable=False),
    Column("target", BigInteger, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("looked_at", BigInteger, nullable=False),
)

# How far the fresh tables of a rebuild are, by range, and what has to be known to go on from there.
fills = Table(
    "qntx_fills",
    metadata,
    Column("domain", Words, primary_key=True),
    Column("first_slice", SmallInteger, primary_key=True, autoincrement=False),
    Column("last_slice", SmallInteger, nullable=False),
    Column("holder", Words, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("kept", Words),
)

# Where the scrubber found rows of an entity that are not what the log makes of it.
drifts = Table(
    "qntx_drifts",
    metadata,
    Column("domain", Words, primary_key=True),
    Column("entity", Words, primary_key=True),
    Column("table", Words, primary_key=True),
    Column("found_at", BigInteger, nullable=False),
    Column("detail", Words, nullable=False),
)

# How far a recorder of an eventsourcing application has followed another application.
tracking = Table(
    "qntx_tracking",
    metadata,
    Column("recorder", Words, primary_key=True),
    Column("application", Words, primary_key=True),
    Column("position", BigInteger, nullable=False),
)

# What such an application keeps to be faster, and could compute again: never in the log.
snapshots = Table(
    "qntx_snapshots",
    metadata,
    Column("recorder", Words, primary_key=True),
    Column("purpose", Words, primary_key=True),
    Column("entity", Words, primary_key=True),
    Column("entity_version", BigInteger, primary_key=True, autoincrement=False),
    Column("context", Words, nullable=False),
    Column("state", LargeBinary, nullable=False),
)
