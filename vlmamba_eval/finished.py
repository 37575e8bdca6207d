"""What can be done with a run on disk once its answers are there: its server's file, a judge's grades."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmamba_eval.dataset import PARTIAL, UNTRAINED, Dataset, answer_text, load_dataset
from vlmamba_eval.run import scored
from vlmamba_eval.store import DONE, Run, cannot_write, data_source, read_answers, read_manifest, read_scores
from vlmamba_eval.types import DataError, StoreError, UsageError

JUDGEMENTS = "judgements.jsonl"


@dataclass(frozen=True)
class Finished:
    """A run with the questions that it answered; `texts` are its answers by sample id, failed ones left out."""

    folder: Path
    dataset: Dataset
    texts: dict[str, str]


def reopen(folder: Path, data: str | None = None) -> Finished:
    """Load a run and its benchmark, from `data` or from where the run read it.

    Raises `DataError` where other questions lie there, `UsageError` where it is not known where to look.
    """
    from tasks.registry import get_task

    manifest = read_manifest(folder)
    task = get_task(manifest["task"]["name"])
    where = data or data_source(folder)
    if where is None:
        raise UsageError(f"{folder} does not say where its data lay; give it with --data.")
    limit = manifest["data"].get("limit")
    dataset = load_dataset(
        task,
        where,
        limit=limit["questions"] if limit else None,
        seed=limit["seed"] if limit else 0,
        allow_partial=True,
    )
    if dataset.provenance["sha256"] != manifest["data"]["sha256"]:
        raise DataError(f"{where} does not hold the questions that {folder} answered. Give their folder with --data.")
    answers = read_answers(folder)
    texts = {
        sample.id: answer_text(task, sample, generation)
        for sample in dataset.samples
        if (answer := answers.get(sample.id)) is not None and (generation := answer.generation) is not None
    }
    return Finished(folder, dataset, texts)


def submit(folder: Path, data: str | None = None, out: Path | None = None) -> list[Path]:
    """Write the submission of a complete run into `out` (default: `submission/` in the run folder); the paths written.

    Raises `DataError` for a run that is PARTIAL or lacks answers, `StoreError` where nothing can be written.
    """
    run = reopen(folder, data)
    if PARTIAL in run.dataset.marks:
        raise DataError(
            f"{folder} is a PARTIAL run; a submission needs every question of {run.dataset.task.info.title}. "
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
        return run.dataset.task.submit(run.dataset.samples, run.texts, target)
    except OSError as error:
        raise StoreError(cannot_write(target, error)) from error


def judge(
    folder: Path,
    url: str,
    model: str,
    data: str | None = None,
    judged: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Have a model grade a run's answers, and write its scores anew; judgements are kept in the run folder.

    Stopped, it goes on where it was. `judged(done, total)` is called after each. Raises `UsageError` for a benchmark
    that is scored by rules.
    """
    run = reopen(folder, data)
    before = read_scores(folder)
    with Run(folder, read_manifest(folder)) as opened:
        try:
            verdicts = run.dataset.task.judge(run.dataset.samples, run.texts, folder / JUDGEMENTS, url, model, judged)
        except OSError as error:
            raise StoreError(cannot_write(folder / JUDGEMENTS, error)) from error
        scores = scored(
            run.dataset, opened, before["model"], before["scoring"], UNTRAINED in before["marks"], model, verdicts
        )
        opened.finish(scores, complete=(folder / DONE).exists() and not scores["n_missing"])
    return scores
