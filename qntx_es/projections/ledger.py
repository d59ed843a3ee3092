"""What was decided about projectors, as attestations.

Each is about a projector, so its entity is the domain's name. The framework says them, for itself
or for a person, and each is appended in the very transaction in which it takes hold.
"""

from qntx_es.attestation import Payload

SYSTEM = "qntx@system"


class Paused(Payload, context="qntx.paused"):
    """A projector, the entity, is to stand still on every host until it is resumed."""

    reason: str | None


class Resumed(Payload, context="qntx.resumed"):
    """A projector that was paused goes on from where it stands."""
