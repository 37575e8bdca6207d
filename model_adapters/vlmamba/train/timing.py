"""How fast and how large a stage of a recipe is on this machine, with random weights: memory, tokens per second, time.

    python -m vlmamba_eval.model_adapters.vlmamba.train.timing vlmamba-2.8b \\
        --stage instruction --micro-batch-size 8 --out FILE.json

The steps are the Trainer's own, from data to optimizer; only the conversations are made up, of the length that is
asked for. With random weights the loss means nothing.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from msgspec.structs import replace
from PIL import Image
from torch import nn

from vlmamba_eval.model_adapters.vlmamba import checkpoint
from vlmamba_eval.model_adapters.vlmamba.adapter import TINY
from vlmamba_eval.model_adapters.vlmamba.config import PRESETS
from vlmamba_eval.model_adapters.vlmamba.model import random_model
from vlmamba_eval.model_adapters.vlmamba.scan import choose_backend
from vlmamba_eval.strict_json import parse_json

from .cli import use_one_gpu
from .recipe import Data, load_recipe
from .trainer import train_stage


def conversation(seed: str, number: int, words: int = 250, spread: bool = False) -> dict[str, Any]:
    """A row of LLaVA's format of two turns: a picture of one colour and `words` words, four of five in the answers.

    With `spread`, rows have from a tenth of these words to twice as many.
    """
    if spread:
        words = max(10, words * (2 + 7919 * number % 38) // 20)
    question, answer = " ".join(["what"] * (words // 10)), " ".join(["is"] * (words * 4 // 10))
    turns = [("human", f"<image>\n{question}"), ("gpt", answer), ("human", question), ("gpt", answer)]
    picture = Image.new("RGB", (640, 480), (number % 256, 90, 160))
    return {"image": picture, "conversations": [{"from": speaker, "value": value} for speaker, value in turns]}


def counted_bytes(model: nn.Module, learning: Sequence[str]) -> dict[str, int]:
    """What training must keep between two steps, counted from the parameters: all of it is float32.

    A lower bound of the peak: activations, the products' bf16 copies, and buffers come on top.
    """
    all_parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    learn = sum(all_parts[name] for name in learning)
    weights = 4 * sum(all_parts.values())
    return {"weights": weights, "gradients": 4 * learn, "adam_moments": 8 * learn}


@click.command()
@click.argument("recipe")
@click.option("--stage", default="instruction", show_default=True)
@click.option("--steps", default=20, show_default=True)
@click.option("--micro-batch-size", default=8, show_default=True)
@click.option("--words", default=250, show_default=True, help="Words of a conversation, beside the image's tokens.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the numbers here as JSON.")
def main(recipe: str, stage: str, steps: int, micro_batch_size: int, words: int, out: Path | None) -> None:
    """Time some steps of a stage of RECIPE with random weights, on one GPU."""
    use_one_gpu()
    loaded = load_recipe(recipe)
    stages = {known.name: known for known in loaded.stages}
    if stage not in stages:
        raise click.UsageError(f"recipe {loaded.name} has no stage {stage}, only {', '.join(stages)}")
    wanted = stages[stage]
    stream = Data(stream="vlmamba_eval.model_adapters.vlmamba.train.timing:conversation", options={"words": words})
    cuda = torch.cuda.is_available()
    timed = replace(
        wanted, data=stream, epochs=0, steps=steps, batch_size=micro_batch_size, micro_batch_size=micro_batch_size,
        save_every=10**9, log_every=1, workers=4 if cuda else 0,
    )  # fmt: skip
    device = torch.device("cuda" if cuda else "cpu")
    tokenizer = checkpoint.load_tokenizer(TINY / "tokenizer.json", PRESETS["vlmamba-tiny"])
    model = random_model(loaded.config, loaded.seed, device)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        run = Path(folder) / "run"
        train_stage(model, tokenizer, timed, run, Path(), device="auto" if cuda else "cpu", say=click.echo)
        total = time.monotonic() - began
        log = [parse_json(line, constants=True) for line in (run / "log.jsonl").read_text().splitlines()]
    # The first steps compile kernels and fill caches.
    skipped = min(5, steps // 2)
    seconds = (log[-1]["seconds"] - log[skipped - 1]["seconds"]) / (steps - skipped)
    tokens = log[-1]["tokens"]
    found = {
        "recipe": loaded.name,
        "stage": stage,
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        "scan_backend": choose_backend(device, requires_grad=True),
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_that_learn": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "micro_batch_size": micro_batch_size,
        "tokens_a_sequence": tokens // micro_batch_size,
        "steps": steps,
        "seconds_a_step": round(seconds, 4),
        "tokens_per_second": round(tokens / seconds),
        "counted_memory_gib": round(sum(counted_bytes(model, wanted.train).values()) / 2**30, 2),
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2) if cuda else None,
        "total_seconds": round(total, 1),
    }
    click.echo(json.dumps(found, indent=2))
    if out:
        out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
