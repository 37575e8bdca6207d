"""mmMamba (arXiv 2502.13145): one stack of Mamba-2 layers, or of Mamba-2 and attention layers, for image and text.

model         the layers, by the names of the published files
tiles         an image as the authors cut it
conversation  the template, and the tokenizer's file
adapter       a published folder behind the harness's protocol

Read in hustvl/mmMamba@85143d0 and in the modelling code that stands beside the published weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from vlmamba_eval.registry import Family


@dataclass(frozen=True)
class Options:
    """The options of an mmMamba."""

    device: Annotated[str, Meta(description="cpu, cuda, cuda:N, or auto: cuda if there is one")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(description="precision of the weights; auto: float32 on a CPU, bfloat16 on CUDA"),
    ] = "auto"
    max_tiles: Annotated[
        int, Meta(description="tiles an image is cut into at most (the authors: 6, and 12 for ChartQA and MMMU)", ge=1)
    ] = 6
    sharing: Annotated[bool, Meta(description="read an image once for all its questions")] = True


PUBLISHED = {"mmmamba-linear": "hustvl/mmMamba-linear", "mmmamba-hybrid": "hustvl/mmMamba_hybrid"}
"""Names and their repositories on the hub."""


def _recognises(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "mmMamba_chat"


FAMILY = Family(
    name="mmmamba",
    summary="mmMamba, linear or hybrid: a folder of hustvl/mmMamba-linear or hustvl/mmMamba_hybrid",
    load="vlmamba_eval.model_adapters.mmmamba.adapter:load",
    options=Options,
    takes="DIR",
    recognises=_recognises,
    models={
        "mmmamba-linear": "mmMamba-linear 2.7B, fetched from the hub: hustvl/mmMamba-linear",
        "mmmamba-hybrid": "mmMamba-hybrid 2.7B, fetched from the hub: hustvl/mmMamba_hybrid",
    },
)
