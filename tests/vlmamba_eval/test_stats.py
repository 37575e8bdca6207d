"""Intervals that can be believed."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats import bootstrap as scipys_bootstrap

from tests.toys import ToyTask, reference
from vlmamba_eval.stats import Ends, _exact_parts, bootstrap, effective, interval, summarise, wilson
from vlmamba_eval.sums import Sums
from vlmamba_eval.table import Totals, tabulate
from vlmamba_eval.task import Task
from vlmamba_eval.types import Graded, Metric, Sample, Score, Verdict

ENOUGH_IMAGES = Ends(0.0, 0.0, math.inf, math.inf)
PINNED = (70.3, 67.43718593, 73.065326633)


def graded(credits: list[list[float]], groups: tuple[str, ...] = ()) -> list[Graded]:
    """One list of credits for each image."""
    return [
        Graded(Sample(f"{i}-{q}", reference(f"image {i}"), "?", "red", groups=groups), Verdict("red", credit))
        for i, image in enumerate(credits)
        for q, credit in enumerate(image)
    ]


def headline(items: list[Graded], task: Task | None = None, seed: int = 0) -> Score:
    return next(score for score in summarise(task or ToyTask(), items, seed=seed) if score.headline)


def test_the_value_is_the_mean_credit_over_questions_and_counts_stand_beside_it() -> None:
    items = graded([[1, 0, 0], [1]])
    items.append(Graded(Sample("m", reference("image 9"), "?", "red"), None, "missing"))
    items.append(Graded(Sample("e", reference("image 9"), "?", "red"), None, "error"))
    score = headline(items)
    assert score.value == pytest.approx(100 * 2 / 6)
    assert (score.n, score.n_images, score.n_missing, score.n_error) == (6, 3, 1, 1)


def test_results_do_not_depend_on_the_order_of_answers() -> None:
    rng = random.Random(0)
    items = graded([[rng.choice([0.0, 0.3, 1.0]) for _ in range(rng.randint(1, 6))] for _ in range(40)], ("g",))
    shuffled = items[:]
    rng.shuffle(shuffled)
    assert summarise(ToyTask(), items) == summarise(ToyTask(), shuffled)


def test_results_do_not_depend_on_where_the_pictures_lie() -> None:
    """Their keys hold paths; what is drawn follows the ids of the questions, and the seed, which is 0."""
    rng = random.Random(4)
    items = graded([[rng.choice([0.0, 1.0]) for _ in range(3)] for _ in range(40)])
    moved = [
        replace(item, sample=replace(item.sample, image=reference(f"{99 - i // 3}"))) for i, item in enumerate(items)
    ]
    assert summarise(ToyTask(), items) == summarise(ToyTask(), moved) == summarise(ToyTask(), items, seed=0)
    table = tabulate(ToyTask(), items)
    assert np.array_equal(bootstrap(table.values, [""] * 40), bootstrap(table.values, [""] * 40, 0, 2_000))


def test_what_became_of_questions_is_counted_for_each_group() -> None:
    made = [("ok", Verdict("x", 1.0)), ("ok", Verdict(None, 0.0, valid=False)), ("missing", None), ("error", None)]
    items = [
        Graded(Sample(f"{i}", reference("one"), "?", "x", groups=("g",)), verdict, state, state == "ok")  # type: ignore[arg-type]
        for i, (state, verdict) in enumerate(made)
    ]
    items.append(Graded(Sample("f", reference("other"), "?", "x"), None, "error", foreign=True))
    totals = tabulate(ToyTask(), items).totals
    assert totals["g"] == Totals(n=4, images=1, unparsed=1, missing=1, error=1, truncated=2, foreign=0)
    assert totals["all"] == Totals(n=5, images=2, unparsed=1, missing=1, error=1, truncated=2, foreign=1)


def test_the_interval_of_a_group_counts_the_groups_own_images() -> None:
    items = graded([[1.0]] * 10, ("rare",)) + [
        replace(item, sample=replace(item.sample, id=f"b{item.sample.id}", image=reference(f"b{item.sample.id}")))
        for item in graded([[1.0, 0.0]] * 30)
    ]
    [rare] = [score for score in summarise(ToyTask(), items) if score.category == "rare"]
    assert (rare.n_images, rare.few_images) == (10, True)
    assert rare.ci_low == pytest.approx(72.2467, abs=1e-3)  # Wilson over ten images, as below


@pytest.mark.parametrize(("images", "few"), [(29, True), (30, False)])
def test_what_is_not_made_of_right_answers_has_percentiles_and_a_mark_below_thirty_images(
    images: int, few: bool
) -> None:
    """A caption is neither right nor wrong: BLEU's interval once reached up to 100, as if all had been wrong."""

    class Amounts(ToyTask):
        columns = ("amount",)

        def count(self, item: Graded) -> Iterator[tuple[str, float]]:
            yield "amount", 1 + int(item.sample.id.partition("-")[0]) % 2

        def metrics(self, sums: Sums) -> Iterator[Metric]:
            yield Metric("amount", 10 * sums.ratio(sums("amount"), sums.n()), headline=True, upper=None)

    score = headline(graded([[0.0]] * images), Amounts())
    assert score.value == pytest.approx(15, abs=0.2)
    assert score.ci_low == pytest.approx(13, abs=0.4)
    assert score.ci_high == pytest.approx(17, abs=0.4)
    assert score.few_images is few


