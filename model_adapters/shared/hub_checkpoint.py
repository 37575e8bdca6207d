"""A checkpoint of transformers: a folder, or a repository of the hub that is fetched into the local cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmamba_eval.types import ModelError

from .configuration import read_json
from .fingerprint import of_files

# Whatever is not transformers' own format; pickled weights are fetched only if there are no others.
_UNWANTED = ["*.gguf", "*.onnx", "*.msgpack", "*.h5", "*.ot", "*.pth", "original/*", "consolidated*", "*.md"]
_PICKLED = ["*.bin", "*.pt"]


@dataclass(frozen=True, slots=True)
class HubCheckpoint:
    """`weights` identifies the parameters: a hash of the files, or the repository's commit."""

    name: str
    folder: Path
    config: dict[str, Any]
    weights: str


def find_checkpoint(model: str) -> HubCheckpoint:
    """The checkpoint in a folder or on the hub. Raises `ModelError` if it can't be had or is incomplete."""
    folder = Path(model)
    if folder.is_dir():
        config = _config(folder)
        weights = of_files(_weights(folder), folder / "fingerprint.json")
        return HubCheckpoint(folder.resolve().name, folder, config, weights)
    if folder.is_absolute() or model.count("/") != 1:
        raise ModelError(f"{model}: no such folder, and not the id of a repository on the hub (OWNER/NAME).")
    folder = _fetch(model)
    config = _config(folder)
    _weights(folder)
    return HubCheckpoint(model.partition("/")[2], folder, config, f"hub:{model}@{folder.name}")


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
            reason = " ".join(str(error).split())
            raise ModelError(
                f"{model} cannot be fetched from the hub: {reason:.300}\n"
                "Check the name and the network (a gated model needs `hf auth login`), or give a folder that holds it."
            ) from None


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(f"{path} is missing: expected the configuration of a transformers checkpoint")
    return read_json(path)


def _weights(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ModelError(f"{folder}: holds no weights (*.safetensors or pytorch_model*.bin)")
    return files
