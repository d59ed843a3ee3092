"""Run the framework's revisions on the connection that `Database.upgrade` hands over.

There is no URL here and no second transaction: whoever upgrades holds the lock and commits.
"""

from alembic import context

from qntx_es import faults
from qntx_es.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    on_version_apply=lambda **_: faults.point("upgrade.in_revision"),
)
with context.begin_transaction():
    context.run_migrations()
