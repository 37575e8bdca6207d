"""The file that a benchmark's server wants, from a run on disk."""

from __future__ import annotations

from pathlib import Path

from vlmamba_eval.dataset import answer_text, load_dataset
from vlmamba_eval.store import data_source, read_answers, read_manifest
from vlmamba_eval.types import DataError, UsageError


def submit(run: Path, data: str | None = None, out: Path | None = None) -> list[Path]:
    """Write the submission of a complete run into `out` (default: `submission/` in the run folder); the paths written.

    `data` is where the benchmark lies (default: where the run read it). Raises `DataError` for a run that is limited,
    lacks answers, or was made on other questions.
    """
    from tasks.registry import get_task

    manifest = read_manifest(run)
    task = get_task(manifest["task"]["name"])
    where = data or data_source(run)
    if where is None:
        raise UsageError(f"{run} does not say where its data lay; give it with --data.")
    if "limit" in manifest["data"]:
        raise DataError(f"{run} is a limited run; a submission needs every question. Run again without --limit.")
    dataset = load_dataset(task, where, allow_partial=True)
    if dataset.provenance["sha256"] != manifest["data"]["sha256"]:
        raise DataError(f"{where} does not hold the questions that {run} answered. Give their folder with --data.")
    answers = read_answers(run)
    texts = {
        sample.id: answer_text(task, sample, generation)
        for sample in dataset.samples
        if (answer := answers.get(sample.id)) is not None and (generation := answer.generation) is not None
    }
    missing = len(dataset.samples) - len(texts)
    if missing:
        raise DataError(
            f"{run} lacks {missing:,} of {len(dataset.samples):,} answers. "
            "Run the same evaluation again to complete it."
        )
    folder = out or run / "submission"
    folder.mkdir(parents=True, exist_ok=True)
    return task.submit(dataset.samples, texts, folder)
