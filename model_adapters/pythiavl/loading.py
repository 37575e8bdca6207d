"""Pythia-VL's own files: GPT-NeoX's config.json with a few more fields, and weights with all parts in one."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPTNeoXConfig

from vlmamba_eval.adapter import AdapterInfo, Deferred
from vlmamba_eval.model_adapters.mambavl import Options, vision
from vlmamba_eval.model_adapters.shared.configuration import read_json, shorten, whole_number
from vlmamba_eval.model_adapters.shared.device import choose, without_memory
from vlmamba_eval.model_adapters.shared.fingerprint import of_files
from vlmamba_eval.model_adapters.shared.published import check_float, fetch_weights, tensors
from vlmamba_eval.model_adapters.shared.template import TemplateConfig
from vlmamba_eval.model_adapters.vlmamba.assemble import fetch_tokenizer
from vlmamba_eval.model_adapters.vlmamba.checkpoint import check_shapes
from vlmamba_eval.model_adapters.vlmamba.config import LanguageModelConfig, TokenizerConfig
from vlmamba_eval.types import ModelError

from . import PUBLISHED
from .model import PythiaVL, PythiaVLAdapter

# Buffers that earlier versions of transformers stored beside the parameters.
_BUFFERS = re.compile(r"\.(attention\.(bias|masked_bias|rotary_emb\.inv_freq)|rotary_emb\.inv_freq)$")


@dataclass(frozen=True, slots=True)
class _Told:
    """What the tokenizer's check needs to know."""

    language_model: LanguageModelConfig
    tokenizer: TokenizerConfig
    template: TemplateConfig = field(default_factory=lambda: TemplateConfig("mambavl", image_first=True))


def read_config(folder: Path) -> GPTNeoXConfig:
    """The language model's configuration. Raises `ModelError`."""
    path = folder / "config.json"
    data = read_json(path)
    vision.check_config(data, vision.EVA02, str(path))
    if data.get("model_type") != "gpt_neox":
        raise ModelError(f"{path}: model_type should be 'gpt_neox', found {shorten(data.get('model_type'))}")
    for key, high in (
        ("hidden_size", 2**16),
        ("num_hidden_layers", 1024),
        ("num_attention_heads", 1024),
        ("intermediate_size", 2**18),
        ("vocab_size", 2**24),
    ):
        whole_number(data, key, str(path), high=high)
    if data["hidden_size"] % data["num_attention_heads"]:
        raise ModelError(f"{path}: hidden_size should be a multiple of num_attention_heads")
    try:
        return GPTNeoXConfig.from_dict(data)
    except Exception as error:  # noqa: BLE001 - a configuration can be wrong in any way
        raise ModelError(f"{path}: transformers can't read it as a GPT-NeoX: {str(error)[:300]}") from None


def read_parameters(model: PythiaVL, paths: list[Path], source: str, files: ExitStack) -> dict[str, Tensor]:
    """The parameters of an empty `PythiaVL`, mapped while `files` is open. `ModelError` names what does not fit."""
    where = str(paths[0].parent)
    tower = model.vision.vision_encoder.tower_config
    seen, rest = vision.split(dict(tensors(paths, files)), tower, source, files, where)
    found = {f"vision.{name}": tensor for name, tensor in seen.items()}
    found |= {f"language_model.{name}": tensor for name, tensor in rest.items() if not _BUFFERS.search(name)}
    expected = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    check_shapes({name: tuple(tensor.shape) for name, tensor in found.items()}, expected, where)
    for name, tensor in found.items():
        check_float(name, tensor, where)
    return found


def load(model: str, options: Options) -> PythiaVLAdapter | Deferred:
    """The adapter of a folder, a hub id, or one of the published names, which are fetched from the hub."""
    device, dtype = choose(options.device, options.dtype)
    folder, paths = fetch_weights(PUBLISHED.get(model, model))
    config = read_config(folder)
    with ExitStack() as files:
        names = [name for name, _ in tensors(paths, files)]
    weights = of_files(vision.files_of(paths, names, options.vision), folder / "fingerprint.json")
    told = _Told(LanguageModelConfig(config.hidden_size, 1, config.vocab_size, 1), TokenizerConfig(options.tokenizer))
    tokenizer = fetch_tokenizer(options.tokenizer, told)
    vision.check_marks(tokenizer, options.tokenizer)
    tower = vision.EVA02
    settings: dict[str, Any] = {
        "tower": asdict(tower),
        "preprocessing": asdict(vision.PIXELS),
        "template": asdict(told.template),
        "tokenizer": asdict(told.tokenizer),
        "sharing": options.sharing,
    }
    info = AdapterInfo(
        name=model if model in PUBLISHED else Path(model).resolve().name,
        weights=weights,
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        image_tokens=vision.image_tokens(tower),
        settings=settings,
    )

    def read() -> PythiaVLAdapter:
        with without_memory():
            whole = PythiaVL(tower, config)
        with ExitStack() as files:
            found = read_parameters(whole, paths, options.vision, files)
            placed = {name: tensor.to(device, dtype, copy=True) for name, tensor in found.items()}
        whole.load_state_dict(placed, assign=True)
        _compute_buffers(whole, config, device)
        whole.requires_grad_(False).eval()
        return PythiaVLAdapter(
            whole,
            tokenizer,
            told.template,
            info,
            vision.pixels_of(tower),
            eos=told.tokenizer.eos_token_id,
            sharing=options.sharing,
        )

    return Deferred(info, read)


def _compute_buffers(model: PythiaVL, config: GPTNeoXConfig, device: torch.device) -> None:
    """Give the language model its rotary frequencies: they are no parameters, and were made without memory."""
    backbone = model.language_model.gpt_neox
    backbone.rotary_emb = type(backbone.rotary_emb)(config=config).to(device)
