"""A checkpoint from published parts: a vision encoder, a Mamba language model, and a connector or a fresh one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlmamba_eval.types import ModelError

from . import checkpoint
from .config import ModelConfig, Provenance
from .language_model import config_from_published, name_of_published
from .model import empty_model, random_model

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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
        language_model: a folder or hub id with a Mamba-1 in the files of state-spaces/mamba-* or of transformers; by
            default the one that the preset names.
        connector: a safetensors file with the connector's parameters, their names with or without `connector.`;
            None draws fresh ones from `seed`, and the checkpoint is recorded as untrained.
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
        parameters |= _vision(sources["vision"], config)
        say(f"connector: {sources['connector']}")
        parameters |= _connector(connector, config, seed)
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
    return parameters


def _language_model(source: str, config: ModelConfig, files: contextlib.ExitStack) -> dict[str, Tensor]:
    folder = _fetch(source, ["config.json", "*.safetensors", "*.safetensors.index.json"])
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        folder = _fetch(source, ["config.json", "pytorch_model*.bin"])
        paths = sorted(folder.glob("pytorch_model*.bin"))
    if not paths:
        raise ModelError(f"{source}: expected *.safetensors or pytorch_model*.bin, found neither in {folder}")
    try:
        published = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'}: expected JSON, found: {error}") from error
    found, want = config_from_published(published, str(folder / "config.json")), config.language_model
    same = ("d_model", "n_layer", "d_state", "d_conv", "expand", "norm_eps", "padded_vocab_size")
    differing = [f"{key} {getattr(found, key)} (expected {getattr(want, key)})" for key in same]
    differing = [text for key, text in zip(same, differing, strict=True) if getattr(found, key) != getattr(want, key)]
    if differing:
        raise ModelError(f"{source} is not the language model of {config.name}: {', '.join(differing)}")
    parameters: dict[str, Tensor] = {}
    head: Tensor | None = None
    for name, tensor in _tensors(paths, files):
        ours = name_of_published(name)
        if ours is None:
            head = tensor
        else:
            parameters["language_model." + ours] = tensor
    parameters = _checked("language_model", source, parameters, config)
    if head is not None and not torch.equal(head, parameters["language_model.backbone.embedding.weight"]):
        raise ModelError(f"{source}: the output head is not the embedding matrix, as it is in every Mamba-1 published")
    return parameters


def _tensors(paths: list[Path], files: contextlib.ExitStack) -> Iterator[tuple[str, Tensor]]:
    """The named tensors of safetensors or PyTorch files, mapped rather than read. No code in a file is run."""
    for path in paths:
        try:
            if path.suffix == ".safetensors":
                file = files.enter_context(safe_open(path, framework="pt"))
                yield from ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
            else:
                yield from torch.load(path, map_location="cpu", weights_only=True, mmap=True).items()
        except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, AttributeError) as error:
            raise ModelError(f"{path}: expected a file of weights, found: {error}") from error
        except Exception as error:
            if type(error).__name__ != "UnpicklingError":
                raise
            raise ModelError(f"{path}: holds more than weights and is not opened: {error}") from error


def _vision(source: str, config: ModelConfig) -> dict[str, Tensor]:
    from transformers import CLIPVisionModel, SiglipVisionModel

    kind: Any = SiglipVisionModel if config.vision.kind == "siglip" else CLIPVisionModel
    folder = _fetch(source, ["config.json", "*.safetensors", "*.safetensors.index.json"])
    try:
        published = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = published.get("vision_config", published).get("model_type", published.get("model_type", ""))
        if not str(model_type).startswith(config.vision.kind):
            raise ModelError(f"{source}: expected a {config.vision.kind} model, found model_type {model_type!r}")
        tower = kind.from_pretrained(folder, dtype="auto", local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{source}: expected a {config.vision.kind} model of transformers, found: {error}") from error
    found = tower.config
    keys = ("image_size", "patch_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps")
    differing = [
        f"{key} {getattr(found, key)} (expected {getattr(config.vision, key)})"
        for key in keys
        if getattr(found, key) != getattr(config.vision, key)
    ]
    if differing:
        raise ModelError(f"{source} is not the vision encoder of {config.name}: {', '.join(differing)}")
    expected = _expected(config, "vision")
    parameters = {"vision." + name.removeprefix("vision_model."): p for name, p in tower.state_dict().items()}
    # Layers above the chosen hidden state, the last norm and the pooling head are not part of a checkpoint.
    return _checked("vision", source, {name: p for name, p in parameters.items() if name in expected}, config)


def _connector(path: Path | None, config: ModelConfig, seed: int) -> dict[str, Tensor]:
    if path is None:
        connector = empty_model(config).connector.to_empty(device="cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            connector.reset_parameters()
        return {f"connector.{name}": p for name, p in connector.state_dict().items()}
    with contextlib.ExitStack() as files:
        found = {f"connector.{name.removeprefix('connector.')}": p for name, p in _tensors([path], files)}
    return _checked("connector", str(path), found, config)


def fetch_tokenizer(source: str, config: ModelConfig) -> Tokenizer:
    """The tokenizer from a tokenizer.json, a folder, or the hub."""
    path = Path(source)
    if not path.is_file():
        path = _fetch(source, ["tokenizer.json"]) / "tokenizer.json"
    return checkpoint.load_tokenizer(path, config)


def _fetch(source: str, patterns: list[str]) -> Path:
    """A local folder as it is, or the matching files of a hub repository."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{source} is neither a folder here nor a repository that the hub gives out: {error}. "
            "Download it where there is a network, and give its folder."
        ) from error
