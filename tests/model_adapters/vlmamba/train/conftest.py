"""A recipe small enough to train in seconds, with LLaVA-format data on disk."""

from __future__ import annotations

import json
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
