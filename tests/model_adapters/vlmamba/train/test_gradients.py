"""The gradients of a whole training step do not depend on the backend of the scan."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.gpu.scan_on_gpu import Comparisons, check_gradients
from tests.model_adapters.interpreted import under_the_interpreter
from tests.model_adapters.vlmamba.gradients import error, training_step, worst
from tests.model_adapters.vlmamba.scan.authors import install
from vlmamba_eval.model_adapters.vlmamba import scan
from vlmamba_eval.model_adapters.vlmamba.config import ModelConfig
from vlmamba_eval.model_adapters.vlmamba.scan import autograd, mamba_ssm

from .conftest import small_config

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
eager = pytest.mark.skipif(INTERPRETED, reason="eager")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="the Triton kernels")


def least_config() -> ModelConfig:
    """4 image tokens, one layer of 64 channels: the interpreter takes milliseconds for a token."""
    config = small_config()
    vision = replace(config.vision, image_size=16)
    return replace(config, vision=vision, language_model=replace(config.language_model, d_model=32, n_layer=1))


def use(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """The backend of everything that learns, wherever it runs."""
    monkeypatch.setattr(scan, "choose_backend", lambda device, requires_grad=False: backend)


# =============================================================================
# The measure
# =============================================================================


def test_an_entry_near_zero_is_measured_at_the_size_of_its_tensor():
    expected = torch.tensor([1.0, -2.0, 1e-9])
    found = expected + torch.tensor([0.0, 0.0, 1.16e-8])
    assert float(((found - expected) / expected).abs().max()) == pytest.approx(11.6, rel=0.01), "what it is not"
    assert error(found, expected) == pytest.approx(5.8e-9, rel=0.01)


def test_a_wrong_tensor_is_named_however_small_its_numbers_are():
    expected = {"large": torch.full((3,), 1e6), "small": torch.tensor([1e-6, 2e-6])}
    found = {"large": torch.full((3,), 1e6 + 1), "small": torch.tensor([1e-6, 1e-6])}
    name, size = worst(found, expected)
    assert (name, size) == ("small", pytest.approx(0.5))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_no_number_is_infinitely_far_off(broken: float):
    expected = {"a": torch.ones(2), "b": torch.ones(2)}
    assert worst({"a": torch.ones(2) * 1.5, "b": torch.tensor([1.0, broken])}, expected) == ("b", float("inf"))


def test_a_gradient_that_should_be_zero_is():
    assert error(torch.zeros(3), torch.zeros(3)) == 0
    assert error(torch.tensor([0.0, 1e-30, 0.0]), torch.zeros(3)) == float("inf")


def test_what_is_zero_by_mathematics_is_measured_at_the_size_of_its_terms():
    """Rounding alone: of a key's bias the largest "relative difference" may be anything."""
    expected = {"k_proj.weight": torch.tensor([[3.0]]), "k_proj.bias": torch.tensor([1e-8])}
    found = {"k_proj.weight": torch.tensor([[3.0]]), "k_proj.bias": torch.tensor([-1.06e-7])}
    assert error(found["k_proj.bias"], expected["k_proj.bias"]) == pytest.approx(11.6, rel=0.01)
    assert worst(found, expected)[1] < 1e-7
    assert worst(found | {"k_proj.bias": torch.tensor([0.1])}, expected)[0] == "k_proj.bias"


