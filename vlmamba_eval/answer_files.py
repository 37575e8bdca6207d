"""Answers that somebody else's program produced, scored into the same tables: a run without a model."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from vlmamba_eval.dataset import Dataset
from vlmamba_eval.manifest import Imported, Manifest, task_identity
from vlmamba_eval.rows import Row, read_jsonl
from vlmamba_eval.run import Outcome, conclude
from vlmamba_eval.store import Run
from vlmamba_eval.task import Task
from vlmamba_eval.typed import command
from vlmamba_eval.types import Answer, DataError, Generation, Sample


def score_answers(dataset: Dataset, answers_file: Path, out: Path, name: str | None = None) -> Outcome:
    """Read an answer file, keep its answers as a run named `name`, and score them.

    Without a name the run takes the file's `model_id`, else the file's own name. Raises `DataError`.
    """
    if not answers_file.is_file():
        raise DataError(f"{answers_file} does not exist. Expected JSON lines with `question_id` and `text`.")
    answers = read_answer_file(dataset, answers_file)
    model = name or _model_id(answers_file) or answers_file.stem
    imported = Imported(model, hashlib.sha256(answers_file.read_bytes()).hexdigest())
    manifest = Manifest(task_identity(dataset.task), dataset.identity, answers=imported)
    with Run(manifest.folder(out), manifest) as run:
        new = [answer for answer in answers.values() if answer.id not in run.answers]
        if new:
            run.log(event="imported", data=dataset.source, answers=str(answers_file.resolve()), command=command())
            run.append(new)
        return conclude(dataset, run)


def _model_id(answers_file: Path) -> str:
    first = next(read_jsonl(answers_file))
    return first.text("model_id", "")


def read_answer_file(dataset: Dataset, path: Path) -> dict[str, Answer]:
    """Anybody's answers, JSON lines with `question_id` (or `id`) and `text`, joined to the samples.

    Joined by id and, where ids repeat (MME, TextVQA), by the saved `prompt`; never by order. Raises `DataError` for an
    id that the benchmark does not have, for two answers to one question, and for a file that answers other questions.
    """
    task = dataset.task
    by_key: dict[str, list[Sample]] = defaultdict(list)
    for sample in dataset.samples:
        by_key[sample.answer_key].append(sample)
        if sample.id != sample.answer_key:
            by_key[sample.id].append(sample)

    answers: dict[str, Answer] = {}
    where: dict[str, str] = {}
    unknown: list[str] = []
    foreign: list[str] = []
    n = 0
    for row in read_jsonl(path):
        n += 1
        key = row.identifier("id" if "id" in row and "question_id" not in row else "question_id")
        text = row.text("text")
        prompt = row.text("prompt", "")
        candidates = by_key.get(key)
        if candidates is None:
            unknown.append(f"{row.where}: question {key!r}")
            continue
        matching = _matching(task, candidates, prompt, row)
        # A benchmark may ask one question twice in the same words: then each of its answers takes one of the places.
        sample = next((sample for sample in matching if sample.id not in answers), None)
        if sample is None:
            row.fail(
                f"question {key!r} is answered twice; the first answer is at {where[matching[0].id]}. "
                "Remove one of them."
            )
        if prompt and not _mentions(task.prompt(sample), prompt):
            foreign.append(f"{row.where}: {prompt.strip()[:60]!r}")
        answers[sample.id] = Answer(sample.id, Generation(text, prompt, 0, "unknown"))
        where[sample.id] = row.where
    if n == 0:
        raise DataError(f"{path}: holds no answers. Expected one JSON object per line with `question_id` and `text`.")
    if unknown:
        raise DataError(
            f"{unknown[0]} is not in {task.info.title} ({task.info.split}); "
            f"{len(unknown):,} of {n:,} answers are unknown. "
            f"Is this file for another task, or for another list than `{task.info.name}`?"
        )
    if len(foreign) > len(answers) // 2:
        raise DataError(
            f"{foreign[0]} does not ask what {task.info.title} asks under that id; nor do {len(foreign):,} of "
            f"{n:,} prompts. Is this file for another task?"
        )
    return answers


def _matching(task: Task, candidates: Sequence[Sample], prompt: str, row: Row) -> Sequence[Sample]:
    if len(candidates) == 1:
        return candidates
    if not prompt:
        row.fail(
            f"question id {candidates[0].answer_key!r} stands for {len(candidates)} questions of {task.info.title}, "
            "so the field 'prompt' is needed to tell them apart."
        )
    key = task.join_key(prompt)
    found = [sample for sample in candidates if task.join_key(task.prompt(sample)) == key]
    if not found:
        asked = " | ".join(task.join_key(task.prompt(sample)) for sample in candidates)
        row.fail(f"the prompt {key!r} is none of the questions under id {candidates[0].answer_key!r}: {asked}.")
    return found


def _mentions(expected: str, prompt: str) -> bool:
    """Whether a saved prompt holds the beginning of the expected one's first line, white space and case apart."""
    beginning = " ".join(expected.split("\n", 1)[0].split())[:40].casefold()
    return beginning in " ".join(prompt.split()).casefold()
