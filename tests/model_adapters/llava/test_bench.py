"""`bench --family llava` at a size of thousands of parameters: every contestant answers all questions, alike."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from vlmamba_eval.model_adapters.llava.bench import (
    LENGTHS,
    PROFILES,
    TINY,
    items,
    measure,
    random_adapter,
)
from vlmamba_eval.model_adapters.shared.bench import counted, question_lengths
from vlmamba_eval.model_adapters.shared.prefix_adapter import PrefixAdapter


@pytest.fixture(scope="module")
def adapter() -> PrefixAdapter:
    return random_adapter(TINY, "cpu", "float32")


def test_all_contestants_answer_alike_and_are_written(adapter: PrefixAdapter, tmp_path: Path) -> None:
    found = measure(adapter, tmp_path, profiles=("gqa",), images=2, repeats=1, slow={"batch": 1, "one": 1})
    assert {(row["profile"], row["contestant"]) for row in found["rows"]} == {
        ("gqa", name) for name in ("shared", "listed", "batch", "one")
    }
    assert all(len(row["seconds_per_image"]) == 1 for row in found["rows"])
    assert json.loads((tmp_path / "llava.json").read_text()) == found
    gqa = found["profiles"]["gqa"]
    for name in ("batch", "one"):
        differ, asked = gqa[f"differ_{name}"]
        assert (differ, asked > 10) == (0, True)
    table = (tmp_path / "llava.md").read_text()
    assert table.count("times that)") == 1
    assert f"- gqa: 0 of {gqa['differ_batch'][1]} of `batch`, 0 of" in table


def test_questions_have_the_lengths_of_the_real_lists(adapter: PrefixAdapter, tmp_path: Path) -> None:
    some = items(adapter, "pope", 2, tmp_path)
    lengths = [[len(adapter.conversations.asked(text, image=True)) for text, _ in item.questions] for item in some]
    assert lengths == [
        [asked.tokens for asked in about.questions] for about in counted(LENGTHS, "pope", random.Random("pope/0"), 2)
    ]
    known = question_lengths(LENGTHS)
    totals = {name: (len(known[name]["images"]), sum(map(len, known[name]["images"]))) for name in PROFILES}
    assert totals == {"gqa": (398, 12_578), "pope": (500, 8_910), "mme": (1_187, 2_374)}
    assert sum(known["pope"]["distinct"]) == 5_043
