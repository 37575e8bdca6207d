"""What can be done with a run on disk once its answers are there: its server's file, a judge's grades."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlmamba_eval.dataset import UNSCORED, Dataset, answer_text, load_dataset
from vlmamba_eval.store import Run, data_source, read_answers, read_manifest, read_scores
from vlmamba_eval.types import DataError, Graded, UsageError

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

    Raises `DataError` for a run that is limited or lacks answers.
    """
    run = reopen(folder, data)
    if "limit" in run.dataset.provenance:
        raise DataError(f"{folder} is a limited run; a submission needs every question. Run again without --limit.")
    missing = len(run.dataset.samples) - len(run.texts)
    if missing:
        raise DataError(
            f"{folder} lacks {missing:,} of {len(run.dataset.samples):,} answers. "
            "Run the same evaluation again to complete it."
        )
    target = out or folder / "submission"
    target.mkdir(parents=True, exist_ok=True)
    return run.dataset.task.submit(run.dataset.samples, run.texts, target)


def judge(folder: Path, url: str, model: str, data: str | None = None) -> dict[str, Any]:
    """Have a model grade a run's answers, and write its scores anew; judgements are kept in the run folder.

    Stopped, it goes on where it was. Raises `UsageError` for a benchmark that is scored by rules.
    """
    from vlmamba_eval.stats import summarise

    run = reopen(folder, data)
    task, samples = run.dataset.task, run.dataset.samples
    verdicts = task.judge(samples, run.texts, folder / JUDGEMENTS, url, model)
    graded = [
        Graded(sample, verdicts.get(sample.id), "ok" if sample.id in verdicts else "missing") for sample in samples
    ]
    with Run(folder, read_manifest(folder)) as opened:
        before = read_scores(folder)
        scores = before | {
            "judge": model,
            "marks": [mark for mark in before["marks"] if mark != UNSCORED],
            "scores": [asdict(score) for score in summarise(task, graded)],
        }
        opened.finish(scores, complete=len(run.texts) == len(samples))
    return scores
