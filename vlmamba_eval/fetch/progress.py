"""Bytes come, rate and time left, on standard error: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vlmamba_eval.fetch.download import Progress
from vlmamba_eval.fetch.plan import in_bytes

PLAIN_EVERY = 10.0  # seconds between two lines without a terminal


class ConsoleProgress(Progress):
    """What a download tells, for people. `close` ends it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._came = self._total = 0
        self._begun = self._said = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Without a bar, while the user is asked; the clock begins afterwards."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        yield
        self._begun = self._said = time.monotonic()

    def _show(self) -> None:
        if self._bar is None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
            from rich.progress import Progress as Bars

            columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            self._bar = Bars(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("fetching", total=None)
            self._bar.start()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._came:
            seconds = max(time.monotonic() - self._begun, 1e-9)
            self._print(f"{in_bytes(self._came)} came in {seconds:,.0f} s.")

    def total(self, size: int) -> None:
        with self._lock:
            self._total += size
            self._show()
            if self._bar is not None:
                self._bar.update(self._task, total=max(self._total, self._came))

    def came(self, size: int) -> None:
        with self._lock:
            self._came += size
            self._total = max(self._total, self._came)
            if self._bar is not None:
                self._bar.update(self._task, advance=size, total=self._total)
            elif time.monotonic() - self._said >= PLAIN_EVERY:
                self._said = time.monotonic()
                left = (self._total - self._came) * (self._said - self._begun) / self._came
                self._print(f"{in_bytes(self._came)} of {in_bytes(self._total)}, about {left:,.0f} s left")

    def note(self, message: str) -> None:
        self._print(message)

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr)
