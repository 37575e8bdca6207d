"""The evaluation: plan, prepare images, generate, store, score.

Generating and scoring are two phases with the answers file between them. Answers are on the disk before the next batch
begins; scores and reports are pure functions of the answers and the annotation files.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from model_adapters.base import Deferred
from vlmamba_eval import __version__
from vlmamba_eval.data import open_image
from vlmamba_eval.dataset import INCOMPLETE, UNSCORED, UNTRAINED, Dataset, answer_text, grade
from vlmamba_eval.plan import ImageJobs, batches, plan
from vlmamba_eval.store import SCORES, Run, folder_name, read_scores, run_key
from vlmamba_eval.types import (
    Answer,
    DataError,
    Failure,
    Generation,
    ImageQuestions,
    OutOfMemory,
    Question,
    Sample,
    UsageError,
    Verdict,
)

if TYPE_CHECKING:
    from model_adapters.base import Adapter, AdapterInfo, RanksContinuations

Scoring = Literal["generate", "likelihood"]

AUTO_BATCH_TOKENS = {"cpu": 16_384, "cuda": 262_144}
PREPARE_THREADS = 4


class Progress:
    """What a run tells while it goes on; this one says nothing."""

    def start(self, images: int, questions: int, resumed: int) -> None:
        """Called once, with what is to be done and how many questions already have their answer."""

    def advance(self, images: int, questions: int, errors: int, credits: Sequence[float]) -> None:
        """Called after each batch is on the disk, with what it added; `credits` are those of scored answers."""

    def note(self, message: str) -> None:
        """Something that the user should know."""


@dataclass(frozen=True)
class Outcome:
    """What became of one task of a run. Of its failures, `n_model_errors` are the model's, the others its data's."""

    folder: Path
    scores: dict[str, Any]
    n_model_errors: int
    complete: bool


# =============================================================================
# Identity
# =============================================================================


def manifest(dataset: Dataset, info: AdapterInfo, scoring: Scoring) -> dict[str, Any]:
    """Everything that decides the answers of one task. Not in it: batch size, sharing, resumption (they don't)."""
    return {
        **asked(dataset),
        "model": asdict(info),
        "decoding": {"scoring": scoring, "greedy": True, "max_new_tokens": dataset.task.info.max_new_tokens},
        "protocol": "llava-1.5",
    }


def asked(dataset: Dataset) -> dict[str, Any]:
    """The part of a manifest that says what was asked, whoever answered."""
    task = dataset.task.info
    return {
        "task": {"name": task.name, "version": task.version, "split": task.split},
        "data": dict(dataset.provenance) | {"marks": list(dataset.marks)},
    }


def run_folder(out: Path, model: str, manifest: Mapping[str, Any]) -> Path:
    """`runs/<model>/<task>/<key>/` below `out`."""
    return out / "runs" / folder_name(model) / manifest["task"]["name"] / run_key(manifest)


# =============================================================================
# The run
# =============================================================================


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

    Images are shared by the tasks of the run. `batch_tokens` is the budget of one batch (None: by device); on
    `OutOfMemory` a batch is halved and tried again. Questions whose image can't be read, and those whose batch made
    the adapter raise, get a typed failure; the next run tries them again. A deferred adapter is loaded only where
    questions are left.
    """
    progress = progress or Progress()
    info = adapter.info
    manifests = [manifest(dataset, info, scoring) for dataset in datasets]
    with ExitStack() as stack:
        runs = {
            dataset.task.info.name: stack.enter_context(Run(run_folder(out, info.name, m), m))
            for dataset, m in zip(datasets, manifests, strict=True)
        }
        pending = [
            (dataset.task.info.name, sample, _question(dataset, sample, scoring))
            for dataset in datasets
            for sample in dataset.samples
            if runs[dataset.task.info.name].state(sample.id) != "ok"
        ]
        groups = plan(pending)
        total = sum(len(dataset.samples) for dataset in datasets)
        progress.start(sum(group.image is not None for group in groups), len(pending), total - len(pending))
        if groups:
            for dataset, run in zip(datasets, runs.values(), strict=True):
                run.log(event="start", time=time.time(), data=dataset.source, version=__version__, **_host())
            loaded = adapter.load() if isinstance(adapter, Deferred) else adapter
            answer = _verb(loaded, scoring)
            _generate(loaded, answer, groups, datasets, runs, batch_tokens, progress)
            for run in runs.values():
                run.log(event="end", time=time.time())
        return [
            conclude(dataset, run, info.name, scoring, max_errors, info.untrained)
            for dataset, run in zip(datasets, runs.values(), strict=True)
        ]


def conclude(
    dataset: Dataset,
    run: Run,
    model: str,
    scoring: Scoring,
    max_errors: int = 0,
    untrained: bool = False,
) -> Outcome:
    """Score what the run has and write its derived files. Failed and missing answers count as wrong, and are named."""
    info = dataset.task.info
    scores = scored(dataset, run, model, scoring, untrained)
    if info.scored == "judge" and (run.folder / SCORES).exists():
        before = read_scores(run.folder)  # a judge's grades stay as long as the answers are the same
        if before["judge"] and all(before[count] == scores[count] for count in ("n_missing", "n_error")):
            scores = before
    complete = scores["n_missing"] == 0 and scores["n_error"] <= max_errors
    run.finish(scores, complete=complete)
    failures = [answer.failure.kind for answer in run.answers.values() if answer.failure is not None]
    return Outcome(run.folder, scores, failures.count("model_error"), complete)


def scored(
    dataset: Dataset,
    run: Run,
    model: str,
    scoring: Scoring,
    untrained: bool,
    judge: str | None = None,
    verdicts: Mapping[str, Verdict] | None = None,
) -> dict[str, Any]:
    """What `scores.json` holds. `verdicts`, by sample id, are those of the judge; without one, rules grade."""
    from vlmamba_eval.stats import summarise

    info = dataset.task.info
    states = Counter(run.state(sample.id) for sample in dataset.samples)
    graded = grade(dataset, run.answers, verdicts) if dataset.labelled or verdicts is not None else []
    marks = [*run.manifest["data"]["marks"]]
    if untrained:
        marks.append(UNTRAINED)
    if states["missing"] or states["error"]:
        marks.append(INCOMPLETE)
    if not graded:
        marks.append(UNSCORED)
    return {
        "model": model,
        "task": info.name,
        "title": info.title,
        "split": info.split,
        "headline": info.headline,
        "scoring": scoring,
        "judge": judge,
        "marks": marks,
        "n": len(dataset.samples),
        "n_missing": states["missing"],
        "n_error": states["error"],
        "scores": [asdict(score) for score in summarise(dataset.task, graded)] if graded else [],
    }


def _verb(adapter: Adapter, scoring: Scoring) -> Callable[[Sequence[ImageQuestions]], list[list[Generation]]]:
    if scoring == "generate":
        return adapter.generate
    if not hasattr(adapter, "rank"):
        raise UsageError(f"{adapter.info.name} cannot score given answers; leave out --scoring likelihood.")
    return cast("RanksContinuations", adapter).rank


def _question(dataset: Dataset, sample: Sample, scoring: Scoring) -> Question:
    task = dataset.task
    if scoring == "generate":
        return Question(task.prompt(sample), task.info.max_new_tokens)
    continuations = task.continuations(sample)
    if not continuations:
        raise UsageError(f"{task.info.name} has no choices to rank; leave it out of --scoring likelihood.")
    return Question(task.likelihood_prompt(sample), task.info.max_new_tokens, continuations)


def _host() -> dict[str, Any]:
    import platform

    return {"host": platform.node(), "python": platform.python_version(), "machine": platform.machine()}


# =============================================================================
# Generating
# =============================================================================


def _generate(
    adapter: Adapter,
    answer: Callable[[Sequence[ImageQuestions]], list[list[Generation]]],
    groups: list[ImageJobs],
    datasets: Sequence[Dataset],
    runs: Mapping[str, Run],
    batch_tokens: int | None,
    progress: Progress,
) -> None:
    """Answer all groups, batch by batch: images are decoded ahead on threads, answers stored in plan order."""
    info = adapter.info
    budget = batch_tokens or AUTO_BATCH_TOKENS.get(info.device.split(":")[0], AUTO_BATCH_TOKENS["cpu"])
    tasks = {
        dataset.task.info.name: (dataset, {sample.id: sample for sample in dataset.samples}) for dataset in datasets
    }
    with ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="prepare") as pool:
        try:
            for batch, prepared in _prepared(adapter, batches(groups, info.image_tokens, budget), pool):
                results = _answer_batch(answer, batch, prepared, info.image_tokens, progress)
                lines: dict[str, list[Answer]] = defaultdict(list)
                for group, result in zip(batch, results, strict=True):
                    for job, outcome in zip(group.jobs, result, strict=True):
                        for task, sample_id in job.recipients:
                            lines[task].append(_as_answer(sample_id, outcome))
                for task, answers in lines.items():  # on the disk before anything else is done with them
                    runs[task].append(answers)
                done = [(*tasks[task], answer) for task, answers in lines.items() for answer in answers]
                errors = sum(answer.failure is not None for _, _, answer in done)
                images = sum(group.image is not None for group in batch)
                progress.advance(images, len(done), errors, list(_credits(done)))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _credits(done: Sequence[tuple[Dataset, Mapping[str, Sample], Answer]]) -> Iterator[float]:
    """What the answers that can be scored are worth, for the running score."""
    for dataset, samples, answer in done:
        sample = samples[answer.id]
        if answer.generation is not None and sample.target is not None:
            yield dataset.task.grade(sample, answer_text(dataset.task, sample, answer.generation)).credit


def _prepared(
    adapter: Adapter, all_batches: Iterator[list[ImageJobs]], pool: ThreadPoolExecutor
) -> Iterator[tuple[list[ImageJobs], list[Future[Any] | None]]]:
    """Each batch with its images under way; one batch is prepared ahead while another is answered."""

    def prepare(group: ImageJobs) -> Any:
        assert group.image is not None  # noqa: S101 - only groups with an image are submitted
        return adapter.prepare(open_image(group.image))

    ahead: tuple[list[ImageJobs], list[Future[Any] | None]] | None = None
    for batch in all_batches:
        following = batch, [pool.submit(prepare, group) if group.image is not None else None for group in batch]
        if ahead is not None:
            yield ahead
        ahead = following
    if ahead is not None:
        yield ahead


def _answer_batch(
    answer: Callable[[Sequence[ImageQuestions]], list[list[Generation]]],
    batch: list[ImageJobs],
    prepared: list[Future[Any] | None],
    image_tokens: int,
    progress: Progress,
) -> list[list[Generation | Failure]]:
    """One result for each job of each group: a generation, or why there is none."""
    results: list[list[Generation | Failure]] = []
    ready: list[tuple[int, ImageQuestions]] = []
    for i, (group, future) in enumerate(zip(batch, prepared, strict=True)):
        results.append([])
        try:
            image = future.result() if future is not None else None
        except DataError as error:
            results[i] = [Failure("data_error", str(error))] * len(group.jobs)
            progress.note(str(error))
        except Exception as error:  # noqa: BLE001 - an adapter that can't stand a picture fails its questions alone
            failure = Failure("model_error", f"{type(error).__name__}: {error}")
            results[i] = [failure] * len(group.jobs)
            progress.note(f"{group.image.where if group.image else 'a text'} can't be prepared: {failure.message}")
        else:
            ready.append((i, ImageQuestions(image, tuple(job.question for job in group.jobs))))
    if ready:
        answered = _halving(answer, [questions for _, questions in ready], progress)
        for (i, _), generations in zip(ready, answered, strict=True):
            results[i] = generations
    return results


def _halving(
    answer: Callable[[Sequence[ImageQuestions]], list[list[Generation]]],
    batch: list[ImageQuestions],
    progress: Progress,
) -> list[list[Generation | Failure]]:
    """Answer a batch; out of memory, answer its halves, down to one question of one image. Nothing else is retried."""
    try:
        answered = answer(batch)
        if [len(generations) for generations in answered] != [len(item.questions) for item in batch]:
            raise AssertionError("the adapter returned another number of answers than there are questions")
        return [list(generations) for generations in answered]
    except OutOfMemory as error:
        if len(batch) > 1:
            middle = len(batch) // 2
            progress.note(f"Out of memory on {len(batch)} images; trying {middle} at a time.")
            return _halving(answer, batch[:middle], progress) + _halving(answer, batch[middle:], progress)
        questions = batch[0].questions
        if len(questions) > 1:
            middle = len(questions) // 2
            progress.note(f"Out of memory on {len(questions)} questions of one image; trying {middle} at a time.")
            halves = [ImageQuestions(batch[0].image, part) for part in (questions[:middle], questions[middle:])]
            return [[outcome for half in halves for outcome in _halving(answer, [half], progress)[0]]]
        failure = Failure("model_error", f"out of memory on a single question: {error}")
    except Exception as error:  # noqa: BLE001 - whatever an adapter raises becomes the typed failure of its questions
        n = sum(len(item.questions) for item in batch)
        which = "" if n == 1 else f" (one of {n:,} questions that were asked together)"
        failure = Failure("model_error", f"{type(error).__name__}: {error}{which}")
    progress.note(f"{sum(len(item.questions) for item in batch)} questions failed: {failure.message}")
    return [[failure] * len(item.questions) for item in batch]


def _as_answer(sample_id: str, outcome: Generation | Failure) -> Answer:
    if isinstance(outcome, Failure):
        return Answer(sample_id, None, outcome)
    return Answer(sample_id, outcome)
