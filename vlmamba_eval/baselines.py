"""Published numbers, from `results/baselines.csv`: each with its source, split and caveat. Quoted, not measured."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmamba_eval.nearest import did_you_mean
from vlmamba_eval.types import UsageError

DEFAULT = ("llava-1.5-7b", "llava-1.5-13b", "vl-mamba")


@dataclass(frozen=True, slots=True)
class Published:
    """One published number. `note` is the caveat to show wherever it is shown, `""` if there is none."""

    model: str
    title: str
    task: str
    split: str
    category: str
    metric: str
    value: float
    source: str
    note: str


def baselines_file() -> Path:
    """The table of published numbers: beside this module in an installed package, in `results/` in a checkout."""
    installed = Path(__file__).with_name("baselines.csv")
    return installed if installed.exists() else Path(__file__).parents[1] / "results" / "baselines.csv"


def published() -> list[Published]:
    """Every published number, in file order."""
    with open(baselines_file(), encoding="utf-8", newline="") as file:
        return [Published(**{**row, "value": float(row["value"])}) for row in csv.DictReader(file)]  # type: ignore[arg-type]


def choose(names: Sequence[str]) -> list[Published]:
    """The numbers of the named models, in the order of the names. Raises `UsageError` that names the nearest ones."""
    everything = published()
    known = {row.model for row in everything}
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known, "The models are in results/baselines.csv.")
            raise UsageError(f"Unknown baseline {name!r}. {hint}")
    return [row for name in names for row in everything if row.model == name]
