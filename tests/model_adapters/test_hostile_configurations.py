"""Whatever a published configuration says, a family reads it or refuses it in a sentence, before memory is taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.model_adapters.mmmamba.published import configuration as mmmamba_published
from tests.model_adapters.zamba2vl.published import VISION, text_config
from tests.odd import feed, readable
from vlmamba_eval.model_adapters.cobra import Options as CobraOptions
from vlmamba_eval.model_adapters.cobra import loading as cobra
from vlmamba_eval.model_adapters.mambavl import Options as MambaVLOptions
from vlmamba_eval.model_adapters.mambavl import loading as mambavl
from vlmamba_eval.model_adapters.mlmamba import Options as MLMambaOptions
from vlmamba_eval.model_adapters.mlmamba import loading as mlmamba
from vlmamba_eval.model_adapters.mmmamba.conversation import _added_tokens
from vlmamba_eval.model_adapters.mmmamba.model import config_of_published as mmmamba
from vlmamba_eval.model_adapters.pythiavl import loading as pythiavl
from vlmamba_eval.model_adapters.shared.configuration import read_json
from vlmamba_eval.model_adapters.shared.hub_checkpoint import find_checkpoint
from vlmamba_eval.model_adapters.vlmamba.config import PRESETS, load_config, to_dict
from vlmamba_eval.model_adapters.vlmamba.language_model import config_from_published
from vlmamba_eval.model_adapters.zamba2vl.model import config_of_published as zamba2vl
from vlmamba_eval.types import ModelError

COBRA = {
    "model_id": "cobra+3b",
    "arch_specifier": "no-align+fused-gelu-mlp", "vision_backbone_id": "dinosiglip-vit-so-384px",
    "llm_backbone_id": "mamba-2.8b-zephyr", "image_resize_strategy": "resize-naive", "llm_max_length": 2048,
}  # fmt: skip
NATIVE = {
    "d_model": 2560, "n_layer": 64, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": True, "residual_in_fp32": True,
    "fused_add_norm": True, "pad_vocab_size_multiple": 8,
}  # fmt: skip
THEIRS = {
    "model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280, "state_size": 16,
    "conv_kernel": 4, "expand": 2, "layer_norm_epsilon": 1e-5, "time_step_rank": 48, "use_bias": False,
    "use_conv_bias": True, "hidden_act": "silu", "intermediate_size": 1536,
}  # fmt: skip
EVA = {"vision_encoder_name": "timm/eva02_large_patch14_clip_336", "select_feature": "patch", "image_size": 336}
NEOX = {
    "model_type": "gpt_neox", "hidden_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 8,
    "intermediate_size": 4096, "vocab_size": 50304, "rotary_pct": 0.25, "layer_norm_eps": 1e-5,
}  # fmt: skip
ZAMBA = {"model_type": "zamba2_vl", "image_token_index": 5, "text_config": text_config(100), "vision_config": VISION}
TOKENS = {"added_tokens_decoder": {"5": {"content": "<img>", "special": True}}}

FAMILIES: dict[str, tuple[dict[str, Any], Callable[[Path], object]]] = {
    "vlmamba": (to_dict(PRESETS["vlmamba-tiny"]), load_config),
    "language model": (NATIVE, lambda folder: config_from_published(read_json(folder / "config.json", "a"), "a")),
    "transformers' Mamba": (THEIRS, lambda folder: config_from_published(read_json(folder / "config.json", "a"), "a")),
    "Mamba-2": (
        NATIVE | {"ssm_cfg": {"layer": "Mamba2"}},
        lambda folder: config_from_published(read_json(folder / "config.json", "a"), "a"),
    ),
    "cobra": ({"model": COBRA}, lambda folder: cobra.read_config(folder, CobraOptions())),
    "mlmamba": (
        {"model": COBRA | {"llm_backbone_id": "mamba2-2.7b"}},
        lambda folder: mlmamba.read_config(folder, MLMambaOptions()),
    ),
    "mambavl": (NATIVE | EVA, lambda folder: mambavl.read_config(folder, "mamba-vl", MambaVLOptions())),
    "pythiavl": (NEOX | EVA, pythiavl.read_config),
    "zamba2vl": (ZAMBA, lambda folder: zamba2vl(read_json(folder / "config.json", "a Zamba2-VL's"), "config.json")),
    "mmmamba": (
        mmmamba_published(["mha", "mamba2", "mha"], 150),
        lambda folder: mmmamba(read_json(folder / "config.json", "an mmMamba's"), "config.json"),
    ),
    "transformers": ({"model_type": "llava", "text_config": {"hidden_size": 8}}, lambda f: find_checkpoint(str(f))),
}


@pytest.mark.parametrize("examples", [pytest.param(12, id="a few"), pytest.param(2_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_configuration_brings_a_family_down(family: str, tmp_path: Path, examples: int) -> None:
    config, read = FAMILIES[family]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    read(tmp_path)  # as it is, it is taken
    feed([path], lambda: read(tmp_path), examples)


@pytest.mark.parametrize("value", [0, -1, 10**12, True, "8", [8], None, 2.5], ids=repr)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_absurd_size_is_no_fault_of_ours(family: str, value: object, tmp_path: Path) -> None:
    """Each whole number of a configuration in turn."""
    config, read = FAMILIES[family]
    for place in numbers(config):
        changed = json.loads(json.dumps(config))
        at = changed
        for key in place[:-1]:
            at = at[key]
        at[place[-1]] = value
        (tmp_path / "config.json").write_text(json.dumps(changed))
        (tmp_path / "model.safetensors").write_bytes(b"weights")
        try:
            read(tmp_path)
        except ModelError as error:
            readable(error)


def numbers(value: Any, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The places of whole numbers in nested objects."""
    if isinstance(value, dict):
        return [place for key, item in value.items() for place in numbers(item, (*at, key))]
    return [at] if type(value) is int else []


@pytest.mark.parametrize("examples", [pytest.param(20, id="a few"), pytest.param(2_000, marks=pytest.mark.slow)])
def test_no_list_of_added_tokens_brings_mmmamba_down(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(TOKENS))
    assert _added_tokens(tmp_path) == {"<img>": 5}
    feed([path], lambda: _added_tokens(tmp_path), examples)
