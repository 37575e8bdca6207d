"""Values and intervals of every metric, from counts that add up over images.

Questions about one image are not independent, so the unit of resampling is the image (Miller 2024, arXiv 2411.00640,
section 2.2): a bootstrap replicate draws images with replacement, within each stratum one less than there are, and
scales the sums up (Rao and Wu 1988: this mends the bias of few images in a stratum). A metric is evaluated on the
replicate's summed counts, so the interval belongs to the metric itself, F1 and MME points included.

What an interval can promise depends on how many images carry the wrong answers, and how many the right ones:
K = (sum of errors)^2 / (sum of squared errors) over images. Below 30 the percentiles are too narrow (by simulation:
tests/vlmamba_eval/coverage.py), so the interval is marked and moves towards Wilson's over images, the nearer the fewer;
with no error at all it is Wilson's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmamba_eval.sums import Floats
from vlmamba_eval.table import Table, Totals, tabulate
from vlmamba_eval.task import Task
from vlmamba_eval.types import Graded, Metric, Score

REPLICATES = 2000
LEVEL = 0.95
ENOUGH = 30.0
"""Effective images with an error (and with a right answer) from which on percentiles keep their promise."""


def summarise(
    task: Task, graded: Iterable[Graded], extra: Any = None, *, seed: int = 0, replicates: int = REPLICATES
) -> list[Score]:
    """Evaluate every metric of a task, with percentile intervals from the bootstrap over images.

    The result depends neither on the order of `graded` nor on the number of threads.
    """
    table = tabulate(task, graded, extra)
    point = list(task.metrics(table.total()))
    draws = bootstrap(table.values, [stratum for stratum, _ in table.units], seed, replicates)
    drawn = list(task.metrics(table.sums(draws)))
    return [
        _score(task, value, spread, table.totals.get(value.group, Totals()), ends(table, value.group))
        for value, spread in zip(point, drawn, strict=True)
    ]


def bootstrap(table: Floats, strata: Sequence[str], seed: int = 0, replicates: int = REPLICATES) -> Floats:
    """Column sums of `replicates` resamples of the rows, drawn within each stratum, [replicates, columns].

    The same bits on any number of threads and any processor: each product below is exact. Tables of equal strata get
    equal draws, so that the difference of two runs over the same images has a paired interval.

    The variance of n draws is (n - 1) / n of what it should be for a stratum of n images. So n - 1 of them are drawn,
    each weighing n / (n - 1), which mends that (Rao and Wu 1988, JASA 83, section 2).
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
        drawn = max(1, size - 1)
        part = np.zeros_like(sums)
        for start in range(0, replicates, 100):  # 100 x 40,504 weights (VQAv2) are 32 MB
            count = min(100, replicates - start)
            weights = np.stack([np.bincount(rng.integers(0, size, drawn), minlength=size) for _ in range(count)])
            weights = weights.astype(np.float64)
            part[start : start + count] += weights @ high
            part[start : start + count, fractional] += weights @ low[:, fractional]
        sums += part * size / drawn
    return sums


def _exact_parts(table: Floats) -> tuple[Floats, Floats]:
    """Two tables that add up to `table` and whose column sums need no rounding, whatever the order of addition.

    A matrix product adds in an order that depends on threads and processor. Multiples of 2**-26 up to 2**27 in sum, and
    of 2**-60 up to 2**-7, fit the 53 bits of a float64 (half a million weighted rows). Counts have no second part.
    """
    high = np.round(table * 2.0**26) / 2.0**26
    return high, np.round((table - high) * 2.0**60) / 2.0**60


@dataclass(frozen=True)
class Ends:
    """How far an interval must reach when few images carry the wrong answers (`low`) or the right ones (`high`).

    As shares of the largest value, below and above it; `k_wrong` and `k_right` are the effective numbers of images. Of
    several strata the least, and the distances in quadrature, for strata are drawn apart and weigh alike.
    """

    low: float
    high: float
    k_wrong: float
    k_right: float

    @property
    def few(self) -> bool:
        """Whether the percentiles by themselves can't be believed."""
        return min(self.k_wrong, self.k_right) < ENOUGH


