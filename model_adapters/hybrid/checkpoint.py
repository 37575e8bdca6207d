"""Published checkpoint folders: config.json, safetensors with or without an index, checked against what is expected."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from vlmamba_eval.model_adapters.shared.configuration import whole_number
from vlmamba_eval.model_adapters.shared.published import check_floats, fetch, open_tensors
from vlmamba_eval.model_adapters.vlmamba.checkpoint import check_shapes, weight_files
from vlmamba_eval.types import ModelError, UsageError

_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


def folder_of(name: str, family: str, published: Mapping[str, str], files: list[str] | None = None) -> Path:
    """The folder that a model's name means: a folder here, or one of `published`, which is fetched from the hub.

    `UsageError` says what there is.
    """
    if name in published:
        return fetch(published[name], files or _FILES)
    folder = Path(name)
    if not folder.is_dir():
        hub = next(iter(published.values()))
        raise UsageError(
            f"{family}:{name}: no such folder. Download a published checkpoint (`hf download {hub} --local-dir DIR`) "
            f"and give its folder, {family}:DIR, or one of these names: {', '.join(published)}."
        )
    return folder


class Facts:
    """A part of a published configuration, asked for what this code relies on.

    Everything that is found to be otherwise is collected, and `check` raises it as one `ModelError`.
    """

    def __init__(self, data: Mapping[str, Any], where: str):
        self._data, self._where = data, where
        self._wrong: list[str] = []

    def part(self, key: str) -> Facts:
        """A nested configuration; what is wrong with it is told with the rest."""
        data = self._data.get(key)
        if not isinstance(data, dict):
            raise ModelError(f"{self._where}: expected a configuration {key!r} in it, found {data!r:.60}")
        inner = Facts(data, self._where)
        inner._wrong = self._wrong
        return inner

    def get(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """A value that must be there."""
        value = self._data.get(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            names = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
            raise ModelError(f"{self._where}: expected {key} to be of type {names}, found {value!r:.60}")
        return value

    def size(self, key: str, high: int = 2**20) -> int:
        """A whole number from 1 to `high`: memory is taken by it."""
        return whole_number(self._data, key, self._where, high=high)

    def expect(self, key: str, *allowed: Any, default: Any = None) -> Any:
        """A value that this code knows only so. What is not there has its `default`; without one it must be there."""
        value = self._data.get(key, default)
        if value not in allowed:
            self._wrong.append(f"{key} = {value!r:.60} (expected {' or '.join(map(repr, allowed))})")
        return value

    def check(self, what: str) -> None:
        if self._wrong:
            raise ModelError(f"{self._where}: not {what} of the kind that is known here: {', '.join(self._wrong)}")


def load_into(
    model: nn.Module,
    folder: Path,
    name_of: Callable[[str], str | None],
    device: torch.device,
    dtype: torch.dtype,
    keeps_float32: Callable[[str], bool] = lambda name: False,
) -> None:
    """Give a model made on the meta device the parameters of a folder.

    `name_of` turns a published name into the model's, None for a tensor that is not used. The files are mapped: one
    tensor at a time is converted. `ModelError` names what is missing, unexpected or of another shape. A tensor that is
    there twice under one name of the model must be twice the same.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    with contextlib.ExitStack() as files:
        sources: dict[str, list[tuple[safe_open, str]]] = {}
        used = {}
        for published, file in open_tensors(weight_files(folder), files).items():
            if (name := name_of(published)) is not None:
                sources.setdefault(name, []).append((file, published))
                used[published] = file
        found = {name: tuple(copies[0][0].get_slice(copies[0][1]).get_shape()) for name, copies in sources.items()}
        check_shapes(found, expected, str(folder))
        check_floats(used, str(folder))
        parameters = {}
        for name, ((file, published), *copies) in sources.items():
            tensor = file.get_tensor(published)
            for other, again in copies:
                if not torch.equal(other.get_tensor(again), tensor):
                    raise ModelError(
                        f"{folder}: expected {published} and {again} to be one tied parameter; they differ"
                    )
            # A copy also if nothing changes: a file that is overwritten under a mapped tensor ends the process.
            parameters[name] = tensor.to(device, torch.float32 if keeps_float32(name) else dtype, copy=True)
    model.load_state_dict(parameters, assign=True)
