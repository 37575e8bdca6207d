"""Values and intervals of every metric, from counts that add up over images.

Questions about one image are not independent, so the unit of resampling is the image (Miller 2024, arXiv 2411.00640,
section 2.2): a bootstrap replicate draws as many images as there are, with replacement, within each stratum. A metric
is evaluated on the replicate's summed counts, so the interval belongs to the metric itself, F1 and MME points included.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlmamba_eval.types import Graded, Metric

if TYPE_CHECKING:
    from tasks.base import Task

REPLICATES = 2000
LEVEL = 0.95
Floats = NDArray[np.float64]


class Sums:
    """Summed columns of a task's counts, each an array over bootstrap replicates; see `Task.count`."""

    def __init__(self, index: Mapping[str, int], values: Floats, groups: tuple[str, ...]) -> None:
        self._index = index
        self._values = values  # [replicates, columns]
        self.groups = groups

    def __getitem__(self, column: str) -> Floats:
        """The sum of a column, [replicates]; zeros where nothing was counted in it."""
        position = self._index.get(column)
        return np.zeros(len(self._values)) if position is None else self._values[:, position]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns."""
        return tuple(self._index)

    def n(self, group: str = "all") -> Floats:
        """The number of questions of a group, missing and failed ones included, [replicates]."""
        return self[f"n|{group}"]

    def credit(self, group: str = "all") -> Floats:
        """The summed credit of a group's questions, [replicates]."""
        return self[f"credit|{group}"]

    @staticmethod
    def ratio(numerator: Floats, denominator: Floats) -> Floats:
        """Their quotient; NaN where the denominator is 0."""
        undefined = np.full(np.broadcast(numerator, denominator).shape, np.nan)
        return np.divide(numerator, denominator, out=undefined, where=denominator != 0)


@dataclass(frozen=True, slots=True)
class Score:
    """One row of a task's results: a metric with its interval and the counts behind it.

    `value`, `ci_low`, `ci_high` are None where they are undefined.
    """

    metric: str
    split: str
    category: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    n_images: int
    n_unparsed: int
    n_missing: int
    n_error: int
    n_truncated: int
    headline: bool
    plain: bool = False


def summarise(task: Task, graded: Iterable[Graded], *, seed: int = 0, replicates: int = REPLICATES) -> list[Score]:
    """Evaluate every metric of a task, with percentile intervals from the bootstrap over images.

    The result depends neither on the order of `graded` nor on the number of threads.
    """
    images: dict[str, list[Graded]] = defaultdict(list)
    for item in graded:
        images[item.sample.image.key if item.sample.image else f"text only: {item.sample.id}"].append(item)

    # The unit of an image in several strata (MME names one COCO picture in several categories) is the pair.
    units: dict[tuple[str, str], list[Graded]] = defaultdict(list)
    for key, items in images.items():
        for item in sorted(items, key=lambda item: item.sample.id):
            units[task.stratum(item.sample), key].append(item)
    ordered = sorted(units, key=lambda unit: (unit[0], min(item.sample.id for item in units[unit])))

    totals: dict[str, _Totals] = defaultdict(_Totals)
    index: dict[str, int] = {}
    rows: list[dict[int, float]] = []
    for unit in ordered:
        row: dict[int, float] = defaultdict(float)
        for column, amount in _counts(task, units[unit]):
            row[index.setdefault(column, len(index))] += amount
        rows.append(row)
        for group in {group for item in units[unit] for group in ("all", *item.sample.groups)}:
            totals[group].add(units[unit], group)

    table = np.zeros((len(rows), len(index)))  # [units, columns]
    for i, row in enumerate(rows):
        table[i, list(row)] = list(row.values())

    groups = tuple(sorted(set(totals) - {"all"}, key=_natural))
    point = list(task.metrics(Sums(index, table.sum(axis=0, keepdims=True), groups)))
    drawn = list(task.metrics(Sums(index, _bootstrap(table, [u[0] for u in ordered], seed, replicates), groups)))
    return [
        _score(task, value, spread, totals.get(value.group, _Totals()))
        for value, spread in zip(point, drawn, strict=True)
    ]


