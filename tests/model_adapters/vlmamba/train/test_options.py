"""What a stage may ask for beside the plain case, and what it finds when a package is missing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from msgspec.structs import replace
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from vlmamba_eval.model_adapters.vlmamba import checkpoint
from vlmamba_eval.model_adapters.vlmamba.model import random_model
from vlmamba_eval.model_adapters.vlmamba.train import check, cli, trainer
from vlmamba_eval.model_adapters.vlmamba.train.recipe import FOLDER, Data, Lora, Stage, keys, load_recipe, schema
from vlmamba_eval.model_adapters.vlmamba.train.run import run_recipe
from vlmamba_eval.model_adapters.vlmamba.train.speed import Work
from vlmamba_eval.model_adapters.vlmamba.train.trained import TrainedModel, whole_parameters
from vlmamba_eval.types import UsageError

from .conftest import small_config, write_recipe

ALL: dict[str, Any] = {"train": ["vision", "connector", "language_model"]}
STAGE = Stage(
    name="one", train=("connector", "language_model"), data=Data(stream="scenes"), batch_size=2, micro_batch_size=2,
    learning_rate=1e-3, steps=1,
)  # fmt: skip


def train(tmp_path: Path, data: Path, stage: dict[str, Any], **more: Any) -> tuple[Path, list[str]]:
    said: list[str] = []
    recipe = load_recipe(str(write_recipe(tmp_path, [{"name": "one", **ALL, "steps": 2, **stage}], **more)))
    return run_recipe(recipe, tmp_path / "out", data=data, device="cpu", say=said.append), said


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# =============================================================================
# Low-rank updates, rates by part, one byte a moment
# =============================================================================


def test_merged_updates_are_those_of_peft():
    lora = Lora(rank=3, alpha=5.0, dropout=0.0, targets=("in_proj", "out_proj"))
    trained = TrainedModel(random_model(small_config(), 0), replace(STAGE, lora=lora))
    theirs = random_model(small_config(), 0)
    config = LoraConfig(r=3, lora_alpha=5.0, lora_dropout=0.0, target_modules=["in_proj", "out_proj"])  # type: ignore[arg-type]
    peft = get_peft_model(theirs.language_model, config)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    ours = {name: p for name, p in trained.model.language_model.named_parameters() if ".lora_" in name}
    for name, parameter in peft.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
            ours[name.removeprefix("base_model.model.")].data = parameter.data.clone()
    assert {name.split(".")[-3].rpartition("_lora")[0] or "lora" for name in ours}, "there are updates"
    expected = peft.merge_and_unload().state_dict()  # type: ignore[operator]
    found = whole_parameters(trained, sharded=False)
    plain = random_model(small_config(), 0).state_dict()
    assert set(found) == set(plain)
    for name, tensor in expected.items():
        assert torch.allclose(found[f"language_model.{name}"], tensor, atol=1e-6), name
    assert not torch.equal(
        expected["backbone.layers.0.mixer.in_proj.weight"],
        plain["language_model.backbone.layers.0.mixer.in_proj.weight"],
    )


def test_with_updates_only_matrices_of_the_language_model_change(tmp_path: Path, data: Path):
    stages = [{"name": "0", **ALL, "steps": 1}, {"name": "1", **ALL, "train": ["language_model"], "lora": {"rank": 2}}]
    recipe = load_recipe(str(write_recipe(tmp_path, stages)))
    run_recipe(recipe, tmp_path / "out", data=data, device="cpu")
    old, new = (load_file(tmp_path / "out" / name / "model.safetensors") for name in "01")
    assert set(old) == set(new), "a checkpoint like any other"
    changed = {name.split(".", 4)[-1] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {f"mixer.{name}.weight" for name in ("in_proj", "x_proj", "out_proj")}
    checkpoint.load(tmp_path / "out/1")


def test_parts_learn_at_their_own_rates(tmp_path: Path, data: Path):
    """At a rate of 0 a part stays bit for bit, and the log says each rate."""
    stages = [
        {"name": "0", **ALL, "steps": 1},
        {"name": "1", **ALL, "steps": 3, "learning_rates": {"language_model": 0.0, "vision": 1e-4}},
    ]
    out = run_recipe(load_recipe(str(write_recipe(tmp_path, stages))), tmp_path / "out", data=data, device="cpu")
    old, new = (load_file(tmp_path / "out" / name / "model.safetensors") for name in "01")
    changed = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"vision", "connector"}
    first = lines(out / "log.jsonl")[0]
    assert (first["learning_rate"], first["learning_rate_vision"]) == (1e-3, pytest.approx(1e-4))


@pytest.mark.parametrize(
    ("stage", "more", "message"),
    [
        ({"optimizer": "adamw_8bit"}, {}, "stage one needs bitsandbytes: pip install"),
        ({"lora": {}}, {}, "stage one needs peft: pip install"),
        ({}, {"report_to": ["wandb"]}, "report_to: wandb is not installed"),
    ],
)
def test_a_package_that_is_missing_is_named_before_anything_begins(
    tmp_path: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: dict[str, Any],
    more: dict[str, Any],
    message: str,
):
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=message):
        train(tmp_path, data, stage, **more)
    assert not (tmp_path / "out").exists()


def test_one_byte_moments_are_refused_on_a_cpu(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check, "find_spec", lambda name: object())
    with pytest.raises(UsageError, match="optimizer adamw_8bit runs only on GPUs: take adamw on a CPU"):
        train(tmp_path, data, {"optimizer": "adamw_8bit"})


def test_precision_is_chosen_by_what_there_is(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    assert trainer.precision_of(STAGE, on_gpu=False) == "float32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert trainer.precision_of(STAGE, on_gpu=True) == "bf16"
    assert trainer.precision_of(replace(STAGE, precision="tf32"), on_gpu=True) == "tf32"
    _, said = train(tmp_path, data, {"steps": 2, "log_every": 1, "precision": "auto"})
    assert any(line.startswith("precision float32; one device multiplies matrices at") for line in said)
    first, last = (line for line in said if line.startswith("step "))
    assert first.startswith("step 1/2 ")
    assert first.endswith(" matrix rate"), "a first step warms up"
    assert last.startswith("step 2/2 ")
    assert last.endswith("  0 s left")
    with pytest.raises(UsageError, match="--device cuda: PyTorch sees no CUDA device"):
        trainer.find_device("cuda") if not torch.cuda.is_available() else pytest.skip("there is one")


# =============================================================================
# What is measured, and said
# =============================================================================


def test_benchmarks_and_held_out_loss_are_measured_on_the_way(tmp_path: Path, data: Path):
    """The last measurement is that of the finished checkpoint, and training is not disturbed by it."""
    from vlmamba_eval.store import read_manifest

    held_out = {"json": "held.json", "images": "images"}
    (data / "held.json").write_text((data / "talk.json").read_text())
    evaluation = {"every": 2, "tasks": "pope", "limit": 4, "held_out": held_out, "examples": 10}
    folder, said = train(tmp_path / "a", data, {"steps": 3, "eval": evaluation})
    undisturbed, _ = train(tmp_path / "b", data, {"steps": 3})
    old, new = load_file(undisturbed / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(old[name], new[name]) for name in old)
    found = lines(folder / "eval.jsonl")
    assert [line["step"] for line in found] == [2, 3]
    for line in found:
        assert 0 <= line["eval_pope_mean_f1"] <= 100
        assert line["marks"] == ["PARTIAL", "SAMPLES"]
        (run,) = (folder / f"eval/step-{line['step']}/runs").glob("*/pope/*")
        measured = read_manifest(run).model
        assert measured is not None
        assert (measured.name, measured.untrained) == (f"small-step-{line['step']}", False)
    assert sum("measured: loss" in line and "PARTIAL SAMPLES" in line for line in said) == 2
    model, config, tokenizer = checkpoint.load(folder)
    from vlmamba_eval.model_adapters.vlmamba.train.data import Collator, Conversations, JsonRows

    examples = Conversations(JsonRows(data / "held.json", data / "images"), config, tokenizer, 2048)
    batch = Collator(1)([examples[number] for number in range(10)])
    with torch.no_grad():
        expected = TrainedModel(model, STAGE)(**batch)["answers"]
    assert found[-1]["eval_loss"] == pytest.approx(float(expected), abs=1e-4)
    card = (folder / "README.md").read_text()
    assert "Measured during training, **PARTIAL SAMPLES**: not comparable with published numbers" in card
    assert "| step | held-out loss | pope_mean_f1 |" in card
    for line in found:
        assert f"| {line['step']} | {line['eval_loss']:.4g} | {line['eval_pope_mean_f1']:.4g} |" in card
    assert said[-1].startswith(f"To measure it: vlmamba-eval --model {folder} ")


def test_the_model_card_says_what_the_folder_is(tmp_path: Path, data: Path):
    folder, _ = train(tmp_path, data, {"train": ["connector"]})
    card = (folder / "README.md").read_text()
    assert "**Never trained: vision, language_model.** Its answers mean nothing." in card
    assert "this is not their model" in card
    assert "| stage one | recipe recipe, seed 0 |" in card
    assert f"| loss at step 2 | {lines(folder / 'log.jsonl')[-1]['loss']:.4g} |" in card


def test_held_out_examples_are_not_those_that_are_learnt(tmp_path: Path, data: Path):
    learnt = {"json": "talk.json", "images": "images"}
    with pytest.raises(UsageError, match=r"eval\.held_out names the very data that the stage learns"):
        train(tmp_path, data, {"eval": {"every": 1, "held_out": learnt}})


def test_the_work_of_a_step_is_counted_from_the_models_matrices():
    """Against FLOPs that PyTorch counts itself, for a forward and backward pass of everything but the scan."""
    from torch.utils.flop_counter import FlopCounterMode

    from .test_packing import examples

    config = small_config()
    from vlmamba_eval.model_adapters.vlmamba.train.data import Collator

    batch = Collator(1)(examples(config, [40, 60], [True, True]))
    parts = ("vision", "connector", "language_model")
    cases = [(kind, learn) for kind in ("mlp", "vss_mlp", "vss_l2") for learn in (parts, parts[1:2], parts[1:])]
    for kind, train_ in cases:
        connector = dataclasses.replace(config.connector, kind=kind)
        model = random_model(dataclasses.replace(config, connector=connector), 0)
        trained = TrainedModel(model, replace(STAGE, train=train_))
        with FlopCounterMode(display=False) as counter:
            trained(**batch)["loss"].backward()
        counted = counter.get_flop_counts()["Global"]
        products = sum(flops for operator, flops in counted.items() if "bmm" not in str(operator))  # the scan's
        assert Work(trained.model).of(batch) == pytest.approx(products, rel=0.02), (kind, train_)


# =============================================================================
# The command and the language
# =============================================================================


def test_without_a_recipe_the_command_lists_those_there_are():
    done = CliRunner().invoke(cli.train, [])
    assert done.exit_code == 0
    assert "\ntiny " in done.output
    assert "vlmamba-train RECIPE --out DIR trains one" in done.output
    assert CliRunner().invoke(cli.train, ["--version"]).exit_code == 0


def test_every_key_of_the_language_is_explained():
    said = CliRunner().invoke(cli.train, ["--keys"]).output
    assert said.strip() == keys().strip()
    for line in keys().splitlines():
        if line.startswith("  "):
            assert len(line.split(maxsplit=2)) == 3, f"no description: {line}"
    assert {"stages", "learning_rates", "packing", "held_out", "rank"} <= {
        line.split()[0] for line in said.splitlines() if line
    }


def test_the_schema_for_editors_is_that_of_the_code():
    assert json.loads((FOLDER / "recipe.schema.json").read_text()) == schema()