def test_groups_stand_in_the_order_of_their_numbers() -> None:
    items = [item for name in ("words/10", "words/9", "open", "words/100") for item in graded([[1]], (name,))]
    categories = [score.category for score in summarise(ToyTask(), items)]
    assert categories == ["all", "open", "words/9", "words/10", "words/100"]


def test_the_interval_contains_the_value_and_another_seed_moves_only_the_interval() -> None:
    items = graded([[1, 0, 1, 1], [0, 0], [1], [1, 0], [0, 1, 1]])
    one, other = headline(items, seed=0), headline(items, seed=1)
    assert one.value == other.value
    for score in (one, other):
        assert score.ci_low is not None
        assert score.ci_high is not None
        assert score.value is not None
        assert score.ci_low <= score.value <= score.ci_high


def test_equal_answers_within_an_image_widen_the_interval() -> None:
    """Ten questions on an image that stand or fall together are one observation, not ten."""
    rng = random.Random(1)
    images = [float(rng.random() < 0.6) for _ in range(100)]
    clustered = headline(graded([[credit] * 10 for credit in images]))
    single = headline(graded([[credit] for credit in images]))
    assert clustered.ci_low == pytest.approx(single.ci_low, abs=1.5)
    assert clustered.ci_high == pytest.approx(single.ci_high, abs=1.5)


def test_the_interval_equals_scipysbootstrap_over_images() -> None:
    """A ratio of sums over 120 images, twice: a percentile bootstrap that this project did not write."""
    rng = np.random.default_rng(5)
    images = [list((rng.random(rng.integers(1, 9)) < rng.beta(6, 3)).astype(float)) for _ in range(120)]
    score = headline(graded(images))

    def accuracy(chosen: np.ndarray) -> float:
        return 100 * sum(sum(images[i]) for i in chosen) / sum(len(images[i]) for i in chosen)

    theirs = scipys_bootstrap(
        (np.arange(120),), accuracy, n_resamples=4000, vectorized=False, method="percentile"
    ).confidence_interval
    assert score.ci_low == pytest.approx(theirs.low, abs=0.8)  # the Monte Carlo error of an end is about 0.15
    assert score.ci_high == pytest.approx(theirs.high, abs=0.8)


@pytest.mark.parametrize("replicates", [1, 99, 100, 250])
def test_every_replicate_draws_as_many_images_as_there_are_in_each_stratum(replicates: int) -> None:
    table = np.array([[1.0, 0.0]] * 7 + [[0.0, 1.0]] * 3)
    sums = bootstrap(table, ["a"] * 7 + ["b"] * 3, 0, replicates)
    assert sums.tolist() == [[7.0, 3.0]] * replicates


def test_a_narrow_spread_is_still_an_interval() -> None:
    assert interval(50.0, np.array([49.9, 50.0, 50.1]), 100.0, ENOUGH_IMAGES) == pytest.approx((49.905, 50.095))


def test_an_interval_stays_within_the_metrics_bounds_and_reaches_wilson_only_if_there_are_any() -> None:
    spread, few = np.array([-3.0, 1.0, 2.0]), Ends(0.5, 0.4, 0.0, 0.0)
    assert interval(1.0, spread, None, few) == pytest.approx((-2.8, 1.95))
    assert interval(1.0, spread + 1, 2.0, ENOUGH_IMAGES) == (0.0, 2.0)
    assert interval(50.0, np.array([49.0, 50.0, 52.0]), 100.0, few) == pytest.approx((0.0, 90.0))
    nothing, just_enough = Ends(0.0, 0.0, 0.0, 0.0), Ends(0.5, 0.4, 31.0, 31.0)
    for reach in (nothing, just_enough):  # what they say is nearer than the percentiles, or need not be asked
        assert interval(50.0, np.array([49.0, 50.0, 52.0]), 100.0, reach) == pytest.approx((49.05, 51.9))
    assert interval(50.0, np.array([49.0, 50.0, 52.0]), 200.0, Ends(0.2, 0.2, 15.0, math.inf)) == pytest.approx(
        (49.05 - 0.75 * 39.05, 51.9)  # three quarters of the way: 1 - (15 / 30)^2
    )


