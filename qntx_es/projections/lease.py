"""A time-limited right, kept in the database and measured by its clock.

Who holds the lease of a projector may move it; others stand by. A holder that dies lets it expire.
A lease is a courtesy that saves work: what keeps a late holder from committing is the comparison in
`cursor.advance`.
"""

from sqlalchemy import Connection, delete, or_
from sqlalchemy.dialects import postgresql, sqlite

from qntx_es.tables import leases


def lease_name(domain: str) -> str:
    """Return the name under which a domain's projector is leased."""
    return f"projector:{domain}"


def take_lease(
    connection: Connection, name: str, holder: str, *, now: int, microseconds: int
) -> bool:
    """Take or renew a lease until `now + microseconds`; False where another holds it."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    taken = dialect.insert(leases).values(name=name, holder=holder, expires_at=now + microseconds)
    free = or_(leases.c.holder == holder, leases.c.expires_at <= now)
    result = connection.execute(
        taken.on_conflict_do_update(
            index_elements=[leases.c.name],
            set_={"holder": taken.excluded.holder, "expires_at": taken.excluded.expires_at},
            where=free,
        ).returning(leases.c.name)
    )
    return result.first() is not None


def give_back(connection: Connection, name: str, holder: str) -> None:
    """Let the lease go, if it is still ours."""
    connection.execute(delete(leases).where(leases.c.name == name, leases.c.holder == holder))
