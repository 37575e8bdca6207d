"""The script that measures image-once on a GPU runs from end to end on a CPU, at a toy's size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gpu.image_once_on_gpu import MODELS, main


@pytest.mark.slow
def test_every_step_leaves_its_numbers_and_equal_answers(tmp_path: Path) -> None:
    main(["--tiny", "--images", "1", "--alone", "3", "--repeats", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "image_once.json").read_text())
    for name in MODELS:
        assert found[f"{name}: image once"]["equal_answers"] == "3 of 3"
        assert found[f"{name}: image once"]["ratio"] > 0
        assert found[f"{name}: decoding, ms a step"]
    assert all(row["ms"] > 0 for row in found["mamba2 block"].values())
