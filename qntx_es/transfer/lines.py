"""The lines of an export, and reading them with no trust at all.

    {"check":…,"epoch":…,"format":"qntx-es log","head":N,"version":1}
    {"actor":…,"caused_by":…,"check":…,"context":…, …,"tags":[…]}      N of them, by position
    {"count":N,"digest":…}

Every line is canonical JSON, and nothing in it depends on when or where it was written. A `check`
is the first digits of the log digest at that position (of the header: of its own), so what was
altered is found at its very line; a file that does not end with its trailer was cut off. A reader
writes each line anew from what it understood of it, and takes it only if the bytes are the same.
"""

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from hashlib import sha256
from typing import Any, BinaryIO, NamedTuple, TypeAlias

from qntx_es.attestation import (
    PAYLOAD_BYTES_MAX,
    Attestation,
    Json,
    RecordedRow,
    canonical_json,
    checked_name,
    microseconds,
)
from qntx_es.digests import CHECK_DIGITS, DigestChain, LogDigest
from qntx_es.errors import ImportRefused, InvalidId, QntxError

# Takes how many attestations are done, of how many.
Progress: TypeAlias = Callable[[int, int], object]

FORMAT, VERSION = "qntx-es log", 1
# A payload, and beside it six names, 32 tags and the keys: less than 64 KiB however escaped.
LINE_BYTES_MAX = PAYLOAD_BYTES_MAX + (1 << 16)
POSITION_MAX = (1 << 63) - 1
VERSION_BOUND = 1 << 31
INSTANT_CHARACTERS = len("2026-01-04T12:00:00.000000Z")
BEFORE_ALL_TIME = -(1 << 63)
KEYS = {
    *("actor", "caused_by", "check", "context", "correlation_id", "depth", "entity"),
    *("entity_version", "id", "payload", "position", "recorded_at", "schema_version", "tags"),
}
NOT_AS_EXPORTED = "it is not written as an export writes it"


class Header(NamedTuple):
    """Which log an export is of, and how long it is."""

    epoch: str
    head: int


class Entry(NamedTuple):
    """An attestation, and what the log added to it beside its position."""

    attestation: Attestation
    recorded_at: int
    entity_version: int | None


def header_line(header: Header) -> str:
    """Return the first line of an export."""
    said = {**header._asdict(), "format": FORMAT, "version": VERSION}
    check = sha256(canonical_json(said).encode()).hexdigest()[:CHECK_DIGITS]
    return canonical_json({**said, "check": check})


def trailer_line(digest: LogDigest) -> str:
    """Return the last line of an export."""
    return canonical_json({"count": digest.position, "digest": digest.value})


