"""Counts that add up over images: one table per run, from which every metric and its interval are computed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlmamba_eval.sums import Column, Floats, Sums, check_column
from vlmamba_eval.task import Task
from vlmamba_eval.text import natural
from vlmamba_eval.types import Graded

OURS = ("n", "credit")
"""The columns that the harness itself counts in every group."""


@dataclass
class Totals:
    """The counts shown beside a metric: the questions of one group, and what became of them."""

    n: int = 0
    images: int = 0
    unparsed: int = 0
    missing: int = 0
    error: int = 0
    truncated: int = 0
    foreign: int = 0

    def add(self, items: Iterable[Graded]) -> None:
        """Add one image's questions of the group."""
        self.images += 1
        for item in items:
            self.n += 1
            self.unparsed += item.verdict is not None and not item.verdict.valid
            self.missing += item.state == "missing"
            self.error += item.state == "error" and not item.foreign
            self.foreign += item.foreign
            self.truncated += item.truncated


@dataclass(frozen=True)
class Table:
    """Every count of a run, one row per image (within a stratum): the unit that the bootstrap draws.

    `units` are (stratum, image key) pairs in an order that depends only on the questions; `values` is
    [units, columns], `index` the place of each column.
    """

    units: list[tuple[str, str]]
    index: dict[Column, int]
    values: Floats
    groups: tuple[str, ...]
    names: tuple[str, ...]
    totals: Mapping[str, Totals] = field(default_factory=dict)

    def sums(self, values: Floats) -> Sums:
        """Column sums of whatever draw of the rows, [replicates, columns], as `Task.metrics` wants them."""
        return Sums(self.index, values, self.groups, self.names)

    def total(self) -> Sums:
        """The sums over all rows."""
        return self.sums(self.values.sum(axis=0, keepdims=True))


def tabulate(task: Task, graded: Iterable[Graded], extra: Any = None) -> Table:
    """Count every image's questions. The result does not depend on the order of `graded`."""
    units: dict[tuple[str, str], list[Graded]] = defaultdict(list)
    # An image in several strata (MME names one COCO picture in several categories) is several units.
    for item in graded:
        units[task.stratum(item.sample), image_key(item)].append(item)
    for items in units.values():
        items.sort(key=lambda item: item.sample.id)
    ordered = sorted(units, key=lambda unit: (unit[0], units[unit][0].sample.id))

    names = (*OURS, *task.columns)
    totals: dict[str, Totals] = defaultdict(Totals)
    index: dict[Column, int] = {}
    rows: list[dict[int, float]] = []
    for unit in ordered:
        row: dict[int, float] = defaultdict(float)
        for column, group, amount in _counts(task, units[unit], extra):
            check_column(column, names)
            row[index.setdefault((column, group), len(index))] += amount
        rows.append(row)
        members: dict[str, list[Graded]] = defaultdict(list)
        for item in units[unit]:
            for group in ("all", *item.sample.groups):
                members[group].append(item)
        for group, items in members.items():
            totals[group].add(items)

    values = np.zeros((len(rows), len(index)))  # [units, columns]
    for i, row in enumerate(rows):
        values[i, list(row)] = list(row.values())
    groups = tuple(sorted(set(totals) - {"all"}, key=natural))
    return Table(ordered, index, values, groups, names, totals)


def image_key(item: Graded) -> str:
    """What the bootstrap draws: the image of a question, or the question itself if it has none."""
    return item.sample.image.key if item.sample.image else f"text only: {item.sample.id}"


def _counts(task: Task, items: list[Graded], extra: Any) -> Iterator[tuple[str, str, float]]:
    for item in items:
        credit = item.verdict.credit if item.verdict else 0.0
        own = list(task.count(item))
        for group in ("all", *item.sample.groups):
            yield "n", group, 1.0
            yield "credit", group, credit
            for column, amount in own:
                yield column, group, amount
    yield from task.count_image(items, extra)
