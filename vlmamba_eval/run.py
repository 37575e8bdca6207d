"""The evaluation: plan, generate, store, score.

Generating and scoring are two phases with the answers file between them. Answers are on the disk before the next batch
begins; scores and reports are pure functions of the answers and the annotation files.
"""

from __future__ import annotations

import platform
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlmamba_eval import __version__
from vlmamba_eval.adapter import Adapter, AdapterInfo, Deferred, ReportsTelemetry
from vlmamba_eval.dataset import Dataset
from vlmamba_eval.generate import Answered, batch_tokens_for, generate
from vlmamba_eval.manifest import Decoding, Manifest, task_identity
from vlmamba_eval.plan import Group, batches, plan, share, unanswered, written
from vlmamba_eval.score import score, verdict_rows
from vlmamba_eval.store import DONE, SCORES, Run, read_scores
from vlmamba_eval.task import Ranks, RanksItsOwnWay
from vlmamba_eval.typed import command
from vlmamba_eval.types import Answer, Failure, Progress, Question, Sample, Scores, Scoring, UsageError


@dataclass(frozen=True)
class Outcome:
    """What became of one task of a run."""

    folder: Path
    scores: Scores
    complete: bool


Answering = Callable[[Sequence[list[Group]], Callable[[str], None]], Iterator[list[Answered]]]
"""From batches of questions, and where to send notes, to batches of answers: here, or on other machines."""


def evaluate(
    adapter: Adapter | Deferred,
    datasets: Sequence[Dataset],
    out: Path,
    *,
    scoring: Scoring = "generate",
    batch_tokens: int | None = None,
    max_errors: int = 0,
    stop_after: int | None = None,
    seconds: float | None = None,
    progress: Progress | None = None,
    answering: Answering | None = None,
) -> list[Outcome]:
    """Answer every question of every data set that has no answer yet, and score.

    Images are shared by the tasks of the run. `batch_tokens` is the budget of one batch (None: by device). Questions
    whose image can't be read, and those that the adapter can't answer, get a typed failure; the next run tries them
    again. A deferred adapter is loaded only if questions are left, and never if `answering` has others answer them.
    `seconds` is what a batch may take (`generate`). With more than `stop_after` failures nothing more is asked; without
    that number, if all of the first questions fail alike.
    """
    work = _Work(scoring, batch_tokens, seconds, stop_after, progress or Progress(), answering)
    with ExitStack() as stack:
        runs = _answer(stack, adapter, datasets, out, work)
        return [conclude(dataset, run, max_errors) for dataset, run in zip(datasets, runs, strict=True)]


