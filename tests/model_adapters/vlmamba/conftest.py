"""Models small enough to run anywhere, of the same code as the large ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import vlmamba_eval.model_adapters.vlmamba
from vlmamba_eval.model_adapters.vlmamba.adapter import VLMambaAdapter
from vlmamba_eval.model_adapters.vlmamba.config import (
    SIGLIP_PIXELS,
    ConnectorConfig,
    LanguageModelConfig,
    ModelConfig,
    TemplateConfig,
    TokenizerConfig,
    VisionConfig,
)
from vlmamba_eval.model_adapters.vlmamba.engine import Limits
from vlmamba_eval.model_adapters.vlmamba.model import VLMamba, random_model

TINY = Path(vlmamba_eval.model_adapters.vlmamba.__file__).parent / "tiny"


def micro_config() -> ModelConfig:
    """16 image tokens, two layers of everything, the bundled tokenizer."""
    return ModelConfig(
        name="micro",
        vision=VisionConfig(
            kind="siglip",
            image_size=32,
            patch_size=8,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            layer_norm_eps=1e-6,
            hidden_act="gelu_pytorch_tanh",
            feature_layer=-1,
        ),
        preprocessing=SIGLIP_PIXELS,
        connector=ConnectorConfig("vss_l2"),
        language_model=LanguageModelConfig(d_model=48, n_layer=2, vocab_size=1024),
        tokenizer=TokenizerConfig(source="vlmamba-tiny"),
    )


def mild_model(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> VLMamba:
    """Random parameters with nothing at its initial constant, and blocks strong enough for varied answers."""
    model = random_model(config, seed, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(("A_log", "D", "norm.weight", "norm_f.weight", "conv1d.bias")):
            parameter.data += (0.1 * noise).to(parameter.dtype)
        elif name.startswith("language_model") and name.endswith("out_proj.weight"):
            parameter.data *= 8
    return model


@pytest.fixture
def micro() -> ModelConfig:
    return micro_config()


@pytest.fixture(scope="session")
def mild() -> Callable[[ModelConfig], VLMamba]:
    return mild_model


@pytest.fixture(scope="session")
def adapter(tokenizer: Tokenizer) -> Callable[..., VLMambaAdapter]:
    """Adapters of the same small model, made once for each way of running it."""

    @cache
    def make(
        sharing: bool = True,
        limits: Limits | None = None,
        template: TemplateConfig | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> VLMambaAdapter:
        config = micro_config()
        model = mild_model(replace(config, template=template or config.template), dtype=dtype).to(device)
        return VLMambaAdapter(model, tokenizer, weights="random:0", sharing=sharing, limits=limits)

    return make
