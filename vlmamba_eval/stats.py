"""Values and intervals of every metric, from counts that add up over images.

Questions about one image are not independent, so the unit of resampling is the image (Miller 2024, arXiv 2411.00640,
section 2.2): a bootstrap replicate draws as many images as there are, with replacement, within each stratum. A metric
is evaluated on the replicate's summed counts, so the interval belongs to the metric itself, F1 and MME points included.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vlmamba_eval.sums import Floats
from vlmamba_eval.table import Totals, tabulate
from vlmamba_eval.task import Task
from vlmamba_eval.types import Graded, Metric, Score

REPLICATES = 2000
LEVEL = 0.95


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
        _score(task, value, spread, table.totals.get(value.group, Totals()))
        for value, spread in zip(point, drawn, strict=True)
    ]


def bootstrap(
    table: Floats, strata: Sequence[str], seed: int = 0, replicates: int = REPLICATES, *, rescaled: bool = False
) -> Floats:
    """Column sums of `replicates` resamples of the rows, drawn within each stratum, [replicates, columns].

    The same bits on any number of threads and any processor: each product below is exact. Tables of equal strata get
    equal draws, so that the difference of two runs over the same images has a paired interval.

    The variance of such draws is (n - 1) / n of what it should be for a stratum of n images. If `rescaled`, n - 1 of
    them are drawn, each weighing n / (n - 1), which mends that (Rao and Wu 1988, JASA 83, section 2).
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
        taken = size - 1 if rescaled and size > 1 else size
        for start in range(0, replicates, 100):  # 100 x 40,504 weights (VQAv2) are 32 MB
            count = min(100, replicates - start)
            weights = np.stack([np.bincount(rng.integers(0, size, taken), minlength=size) for _ in range(count)])
            weights = weights.astype(np.float64)
            sums[start : start + count] += (weights @ high) * (size / taken)
            sums[start : start + count, fractional] += (weights @ low[:, fractional]) * (size / taken)
    return sums


def _exact_parts(table: Floats) -> tuple[Floats, Floats]:
    """Two tables that add up to `table` and whose column sums need no rounding, whatever the order of addition.

    A matrix product adds in an order that depends on threads and processor. Multiples of 2**-26 up to 2**27 in sum, and
    of 2**-60 up to 2**-7, fit the 53 bits of a float64 (half a million weighted rows). Counts have no second part.
    """
    high = np.round(table * 2.0**26) / 2.0**26
    return high, np.round((table - high) * 2.0**60) / 2.0**60


def _score(task: Task, point: Metric, spread: Metric, totals: Totals) -> Score:
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
