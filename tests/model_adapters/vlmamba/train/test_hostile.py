"""Recipes and data from anybody: whatever they hold, the answer is a sentence, soon, and nothing of theirs runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmamba_eval.model_adapters.vlmamba.train.data import JsonRows
from vlmamba_eval.model_adapters.vlmamba.train.recipe import load_recipe
from vlmamba_eval.types import DataError, EvalError, UsageError

from .conftest import STAGE, write_recipe

DEEP = "[" * 100_000
HEAD = "model: vlmamba-tiny\nstart: random\ntokenizer_examples: 4\n"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected keys and values, found None"),
        ("- a\n", "expected keys and values, found"),
        ("a: [", "expected YAML"),
        ("\x00", "expected YAML"),
        (DEEP, "expected YAML"),
        (f"a: {DEEP}", "expected YAML"),
        (LAUGHS, "more than 20,000 values"),
        ("a: &a [*a]\n", "more than 20,000 values, or more than 50 levels"),
        (f"seed: {'9' * 5000}\n", "expected YAML, found"),
        ("x" * (2 << 20), "more than 1,048,576 bytes"),
        ("seed: 1\nseed: 2\n", "the key 'seed' appears twice"),
        ("seed: 1\nseed: 2\nstages: {", "expected YAML"),
        ("1: 2\n", "the key 1, which is not text"),
        ("? [a]\n: 1\n", "expected YAML"),
        ("!!python/object/apply:os.system ['touch owned']\n", "expected YAML"),
        ("extends: /dev/zero\n", "extends must name a file beside it or a recipe"),
        ("extends: [a]\n", "extends must name a file beside it or a recipe"),
        ("stages: 3\n", "stages must be a list whose items have a name, found 3"),
        ("stages: [{name: [a]}]\n", "stages must be a list whose items have a name"),
        ("stages: [{name: a}, {name: a}]\n", "two stages have the same name"),
        (f"{HEAD}stages: []\n", "a recipe needs stages"),
        (f"{HEAD}seed: .nan\nstages: [{{name: a}}]\n", "seed must be int, found '.nan'"),
        (f"{HEAD}seed: -1\n", "seed must be int of at least 0 and below 4294967296, found -1"),
        (f"{HEAD}save_dtype: int8\n", "save_dtype must be one of 'bfloat16', 'float16', 'float32', found 'int8'"),
        (f"{HEAD}stagess: 1\n", r"unknown stagess\. Did you mean: stages"),
        ("model: ../../../etc/passwd\nstages: [{name: a}]\n", "missing"),
        ("model: /etc/passwd.json\n", "a recipe needs stages"),
    ],
)
def test_a_hostile_recipe_gets_a_sentence_soon(tmp_path: Path, text: str, message: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    began = time.monotonic()
    with pytest.raises(UsageError, match=message) as error:
        load_recipe(str(path))
    assert time.monotonic() - began < 5
    assert str(tmp_path) in str(error.value)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../../out"}, r"name must be str like"),
        ({"name": "a/b"}, r"name must be str like"),
        ({"batch_size": 10**30}, "batch_size must be int"),
        ({"learning_rate": float("inf")}, "learning_rate must be float"),
        ({"learning_rate": float("nan")}, "learning_rate must be float"),
        ({"learning_rate": True}, "learning_rate must be float, found True"),
        (
            {"data": {"stream": "os:system", "seed": "touch owned"}},
            "there is no stream 'os:system', only scenes, made-up",
        ),
        ({"data": {"stream": "vlmamba_eval.cli:main"}}, "there is no stream"),
        ({"learning_rates": {"head": 1}}, r"learning_rates\.\.\. |learning_rates"),
        (
            {"learning_rates": {"vision": 1.0}, "train": ["connector"]},
            "learning_rates names a part that does not learn",
        ),
        ({"lora": {"rank": 0}}, r"lora\.rank must be int of at least 1"),
        ({"lora": {}, "train": ["connector"]}, "lora needs language_model in train"),
        ({"optimizer": "adamw_8bit", "shard": True}, "adamw_8bit can't be sharded"),
        ({"eval": {"every": 0, "tasks": "pope"}}, r"eval\.every must be int of at least 1"),
        ({"eval": {"every": 5}}, "eval needs held_out or tasks"),
        ({"eval": {"every": 5, "held_out": {}}}, "held_out needs json or stream"),
        ({"group_by_length": True, "data": {"stream": "scenes"}}, "a stream comes in its own order"),
        ({"patch_classes": {"shape": -1}, "patch_weight": 1.0}, "patch_classes must be positive"),
    ],
)
def test_a_hostile_stage_gets_a_sentence(tmp_path: Path, change: dict[str, Any], message: str):
    path = write_recipe(tmp_path, [{"name": "one", "train": ["connector", "language_model"], **change}])
    with pytest.raises(UsageError, match=message):
        load_recipe(str(path))


def test_recipes_that_extend_each_other_end(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(UsageError, match=r"a\.yaml: extends itself, by way of .*b\.yaml"):
        load_recipe(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("config", ["{", DEEP, "[]", '{"format": "vlmamba-1"}', f'{{"format": {"9" * 5000}}}'])
def test_a_hostile_configuration_beside_the_recipe_gets_a_sentence(tmp_path: Path, config: str):
    path = write_recipe(tmp_path, [{"name": "one", "train": ["connector"]}])
    (tmp_path / "small.json").write_text(config)
    with pytest.raises(EvalError, match=r"small\.json"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    "override", ["", "=", "seed", ".=1", "one..x=1", "seed=[", "two.steps=1", "one.data=", f"seed={DEEP}"]
)
def test_a_hostile_override_gets_a_sentence(tmp_path: Path, override: str):
    path = write_recipe(tmp_path, [{"name": "one", "train": ["connector"]}])
    with pytest.raises(UsageError):
        load_recipe(str(path), (override,))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(sorted({*STAGE, "name", "train", "lora", "eval", "learning_rates", "patch_classes"})),
    value=_VALUES,
)
def test_any_value_of_a_stage_is_taken_or_refused_in_a_sentence(tmp_path: Path, key: str, value: Any):
    path = write_recipe(tmp_path, [{"name": "one", "train": ["connector"]}])
    import yaml

    data = yaml.safe_load(path.read_text())
    data["stages"][0][key] = value
    try:
        path.write_text(yaml.safe_dump(data, allow_unicode=True))
        load_recipe(str(path))
    except UnicodeEncodeError:
        return
    except EvalError as error:
        assert str(error)  # noqa: PT017 - it may be raised or not


TALK = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
SEEN = [{"from": "human", "value": "<image>\na"}, {"from": "gpt", "value": "b"}]
HALF = "half a character: \ud800"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DEEP, "expected a JSON list of conversations, found"),
        (f"[{'9' * 5000}]", "expected a JSON list of conversations, found"),
        (json.dumps([{"conversations": [{"from": "human", "value": HALF}, TALK[1]]}]), "half of a character"),
        (json.dumps([{"image": "a\0b.png", "conversations": TALK}]), "image must be a file name"),
        (json.dumps([{"image": HALF, "conversations": TALK}]), "image must be a file name"),
        (json.dumps([{"image": "/" + "x" * 5000, "conversations": SEEN}]), r"the image '/x+\.\.\.x+' is outside"),
        (json.dumps([{"image": "x" * 5000, "conversations": SEEN}]), "expected an image"),
        (json.dumps([{"conversations": {"from": 1}}]), 'expected an object with a list "conversations"'),
        (json.dumps(["x" * 10**6]), 'expected an object with a list "conversations"'),
    ],
)  # fmt: skip
def test_a_hostile_data_file_gets_a_sentence(tmp_path: Path, content: str, message: str):
    path = tmp_path / "talk.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        JsonRows(path, tmp_path)
    assert len(str(error.value)) < 12_000


def test_a_mistake_is_said_before_anything_heavy_is_imported(tmp_path: Path, data: Path):
    """Seconds of imports stand between a typing error and its message otherwise: 27 of them were seen."""
    code = (
        "import sys\nfrom vlmamba_eval.model_adapters.vlmamba.train import cli\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n"
        "    print('torch' in sys.modules or 'transformers' in sys.modules, end.code)\n"
    )
    recipe = str(write_recipe(tmp_path, [{"name": "one", "train": ["connector"]}], start="checkpoint"))
    for arguments, message in (
        (["tinny", "--out", "x"], "Did you mean: tiny?"),
        (["tiny"], "--out DIR is missing"),
        ([recipe, "--out", str(tmp_path / "out")], "starts from a checkpoint: --start DIR"),
        ([recipe, "--out", "x", "--start", str(tmp_path)], "is not a checkpoint: it has no config.json"),
        (["tiny", "--out", "x", "--stage", "two"], "has no stage two, only 0-pretraining"),
        (["tiny", "--out", "x", "--stage", "2-instruction"], "which is not there: train it, or --start DIR"),
        (["tiny", "--out", "x", "--set", "report_to=[trackio]"], "trackio is not installed: pip install trackio"),
        (["vlmamba-2.8b", "--out", "x", "--start", str(tmp_path)], "not a checkpoint"),
        (["tiny", "--out", "x", "--data", str(tmp_path / "nowhere")], "nowhere: no such folder"),
        (["tiny", "--out", "x", "--set", "0-pretraining.eval={every: 9, tasks: popp}"], "Did you mean: pope"),
        (
            ["tiny", "--out", "x", "--set", "0-pretraining.eval={every: 9, tasks: pope, data: nowhere}"],
            "eval.data: nowhere: no such folder",
        ),
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert message in done.stderr, done.stderr
        assert done.stdout.split() == ["False", "2"], done.stdout
