"""Which statements led to one, back to the first cause.

Read only where a chain has come to its end, for whoever has to find out what feeds itself.
"""

from sqlalchemy import Connection, select

from qntx_es.attestation import Payload, Recorded
from qntx_es.tables import attestations


def chain_to(source: Recorded[Payload], connection: Connection) -> list[tuple[int, str]]:
    """Return position and context of all that led to an attestation, and of itself, in order.

    It begins with what nothing in the log has caused.
    """
    said = attestations.c
    chain = [(source.position, source.context)]
    cause = source.caused_by
    for _ in range(source.depth):
        asked = select(said.position, said.context, said.caused_by).where(said.id == cause)
        row = connection.execute(asked).one_or_none()
        if row is None:
            break
        chain.append((row.position, row.context))
        cause = row.caused_by
    return chain[::-1]
