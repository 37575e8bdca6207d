"""Models by name. Listing them imports no model code; a model's module is imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model_adapters.base import Adapter, Deferred
from vlmamba_eval.types import UsageError


@dataclass(frozen=True, slots=True)
class Entry:
    """One model: what it is, and the function `module:name` that makes its adapter, called with `defer`'s arguments."""

    summary: str
    factory: str


_VLMAMBA = "model_adapters.vlmamba.adapter:load"

MODELS: dict[str, Entry] = {
    "vlmamba-tiny": Entry("a few million parameters, bundled; reads drawn scenes only", _VLMAMBA),
    "vlmamba-2.8b": Entry("the paper's final model: SigLIP, VSS-L2 with BSM, Mamba-2.8B-SlimPajama", _VLMAMBA),
    "vlmamba-1.4b": Entry("the same with Mamba-1.4B", _VLMAMBA),
    "vlmamba-1.4b-clip-mlp": Entry("paper, table 2: CLIP, MLP, Mamba-1.4B", _VLMAMBA),
    "vlmamba-2.8b-pile-clip-mlp": Entry("paper, table 2: CLIP, MLP, Mamba-2.8B trained on the Pile", _VLMAMBA),
    "vlmamba-2.8b-clip-mlp": Entry("paper, tables 2 and 3: CLIP, MLP, Mamba-2.8B-SlimPajama", _VLMAMBA),
    "vlmamba-2.8b-mlp": Entry("paper, tables 3 and 4: SigLIP, MLP, Mamba-2.8B-SlimPajama", _VLMAMBA),
    "vlmamba-2.8b-vss-mlp": Entry("paper, table 4: SigLIP, VSS-MLP with BSM, Mamba-2.8B-SlimPajama", _VLMAMBA),
    "vlmamba-2.8b-csm": Entry("paper, table 5: SigLIP, VSS-L2 with CSM, Mamba-2.8B-SlimPajama", _VLMAMBA),
}


def load(
    name_or_path: str,
    *,
    weights: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    random_init: bool = False,
    seed: int = 0,
    sharing: bool = True,
) -> Adapter:
    """Make the adapter of a model and load it; `defer` documents the options."""
    found = defer(
        name_or_path, weights=weights, device=device, dtype=dtype, random_init=random_init, seed=seed, sharing=sharing
    )
    return found.load() if isinstance(found, Deferred) else found


def defer(
    name_or_path: str,
    *,
    weights: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    random_init: bool = False,
    seed: int = 0,
    sharing: bool = True,
) -> Adapter | Deferred:
    """Make the adapter of a model, without loading its weights where it can be described without them.

    Args:
        name_or_path: a key of `MODELS`, or a checkpoint folder.
        weights: a checkpoint folder for a model that comes without weights.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`: CUDA where there is a device.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: float32 on a CPU, bfloat16 on CUDA.
        random_init: random parameters drawn from `seed`, for timing; the adapter says that it is untrained.
        seed: see `random_init`.
        sharing: read an image once for all its questions; False answers each question by itself, as a reference.

    Raises:
        UsageError: no such model, or options that do not go together.
        ModelError: the checkpoint is missing, incomplete or of another kind.
    """
    entry = MODELS.get(name_or_path)
    if entry is None:
        if not Path(name_or_path).is_dir():
            raise UsageError(_unknown(name_or_path))
        entry = Entry("a VL-Mamba checkpoint folder", _VLMAMBA)
    module, _, function = entry.factory.partition(":")
    factory: Callable[..., Adapter | Deferred] = getattr(importlib.import_module(module), function)
    return factory(
        name_or_path,
        weights=weights,
        device=device,
        dtype=dtype,
        random_init=random_init,
        seed=seed,
        sharing=sharing,
    )


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.5)
    hint = f" Did you mean: {', '.join(near)}?" if near else f" There are: {', '.join(MODELS)}."
    return f"unknown model {name!r}, and no folder of that name.{hint} A checkpoint is given by its folder."
