"""Loading a model of transformers so that nothing is quietly left random."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from vlmamba_eval.types import ModelError

from .configuration import reason
from .hub_checkpoint import HubCheckpoint
from .published import check_floats, open_tensors


def load_model(auto: Any, checkpoint: HubCheckpoint, device: torch.device, dtype: torch.dtype) -> Any:
    """A model of class `auto` with the checkpoint's parameters, for inference. Raises `ModelError`.

    Its own generation settings are replaced by plain greedy decoding: repetition penalties and the like would make
    answers that no other harness compares with.
    """
    _check_files(checkpoint)
    try:
        _check_size(auto, checkpoint)
        model, report = auto.from_pretrained(
            checkpoint.folder, dtype=dtype, output_loading_info=True, local_files_only=True, trust_remote_code=False
        )
    except (torch.OutOfMemoryError, ModelError):
        raise
    except Exception as error:  # a configuration and files can make it fail in any way
        said = reason(error)
        language = checkpoint.config.get("text_config", {}).get("model_type")
        if language in ("mamba", "falcon_mamba"):
            said += (
                f". LLaVA's class in transformers {transformers.__version__} takes no language model of the type "
                f"{language}: what it calls embed_tokens is `embeddings` there. `vlmamba-eval list models` shows the "
                "families on Mamba-1 that run here."
            )
        raise ModelError(f"{checkpoint.folder}: transformers cannot load it: {said:.700}") from error
    for what in ("missing_keys", "mismatched_keys", "error_msgs"):
        if found := sorted(str(name) for name in report.get(what) or ()):
            shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
            raise ModelError(
                f"{checkpoint.folder} does not hold the parameters of its configuration; {len(found)} "
                f"{what.replace('_', ' ')}: {shown}. Fetch or convert it again."
            )
    try:
        model = model.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{checkpoint.name} does not fit the memory of {device} in {dtype}: {error}") from error
    return model


def _check_files(checkpoint: HubCheckpoint) -> None:
    """`ModelError` for a damaged file, for a name that comes twice, and for whole numbers that nobody quantised."""
    if any(path.suffix != ".safetensors" for path in checkpoint.files):
        return  # transformers opens those, with weights_only
    with ExitStack() as files:
        found = open_tensors(checkpoint.files, files)
        if not checkpoint.config.get("quantization_config"):
            check_floats(found, str(checkpoint.folder))


def _check_size(auto: Any, checkpoint: HubCheckpoint) -> None:
    """`ModelError` if a configuration asks for far more than the files hold: what is missing would be drawn first."""
    config = transformers.AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = auto.from_config(config) if hasattr(auto, "from_config") else auto(config)
    wanted = sum(parameter.numel() for parameter in model.parameters())
    held = sum(path.stat().st_size for path in checkpoint.files)
    if wanted > 16 * held:  # a parameter takes at least half a byte, and one matrix may be tied to another
        raise ModelError(
            f"{checkpoint.folder}: its configuration asks for {wanted:,} parameters, its files hold {held:,} bytes"
        )


def output_head(model: Any) -> Any:
    """The layer that makes logits: the model's own, or its language model's (Nemotron-H Omni names none itself)."""
    head = model.get_output_embeddings()
    if head is None and hasattr(model, "language_model"):
        head = model.language_model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} of transformers has no output layer that could be found")
    return head


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the checkpoint's own list and the tokenizer's end mark."""
    stated = getattr(model.generation_config, "eos_token_id", None)
    found = {stated} if isinstance(stated, int) else set(stated or ())
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return sorted(found)


def decode_greedily(model: Any, eos: list[int], pad: int) -> None:
    """Replace the checkpoint's generation settings by greedy decoding, so that none of them joins in unseen."""
    model.generation_config = GenerationConfig(eos_token_id=eos or None, pad_token_id=pad, do_sample=False, num_beams=1)
