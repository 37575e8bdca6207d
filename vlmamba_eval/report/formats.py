"""The leaderboard in other forms: Markdown, tidy CSV, LaTeX for a paper, JSON for a program."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from vlmamba_eval import text
from vlmamba_eval.baselines import Published
from vlmamba_eval.report.tables import Board, Line, RunScores, as_csv, board, markdown, number, tidy
from vlmamba_eval.types import MEANING

_SPECIAL = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "†": r"$^\dagger$",
}


def write(form: str, runs: Sequence[RunScores], baselines: Sequence[Published], *, intervals: bool = False) -> str:
    """The runs as `md`, `csv`, `latex` or `json`."""
    if form == "md":
        return markdown(runs, baselines)
    if form == "csv":
        return as_csv(runs, baselines)
    if form == "latex":
        return latex(board(runs, baselines), intervals=intervals)
    return as_json(runs, baselines)


def as_json(runs: Sequence[RunScores], baselines: Sequence[Published]) -> str:
    """One object per metric, with the names of the CSV's columns; what is undefined is null."""
    return json.dumps(tidy(runs, baselines), indent=1, ensure_ascii=False) + "\n"


# =============================================================================
# LaTeX
# =============================================================================


def escaped(words: str) -> str:
    """Text that LaTeX prints as it is."""
    return re.sub(r"[&%$#_{}\\~^<>†]", lambda match: _SPECIAL[match[0]], text.one_line(words))


def latex(table: Board, *, intervals: bool = False) -> str:
    r"""A table for a paper (needs \usepackage{booktabs}): best value bold, second underlined, marks as footnotes.

    Best and second are taken among measured lines that may be compared: neither published nor samples.
    """
    notes = list(dict.fromkeys(mark for line in table.lines for mark in _marks(line)))
    signs = {mark: f"$^{{{chr(ord('a') + i)}}}$" for i, mark in enumerate(notes)}
    ranks = [
        _ranked([line.values[i] for line in table.lines if line.kind == "measured"]) for i in range(len(table.tasks))
    ]
    lines = [r"% \usepackage{booktabs}", r"\begin{tabular}{l" + "r" * len(table.tasks) + "}", r"\toprule"]
    lines.append(" & ".join(["Model", *map(escaped, table.headers)]) + r" \\")
    for section in table.sections:
        lines.append(r"\midrule")
        if section.title:
            lines.append(rf"\multicolumn{{{len(table.tasks) + 1}}}{{l}}{{\emph{{{escaped(section.title)}}}}} \\")
        kind = section.lines[0].kind if section.lines else ""
        for line in section.lines:
            if line.kind != kind:
                lines.append(r"\midrule")
            kind = line.kind
            cells = [_cell(line, i, ranks[i], signs) for i in range(len(table.tasks))]
            name = escaped(line.model) + "".join(signs[mark] for mark in line.marks)
            lines.append(" & ".join([name, *cells]) + r" \\")
            if intervals and any(line.intervals):
                under = [rf"{{\scriptsize {each}}}" if each else "" for each in line.intervals]
                lines.append(" & ".join(["", *under]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    for mark in notes:
        lines += ["", rf"{{\footnotesize {signs[mark]} {escaped(_meaning(mark))}}}"]
    for note in table.notes:
        if note.partition(":")[0] not in MEANING:  # those are footnotes already
            lines += ["", rf"{{\footnotesize {escaped(note)}}}"]
    return "\n".join(lines) + "\n"


def _marks(line: Line) -> list[str]:
    own = [remark for remarks in line.remarks for remark in _parted(line, remarks)]
    return [*line.marks, *own]


def _parted(line: Line, remarks: str) -> list[str]:
    """Marks of a measured value, or the split of a published one."""
    return ([remarks] if line.kind == "published" else remarks.split()) if remarks else []


def _meaning(mark: str) -> str:
    return f"{mark}: {MEANING[mark]}." if mark in MEANING else f"Split: {mark}."  # type: ignore[literal-required]


def _ranked(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """The best and the second best of several values; nothing is best of one."""
    known = sorted({round(value, 1) for value in values if value is not None}, reverse=True)
    if sum(value is not None for value in values) < 2:
        return None, None
    return known[0], known[1] if len(known) > 1 else None


def _cell(line: Line, i: int, rank: tuple[float | None, float | None], signs: dict[str, str]) -> str:
    value, marks = line.values[i], "".join(signs[mark] for mark in _parted(line, line.remarks[i]))
    if value is None:
        return f"--{marks}" if line.cells[i] else ""
    shown = number(value).replace(",", "{,}")
    if line.kind == "measured" and round(value, 1) == rank[0]:
        shown = rf"\textbf{{{shown}}}"
    elif line.kind == "measured" and round(value, 1) == rank[1]:
        shown = rf"\underline{{{shown}}}"
    dagger = r"$^\dagger$" if line.kind == "published" else ""
    return shown + dagger + marks
