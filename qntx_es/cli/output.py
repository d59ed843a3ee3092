"""What commands print, in the form its reader can use.

People at a terminal get tables; a pipe gets the same as plain aligned lines, whole, for `grep` and
`awk`; a program asks for JSON. What the log holds was written by somebody else: it is shown as
text, with control characters and the marks that turn text around escaped, and never as markup.
"""

import io
import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import UTC, datetime
from typing import Any, TextIO, TypeAlias

Row: TypeAlias = Sequence[object]
# A database counts no further, and nobody reads on.
LIMIT_MAX = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; a pipe gets every column, whole.

    At a terminal, one narrower than `least_width` goes without it, one that `is_spare` is left out
    where all of it is empty, one that `is_cut` shows as much as the others leave room for (others
    are folded), and `styles` says how certain words look.
    """

    title: str
    is_number: bool = False
    is_cut: bool = False
    is_spare: bool = False
    least_width: int = 0
    styles: Mapping[str, str] = field(default_factory=dict)


class Output:
    """Where the results of one command go.

    Where JSON is asked for, only documents and records are printed; elsewhere all but them.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        _settle_encoding(as_json=as_json)
        self.for_people = not as_json and is_terminal(sys.stdout)

    def document(self, value: object) -> None:
        """Print the one JSON document of a command."""
        if self.as_json:
            print(written(value, indent=2))

    def record(self, value: object) -> None:
        """Print one JSON document of several, on a line of its own."""
        if self.as_json:
            print(written(value))

    def say(self, text: str = "", *, style: str = "", is_whole: bool = False) -> None:
        """Print a line of ours; at a terminal in a style, and `is_whole` if it is to be copied."""
        if self.for_people:
            from qntx_es.cli import terminal  # noqa: PLC0415 - slow, and a pipe has no need of it

            terminal.show_line(text, style=style, is_whole=is_whole)
        elif not self.as_json:
            print(text)

    def table(
        self, columns: Sequence[Column], rows: Iterable[Row], *, with_titles: bool = True
    ) -> None:
        """Print a table, with `-` where there is nothing."""
        if self.for_people:
            from qntx_es.cli import terminal  # noqa: PLC0415 - slow, and a pipe has no need of it

            terminal.show_table(columns, list(rows), with_titles=with_titles)
        elif not self.as_json:
            _print_lines(columns, rows, with_titles=with_titles)


def complain(text: str) -> None:
    """Say on stderr what a person should know."""
    print(f"qntx-es: {text}", file=sys.stderr, flush=True)


def is_terminal(stream: TextIO) -> bool:
    """Tell whether a person is reading, at a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def shown(text: str) -> str:
    """Return a text with every character escaped that could act on a terminal."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def written(value: object, *, indent: int | None = None) -> str:
    """Return a value as JSON: times in UTC, integers exact, no character that could act."""
    text = json.dumps(value, ensure_ascii=False, default=_jsonable, indent=indent)
    if text.isprintable():
        return text
    # Between two strings there is nothing but spaces and line ends.
    return "".join(
        one if one == "\n" or one.isprintable() else json.dumps(one)[1:-1] for one in text
    )


def iso(at: datetime) -> str:
    """Return an instant in UTC, always of the same length."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def grouped(number: int) -> str:
    """Return a number as people read it: 1 204 331."""
    return f"{number:,}".replace(",", " ")


def counted(number: int, noun: str) -> str:
    """Return `1 row`, `2 rows`."""
    return f"{grouped(number)} {noun}{'' if number == 1 else 's'}"


def is_empty(cell: object) -> bool:
    """Tell whether there is nothing in a cell, as opposed to a zero."""
    return cell is None or cell == ""


def _jsonable(value: object) -> Any:  # noqa: ANN401 - whatever JSON can say
    if isinstance(value, datetime):
        return iso(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"a {type(value).__name__} is no JSON value")


def _settle_encoding(*, as_json: bool) -> None:
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if as_json:  # which is UTF-8, whatever the locale says
            stream.reconfigure(encoding="utf-8")
        stream.reconfigure(errors="backslashreplace")


def _print_lines(columns: Sequence[Column], rows: Iterable[Row], *, with_titles: bool) -> None:
    lines = [[_plain(cell) for cell in row] for row in rows]
    if with_titles:
        lines.insert(0, [column.title for column in columns])
    widths = [max(map(_width, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        parts = []
        for cell, width, column in zip(line, widths, columns, strict=True):
            space = " " * (width - _width(cell))
            parts.append(space + cell if column.is_number else cell + space)
        print("  ".join(parts).rstrip())


def _plain(cell: object) -> str:
    if isinstance(cell, datetime):
        return iso(cell)
    return "-" if is_empty(cell) else shown(str(cell))


def _width(text: str) -> int:
    """Return how many places a text takes: a Chinese character two, an accent by itself none."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(one) in "WF" for one in text)
    return len(text) + wide - sum(unicodedata.combining(one) > 0 for one in text)
