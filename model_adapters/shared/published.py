"""The files of published models, read without running or believing anything in them.

Weights come as safetensors or PyTorch files, whole or in shards, bare or wrapped by a trainer
(`{"model": {...}, "epoch": 3}`). `tensors` names each tensor by its path below the wrapper: Cobra's
`{"model": {"projector": {"projector.0.weight": ...}}}` holds `projector.projector.0.weight`. Files are mapped, not
read, so that nothing is allocated for a tensor that nobody asks for, whatever sizes a file claims.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlmamba_eval.types import ModelError

from .configuration import LFS, kind_of, read_json, shorten

# Below which names trainers put the parameters; the first that is there is entered.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "params")
# What trainers leave beside the weights.
_BESIDE = re.compile(
    r"^(adapter|optimizer|scheduler|rng_state|scaler|training_args|random_states|trainer)", re.IGNORECASE
)
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a published folder's weights, in order: safetensors if there are any, else PyTorch's.

    What trainers leave beside them (optimizer, schedule, adapters) is passed over. Raises `ModelError` if there is
    nothing, or a LoRA adapter alone.
    """
    for index, pattern in (
        ("model.safetensors.index.json", "*.safetensors"),
        ("pytorch_model.bin.index.json", "*.bin"),
        ("", "*.pt"),
        ("", "*.pth"),
    ):
        if index and (folder / index).is_file():
            return shards(folder / index)
        found = sorted(path for path in folder.glob(pattern) if not _BESIDE.match(path.name))
        best = [path for path in found if path.stem in ("model", "pytorch_model")]
        if best or found:
            return best or found
    if any(folder.glob("adapter_*")):
        raise ModelError(
            f"{folder}: holds a LoRA adapter and not the model that it adapts; merge it into its base first (peft: "
            "`merge_and_unload()`, then `save_pretrained`)"
        )
    there = ", ".join(sorted(path.name for path in folder.glob("*"))[:8]) or "nothing"
    raise ModelError(f"{folder}: expected *.safetensors or pytorch_model*.bin, found neither but {there}")


def shards(index: Path) -> list[Path]:
    """The files that an index of shards names, which must all lie beside it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelError(f"{index}: expected an index with a weight_map from names to files")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise ModelError(
                f"{index}: names the file {shorten(name)}, which is not in {index.parent}; copy the folder again"
            )
    if not names:
        raise ModelError(f"{index}: names no file")
    return [index.parent / name for name in names]


def tensors(paths: list[Path], files: ExitStack) -> Iterator[tuple[str, Tensor]]:
    """The named tensors of safetensors or PyTorch files, mapped for as long as `files` is open.

    Raises `ModelError` for what is no file of weights, for a name that comes twice, and for a file that wants code to
    be run.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        opened = _safetensors(path, files) if path.suffix == ".safetensors" else _pytorch(path)
        for name, tensor in opened:
            name = _bare(name)
            if name in seen:
                raise _twice(name, path, seen[name])
            seen[name] = path
            yield name, tensor


def _bare(name: str) -> str:
    """A name without what DataParallel and torch.compile put in front of it."""
    while name.startswith(("module.", "_orig_mod.")):
        name = name.partition(".")[2]
    return name


def check_float(name: str, tensor: Tensor, where: str) -> None:
    """`ModelError` unless a parameter is stored as floating point numbers."""
    if tensor.dtype not in _FLOATS:
        raise _no_float(name, str(tensor.dtype).removeprefix("torch."), where)


def check_file(path: Path) -> None:
    """`ModelError` unless a file of weights is there, is no git-lfs pointer and is not empty."""
    if not path.is_file():
        raise ModelError(f"{path}: expected a file of weights, found {kind_of(path)}")
    with path.open("rb") as file:
        start = file.read(40)
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path}: {LFS}")
    if not start:
        raise ModelError(f"{path}: expected a file of weights, found an empty file")


