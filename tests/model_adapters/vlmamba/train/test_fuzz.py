"""Whatever stands in a recipe or in training data: it is read, or refused in a sentence; never another exception."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.odd import feed
from vlmamba_eval.model_adapters.vlmamba.train.data import JsonRows, segments
from vlmamba_eval.model_adapters.vlmamba.train.recipe import load_recipe

from .conftest import small_config, write_recipe

many = pytest.mark.parametrize(
    "examples", [pytest.param(20, id="a few"), pytest.param(2_000, id="many", marks=pytest.mark.slow)]
)


@many
def test_no_recipe_brings_the_reader_down(tmp_path: Path, examples: int) -> None:
    """JSON is YAML too, so that the parts of a recipe can be exchanged."""
    path = write_recipe(
        tmp_path,
        [
            {"name": "one", "train": ["connector"], "learning_rates": {"connector": 1e-3}, "group_by_length": True},
            {"name": "two", "train": ["language_model"], "lora": {"rank": 4}, "eval": {"every": 2, "tasks": "pope"}},
            {"name": "three", "train": ["vision"], "data": {"stream": "scenes", "seed": "1", "options": {"turns": 2}}},
        ],
    )
    (tmp_path / "above.yaml").write_text("stages: [{name: two, steps: 3}]")
    path.write_text(json.dumps({"extends": "above.yaml", **yaml.safe_load(path.read_text())}))
    assert [stage.name for stage in load_recipe(str(path)).stages] == ["two", "one", "three"]
    feed([path, tmp_path / "small.json"], lambda: load_recipe(str(path), ("two.steps=4",)), examples)


@many
def test_no_training_data_bring_the_reader_down(data: Path, examples: int) -> None:
    config, path = small_config(), data / "talk.json"

    def read() -> None:
        rows = JsonRows(path, data / "images")
        rows.sizes()
        for number in range(len(rows)):
            segments(rows[number][0], config)

    read()
    feed([path, data / "images" / "red.png"], read, examples)
