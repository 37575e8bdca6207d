"""Finished runs over the bundled samples, made from answer files: what looks at runs is tested with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

from vlmamba_eval.answer_files import score_answers
from vlmamba_eval.dataset import Dataset, load_dataset
from vlmamba_eval.manifest import folder_name
from vlmamba_eval.registry import get_task
from vlmamba_eval.types import Sample


@cache
def samples(task: str, limit: int | None = None, seed: int = 0) -> Dataset:
    """A task's bundled samples."""
    return load_dataset(get_task(task), "samples", limit=limit, seed=seed)


def gold(sample: Sample) -> str:
    """A right answer."""
    target = sample.target
    return target if isinstance(target, str) else (target or ("",))[0]


def other(sample: Sample) -> str:
    """A wrong answer to a question of yes or no."""
    return "No" if gold(sample).lower() == "yes" else "Yes"


def answered(
    out: Path,
    name: str,
    answer: Callable[[int, Sample], str | None] = lambda i, sample: gold(sample),
    *,
    task: str = "pope",
    limit: int | None = None,
    seed: int = 0,
) -> Path:
    """The run folder of a model that answers the i-th sample with a text, or with nothing."""
    dataset = samples(task, limit, seed)
    rows = [
        {"question_id": sample.answer_key, "prompt": dataset.task.prompt(sample), "text": text}
        for i, sample in enumerate(dataset.samples)
        if (text := answer(i, sample)) is not None
    ]
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{folder_name(name)}-{task}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return score_answers(dataset, path, out / folder_name(name), name).folder
