"""Answers that somebody else's program produced, scored into the same tables: a run without a model."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vlmamba_eval.data import read_jsonl
from vlmamba_eval.dataset import Dataset, read_answer_file
from vlmamba_eval.run import Outcome, asked, conclude, run_folder
from vlmamba_eval.store import Run
from vlmamba_eval.types import DataError


def score_answers(dataset: Dataset, answers_file: Path, out: Path, name: str | None = None) -> Outcome:
    """Read an answer file, keep its answers as a run named `name`, and score them.

    Without a name the run takes the file's `model_id`, else the file's own name. Raises `DataError`.
    """
    if not answers_file.is_file():
        raise DataError(f"{answers_file} is no file. Expected JSON lines with `question_id` and `text`.")
    answers = read_answer_file(dataset, answers_file)
    model = name or _model_id(answers_file) or answers_file.stem
    manifest = {
        **asked(dataset),
        "answers": {"model": model, "sha256": hashlib.sha256(answers_file.read_bytes()).hexdigest()},
    }
    with Run(run_folder(out, model, manifest), manifest) as run:
        new = [answer for answer in answers.values() if answer.id not in run.answers]
        if new:
            run.log(event="imported", data=dataset.source, answers=str(answers_file.resolve()))
            run.append(new)
        return conclude(dataset, run, model, "generate")


def _model_id(answers_file: Path) -> str:
    first = next(read_jsonl(answers_file))
    return first.text("model_id", "")
