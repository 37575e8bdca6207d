"""Shares of one evaluation, answered on different machines (`--shard I/N`), put together and scored."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vlmamba_eval.manifest import Manifest
from vlmamba_eval.run import Outcome, conclude
from vlmamba_eval.store import ANSWERS, MANIFEST, Run, data_source, read_answers, read_manifest
from vlmamba_eval.submit import load_again
from vlmamba_eval.types import UsageError


def merge(
    shares: Sequence[Path],
    out: Path,
    data: str | None = None,
    max_errors: int = 0,
    *,
    note: Callable[[str], None] = lambda message: None,
) -> list[Outcome]:
    """Put the answers of all shares into runs below `out`, and score them.

    `shares` are the folders that `--shard` wrote to, or folders above them. Answers may overlap; a failure gives way
    to an answer. Runs of different models, questions or settings stay different runs. `note` is told which parts an
    incomplete run lacks. Raises `UsageError` if there is nothing to merge, `StoreError` for a damaged share.
    """
    folders = sorted({path.parent for share in shares for path in share.rglob(ANSWERS) if _is_run(path.parent)})
    if not folders:
        raise UsageError(f"{', '.join(map(str, shares))}: no shares there. Expected what `--shard I/N` wrote.")
    by_key: dict[str, list[tuple[Path, Manifest]]] = defaultdict(list)
    for folder in folders:
        manifest = read_manifest(folder)
        by_key[manifest.key].append((folder, manifest))
    outcomes = []
    for parts in by_key.values():
        manifest = parts[0][1]
        source = data or next(filter(None, (data_source(folder) for folder, _ in parts)), None)
        dataset = load_again(manifest, source, parts[0][0])
        with Run(manifest.folder(out), manifest) as run:
            for folder, _ in parts:
                if folder.resolve() == run.folder.resolve():
                    continue
                found = read_answers(folder).values()
                run.append(
                    [
                        answer
                        for answer in found
                        if run.state(answer.id) != "ok" and (answer.failure is None or answer.id not in run.answers)
                    ]
                )
            run.log(event="merged", data=dataset.source, shares=len(parts))
            outcomes.append(conclude(dataset, run, max_errors))
        if outcomes[-1].scores.n_missing and (absent := _absent(folder for folder, _ in parts)):
            note(f"{manifest.name}, {dataset.task.info.title}, {len(dataset.samples):,} questions: {absent}")
    return outcomes


def _absent(folders: Iterable[Path]) -> str:
    """Which parts of a run are not among folders named as `--shard` names them; "" if none is missed."""
    found: dict[int, set[int]] = defaultdict(set)
    for folder in folders:
        for number, of in re.findall(r"/(\d+)-of-(\d+)/", f"{folder.resolve().as_posix()}/"):
            found[int(of)].add(int(number))
    absent = []
    for of, there in sorted(found.items()):
        missing = [str(number) for number in range(1, of + 1) if number not in there]
        if missing:
            named = ", ".join(missing[:20]) + (", ..." if len(missing) > 20 else "")
            absent.append(f"part {named} of {of} is" if len(missing) == 1 else f"parts {named} of {of} are")
    return "; ".join(f"{part} not there" for part in absent)


def _is_run(folder: Path) -> bool:
    return (folder / MANIFEST).exists()
