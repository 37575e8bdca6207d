"""One run of `scale`, in each of its processes: `torchrun ... -m ...train.scale_run FOLDER PLAN`, PLAN being JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import transformers
from msgspec.structs import replace

from vlmamba_eval.model_adapters.vlmamba import checkpoint
from vlmamba_eval.model_adapters.vlmamba.adapter import TINY
from vlmamba_eval.model_adapters.vlmamba.config import PRESETS
from vlmamba_eval.model_adapters.vlmamba.model import random_model
from vlmamba_eval.strict_json import parse_json

from .cli import use_one_gpu
from .recipe import Data, load_recipe
from .trainer import train_stage

_SETTINGS = ("steps", "batch_size", "micro_batch_size", "shard", "packing", "gradient_checkpointing")


def main(folder: Path, plan: dict[str, object]) -> None:
    """Train the steps of the plan; `run/log.jsonl` has a line for each, `peak.json` the memory of the first device."""
    use_one_gpu()
    rank, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    recipe = load_recipe(str(plan["recipe"]))
    stage = next(stage for stage in recipe.stages if stage.name == plan["stage"])
    settings = {name: plan[name] for name in _SETTINGS if name in plan}
    options = {"words": plan["words"], "spread": bool(plan.get("spread", False))}
    cpus = (os.cpu_count() or 1) // (2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    stage = replace(
        stage, data=Data(stream="made-up", options=options), epochs=0, save_every=10**9, log_every=1, eval=None,
        workers=min(4, cpus) if plan["device"] != "cpu" else 0, **settings,
    )  # fmt: skip
    cuda = plan["device"] != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    model = random_model(recipe.config, recipe.seed, device)
    tokenizer = checkpoint.load_tokenizer(TINY / "tokenizer.json", PRESETS["vlmamba-tiny"])

    def say(line: str) -> None:
        if rank:
            return
        print(line, flush=True)
        found = {
            "card": torch.cuda.get_device_name() if cuda else "CPU",
            "versions": f"PyTorch {torch.__version__}, transformers {transformers.__version__}",
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
            "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2) if cuda else None,
        }
        (folder / ".peak.json").write_text(json.dumps(found), encoding="utf-8")
        os.replace(folder / ".peak.json", folder / "peak.json")

    train_stage(model, tokenizer, stage, folder / "run", Path(), device=str(plan["device"]), say=say)


if __name__ == "__main__":
    main(Path(sys.argv[1]), parse_json(sys.argv[2]))
