"""VL-Mamba behind the harness's adapter protocol."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from vlmamba_eval.adapter import AdapterInfo, Deferred
from vlmamba_eval.model_adapters.shared.device import choose
from vlmamba_eval.model_adapters.shared.pixels import prepare
from vlmamba_eval.types import ModelError, UsageError

from . import Options, checkpoint, no_weights, ssd
from .config import PRESETS, Mamba2LanguageModelConfig, ModelConfig, Provenance, load_config, to_dict
from .engine import Configured, Limits
from .engine_adapter import EngineAdapter, engine_settings
from .model import VLMamba, random_model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TINY = Path(__file__).parent / "tiny"
"""The checkpoint that comes with the project."""


class VLMambaAdapter(EngineAdapter):
    """Answers questions with a VL-Mamba."""

    def __init__(
        self,
        model: VLMamba,
        tokenizer: Tokenizer,
        *,
        weights: str,
        sharing: bool = True,
        limits: Limits | None = None,
    ):
        config = model.config
        device = model.language_model.backbone.embedding.weight.device
        model.prepare_for_inference()
        info = describe(config, weights, device, model.language_model.blocks[0].mixer.dtype, sharing)

        def pixels(image: Image.Image) -> Tensor:
            return prepare(image, config.vision.image_size, config.preprocessing)

        super().__init__(model, tokenizer, info, pixels, sharing=sharing, limits=limits)

    def telemetry(self) -> dict[str, Any]:
        """Parameters, bytes of the state that stands for everything read so far, images that were encoded."""
        language_model: Any = self.engine.model.language_model
        state = language_model.new_state(1)
        return {
            "parameters": sum(parameter.numel() for parameter in self.engine.model.parameters()),
            "state_bytes": sum(tensor.numel() * tensor.element_size() for tensor in state.tails + state.states),
            "images_encoded": self.images_encoded,
            "device": self.info.device,
        }


def describe(
    config: ModelConfig, weights: str, device: torch.device, dtype: torch.dtype, sharing: bool = True
) -> AdapterInfo:
    """What decides the answers of a model with this configuration and these weights, on this device."""
    return AdapterInfo(
        name=config.name,
        weights=weights,
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        image_tokens=config.vision.image_tokens,
        untrained=bool(config.provenance.untrained),
        settings={key: value for key, value in to_dict(config).items() if key != "name"}
        | {"scan_width": config.scan_width}
        | ({"ssd_backend": ssd.choose_backend(device)} if _is_mamba2(config) else {})
        | engine_settings(device, sharing),
    )


def _is_mamba2(config: ModelConfig) -> bool:
    return isinstance(config.language_model, Mamba2LanguageModelConfig)


def load(name: str, options: Options) -> VLMambaAdapter | Deferred:
    """The adapter for a preset's name or a checkpoint folder."""
    weights = Path(options.weights) if options.weights else None
    seed, sharing = options.seed, options.sharing
    preset = PRESETS.get(name)
    bundled = TINY if name == "vlmamba-tiny" else None
    folder = weights or bundled or (None if preset else Path(name))
    if options.random_init:
        if weights is not None:
            raise UsageError("--random-init draws the parameters; leave out --weights")
        config = preset or load_config(Path(name))
        tokenizer, source = tokenizer_for_timing(config, folder)
        parts = ("vision", "connector", "language_model")
        config = replace(
            config,
            provenance=Provenance(untrained=parts, sources=dict.fromkeys(parts, f"random:{seed}")),
            tokenizer=replace(config.tokenizer, source=source),
        )
        where, precision = choose(options.device, options.dtype)
        model = random_model(config, seed, where, precision)
        return VLMambaAdapter(model, tokenizer, weights=f"random:{seed}", sharing=sharing)
    if folder is None:
        raise UsageError(no_weights(name))
    config = load_config(folder)
    if preset is None:  # named after the folder, unless its configuration has a name of its own
        config = config if config.name not in PRESETS else replace(config, name=folder.resolve().name)
    if preset and not bundled and config.architecture != preset.architecture:
        found, want = config.architecture, preset.architecture
        differing = [f"{part}.{key}" for part in want for key in want[part] if want[part][key] != found[part][key]]
        raise ModelError(
            f"{folder} is not a {name}: its config.json differs in {', '.join(differing)}. "
            f"Evaluate it under its own name with --model {folder}"
        )
    where, precision = choose(options.device, options.dtype)
    weights_id = checkpoint.fingerprint(folder)

    def read() -> VLMambaAdapter:
        model, _, tokenizer = checkpoint.load(folder, where, precision)
        model.config = config
        return VLMambaAdapter(model, tokenizer, weights=weights_id, sharing=sharing)

    return Deferred(describe(config, weights_id, where, precision, sharing), read)


def tokenizer_for_timing(config: Configured, folder: Path | None) -> tuple[Tokenizer, str]:
    """The configured tokenizer and its name; if it can't be fetched, the bundled one stands in, and says so."""
    from .assemble import fetch_tokenizer

    if folder is not None:
        return checkpoint.load_tokenizer(folder / "tokenizer.json", config), config.tokenizer.source
    try:
        return fetch_tokenizer(config.tokenizer.source, config), config.tokenizer.source
    except ModelError as error:
        warnings.warn(
            f"{error} Random weights are timed with the tokenizer of vlmamba-tiny instead, which makes more tokens.",
            stacklevel=4,
        )
        stand_in = checkpoint.load_tokenizer(TINY / "tokenizer.json", config)
        return stand_in, f"vlmamba-tiny (in place of {config.tokenizer.source})"
