"""An application's own alembic goes on as if nobody else had tables in its database."""

from contextlib import closing
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, text

from qntx_es import Domain, Host
from qntx_es.database import include_name


def differences(url: str, host: Host, include: Any) -> list[Any]:  # noqa: ANN401 - alembic's own shape
    """Return what an application's alembic would do, to whom one table is missing."""
    wanted = MetaData()
    Table("orders", wanted, Column("id", Integer, primary_key=True))
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    host.upgrade()
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": include})
        found = compare_metadata(context, wanted)
    engine.dispose()
    return [(one[0], one[1].name) for one in found if isinstance(one, tuple)]


# Alembic reads the columns of tables that it then passes over, and says which type it did not know.
@pytest.mark.filterwarnings("ignore:Did not recognize type 'xid8'")
@pytest.mark.autogenerate
def test_an_applications_alembic_sees_none_of_our_tables(url: str) -> None:
    """It makes what its own code has, and drops neither the framework's tables nor read models."""
    domain = Domain("ledger")
    domain.table("counts", Column("entity", String, primary_key=True))
    with closing(Host(url, [domain])) as host:
        host.upgrade()
        with host.database.write() as connection:
            connection.execute(text("CREATE TABLE ledger_counts__g7 (entity text PRIMARY KEY)"))

        assert differences(url, host, host.include_name) == [("add_table", "orders")]
        # Who has no host at hand has the framework's out of sight, and sees read models.
        alone = differences(url, host, include_name)
        assert {name for _, name in alone} == {"orders", "ledger_counts", "ledger_counts__g7"}
