"""What the tests of all families share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import vlmamba_eval.model_adapters.vlmamba

TINY = Path(vlmamba_eval.model_adapters.vlmamba.__file__).parent / "tiny"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))
