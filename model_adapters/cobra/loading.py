"""Cobra's own files: `config.json`, `checkpoints/latest-checkpoint.pt`, and the towers, which are not inside.

The checkpoint is `{"model": {"projector": {...}, "llm_backbone": {...}}}`, two state dicts; an optimizer may stand
beside "model". Everything that is not certain about the published file is checked here, in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from vlmamba_eval.adapter import AdapterInfo, Deferred
from vlmamba_eval.model_adapters.shared.configuration import read_json, shorten
from vlmamba_eval.model_adapters.shared.device import choose
from vlmamba_eval.model_adapters.shared.fingerprint import of_files
from vlmamba_eval.model_adapters.shared.pixels import prepare
from vlmamba_eval.model_adapters.shared.published import check_file, check_float, fetch, fetch_weights, tensors
from vlmamba_eval.model_adapters.shared.template import TemplateConfig
from vlmamba_eval.model_adapters.shared.vision_tower import TowerConfig, from_published
from vlmamba_eval.model_adapters.vlmamba.adapter import tokenizer_for_timing
from vlmamba_eval.model_adapters.vlmamba.assemble import fetch_tokenizer
from vlmamba_eval.model_adapters.vlmamba.checkpoint import check_shapes
from vlmamba_eval.model_adapters.vlmamba.config import TokenizerConfig
from vlmamba_eval.model_adapters.vlmamba.engine_adapter import EngineAdapter, engine_settings
from vlmamba_eval.model_adapters.vlmamba.making import drawn, empty, filled
from vlmamba_eval.types import ModelError

from . import Options
from .model import LANGUAGE_MODELS, PIXELS, TOWERS, Cobra, CobraConfig, Projection

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HUB, HUB_FOLDER = "han1997/cobra", "cobra+3b"
_CHECKPOINT = Path("checkpoints") / "latest-checkpoint.pt"
_HEAD = "llm_backbone.llm.lm_head.weight"
_EMBEDDING = "language_model.backbone.embedding.weight"


# =============================================================================
# Configuration
# =============================================================================


def read_config(folder: Path, options: Options) -> CobraConfig:
    """What the folder's config.json says, or `ModelError`: which part is unknown, and which are known."""
    path = folder / "config.json"
    data = read_json(path).get("model")
    if not isinstance(data, Mapping):
        raise ModelError(f'{path}: expected Cobra\'s configuration, an object under "model", found {shorten(data)}')

    def one_of(key: str, known: Mapping[str, Any]) -> str:
        value = data.get(key)
        if not isinstance(value, str) or value not in known:
            raise ModelError(f"{path}: model.{key} should be one of {', '.join(known)}, found {shorten(value)}")
        return value

    towers = TOWERS[one_of("vision_backbone_id", TOWERS)]
    language_model = one_of("llm_backbone_id", LANGUAGE_MODELS)
    if (fit := data.get("image_resize_strategy")) != "resize-naive":
        raise ModelError(
            f"{path}: model.image_resize_strategy should be 'resize-naive' (the image squashed to a square), as in the "
            f"published Cobra; found {shorten(fit)}"
        )
    return CobraConfig(
        name=str(data.get("model_id") or folder.resolve().name),
        towers=dict(towers),
        projector=_projector(data.get("arch_specifier"), str(path)),
        language_model=LANGUAGE_MODELS[language_model],
        template=TemplateConfig(
            "cobra_zephyr" if language_model.endswith("zephyr") else "cobra_in_out", image_first=True
        ),
        tokenizer=TokenizerConfig(source=options.tokenizer),
    )


def _projector(specifier: Any, path: str) -> Projection:
    """The projector that an `arch_specifier` ends with, as the authors' code decides it."""
    kinds: tuple[Projection, ...] = ("fused-gelu-mlp", "gelu-mlp", "fused-ldpnet", "linear")
    for kind in kinds:
        if isinstance(specifier, str) and specifier.endswith(kind):
            return kind
    raise ModelError(f"{path}: model.arch_specifier should end with one of {', '.join(kinds)}, found {specifier!r:.80}")


# =============================================================================
# Parameters
# =============================================================================


def read_parameters(
    config: CobraConfig, checkpoint: Path, sources: Mapping[str, str], files: ExitStack
) -> dict[str, Tensor]:
    """The parameters of `Cobra(config)`, mapped while `files` is open. `ModelError` names what does not fit."""
    stored = dict(tensors([checkpoint], files))
    parts = sorted({name.partition(".")[0] for name in stored})
    if parts != ["llm_backbone", "projector"]:
        raise ModelError(
            f'{checkpoint}: expected exactly "projector" and "llm_backbone" under "model", found '
            f"{', '.join(parts[:6])}. A checkpoint with its own towers, or before its projector was trained, can't be "
            "read"
        )
    head = stored.pop(_HEAD, None)
    renamed = {
        name.replace("llm_backbone.llm.", "language_model.", 1).replace(
            "backbone.embeddings.", "backbone.embedding."
        ): tensor
        for name, tensor in stored.items()
    }
    expected = {
        name: tuple(parameter.shape)
        for name, parameter in empty(lambda: Cobra(config), torch.float32).state_dict().items()
        if not name.startswith("towers.")
    }
    check_shapes({name: tuple(tensor.shape) for name, tensor in renamed.items()}, expected, str(checkpoint))
    for name, tensor in renamed.items():
        check_float(name, tensor, str(checkpoint))
    if head is not None and not torch.equal(head, renamed[_EMBEDDING]):
        raise ModelError(f"{checkpoint}: expected the output head to be the embedding matrix, found another matrix")
    for name, tower in config.towers.items():
        folder, paths = fetch_weights(sources[name])
        _check_tower(folder, tower, name)
        found = from_published(tower, tensors(paths, files), sources[name])
        renamed |= {f"towers.{name}.{key}": tensor for key, tensor in found.items()}
    return renamed


