"""Paired statistics against references that are not ours, and against what must hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, norm, permutation_test

from vlmamba_eval.paired import aligned, differences, draw, holm, mcnemar, mean, swap_test
from vlmamba_eval.stats import bootstrap
from vlmamba_eval.sums import Sums
from vlmamba_eval.table import Table
from vlmamba_eval.task import Task
from vlmamba_eval.types import Loaded, Metric, Sample, Verdict


class Accuracy(Task):
    """Mean credit, and the number of questions, which has no interval."""

    def load(self, data: Any) -> Loaded:
        raise NotImplementedError

    def prompt(self, sample: Sample) -> str:
        raise NotImplementedError

    def grade(self, sample: Sample, text: str) -> Verdict:
        raise NotImplementedError

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        yield Metric("accuracy", 100 * sums.ratio(sums.credit(), sums.n()), headline=True)
        yield Metric("questions", sums.n(), plain=True, upper=None)


TASK = Accuracy()


def table(right: Any, n: Any = 1, strata: Any = None, columns: tuple[str, ...] = ("n", "credit")) -> Table:
    right = np.asarray(right, dtype=float)
    strata = strata or [""] * len(right)
    units = [(strata[i], f"image {i}") for i in range(len(right))]
    values = {"n": np.broadcast_to(np.asarray(n, dtype=float), right.shape), "credit": right}
    index = {(column, "all"): i for i, column in enumerate(columns)}
    return Table(units, index, np.stack([values[c] for c in columns], axis=1), (), ("n", "credit"))


def both(tables: list[Table]) -> Any:
    """The same tables with equal rows and columns, as a pair."""
    return aligned(tables)


def compared(a: Table, b: Table, **options: Any) -> Any:
    pair = aligned([a, b])
    names, systems = draw(TASK, pair, **options)
    drawn: Any = systems
    return differences(names, *drawn)


def test_the_interval_is_that_of_the_difference_on_common_draws() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 7, 300), rng.integers(0, 7, 300)
    found = compared(table(a, 6), table(b, 6))[0]
    # The same by the definition: each replicate draws images, and the mean of b - a over them is its difference.
    weights = bootstrap(np.eye(300), [""] * 300)
    spread = 100 * weights @ (b - a) / (weights @ np.full(300, 6.0))
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(np.percentile(spread, [2.5, 97.5])), abs=1e-8)
    assert found.standard_error == pytest.approx(np.std(spread, ddof=1), abs=1e-8)
    apart = [np.var(100 * weights @ one / (weights @ np.full(300, 6.0)), ddof=1) for one in (a, b)]
    assert found.apart == pytest.approx(sum(apart) / np.var(spread, ddof=1), abs=1e-8)
    assert found.detectable == pytest.approx((norm.ppf(0.975) + norm.ppf(0.8)) * found.standard_error)
    assert found.difference == pytest.approx(100 * (b.sum() - a.sum()) / 1800)


def test_its_standard_error_is_that_of_the_mean_of_differences() -> None:
    rng = np.random.default_rng(2)
    a = rng.random(400) < 0.8
    b = a ^ (rng.random(400) < 0.1)
    found = compared(table(a), table(b), replicates=20_000)[0]
    gap = b.astype(float) - a
    assert found.standard_error == pytest.approx(100 * gap.std() / 20, rel=0.02)
    assert found.apart == pytest.approx((a.var() + b.var()) / gap.var(), rel=0.05)
    assert found.apart > 2  # that is what pairing is for


def test_small_strata_have_the_variance_that_they_should() -> None:
    # Ten strata of five pictures: the variance of the sum of means is that of the samples, over n, summed.
    rng = np.random.default_rng(3)
    strata = [f"{i // 5}" for i in range(50)]
    a, b = rng.integers(0, 7, 50), rng.integers(0, 7, 50)
    found = compared(table(a, 6, strata), table(b, 6, strata), replicates=20_000)[0]
    gap = (b - a).reshape(10, 5)
    assert found.standard_error == pytest.approx(100 / 300 * np.sqrt((5 * gap.var(axis=1, ddof=1)).sum()), rel=0.02)


def test_a_run_against_itself_differs_in_nothing() -> None:
    a = table([1, 0, 1, 1])
    found = compared(a, a)[0]
    assert (found.difference, found.ci_low, found.ci_high, found.detectable) == (0, None, None, None)
    assert swap_test(TASK, a, a)["accuracy", "", "all"] == 1.0


def test_a_count_has_a_difference_and_no_interval() -> None:
    found = compared(table([1, 0]), table([0, 1]))[1]
    assert (found.metric, found.difference, found.ci_low) == ("questions", 0, None)


def test_columns_are_joined_by_name() -> None:
    a, b = table([1, 0, 1]), table([0, 0, 1], columns=("credit", "n"))
    assert compared(a, b)[0].difference == pytest.approx(-100 / 3)


def test_tables_of_other_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match="other images"):
        aligned([table([1, 0]), table([1, 0, 1])])


def test_draws_stay_within_strata() -> None:
    strata = ["easy"] * 50 + ["hard"] * 50
    a, b = table([1] * 50 + [0] * 50, strata=strata), table([1] * 50 + [1] * 50, strata=strata)
    found = compared(a, b)[0]
    assert found.difference == 50
    assert found.ci_low is None  # within each stratum all images differ alike: no replicate says otherwise


def test_a_system_has_the_same_draws_alone_and_beside_another() -> None:
    one, other = aligned([table([1, 0, 1, 1], 2), table([0, 0, 2, 1], 2)])
    [name, _], [alone] = draw(TASK, [one])
    _, [first, second] = draw(TASK, [one, other])
    assert name.name == "accuracy"
    assert np.array_equal(alone.spreads[0], first.spreads[0])
    assert not np.array_equal(alone.spreads[0], second.spreads[0])
    assert aligned([one])[0].units == one.units


def test_the_mean_of_seeds_has_the_mean_of_their_draws() -> None:
    tables = aligned([table([1, 0, 1, 1]), table([0, 0, 1, 1]), table([1, 1, 1, 1])])
    names, (one, two, other) = draw(TASK, tables)
    found = differences(names, mean([one, two]), other)[0]
    assert found.a == pytest.approx((75 + 50) / 2)
    assert found.difference == pytest.approx(100 - 62.5)


@pytest.mark.parametrize(
    ("only_a", "only_b"), [(0, 0), (5, 0), (4, 5), (3, 9), (40, 61), (120, 180), (2000, 2150), (9, 9)]
)
def test_mcnemar_is_the_exact_binomial_test(only_a: int, only_b: int) -> None:
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)


def test_on_one_question_an_image_the_swap_test_is_mcnemars() -> None:
    a, b = np.zeros(40), np.zeros(40)
    a[:2], b[2:11] = 1, 1  # 2 against 9: all 2^11 swaps are tried
    assert swap_test(TASK, *both([table(a), table(b)]))["accuracy", "", "all"] == pytest.approx(mcnemar(2, 9))


def test_the_swap_test_is_scipys_permutation_test_of_pairs() -> None:
    rng = np.random.default_rng(5)
    a = rng.integers(0, 7, 12).astype(float)
    b = np.clip(a + rng.integers(-1, 3, 12), 0, 6)
    expected = permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
    ).pvalue
    assert swap_test(TASK, *both([table(a, 6), table(b, 6)]))["accuracy", "", "all"] == pytest.approx(expected)


@pytest.mark.parametrize("differing", [13, 14, 200])
def test_no_p_is_below_one_in_ten_thousand_unless_all_swaps_are_tried(differing: int) -> None:
    """B is right where A is wrong, every time: only the swap of no image, and that of all, go as far."""
    p = swap_test(TASK, *both([table([0] * differing), table([1] * differing)]))["accuracy", "", "all"]
    if differing == 13:
        assert p == 2 / 2**13
    elif differing == 200:
        assert p == 1 / 10_000
    else:
        assert p * 10_000 == pytest.approx(round(p * 10_000))


def test_draws_and_swaps_are_those_of_the_seed_and_of_seed_0_by_default() -> None:
    rng = np.random.default_rng(6)
    pair = both([table(rng.integers(0, 7, 40), 6), table(rng.integers(0, 7, 40), 6)])
    p = [swap_test(TASK, *pair, **seed)["accuracy", "", "all"] for seed in ({}, {"seed": 0}, {"seed": 1})]
    ends = [compared(*pair, **seed)[0].ci_low for seed in ({}, {"seed": 0}, {"seed": 1})]
    for default, zero, one in (p, ends):
        assert default == zero != one


def test_replicates_in_which_a_metric_is_undefined_for_one_system_are_left_out() -> None:
    """Of nine pictures one system was asked about two, the other about two others."""
    a, b = table([1, 0] + [0] * 7, [1, 1] + [0] * 7), table([0] * 7 + [1, 0], [0] * 7 + [1, 2])
    found = compared(a, b)[0]
    assert found.difference == pytest.approx(100 / 3 - 50)
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert -100 <= found.ci_low < found.difference < found.ci_high <= 100


def test_what_is_undefined_has_no_difference_and_no_p() -> None:
    a, b = table([1, 0, 1]), table([0, 0, 0], 0)
    found = compared(a, b)[0]
    assert (found.b, found.difference, found.ci_low) == (None, None, None)
    assert swap_test(TASK, *both([a, b])) == {}


def test_random_swaps_come_near_the_exact_p() -> None:
    a, b = np.zeros(60), np.zeros(60)
    a[:10], b[10:32] = 1, 1
    p = swap_test(TASK, *both([table(a), table(b)]))["accuracy", "", "all"]
    assert p == pytest.approx(mcnemar(10, 22), abs=0.01)


def test_questions_of_one_image_do_not_count_as_many_witnesses() -> None:
    # Six questions about each of four images, all in B's favour: 24 to 0 by question, but four images alone.
    a, b = table([0] * 4 + [3] * 20, 6), table([6] * 4 + [3] * 20, 6)
    assert mcnemar(0, 24) < 1e-6
    assert swap_test(TASK, *both([a, b]))["accuracy", "", "all"] == 2 / 16


def test_holm_is_the_published_example() -> None:
    # Sorted p times 4, 3, 2, 1, never falling: R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm").
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
