"""Where an export is written to and read from: a stream that is handed in, or a file by its path.

A file gets its name when all of it is on the disk, so whatever has the name is whole.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO, TypeAlias, cast

AnyFile: TypeAlias = str | os.PathLike[str] | BinaryIO


@contextmanager
def writing(to: AnyFile) -> Iterator[BinaryIO]:
    """Give a stream to write to; a file by path is readable by its owner alone, and all or none."""
    if not isinstance(to, str | os.PathLike):
        yield to
        to.flush()
        return
    path = Path(to).resolve()  # a link stays one, and the file it names is replaced
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "Not an ordinary file", str(path))
    beside = NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115 - closed below
    try:
        with beside:
            yield cast("BinaryIO", beside)
            beside.flush()
            os.fsync(beside.fileno())
        Path(beside.name).replace(path)
    except BaseException:
        Path(beside.name).unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def reading(source: AnyFile) -> Iterator[BinaryIO]:
    """Give a stream to read from."""
    if not isinstance(source, str | os.PathLike):
        yield source
        return
    with Path(source).open("rb") as stream:
        yield stream


def _sync(folder: Path) -> None:
    """Put a new name in a folder on the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
