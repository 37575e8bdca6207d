"""ML-Mamba (arXiv 2407.19832): Cobra's towers, a bidirectional Mamba-2 and a projector, a Mamba-2 language model.

model     the bidirectional scan over the patches, the whole model
loading   the authors' files, and the adapter

Facts: WenjunHuang94/ML-Mamba@5fdff98 and the authors' fork of mamba-ssm, WenjunHuang94/mamba@3f012d6
(mamba_ssm/modules/block.py, mamba_ssm/modules/mamba2.py), each of them checked when a checkpoint is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from vlmamba_eval.registry import Family


@dataclass(frozen=True)
class Options:
    """The options of an ML-Mamba. What its own folder does not hold comes from the hub, or from folders given here."""

    dino: Annotated[
        str, Meta(description="DINOv2 with registers, large: a folder or hub id, by the names of transformers or timm")
    ] = "facebook/dinov2-with-registers-large"
    siglip: Annotated[
        str, Meta(description="SigLIP so400m at 384 pixels: a folder or hub id, by the names of transformers or timm")
    ] = "google/siglip-so400m-patch14-384"
    tokenizer: Annotated[str, Meta(description="a tokenizer.json, or a folder or hub id with one")] = (
        "EleutherAI/gpt-neox-20b"
    )
    device: Annotated[str, Meta(description="cpu, cuda, cuda:N, or auto: cuda if there is one")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(description="precision of the weights; auto: float32 on a CPU, bfloat16 on CUDA"),
    ] = "auto"
    sharing: Annotated[bool, Meta(description="read an image once for all its questions")] = True


PUBLISHED = {"mlmamba-3b": "huangwenjun1994/ML-Mamba"}
"""Names and their repositories on the hub."""


def _recognises(config: Mapping[str, Any]) -> bool:
    model = config.get("model")
    return isinstance(model, Mapping) and str(model.get("llm_backbone_id")).startswith("mamba2-")


FAMILY = Family(
    name="mlmamba",
    summary="an ML-Mamba checkpoint folder: latest-checkpoint.pt, and config.json if there is one",
    load="vlmamba_eval.model_adapters.mlmamba.loading:load",
    options=Options,
    takes="DIR",
    recognises=_recognises,
    models={"mlmamba-3b": "ML-Mamba 3B, fetched from the hub: huangwenjun1994/ML-Mamba, DINOv2 and SigLIP towers"},
)
