"""Measure the checkpoints of the tiny-scale study on unseen scenes: one row a number as CSV, one table as Markdown.

    python model_adapters/vlmamba/recipes/ablations/study.py runs/*/instruction --out tiny.csv

Connector, scan and seed are read from each checkpoint's configuration, losses from the logs that its two stages wrote.
`--table` prints the table of a CSV that is there already.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import click
from PIL import Image

from vlmamba_eval.adapter import Adapter, Deferred
from vlmamba_eval.model_adapters.vlmamba.config import load_config
from vlmamba_eval.registry import load
from vlmamba_eval.strict_json import parse_json
from vlmamba_eval.tasks.samples.unseen import Answerer, measure
from vlmamba_eval.types import ImageQuestions, Question

COLUMNS: tuple[str, ...] = ("connector", "scan", "seed", "metric", "value", "low", "high", "scenes")
CONNECTORS = ("mlp", "vss_mlp", "vss_l2")
STAGES = ("alignment", "instruction")
HEADINGS = {
    "alignment_loss": "loss after stage 1",
    "instruction_loss": "after stage 2",
    "pope_mean_f1": "POPE-like F1",
    "mme_existence": "existence",
    "mme_color": "colour",
    "mme_position": "position",
    "mme_count": "count",
    "gqa_accuracy": "GQA-like",
    "choice_accuracy": "four choices",
}


@click.command()
@click.argument("checkpoints", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), help="The CSV to write.")
@click.option("--table", "old", type=click.Path(path_type=Path, exists=True), help="Print the table of this CSV.")
@click.option("--scenes", default=60, show_default=True)
def main(checkpoints: tuple[Path, ...], out: Path | None, old: Path | None, scenes: int) -> None:
    """Score each checkpoint (the folder of its last stage) on the same held-out scenes."""
    if old is not None:
        click.echo(table(read(old)), nl=False)
        return
    if out is None or not checkpoints:
        raise click.UsageError("name the checkpoints and --out, or --table")
    rows = [row for folder in sorted(checkpoints, key=_place) for row in _measured(folder, scenes)]
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    click.echo(table(read(out)), nl=False)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV that `main` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(rows: Sequence[dict[str, str]]) -> str:
    """The Markdown table: a line for each run, each score with its interval."""
    runs: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        value = f"{float(row['value']):.2f}"
        if row["scenes"]:
            value = f"{float(row['value']):.0f} [{float(row['low']):.0f}, {float(row['high']):.0f}]"
        runs.setdefault((row["connector"], row["scan"], row["seed"]), {})[row["metric"]] = value
    lines = [["connector", "scan", "seed", *HEADINGS.values()], ["---"] * (3 + len(HEADINGS))]
    for (connector, scan, seed), values in runs.items():
        lines.append([f"`{connector}`", f"`{scan}`" if scan else "", seed, *(values[metric] for metric in HEADINGS)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _run_of(folder: Path) -> tuple[str, str, str]:
    """Connector, scan (none for the MLP) and seed of a checkpoint."""
    config = load_config(folder)
    seed = config.provenance.sources[f"stage {STAGES[-1]}"].rpartition("seed ")[2]
    return config.connector.kind, "" if config.connector.kind == "mlp" else config.connector.scan, seed


def _place(folder: Path) -> tuple[int, str, str]:
    connector, scan, seed = _run_of(folder)
    return CONNECTORS.index(connector), scan, seed


def _measured(folder: Path, scenes: int) -> list[dict[str, object]]:
    connector, scan, seed = _run_of(folder)
    run = {"connector": connector, "scan": scan, "seed": seed}
    rows: list[dict[str, object]] = []
    for stage in STAGES:
        log = (folder.parent / stage / "log.jsonl").read_text(encoding="utf-8").splitlines()
        rows.append({**run, "metric": f"{stage}_loss", "value": parse_json(log[-1], constants=True)["answers"]})
    for metric, score in measure(_answers_of(folder), "study", scenes).items():
        found = {"value": round(score.value, 2), "low": round(score.low, 2), "high": round(score.high, 2)}
        rows.append({**run, "metric": metric, **found, "scenes": scenes})
        click.echo(f"{connector} {scan} {seed} {metric} {found}", err=True)
    return rows


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
