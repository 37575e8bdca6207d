"""FSDP on two CPU processes: the losses and the model of one process, and runs that go on with another number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vlmamba_eval.model_adapters.vlmamba.train.recipe import load_recipe
from vlmamba_eval.model_adapters.vlmamba.train.run import run_recipe
from vlmamba_eval.model_adapters.vlmamba.train.trainer import last_complete
from vlmamba_eval.types import UsageError

from .conftest import in_processes, write_recipe

ALL = ["vision", "connector", "language_model"]


def train(recipe: Path, out: Path, data: Path, overrides: tuple[str, ...] = (), stop_after: int = 0) -> None:
    """Run a recipe; with `stop_after` it ends there as by a kill, without an error."""
    torch.set_num_threads(1)

    def say(line: str) -> None:
        if stop_after and line.startswith(f"step {stop_after}/"):
            raise _Stopped

    try:
        run_recipe(load_recipe(str(recipe), overrides), out, data=data, device="cpu", say=say)
    except (_Stopped, RuntimeError):
        if not stop_after:
            raise
        return  # the others lose their connection to the first process
    assert not stop_after, "the run ended before it could be stopped"


class _Stopped(Exception):
    """A run that ends in the middle."""


def log(folder: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def furthest(found: Path, expected: Path) -> float:
    new, old = load_file(found / "model.safetensors"), load_file(expected / "model.safetensors")
    assert set(new) == set(old)
    return max(float((new[name] - old[name]).abs().max()) for name in old)


@pytest.mark.parametrize("shard", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_processes_have_the_losses_and_the_model_of_one(tmp_path: Path, data: Path, shard: bool):
    """Sharded parameters, gradients and moments, or whole copies; packed rows, low-rank updates, held-out loss."""
    lora = {"rank": 4, "alpha": 8, "dropout": 0}
    held_out = {"every": 2, "held_out": {"stream": "scenes", "seed": "held out"}, "examples": 3}
    stages = [
        {"name": "one", "train": ALL, "steps": 3, "shard": shard, "gradient_checkpointing": True},
        {"name": "two", "train": ALL[1:], "steps": 3, "shard": shard, "packing": True, "lora": lora, "eval": held_out},
    ]
    recipe = write_recipe(tmp_path / "recipe", stages)
    train(recipe, tmp_path / "alone", data)
    in_processes(2, train, recipe, tmp_path / "both", data)
    for stage in ("one", "two"):
        alone, both = log(tmp_path / "alone" / stage), log(tmp_path / "both" / stage)
        assert [line["step"] for line in both] == [line["step"] for line in alone] == [1, 2, 3]
        for found, expected in zip(both, alone, strict=True):
            assert found["loss"] == pytest.approx(expected["loss"], abs=2e-5)
            assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
            assert found["padding"] <= 1
        assert furthest(tmp_path / "both" / stage, tmp_path / "alone" / stage) < 2e-5
    measured = [log(tmp_path / name / "two", "eval.jsonl") for name in ("alone", "both")]
    assert [line["step"] for line in measured[0]] == [2, 3]
    for expected, found in zip(*measured, strict=True):
        assert found["eval_loss"] == pytest.approx(expected["eval_loss"], abs=2e-5)


@pytest.mark.slow
def test_sharded_products_are_computed_in_the_precision_that_is_asked_for(tmp_path: Path, data: Path):
    """With bf16, two processes are nearer to one process with bf16 than that is to float32."""
    losses: dict[str, list[float]] = {}
    for precision in ("float32", "bf16"):
        recipe = write_recipe(
            tmp_path / precision, [{"name": "one", "train": ALL, "steps": 3, "shard": True, "precision": precision}]
        )
        train(recipe, tmp_path / f"{precision}-alone", data)
        losses[precision] = [line["loss"] for line in log(tmp_path / f"{precision}-alone/one")]
    in_processes(2, train, tmp_path / "bf16/recipe.yaml", tmp_path / "both", data)
    both = [line["loss"] for line in log(tmp_path / "both/one")]

    def apart(name: str) -> float:
        return max(abs(found - expected) for found, expected in zip(both, losses[name], strict=True))

    assert apart("bf16") < 0.3 * apart("float32")


def stop(rank_of_stop: int, recipe: Path, out: Path, data: Path) -> None:
    train(recipe, out, data, stop_after=rank_of_stop)


def test_a_sharded_run_goes_on_with_another_number_of_processes(tmp_path: Path, data: Path):
    """Begun by two, stopped after step 4, ended by three: the steps and the model of one undisturbed process."""
    stage = {"name": "one", "train": ALL, "shard": True, "batch_size": 6, "micro_batch_size": 1}
    recipe = write_recipe(tmp_path / "recipe", [stage])
    train(recipe, tmp_path / "alone", data)
    in_processes(2, stop, 5, recipe, tmp_path / "several", data)
    assert (last_complete(tmp_path / "several/one/training") or Path()).name == "checkpoint-4"
    with pytest.raises(UsageError, match="was begun sharded: continue with `torchrun --nproc_per_node N"):
        train(recipe, tmp_path / "several", data)
    in_processes(3, train, recipe, tmp_path / "several", data)
    losses = [
        [(line["step"], round(line["loss"], 4)) for line in log(tmp_path / n / "one")] for n in ("alone", "several")
    ]
    assert losses[0] == losses[1]
    assert furthest(tmp_path / "several/one", tmp_path / "alone/one") < 2e-5


def test_micro_batches_decide_time_and_memory_and_not_what_is_learnt(tmp_path: Path, data: Path):
    """A step's loss is the mean over all its answers' tokens, however it is cut."""
    recipe = write_recipe(tmp_path / "recipe", [{"name": "one", "train": ALL, "steps": 3}])
    for size in (1, 4):
        train(recipe, tmp_path / str(size), data, (f"one.micro_batch_size={size}",))
    assert furthest(tmp_path / "1/one", tmp_path / "4/one") < 2e-5