def test_a_metric_without_bounds_may_have_a_narrow_interval_too() -> None:
    assert interval(50.0, np.array([49.9, 50.0, 50.1]), None, ENOUGH_IMAGES) == pytest.approx((49.905, 50.095))


def test_undefined_replicates_are_left_out_and_an_undefined_value_has_no_interval() -> None:
    spread = np.array([math.nan, 49.0, math.inf, 50.0, 51.0])
    assert interval(50.0, spread, 100.0, ENOUGH_IMAGES) == pytest.approx((49.05, 50.95))
    assert all(map(math.isnan, interval(math.nan, spread, 100.0, ENOUGH_IMAGES)))


def test_replicates_that_are_all_alike_give_no_interval() -> None:
    for upper in (100.0, None):
        assert all(map(math.isnan, interval(50.0, np.array([50.0, 50.0]), upper, ENOUGH_IMAGES)))


THREADS = """
import random, sys
from tests.toys import ToyTask, reference
from vlmamba_eval.stats import summarise
from vlmamba_eval.types import Graded, Sample, Verdict
rng = random.Random(0)
items = [
    Graded(
        Sample(f"{i}-{q}", reference(f"image {i}"), "?", "red", groups=(f"group {rng.randint(0, 40)}",)),
        Verdict("red", rng.choice([0.0, 0.3, 1 / 3, 0.6, 0.9, 1.0])),
    )
    for i in range(1500)
    for q in range(3)
]
print(summarise(ToyTask(), items))
"""


def test_scores_are_the_same_to_the_last_digit_on_any_number_of_threads() -> None:
    """Matrix products add up in another order with other threads or on another processor; exact sums don't care."""
    found = set()
    for threads, processor in (("1", ""), ("2", ""), ("1", "Nehalem")):
        environment = os.environ | {"OPENBLAS_NUM_THREADS": threads, "OPENBLAS_CORETYPE": processor}
        found.add(
            subprocess.run([sys.executable, "-c", THREADS], check=True, capture_output=True, env=environment).stdout
        )
    assert len(found) == 1


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=50), st.randoms())
def test_sums_of_the_exact_parts_do_not_depend_on_the_order(values: list[float], rng: random.Random) -> None:
    table = np.array(values)
    shuffled = np.array(rng.sample(values, len(values)))
    for part, other in zip(_exact_parts(table), _exact_parts(shuffled), strict=True):
        assert np.add.accumulate(part)[-1] == np.add.accumulate(other)[-1] == math.fsum(part)
    assert sum(_exact_parts(table)) == pytest.approx(table, rel=1e-15, abs=1e-18)


def test_the_interval_covers_the_truth_in_about_95_of_100_cases() -> None:
    """400 simulated benchmarks of 60 images with correlated questions; 91 to 98 % covered leaves room for chance."""
    rng = np.random.default_rng(0)
    truth, covered = 0.7, 0
    for trial in range(400):
        chances = rng.beta(7, 3, size=60)  # each image has its own difficulty, mean 0.7
        items = graded([list((rng.random(5) < chance).astype(float)) for chance in chances])
        [score] = [s for s in summarise(ToyTask(), items, seed=trial, replicates=400) if s.headline]
        assert score.ci_low is not None
        assert score.ci_high is not None
        covered += score.ci_low <= 100 * truth <= score.ci_high
    assert 0.91 <= covered / 400 <= 0.98


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (7, 20), (81, 263)])
def test_wilsons_interval_equals_scipys(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high))


def test_wilsons_interval_ends_exactly_at_none_and_at_all() -> None:
    assert {wilson(0, n)[0] for n in range(1, 300)} == {0.0}
    assert {wilson(n, n)[1] for n in range(1, 300)} == {1.0}


@pytest.mark.parametrize(("credit", "low", "high"), [(1.0, 72.2467, 100.0), (0.0, 0.0, 27.7533)])
def test_all_right_or_all_wrong_is_no_certainty(credit: float, low: float, high: float) -> None:
    score = headline(graded([[credit, credit]] * 10))
    assert (score.ci_low, score.ci_high) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


def test_what_is_undefined_is_none_not_zero() -> None:
    class Undefined(ToyTask):
        columns = ("nothing", "nobody")

        def metrics(self, sums: Sums) -> Iterator[Metric]:
            yield Metric("accuracy", sums.ratio(sums("nothing"), sums("nobody")), headline=True)

    score = headline(graded([[1.0]]), Undefined())
    assert (score.value, score.ci_low, score.ci_high) == (None, None, None)
    assert math.isnan(interval(5.0, np.array([]), 100.0, ENOUGH_IMAGES)[0])
    assert math.isnan(interval(5.0, np.array([5.0, 5.0]), None, ENOUGH_IMAGES)[0])


