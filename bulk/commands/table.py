"""Plain tables that fit the terminal, measured in columns of the screen and not in characters."""

from collections.abc import Sequence
from shutil import get_terminal_size
from unicodedata import category, east_asian_width

_GAP = "  "
_MIN_LAST_COLUMNS = 10


def terminal_columns() -> int:
    """Return the width of the terminal."""
    return get_terminal_size().columns


def width(text: str) -> int:
    """Return the columns that `text` takes on a terminal.

    Wide characters (CJK, most emoji) take 2, combining ones 0.
    """
    return sum(map(_char_width, text))


def clip(text: str, columns: int) -> str:
    """Return `text` on one line of at most `columns` columns, with … where it was cut.

    Control characters become spaces: a response must not write escape sequences to the terminal.
    """
    line = " ".join(
        "".join(
            " " if category(char) in ("Cc", "Zl", "Zp", "Cs") else char for char in text
        ).split()
    )
    if width(line) <= columns:
        return line
    clipped, used = [], 0
    for char in line:
        if used + _char_width(char) > columns - 1:
            break
        clipped.append(char)
        used += _char_width(char)
    return "".join(clipped) + "…" if columns > 0 else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], columns: int) -> list[str]:
    """Return lines of at most `columns` columns.

    The last column of the table takes what the others leave, and at least 10 columns.
    """
    *widths, last = (
        max(width(row[column]) for row in (header, *rows)) for column in range(len(header))
    )
    room = max(columns - sum(widths) - len(_GAP) * len(widths), _MIN_LAST_COLUMNS)
    lines = []
    for row in (header, *rows):
        cells = [
            " " * (columns - width(cell)) + cell for cell, columns in zip(row, widths, strict=False)
        ]
        lines.append(_GAP.join([*cells, clip(row[-1], min(room, last))]))
    return lines


def _char_width(char: str) -> int:
    if category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if east_asian_width(char) in "WF" else 1
