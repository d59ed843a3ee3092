"""Writing a log as a file: of the head as it was in the beginning, in pieces, holding no snapshot.

That is enough, since what lies at or below a head never changes.
"""

from dataclasses import dataclass
from typing import BinaryIO

from qntx_es.digests import DigestChain, LogDigest
from qntx_es.log import READ_ROWS, Log
from qntx_es.transfer.lines import Header, Progress, header_line, trailer_line, untold


@dataclass(frozen=True, slots=True)
class Exported:
    """Which log was written, and its digest at the last position that was."""

    epoch: str
    digest: LogDigest


def export_log(log: Log, stream: BinaryIO, progress: Progress = untold) -> Exported:
    """Write all that has a position. Raises `CorruptAttestation`."""
    header = Header(log.epoch(), log.head())
    chain = DigestChain()
    _write(stream, header_line(header))
    for recorded in log.read(limit=header.head):
        if chain.position % READ_ROWS == 0:
            progress(chain.position, header.head)
        _write(stream, chain.add(recorded.row))
    _write(stream, trailer_line(chain.digest))
    progress(chain.position, header.head)
    return Exported(header.epoch, chain.digest)


def _write(stream: BinaryIO, line: str) -> None:
    stream.write(f"{line}\n".encode())
