"""Does the paired interval hold what it promises? Coverage of the nominal 95 % by simulation.

    python -m tests.statistics.paired_coverage [SETS]

Pictures have their own difficulty, which both systems feel; lists have the sizes of the real benchmarks. `near copy`
changes 2 % of the answers (another precision), `siblings` are two models that share half of what makes a picture hard.
The true difference is the metric of one very long list. Intervals, draws and metrics are the product's
(`paired.differences`, `stats.bootstrap`); as the draws depend on the strata alone, they are made once for all sets.

Sets with fewer effective differing images than `stats.ENOUGH` are counted apart: the product marks their intervals.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmamba_eval.paired import Drawn, differences
from vlmamba_eval.stats import ENOUGH, bootstrap, effective
from vlmamba_eval.sums import Floats
from vlmamba_eval.types import Metric

MME_PICTURES = (30, 30, 30, 30, 147, 170, 200, 200, 200, 20)  # the ten categories of perception
TOGETHER = 20  # sets that are drawn in one product
Rng = np.random.Generator


@dataclass(frozen=True)
class Systems:
    """How two systems differ: answers changed by one of them, evenly or on some pictures, or two models."""

    name: str
    changed: float = 0.0  # share of A's answers that B changes
    clustered: bool = False  # changes come together on a tenth of the pictures
    mended: float = 0.0  # of the changed answers, how many more are mended than broken: 0 to 1
    shift: float = 0.0  # two models: by how much B is better, in probability


PAIRS = (
    Systems("near copy", changed=0.02),
    Systems("near copy, some pictures", changed=0.04, clustered=True),
    Systems("mended", changed=0.10, mended=0.7),
    Systems("siblings", shift=0.01),
)


def answers(rng: Rng, images: int, questions: int, systems: Systems, accuracy: float = 0.86) -> tuple[Any, Any]:
    """Whether A and B are right, two arrays [images, questions]."""
    hard = rng.beta(accuracy * 6, (1 - accuracy) * 6, (images, 1))  # a picture's own accuracy
    if systems.changed == 0:
        other = rng.beta(accuracy * 6, (1 - accuracy) * 6, (images, 1))
        own = np.clip((hard + other) / 2 + systems.shift, 0, 1)
        a = rng.random((images, questions)) < (hard + rng.beta(accuracy * 6, (1 - accuracy) * 6, (images, 1))) / 2
        return a, rng.random((images, questions)) < own
    a = rng.random((images, questions)) < hard
    rate = np.full((images, 1), systems.changed)
    if systems.clustered:
        rate = np.where(rng.random((images, 1)) < 0.1, systems.changed * 10, 0.0)
    touched = rng.random((images, questions)) < rate * np.where(a, 1 - systems.mended, 1 + systems.mended)
    return a, a ^ touched


# =============================================================================
# Benchmarks: columns of one picture, and a metric of their sums
# =============================================================================


@dataclass(frozen=True)
class Design:
    """A list: its strata of pictures, what is counted of a picture's answers, and the metric of the sums."""

    name: str
    strata: tuple[int, ...]
    count: Callable[[Rng, int, Systems], tuple[Floats, Floats]]  # two arrays [images, columns] + differing answers last
    value: Callable[[Floats], Any]  # from sums [..., strata, columns] to [...]


def _credit(questions: int | tuple[int, int]) -> Callable[[Rng, int, Systems], tuple[Floats, Floats]]:
    def count(rng: Rng, images: int, systems: Systems) -> tuple[Floats, Floats]:
        low, high = questions if isinstance(questions, tuple) else (questions, questions)
        a, b = answers(rng, images, high, systems)
        asked = np.arange(high)[None] < rng.integers(low, high + 1, (images, 1))
        n, changed = asked.sum(1), ((a != b) & asked).sum(1)
        return tuple(np.stack([n, (right & asked).sum(1), changed], 1).astype(float) for right in (a, b))  # type: ignore[return-value]

    return count


def _yes_no(rng: Rng, images: int, systems: Systems) -> tuple[Floats, Floats]:
    """Three lists of three yes and three no questions: TP, FP and FN of each."""
    a, b = answers(rng, images, 18, systems)
    gold = np.tile([True, False], 9)
    columns = []
    for right in (a, b):
        said = right == gold
        parts = [
            part
            for start in (0, 6, 12)
            for s, g in [(said[:, start : start + 6], gold[start : start + 6])]
            for part in ((s & g).sum(1), (s & ~g).sum(1), (~s & g).sum(1))
        ]
        columns.append(np.stack([*parts, (a != b).sum(1)], 1).astype(float))
    return columns[0], columns[1]


def _pairs(rng: Rng, images: int, systems: Systems) -> tuple[Floats, Floats]:
    """MME: two questions per picture; right answers, and pictures with both right."""
    a, b = answers(rng, images, 2, systems)
    changed = (a != b).sum(1)
    one = np.ones(images)
    return tuple(np.stack([one, r.sum(1), r.all(1), changed], 1).astype(float) for r in (a, b))  # type: ignore[return-value]