def test_images_are_drawn_within_their_stratum() -> None:
    """With one image in each of two strata every replicate holds both, so the sum over strata never varies."""

    class Stratified(ToyTask):
        def stratum(self, sample: Sample) -> str:
            return sample.groups[0]

        def metrics(self, sums: Sums) -> Iterator[Metric]:
            parts = [100 * sums.ratio(sums.credit(group), sums.n(group)) for group in sums.groups]
            yield Metric("accuracy", sum(parts), headline=True, upper=200.0)

    items = [
        Graded(Sample(name, reference("one picture"), "?", "red", groups=(name,)), Verdict("x", credit))
        for name, credit in (("a", 1.0), ("b", 0.0))
    ]
    score = headline(items, Stratified())
    assert score.value == 100.0
    assert score.few_images
    assert (score.ci_low, score.ci_high) == (pytest.approx(20.65, abs=0.01), pytest.approx(179.35, abs=0.01))


def test_all_right_is_not_wider_than_one_wrong_and_each_error_moves_it_little() -> None:
    """20 pictures of 31 questions, as GQA's; the same from the other side."""
    lows, highs = [], []
    for wrong in range(12):
        images = [[float((q, i) >= (1, 0) or i >= wrong) for q in range(31)] for i in range(20)]
        score = headline(graded(images))
        mirrored = headline(graded([[1 - credit for credit in image] for image in images]))
        assert score.ci_low is not None
        assert mirrored.ci_high is not None
        lows.append(score.ci_low)
        highs.append(mirrored.ci_high)
        assert score.few_images
    assert lows[0] >= lows[1]
    assert max(abs(a - b) for a, b in pairwise(lows)) < 0.6
    assert highs == pytest.approx([100 - low for low in lows])
    assert lows[0] == pytest.approx(83.89, abs=0.01)  # Wilson over 20 images


def test_few_images_with_an_error_are_marked_and_many_are_not() -> None:
    def few(n_wrong: int, n_right: int) -> bool:
        return headline(graded([[0.0, 1.0]] * n_wrong + [[1.0, 1.0]] * n_right)).few_images

    assert few(29, 100)
    assert not few(30, 100)
    assert effective(np.array([1.0] * 30 + [0.0] * 70)) == 30
    assert effective(np.array([9.0, 1.0])) == pytest.approx(100 / 82)
    assert effective(np.array([0.5, 0.5, 0.0])) == 2
    assert effective(np.zeros(5)) == 0


def test_an_interval_to_the_digit() -> None:
    rng = np.random.default_rng(7)
    images = [list((rng.random(5) < 0.7).astype(float)) for _ in range(200)]
    score = headline(graded(images))
    assert (score.value, score.ci_low, score.ci_high) == PINNED


class Misspelt(ToyTask):
    """Counts what it does not declare, or asks for it."""

    columns = ("TP", "FP")

    def __init__(self, counted: str, asked: str) -> None:
        super().__init__()
        self.counted, self.asked = counted, asked

    def count(self, item: Graded) -> Iterator[tuple[str, float]]:
        yield self.counted, 1

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        yield Metric("accuracy", sums.ratio(sums(self.asked), sums.n()), headline=True)


@pytest.mark.parametrize(("counted", "asked"), [("Fp", "FP"), ("FP", "Fp"), ("FP", "positives")])
def test_a_misspelt_column_is_an_error_that_names_the_nearest(counted: str, asked: str) -> None:
    wrong = counted if counted not in Misspelt.columns else asked
    with pytest.raises(LookupError, match=rf"no column '{wrong}' .*(Did you mean: FP|Declared are: n, credit, TP, FP)"):
        summarise(Misspelt(counted, asked), graded([[1]]))


def test_counts_are_added_to_all_and_to_each_group_of_a_question() -> None:
    table = tabulate(Misspelt("TP", "TP"), graded([[1, 0], [1]], ("even", "red")))
    sums = table.total()
    assert [float(sums("TP", group)[0]) for group in ("all", "even", "red", "other")] == [3, 3, 3, 0]
    assert [float(sums.credit(group)[0]) for group in ("all", "even")] == [2, 2]
    assert sorted(sums.groups_of("TP")) == ["all", "even", "red"]
    assert list(sums.groups_of("FP")) == []
    with pytest.raises(LookupError, match="no column 'Tp'"):
        sums.groups_of("Tp")


def test_a_category_may_be_a_number_of_any_length() -> None:
    """Python refuses to make a number of 5,000 digits; the order of categories must not need one."""
    names = ("1" + "0" * 5000, "9" * 5000, "2", "007")
    items = [item for name in names for item in graded([[1]], (name,))]
    assert [score.category for score in summarise(ToyTask(), items)][1:] == ["2", "007", "9" * 5000, "1" + "0" * 5000]
