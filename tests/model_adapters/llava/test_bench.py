from __future__ import annotations

import json
from pathlib import Path

from vlmamba_eval.model_adapters.llava.bench import TINY, equal_answers, measure


def test_all_contestants_are_measured_on_all_profiles_and_written(tmp_path: Path) -> None:
    found = measure(TINY, "cpu", tmp_path, minutes=2, images=2, repeats=1)
    assert {(row["profile"], row["contestant"]) for row in found["rows"]} == {
        (profile, name) for profile in ("gqa", "pope", "mme") for name in ("shared", "batch", "one")
    }
    assert all(len(row["seconds_per_image"]) == 1 for row in found["rows"])
    assert json.loads((tmp_path / "llava.json").read_text())["profiles"]["mme"]["questions_per_image"] == 2
    table = (tmp_path / "llava.md").read_text()
    assert table.count("x** (") == 6


def test_the_contestants_say_the_same() -> None:
    asked, differing = equal_answers(TINY, "cpu")
    assert asked > 30
    assert differing == 0