class ExportReader:
    """An export, read line by line. What is no export to the byte raises `ImportRefused`."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._line = 0
        self._chain = DigestChain()
        self.header = self._read_header()

    @property
    def digest(self) -> LogDigest:
        """The digest of what was read."""
        return self._chain.digest

    def entries(self) -> Iterator[Entry]:
        """Yield what each line says, in the order of positions; the last only before a trailer."""
        latest = BEFORE_ALL_TIME
        for position in range(1, self.header.head + 1):
            text = self._next_line(f"truncated: {position - 1} of {self.header.head} attestations")
            said = self._read_object(text)
            entry = self._read_entry(said, position)
            if entry.recorded_at < latest:
                raise self._refused("it was recorded before the one in front of it")
            latest = entry.recorded_at
            if self._chain.add(_row_of(position, entry)) != text:
                is_whole = said["check"] == self._chain.check
                raise self._refused(NOT_AS_EXPORTED if is_whole else "altered: its check differs")
            yield entry
        self._read_trailer()

    def _read_header(self) -> Header:
        text = self._next_line("the file ends in its header")
        said = self._read_object(text)
        if said.get("format") != FORMAT:
            raise self._refused("it is no header, so this is no export of qntx-es")
        if said.get("version") != VERSION:
            raise self._refused(
                f"the export is of version {said.get('version')!r:.20}, "
                f"and this qntx-es reads version {VERSION}"
            )
        epoch, head = said.get("epoch", ""), said.get("head")
        if type(head) is not int or not 0 <= head <= POSITION_MAX:
            raise self._refused(f"head is {head!r:.40}, which is no position")
        try:
            header = Header(checked_name(epoch, "epoch"), head)
        except InvalidId as error:
            raise self._refused(str(error)) from error
        if header_line(header) != text:
            raise self._refused(f"the header was altered, or {NOT_AS_EXPORTED}")
        return header

    def _read_entry(self, said: Json, position: int) -> Entry:
        if said.keys() != KEYS:
            raise self._refused(f"it is not the attestation of position {position}")
        if said["position"] != position:
            raise self._refused(f"position {said['position']!r:.40} stands where {position} is due")
        if not isinstance(said["tags"], list):
            raise self._refused("tags are no list")
        version = said["entity_version"]
        if version is not None and (type(version) is not int or abs(version) >= VERSION_BOUND):
            raise self._refused(f"entity_version is {version!r:.40}, no integer of 32 bits")
        parts: dict[str, Any] = {**said}
        for added in ("check", "entity_version", "position", "recorded_at"):
            del parts[added]
        try:
            return Entry(Attestation(**parts), _instant_of(said["recorded_at"]), version)
        except (QntxError, ValueError) as error:
            raise self._refused(str(error)) from error

    def _read_trailer(self) -> None:
        digest = self.digest
        text = self._next_line(f"truncated: all {digest.position} attestations, and no trailer")
        said = self._read_object(text)
        if said.keys() != {"count", "digest"}:
            raise self._refused(f"the trailer is due after {digest.position} attestations")
        if said["count"] != digest.position:
            raise self._refused(
                f"the trailer counts {said['count']!r:.40} attestations of {digest.position}"
            )
        if said["digest"] != digest.value:
            raise self._refused(f"the digest is not that of the {digest.position} attestations")
        if text != trailer_line(digest):
            raise self._refused(NOT_AS_EXPORTED)
        self._line += 1
        if self._stream.read(1):
            raise self._refused("something follows the trailer")

    def _next_line(self, if_cut: str) -> str:
        self._line += 1
        line = self._stream.readline(LINE_BYTES_MAX)
        if len(line) == LINE_BYTES_MAX:
            raise self._refused(f"it has {LINE_BYTES_MAX} bytes or more, as no attestation can")
        if not line.endswith(b"\n"):
            raise self._refused(if_cut)
        try:
            return line[:-1].decode()
        except UnicodeDecodeError as error:
            raise self._refused(f"it is not UTF-8 at byte {error.start}") from error

    def _read_object(self, text: str) -> Json:
        if not text.strip():
            raise self._refused("it is blank")
        try:
            said = json.loads(text)
        except json.JSONDecodeError as error:
            raise self._refused(f"it is not JSON: {error.msg}, column {error.colno}") from error
        except (ValueError, RecursionError) as error:  # more digits or levels than are read
            raise self._refused(f"it cannot be read: {error}") from error
        if not isinstance(said, dict):
            raise self._refused("it is no JSON object")
        return said

    def _refused(self, what: str) -> ImportRefused:
        return ImportRefused(what, line=self._line)


def untold(done: int, total: int) -> None:
    """Be told how many are done, and do nothing."""


def line_number(position: int) -> int:
    """Return the line that an attestation has in an export: the header is the first."""
    return position + 1


def _instant_of(text: object) -> int:
    if not isinstance(text, str) or len(text) != INSTANT_CHARACTERS or text[-1] != "Z":
        raise ValueError(f"recorded_at is {text!r:.40}, which is no instant in UTC")
    return microseconds(datetime.fromisoformat(text))


def _row_of(position: int, entry: Entry) -> RecordedRow:
    said = entry.attestation
    return (
        position,
        said.id,
        said.context,
        said.actor,
        said.entity,
        said.text,
        said.schema_version,
        entry.recorded_at,
        said.caused_by,
        said.correlation_id,
        said.depth,
        said.tags_text,
        entry.entity_version,
    )
