"""Mamba-VL (arXiv 2409.05395): EVA-02, two layers, and a Mamba-1 language model, trained beside its control Pythia-VL.

vision    EVA-02, the connector, and the separators between rows, as both models have them
loading   the authors' files, and the adapter

The engine is VL-Mamba's. Facts: gpantaz/vl_mamba@c788f5f, each of them checked when a checkpoint is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from vlmamba_eval.registry import Family


@dataclass(frozen=True)
class Options:
    """The options of a Mamba-VL or Pythia-VL."""

    vision: Annotated[
        str,
        Meta(description="EVA-02 large at 336 pixels, by timm's names: a folder or hub id, if the checkpoint has none"),
    ] = "timm/eva02_large_patch14_clip_336.merged2b_s6b_b61k"
    tokenizer: Annotated[str, Meta(description="a tokenizer.json, or a folder or hub id with one")] = (
        "EleutherAI/gpt-neox-20b"
    )
    device: Annotated[str, Meta(description="cpu, cuda, cuda:N, or auto: cuda if there is one")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(description="precision of the weights; auto: float32 on a CPU, bfloat16 on CUDA"),
    ] = "auto"
    sharing: Annotated[bool, Meta(description="read an image once for all its questions")] = True


PUBLISHED = {f"mambavl-{size}": f"gpantaz/finetuned_mambavl_{size}" for size in ("790m", "1.4b", "2.8b")}


def _recognises(config: Mapping[str, Any]) -> bool:
    return "eva02" in str(config.get("vision_encoder_name", "")) and "d_model" in config


FAMILY = Family(
    name="mambavl",
    summary="a Mamba-VL checkpoint: gpantaz/finetuned_mambavl_...",
    load="vlmamba_eval.model_adapters.mambavl.loading:load",
    options=Options,
    recognises=_recognises,
    models={name: f"Mamba-VL, fetched from the hub: {hub}" for name, hub in PUBLISHED.items()},
)
