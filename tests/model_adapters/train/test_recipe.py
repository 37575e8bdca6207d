"""Recipes are read strictly, and those of the project are complete."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from model_adapters.vlmamba.config import PRESETS
from model_adapters.vlmamba.train.recipe import FOLDER, load_recipe
from vlmamba_eval.types import UsageError

from .conftest import write_recipe

ALL = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_of_the_project_is_valid(name: str):
    recipe = load_recipe(name)
    assert recipe.stages
    assert recipe.config.connector.kind in ("mlp", "vss_mlp", "vss_l2")


@pytest.mark.parametrize("name", ["vlmamba-2.8b", "vlmamba-1.4b"])
def test_the_paper_sizes_are_trained_with_llavas_published_values(name: str):
    """haotian-liu/LLaVA@c121f04:scripts/v1_5/{pretrain,finetune}.sh."""
    alignment, instruction = load_recipe(name).stages
    assert (alignment.train, instruction.train) == (("connector",), ("connector", "language_model"))
    assert (alignment.batch_size, instruction.batch_size) == (256, 128)
    assert (alignment.learning_rate, instruction.learning_rate) == (1e-3, 2e-5)
    assert (alignment.template, instruction.template) == ("plain", "vicuna_v1")
    for stage in (alignment, instruction):
        assert (stage.epochs, stage.max_length, stage.weight_decay, stage.warmup_ratio) == (1, 2048, 0, 0.03)
        assert (stage.schedule, stage.precision, stage.gradient_checkpointing) == ("cosine", "bf16", True)


def test_the_ablations_cover_the_papers_grid():
    found = {load_recipe(name).model for name in ALL if name.startswith("ablations/") and "tiny" not in name}
    assert found == {name for name in PRESETS if name.startswith(("vlmamba-2.8b-", "vlmamba-1.4b-"))}


def test_a_recipe_extends_another_stage_by_stage(tmp_path: Path):
    write_recipe(tmp_path, [{"name": "one", "train": ["connector"]}, {"name": "two", "train": ["language_model"]}])
    child = tmp_path / "child.yaml"
    child.write_text("extends: recipe.yaml\nconnector: {kind: mlp}\nstages: [{name: two, steps: 3}]\n")
    recipe = load_recipe(str(child), ("seed=5", "one.learning_rate=1e-4"))
    assert [stage.steps for stage in recipe.stages] == [6, 3]
    assert recipe.stages[0].learning_rate == 1e-4
    assert recipe.seed == 5
    assert (recipe.config.connector.kind, recipe.config.name) == ("mlp", "small")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"traim": ["connector"]}, "unknown traim"),
        ({"train": ["conector"]}, "train must name some of vision, connector, language_model"),
        ({"learning_rate": "fast"}, r"stages\[0\].learning_rate must be float, found 'fast'"),
        ({"steps": 2.5}, r"steps must be int"),
        ({"schedule": "cosin"}, "schedule must be one of 'cosine'"),
        ({"epochs": 1}, "either epochs or steps"),
        ({"data": {}}, "either json or stream"),
        ({"data": {"stream": "a:b"}, "steps": 0, "epochs": 1}, "a stream has no epochs"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(tmp_path: Path, change: dict[str, object], message: str):
    path = write_recipe(tmp_path, [{"name": "one", "train": ["connector"], **change}])
    with pytest.raises(UsageError, match=message):
        load_recipe(str(path))


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(UsageError, match=r"neither a file nor a recipe of the project\. Recipes: .*tiny"):
        load_recipe("tinny")


def test_every_value_of_a_recipe_has_a_comment_on_its_source():
    """Each recipe says of its values whether they are published or our choice."""
    for path in FOLDER.rglob("*.yaml"):
        text = path.read_text()
        assert "#" in text.splitlines()[0], f"{path} begins with what it is"
        if "extends" not in yaml.safe_load(text):
            assert "our choice" in text.lower(), path
