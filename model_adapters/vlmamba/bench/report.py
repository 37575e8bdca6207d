"""Rows into CSV, Markdown, a console table and a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vlmamba_eval.types import UsageError

NAN = float("nan")

COLUMNS = {
    "profile": "what is asked",
    "model": "the model, or the shape of the language model",
    "mode": "who answers, or how a text is read",
    "backend": "what computes",
    "device": "cpu or cuda",
    "dtype": "precision of the weights; recurrent states are float32",
    "images": "images asked about; 0: a text is read",
    "questions": "questions about all of them",
    "prefix_tokens": "tokens up to the end of the image; of the text that is read",
    "question_tokens": "tokens of a question with the template's end, mean",
    "new_tokens": "decoded tokens of an answer, mean",
    "repeats": "times that it was measured, in turn with the others",
    "measured_questions": "questions really answered in each; if fewer than all, times are extrapolated by tokens",
    "seconds": "for all questions: the median of the repeats",
    "seconds_min": "the fastest repeat",
    "seconds_max": "the slowest repeat",
    "ratio": "median over the first mode's median (of reading: over mode `whole`)",
    "ratio_min": "the smallest ratio within one repeat",
    "ratio_max": "the largest ratio within one repeat",
    "compared": "answers compared with the first mode's",
    "same_answers": "how many of them are the same text",
    "peak_mib": "memory above what was in use before, at the peak",
    "kept_mib": "memory that must be kept to continue: Mamba's state, a transformer's keys and values",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant of one measurement; `COLUMNS` says what the fields mean."""

    profile: str
    model: str
    mode: str
    backend: str
    device: str
    dtype: str
    images: int
    questions: int
    prefix_tokens: int
    question_tokens: float
    new_tokens: float
    repeats: int
    measured_questions: int
    seconds: float = NAN
    seconds_min: float = NAN
    seconds_max: float = NAN
    ratio: float = NAN
    ratio_min: float = NAN
    ratio_max: float = NAN
    compared: int = 0
    same_answers: int = 0
    peak_mib: float | None = None
    kept_mib: float | None = None


assert list(COLUMNS) == [f.name for f in fields(Row)]  # noqa: S101


# =============================================================================
# Files
# =============================================================================


def write(out: Path, name: str, rows: Sequence[Row], machine: Mapping[str, str], command: str) -> list[Path]:
    """Write NAME.csv, NAME.md and, if matplotlib is installed, NAME.png into `out`; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.csv", out / f"{name}.md"]
    paths[0].write_text(as_csv(rows), encoding="utf-8")
    paths[1].write_text(as_markdown(rows, machine, command), encoding="utf-8")
    figure = out / f"{name}.png"
    if draw(rows, machine, figure):
        paths.append(figure)
    return paths


def as_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _plain(value) for key, value in asdict(row).items()})
    return text.getvalue()


def _plain(value: Any) -> Any:
    if value is None or value != value:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def as_markdown(rows: Sequence[Row], machine: Mapping[str, str], command: str) -> str:
    header, *body = table(rows)
    lines = [f"`{command}`", "", *(f"- {key}: {value}" for key, value in machine.items()), ""]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(cells) + " |" for cells in body]
    lines += ["", *notes(rows)]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Row]) -> list[list[str]]:
    """The cells of the table that people read, its header first."""
    reading = rows[0].profile == "lengths"
    head = ["mode", "tokens"] if reading else ["mode", "questions of images"]
    head += ["seconds (least to most)", "times the first (least to most)"]
    head += ["peak memory", "kept"] if reading else ["same answers"]
    head += ["backend", "dtype", "n"]
    cells = [head]
    for row in rows:
        line = [f"{row.mode}: {row.model}" if reading else row.mode]
        line.append(f"{row.prefix_tokens:,}" if reading else f"{row.questions:,} of {row.images:,}")
        line.append(_spread(row.seconds, row.seconds_min, row.seconds_max))
        line.append(_spread(row.ratio, row.ratio_min, row.ratio_max))
        if reading:
            line += [_memory(row.peak_mib), _memory(row.kept_mib)]
        else:
            line.append(f"{row.same_answers} of {row.compared}")
        extrapolated = row.measured_questions < row.questions
        line += [row.backend, row.dtype, f"{row.repeats}" + (f" x {row.measured_questions} q." if extrapolated else "")]
        cells.append(line)
    return cells


def notes(rows: Sequence[Row]) -> list[str]:
    """What the table's reader must know."""
    first = rows[0]
    if first.profile == "lengths":
        said = [
            "Reading one text up to the scores of its next token; `pieces`: 4,096 tokens at a time, the state carried "
            "on. Peak memory is above the weights; kept is what must stay to continue.",
            "Ratios are to `whole` at the same length.",
        ]
    elif first.profile == "images":
        said = [
            f"One image of {first.prefix_tokens} tokens with what is before it, and more and more questions of 20 "
            f"to 40 tokens with answers of 4. Ratios are to `{first.mode}` with as many questions."
        ]
    else:
        said = [
            f"An image is {first.prefix_tokens} tokens with what is before it, a question "
            f"{first.question_tokens:.1f} and an answer {first.new_tokens:.1f} in the mean. "
            f"Ratios are to `{first.mode}`."
        ]
    said.append(
        "All modes took turns in one process, each after a warm-up. Times are medians of n repeats; the ratio's spread "
        "is that within single repeats."
    )
    if any(row.measured_questions < row.questions for row in rows):
        said.append(
            "n x q.: only so many questions, spread evenly, were answered in each repeat; the time is extrapolated "
            "to all by tokens."
        )
    return said


def show(rows: Sequence[Row], machine: Mapping[str, str]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    header, *body = table(rows)
    grid = Table(title=f"{rows[0].model}, {rows[0].profile}", title_justify="left")
    for name in header:
        grid.add_column(name)
    for cells in body:
        grid.add_row(*cells)
    console.print(grid)
    for line in notes(rows):
        console.print(line, highlight=False)
    console.print("; ".join(f"{key}: {value}" for key, value in machine.items()), highlight=False)


def _spread(middle: float, low: float, high: float) -> str:
    if middle != middle:
        return "-"
    return f"{_short(middle)} ({_short(low)} to {_short(high)})"


def _short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.{sum(value < limit for limit in (1, 10, 100))}f}"


def _memory(mib: float | None) -> str:
    if mib is None:
        return "not measured"
    return f"{mib:.1f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


# =============================================================================
# The figure
# =============================================================================


def draw(rows: Sequence[Row], machine: Mapping[str, str], path: Path) -> bool:
    """Draw what the profile is about; False if matplotlib is not installed."""
    from vlmamba_eval.report import plots

    try:
        plots.speed([asdict(row) for row in rows], machine.get("GPU", machine["processor"]), path)
    except UsageError:
        return False
    return True
