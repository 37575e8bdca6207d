"""The leaderboard and the progress of a run in a terminal, through rich; plain lines without a terminal."""

from __future__ import annotations

import sys
import time

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import Progress as Bars
from rich.progress import ProgressColumn, Task
from rich.table import Column, Table
from rich.text import Text

from vlmamba_eval.report.tables import FLAWS, FOOTNOTE, Board, Line, Section
from vlmamba_eval.text import one_line, printable
from vlmamba_eval.types import Progress

PLAIN_EVERY = 10.0  # seconds between two lines without a terminal
PLAIN_WIDTH = 120  # columns of a table without a terminal
MAX_NOTES = 20
BAR = "━─"


def show(board: Board) -> None:
    """Print the leaderboard to standard output, with its notes: one row per model or, if that is too wide, per task.

    What is comparable with nothing published has a table of its own.
    """
    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, highlight=False, soft_wrap=not terminal)
    room = console.width if terminal else PLAIN_WIDTH
    for section in board.sections:
        layouts = [_by_model(board, section), _by_task(board, section)]
        layouts += terminal * [_by_task(board, section, narrow=True), _as_list(board, section)]
        table = next((table for table in layouts if _width(console, table) <= room), layouts[-1])
        if not terminal:
            console.width = max(_width(console, table), len(section.title))
        if section.title:
            console.print(section.title, style="bold")
        console.print(table)
    console.print(FOOTNOTE, style="dim")
    if board.flaws:
        table = _of_flaws(board)
        if not terminal:
            console.width = max(console.width, _width(console, table))
        console.print(table)
    for note in board.notes:
        console.print(escape(note), style="dim")


def _of_flaws(board: Board) -> Table:
    """One row per run that has unreadable, truncated, missing, failed or foreign answers."""
    first, *rest = FLAWS
    table = Table(Column(first, overflow="fold"), *(Column(name, justify="right", overflow="fold") for name in rest))
    table.box, table.padding, table.pad_edge = SIMPLE_HEAD, (0, 1, 0, 0), False
    for row in board.flaws:
        table.add_row(*(escape(one_line(cell)) for cell in row))
    return table


def _columns(board: Board, section: Section) -> list[int]:
    """The places of the columns in which a section has anything."""
    return [i for i in range(len(board.tasks)) if any(line.cells[i] for line in section.lines)]


def _by_model(board: Board, section: Section) -> Table:
    columns = _columns(board, section)
    table = Table("model")
    for i in columns:
        table.add_column(board.headers[i], justify="right")
    kind = section.lines[0].kind if section.lines else ""
    for line in section.lines:
        if line.kind != kind:
            table.add_section()
        kind = line.kind
        table.add_row(_name(line), *(escape(line.cells[i]) for i in columns))
    return table


def _by_task(board: Board, section: Section, *, narrow: bool = False) -> Table:
    """One row per task; if it must be narrow, intervals and remarks go under the values."""
    gap = "\n" if narrow else " "
    table = Table(Column("task", overflow="fold"))
    if narrow:
        table.box, table.padding, table.pad_edge = SIMPLE_HEAD, (0, 1, 0, 0), False
    for line in section.lines:
        table.add_column(_name(line), justify="right", overflow="fold")
    for i in _columns(board, section):
        table.add_row(board.headers[i], *(escape(line.cells[i].replace(" ", gap, 1)) for line in section.lines))
    return table


def _as_list(board: Board, section: Section) -> Table:
    """For the narrowest terminal: a value per line under its task."""
    table = Table(Column("", overflow="fold"), Column("", justify="right", overflow="fold"), show_header=False)
    table.box, table.padding, table.pad_edge = None, (0, 1, 0, 0), False
    for i in _columns(board, section):
        table.add_row(f"[bold]{escape(board.headers[i])}[/bold]", "")
        for line in section.lines:
            if line.cells[i]:
                table.add_row(f"  {_name(line)}", escape(line.cells[i].replace(" ", "\n", 1)))
    return table


def _name(line: Line) -> str:
    style = "dim" if line.kind == "published" else "bold"
    name = f"[{style}]{escape(one_line(line.model))}[/{style}]"
    return name + "".join(f" [yellow]{mark}[/yellow]" for mark in line.marks)


