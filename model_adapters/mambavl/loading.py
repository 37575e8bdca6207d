"""Mamba-VL's own files: a flat config.json, and `pytorch_model.bin` or safetensors with all parts."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmamba_eval.adapter import AdapterInfo, Deferred
from vlmamba_eval.model_adapters.shared.configuration import read_json
from vlmamba_eval.model_adapters.shared.device import choose
from vlmamba_eval.model_adapters.shared.fingerprint import of_files
from vlmamba_eval.model_adapters.shared.published import check_float, fetch_weights, tensors
from vlmamba_eval.model_adapters.shared.template import TemplateConfig
from vlmamba_eval.model_adapters.shared.vision_tower import TowerConfig
from vlmamba_eval.model_adapters.vlmamba.assemble import fetch_tokenizer
from vlmamba_eval.model_adapters.vlmamba.checkpoint import check_shapes
from vlmamba_eval.model_adapters.vlmamba.config import LanguageModelConfig, TokenizerConfig
from vlmamba_eval.model_adapters.vlmamba.engine_adapter import EngineAdapter, engine_settings
from vlmamba_eval.model_adapters.vlmamba.language_model import (
    LanguageModel,
    config_from_published,
    name_of_published,
)
from vlmamba_eval.model_adapters.vlmamba.linear import pack_all
from vlmamba_eval.model_adapters.vlmamba.making import empty, filled
from vlmamba_eval.types import ModelError

from . import PUBLISHED, Options, vision

_EMBEDDING = "language_model.backbone.embedding.weight"


@dataclass(frozen=True, slots=True)
class MambaVLConfig:
    """A whole Mamba-VL."""

    name: str
    tower: TowerConfig
    language_model: LanguageModelConfig
    template: TemplateConfig = field(default_factory=lambda: TemplateConfig("mambavl", image_first=True))
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)


class MambaVL(nn.Module):
    """`vision.*` and `language_model.backbone.*`."""

    def __init__(self, config: MambaVLConfig):
        super().__init__()
        self.config = config
        self.vision = vision.Vision(config.tower, config.language_model.d_model)
        self.language_model = LanguageModel(config.language_model)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [i, 3, h, w] -> embeddings [i, t, d_model]."""
        return self.vision(pixels, self.language_model.embed)

    def prepare_for_inference(self) -> None:
        """Pack the matrices for this machine. The model can be neither trained nor saved afterwards."""
        self.requires_grad_(False)
        self.eval()
        pack_all(self)


def read_config(folder: Path, name: str, options: Options) -> MambaVLConfig:
    """What the folder's config.json says. Raises `ModelError`."""
    path = folder / "config.json"
    data = read_json(path)
    vision.check_config(data, vision.EVA02, str(path))
    if data.get("hidden_size", data.get("d_model")) != data.get("d_model"):
        raise ModelError(f"{path}: hidden_size should equal d_model, found {data['hidden_size']!r:.40}")
    # `hidden_size` would make it the configuration of transformers' Mamba.
    published = {key: value for key, value in data.items() if key != "hidden_size"}
    return MambaVLConfig(
        name, vision.EVA02, config_from_published(published, str(path)), tokenizer=TokenizerConfig(options.tokenizer)
    )


def read_parameters(config: MambaVLConfig, paths: list[Path], options: Options, files: ExitStack) -> dict[str, Tensor]:
    """The parameters of `MambaVL(config)`, mapped while `files` is open. `ModelError` names what does not fit."""
    where = str(paths[0].parent)
    seen, rest = vision.split(dict(tensors(paths, files)), config.tower, options.vision, files, where)
    head = rest.pop("lm_head.weight", None)
    found = {f"vision.{name}": tensor for name, tensor in seen.items()}
    found |= {f"language_model.{name_of_published(name)}": tensor for name, tensor in rest.items()}
    expected = empty(lambda: MambaVL(config), torch.float32).state_dict()
    check_shapes(
        {name: tuple(tensor.shape) for name, tensor in found.items()},
        {name: tuple(tensor.shape) for name, tensor in expected.items()},
        where,
    )
    for name, tensor in found.items():
        check_float(name, tensor, where)
    if head is not None and not torch.equal(head, found[_EMBEDDING]):
        raise ModelError(f"{where}: expected the output head to be the embedding matrix, found another matrix")
    return found


def load(model: str, options: Options) -> EngineAdapter | Deferred:
    """The adapter of a folder, a hub id, or one of the published names, which are fetched from the hub."""
    device, dtype = choose(options.device, options.dtype)
    folder, paths = fetch_weights(PUBLISHED.get(model, model))
    config = read_config(folder, model if model in PUBLISHED else Path(model).resolve().name, options)
    with ExitStack() as files:
        names = [name for name, _ in tensors(paths, files)]
    weights = of_files(vision.files_of(paths, names, options.vision), folder / "fingerprint.json")
    tokenizer = fetch_tokenizer(options.tokenizer, config)
    vision.check_marks(tokenizer, options.tokenizer)
    info = describe(config, weights, device, dtype, options.sharing)

    def read() -> EngineAdapter:
        with ExitStack() as files:
            parameters = read_parameters(config, paths, options, files)
            whole = filled(empty(lambda: MambaVL(config), dtype), parameters.items(), device, dtype)
        whole.prepare_for_inference()
        return EngineAdapter(whole, tokenizer, info, vision.pixels_of(config.tower), sharing=options.sharing)

    return Deferred(info, read)


def describe(
    config: MambaVLConfig, weights: str, device: torch.device, dtype: torch.dtype, sharing: bool = True
) -> AdapterInfo:
    """What decides the answers of a Mamba-VL with this configuration and these weights, on this device."""
    settings: dict[str, Any] = asdict(replace(config, name=""))
    del settings["name"]
    return AdapterInfo(
        name=config.name,
        weights=weights,
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        image_tokens=vision.image_tokens(config.tower),
        settings=settings | {"preprocessing": asdict(vision.PIXELS)} | engine_settings(device, sharing),
    )
