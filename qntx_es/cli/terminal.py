"""What a person at a terminal sees: tables, styles, and bars that move.

The only module that imports rich, and imported only where there is a terminal. Every text is taken
for what it is: in a console of ours nothing is markup.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from qntx_es.cli.output import Column, Row, grouped, is_empty, shown

BAR_WIDTH = 32
GAP = 2
# No terminal is wider, and a payload may be: what is beyond is not even looked at.
CUT_CHARACTERS = 1_000
# What a column that is cut keeps, however wide the others are.
CUT_WIDTH_LEAST = 20


def show_line(text: str, *, style: str, is_whole: bool) -> None:
    """Print a line, wrapped between words unless it `is_whole`."""
    _console(sys.stdout).print(Text(text, style=style), soft_wrap=is_whole)


def show_table(columns: Sequence[Column], rows: Sequence[Row], *, with_titles: bool) -> None:
    """Print a table of the columns there is room for."""
    console = _console(sys.stdout)
    kept = [
        index
        for index, column in enumerate(columns)
        if column.least_width <= console.width
        and not (column.is_spare and all(is_empty(row[index]) for row in rows))
    ]
    cells = [[_cell(columns[index], row[index]) for index in kept] for row in rows]
    table = _table([columns[index] for index in kept], cells, console.width)
    table.show_header = with_titles
    console.print(table)


def bars() -> Progress:
    """Return bars on stderr: a name, how much of it is done, and words."""
    return Progress(
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(BAR_WIDTH, complete_style="cyan", finished_style="green"),
        TextColumn("{task.percentage:>3.0f} %", markup=False),
        TextColumn("{task.fields[count]:>18}", markup=False),
        TextColumn("{task.fields[words]}", markup=False, style="dim"),
        console=_console(sys.stderr),
    )


def _console(stream: TextIO) -> Console:
    return Console(file=stream, markup=False, emoji=False, highlight=False)


def _table(columns: Sequence[Column], cells: Sequence[Sequence[Text]], width: int) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        border_style="dim",
        header_style="bold",
        padding=(0, GAP - 1, 0, 0),
        show_edge=False,
    )
    taken = sum(
        GAP + max([cell_len(column.title), *(row[index].cell_len for row in cells)])
        for index, column in enumerate(columns)
        if not column.is_cut
    )
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.is_number else "left",
            overflow="ellipsis" if column.is_cut else "fold",
            no_wrap=column.is_number or column.is_cut,
            max_width=max(CUT_WIDTH_LEAST, width - taken - GAP) if column.is_cut else None,
        )
    for row in cells:
        table.add_row(*row)
    return table


def _cell(column: Column, cell: object) -> Text:
    if is_empty(cell):
        return Text("-", style="dim")
    if isinstance(cell, datetime):
        return Text(cell.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"))
    if isinstance(cell, int):
        return Text(grouped(cell))
    text = shown(str(cell)[:CUT_CHARACTERS] if column.is_cut else str(cell))
    return Text(text, style=column.styles.get(text, ""))
