"""A checkpoint from published parts: a vision encoder, a Mamba language model, and a connector or a fresh one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmamba_eval.model_adapters.shared.configuration import read_json
from vlmamba_eval.model_adapters.shared.published import check_float, fetch, fetch_weights, tensors
from vlmamba_eval.model_adapters.shared.vision_tower import from_published
from vlmamba_eval.types import ModelError

from . import checkpoint
from .config import ModelConfig, Provenance
from .language_model import config_from_published, name_of_published
from .model import empty_model, random_model
from .vision import tower_config

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from .engine import Configured


def assemble(
    config: ModelConfig,
    out: Path,
    *,
    vision: str | None = None,
    language_model: str | None = None,
    connector: Path | None = None,
    tokenizer: str | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Build the checkpoint folder `out` from parts, in the precision in which the parts are stored.

    Args:
        config: the model to build, for instance `PRESETS["vlmamba-2.8b"]`. Its shapes must be those of the parts.
        out: the folder to write; a checkpoint that is already there is replaced.
        vision: a folder or hub id with a transformers SigLIP or CLIP (the whole model or its vision tower); by default
            the one that the preset names.
        language_model: a folder or hub id with a Mamba-1 in the files of state-spaces/mamba-* or of transformers, also
            inside a larger model or a trainer's wrapper (Cobra's); by default the one that the preset names.
        connector: a file with the connector's parameters, their names with or without `connector.`, or with a whole
            model's; None draws fresh ones from `seed`, and the checkpoint is recorded as untrained.
        tokenizer: a tokenizer.json, a folder or a hub id with one; by default the one that the preset names.
        seed: for the fresh connector.
        say: receives a line before each slow step.

    Returns:
        `out`.

    Raises:
        ModelError: a part is missing, cannot be fetched, or is not what the configuration says.
    """
    sources = {
        "vision": vision or config.provenance.sources.get("vision", ""),
        "language_model": language_model or config.provenance.sources.get("language_model", ""),
        "connector": str(connector) if connector else f"random:{seed}",
        "tokenizer": tokenizer or config.tokenizer.source,
    }
    for part in ("vision", "language_model"):
        if not sources[part]:
            raise ModelError(f"{config.name} names no {part}: give a folder or hub id")
    with contextlib.ExitStack() as files:
        say(f"tokenizer: {sources['tokenizer']}")
        pieces = fetch_tokenizer(sources["tokenizer"], config)
        say(f"language model: {sources['language_model']}")
        parameters = _language_model(sources["language_model"], config, files)
        say(f"vision encoder: {sources['vision']}")
        parameters |= _vision(sources["vision"], config, files)
        say(f"connector: {sources['connector']}")
        parameters |= _connector(connector, config, seed, files)
        built = replace(config, provenance=Provenance(untrained=() if connector else ("connector",), sources=sources))
        say(f"writing {out}")
        checkpoint.save(out, parameters, built, pieces)
    return out


