"""Paired statistics: two systems that answered the same questions, compared on the same draws of images.

Two runs over one list share its hard and its easy pictures, so their scores rise and fall together. A bootstrap that
draws the same images for both, and subtracts, keeps that: its interval belongs to the difference (Miller 2024, arXiv
2411.00640, section 4.2). The test swaps the two systems' answers image by image (Noreen 1989, Computer-Intensive
Methods for Testing Hypotheses, section 2): exact for every metric, if the systems are alike, and aware of images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from vlmamba_eval.stats import LEVEL, REPLICATES, bootstrap, only, rounded
from vlmamba_eval.sums import Column, Floats
from vlmamba_eval.table import Table
from vlmamba_eval.types import Metric

if TYPE_CHECKING:
    from vlmamba_eval.task import Task

SWAPS = 9_999  # random swaps of a test: p is never below 1 / 10,000
ENUMERATED = 13  # up to so many differing images, all swaps are tried instead
POWER_FACTOR = 1.959963984540054 + 0.8416212335729143  # two-sided 5 %, power 80 %


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of two systems, B minus A, on the published scale.

    `ci_low`, `ci_high`: the central 95 % of the paired bootstrap; None if no replicate differs. `apart`: how wide the
    interval would be if the two intervals were computed apart, as a ratio of variances. None if undefined.
    """

    metric: str
    split: str
    category: str
    group: str
    headline: bool
    a: float | None
    b: float | None
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    standard_error: float | None
    apart: float | None

    @property
    def detectable(self) -> float | None:
        """The smallest true difference that this many images show in four of five lists (5 % level, power 80 %)."""
        return None if self.standard_error is None else POWER_FACTOR * self.standard_error


def aligned(tables: Sequence[Table]) -> list[Table]:
    """The same tables with equal columns in equal order. Raises `ValueError` if they count other images."""
    first = tables[0]
    if any(table.units != first.units for table in tables):
        raise ValueError("these tables count other images")
    columns: dict[Column, int] = {}
    for table in tables:
        for column in table.index:
            columns.setdefault(column, len(columns))
    result = []
    for table in tables:
        values = np.zeros((len(table.units), len(columns)))
        for column, place in table.index.items():
            values[:, columns[column]] = table.values[:, place]
        result.append(Table(table.units, columns, values, table.groups, table.names, table.totals))
    return result


@dataclass(frozen=True)
class Drawn:
    """Every metric of one system: at the list itself, and at each replicate of the common draws."""

    points: tuple[float, ...]
    spreads: tuple[Floats, ...]  # of [replicates]


def draw(
    task: Task, tables: Sequence[Table], seed: int = 0, replicates: int = REPLICATES
) -> tuple[list[Metric], list[Drawn]]:
    """Every system's metrics on common draws; `tables` are `aligned`. The metrics' names come from the first."""
    width = tables[0].values.shape[1]
    strata = [stratum for stratum, _ in tables[0].units]
    drawn = bootstrap(np.hstack([table.values for table in tables]), strata, seed, replicates)
    names = list(task.metrics(tables[0].total()))
    systems = []
    for i, table in enumerate(tables):
        points = tuple(only(metric.value) for metric in task.metrics(table.total()))
        sums = table.sums(drawn[:, i * width : (i + 1) * width])
        spreads = tuple(_floats(metric.value, replicates) for metric in task.metrics(sums))
        systems.append(Drawn(points, spreads))
    return names, systems


def mean(systems: Sequence[Drawn]) -> Drawn:
    """The mean of several systems (seeds, checkpoints of one model), metric by metric, on their common draws."""
    if len(systems) == 1:
        return systems[0]
    points = tuple(float(np.mean(values)) for values in zip(*(s.points for s in systems), strict=True))
    spreads = tuple(np.mean(arrays, axis=0) for arrays in zip(*(s.spreads for s in systems), strict=True))
    return Drawn(points, spreads)


