"""Answers -> verdicts -> scores: pure functions of what was answered and of the annotation files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlmamba_eval.dataset import Dataset
from vlmamba_eval.manifest import Manifest
from vlmamba_eval.stats import summarise
from vlmamba_eval.task import GradesLists, RanksItsOwnWay, Task
from vlmamba_eval.types import Answer, Generation, Graded, Mark, Sample, Scores, Verdict


def score(
    dataset: Dataset,
    manifest: Manifest,
    answers: Mapping[str, Answer],
    *,
    judge: str | None = None,
    verdicts: Mapping[str, Verdict] | None = None,
) -> tuple[Scores, list[Graded]]:
    """What the answers are worth, and each sample with its verdict.

    `verdicts`, by sample id, are those of the judge; without one, the task's rules grade. Without gold labels nothing
    is graded: the scores are UNSCORED, and no sample has a verdict.
    """
    info = dataset.task.info
    scorable = dataset.labelled or verdicts is not None
    graded = grade(dataset, answers, verdicts if scorable else {})
    states = Counter(item.state for item in graded)
    foreign = sum(item.foreign for item in graded)
    marks: list[Mark] = [*manifest.data.marks]
    if manifest.model is not None and manifest.model.untrained:
        marks.append("UNTRAINED")
    if states["missing"] or states["error"]:
        marks.append("INCOMPLETE")
    if not scorable:
        marks.append("UNSCORED")
    scores = Scores(
        model=manifest.name,
        task=info.name,
        title=info.title,
        split=info.split,
        headline=info.headline,
        scoring=manifest.scoring,
        judge=judge,
        marks=tuple(marks),
        n=len(dataset.samples),
        n_missing=states["missing"],
        n_error=states["error"] - foreign,
        n_foreign=foreign,
        scores=tuple(summarise(dataset.task, graded, dataset.extra)) if scorable else (),
    )
    return scores, graded


def grade(
    dataset: Dataset, answers: Mapping[str, Answer], verdicts: Mapping[str, Verdict] | None = None
) -> list[Graded]:
    """Every sample with its verdict; missing and failed answers have none, and count as wrong.

    `verdicts`, by sample id, are given (a judge's); without them the task's rules grade.
    """
    task = dataset.task
    if verdicts is None and isinstance(task, GradesLists):
        verdicts = _all_at_once(task, dataset, answers)
    graded: list[Graded] = []
    for sample in dataset.samples:
        answer = answers.get(sample.id)
        if answer is None:
            graded.append(Graded(sample, None, "missing"))
        elif answer.generation is None:
            foreign = answer.failure is not None and answer.failure.kind == "foreign"
            graded.append(Graded(sample, None, "error", foreign=foreign))
        else:
            said = answer.generation
            given = (
                verdicts.get(sample.id) if verdicts is not None else task.grade(sample, answer_text(task, sample, said))
            )
            graded.append(Graded(sample, given, "ok", said.stop == "length"))
    return graded


def _all_at_once(task: GradesLists, dataset: Dataset, answers: Mapping[str, Answer]) -> dict[str, Verdict]:
    said = texts(dataset, answers)
    answered = [(sample, said[sample.id]) for sample in dataset.samples if sample.id in said]
    return dict(zip(said, task.grade_all(answered, dataset.extra), strict=True))


def answer_text(task: Task, sample: Sample, generation: Generation) -> str:
    """The text to grade: what was generated, or what a ranking of continuations means."""
    if generation.likelihoods and isinstance(task, RanksItsOwnWay):
        return task.choose(sample, generation)
    return generation.text


def texts(dataset: Dataset, answers: Mapping[str, Answer]) -> dict[str, str]:
    """The texts to grade by sample id, failed answers left out."""
    return {
        sample.id: answer_text(dataset.task, sample, generation)
        for sample in dataset.samples
        if (answer := answers.get(sample.id)) is not None and (generation := answer.generation) is not None
    }


def verdict_rows(dataset: Dataset, answers: Mapping[str, Answer], graded: Sequence[Graded]) -> Iterator[dict[str, Any]]:
    """What `verdicts.jsonl` holds: one row per question, in the order of ids.

    `credit`, `parsed` and `valid` are null if nothing was graded; `error` says why an answer failed.
    """
    for item in sorted(graded, key=lambda item: item.sample.id):
        sample, verdict, answer = item.sample, item.verdict, answers.get(item.sample.id)
        generation = answer.generation if answer else None
        yield {
            "id": sample.id,
            "image": sample.image.key if sample.image else None,
            "question": dataset.task.prompt(sample),
            "gold": sample.target,
            "answer": answer_text(dataset.task, sample, generation) if generation else None,
            "parsed": verdict.parsed if verdict else None,
            "credit": verdict.credit if verdict else None,
            "valid": verdict.valid if verdict else None,
            "groups": sample.groups,
            "state": item.state,
            "truncated": item.truncated,
            "error": answer.failure.message if answer and answer.failure else None,
        }