def _width(console: Console, table: Table) -> int:
    """The columns that a table takes if nothing is folded."""
    return Measurement.get(console, console.options.update(width=10_000), table).maximum


class ConsoleProgress(Progress):
    """Questions done, time left, rate, images and errors, on standard error.

    A live line on a terminal, cut to its width by leaving out what matters less; elsewhere one line every ten seconds.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars: Bars | None = None
        self._images = self._questions = self._images_total = self._total = self._errors = self._resumed = 0
        self._notes = 0
        self._began = self._spoke = time.monotonic()

    def start(self, images: int, questions: int, resumed: int) -> None:
        """Say what is to be done; a resumed run says so."""
        self._images_total, self._total, self._resumed = images, questions, resumed
        self._began = self._spoke = time.monotonic()
        if not questions:
            self._console.print(f"Finished before: all {resumed:,} answers are there; nothing is generated.")
            return
        if resumed:
            self._console.print(f"Resuming: {resumed:,} answers are there, {questions:,} questions are left.")
        self._console.print(f"{questions:,} questions about {images:,} {'image' if images == 1 else 'images'}.")
        if self._console.is_terminal:
            self._bars = Bars(_Live(self), console=self._console, transient=True)
            self._bars.add_task("", total=questions)
            self._bars.start()

    def advance(self, images: int, questions: int, errors: int) -> None:
        """Add a batch's counts and show them."""
        self._images += images
        self._questions += questions
        self._errors += errors
        now = time.monotonic()
        if self._bars is not None:
            self._bars.update(self._bars.task_ids[0], completed=self._questions)
        elif now - self._spoke >= PLAIN_EVERY:
            self._spoke = now
            self._console.print(self.line(PLAIN_WIDTH, now, bar=False), soft_wrap=True)
        if self._questions >= self._total:
            self.close()

    def note(self, message: str) -> None:
        """Print a line above the bar; after many of them, no more."""
        self._notes += 1
        if self._notes > MAX_NOTES:
            return
        if self._notes == MAX_NOTES:
            message += "\nNo more of these are shown; every failure is in answers.jsonl."
        self._console.print(escape(printable(message)), style="yellow", soft_wrap=not self._console.is_terminal)

    def close(self) -> None:
        """Remove the bar."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    @property
    def width(self) -> int:
        """The columns of the terminal."""
        return self._console.width

    @property
    def so_far(self) -> str:
        """How many answers there are, `732 of 4,089`; "" before the first."""
        done = self._resumed + self._questions
        return f"{done:,} of {self._resumed + self._total:,}" if done else ""

    def line(self, width: int, now: float, *, bar: bool = True) -> str:
        """The state of the run in at most `width` columns: count, time left and rate are never left out."""
        rate = self._questions / max(now - self._began, 1e-9)
        left = duration((self._total - self._questions) / rate) if self._questions else "-:--"
        count = f"{self._questions:,}/{self._total:,}"
        text = f"{count}  {left} left  {rate:,.1f}/s"
        if len(text) > width:
            text = f"{count} {left} {rate:,.0f}/s"
        errors = f"  {self._errors:,} {'error' if self._errors == 1 else 'errors'}" if self._errors else ""
        for more in (errors, f"  {self._images:,}/{self._images_total:,} images"):
            if len(text) + len(more) <= width - 14 * bar or (more is errors and len(text) + len(more) <= width):
                text += more
        room = min(40, width - len(text) - 1)
        if bar and room >= 8:  # two signs, so that it can be read without colour too
            full = round(room * self._questions / max(self._total, 1))
            text = f"{BAR[0] * full}{BAR[1] * (room - full)} {text}"
        return text


class _Live(ProgressColumn):
    """The line of a run, made again for whatever width the terminal has now."""

    def __init__(self, progress: ConsoleProgress) -> None:
        super().__init__()
        self._progress = progress

    def render(self, task: Task) -> Text:
        return Text(self._progress.line(self._progress.width, time.monotonic()), no_wrap=True)


def duration(seconds: float) -> str:
    """`0:05`, `12:40`, `3:02:10`, `2 d 4 h`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
