"""A whole recipe: each stage starts from what the one before it wrote."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlmamba_eval.model_adapters.shared.template import END
from vlmamba_eval.model_adapters.vlmamba import checkpoint
from vlmamba_eval.model_adapters.vlmamba.config import ModelConfig, Provenance
from vlmamba_eval.model_adapters.vlmamba.model import VLMamba, random_model
from vlmamba_eval.model_adapters.vlmamba.tokenizer import train_tokenizer
from vlmamba_eval.types import UsageError

from .card import write_card
from .check import check_files
from .data import open_rows, segments
from .recipe import Recipe, Stage
from .trainer import save_model, train_stage

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    start: Path | None = None,
    data: Path = Path(),
    only: tuple[str, ...] = (),
    device: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train the stages of a recipe, or those named in `only`; the last checkpoint's folder.

    A stage starts from the stage before it in `out`, the first from `start` or from random parameters, as the recipe
    says. Raises `UsageError`, `DataError` or `ModelError`.
    """
    check_files(recipe, out, start, data, only)
    folder = out
    for place, stage in enumerate(recipe.stages):
        folder = out / stage.name
        if only and stage.name not in only:
            continue
        if (folder / "config.json").is_file():
            shutil.rmtree(folder / "training", ignore_errors=True)  # of a run that was killed just before its end
            say(f"stage {stage.name} is complete: {folder}")
            continue
        before = out / recipe.stages[place - 1].name if place else None
        if before is not None and not (before / "config.json").is_file():
            before = start
        model, tokenizer = _begin(recipe, start, data) if before is None else _go_on(recipe, before)
        config = model.config
        parameters = train_stage(
            model, tokenizer, stage, folder, data, device=device, report_to=recipe.report_to, say=say
        )
        del model
        _finish(recipe, stage, folder, parameters, config, tokenizer)
        say(f"stage {stage.name} is complete: {folder}")
    say(f"To measure it: vlmamba-eval --model {folder} --tasks gqa,pope,mme --data DIR (or: --data samples)")
    return folder


def _go_on(recipe: Recipe, folder: Path) -> tuple[VLMamba, Tokenizer]:
    """A checkpoint of the recipe's model, in float32."""
    model, config, tokenizer = checkpoint.load(folder)
    if config.architecture != recipe.config.architecture:
        raise UsageError(f"{folder} holds another model ({config.name}) than recipe {recipe.name} trains")
    return model, tokenizer


def _begin(recipe: Recipe, start: Path | None, data: Path) -> tuple[VLMamba, Tokenizer]:
    """The model that the first stage starts with, in float32."""
    if start is not None and recipe.start == "parts":
        parts, _, tokenizer = checkpoint.load(start)
        return _with_fresh_connector(recipe, parts), tokenizer
    if start is not None:
        return _go_on(recipe, start)
    config = replace(recipe.config, provenance=Provenance(untrained=("vision", "connector", "language_model")))
    tokenizer = train_tokenizer(_texts(recipe, config, data), config.language_model.vocab_size)
    return random_model(config, recipe.seed), tokenizer


def _with_fresh_connector(recipe: Recipe, parts: VLMamba) -> VLMamba:
    """The recipe's model with another's encoder and language model."""
    config = recipe.config
    for part in ("vision", "language_model"):
        if config.architecture[part] != parts.config.architecture[part]:
            raise UsageError(f"{parts.config.name} has another {part} than recipe {recipe.name} trains")
    known = parts.config.provenance
    untrained = tuple(dict.fromkeys((*known.untrained, "connector")))
    model = random_model(replace(config, provenance=Provenance(untrained, known.sources)), recipe.seed)
    model.vision.load_state_dict(parts.vision.state_dict())
    model.language_model.load_state_dict(parts.language_model.state_dict())
    return model


def _texts(recipe: Recipe, config: ModelConfig, data: Path) -> Iterator[str]:
    """The texts that the tokenizer of a model from nothing is made from."""
    rows = open_rows(recipe.stages[0], data)
    for number in range(min(recipe.tokenizer_examples, len(rows))):
        for segment in segments(rows[number][0], config):
            yield segment.text.replace(END, "")


def _finish(
    recipe: Recipe,
    stage: Stage,
    folder: Path,
    parameters: dict[str, Tensor],
    config: ModelConfig,
    tokenizer: Tokenizer,
) -> None:
    """Write the stage's checkpoint, from one process; what only a resumption needs is deleted."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not several or torch.distributed.get_rank() == 0:
        config = trained_config(recipe, stage, config)
        dtype = getattr(torch, recipe.save_dtype) if stage is recipe.stages[-1] else torch.float32
        save_model(folder, parameters, config, tokenizer, dtype)
        write_card(folder, recipe, stage, config)
        shutil.rmtree(folder / "training", ignore_errors=True)
    if several:
        torch.distributed.barrier()  # the next stage starts from what one process has written


def trained_config(recipe: Recipe, stage: Stage, config: ModelConfig) -> ModelConfig:
    """The configuration with the stage in its provenance: which parts have learnt, and by what."""
    provenance = config.provenance
    untrained = tuple(part for part in provenance.untrained if part not in stage.train)
    sources = {**provenance.sources, f"stage {stage.name}": f"recipe {recipe.name}, seed {stage.seed}"}
    return replace(config, provenance=Provenance(untrained, sources))
