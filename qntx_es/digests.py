"""The digest of the log: one number for all that it holds up to a position, and for its order.

An attestation is spelt as one canonical line of every stored column (the slice is computed from
the entity, and the epoch names a log without being in it), and

    digest(0) = 32 zero bytes        digest(p) = SHA-256(digest(p - 1) || line(p))

So one changed byte changes the digest there and ever after, two databases that hold the same log
agree on it, and it goes on from any position whose digest is known.
"""

from dataclasses import dataclass
from hashlib import sha256
from json.encoder import encode_basestring as quoted  # as canonical JSON has texts

from qntx_es.attestation import RecordedRow, instant
from qntx_es.errors import CorruptAttestation

CHECK_DIGITS = 16


@dataclass(frozen=True, slots=True)
class LogDigest:
    """What the log holds up to `position`, as one number of 64 hexadecimal digits."""

    position: int
    value: str


EMPTY = LogDigest(0, "0" * 64)


class DigestChain:
    """The digest as it grows: from a known one on, row by row."""

    __slots__ = ("_value", "position")

    def __init__(self, start: LogDigest = EMPTY) -> None:
        self.position = start.position
        self._value = bytes.fromhex(start.value)

    def add(self, row: RecordedRow) -> str:
        """Take in the next row, and return its line with a `check`: the digest's first digits.

        Raises `CorruptAttestation` where another position follows.
        """
        if row[0] != self.position + 1:
            raise CorruptAttestation(self.position + 1)
        first, rest = _line_of(row)
        self._value = sha256(self._value + f"{first}{rest}".encode()).digest()
        self.position = row[0]
        return f'{first}"check":"{self.check}",{rest}'

    @property
    def check(self) -> str:
        """The first digits, by which a line is known to be wrong at that very line."""
        return self._value[: CHECK_DIGITS // 2].hex()

    @property
    def digest(self) -> LogDigest:
        """The digest of all that was taken in."""
        return LogDigest(self.position, self._value.hex())


def _line_of(row: RecordedRow) -> tuple[str, str]:
    """Spell a row as canonical JSON, in two parts: `check` would stand in between.

    Payload and tags are canonical as they are stored. Composed by hand, since a million rows are.
    """
    (
        position,
        attestation_id,
        context,
        actor,
        entity,
        payload,
        schema_version,
        recorded_at,
        caused_by,
        correlation_id,
        depth,
        tags,
        entity_version,
    ) = row
    at = instant(recorded_at).isoformat(timespec="microseconds").removesuffix("+00:00")
    first = f'{{"actor":{quoted(actor)},"caused_by":{_quoted(caused_by)},'
    rest = (
        f'"context":{quoted(context)},"correlation_id":{_quoted(correlation_id)},'
        f'"depth":{depth},"entity":{quoted(entity)},'
        f'"entity_version":{"null" if entity_version is None else entity_version},'
        f'"id":{quoted(attestation_id)},"payload":{payload},"position":{position},'
        f'"recorded_at":"{at}Z","schema_version":{schema_version},"tags":{tags or "[]"}}}'
    )
    return first, rest


def _quoted(text: str | None) -> str:
    return "null" if text is None else quoted(text)
