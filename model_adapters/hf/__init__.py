"""Any image-text-to-text model of transformers, asked through its own chat template.

adapter     conversations, the adapter
processing  the checkpoint's processor, without torchvision if transformers can
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from vlmamba_eval.registry import Family


@dataclass(frozen=True)
class Options:
    """The options of a model of transformers."""

    device: Annotated[str, Meta(description="cpu, cuda, cuda:N, or auto: cuda if there is one")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(description="precision of the weights; auto: float32 on a CPU, bfloat16 on CUDA"),
    ] = "auto"
    sharing: Annotated[bool, Meta(description="read an image once for all its questions, if it can be")] = True
    chat_template: Annotated[
        str, Meta(description="a Jinja file in place of the checkpoint's own; `none`: the image, then the text")
    ] = ""


def _recognises(config: Mapping[str, Any]) -> bool:
    return "vision_config" in config and "model_type" in config


FAMILY = Family(
    name="hf",
    summary="any image-text-to-text model of transformers, with its own chat template",
    load="vlmamba_eval.model_adapters.hf.adapter:load",
    options=Options,
    recognises=_recognises,
)
