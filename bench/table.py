"""Tables of numbers in columns of fixed width, so that each row can be printed as soon as it is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

__all__ = ["Column", "header", "line", "number", "tabulate", "write_rows"]


class Column(NamedTuple):
    """A title, the text of a row's cell, and the least width; text is set left, numbers right."""

    title: str
    text: Callable[[Any], str]
    width: int = 0
    left: bool = False


def header(columns: Sequence[Column]) -> str:
    """The titles."""
    return _join(columns, [column.title for column in columns])


def line(columns: Sequence[Column], row: Any) -> str:
    """One row."""
    return _join(columns, [column.text(row) for column in columns])


def tabulate(columns: Sequence[Column], rows: Iterable[Any], *facts: str) -> list[Any]:
    """Print facts, the titles, and each row as soon as it comes; all rows."""
    for text in (*facts, header(columns)):
        print(text, flush=True)
    shown = []
    for row in rows:
        shown.append(row)
        print(line(columns, row), flush=True)
    return shown


def write_rows(path: str, rows: Sequence[Any]) -> None:
    """All rows, which are dataclasses, as JSON."""
    with open(path, "w") as file:
        json.dump([asdict(row) for row in rows], file, indent=1)
        file.write("\n")


def _join(columns: Sequence[Column], texts: Sequence[str]) -> str:
    cells = []
    for column, text in zip(columns, texts, strict=True):
        width = max(column.width, len(column.title))
        cells.append(text.ljust(width) if column.left else text.rjust(width))
    return "  ".join(cells).rstrip()


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many digits after the point; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"
