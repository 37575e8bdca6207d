"""Models small enough to run anywhere, of the same code as the large ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import model_adapters.vlmamba
from model_adapters.vlmamba.config import PRESETS, LanguageModelConfig, ModelConfig
from model_adapters.vlmamba.model import VLMamba, random_model

TINY = Path(model_adapters.vlmamba.__file__).parent / "tiny"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def micro_config() -> ModelConfig:
    """16 image tokens, two layers of everything, the bundled tokenizer."""
    tiny = PRESETS["vlmamba-tiny"]
    return replace(
        tiny,
        name="micro",
        vision=replace(
            tiny.vision,
            image_size=32,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
        ),
        language_model=LanguageModelConfig(d_model=48, n_layer=2, vocab_size=1024),
    )


def mild_model(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> VLMamba:
    """Random parameters with nothing at its initial constant, and embeddings large enough for varied answers."""
    model = random_model(config, seed, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(("A_log", "D", "norm.weight", "norm_f.weight", "conv1d.bias")):
            parameter.data += (0.1 * noise).to(parameter.dtype)
        elif name.endswith("embedding.weight"):
            parameter.data.copy_(0.5 * noise)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


@pytest.fixture
def micro() -> ModelConfig:
    return micro_config()
