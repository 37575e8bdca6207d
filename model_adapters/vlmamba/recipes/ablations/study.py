"""Measure the checkpoints of the tiny-scale study on unseen scenes and write one table.

    python model_adapters/vlmamba/recipes/ablations/study.py runs/*/instruction --out tiny.csv

A run's name is that of the folder above its stage: VARIANT-SEED.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import click
from PIL import Image

from model_adapters.base import Adapter, Deferred
from model_adapters.registry import load
from tasks.samples.unseen import Answerer, measure
from vlmamba_eval.types import ImageQuestions, Question

COLUMNS = ("variant", "seed", "metric", "value", "low", "high", "scenes")


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--scenes", default=60, show_default=True)
def main(checkpoints: tuple[Path, ...], out: Path, scenes: int) -> None:
    """Score each checkpoint on the same held-out scenes."""
    rows: list[tuple[object, ...]] = []
    for folder in checkpoints:
        variant, _, seed = folder.parent.name.rpartition("-")
        for stage in ("alignment", "instruction"):
            log = (folder.parent / stage / "log.jsonl").read_text(encoding="utf-8").splitlines()
            rows.append((variant, seed, f"{stage}_loss", json.loads(log[-1])["answers"], "", "", ""))
        for metric, score in measure(_answers_of(folder), "study", scenes).items():
            found = (round(score.value, 2), round(score.low, 2), round(score.high, 2))
            rows.append((variant, seed, metric, *found, scenes))
            click.echo(f"{variant} {seed} {metric} {found}")
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def _answers_of(folder: Path) -> Answerer:
    loaded = load(str(folder), device="cpu")
    adapter: Adapter = loaded.load() if isinstance(loaded, Deferred) else loaded

    def answer(picture: Image.Image, prompts: Sequence[str]) -> list[str]:
        questions = tuple(Question(prompt, max_new_tokens=16) for prompt in prompts)
        (generations,) = adapter.generate([ImageQuestions(adapter.prepare(picture), questions)])
        return [generation.text for generation in generations]

    return answer


if __name__ == "__main__":
    main()
