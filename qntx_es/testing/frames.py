"""Messages over a socket between an interpreter and us: a length of 8 bytes, and so many bytes."""

import socket

_LENGTH_BYTES = 8


def write_frame(to: socket.socket, content: bytes) -> None:
    """Write one message."""
    to.sendall(len(content).to_bytes(_LENGTH_BYTES) + content)


def read_frame(source: socket.socket) -> bytes | None:
    """Return the next message, or None where the other side has ended."""
    length = _read(source, _LENGTH_BYTES)
    return None if length is None else _read(source, int.from_bytes(length))


def _read(source: socket.socket, size: int) -> bytes | None:
    found = bytearray()
    while len(found) < size:
        try:
            piece = source.recv(size - len(found))
        except ConnectionError:
            return None
        if not piece:
            return None
        found += piece
    return bytes(found)
