"""LLaVA-1.5 and LLaVA-1.6: the transformers converters' checkpoints, asked as LLaVA's own scripts ask them.

adapter   conversations, pixels, loading
bench     speed: each image read once beside `generate` for every question
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from vlmamba_eval.registry import Family


@dataclass(frozen=True)
class Options:
    """The options of a LLaVA."""

    device: Annotated[str, Meta(description="cpu, cuda, cuda:N, or auto: cuda if there is one")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(description="precision of the weights; auto: float32 on a CPU, float16 on CUDA as LLaVA's own numbers"),
    ] = "auto"
    sharing: Annotated[bool, Meta(description="read an image once for all its questions")] = True


def _recognises(config: Mapping[str, Any]) -> bool:
    own = config.get("model_type") in ("llava", "llava_next") and "vision_config" in config
    return own or "mm_vision_tower" in config  # the original format, which is answered with the converted twin's name


FAMILY = Family(
    name="llava",
    summary="a LLaVA-1.5 or 1.6 checkpoint in transformers' format (llava-hf/...)",
    load="vlmamba_eval.model_adapters.llava.adapter:load",
    options=Options,
    models={
        "llava-1.5-7b": "LLaVA-1.5 with Vicuna-7B: llava-hf/llava-1.5-7b-hf",
        "llava-1.5-13b": "LLaVA-1.5 with Vicuna-13B: llava-hf/llava-1.5-13b-hf",
    },
    recognises=_recognises,
)
