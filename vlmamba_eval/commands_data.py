"""The command line's side of `prepare` and of data that is missing before a run: what is asked and printed.

What fetches and packs is imported when it is asked for: every run passes here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlmamba_eval.fetch.plan import in_bytes, look
from vlmamba_eval.options import say
from vlmamba_eval.prepare import count_ready, describe, fetch, overview, settle
from vlmamba_eval.report.columns import columns
from vlmamba_eval.types import UsageError

if TYPE_CHECKING:
    from vlmamba_eval.dataset import Dataset
    from vlmamba_eval.fetch.progress import ConsoleProgress
    from vlmamba_eval.task import Task
    from vlmamba_eval.types import EvalError


def prepare(
    tasks: Sequence[Task],
    data: str,
    *,
    detailed: bool,
    download: bool,
    yes: bool,
    mirror: str,
    whole: bool,
    pack: Path | None,
    verify: bool,
) -> bool:
    """Show the data's state, and first fetch, then pack or check it, as asked. Whether all is ready and right."""
    needs = [look(task, data) for task in tasks]
    if download:
        if data in ("hub", "samples"):
            raise UsageError(f"--download fills a folder; with --data {data} nothing is left to fetch.")
        from vlmamba_eval.fetch.progress import ConsoleProgress

        progress = ConsoleProgress()
        try:
            needs = fetch(needs, data, ask=_ask(yes, progress), say=say, mirror=mirror, whole=whole, progress=progress)
        finally:
            progress.close()
    if detailed:
        for need in needs:
            click.echo("\n".join(describe(need, data)))
    else:
        click.echo(columns(overview(needs), None))
    click.echo(count_ready(needs))
    right = all(need.ready for need in needs)
    if verify:
        there = [need.task for need in needs if need.dataset is not None]
        from vlmamba_eval.fetch.pack import verify as check

        checked = check(there if not detailed else tasks, data, _counter("checked"))
        for problem in checked.problems:
            click.echo(problem)
        noted = f"{checked.hashed:,} files have their sha256" if not checked.problems else f"{checked.hashed:,} checked"
        click.echo(f"verified: {noted}, {checked.decoded:,} more decoded, {len(checked.problems):,} wrong")
        right = right and not checked.problems
    if pack is not None:
        from vlmamba_eval.fetch.pack import pack as write_archive

        packed = write_archive(tasks, data, pack, _counter("packed"))
        click.echo(
            f"{packed.path}: {packed.files:,} files, {in_bytes(packed.size)}. Elsewhere: --data {packed.path.name}"
        )
    return right


def settled(tasks: Sequence[Task], data: str, download: bool, problems: list[EvalError], **load: Any) -> list[Dataset]:
    """The data sets of a run: what is missing is fetched with `--download`, or if the user on a terminal agrees.

    Questions that are not there are added to `problems`; if there are some already, nothing is fetched.
    """
    progress = None
    if not problems and (download or _on_terminal()):
        from vlmamba_eval.fetch.progress import ConsoleProgress

        progress = ConsoleProgress()
    try:
        ask = _ask(download, progress) if progress is not None else None
        return settle(tasks, data, ask=ask, say=say, problems=problems, progress=progress, **load)
    finally:
        if progress is not None:
            progress.close()


def _ask(yes: bool, progress: ConsoleProgress) -> Callable[[str], bool]:
    def ask(plan: str) -> bool:
        progress.note(plan)
        if yes:
            return True
        if not _on_terminal():
            raise UsageError("Nothing was fetched: there is no terminal to ask on. Give --yes to fetch without asking.")
        with progress.paused():
            return click.confirm("Fetch it?", default=True, err=True)

    return ask


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _counter(word: str) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        if done % 5000 == 0:
            say(f"{done:,}/{total:,} {word}")

    return tell
