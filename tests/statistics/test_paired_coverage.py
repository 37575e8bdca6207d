"""The paired interval holds its 95 %, by simulation; `paired_coverage.py` prints the whole table."""

from __future__ import annotations

import pytest

from tests.statistics.paired_coverage import DESIGNS, PAIRS, cells, coverage


def test_coverage_of_one_list_in_a_hurry() -> None:
    covered, sets, few_covered, few, carried = coverage(DESIGNS[0], PAIRS[3], 120)
    assert (few_covered, few) == (0, 0)
    assert carried > 100
    assert 0.885 <= covered / sets <= 1.0  # 95 % and three standard errors of 120 sets


@pytest.mark.slow
def test_coverage_is_93_to_97_per_cent_where_enough_images_differ() -> None:
    sets = 400  # a cell's standard error is 1.1 points
    covered = counted = 0
    for design, systems in cells():
        inside, enough, _, _, _ = coverage(design, systems, sets)
        if enough >= sets // 2:
            assert 0.93 - 0.026 <= inside / enough <= 0.97 + 0.026, (design.name, systems.name, inside / enough)
        covered, counted = covered + inside, counted + enough
    assert 0.935 <= covered / counted <= 0.965