def draw(
    config: ModelConfig, tokenizer: Tokenizer, out: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """Build the checkpoint folder `out` with random parameters throughout, recorded as untrained.

    Where training from nothing begins, and what tests of the whole path run on.
    """
    parts = ("vision", "connector", "language_model")
    provenance = Provenance(untrained=parts, sources=dict.fromkeys(parts, f"random:{seed}"))
    parameters = random_model(config, seed).state_dict()
    checkpoint.check_tokenizer(tokenizer, config, "the tokenizer")
    checkpoint.save(
        out,
        {name: tensor.to(dtype) for name, tensor in parameters.items()},
        replace(config, provenance=provenance),
        tokenizer,
    )
    return out


# =============================================================================
# The parts
# =============================================================================


def _expected(config: ModelConfig, part: str) -> dict[str, tuple[int, ...]]:
    model = empty_model(config)
    return {name: tuple(p.shape) for name, p in model.state_dict().items() if name.startswith(part + ".")}


def _checked(part: str, where: str, parameters: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
    checkpoint.check_shapes(shapes, _expected(config, part), where)
    for name, tensor in parameters.items():
        check_float(name, tensor, where)
    return parameters


def _language_model(source: str, config: ModelConfig, files: contextlib.ExitStack) -> dict[str, Tensor]:
    folder, paths = fetch_weights(source)
    published = read_json(folder / "config.json")
    found, want = config_from_published(published, str(folder / "config.json")), config.language_model
    same = ("d_model", "n_layer", "d_state", "d_conv", "expand", "norm_eps", "padded_vocab_size")
    same += ("kind", "headdim", "ngroups")  # a Mamba-1 has none of these
    pairs = [(key, getattr(found, key, "none"), getattr(want, key, "none")) for key in same]
    differing = [f"{key} {have} (expected {need})" for key, have, need in pairs if have != need]
    if differing:
        raise ModelError(f"{source} is not the language model of {config.name}: {', '.join(differing)}")
    parameters: dict[str, Tensor] = {}
    head: Tensor | None = None
    for name, tensor in _below_the_backbone(dict(tensors(paths, files))).items():
        ours = name_of_published(name)
        if ours is None:
            head = tensor
        else:
            parameters["language_model." + ours] = tensor
    parameters = _checked("language_model", source, parameters, config)
    if head is not None and not torch.equal(head, parameters["language_model.backbone.embedding.weight"]):
        raise ModelError(f"{source}: the output head is not the embedding matrix, as it is in every Mamba-1 published")
    return parameters


def _below_the_backbone(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors beside and below `backbone`, however deep a larger model keeps its language model."""
    ends = ("backbone.embedding.weight", "backbone.embeddings.weight")
    prefix = next((name.removesuffix(end) for name in found for end in ends if name.endswith(end)), "")
    return {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}


# What transformers' configurations leave out of config.json if it has its usual value
# (models/siglip/configuration_siglip.py, models/clip/configuration_clip.py).
_USUAL: dict[str, dict[str, Any]] = {
    "siglip": {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    "clip": {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
}
_USUAL_SIZES = {"image_size": 224, "num_hidden_layers": 12, "num_attention_heads": 12}


def _vision(source: str, config: ModelConfig, files: contextlib.ExitStack) -> dict[str, Tensor]:
    want = config.vision
    folder, paths = fetch_weights(source)
    published = read_json(folder / "config.json")
    part = published.get("vision_config")
    part = part if isinstance(part, dict) else published
    model_type = part.get("model_type") or published.get("model_type") or ""
    if not str(model_type).startswith(want.kind):
        raise ModelError(f"{source}: expected a {want.kind} model, found model_type {model_type!r:.80}")
    found = _USUAL_SIZES | _USUAL[want.kind] | part
    keys = (*_USUAL_SIZES, *_USUAL[want.kind])
    differing = [
        f"{key} {found[key]!r:.80} (expected {getattr(want, key)!r})"
        for key in keys
        if found[key] != getattr(want, key)
    ]
    if differing:
        raise ModelError(f"{source} is not the vision encoder of {config.name}: {', '.join(differing)}")
    # Layers above the chosen hidden state, the last norm and the pooling head are not part of a checkpoint.
    parameters = from_published(tower_config(want), tensors(paths, files), source)
    return _checked("vision", source, {f"vision.{name}": p for name, p in parameters.items()}, config)


def _connector(path: Path | None, config: ModelConfig, seed: int, files: contextlib.ExitStack) -> dict[str, Tensor]:
    if path is None:
        connector = empty_model(config).connector.to_empty(device="cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            connector.reset_parameters()
        return {f"connector.{name}": p for name, p in connector.state_dict().items()}
    found = dict(tensors([path], files))
    # A connector alone, or a whole model that has one.
    named = {f"connector.{name.rpartition('connector.')[2]}": p for name, p in found.items() if "connector." in name}
    return _checked("connector", str(path), named or {f"connector.{name}": p for name, p in found.items()}, config)


def fetch_tokenizer(source: str, config: Configured) -> Tokenizer:
    """The tokenizer from a tokenizer.json, a folder, or the hub."""
    path = Path(source)
    if not path.is_file():
        path = fetch(source, ["tokenizer.json"]) / "tokenizer.json"
    return checkpoint.load_tokenizer(path, config)
