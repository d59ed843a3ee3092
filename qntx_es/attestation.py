"""What is said, and what the log holds of it. Nothing here does I/O.

An attestation is an actor's statement, in a context, about an entity, with a payload. Its payload
is kept as canonical JSON *text*: the text is the truth, equal on every database and every Python,
so that a replay reads what was written. What a database or a parser would change in silence (NaN
to null, a text cut at NUL, a repeated key) is refused here, by name, before any database is asked.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import blake2b, sha256
from typing import Any, ClassVar, Generic, Self, TypeAlias, cast
from unicodedata import category

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticSerializationError
from typing_extensions import TypeVar

from qntx_es.errors import (
    DuplicateKey,
    InvalidAttestation,
    InvalidId,
    InvalidPayload,
    InvalidText,
    InvalidTime,
    NotFinite,
    TooDeep,
    TooLarge,
    TooMany,
)

PAYLOAD_BYTES_MAX = 1 << 20
PAYLOAD_DEPTH_MAX = 64
NAME_CHARACTERS_MAX = 512
# Two names share an index row, and PostgreSQL's index rows end at 2 704 bytes.
NAME_BYTES_MAX = 1024
TAGS_MAX = 32
SLICES = 1024

Json: TypeAlias = Mapping[str, Any]
_encode = json.JSONEncoder(
    sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
).encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNREAD: Any = object()


class Payload(BaseModel):
    """The fields of one context, bound to it: `class Cloned(Payload, context="cloned")`.

    Fields a reader does not name are ignored, so a domain re-declares of another's payload only
    what it needs. A field with a default may be added at any time; whatever else changes is a new
    `schema_version`, with an upcaster from the one before (`Domain.upcast`).
    """

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")

    context: ClassVar[str] = ""
    schema_version: ClassVar[int] = 1

    def __init_subclass__(
        cls,
        *,
        context: str = "",
        schema_version: int = 1,
        **kwargs: Any,  # noqa: ANN401 - pydantic's
    ) -> None:
        super().__init_subclass__(**kwargs)
        if context:
            cls.context = checked_name(context, "context")
            cls.schema_version = _checked_number(schema_version, "schema_version", 1)


P_co = TypeVar("P_co", covariant=True, default=Any)
Other = TypeVar("Other")


class Attestation:
    """An actor's statement, in a context, about an entity, with a payload. Immutable.

    `tags` name what else it is about, at most 32; an Ax finds it by them as by its entity.
    `payload` is a mapping of JSON values or a `Payload`; `text` is its canonical form. Two
    attestations are the same statement when id and bytes agree. Raises `InvalidId`,
    `InvalidPayload` and its kin, or `TooLarge`.
    """

    __slots__ = (
        "actor",
        "caused_by",
        "context",
        "correlation_id",
        "depth",
        "entity",
        "id",
        "payload_class",
        "schema_version",
        "tags",
        "text",
    )

    actor: str
    caused_by: str | None
    context: str
    correlation_id: str | None
    depth: int
    entity: str
    id: str
    payload_class: type[Payload] | None
    schema_version: int
    tags: tuple[str, ...]
    text: str

    def __init__(  # noqa: PLR0913 - one keyword a column of the log
        self,
        *,
        context: str,
        entity: str,
        actor: str,
        payload: Json | Payload,
        id: str | None = None,  # noqa: A002 - the glossary's word
        schema_version: int = 1,
        caused_by: str | None = None,
        correlation_id: str | None = None,
        depth: int = 0,
        tags: Iterable[str] = (),
    ) -> None:
        put = object.__setattr__
        put(self, "context", checked_name(context, "context"))
        put(self, "entity", checked_name(entity, "entity"))
        put(self, "actor", checked_name(actor, "actor"))
        put(self, "id", new_id() if id is None else checked_name(id, "id"))
        put(self, "schema_version", _checked_number(schema_version, "schema_version", 1))
        put(self, "caused_by", _checked_or_none(caused_by, "caused_by"))
        put(self, "correlation_id", _checked_or_none(correlation_id, "correlation_id"))
        put(self, "depth", _checked_number(depth, "depth", 0))
        put(self, "tags", checked_tags(tags) if tags else ())
        if isinstance(payload, Payload):
            if payload.context not in ("", context):
                raise InvalidPayload(f"{payload!r} is a `{payload.context}`, not a `{context}`")
            put(self, "payload_class", type(payload))
            put(self, "text", text_of(payload))
        else:
            put(self, "payload_class", None)
            put(self, "text", canonical(payload))

    @property
    def payload(self) -> Json:
        """The payload's JSON values, decoded anew: changing them changes nothing."""
        return cast("Json", json.loads(self.text))

    @property
    def bytes(self) -> bytes:
        """What makes two statements the same, and nothing that the log adds."""
        parts = (self.context, self.actor, self.entity, str(self.schema_version), self.text)
        return "\x00".join((*parts, self.tags_text or "")).encode()

    @property
    def tags_text(self) -> str | None:
        """The tags as the log keeps them: a JSON array in the order given, None for none."""
        return _encode(self.tags) if self.tags else None

    def caused(self, *, id: str, by: str, correlation_id: str, depth: int) -> Self:  # noqa: A002
        """Return this statement as the one that follows from the attestation `by`."""
        copy = object.__new__(type(self))
        for name in self.__slots__:
            object.__setattr__(copy, name, getattr(self, name))
        object.__setattr__(copy, "id", id)
        object.__setattr__(copy, "caused_by", by)
        object.__setattr__(copy, "correlation_id", correlation_id)
        object.__setattr__(copy, "depth", depth)
        return copy

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, tuple(getattr(self, name) for name in self.__slots__)

    def __setattr__(self, name: str, value: object) -> None:
        message = f"an attestation cannot be changed: attest anew instead of setting {name}"
        raise AttributeError(message)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Attestation):
            return NotImplemented
        return self.id == other.id and self.bytes == other.bytes

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        said = f"{self.entity} is {self.context} by {self.actor}: {self.text[:120]}"
        return f"<Attestation {self.id} {said}>"


