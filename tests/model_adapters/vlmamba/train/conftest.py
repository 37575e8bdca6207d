"""A recipe small enough to train in seconds, with LLaVA-format data on disk."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from vlmamba_eval.model_adapters.vlmamba.config import PRESETS, LanguageModelConfig, ModelConfig, to_dict


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def small_config() -> ModelConfig:
    """16 image tokens, two layers of everything."""
    tiny = PRESETS["vlmamba-tiny"]
    vision = replace(
        tiny.vision,
        image_size=32,
        patch_size=8,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
    )
    language_model = LanguageModelConfig(d_model=64, n_layer=2, vocab_size=512, d_state=4)
    return replace(tiny, name="small", vision=vision, language_model=language_model)


COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "gray": (128, 128, 128)}


def llava_rows(n: int = 16) -> list[dict[str, Any]]:
    """Conversations about pictures of one colour, every fourth with two turns, every eighth without a picture."""
    rows: list[dict[str, Any]] = []
    for number in range(n):
        color = list(COLORS)[number % 4]
        if number % 8 == 7:
            talk = [(f"Which number follows {number - 1}?", str(number))]
        else:
            talk = [(f"<image>\nQuestion {number}: what color is it?", f"{color} {number}")]
        if number % 4 == 2:
            talk.append(("Is it red?", "No"))
        row: dict[str, Any] = {"id": str(number)}
        if number % 8 != 7:
            row["image"] = f"{color}.png"
        row["conversations"] = [
            {"from": speaker, "value": value}
            for turn in talk
            for speaker, value in zip(("human", "gpt"), turn, strict=True)
        ]
        rows.append(row)
    return rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder: `talk.json` and its pictures."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "talk.json").write_text(json.dumps(llava_rows()))
    for name, color in COLORS.items():
        Image.new("RGB", (40, 30), color).save(folder / "images" / f"{name}.png")
    return folder


STAGE: dict[str, Any] = {
    "data": {"json": "talk.json", "images": "images"},
    "batch_size": 4,
    "micro_batch_size": 2,
    "learning_rate": 1e-3,
    "steps": 6,
    "precision": "float32",
    "workers": 0,
    "save_every": 2,
    "log_every": 1,
}


def write_recipe(folder: Path, stages: list[dict[str, Any]], **more: Any) -> Path:
    """A recipe beside its model's configuration."""
    folder.mkdir(exist_ok=True)
    (folder / "small.json").write_text(json.dumps(to_dict(small_config())))
    recipe = {"model": "small.json", "start": "random", "tokenizer_examples": 16, **more}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, "stages": [{**STAGE, **stage} for stage in stages]}))
    return path


# =============================================================================
# Several processes
# =============================================================================


def in_processes(n: int, function: Callable[..., None], *arguments: Any, timeout: float = 120) -> None:
    """Call a function in `n` processes of one group, as torchrun does.

    They are forked from a server that has imported what takes long, and has run nothing (Numba's threads survive no
    fork). Raises `AssertionError` with the first process's own error.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vlmamba_eval.model_adapters.vlmamba.train.run"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    errors = context.SimpleQueue()
    processes = [
        context.Process(target=_as_rank, args=(rank, n, port, errors, function, *arguments)) for rank in range(n)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    said = [] if errors.empty() else [errors.get()]
    assert not hanging, f"{len(hanging)} of {n} processes hang"
    assert not said, said[0]
    assert [process.exitcode for process in processes] == [0] * n


def _as_rank(rank: int, n: int, port: int, errors: Any, function: Callable[..., None], *arguments: Any) -> None:
    from accelerate.state import AcceleratorState

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        function(*arguments)
    except BaseException:  # noqa: BLE001 - whatever it is, the test says it
        errors.put(f"process {rank}: {traceback.format_exc()}")
        os._exit(1)
    os._exit(0)
