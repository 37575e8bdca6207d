"""The evaluation: plan, generate, store, score.

Generating and scoring are two phases with the answers file between them. Answers are on the disk before the next batch
begins; scores and reports are pure functions of the answers and the annotation files.
"""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vlmamba_eval import __version__
from vlmamba_eval.adapter import Adapter, AdapterInfo, Deferred, ReportsTelemetry
from vlmamba_eval.dataset import Dataset
from vlmamba_eval.generate import generate
from vlmamba_eval.manifest import Decoding, Manifest, task_identity
from vlmamba_eval.plan import plan, unanswered
from vlmamba_eval.score import score, verdict_rows
from vlmamba_eval.store import SCORES, Run, read_scores
from vlmamba_eval.task import Ranks, RanksItsOwnWay
from vlmamba_eval.types import Answer, Failure, Progress, Question, Sample, Scores, Scoring, UsageError


@dataclass(frozen=True)
class Outcome:
    """What became of one task of a run."""

    folder: Path
    scores: Scores
    complete: bool


def evaluate(
    adapter: Adapter | Deferred,
    datasets: Sequence[Dataset],
    out: Path,
    *,
    scoring: Scoring = "generate",
    batch_tokens: int | None = None,
    max_errors: int = 0,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Answer every question of every data set that has no answer yet, and score.

    Images are shared by the tasks of the run. `batch_tokens` is the budget of one batch (None: by device). Questions
    whose image can't be read, and those that the adapter can't answer, get a typed failure; the next run tries them
    again. A deferred adapter is loaded only if questions are left.
    """
    progress = progress or Progress()
    names = [dataset.task.info.name for dataset in datasets]
    manifests = [manifest_of(dataset, adapter.info, scoring) for dataset in datasets]
    questions = [[question(dataset, sample, scoring) for sample in dataset.samples] for dataset in datasets]
    with ExitStack() as stack:
        runs = {
            name: stack.enter_context(Run(manifest.folder(out), manifest))
            for name, manifest in zip(names, manifests, strict=True)
        }
        wanted = [
            (name, sample, asked)
            for name, dataset, all_asked in zip(names, datasets, questions, strict=True)
            for sample, asked in zip(dataset.samples, all_asked, strict=True)
        ]
        todo = unanswered(plan(wanted), lambda name, sample_id: runs[name].state(sample_id) == "ok")
        left = sum(len(job.recipients) for group in todo for job in group.jobs)
        progress.start(sum(group.image is not None for group in todo), left, len(wanted) - left)
        if todo:
            for dataset, run in zip(datasets, runs.values(), strict=True):
                run.log(event="start", time=time.time(), data=dataset.source, version=__version__, **_host())
            loaded = adapter.load() if isinstance(adapter, Deferred) else adapter
            for batch in generate(loaded, todo, scoring=scoring, batch_tokens=batch_tokens, note=progress.note):
                lines: dict[str, list[Answer]] = defaultdict(list)
                for answered in batch:
                    for job, outcome in zip(answered.group.jobs, answered.outcomes, strict=True):
                        failed = isinstance(outcome, Failure)
                        for name, sample_id in job.recipients:
                            answer = Answer(sample_id, None, outcome) if failed else Answer(sample_id, outcome)
                            lines[name].append(answer)
                for name, answers in lines.items():  # on the disk before anything else is done with them
                    runs[name].append(answers)
                done = [answer for answers in lines.values() for answer in answers]
                images = sum(answered.group.image is not None for answered in batch)
                progress.advance(images, len(done), sum(answer.failure is not None for answer in done))
            used = dict(loaded.telemetry()) if isinstance(loaded, ReportsTelemetry) else {}
            for run in runs.values():
                run.log(event="end", time=time.time(), **used)
        return [conclude(dataset, run, max_errors) for dataset, run in zip(datasets, runs.values(), strict=True)]


def conclude(dataset: Dataset, run: Run, max_errors: int = 0) -> Outcome:
    """Score what the run has and write its derived files. Failed and missing answers count as wrong, and are named."""
    scores, graded = score(dataset, run.manifest, run.answers)
    complete = scores.n_missing == 0 and scores.n_error <= max_errors
    if dataset.task.info.scored == "judge" and (run.folder / SCORES).exists():
        before = read_scores(run.folder)  # a judge's grades stay as long as the answers are the same
        if before.judge and (before.n_missing, before.n_error) == (scores.n_missing, scores.n_error):
            run.seal(complete=complete)
            return Outcome(run.folder, before, complete)
    run.finish(scores, verdict_rows(dataset, run.answers, graded), complete=complete)
    return Outcome(run.folder, scores, complete)


def manifest_of(dataset: Dataset, info: AdapterInfo, scoring: Scoring) -> Manifest:
    """Everything that decides the answers of one task that a model is asked."""
    decoding = Decoding(scoring, dataset.task.info.max_new_tokens, greedy=info.deterministic)
    return Manifest(task_identity(dataset.task), dataset.identity, model=info, decoding=decoding)


def question(dataset: Dataset, sample: Sample, scoring: Scoring) -> Question:
    """What is put to the model about one sample. Raises `UsageError` if its choices can't be ranked."""
    task = dataset.task
    if scoring == "generate":
        return Question(task.prompt(sample), task.info.max_new_tokens)
    continuations = task.continuations(sample) if isinstance(task, Ranks) else ()
    if not continuations:
        raise UsageError(f"{task.info.name} has no choices to rank; leave it out of --scoring likelihood.")
    text = task.likelihood_prompt(sample) if isinstance(task, RanksItsOwnWay) else task.prompt(sample)
    return Question(text, task.info.max_new_tokens, continuations)


def _host() -> dict[str, str]:
    return {"host": platform.node(), "python": platform.python_version(), "machine": platform.machine()}