def _restored(*values: object) -> Attestation:
    copy = object.__new__(Attestation)
    for name, value in zip(Attestation.__slots__, values, strict=True):
        object.__setattr__(copy, name, value)
    return copy


RECORDED_COLUMNS = (
    "position",
    "id",
    "context",
    "actor",
    "entity",
    "payload",
    "schema_version",
    "recorded_at",
    "caused_by",
    "correlation_id",
    "depth",
    "tags",
    "entity_version",
)
RecordedRow: TypeAlias = tuple[
    int, str, str, str, str, str, int, int, str | None, str | None, int, str | None, int | None
]


class Recorded(Generic[P_co]):
    """An attestation as the log holds it: with its position, and decoded only where it is asked.

    Made of a row of `RECORDED_COLUMNS` and a function from the payload's text to its value.
    """

    __slots__ = ("_decode", "_payload", "_row")

    def __init__(self, row: RecordedRow, decode: Callable[[str], P_co]) -> None:
        self._row = row
        self._decode = decode
        self._payload: Any = _UNREAD

    @property
    def position(self) -> int:
        """Where it stands in the log: 1 is the first."""
        return self._row[0]

    @property
    def id(self) -> str:
        """What names this statement, for ever."""
        return self._row[1]

    @property
    def context(self) -> str:
        """What kind of statement it is."""
        return self._row[2]

    @property
    def actor(self) -> str:
        """Who says so."""
        return self._row[3]

    @property
    def entity(self) -> str:
        """Whom it is about."""
        return self._row[4]

    @property
    def payload(self) -> P_co:
        """What is said: a `Payload` of the class asked for, or else a mapping.

        Raises `InvalidPayload` where the stored text does not fit the class.
        """
        payload: P_co = self._payload
        if payload is not _UNREAD:
            return payload
        try:
            payload = self._decode(self._row[5])
        except ValidationError as error:
            raise InvalidPayload(
                f"{self.context} at position {self.position}: {problems_of(error)}"
            ) from error
        self._payload = payload
        return payload

    def read_by(self, decode: Callable[[str], Other]) -> "Recorded[Other]":
        """Return the same with its payload read in another way."""
        return Recorded(self._row, decode)

    @property
    def text(self) -> str:
        """The payload as canonical JSON, as it is stored."""
        return self._row[5]

    @property
    def schema_version(self) -> int:
        """Which version of its payload's class wrote it."""
        return self._row[6]

    @property
    def recorded_at(self) -> datetime:
        """When the log took it, by the database's clock, in UTC; never goes back."""
        return instant(self._row[7])

    @property
    def caused_by(self) -> str | None:
        """The id of the attestation it follows from."""
        return self._row[8]

    @property
    def correlation_id(self) -> str | None:
        """What all that follows from one first cause has in common; None for a first cause."""
        return self._row[9]

    @property
    def depth(self) -> int:
        """How many derivations lie between the first cause and this one."""
        return self._row[10]

    @property
    def tags(self) -> tuple[str, ...]:
        """What else it is about, in the order given."""
        tags = self._row[11]
        return () if tags is None else tuple(json.loads(tags))

    @property
    def entity_version(self) -> int | None:
        """Its number among those of its entity; None where none was asked for."""
        return self._row[12]

    @property
    def row(self) -> RecordedRow:
        """The row of the log, in the order of `RECORDED_COLUMNS`."""
        return self._row

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recorded) and self._row == other._row

    def __hash__(self) -> int:
        return hash(self._row)

    def __repr__(self) -> str:
        said = f"{self.entity} is {self.context} by {self.actor}: {self.text[:120]}"
        return f"<Recorded {self.position} {said}>"