def test_a_missing_tensor_is_no_small_difference():
    with pytest.raises(ValueError, match="in one of them only: b"):
        worst({"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)})
    with pytest.raises(ValueError, match="shapes"):
        error(torch.ones(2), torch.ones(3))


# =============================================================================
# A training step
# =============================================================================


@pytest.fixture
def expected(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """By autograd of the definition, token by token."""
    with monkeypatch.context() as patch:
        use(patch, "reference")
        return training_step(small_config())


@eager
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_training_with_recomputed_states_has_the_gradients_of_the_definition(
    expected: dict[str, Tensor], gradient_checkpointing: bool
):
    found = training_step(small_config(), gradient_checkpointing=gradient_checkpointing)
    name, size = worst(found, expected)
    assert size < 1e-5, name


@eager
def test_training_with_the_authors_kernel_has_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch, expected: dict[str, Tensor]
):
    ours = training_step(small_config())
    kernel = install(monkeypatch)
    use(monkeypatch, "mamba_ssm")
    found = training_step(small_config())
    mamba_ssm._found.cache_clear()
    assert kernel.dtypes == [torch.float32] * 3, "the connector's block and two of the language model"
    for other in (ours, expected):
        name, size = worst(found, other)
        assert size < 1e-5, name


@eager
def test_the_authors_kernel_gets_bf16_under_autocast(monkeypatch: pytest.MonkeyPatch, expected: dict[str, Tensor]):
    """It refuses mixed precisions; its stand-in does too. bf16 has 8 bits: the gradients agree to some of them."""
    ours = training_step(small_config(), bf16=True)
    kernel = install(monkeypatch)
    use(monkeypatch, "mamba_ssm")
    found = training_step(small_config(), bf16=True)
    mamba_ssm._found.cache_clear()
    assert kernel.dtypes == [torch.bfloat16] * 3
    assert all(gradient.dtype == torch.float32 for gradient in found.values()), "of the float32 master weights"
    assert worst(found, ours)[1] < 0.1
    assert worst(found, expected)[1] < 0.1


@interpreted
def test_training_with_the_triton_kernels_has_the_gradients_of_the_definition(monkeypatch: pytest.MonkeyPatch):
    from vlmamba_eval.model_adapters.vlmamba.scan import triton

    with monkeypatch.context() as patch:
        use(patch, "reference")
        expected = training_step(least_config())
    monkeypatch.setattr(autograd, "kernels_for", lambda device: triton)
    called: list[str] = []
    for kernel in ("scan_backward", "conv_backward"):
        monkeypatch.setattr(triton, kernel, _counted(getattr(triton, kernel), called))
    name, size = worst(training_step(least_config()), expected)
    assert size < 1e-5, name
    assert sorted(called) == ["conv_backward"] * 2 + ["scan_backward"] * 2, "connector and layer"


def test_the_check_for_gpus_passes_and_names_the_gradient_that_is_wrong(monkeypatch: pytest.MonkeyPatch):
    """Here with the passes for CPUs; in the interpreter, if there is Triton, with those for GPUs."""
    if INTERPRETED:
        from vlmamba_eval.model_adapters.vlmamba.scan import triton

        monkeypatch.setattr(autograd, "kernels_for", lambda device: triton)
    kernels = autograd.kernels_for(torch.device("cpu"))
    compare = Comparisons()
    check_gradients(compare, (3, 18, 33), torch.float32, device="cpu")
    compare.raise_for_failures()
    assert len(compare.all) == 11
    right = kernels.scan_backward

    def wrong(*arguments: Any) -> tuple[Tensor, ...]:
        dx, ddt, dA, dB, *rest = right(*arguments)
        return (dx, ddt, dA, dB * 1.001, *rest)

    monkeypatch.setattr(kernels, "scan_backward", wrong)
    compare = Comparisons()
    check_gradients(compare, (3, 18, 33), torch.float32, device="cpu")
    wanted = r"^1 of 11 .*\ngradient of B 3x18x33 torch.float32: 1.00e-03, at most 1e-05"
    with pytest.raises(AssertionError, match=wanted):
        compare.raise_for_failures()
    assert compare.worst()["gradient float32"][0] == "gradient of B 3x18x33 torch.float32"


@pytest.mark.skipif(INTERPRETED, reason="the process that starts the interpreter")
def test_the_triton_kernels_pass_these_tests_under_the_interpreter():
    """In a process of its own: Triton decides at its first import whether it compiles or interprets."""
    pytest.importorskip("triton")
    assert "2 passed, 1 skipped" in under_the_interpreter(__file__, "-k", "triton or gpus")


def _counted(function: Callable[..., object], called: list[str]) -> Callable[..., object]:
    def counting(*arguments: object, **options: object) -> object:
        called.append(function.__name__)
        return function(*arguments, **options)

    return counting
