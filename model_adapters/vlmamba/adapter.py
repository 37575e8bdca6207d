"""VL-Mamba behind the harness's adapter protocol."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from model_adapters.base import AdapterInfo, Deferred
from vlmamba_eval.types import Generation, ImageQuestions, ModelError, UsageError

from . import checkpoint, vision
from .config import PRESETS, ModelConfig, Provenance, load_config, to_dict
from .engine import Engine, Limits
from .model import VLMamba, random_model
from .scan import choose_backend

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TINY = Path(__file__).parent / "tiny"
"""The checkpoint that comes with the project."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class VLMambaAdapter:
    """Answers questions with a VL-Mamba; `model_adapters.base` documents the protocol.

    `sharing=False` answers every question by itself, from the pixels on.
    """

    def __init__(
        self,
        model: VLMamba,
        tokenizer: Tokenizer,
        *,
        weights: str,
        sharing: bool = True,
        limits: Limits | None = None,
    ):
        device = model.language_model.backbone.embedding.weight.device
        model.prepare_for_inference()
        self.engine = Engine(model, tokenizer, sharing=sharing, limits=limits)
        self.info = describe(model.config, weights, device, model.language_model.blocks[0].mixer.dtype)
        self._config = model.config

    @property
    def images_encoded(self) -> int:
        """How many images went through the encoder so far."""
        return self.engine.images_encoded

    def prepare(self, image: Image.Image) -> Tensor:
        """A decoded image -> uint8 [3, h, w] as the encoder wants it. Thread-safe."""
        return vision.prepare(image, self._config.vision.image_size, self._config.preprocessing)

    def generate(self, batch: Sequence[ImageQuestions]) -> list[list[Generation]]:
        """Answer every question of every image, in order."""
        return self.engine.generate(batch)

    def rank(self, batch: Sequence[ImageQuestions]) -> list[list[Generation]]:
        """Score every continuation of every question, in order."""
        return self.engine.rank(batch)


def describe(config: ModelConfig, weights: str, device: torch.device, dtype: torch.dtype) -> AdapterInfo:
    """What decides the answers of a model with this configuration and these weights, on this device."""
    return AdapterInfo(
        name=config.name,
        weights=weights,
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        image_tokens=config.vision.image_tokens,
        untrained=bool(config.provenance.untrained),
        settings={key: value for key, value in to_dict(config).items() if key != "name"}
        | {"scan_width": config.scan_width, "scan_backend": choose_backend(device), "state_dtype": "float32"},
    )


def load(
    name: str,
    *,
    weights: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    random_init: bool = False,
    seed: int = 0,
    sharing: bool = True,
) -> VLMambaAdapter | Deferred:
    """The adapter for a preset's name or a checkpoint folder; `model_adapters.registry.load` documents the options."""
    preset = PRESETS.get(name)
    bundled = TINY if name == "vlmamba-tiny" else None
    folder = weights or bundled or (None if preset else Path(name))
    if random_init:
        if weights is not None:
            raise UsageError("--random-init draws the parameters; leave out --weights")
        config = preset or load_config(Path(name))
        tokenizer, source = _tokenizer_for_timing(config, folder)
        parts = ("vision", "connector", "language_model")
        config = replace(
            config,
            provenance=Provenance(untrained=parts, sources=dict.fromkeys(parts, f"random:{seed}")),
            tokenizer=replace(config.tokenizer, source=source),
        )
        where, precision = choose(device, dtype)
        model = random_model(config, seed, where, precision)
        return VLMambaAdapter(model, tokenizer, weights=f"random:{seed}", sharing=sharing)
    if folder is None:
        raise UsageError(
            f"there are no public VL-Mamba weights, so {name} has none to load. Build a checkpoint from published "
            f"parts with `vlmamba-eval assemble` (its connector then needs training, see `vlmamba-train`) and give it "
            f"with --weights DIR; or measure speed alone with --random-init."
        )
    config = load_config(folder)
    if preset and not bundled and config.architecture != preset.architecture:
        found, want = config.architecture, preset.architecture
        differing = [f"{part}.{key}" for part in want for key in want[part] if want[part][key] != found[part][key]]
        raise ModelError(
            f"{folder} is not a {name}: its config.json differs in {', '.join(differing)}. "
            f"Evaluate it under its own name with --model {folder}"
        )
    where, precision = choose(device, dtype)
    weights_id = checkpoint.fingerprint(folder)

    def read() -> VLMambaAdapter:
        model, _, tokenizer = checkpoint.load(folder, where, precision)
        return VLMambaAdapter(model, tokenizer, weights=weights_id, sharing=sharing)

    return Deferred(describe(config, weights_id, where, precision), read)


def _tokenizer_for_timing(config: ModelConfig, folder: Path | None) -> tuple[Tokenizer, str]:
    """The configured tokenizer and its name; where it can't be fetched, the bundled one stands in, and says so."""
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


def choose(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """The device and precision meant by the names; `auto` takes CUDA where it is, bfloat16 there, float32 on a CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"unknown device {device!r}: expected cpu, cuda, cuda:N or auto") from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no CUDA device here; run with --device cpu")
    if dtype == "auto":
        dtype = "float32" if where.type == "cpu" else "bfloat16"
    if dtype not in _DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}: expected {', '.join(_DTYPES)} or auto")
    return where, _DTYPES[dtype]