def decode_mapping(text: str) -> Json:
    """Read a stored payload as plain JSON values."""
    return cast("Json", json.loads(text))


def parse_payload(text: str | bytes) -> Json:
    """Read JSON text that people wrote, refusing what a lenient parser would change in silence."""
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            raise InvalidText(f"the payload is not UTF-8 at byte {error.start}") from error
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise InvalidPayload(
            f"the payload is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from error
    except ValueError as error:  # an integer of more digits than Python will read
        raise InvalidPayload(f"a number cannot be read: {error}") from error
    except RecursionError as error:
        raise TooDeep from error
    if not isinstance(value, dict):
        raise InvalidPayload(f"a payload is a JSON object, not {text.strip()[:40]!r}")
    return value


def text_of(payload: Payload) -> str:
    """Write a `Payload` as the one text that stands for it.

    Raises `InvalidPayload` and its kin where it holds what JSON cannot say.
    """
    try:
        values = payload.model_dump(mode="json")
    except (PydanticSerializationError, RecursionError, ValueError) as error:
        raise InvalidPayload(f"{type(payload).__name__} cannot be written: {error}") from error
    text = canonical(values)
    if _may_lose_keys(type(payload)):
        parse_payload(payload.model_dump_json())
    return text


@cache
def _may_lose_keys(payload: type[Payload]) -> bool:
    # Keys of other kinds become texts: 1 and "1" would meet in one.
    annotations = [repr(one.annotation).lower() for one in payload.model_fields.values()]
    return any(kind in one for one in annotations for kind in ("any", "dict", "mapping", "object"))


def canonical(payload: Json) -> str:
    """Write a payload, a JSON object, as the one text that stands for it."""
    if not isinstance(payload, Mapping):
        raise InvalidPayload(f"a payload is a JSON object, not {type(payload).__name__}")
    return canonical_json(dict(payload))


def canonical_json(value: object) -> str:
    """Write a JSON value as the one text that stands for it.

    Keys sorted by code point, UTF-8, shortest floats, no white space (as RFC 8785, but integers
    stay exact at any size). Raises `InvalidPayload` and its kin, or `TooLarge`.
    """
    _check(value, "$", 1)
    try:
        text = _encode(value)
    except ValueError as error:  # an integer of more digits than Python will write
        raise InvalidPayload(f"a number cannot be written: {error}") from error
    if len(text) > PAYLOAD_BYTES_MAX or len(text.encode()) > PAYLOAD_BYTES_MAX:
        raise TooLarge
    return text


def _check(value: object, path: str, depth: int) -> None:
    if value is None or isinstance(value, int):
        return
    if isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124 - NaN
            raise NotFinite(f"{path} is {value}, which JSON cannot say. Leave it out, or use null")
    elif isinstance(value, dict):
        _check_depth(path, depth)
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidPayload(f"{path} has a key that is not a text: {key!r}")
            _check_text(key, f"a key of {path}")
            _check(item, f"{path}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        _check_depth(path, depth)
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]", depth + 1)
    else:
        raise InvalidPayload(f"{path} is a {type(value).__name__}, which is no JSON value")


def _check_depth(path: str, depth: int) -> None:
    if depth > PAYLOAD_DEPTH_MAX:
        raise TooDeep(f"{path[:80]}… is nested deeper than {PAYLOAD_DEPTH_MAX} levels")


def _check_text(text: str, where: str) -> None:
    if "\x00" in text:
        raise InvalidText(f"{where} holds NUL, at which SQLite would cut it. Remove or escape it")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidText(f"{where} holds a lone surrogate. Remove or escape it") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DuplicateKey(f"the key {twice!r} stands twice in one object. Name it once")
    return read


def _no_constant(name: str) -> None:
    raise NotFinite(f"the payload holds {name}, which JSON cannot say. Leave it out, or use null")


def checked_name(text: str, what: str) -> str:
    """Return an id, context, actor or entity as it is, or raise `InvalidId`."""
    if not isinstance(text, str):
        raise InvalidId(f"{what} is a {type(text).__name__}, not a text")
    if text.isascii() and text.isprintable() and 0 < len(text) <= NAME_CHARACTERS_MAX:
        return text
    if not text:
        raise InvalidId(f"{what} is empty")
    if len(text) > NAME_CHARACTERS_MAX:
        raise InvalidId(f"{what} is longer than {NAME_CHARACTERS_MAX} characters")
    if any(category(character) in ("Cc", "Cs") for character in text):
        raise InvalidId(f"{what} {text!r} holds a control character or a lone surrogate")
    if len(text.encode()) > NAME_BYTES_MAX:
        raise InvalidId(f"{what} is longer than {NAME_BYTES_MAX} bytes of UTF-8")
    return text


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags in their order, each once. Raises `InvalidId`, `TooMany`."""
    if isinstance(tags, str):
        raise InvalidId(f"tags is the text {tags!r}, not a tuple of texts")
    checked = tuple(dict.fromkeys(checked_name(tag, "tag") for tag in tags))
    if len(checked) > TAGS_MAX:
        raise TooMany(f"an attestation has {len(checked)} tags. At most {TAGS_MAX}")
    return checked


def _checked_or_none(text: str | None, what: str) -> str | None:
    return None if text is None else checked_name(text, what)


def _checked_number(number: int, what: str, least: int) -> int:
    if type(number) is not int or not least <= number < 1 << 31:
        raise InvalidAttestation(f"{what} is {number!r}, not an integer of {least} to 2³¹ - 1")
    return number


def problems_of(error: ValidationError) -> str:
    """Say which fields do not fit, and why, in one line."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'payload'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False)
    )


