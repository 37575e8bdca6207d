"""Recipes are read strictly, and those of the project are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from vlmamba_eval.model_adapters.vlmamba.config import PRESETS
from vlmamba_eval.model_adapters.vlmamba.train.recipe import FOLDER, load_recipe
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


def test_a_recipe_of_the_project_is_extended_by_its_name(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("extends: tiny\nstages: [{name: 0-pretraining, steps: 3}]\n")
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert [stage.steps for stage in recipe.stages] == [3, 150, 1600]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"traim": ["connector"]}, "unknown traim"),
        (
            {"train": ["conector"]},
            r"train\[0\] must be one of 'connector', 'language_model', 'vision', found 'conector'",
        ),
        ({"train": "connector"}, "train must be a list; each of it one of .*found 'connector'"),
        ({"train": []}, "train must name some of vision, connector, language_model"),
        ({"learning_rate": "fast"}, r"stages\[0\].learning_rate must be float, found 'fast'"),
        ({"steps": 2.5}, r"steps must be int, found 2\.5"),
        ({"batch_size": 0}, r"stages\[0\]\.batch_size must be int of at least 1 and of at most 10000000, found 0"),
        ({"schedule": "cosin"}, "schedule must be one of 'constant_with_warmup', 'cosine', 'linear', found 'cosin'"),
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
    with pytest.raises(
        UsageError, match=r"neither a file nor a recipe of the project\. Did you mean: tiny\? Recipes: .*tiny"
    ):
        load_recipe("tinny")


@pytest.mark.parametrize("name", ALL)
def test_every_value_of_a_recipe_names_its_source_or_says_that_it_is_our_choice(name: str):
    """In a comment on its line, or once for all values of a file, or of the one that it extends."""
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.startswith("#"), "it begins with what it is"
    base = yaml.safe_load(text).get("extends", "")
    whole = text + ((FOLDER / f"{name}.yaml").parent / base).read_text() if base else text
    if "very value is our choice" in whole:
        return
    values = [line for line in text.splitlines() if re.match(r"\s*(model|save_dtype|\w+): *\S", line.split("#")[0])]
    for line in (line for line in values if not line.startswith("extends:")):
        assert re.search(r"# .*(\[LLaVA\]|\[ours\]|paper)", line), line


def test_the_ablations_readme_names_a_recipe_for_each_row_of_the_papers_tables():
    """The presets' own names say what a row is: language model, encoder, connector, scan."""
    rows = [line.split("`")[1] for line in (FOLDER / "ablations/README.md").read_text().splitlines() if "| `" in line]
    assert [load_recipe(name).model for name in rows] == [
        *("vlmamba-1.4b-clip-mlp", "vlmamba-2.8b-pile-clip-mlp", "vlmamba-2.8b-clip-mlp"),  # table 2
        *("vlmamba-2.8b-clip-mlp", "vlmamba-2.8b-mlp"),  # table 3
        *("vlmamba-2.8b-mlp", "vlmamba-2.8b-vss-mlp", "vlmamba-2.8b"),  # table 4
        *("vlmamba-2.8b", "vlmamba-2.8b-csm"),  # table 5
    ]
