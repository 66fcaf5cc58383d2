"""Tables in the terminal, all drawn alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def table_of(title: str, headings: Sequence[str], text: Sequence[int] = (0,)) -> Table:
    """An empty table; columns other than `text` are aligned as numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.show_header = any(headings)
    for index, heading in enumerate(headings):
        table.add_column(
            heading,
            header_style="dim",
            justify="left" if index in text else "right",
            overflow="fold",
        )
    return table


def print_table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[Any]],
    text: Sequence[int] = (0,),
) -> None:
    """Prints a table of strings, which may hold rich's markup."""
    from rich.console import Console

    table = table_of(title, headings, text)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