def new_id() -> str:
    """Return a UUIDv7: the time in front, so that new ids are neighbours in their index.

    RFC 9562, method 3: twelve bits of the fraction of the millisecond, 62 of chance.
    """
    nanoseconds = time.time_ns()
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    chance = int.from_bytes(os.urandom(8)) >> 2
    return _uuid(milliseconds, 0x7000 | (rest * 4096 // 1_000_000), chance)


def computed_id(*parts: str, at: datetime | None = None) -> str:
    """Return the id that these parts, and nothing else, determine: a UUIDv8 ordered by `at`.

    Two computations of the same thing, on any host, at any time, meet in one id.
    """
    if at is None:
        return _hashed_id(0, parts)
    return _hashed_id(max(0, microseconds(at)) // 1000, parts)


def derived_id(source_id: str, *parts: str) -> str:
    """Return the computed id that stands beside its source: the source's time, then the hash."""
    return _hashed_id(milliseconds_of(source_id), (source_id, *parts))


def _hashed_id(milliseconds: int, parts: tuple[str, ...]) -> str:
    try:
        spelt = _encode(parts).encode()
    except UnicodeEncodeError as error:
        raise InvalidText(f"an id cannot be computed of {parts!r}") from error
    hashed = int.from_bytes(sha256(spelt).digest()[:10])
    return _uuid(milliseconds, 0x8000 | (hashed >> 62) & 0xFFF, hashed & ((1 << 62) - 1))


def _uuid(milliseconds: int, third: int, chance: int) -> str:
    clipped = milliseconds & ((1 << 48) - 1)
    text = f"{clipped << 80 | third << 64 | 1 << 63 | chance:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def milliseconds_of(attestation_id: str) -> int:
    """Return the time in an id, in milliseconds since 1970; 0 where it has none."""
    is_timed = len(attestation_id) == 36 and attestation_id[14] in "78"  # noqa: PLR2004 - a UUID
    if not is_timed:
        return 0
    try:
        return int(attestation_id[:8] + attestation_id[9:13], 16)
    except ValueError:
        return 0


def slice_of(entity: str) -> int:
    """Return the slice an entity belongs to, for ever: blake2b of its UTF-8, 8 bytes, mod 1024."""
    return int.from_bytes(blake2b(entity.encode(), digest_size=8).digest()) % SLICES


def microseconds(at: datetime) -> int:
    """Return an instant as microseconds since 1970 in UTC, which is how the log keeps it."""
    if at.tzinfo is None:
        raise InvalidTime(f"{at} has no zone, so it names no instant. Give it one")
    return (at - _EPOCH) // timedelta(microseconds=1)


def instant(since_epoch: int) -> datetime:
    """Return the instant that lies so many microseconds after 1970 in UTC."""
    return _EPOCH + timedelta(microseconds=since_epoch)
