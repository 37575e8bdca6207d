"""ML-Mamba's own files: `latest-checkpoint.pt`, beside a `config.json` or below `checkpoints`; without the towers.

The checkpoint is `{"model": {"projector": ..., "llm_backbone": ..., "mlp": ..., "bidirectional_mamba": ...}}`, four
state dicts. A folder without config.json is taken for the published model, whose shapes its parameters must have.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlmamba_eval.adapter import AdapterInfo, Deferred
from vlmamba_eval.model_adapters.cobra.loading import _check_tower, _projector, tower_files
from vlmamba_eval.model_adapters.cobra.model import PIXELS, TOWERS, CobraConfig
from vlmamba_eval.model_adapters.hybrid.checkpoint import folder_of
from vlmamba_eval.model_adapters.shared.configuration import read_json, shorten
from vlmamba_eval.model_adapters.shared.device import choose
from vlmamba_eval.model_adapters.shared.fingerprint import of_files
from vlmamba_eval.model_adapters.shared.pixels import prepare
from vlmamba_eval.model_adapters.shared.published import check_file, check_float, fetch_weights, tensors
from vlmamba_eval.model_adapters.shared.vision_tower import from_published
from vlmamba_eval.model_adapters.vlmamba import ssd
from vlmamba_eval.model_adapters.vlmamba.assemble import fetch_tokenizer
from vlmamba_eval.model_adapters.vlmamba.checkpoint import check_shapes
from vlmamba_eval.model_adapters.vlmamba.config import TokenizerConfig
from vlmamba_eval.model_adapters.vlmamba.engine_adapter import EngineAdapter, engine_settings
from vlmamba_eval.model_adapters.vlmamba.making import empty, filled
from vlmamba_eval.types import ModelError

from . import PUBLISHED, Options
from .model import LANGUAGE_MODELS, MLMamba

_PARTS = ["bidirectional_mamba", "llm_backbone", "mlp", "projector"]
_EMBEDDING = "language_model.backbone.embedding.weight"
# mlmamba+3b, the released model (mlmamba/conf/models.py).
_PUBLISHED = {
    "model_id": "mlmamba+3b",
    "arch_specifier": "no-align+fused-gelu-mlp",
    "vision_backbone_id": "dinosiglip-vit-so-384px",
    "llm_backbone_id": "mamba2-2.7b",
    "image_resize_strategy": "resize-naive",
}


def read_config(folder: Path, options: Options) -> CobraConfig:
    """What the folder's config.json says, or `ModelError`: which part is unknown, and which are known."""
    path = folder / "config.json"
    data: Any = read_json(path).get("model") if path.is_file() else _PUBLISHED
    if not isinstance(data, Mapping):
        raise ModelError(f'{path}: expected ML-Mamba\'s configuration, an object under "model", found {shorten(data)}')

    def one_of(key: str, known: Mapping[str, Any]) -> str:
        value = data.get(key)
        if not isinstance(value, str) or value not in known:
            raise ModelError(f"{path}: model.{key} should be one of {', '.join(known)}, found {shorten(value)}")
        return value

    one_of("image_resize_strategy", {"resize-naive": None})
    language_model = LANGUAGE_MODELS[one_of("llm_backbone_id", LANGUAGE_MODELS)]
    return CobraConfig(
        name=str(data.get("model_id") or folder.resolve().name),
        towers=dict(TOWERS[one_of("vision_backbone_id", TOWERS)]),
        projector=_projector(data.get("arch_specifier"), str(path)),
        language_model=language_model,
        tokenizer=TokenizerConfig(source=options.tokenizer),
    )


def read_parameters(
    config: CobraConfig, checkpoint: Path, sources: Mapping[str, str], files: ExitStack
) -> dict[str, Tensor]:
    """The parameters of `MLMamba(config)`, mapped while `files` is open. `ModelError` names what does not fit."""
    stored = dict(tensors([checkpoint], files))
    parts = sorted({name.partition(".")[0] for name in stored})
    if parts != _PARTS:
        raise ModelError(
            f'{checkpoint}: expected exactly {", ".join(_PARTS)} under "model", found {", ".join(parts[:6])}'
        )
    renamed: dict[str, Tensor] = {}
    head = None
    for name, tensor in stored.items():
        if name.startswith("llm_backbone."):  # with or without the name of the module around it
            name = "language_model." + name.removeprefix("llm_backbone.").removeprefix("llm.")
            if name == "language_model.lm_head.weight":
                head = tensor
                continue
        renamed[name] = tensor
    model = empty(lambda: MLMamba(config), torch.float32)
    expected = {n: tuple(p.shape) for n, p in model.state_dict().items() if not n.startswith("towers.")}
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


def load(name: str, options: Options) -> Deferred:
    """The adapter of a folder."""
    folder = folder_of(name, "mlmamba", PUBLISHED, ["config.json", "latest-checkpoint.pt", "checkpoints/*.pt"])
    device, dtype = choose(options.device, options.dtype)
    sources = {"dino": options.dino, "siglip": options.siglip}
    config = read_config(folder, options)
    below = folder / "checkpoints" / "latest-checkpoint.pt"
    checkpoint = below if below.exists() else folder / below.name
    check_file(checkpoint)
    tokenizer = fetch_tokenizer(options.tokenizer, config)
    info = AdapterInfo(
        name=config.name,
        weights=of_files([checkpoint, *tower_files(config, sources)], folder / "fingerprint.json"),
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        image_tokens=config.image_tokens,
        settings={key: value for key, value in config.settings().items() if key != "name"}
        | {"sources": sources, "ssd_backend": ssd.choose_backend(device)}
        | engine_settings(device, options.sharing),
    )

    def read() -> EngineAdapter:
        with ExitStack() as files:
            parameters = read_parameters(config, checkpoint, sources, files)
            model = filled(empty(lambda: MLMamba(config), dtype), parameters.items(), device, dtype)
        model.prepare_for_inference()
        squash = next(iter(PIXELS.values()))  # both towers' means differ, and are subtracted later

        def pixels(image: Image.Image) -> Tensor:
            return prepare(image, config.image_size, squash)

        return EngineAdapter(model, tokenizer, info, pixels, sharing=options.sharing)

    return Deferred(info, read)
