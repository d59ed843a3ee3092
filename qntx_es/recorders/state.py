"""The bytes that the library records, as payloads that people, Ax and domains can read.

State that is the canonical JSON text of an object is the payload itself. Anything else (what is
encrypted, compressed, or written by another transcoder) is base64 text in a payload of one
field. Both ways back give the very bytes, so nothing that the library reads has changed.
"""

import json
from base64 import b64decode, b64encode
from typing import Any

from eventsourcing.dcb.api import DCBEvent
from eventsourcing.dcb.domain import Decision, Tagged
from eventsourcing.dcb.persistence import DCBMapper
from eventsourcing.persistence import (
    DatetimeAsISO,
    DecimalAsStr,
    JSONTranscoder,
    ProgrammingError,
    UUIDAsHex,
)
from eventsourcing.utils import get_topic, resolve_topic

from qntx_es.attestation import Json, canonical, parse_payload
from qntx_es.domain import RESERVED
from qntx_es.errors import InvalidAttestation

FIELD = "base64"


def payload_of(state: bytes) -> Json:
    """Return the payload that stands for these bytes and no others."""
    payload = _read(state)
    # What looks like bytes in base64 is written as such, or it would be read as something else.
    if payload is None or set(payload) == {FIELD}:
        return {FIELD: b64encode(state).decode()}
    return payload


def _read(state: bytes) -> Json | None:
    """Read the payload of which these bytes are the canonical text, if they are."""
    try:
        payload = parse_payload(state)
        return payload if canonical(payload).encode() == state else None
    except InvalidAttestation:
        return None


def state_of(text: str) -> bytes:
    """Return the bytes that a payload, given as its canonical text, stands for."""
    if text.startswith(f'{{"{FIELD}":'):
        payload = json.loads(text)
        if set(payload) == {FIELD}:
            return b64decode(payload[FIELD])
    return text.encode()


def context_of(topic: str) -> str:
    """Return the context of what has this topic (or DCB type): the same name, letter for letter.

    Give a class a `TOPIC`, and register it, for a context of your own that outlives its module.
    Raises the library's `ProgrammingError` for a name that the framework keeps for itself.
    """
    if topic.startswith(RESERVED):
        raise ProgrammingError(
            f"the topic `{topic}` would be a context of the framework's own: "
            "give the class another TOPIC"
        )
    return topic


class CanonicalTranscoder(JSONTranscoder):
    """The library's JSON, with sorted keys: the text that our log keeps as it is."""

    def __init__(self) -> None:
        super().__init__()
        self._sorted = json.JSONEncoder(
            default=self._encode_obj, separators=(",", ":"), ensure_ascii=False, sort_keys=True
        )

    def encode(self, obj: Any) -> bytes:  # noqa: ANN401 - the library's signature
        """Encode as canonical JSON, or as the library does where keys are of several types."""
        try:
            return self._sorted.encode(obj).encode()
        except TypeError:
            return super().encode(obj)


class JSONMapper(DCBMapper[Decision]):
    """Maps decisions to JSON that domains can read: `MAPPER_TOPIC=qntx_es.recorders:JSONMapper`.

    A decision is made again by calling its class with its fields, so a dataclass or a struct
    will do. Values may be JSON's own, UUID, Decimal and datetime, and what a subclass registers
    with its `transcoder`.
    """

    def __init__(self) -> None:
        self.transcoder = CanonicalTranscoder()
        for transcoding in (UUIDAsHex(), DecimalAsStr(), DatetimeAsISO()):
            self.transcoder.register(transcoding)

    def to_dcb_event(self, event: Tagged[Decision]) -> DCBEvent:
        """Write the fields of a decision."""
        fields = event.decision.as_dict()
        topic = get_topic(type(event.decision))
        return DCBEvent(type=topic, data=self.transcoder.encode(fields), tags=event.tags)

    def to_domain_event(self, event: DCBEvent) -> Tagged[Decision]:
        """Make the decision again."""
        made = resolve_topic(event.type)(**self.transcoder.decode(event.data))
        return Tagged(tags=event.tags, decision=made)
