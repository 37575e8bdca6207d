"""A finished run opened again, and the file that a benchmark's server wants from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlmamba_eval.dataset import Dataset, load_dataset
from vlmamba_eval.files import cannot_write
from vlmamba_eval.manifest import Manifest
from vlmamba_eval.registry import all_tasks, get_task
from vlmamba_eval.score import texts
from vlmamba_eval.store import MANIFEST, data_source, find_runs, read_answers, read_manifest
from vlmamba_eval.task import Submits
from vlmamba_eval.types import DataError, StoreError, UsageError


@dataclass(frozen=True)
class Finished:
    """A run with the questions that it answered; `texts` are its answers by sample id, failed ones left out."""

    folder: Path
    dataset: Dataset
    texts: dict[str, str]


def run_at(root: Path, ability: type, kind: str) -> Path:
    """The run folder at `root`, or the only one below it whose task has an ability; `kind` names such runs.

    Raises `UsageError` with the runs that are there if none or several have it.
    """
    if (root / MANIFEST).exists() or not root.is_dir():
        return root
    able = {name for name, task in all_tasks().items() if isinstance(task, ability)}
    below = find_runs(root)
    found = [folder for folder in below if read_manifest(folder).task.name in able]
    if len(found) == 1:
        return found[0]
    shown = "".join(f"\n  {folder}" for folder in found or below) or " no run with scores at all."
    raise UsageError(
        f"{root} holds {len(found)} {kind}; name the one that is meant:{shown}"
        if found
        else f"{root} holds no {kind}. It holds:{shown}"
    )


def reopen(folder: Path, data: str | None = None) -> Finished:
    """Load a run and its benchmark, from `data` or from where the run read it.

    Raises `DataError` if other questions are there, `UsageError` if it is not known where to look.
    """
    manifest = read_manifest(folder)
    dataset = load_again(manifest, data or data_source(folder), folder)
    return Finished(folder, dataset, texts(dataset, read_answers(folder)))


def load_again(manifest: Manifest, where: str | None, folder: Path) -> Dataset:
    """The questions that a run answered, from where its data is. Raises `DataError` if other questions are there."""
    if where is None:
        raise UsageError(f"{folder} does not say where its data was; give it with --data.")
    limit = manifest.data.limit
    own = manifest.task.protocol == "own"  # questions of a file, which is named by its split
    dataset = load_dataset(
        get_task(f"file:{Path(where) / manifest.task.split}" if own else manifest.task.name),
        where,
        limit=limit.questions if limit else None,
        seed=limit.seed if limit else 0,
        allow_partial=True,
    )
    if dataset.identity.sha256 != manifest.data.sha256:
        raise DataError(f"{where} does not hold the questions that {folder} answered. Give their folder with --data.")
    return dataset


def submit(folder: Path, data: str | None = None, out: Path | None = None) -> list[Path]:
    """Write the submission of a complete run into `out` (default: `submission/` in the run folder); the paths written.

    Raises `DataError` for a run that is PARTIAL or lacks answers, or a benchmark without a submission file;
    `StoreError` if nothing can be written.
    """
    run = reopen(folder, data)
    task = run.dataset.task
    if not isinstance(task, Submits):
        raise DataError(f"{task.info.name} has no submission file: it is scored locally.")
    if "PARTIAL" in run.dataset.identity.marks:
        raise DataError(
            f"{folder} is a PARTIAL run; a submission needs every question of {task.info.title}. "
            "Run again on the whole list, without --limit."
        )
    missing = len(run.dataset.samples) - len(run.texts)
    if missing:
        raise DataError(
            f"{folder} lacks {missing:,} of {len(run.dataset.samples):,} answers. "
            "Run the same evaluation again to complete it."
        )
    target = out or folder / "submission"
    try:
        target.mkdir(parents=True, exist_ok=True)
        return task.submit(run.dataset.samples, run.texts, target, run.dataset.extra)
    except OSError as error:
        raise StoreError(cannot_write(target, error)) from error