def ends(table: Table, group: str) -> Ends:
    """The ends of a group's intervals, from its questions and their credit per image."""
    zeros = np.zeros(len(table.units))
    n, credit = (
        table.values[:, table.index[name, group]] if (name, group) in table.index else zeros for name in ("n", "credit")
    )
    strata: dict[str, list[int]] = defaultdict(list)
    for i, (stratum, _) in enumerate(table.units):
        if n[i]:
            strata[stratum].append(i)
    low, high, k_wrong, k_right = [], [], [math.inf], [math.inf]
    for rows in strata.values():
        right, wrong = credit[rows], n[rows] - credit[rows]
        share = float(right.sum() / n[rows].sum())
        below, above = wilson(share * len(rows), len(rows))
        low.append(share - below)
        high.append(above - share)
        k_wrong.append(effective(wrong))
        k_right.append(effective(right))
    scale = max(len(strata), 1)
    return Ends(math.hypot(*low) / scale, math.hypot(*high) / scale, min(k_wrong), min(k_right))


def effective(errors: Floats) -> float:
    """(sum of errors)^2 / (sum of squared errors): how many images carry them, or a difference; 0 if there are none.

    Equal numbers on m images give m; one image with most of them gives nearly 1.
    """
    squares = float((errors * errors).sum())
    return float(errors.sum()) ** 2 / squares if squares > 0 else 0.0


def _score(task: Task, point: Metric, spread: Metric, totals: Totals, reach: Ends) -> Score:
    value = only(point.value)
    low = high = math.nan
    if not point.plain:
        low, high = interval(value, np.asarray(spread.value, dtype=np.float64), point.upper, reach)
    return Score(
        metric=point.name,
        split=point.split or task.info.split,
        category=point.category,
        value=rounded(value),
        ci_low=rounded(low),
        ci_high=rounded(high),
        n=totals.n,
        n_images=totals.images,
        n_unparsed=totals.unparsed,
        n_missing=totals.missing,
        n_error=totals.error,
        n_truncated=totals.truncated,
        n_foreign=totals.foreign,
        headline=point.headline,
        plain=point.plain,
        few_images=not math.isnan(low) and (reach.few if point.upper is not None else totals.images < ENOUGH),
    )


def interval(value: float, spread: Floats, upper: float | None, reach: Ends) -> tuple[float, float]:
    """The central 95 % of the bootstrap replicates; (NaN, NaN) if no interval can be given.

    With fewer than `ENOUGH` effective images at an end, that end moves from the percentile towards Wilson's distance,
    by 1 - (K / ENOUGH)^2: all the way if every image is right, or every image wrong, when replicates are all alike.
    """
    spread = spread[np.isfinite(spread)]
    if math.isnan(value) or not len(spread):
        return math.nan, math.nan
    low, high = (float(end) for end in np.percentile(spread, [50 * (1 - LEVEL), 50 * (1 + LEVEL)]))
    low, high = min(low, value), max(high, value)
    if upper is None:
        return (math.nan, math.nan) if np.ptp(spread) < 1e-12 else (low, high)
    low -= _weight(reach.k_wrong) * max(0.0, low - (value - reach.low * upper))
    high += _weight(reach.k_right) * max(0.0, value + reach.high * upper - high)
    if high - low < 1e-12:  # alike, and neither all right nor all wrong: nothing can be said
        return math.nan, math.nan
    return max(low, 0.0), min(high, upper)


def _weight(k: float) -> float:
    return max(0.0, 1.0 - (k / ENOUGH) ** 2)


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion (Wilson 1927), for n >= 1."""
    z = 1.959963984540054
    centre = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4)
    low = 0.0 if successes <= 0 else centre - half
    high = 1.0 if successes >= n else centre + half
    return low, high


def only(value: Any) -> float:
    """A metric of sums without replicates: a number, or an array of one."""
    return float(np.ravel(value)[0])


def rounded(value: float) -> float | None:
    """To nine decimals, far below any error bar; None if it is undefined."""
    return None if math.isnan(value) or math.isinf(value) else round(value, 9)
