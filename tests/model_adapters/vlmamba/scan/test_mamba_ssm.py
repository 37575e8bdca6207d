"""The authors' kernel as training uses it: found if it can run, fed what it takes, right in every gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model_adapters.vlmamba.scan.authors import Kernel, install
from tests.model_adapters.vlmamba.scan.cases import Case, error, positive, scans, sizes
from vlmamba_eval.model_adapters.vlmamba import scan
from vlmamba_eval.model_adapters.vlmamba.scan import mamba_ssm

examples = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    yield install(monkeypatch)
    mamba_ssm._found.cache_clear()


def test_it_is_found_where_it_is_installed():
    assert mamba_ssm.selective_scan_fn() is not None
    assert mamba_ssm.why_not() == ""


def test_a_build_without_its_cuda_extension_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    install(monkeypatch, selective_scan_cuda=None)
    assert mamba_ssm.selective_scan_fn() is None
    assert mamba_ssm.why_not() == "mamba-ssm is installed without its CUDA extension"


def test_a_package_that_fails_to_import_is_named_with_its_error(monkeypatch: pytest.MonkeyPatch):
    """As mamba-ssm before 2.3 beside transformers 5, of which it wants a class that is no longer there."""
    import builtins

    real = builtins.__import__

    def failing(name: str, *arguments: object, **options: object) -> object:
        if name == "mamba_ssm.ops":
            raise ImportError("cannot import name 'GreedySearchDecoderOnlyOutput'")
        return real(name, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", failing)
    mamba_ssm._found.cache_clear()
    assert mamba_ssm.selective_scan_fn() is None
    assert "installed but cannot be imported (ImportError: cannot import name 'Greedy" in mamba_ssm.why_not()


def test_a_machine_without_it_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mamba_ssm, "find_spec", lambda name: None)
    mamba_ssm._found.cache_clear()
    assert mamba_ssm.why_not() == "mamba-ssm is not installed"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    mamba_ssm._found.cache_clear()
    assert mamba_ssm.why_not() == "there is no CUDA device"


def gradients(case: Case, backend: str, weights: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    case = case.leaves()
    y, _ = scan.selective_scan(**case.arguments(), backend=backend)
    found = torch.autograd.grad(y, list(case.inputs.values()), weights.to(y), allow_unused=True)
    zeros = (torch.zeros_like(t) if g is None else g for t, g in zip(case.inputs.values(), found, strict=True))
    return y.detach(), dict(zip(case.inputs, zeros, strict=True))


@examples
@given(case=scans(30), seed=st.integers(0, 1000))
def test_every_gradient_equals_float64_autograd_of_the_definition(kernel: Kernel, case: Case, seed: int):
    """With and without gate, bias and saved states, forked rows, ragged lengths."""
    weights = torch.randn(case.inputs["x"].shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y, expected = gradients(case, "reference", weights)
    _, terms = gradients(positive(case), "reference", weights.abs())
    before = len(kernel.dtypes)
    found_y, found = gradients(case.to(torch.float32), "mamba_ssm", weights)
    assert len(kernel.dtypes) == before + 1, "the kernel was called"
    assert error(found_y, y, *sizes([gradients(positive(case), "reference", weights)[0]])) < 5e-6
    for name in expected:
        assert error(found[name], expected[name], *sizes([terms[name]])) < 5e-6, name


@examples
@given(case=scans(12), junk=st.sampled_from([float("nan"), float("inf"), 1e30]))
def test_no_gradient_passes_through_padding_whatever_it_holds(case: Case, junk: float):
    case = case.to(torch.float32)
    pad = ~case.valid()
    soiled = replace(case, inputs={
        n: t.masked_fill(pad[..., None], junk) if n in ("x", "dt", "B", "C", "z") else t for n, t in case.inputs.items()
    })  # fmt: skip
    weights = torch.ones(case.inputs["x"].shape)
    y, clean = gradients(case, "mamba_ssm", weights)
    soiled_y, found = gradients(soiled, "mamba_ssm", weights)
    assert torch.equal(soiled_y, y)
    for name, gradient in found.items():
        assert torch.equal(gradient, clean[name]), name
        if name in ("x", "dt", "B", "C", "z"):
            assert not gradient[pad].any(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@examples
@given(case=scans(8), everything=st.booleans())
def test_the_kernel_gets_the_precisions_that_it_takes(kernel: Kernel, dtype: torch.dtype, case: Case, everything: bool):
    """All of a layer's inputs in x's precision, A, D and the bias in float32, whatever a caller mixes."""
    names = set(case.inputs) - {"state"} if everything else {"x"}
    mixed = replace(case, inputs={n: t.to(dtype if n in names else torch.float32) for n, t in case.inputs.items()})
    y, found = gradients(mixed, "mamba_ssm", torch.ones(case.inputs["x"].shape))
    assert kernel.dtypes[-1] == y.dtype == dtype
    assert all(found[name].dtype == tensor.dtype for name, tensor in mixed.inputs.items())
