"""Pythia-VL (arXiv 2409.05395): Mamba-VL's control, with a GPT-NeoX in the place of the Mamba and all else the same.

model     the whole model, an image read once for all its questions
loading   the authors' files, and the adapter
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmamba_eval.model_adapters.mambavl import Options
from vlmamba_eval.registry import Family

PUBLISHED = {f"pythiavl-{size}": f"gpantaz/finetuned_pythiavl_{size}" for size in ("1b", "1.4b", "2.8b")}


def _recognises(config: Mapping[str, Any]) -> bool:
    return "eva02" in str(config.get("vision_encoder_name", "")) and config.get("model_type") == "gpt_neox"


FAMILY = Family(
    name="pythiavl",
    summary="a Pythia-VL checkpoint, Mamba-VL's control: gpantaz/finetuned_pythiavl_...",
    load="vlmamba_eval.model_adapters.pythiavl.loading:load",
    options=Options,
    recognises=_recognises,
    models={name: f"Pythia-VL, fetched from the hub: {hub}" for name, hub in PUBLISHED.items()},
)
