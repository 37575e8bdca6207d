"""The elementwise kernels equal transformers' LLaMA, in every precision, under Triton's interpreter or on a GPU."""

# transformers does not type what its configurations take.
# pyright: reportArgumentType=false
from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.model_adapters.interpreted import under_the_interpreter
from vlmamba_eval.model_adapters.shared.fused import Fused, available

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
compiled = pytest.mark.skipif(not available(DEVICE), reason="needs a GPU, or TRITON_INTERPRET=1")


@pytest.mark.slow  # it imports everything once more
def test_the_kernels_pass_these_tests_under_the_interpreter() -> None:
    """A process of its own, since Triton decides at its first import whether it compiles or interprets."""
    pytest.importorskip("triton")
    if available(DEVICE):
        pytest.skip("they run in this process")
    assert "4 passed" in under_the_interpreter(__file__)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_llama_gives_the_same_logits_with_fused_kernels(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # Widths and heads that are no powers of two, fewer heads for keys.
    config: dict[str, Any] = {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 3, "vocab_size": 50,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**config)).to(DEVICE, dtype).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    ids = torch.randint(0, 50, (2, 9), device=DEVICE)
    kernels = Fused(model, DEVICE)
    assert kernels.name == "triton"
    with torch.no_grad():
        plain = model(ids, position_ids=torch.arange(9, device=DEVICE).expand(2, 9) + 5).logits
        with kernels:
            fused = model(ids, position_ids=torch.arange(9, device=DEVICE).expand(2, 9) + 5).logits
        after = model(ids, position_ids=torch.arange(9, device=DEVICE).expand(2, 9) + 5).logits
    bound = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert (fused - plain).abs().max() <= bound * plain.abs().max()
    assert torch.equal(after, plain)  # outside, the model is transformers' own


@compiled
def test_every_part_that_is_replaced_is_called() -> None:
    model = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2,
                                         num_attention_heads=2, vocab_size=20)).to(DEVICE)  # fmt: skip
    kernels = Fused(model, DEVICE)
    assert len(kernels._modules) == 2 * 3 + 1
    with torch.profiler.profile() as seen, kernels, torch.no_grad():
        model(torch.tensor([[1, 2, 3]], device=DEVICE))
    names = {event.key for event in seen.key_averages()}
    assert not names & {"aten::rsqrt", "aten::silu", "aten::neg"}
