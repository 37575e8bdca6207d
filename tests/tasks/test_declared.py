"""What each benchmark declares of itself, number by number: whoever changes one changes it here too, on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from vlmamba_eval.dataset import has_samples, load_dataset
from vlmamba_eval.registry import all_tasks, get_task
from vlmamba_eval.table import tabulate
from vlmamba_eval.types import Graded

WORDS = ("measures", "paper", "scorer")  # for people alone


def declared(name: str) -> dict[str, Any]:
    info = {key: value for key, value in asdict(get_task(name).info).items() if key not in WORDS}
    return json.loads(json.dumps(info))


@pytest.mark.parametrize("name", all_tasks())
def test_a_benchmark_declares_what_is_written_down(name: str, golden: Callable[[str], list[dict[str, Any]]]) -> None:
    """Sizes, limits, versions, hashes, and where the files come from; a line per benchmark in `golden/declared.jsonl`.

    A changed prompt, reading or score raises `version`.
    """
    written = {row["name"]: row for row in golden("declared")}
    assert declared(name) == written[name]
    assert len(written) == len(all_tasks())


WITH_SAMPLES = [name for name, task in all_tasks().items() if has_samples(task)]


def metrics(name: str) -> list[dict[str, Any]]:
    """A benchmark's metrics over its bundled samples, without values: equal ones together, with their categories.

    To each category the number of questions that stands beside the metric.
    """
    task, dataset = get_task(name), load_dataset(get_task(name), "samples")
    table = tabulate(task, [Graded(sample, None, "missing") for sample in dataset.samples], dataset.extra)
    found: dict[tuple[Any, ...], dict[str, int]] = {}
    for one in task.metrics(table.total()):
        kind = one.name, one.split, one.headline, one.upper, one.plain
        found.setdefault(kind, {})[one.category] = table.totals[one.group].n
    fields = ("name", "split", "headline", "upper", "plain")
    return [{**dict(zip(fields, kind, strict=True)), "questions": n} for kind, n in found.items()]


@pytest.mark.parametrize("name", WITH_SAMPLES)
def test_a_benchmarks_metrics_are_what_is_written_down(
    name: str, golden: Callable[[str], list[dict[str, Any]]]
) -> None:
    """Which there are, in which order, over which questions; which is the headline, which have a bound, or no interval.

    A line per benchmark in `golden/metrics.jsonl`.
    """
    [written] = [row["metrics"] for row in golden("metrics") if row["task"] == name]
    assert metrics(name) == written
    assert [one["name"] for one in written if one["headline"]] == [get_task(name).info.headline]
