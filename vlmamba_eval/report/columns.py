"""Rows of words in columns, in whatever width there is; no word is broken."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

GAP = 2
NARROW = 12  # columns of words are not made narrower than that


def columns(rows: Sequence[Sequence[str]], width: int | None, spare: Sequence[str] = ()) -> str:
    """The rows as text, the first of them the headings.

    If they are wider than `width`, the columns named in `spare` are left out in that order; then the widest columns
    wrap between words. If even that does not fit, each row becomes a short list under its first cell.
    """
    for name in spare:
        if width is None or _total([max(map(len, column)) for column in _turn(rows)]) <= width:
            break
        rows = _turn([column for column in _turn(rows) if column[0] != name])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is not None and _total(widths) > width:
        least = [max(min(w, NARROW), _longest(column)) for w, column in zip(widths, _turn(rows), strict=True)]
        least = [min(w, m) for w, m in zip(widths, least, strict=True)]
        if _total(least) > width:
            return "\n".join(_as_list(rows, width))
        while _total(widths) > width:  # take from the widest that can give
            i = max((i for i in range(len(widths)) if widths[i] > least[i]), key=lambda i: widths[i])
            widths[i] -= 1
    lines = []
    for row in rows:
        cells = [_wrapped(cell, w) for cell, w in zip(row, widths, strict=True)]
        for k in range(max(map(len, cells))):
            parts = [(cell[k] if k < len(cell) else "").ljust(w) for cell, w in zip(cells, widths, strict=True)]
            lines.append((" " * GAP).join(parts).rstrip())
    return "\n".join(lines)


def _wrapped(cell: str, width: int) -> list[str]:
    return textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False) or [""]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _turn(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    return list(zip(*rows, strict=True))


def _longest(column: Sequence[str]) -> int:
    """The longest word of a column."""
    return max(len(word) for cell in column for word in (cell.split() or [""]))


def _as_list(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    headings, *others = rows
    lines = []
    for row in others:
        lines.append(row[0])
        told = [f"{name} {cell}" for name, cell in zip(headings[1:], row[1:], strict=True) if cell]
        lines += textwrap.wrap(
            "; ".join(told), width, initial_indent="  ", subsequent_indent="  ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return lines
