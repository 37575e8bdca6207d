"""The leaderboard and the progress of a run in a terminal, through rich; plain lines without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table

from vlmamba_eval.report.tables import Board
from vlmamba_eval.report.text import one_line, printable
from vlmamba_eval.types import Progress

PLAIN_EVERY = 10.0  # seconds between two lines without a terminal
PLAIN_WIDTH = 120  # columns of a table without a terminal
MAX_NOTES = 20


def show(board: Board) -> None:
    """Print the leaderboard to standard output, with its notes: one row a model, or where that is too wide, a task."""
    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, highlight=False, soft_wrap=not terminal)
    room = console.width if terminal else PLAIN_WIDTH
    layouts = [_by_model(board), _by_task(board)] + terminal * [_by_task(board, narrow=True)]
    table = next((table for table in layouts if _width(console, table) <= room), layouts[-1])
    if not terminal:
        console.width = _width(console, table)
    console.print(table)
    console.print("Measured values with 95 % interval (bootstrap over images); † published, not measured.", style="dim")
    for note in board.notes:
        console.print(escape(note), style="dim")


def _by_model(board: Board) -> Table:
    table = Table("model")
    for header in board.headers:
        table.add_column(header, justify="right")
    quoted_before = False
    for model, marks, quoted, cells in board.rows:
        if quoted and not quoted_before:
            table.add_section()
        quoted_before = quoted
        table.add_row(_name(model, marks, quoted), *map(escape, cells))
    return table


def _by_task(board: Board, *, narrow: bool = False) -> Table:
    """One row a task; where it must be narrow, intervals and remarks stand under the values."""
    gap = "\n" if narrow else " "
    table = Table(Column("task", overflow="fold"))
    if narrow:
        table.box, table.padding, table.pad_edge = SIMPLE_HEAD, (0, 1, 0, 0), False
    for model, marks, quoted, _ in board.rows:
        table.add_column(_name(model, marks, quoted), justify="right", overflow="fold")
    for i, header in enumerate(board.headers):
        table.add_row(header, *(escape(cells[i].replace(" ", gap, 1)) for _, _, _, cells in board.rows))
    return table


def _name(model: str, marks: Sequence[str], quoted: bool) -> str:
    style = "dim" if quoted else "bold"
    return f"[{style}]{escape(one_line(model))}[/{style}]" + "".join(f" [yellow]{mark}[/yellow]" for mark in marks)


def _width(console: Console, table: Table) -> int:
    """The columns that a table takes where nothing is folded."""
    return Measurement.get(console, console.options.update(width=10_000), table).maximum


class ConsoleProgress(Progress):
    """Images and questions done, errors, rate and time left, on standard error.

    A live bar on a terminal; elsewhere one plain line every ten seconds.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars: Bars | None = None
        self._images = self._questions = self._images_total = self._total = self._errors = 0
        self._notes = 0
        self._began = self._spoke = time.monotonic()

    def start(self, images: int, questions: int, resumed: int) -> None:
        """Say what is to be done; a resumed run says so."""
        self._images_total, self._total = images, questions
        self._began = self._spoke = time.monotonic()
        if not questions:
            self._console.print(f"Finished before: all {resumed:,} answers are there; nothing is generated.")
            return
        if resumed:
            self._console.print(f"Resuming: {resumed:,} answers are there, {questions:,} questions are left.")
        self._console.print(f"{questions:,} questions about {images:,} {'image' if images == 1 else 'images'}.")
        if self._console.is_terminal:
            self._bars = Bars(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bars.add_task("", total=questions)
            self._bars.start()

    def advance(self, images: int, questions: int, errors: int) -> None:
        """Add a batch's counts and show them."""
        self._images += images
        self._questions += questions
        self._errors += errors
        now = time.monotonic()
        if self._bars is not None:
            self._bars.update(self._bars.task_ids[0], completed=self._questions, description=self._status(now))
        elif now - self._spoke >= PLAIN_EVERY:
            self._spoke = now
            left = (now - self._began) / self._questions * (self._total - self._questions)
            self._console.print(
                f"{self._questions:,}/{self._total:,} questions, {self._status(now)}, about {left:,.0f} s left",
                soft_wrap=True,
            )
        if self._questions >= self._total:
            self.close()

    def note(self, message: str) -> None:
        """Print a line above the bar; after many of them, no more."""
        self._notes += 1
        if self._notes > MAX_NOTES:
            return
        if self._notes == MAX_NOTES:
            message += "\nNo more of these are shown; every failure is in answers.jsonl."
        self._console.print(escape(printable(message)), style="yellow", soft_wrap=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _status(self, now: float) -> str:
        rate = self._questions / max(now - self._began, 1e-9)
        return f"{self._images:,}/{self._images_total:,} images, {self._errors:,} errors, {rate:,.1f} questions/s"