def _accuracy(sums: Floats) -> Any:
    return 100 * sums[..., 0, 1] / sums[..., 0, 0]


def _mean_f1(sums: Floats) -> Any:
    lists = [sums[..., 0, start : start + 3] for start in (0, 3, 6)]
    return 100 * sum(2 * x[..., 0] / (2 * x[..., 0] + x[..., 1] + x[..., 2]) for x in lists) / 3


def _mme(sums: Floats) -> Any:
    return 100 * (sums[..., 1] / (2 * sums[..., 0]) + sums[..., 2] / sums[..., 0]).sum(-1)


DESIGNS = (
    Design("accuracy, 1 question (MMBench)", (1500,), _credit(1), _accuracy),
    Design("accuracy, 2 to 60 questions (GQA)", (398,), _credit((2, 60)), _accuracy),
    Design("mean F1, 18 questions (POPE)", (500,), _yes_no, _mean_f1),
    Design("points, pairs in 10 categories (MME)", MME_PICTURES, _pairs, _mme),
)


# =============================================================================
# Coverage
# =============================================================================


def coverage(design: Design, systems: Systems, sets: int, seed: int = 0) -> tuple[int, int, int, int, float]:
    """(covered, sets) with enough differing images, (covered, sets) with few, and the median effective number."""
    rng = np.random.default_rng([seed, DESIGNS.index(design), PAIRS.index(systems)])
    place = np.repeat(np.arange(len(design.strata)), design.strata)
    weights = _draws(design.strata)
    truth = _truth(design, systems, rng)
    found: dict[bool, list[bool]] = {True: [], False: []}
    carried = []
    for start in range(0, sets, TOGETHER):
        counted = [_list(design, systems, rng, design.strata) for _ in range(min(TOGETHER, sets - start))]
        tables = np.array(counted)  # [sets, 2, images, columns]
        columns = tables.transpose(2, 0, 1, 3).reshape(len(place), -1)  # one product for all sets
        parts = [(place == i) for i in range(len(design.strata))]
        sums = np.stack([(weights[:, part] @ columns[part]).reshape(-1, *tables.shape[:2], tables.shape[3])
                         for part in parts], 3)  # fmt: skip
        points = np.stack([tables[:, :, part].sum(2) for part in parts], 2)
        for k, (a, _) in enumerate(counted):
            one, two = (Drawn((float(design.value(points[k, x])),), (design.value(sums[:, k, x]),)) for x in (0, 1))
            difference = differences([Metric("it", 0.0)], one, two)[0]
            carried.append(effective(a[:, -1]))
            if difference.ci_low is None or difference.ci_high is None:
                found[False].append(False)  # nothing differs: the product gives no interval
            else:
                found[carried[-1] >= ENOUGH].append(difference.ci_low <= truth <= difference.ci_high)
    return sum(found[True]), len(found[True]), sum(found[False]), len(found[False]), float(np.median(carried))


@functools.cache
def _draws(sizes: tuple[int, ...]) -> Floats:
    """How often the product draws each image, [replicates, images]."""
    strata = [f"{i:02}" for i, size in enumerate(sizes) for _ in range(size)]
    return bootstrap(np.eye(len(strata)), strata)


def _list(design: Design, systems: Systems, rng: Rng, strata: Sequence[int]) -> tuple[Floats, Floats]:
    parts = [design.count(rng, size, systems) for size in strata]
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])


def _truth(design: Design, systems: Systems, rng: Rng, images: int = 400_000) -> float:
    """The metric's difference on one list so long that its own error is a few hundredths of an interval."""
    sums: list[list[Floats]] = [[], []]
    for _ in design.strata:
        size = images // len(design.strata)
        parts = [design.count(rng, min(20_000, size), systems) for _ in range(max(1, size // 20_000))]
        for k in (0, 1):
            sums[k].append(np.sum([part[k].sum(0) for part in parts], axis=0))
    return float(design.value(np.stack(sums[1])) - design.value(np.stack(sums[0])))


def cells() -> Iterator[tuple[Design, Systems]]:
    """Every list with every pair of systems."""
    return ((design, systems) for design in DESIGNS for systems in PAIRS)


def main() -> None:
    sets = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print(f"| list | systems | images that differ (median, effective) | coverage of {sets:,} sets | marked as few |")
    print("|---|---|---:|---:|---:|")
    for design, systems in cells():
        covered, enough, covered_few, few, carried = coverage(design, systems, sets)
        good = f"{100 * covered / enough:.1f} %" if enough else "-"
        rest = f"{100 * covered_few / few:.1f} % of {few}" if few else "none"
        print(f"| {design.name} | {systems.name} | {carried:.0f} | {good} | {rest} |", flush=True)


if __name__ == "__main__":
    main()