def open_tensors(paths: Sequence[Path], files: ExitStack) -> dict[str, safe_open]:
    """Name -> the safetensors file that holds it, mapped for as long as `files` is open.

    Raises `ModelError` for what is no such file, and for a name that comes twice.
    """
    found: dict[str, safe_open] = {}
    holder: dict[str, Path] = {}
    for path in paths:
        check_file(path)
        try:
            file = files.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: expected a safetensors file, found: {error}; copy it again") from None
        for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
            if name in found:
                raise _twice(name, path, holder[name])
            found[name], holder[name] = file, path
    return found


def check_floats(tensors: Mapping[str, safe_open], where: str) -> None:
    """`ModelError` unless all parameters in open files are stored as floating point numbers."""
    for name, file in tensors.items():
        if (stored := file.get_slice(name).get_dtype()) not in ("F64", "F32", "F16", "BF16"):
            raise _no_float(name, stored, where)


def _twice(name: str, path: Path, other: Path) -> ModelError:
    also = "" if other == path else f" and in {other.name}"
    return ModelError(f"{path}: the parameter {name} is here{also} twice; copy the files again")


def _no_float(name: str, kind: str, where: str) -> ModelError:
    return ModelError(
        f"{where}: the parameter {name} is stored as {kind}, expected floating point numbers; quantised weights can't "
        "be read"
    )


def _safetensors(path: Path, files: ExitStack) -> Iterator[tuple[str, Tensor]]:
    for name, file in open_tensors([path], files).items():
        yield name, file.get_tensor(name)


def _pytorch(path: Path) -> Iterator[tuple[str, Tensor]]:
    check_file(path)
    with path.open("rb") as file:
        mapped = file.read(2) == b"PK"  # the zip format, since PyTorch 1.6; the older one can't be mapped
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the pickle's protocol
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # noqa: BLE001 - a damaged pickle can fail in any way
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise ModelError(
                f"{path}: holds more than weights (it asks for {code[1]}) and is not opened, as it could run code; "
                "save its state dict alone, best as safetensors"
            ) from None
        reason = (str(error) or type(error).__name__).split("\n")[0].split(" Please file an issue")[0]
        raise ModelError(f"{path}: expected a file of weights, found: {reason[:200]}") from None
    yield from _flat(_unwrapped(data, path), "", path)


def _unwrapped(data: Any, path: Path) -> Mapping[str, Any]:
    while isinstance(data, Mapping) and not any(isinstance(value, Tensor) for value in data.values()):
        name = next((name for name in _WRAPPERS if isinstance(data.get(name), Mapping)), None)
        if name is None:
            break
        data = data[name]
    if not isinstance(data, Mapping) or not any(isinstance(value, Tensor | Mapping) for value in data.values()):
        held = ", ".join(map(shorten, list(data)[:6])) if isinstance(data, Mapping) else f"a {type(data).__name__}"
        raise ModelError(
            f"{path}: expected a dictionary of tensors, bare or under {', '.join(map(repr, _WRAPPERS))}; found "
            f"{held or 'nothing'}"
        )
    return data


def _flat(data: Mapping[str, Any], prefix: str, path: Path, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if depth > 8:
        raise ModelError(f"{path}: expected a dictionary of tensors, found one that is nested too deeply")
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.", path, depth + 1)
        elif isinstance(value, Tensor):
            yield f"{prefix}{name}", value


# =============================================================================
# Where they come from
# =============================================================================


def fetch(source: str, patterns: list[str]) -> Path:
    """A local folder as it is, or the matching files of a hub repository.

    Raises `ModelError` if `source` is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{source} is neither a folder here nor a repository that the hub gives out: {error}. "
            "Download it on a machine with a network, and give its folder."
        ) from error


def fetch_weights(source: str) -> tuple[Path, list[Path]]:
    """A published folder and its files of weights: safetensors, or what PyTorch writes if there are none."""
    folder = fetch(source, ["config.json", "*.safetensors", "*.safetensors.index.json"])
    if not Path(source).is_dir() and not any(folder.glob("*.safetensors")):
        folder = fetch(source, ["config.json", "pytorch_model*.bin", "pytorch_model.bin.index.json"])
    return folder, weight_files(folder)