def answer_share(
    adapter: Adapter | Deferred,
    datasets: Sequence[Dataset],
    out: Path,
    number: int,
    of: int,
    *,
    scoring: Scoring = "generate",
    batch_tokens: int | None = None,
    seconds: float | None = None,
    stop_after: int | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Answer one of `of` equal parts of the plan, without scoring: (questions answered, questions failed).

    `merge.merge` puts the parts together.
    """
    work = _Work(scoring, batch_tokens, seconds, stop_after, progress or Progress(), part=(number, of))
    with ExitStack() as stack:
        runs = _answer(stack, adapter, datasets, out, work)
        failed = sum(answer.failure is not None for run in runs for answer in run.answers.values())
        return sum(len(run.answers) for run in runs) - failed, failed


ALIKE = 24
"""So many questions, all of them failed with one message: the model is broken, not a question."""


@dataclass(frozen=True)
class _Work:
    """How a run is answered; see `evaluate`."""

    scoring: Scoring
    batch_tokens: int | None
    seconds: float | None
    stop_after: int | None
    progress: Progress
    answering: Answering | None = None
    part: tuple[int, int] | None = None


def _answer(
    stack: ExitStack, adapter: Adapter | Deferred, datasets: Sequence[Dataset], out: Path, work: _Work
) -> list[Run]:
    """Open a run for each data set, and store an answer to every question of the plan that has none."""
    scoring, progress = work.scoring, work.progress
    names = [dataset.task.info.name for dataset in datasets]
    manifests = [manifest_of(dataset, adapter.info, scoring) for dataset in datasets]
    by_name = dict(zip(names, datasets, strict=True))
    planned = plan(
        ((name, sample) for name, dataset in by_name.items() for sample in dataset.samples),
        lambda name, sample: question(by_name[name], sample, scoring),
    )
    runs = {
        name: stack.enter_context(Run(manifest.folder(out), manifest))
        for name, manifest in zip(names, manifests, strict=True)
    }
    info = adapter.info
    cut = list(batches(planned, info.image_tokens, work.batch_tokens or batch_tokens_for(info.device)))
    if work.part is not None:
        cut = share(cut, info.image_tokens, *work.part)
    left = (unanswered(batch, lambda name, sample_id: runs[name].state(sample_id) == "ok") for batch in cut)
    todo = [batch for batch in left if batch]
    asked = sum(len(group.asked) - len(group.done) for batch in todo for group in batch)
    resumed = sum(len(group.asked) for batch in cut for group in batch) - asked
    progress.start(sum(group.image is not None for batch in todo for group in batch), asked, resumed)
    if not todo:
        return list(runs.values())
    for dataset, run in zip(datasets, runs.values(), strict=True):
        run.log(event="start", time=time.time(), data=dataset.source, version=__version__, **_host())
    used: dict[str, Any] = {}
    if work.answering is None:
        loaded = adapter.load() if isinstance(adapter, Deferred) else adapter
        answered_here = generate(loaded, map(written, todo), scoring=scoring, seconds=work.seconds, note=progress.note)
        _store(answered_here, runs, work)
        used = dict(loaded.telemetry()) if isinstance(loaded, ReportsTelemetry) else {}
    else:
        _store(work.answering(todo, progress.note), runs, work)
    for run in runs.values():
        run.log(event="end", time=time.time(), **used)
    return list(runs.values())


def _store(batches: Iterator[list[Answered]], runs: Mapping[str, Run], work: _Work) -> None:
    """Write each batch of answers to the runs of those who asked, before the next one is made."""
    errors: Counter[str] = Counter()
    asked = 0
    for batch in batches:
        lines: dict[str, list[Answer]] = defaultdict(list)
        for answered in batch:
            for job, outcome in zip(answered.group.jobs, answered.outcomes, strict=True):
                failed = isinstance(outcome, Failure)
                for name, sample_id in job.recipients:
                    lines[name].append(Answer(sample_id, None, outcome) if failed else Answer(sample_id, outcome))
        for name, answers in lines.items():  # on the disk before anything else is done with them
            runs[name].append(answers)
        done = [answer for answers in lines.values() for answer in answers]
        images = sum(answered.group.image is not None for answered in batch)
        failures = [answer.failure.message for answer in done if answer.failure is not None]
        work.progress.advance(images, len(done), len(failures))
        errors.update(failures)
        asked += len(done)
        if work.stop_after is not None and errors.total() > work.stop_after:
            work.progress.note(f"Stopped: {errors.total():,} questions failed, more than {work.stop_after:,}.")
            return
        if work.stop_after is None and asked >= ALIKE and errors.total() == asked and len(errors) == 1:
            work.progress.note(f"Stopped: the first {asked:,} questions all failed alike: {next(iter(errors))}")
            return


def conclude(dataset: Dataset, run: Run, max_errors: int = 0) -> Outcome:
    """Score what the run has and write its derived files. Failed and missing answers count as wrong, and are named."""
    run.settle([sample.id for sample in dataset.samples])
    scores, graded = score(dataset, run.manifest, run.answers)
    complete = scores.n_missing == scores.n_foreign == 0 and scores.n_error <= max_errors
    if dataset.task.info.scored == "judge" and (run.folder / SCORES).exists():
        before = read_scores(run.folder)  # a judge's grades stay as long as the answers are the same
        if before.judge and (before.n_missing, before.n_error) == (scores.n_missing, scores.n_error):
            run.seal(complete=complete)
            return Outcome(run.folder, before, complete)
    run.finish(scores, partial(verdict_rows, dataset, run.answers, graded), complete=complete)
    return Outcome(run.folder, scores, complete)


def manifest_of(dataset: Dataset, info: AdapterInfo, scoring: Scoring) -> Manifest:
    """Everything that decides the answers of one task that a model is asked."""
    decoding = Decoding(scoring, dataset.task.info.max_new_tokens, greedy=info.deterministic)
    return Manifest(task_identity(dataset.task), dataset.identity, model=info, decoding=decoding)


def finished(dataset: Dataset, info: AdapterInfo, out: Path, scoring: Scoring) -> bool:
    """Whether a run below `out` has every answer already."""
    return (manifest_of(dataset, info, scoring).folder(out) / DONE).exists()


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
    where = {"host": platform.node(), "python": platform.python_version(), "machine": platform.machine()}
    return where | {"command": command()}
