"""Bridges to other harnesses.

lmms-eval: its `--model vlmamba` runs any of this project's models, images read once.

    pip install 'vlmamba-eval[lmms]'
    lmms-eval --model vlmamba --model_args model=CHECKPOINT,journal=answers.jsonl --tasks ai2d

`model` is anything that `vlmamba-eval --model` takes, further arguments are its family's options. Tasks that generate
(in one or several rounds) and those that rank choices, with at most one image a question.

For the benchmarks that lmms-eval has and this project has not. Prompts and scores are then lmms-eval's, not the
published protocol's.
"""

from __future__ import annotations

from typing import Any


def lmms_manifests() -> list[Any]:
    """What lmms-eval's entry point `lmms_eval.models` wants: where the model class lies. Imports no model code."""
    from lmms_eval.models.registry_v2 import ModelManifest  # type: ignore[import-not-found] - an extra

    return [ModelManifest(model_id="vlmamba", simple_class_path="vlmamba_eval.bridges.lmms_eval.VLMambaForLmms")]
