from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmamba_eval.tasks.vqa_accuracy import LEAVE_ONE_OUT, MIN_THREE, PUNCTUATION, evalai, one_line, vqa


def test_every_golden_text_is_normalised_as_the_evalai_processor_does(golden: Callable[[str], Any]) -> None:
    cases = golden("evalai_processor")
    assert len(cases) == 1573
    for case in cases:
        assert evalai(case["input"]) == case["output"], case


def test_the_two_normalisations_differ_at_the_possessive() -> None:
    assert (evalai("it's"), vqa("it's")) == ("it 's", "it's")
    assert (evalai("dont"), vqa("dont")) == ("don't", "don't")


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("well-\nknown a-b", "well known ab"),
        ("well-\tknown a-b", "well known ab"),
        ("a T-shirt", "t shirt"),
        ("1,000", "1000"),
        ("x/y, z", "x y z"),
        ("a/b 1,2", "ab 12"),
        (" The\tend.\n", "end"),
    ],
)
def test_vqav2_normalisation_of_marks(text: str, normalised: str) -> None:
    assert vqa(text) == normalised


def test_line_ends_and_tabs_are_spaces_before_anything_else() -> None:
    assert one_line("\na\nb\tc \r\n") == "a b c"


def _marks_one_by_one(text: str) -> str:
    """The official loop over marks without any short cut."""
    every = re.search(r"(\d)(\,)(\d)", text) is not None
    result = text
    for mark in PUNCTUATION:
        near_space = mark + " " in text or " " + mark in text
        result = result.replace(mark, "" if near_space or every else " ")
    return re.sub(r"(?!<=\d)(\.)(?!\d)", "", result, count=32)


@given(st.text(alphabet="aB1 .,'-/?\t\n²Éß!", max_size=12))
def test_the_short_cuts_of_normalisation_change_nothing(text: str) -> None:
    from vlmamba_eval.tasks.vqa_accuracy import words

    assert vqa(text) == words(_marks_one_by_one(one_line(text)))


def test_soft_accuracy_by_the_number_of_agreeing_annotators() -> None:
    assert list(LEAVE_ONE_OUT) == pytest.approx([0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1])
    assert [MIN_THREE[value] for value in LEAVE_ONE_OUT[:5]] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])


@given(st.integers(0, 10))
def test_leaving_each_annotator_out_in_turn_gives_the_table(agreeing: int) -> None:
    answers = ["x"] * agreeing + ["y"] * (10 - agreeing)
    turns = [min(1, sum(a == "x" for j, a in enumerate(answers) if j != i) / 3) for i in range(10)]
    assert LEAVE_ONE_OUT[agreeing] == pytest.approx(sum(turns) / 10)
