"""A checkpoint of transformers: a folder, or a repository of the hub that is fetched into the local cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmamba_eval.types import ModelError

from .configuration import read_json, reason, shorten, whole_number
from .fingerprint import of_files
from .published import check_file, weight_files

# Whatever is not transformers' own format; pickled weights are fetched only if there are no others.
_UNWANTED = ["*.gguf", "*.onnx", "*.msgpack", "*.h5", "*.ot", "*.pth", "original/*", "consolidated*", "*.md"]
# transformers makes a module for each before it looks at the weights.
_DEPTHS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers", "num_experts"}
_PICKLED = ["*.bin", "*.pt"]


@dataclass(frozen=True, slots=True)
class HubCheckpoint:
    """`weights` identifies the parameters in `files`: their hash, or the repository's commit."""

    name: str
    folder: Path
    config: dict[str, Any]
    weights: str
    files: list[Path]


def find_checkpoint(model: str) -> HubCheckpoint:
    """The checkpoint in a folder or on the hub. Raises `ModelError` if it can't be had or is incomplete."""
    folder = Path(model)
    if folder.is_dir():
        config = _config(folder)
        files = _weights(folder)
        return HubCheckpoint(folder.resolve().name, folder, config, of_files(files, folder / "fingerprint.json"), files)
    if folder.is_absolute() or model.count("/") != 1:
        raise ModelError(f"{model}: no such folder, and not the id of a repository on the hub (OWNER/NAME).")
    folder = _fetch(model)
    config = _config(folder)
    return HubCheckpoint(model.partition("/")[2], folder, config, f"hub:{model}@{folder.name}", _weights(folder))


def _fetch(model: str) -> Path:
    from huggingface_hub import snapshot_download

    def fetch(unwanted: list[str], **how: Any) -> Path:
        return Path(snapshot_download(model, ignore_patterns=unwanted, **how))

    try:
        folder = fetch(_UNWANTED + _PICKLED)
        return folder if list(folder.glob("*.safetensors")) else fetch(_UNWANTED)
    except Exception as error:  # noqa: BLE001 - network and hub errors of many types
        try:
            return fetch(_UNWANTED, local_files_only=True)
        except Exception:  # noqa: BLE001 - not fetched before either
            raise ModelError(
                f"{model} cannot be fetched from the hub: {reason(error):.300}\n"
                "Check the name and the network (a gated model needs `hf auth login`), or give a folder that holds it."
            ) from None


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    config = read_json(path, "the configuration of a transformers checkpoint")
    if not isinstance(kind := config.get("model_type"), str):
        raise ModelError(f"{path}: expected model_type to be the name of a model, found {shorten(kind)}")
    for part in ("text_config", "vision_config"):
        if not isinstance(found := config.get(part, {}), dict):
            raise ModelError(f"{path}: expected {part} to be an object, found {shorten(found)}")
    for where, data in ((path, config), *((f"{path}: {key}", value) for key, value in config.items())):
        for key in _DEPTHS & set(data if isinstance(data, dict) else ()):
            whole_number(data, key, str(where), low=0, high=2**12)
    return config


def _weights(folder: Path) -> list[Path]:
    """The files that transformers will read."""
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else weight_files(folder)
    for path in files:
        check_file(path)
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder}: holds a LoRA adapter beside the model; transformers would add it if peft is installed. Merge "
            "it (peft: `merge_and_unload()`, then `save_pretrained`), or move adapter_config.json away"
        )
    return files
