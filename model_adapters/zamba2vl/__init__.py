"""Zamba2-VL (arXiv 2606.00390): Qwen2.5-VL's vision tower before Zamba2, Mamba-2 layers with shared attention blocks.

language_model  Zamba2, by the names of the published files
model           the language model and transformers' vision tower
images          an image resized and cut into patches as Qwen2.5-VL wants them
conversation    the folder's own chat template and tokenizer
adapter         a published folder behind the harness's protocol

Read in Zyphra/transformers@edc3d38. transformers has the parts, but no model of this kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from vlmamba_eval.registry import Family


@dataclass(frozen=True)
class Options:
    """The options of a Zamba2-VL."""

    device: Annotated[str, Meta(description="cpu, cuda, cuda:N, or auto: cuda if there is one")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(description="precision of the weights; auto: float32 on a CPU, bfloat16 on CUDA"),
    ] = "auto"
    max_image_tokens: Annotated[int, Meta(description="an image gets at most so many embeddings", ge=1)] = 3400
    min_image_tokens: Annotated[int, Meta(description="an image gets at least so many embeddings", ge=1)] = 10
    sharing: Annotated[bool, Meta(description="read an image once for all its questions")] = True


PUBLISHED = {f"zamba2vl-{size.lower()}": f"Zyphra/Zamba2-VL-{size}" for size in ("1.2B", "2.7B", "7B")}
"""Names and their repositories on the hub."""


def _recognises(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "zamba2_vl"


FAMILY = Family(
    name="zamba2vl",
    summary="Zamba2-VL: a folder of Zyphra/Zamba2-VL-1.2B, -2.7B or -7B",
    load="vlmamba_eval.model_adapters.zamba2vl.adapter:load",
    options=Options,
    takes="DIR",
    recognises=_recognises,
    models={name: f"Zamba2-VL, fetched from the hub: {hub}" for name, hub in PUBLISHED.items()},
)