def differences(names: Sequence[Metric], a: Drawn, b: Drawn, default_split: str = "") -> list[Difference]:
    """B minus A, metric by metric. Counts (`plain` metrics) have a difference and no interval."""
    found = []
    for i, metric in enumerate(names):
        low = high = error = ratio = math.nan
        value = b.points[i] - a.points[i]
        if not metric.plain and not math.isnan(value):
            both = np.isfinite(a.spreads[i]) & np.isfinite(b.spreads[i])
            spread = b.spreads[i][both] - a.spreads[i][both]
            if len(spread) > 1 and np.ptp(spread) > 1e-12:
                low, high = np.percentile(spread, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
                low, high = min(float(low), value), max(float(high), value)
                error = float(np.std(spread, ddof=1))
                ratio = (np.var(a.spreads[i][both], ddof=1) + np.var(b.spreads[i][both], ddof=1)) / error**2
        found.append(
            Difference(
                metric=metric.name,
                split=metric.split or default_split,
                category=metric.category,
                group=metric.group,
                headline=metric.headline,
                a=rounded(a.points[i]),
                b=rounded(b.points[i]),
                difference=rounded(value),
                ci_low=rounded(low),
                ci_high=rounded(high),
                standard_error=rounded(error),
                apart=rounded(ratio),
            )
        )
    return found


def swap_test(task: Task, a: Table, b: Table, seed: int = 0, swaps: int = SWAPS) -> dict[tuple[str, str, str], float]:
    """The two-sided p of each metric's difference, by (metric, split, category), under swaps of whole images.

    If the systems are alike, an image's answers are as likely the other way round; p is the share of swaps whose
    difference is at least as large as the one seen, itself counted. Only images that differ matter. The tables are
    `aligned`. 1.0 if nothing differs; metrics without an interval are left out.
    """
    gap = a.values - b.values  # [units, columns]
    gap = gap[np.any(gap != 0, axis=1)]
    total_a, total_b = a.values.sum(axis=0), b.values.sum(axis=0)
    points = [
        (metric, only(metric.value) - only(other.value))
        for metric, other in zip(task.metrics(a.total()), task.metrics(b.total()), strict=True)
    ]
    wanted = [i for i, (metric, _) in enumerate(points) if not metric.plain]
    at_least = np.zeros(len(points))
    n = 0
    for signs in _signs(len(gap), seed, swaps):
        moved = signs @ gap  # [swaps, columns]
        left = list(task.metrics(a.sums(total_a - moved)))
        right = list(task.metrics(b.sums(total_b + moved)))
        n += len(signs)
        for i in wanted:
            observed = abs(points[i][1])
            swapped = np.abs(_floats(left[i].value, len(signs)) - _floats(right[i].value, len(signs)))
            # An undefined difference counts as extreme, so that it can't make anything significant.
            at_least[i] += np.count_nonzero(~(swapped < observed - 1e-9 * max(1.0, observed)))
    exact = len(gap) <= ENUMERATED
    return {
        (points[i][0].name, points[i][0].split, points[i][0].category): float(
            at_least[i] / n if exact else (at_least[i] + 1) / (n + 1)
        )
        for i in wanted
        if not math.isnan(points[i][1])
    }


def _signs(images: int, seed: int, swaps: int) -> Iterator[Floats]:
    """Which images are swapped, 0 or 1, in parts [some, images]: all combinations for few images, else random ones."""
    if images <= ENUMERATED:
        yield np.array(list(product((0.0, 1.0), repeat=images))).reshape(2**images, images)
        return
    rng = np.random.default_rng(seed)
    part = max(1, min(swaps, 4_000_000 // images))  # 32 MB
    for start in range(0, swaps, part):
        yield rng.integers(0, 2, (min(part, swaps - start), images)).astype(np.float64)


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p of McNemar's test: as many questions that only A, and that only B, got right.

    Edwards' and McNemar's discordant pairs under a fair coin. It takes questions for independent; if an image has
    several, `swap_test` is the one to believe.
    """
    n = only_a + only_b
    tail = term = 1  # sums of n over k in whole numbers of any size, so that nothing is rounded before the end
    for k in range(min(only_a, only_b)):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979): each value may be held against the level as if it were the only one."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _floats(value: object, n: int) -> Floats:
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (n,))