def _check_tower(folder: Path, tower: TowerConfig, name: str) -> None:
    """`ModelError` if a tower's own config.json contradicts what shapes can't tell: the number of heads."""
    path = folder / "config.json"
    if not path.is_file():
        return
    data = read_json(path)
    part = data.get("vision_config") if isinstance(data.get("vision_config"), Mapping) else data
    heads = part.get("num_attention_heads") if isinstance(part, Mapping) else None
    if heads is not None and heads != tower.num_attention_heads:
        raise ModelError(
            f"{path}: Cobra's tower {name!r} has {tower.num_attention_heads} attention heads, found {shorten(heads)}"
        )


def tower_files(config: CobraConfig, sources: Mapping[str, str]) -> list[Path]:
    """The files of the towers, in the order of their features."""
    return [path for name in config.towers for path in fetch_weights(sources[name])[1]]


# =============================================================================
# The adapter
# =============================================================================


def load(model: str, options: Options) -> EngineAdapter | Deferred:
    """The adapter of a folder, or of `cobra-3b`, whose files are fetched from the hub."""
    device, dtype = choose(options.device, options.dtype)
    sources = {"dino": options.dino, "siglip": options.siglip}
    if options.random_init:
        config = _preset(model, options)
        tokenizer, source = tokenizer_for_timing(config, None)
        config = replace(config, tokenizer=replace(config.tokenizer, source=source))
        whole = drawn(empty(lambda: Cobra(config), dtype), options.seed, device)
        info = describe(config, f"random:{options.seed}", device, dtype, options.sharing, untrained=True)
        return _adapter(whole, tokenizer, info, options.sharing)
    folder = _folder(model)
    config = read_config(folder, options)
    checkpoint = folder / _CHECKPOINT if (folder / _CHECKPOINT).exists() else folder / _CHECKPOINT.name
    check_file(checkpoint)
    weights = of_files([checkpoint, *tower_files(config, sources)], folder / "fingerprint.json")
    tokenizer = fetch_tokenizer(options.tokenizer, config)
    info = describe(config, weights, device, dtype, options.sharing, sources=sources)

    def read() -> EngineAdapter:
        with ExitStack() as files:
            parameters = read_parameters(config, checkpoint, sources, files)
            whole = filled(empty(lambda: Cobra(config), dtype), parameters.items(), device, dtype)
        return _adapter(whole, tokenizer, info, options.sharing)

    return Deferred(info, read)


def describe(
    config: CobraConfig,
    weights: str,
    device: torch.device,
    dtype: torch.dtype,
    sharing: bool = True,
    *,
    untrained: bool = False,
    sources: Mapping[str, str] | None = None,
) -> AdapterInfo:
    """What decides the answers of a Cobra with this configuration and these weights, on this device."""
    settings = {key: value for key, value in config.settings().items() if key != "name"}
    return AdapterInfo(
        name=config.name,
        weights=weights,
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        image_tokens=config.image_tokens,
        untrained=untrained,
        settings=settings | {"sources": dict(sources or {})} | engine_settings(device, sharing),
    )


def _adapter(model: Cobra, tokenizer: Tokenizer, info: AdapterInfo, sharing: bool) -> EngineAdapter:
    config = model.config
    model.prepare_for_inference()
    squash = next(iter(PIXELS.values()))  # both towers' means differ, and are subtracted later

    def pixels(image: Image.Image) -> Tensor:
        return prepare(image, config.image_size, squash)

    return EngineAdapter(model, tokenizer, info, pixels, sharing=sharing)


def _folder(model: str) -> Path:
    if model != "cobra-3b":
        return Path(model)
    return fetch(HUB, [f"{HUB_FOLDER}/config.json", f"{HUB_FOLDER}/{_CHECKPOINT.as_posix()}"]) / HUB_FOLDER


def _preset(model: str, options: Options) -> CobraConfig:
    """The published model's configuration, or a folder's, for random weights."""
    if model != "cobra-3b":
        return read_config(Path(model), options)
    return CobraConfig(
        "cobra+3b",
        dict(TOWERS["dinosiglip-vit-so-384px"]),
        "fused-gelu-mlp",
        LANGUAGE_MODELS["mamba-2.8b-zephyr"],
        tokenizer=TokenizerConfig(source=options.tokenizer),
    )