def _natural(name: str) -> list[str | int]:
    """A key that sorts `words/9` before `words/10`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _counts(task: Task, items: list[Graded]) -> Iterable[tuple[str, float]]:
    for item in items:
        for group in ("all", *item.sample.groups):
            yield f"n|{group}", 1.0
    yield from task.count(items)


class _Totals:
    """The counts that stand beside each metric."""

    __slots__ = ("error", "images", "missing", "n", "truncated", "unparsed")

    def __init__(self) -> None:
        self.n = self.images = self.unparsed = self.missing = self.error = self.truncated = 0

    def add(self, items: list[Graded], group: str) -> None:
        self.images += 1
        for item in items:
            if group == "all" or group in item.sample.groups:
                self.n += 1
                self.unparsed += item.verdict is not None and not item.verdict.valid
                self.missing += item.state == "missing"
                self.error += item.state == "error"
                self.truncated += item.truncated


def _bootstrap(table: Floats, strata: list[str], seed: int, replicates: int) -> Floats:
    """Column sums of `replicates` resamples of the rows, drawn within each stratum, [replicates, columns].

    The same bits on any number of threads and any processor: each product below is exact.
    """
    rng = np.random.default_rng(seed)
    members: dict[str, list[int]] = defaultdict(list)
    for i, stratum in enumerate(strata):
        members[stratum].append(i)
    sums = np.zeros((replicates, table.shape[1]))
    for _, rows in sorted(members.items()):
        high, low = _exact_parts(table[rows])
        fractional = low.any(axis=0)
        size = len(rows)
        for start in range(0, replicates, 100):  # 100 x 40,504 weights (VQAv2) are 32 MB
            count = min(100, replicates - start)
            weights = np.stack([np.bincount(rng.integers(0, size, size), minlength=size) for _ in range(count)])
            weights = weights.astype(np.float64)
            sums[start : start + count] += weights @ high
            sums[start : start + count, fractional] += weights @ low[:, fractional]
    return sums


def _exact_parts(table: Floats) -> tuple[Floats, Floats]:
    """Two tables that add up to `table` and whose column sums need no rounding, whatever the order of addition.

    A matrix product adds in an order that depends on threads and processor. Multiples of 2**-26 up to 2**27 in sum, and
    of 2**-60 up to 2**-7, fit the 53 bits of a float64 (half a million weighted rows). Counts have no second part.
    """
    high = np.round(table * 2.0**26) / 2.0**26
    return high, np.round((table - high) * 2.0**60) / 2.0**60


def _score(task: Task, point: Metric, spread: Metric, totals: _Totals) -> Score:
    value = float(np.asarray(point.value).reshape(-1)[0])
    low = high = math.nan
    if not point.plain:
        low, high = interval(value, np.asarray(spread.value, dtype=np.float64), point.upper, totals.images)
    return Score(
        metric=point.name,
        split=point.split or task.info.split,
        category=point.category,
        value=_rounded(value),
        ci_low=_rounded(low),
        ci_high=_rounded(high),
        n=totals.n,
        n_images=totals.images,
        n_unparsed=totals.unparsed,
        n_missing=totals.missing,
        n_error=totals.error,
        n_truncated=totals.truncated,
        headline=point.headline,
        plain=point.plain,
    )


def interval(value: float, spread: Floats, upper: float | None, n_images: int) -> tuple[float, float]:
    """The central 95 % of the bootstrap replicates; (NaN, NaN) where no interval can be given.

    Where every image is right, or every image wrong, the replicates are all alike, which is no certainty: then it is
    Wilson's interval for a proportion over the images.
    """
    spread = spread[np.isfinite(spread)]
    if math.isnan(value) or not len(spread) or n_images < 1:
        return math.nan, math.nan
    if np.ptp(spread) < 1e-12:
        if upper is not None and value in (0.0, upper):
            low, high = wilson(0 if value == 0.0 else n_images, n_images)
            return low * upper, high * upper
        return math.nan, math.nan
    low, high = np.percentile(spread, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return min(float(low), value), max(float(high), value)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion (Wilson 1927), for n >= 1."""
    z = 1.959963984540054
    centre = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4)
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


def _rounded(value: float) -> float | None:
    # Nine decimals are far below any error bar.
    return None if math.isnan(value) or math.isinf(value) else round(value, 9)
