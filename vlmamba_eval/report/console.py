"""The leaderboard and the progress of a run in a terminal, through rich; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from vlmamba_eval.report.tables import Board
from vlmamba_eval.run import Progress

PLAIN_EVERY = 10.0  # seconds between two lines where there is no terminal


def show(board: Board) -> None:
    """Print the leaderboard to standard output, with its notes."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())
    if not sys.stdout.isatty():
        console.width = 200
    table = Table(show_lines=False, title=None)
    table.add_column("model", overflow="fold")
    for header in board.headers:
        table.add_column(header, justify="right", overflow="fold")
    quoted_before = False
    for model, marks, quoted, cells in board.rows:
        if quoted and not quoted_before:
            table.add_section()
        quoted_before = quoted
        name = f"[dim]{escape(model)}[/dim]" if quoted else f"[bold]{escape(model)}[/bold]"
        table.add_row(name + "".join(f" [yellow]{mark}[/yellow]" for mark in marks), *map(escape, cells))
    console.print(table)
    console.print("Measured values with 95 % interval (bootstrap over images); † published, not measured.", style="dim")
    for note in board.notes:
        console.print(escape(note), style="dim")


class ConsoleProgress(Progress):
    """Images and questions done, running score, errors, rate and time left, on standard error.

    A live bar on a terminal; elsewhere one plain line every ten seconds.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars: Bars | None = None
        self._images = self._questions = self._images_total = self._total = self._errors = 0
        self._credit = 0.0
        self._scored = 0
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
        self._console.print(f"{questions:,} questions about {images:,} images.")
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

    def advance(self, images: int, questions: int, errors: int, credits: Sequence[float]) -> None:
        """Add a batch's counts and show them."""
        self._images += images
        self._questions += questions
        self._errors += errors
        self._credit += sum(credits)
        self._scored += len(credits)
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
        """Print a line above the bar."""
        self._console.print(escape(message), style="yellow", soft_wrap=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _status(self, now: float) -> str:
        score = f", mean credit {100 * self._credit / self._scored:.1f} %" if self._scored else ""
        rate = self._questions / max(now - self._began, 1e-9)
        return (
            f"{self._images:,}/{self._images_total:,} images{score}, {self._errors:,} errors, {rate:,.1f} questions/s"
        )
