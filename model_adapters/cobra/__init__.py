"""Cobra (arXiv 2403.14520): DINOv2 and SigLIP side by side, a projector, and a Mamba-1 language model.

model     configuration, projectors, the whole model
loading   the authors' files, and the adapter

The engine is VL-Mamba's. Facts: h-zhao1997/cobra@4b81082, each of them checked when a checkpoint is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from vlmamba_eval.registry import Family


@dataclass(frozen=True)
class Options:
    """The options of a Cobra. What its own folder does not hold comes from the hub, or from folders given here."""

    dino: Annotated[
        str, Meta(description="DINOv2 with registers, large: a folder or hub id, by the names of transformers or timm")
    ] = "facebook/dinov2-with-registers-large"
    siglip: Annotated[
        str, Meta(description="SigLIP so400m at 384 pixels: a folder or hub id, by the names of transformers or timm")
    ] = "google/siglip-so400m-patch14-384"
    tokenizer: Annotated[str, Meta(description="a tokenizer.json, or a folder or hub id with one")] = (
        "xiuyul/mamba-2.8b-zephyr"
    )
    device: Annotated[str, Meta(description="cpu, cuda, cuda:N, or auto: cuda if there is one")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(description="precision of the weights; auto: float32 on a CPU, bfloat16 on CUDA"),
    ] = "auto"
    random_init: Annotated[bool, Meta(description="random weights, for timing: tables say UNTRAINED")] = False
    seed: Annotated[int, Meta(description="seed of random_init")] = 0
    sharing: Annotated[bool, Meta(description="read an image once for all its questions")] = True


def _recognises(config: Mapping[str, Any]) -> bool:
    model = config.get("model")
    return isinstance(model, Mapping) and "arch_specifier" in model and "llm_backbone_id" in model


FAMILY = Family(
    name="cobra",
    summary="a Cobra checkpoint folder: config.json and checkpoints/latest-checkpoint.pt",
    load="vlmamba_eval.model_adapters.cobra.loading:load",
    options=Options,
    takes="DIR",
    recognises=_recognises,
    models={"cobra-3b": "Cobra-3B, fetched from the hub: han1997/cobra, DINOv2 and SigLIP towers, Mamba-2.8B-Zephyr"},
)
