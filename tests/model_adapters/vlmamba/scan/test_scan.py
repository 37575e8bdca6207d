"""Every backend against the float64 definition, and the promises about states, forks and padding.

Run with TRITON_INTERPRET=1 these are the tests of the Triton kernels: `test_triton.py` does that.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.model_adapters.vlmamba.scan.cases import Case, convolutions, error, positive, scans, sizes
from vlmamba_eval.model_adapters.vlmamba import scan
from vlmamba_eval.model_adapters.vlmamba.scan import Layout, autograd, eager, mamba_ssm, reference
from vlmamba_eval.types import UsageError

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["triton"] if INTERPRETED else ["eager", "numba", "autograd", "mamba_ssm"]
TOLERANCE = {"eager": 1e-6, "numba": 1e-6, "autograd": 1e-6, "mamba_ssm": 5e-6, "triton": 5e-6}

examples = settings(
    max_examples=8 if INTERPRETED else 40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LONGEST = 20 if INTERPRETED else 40  # tokens; the interpreter takes milliseconds for each
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def authors_kernel_stands_in(monkeypatch: pytest.MonkeyPatch):
    """The semantics of mamba-ssm's `selective_scan_fn`: channels before time, no initial state, no lengths."""

    def selective_scan_fn(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None = None,
        delta_bias: Tensor | None = None, delta_softplus: bool = False, return_last_state: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        assert delta_softplus
        assert return_last_state
        y, h = reference.selective_scan(
            u.mT, delta.mT, A.mT, B.mT, C.mT, D, None if z is None else z.mT, dt_bias=delta_bias
        )
        return y.mT, h.mT

    monkeypatch.setattr(mamba_ssm, "selective_scan_fn", lambda: selective_scan_fn)


def run_scan(case: Case, backend: str, **more: Any) -> tuple[Tensor, Tensor]:
    return scan.selective_scan(**case.arguments(), backend=backend, **more)


def run_conv(case: Case, backend: str, **more: Any) -> tuple[Tensor, Tensor]:
    return scan.causal_conv(**case.arguments(), backend=backend, **more)


# =============================================================================
# The numbers
# =============================================================================


@each_backend
@examples
@given(case=scans(LONGEST))
def test_the_scan_equals_the_float64_definition(backend: str, case: Case):
    y, state = run_scan(case, "reference")
    found_y, found_state = run_scan(case.to(torch.float32), backend)
    size, state_size = sizes(run_scan(positive(case), "reference"))
    assert error(found_y, y, size) < TOLERANCE[backend]
    assert error(found_state, state, state_size) < TOLERANCE[backend]


@each_backend
@examples
@given(case=convolutions())
def test_the_convolution_equals_the_float64_definition(backend: str, case: Case):
    y, tail = run_conv(case, "reference")
    found_y, found_tail = run_conv(case.to(torch.float32), backend)
    assert error(found_y, y, sizes(run_conv(positive(case), "reference"))[0]) < TOLERANCE[backend]
    assert torch.equal(found_tail.double(), tail)  # a tail is a copy of inputs


@each_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@settings(examples, max_examples=8)
@given(case=scans(12))
def test_half_precision_inputs_are_computed_in_float32(backend: str, dtype: torch.dtype, case: Case):
    if backend == "mamba_ssm":
        pytest.skip("their kernel decides")
    small = replace(case, inputs={n: t.to(dtype if n in ("x", "dt", "B", "C", "z") else torch.float32)
                                  for n, t in case.inputs.items()})  # fmt: skip
    y, state = run_scan(small.to(torch.float64), "reference")
    found_y, found_state = run_scan(small, backend)
    assert found_y.dtype == dtype
    assert found_state.dtype == torch.float32
    size, state_size = sizes(run_scan(positive(small.to(torch.float64)), "reference"))
    assert error(found_state, state, state_size) < TOLERANCE[backend]
    # One unit in the last place: Triton's interpreter truncates where the hardware rounds.
    assert error(found_y, y, size) < (2**-7 if dtype == torch.bfloat16 else 2**-10)


@each_backend
def test_the_convolutions_tail_keeps_the_precision_of_the_inputs(backend: str):
    x = torch.randn(2, 5, 6).bfloat16()
    y, tail = scan.causal_conv(x, torch.randn(6, 4), None, backend=backend)
    assert y.dtype == tail.dtype == torch.bfloat16
    assert torch.equal(tail, x[:, 2:])
    expected, _ = scan.causal_conv(x, torch.zeros(6, 4), None, backend=backend)
    assert not expected.any()


@pytest.mark.skipif(INTERPRETED, reason="compares the definition")
def test_the_definition_equals_the_transformers_library():
    """Zero state, no padding: all that transformers can do in one call."""
    from transformers.models.mamba import modeling_mamba

    g = torch.Generator().manual_seed(0)
    b, length, d, n = 2, 13, 24, 16
    x, dt, z = (torch.randn(b, length, d, generator=g) for _ in range(3))
    B, C = (torch.randn(b, length, n, generator=g) for _ in range(2))
    A, D, bias = -torch.rand(n, d, generator=g) * 16, torch.randn(d, generator=g), torch.randn(d, generator=g)
    theirs, their_state = modeling_mamba.mamba_selective_scan(
        x.mT, dt.mT, A.mT.contiguous(), B.mT, C.mT, D, z.mT, bias, delta_softplus=True, return_last_state=True
    )
    ours, state = scan.selective_scan(x, dt, A, B, C, D, z, dt_bias=bias, backend="reference")
    assert error(ours, theirs.mT) < 1e-6
    assert error(state, their_state.mT) < 1e-6

    weight = torch.randn(d, 4, generator=g)
    theirs = modeling_mamba.causal_conv1d_fn(x.mT, weight, bias, activation="silu")
    ours, _ = scan.causal_conv(x, weight, bias, backend="reference")
    assert error(ours, theirs.mT) < 1e-6


# =============================================================================
# States
# =============================================================================


@each_backend
@examples
@given(case=scans(LONGEST), data=st.data())
def test_a_scan_continued_in_chunks_equals_the_whole(backend: str, case: Case, data: st.DataObject):
    y, state = run_scan(case, "reference")
    cut = data.draw(st.integers(0, case.length))
    case = case.to(torch.float32)
    first, middle = run_scan(case.tokens(0, cut), backend)
    rest = case.tokens(cut, case.length)
    second, last = run_scan(Case({**rest.inputs, "state": middle}, None, rest.lengths), backend)
    size, state_size = sizes(run_scan(positive(case), "reference"))
    assert error(torch.cat([first, second], 1), y, size) < TOLERANCE[backend]
    assert error(last, state, state_size) < TOLERANCE[backend]


@each_backend
@examples
@given(case=convolutions(), data=st.data())
def test_a_convolution_continued_in_chunks_equals_the_whole(backend: str, case: Case, data: st.DataObject):
    y, tail = run_conv(case, "reference")
    cut = data.draw(st.integers(0, case.length))
    case = case.to(torch.float32)
    first, middle = run_conv(case.tokens(0, cut), backend)
    rest = case.tokens(cut, case.length)
    second, last = run_conv(Case({**rest.inputs, "tail": middle}, None, rest.lengths), backend)
    assert error(torch.cat([first, second], 1), y, sizes(run_conv(positive(case), "reference"))[0]) < TOLERANCE[backend]
    assert torch.equal(last.double(), tail)


@each_backend
@examples
@given(case=scans(LONGEST), junk=st.sampled_from([float("nan"), float("inf"), 1e30, 0.0]))
def test_padding_never_enters_a_state(backend: str, case: Case, junk: float):
    case = case.to(torch.float32)
    pad = ~case.valid()
    soiled = replace(case, inputs={
        n: t.masked_fill(pad[..., None], junk) if n in ("x", "dt", "B", "C", "z") else t for n, t in case.inputs.items()
    })  # fmt: skip
    y, state = run_scan(case, backend)
    soiled_y, soiled_state = run_scan(soiled, backend)
    assert torch.equal(soiled_state, state)
    assert torch.equal(soiled_y, y)
    assert not y[pad].any()


@each_backend
@examples
@given(case=convolutions(), junk=st.sampled_from([float("nan"), float("inf"), 1e30, 0.0]))
def test_padding_never_enters_a_tail(backend: str, case: Case, junk: float):
    case = case.to(torch.float32)
    pad = ~case.valid()
    soiled = replace(case, inputs={**case.inputs, "x": case.inputs["x"].masked_fill(pad[..., None], junk)})
    y, tail = run_conv(case, backend)
    soiled_y, soiled_tail = run_conv(soiled, backend)
    assert torch.equal(soiled_tail, tail)
    assert torch.equal(soiled_y, y)
    assert not y[pad].any()


@each_backend
@examples
@given(case=scans(12))
def test_a_padded_row_ends_in_the_state_of_the_row_alone(backend: str, case: Case):
    """Bit for bit if channels fill the CPU's vectors, as in every model; the authors' kernel chooses its blocks."""
    case = case.to(torch.float32)
    _, state = run_scan(case, backend)
    n, d = case.inputs["A"].shape
    starts = reference.initial(case.inputs.get("state"), case.rows, case.b, (n, d), torch.float32, state.device)
    for i, count in enumerate(case.valid().sum(1).tolist()):
        alone = {n: t[i : i + 1, :count] if n in ("x", "dt", "B", "C", "z") else t for n, t in case.inputs.items()}
        _, expected = run_scan(Case({**alone, "state": starts[i : i + 1].contiguous()}, None, None), backend)
        if backend == "mamba_ssm" or state.shape[2] % 16:
            assert error(state[i], expected[0]) < TOLERANCE[backend]
        else:
            assert torch.equal(state[i], expected[0])
        if count == 0:
            assert torch.equal(state[i], starts[i])


@each_backend
@examples
@given(case=scans(12))
def test_saved_states_are_never_changed(backend: str, case: Case):
    case = case.to(torch.float32)
    before = {n: t.clone() for n, t in case.inputs.items()}
    _, state = run_scan(case, backend)
    state.fill_(7.0)  # the new states are the caller's
    assert all(torch.equal(t, before[n]) for n, t in case.inputs.items())


@each_backend
@examples
@given(case=convolutions())
def test_saved_tails_are_never_changed(backend: str, case: Case):
    case = case.to(torch.float32)
    before = {n: t.clone() for n, t in case.inputs.items()}
    _, tail = run_conv(case, backend)
    tail.fill_(7.0)
    assert all(torch.equal(t, before[n]) for n, t in case.inputs.items())


@each_backend
def test_rows_forked_from_one_state_equal_copies_of_it(backend: str):
    g = torch.Generator().manual_seed(3)
    x, dt = (torch.randn(5, 6, 40, generator=g) for _ in range(2))
    B, C = (torch.randn(5, 6, 4, generator=g) for _ in range(2))
    A, D, states = -torch.rand(4, 40, generator=g), torch.randn(40, generator=g), torch.randn(2, 4, 40, generator=g)
    rows = torch.tensor([1, 1, -1, 0, 1])
    copies = torch.stack([states[1], states[1], torch.zeros(4, 40), states[0], states[1]])
    forked = scan.selective_scan(x, dt, A, B, C, D, state=states, layout=Layout(rows), backend=backend)
    copied = scan.selective_scan(x, dt, A, B, C, D, state=copies, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(forked, copied, strict=True))


@each_backend
@examples
@given(case=scans(1))
def test_a_step_writes_the_new_state_where_it_is_told(backend: str, case: Case):
    case = case.to(torch.float32)
    y, state = run_scan(case, backend)
    home = torch.full_like(state, float("nan"))
    found_y, found = scan.selective_step(**case.arguments(), out=home, backend=backend)
    assert found is home
    assert torch.equal(home, state)
    assert torch.equal(found_y, y)


@each_backend
def test_steps_over_static_buffers_equal_one_scan(backend: str):
    """The decode loop: convolution tail and state are updated in place, one row has finished."""
    g = torch.Generator().manual_seed(4)
    b, length, d, n = 3, 6, 70, 16
    x, dt, z = (torch.randn(b, length, d, generator=g) for _ in range(3))
    B, C = (torch.randn(b, length, n, generator=g) for _ in range(2))
    A, D = -torch.rand(n, d, generator=g), torch.randn(d, generator=g)
    weight, bias = torch.randn(d, 4, generator=g), torch.randn(d, generator=g)
    state, tail = torch.randn(b, n, d, generator=g), torch.randn(b, 3, d, generator=g)
    lengths = torch.tensor([length, 2, length])
    u, last_tail = scan.causal_conv(x, weight, bias, tail=tail, layout=Layout(lengths=lengths), backend=backend)
    y, last = scan.selective_scan(u, dt, A, B, C, D, z, state=state, layout=Layout(lengths=lengths), backend=backend)

    home, tail_home = state.clone(), tail.clone()
    for t in range(length):
        now = slice(t, t + 1)
        left = Layout(lengths=(lengths - t).clamp(0, 1))
        u, _ = scan.causal_conv_step(
            x[:, now], weight, bias, tail=tail_home, layout=left, out=tail_home, backend=backend
        )
        step, _ = scan.selective_step(
            u, dt[:, now], A, B[:, now], C[:, now], D, z[:, now], state=home, layout=left, out=home, backend=backend
        )
        assert error(step, y[:, now]) < 1e-6
    assert error(home, last) < 1e-6
    assert torch.equal(tail_home, last_tail)


# =============================================================================
# Packed rows
# =============================================================================


def packed(case: Case) -> tuple[dict[str, Any], Tensor]:
    """The arguments of a case without its padding, and where its valid tokens are among the padded ones [b, l]."""
    valid = case.valid()
    tokens = {name: t[valid][None] for name, t in case.inputs.items() if name in ("x", "dt", "B", "C", "z")}
    lengths = valid.sum(1)
    return {**case.arguments(), **tokens, "layout": Layout(case.rows, lengths, lengths.cumsum(0) - lengths)}, valid


@pytest.mark.skipif(INTERPRETED, reason="not the Triton backend's")
@examples
@given(case=scans(LONGEST), conv=convolutions())
def test_packed_rows_give_what_padded_rows_give_to_the_last_bit(case: Case, conv: Case):
    for case_, run, packed_run in (
        (case.to(torch.float32), run_scan, scan.selective_scan),
        (conv.to(torch.float32), run_conv, scan.causal_conv),
    ):
        arguments, valid = packed(case_)
        y, state = run(case_, "numba")
        found, found_state = packed_run(**arguments, backend="numba")
        assert torch.equal(found[0], y[valid])
        assert torch.equal(found_state, state)


@pytest.mark.skipif(INTERPRETED, reason="not the Triton backend's")
def test_a_backend_without_packed_rows_says_which_one_takes_them():
    arguments, _ = packed(_small(torch.float32))
    with pytest.raises(UsageError, match="the eager scan backend takes padded rows, not packed ones: take numba"):
        scan.selective_scan(**arguments, backend="eager")
    with pytest.raises(ValueError, match="packed rows are"):
        scan.selective_scan(**{**arguments, "layout": replace(arguments["layout"], lengths=None)}, backend="numba")


@pytest.mark.skipif(INTERPRETED, reason="eager")
def test_numba_leaves_the_number_of_threads_alone():
    code = "import torch; torch.set_num_threads(1); from vlmamba_eval.model_adapters.vlmamba import scan; "
    code += "scan.causal_conv(torch.zeros(1, 2, 3), torch.zeros(3, 4), None, backend='numba'); "
    code += "assert torch.get_num_threads() == 1, torch.get_num_threads()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(INTERPRETED, reason="eager")
@pytest.mark.filterwarnings("ignore:\\nThe keyword argument")  # there is nothing parallel in it
def test_a_kernel_that_cannot_be_kept_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch):
    from vlmamba_eval.model_adapters.vlmamba.scan import numba

    compile_kernel = numba.njit

    def nowhere_to_write(cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_kernel(**options)

    monkeypatch.setattr(numba, "njit", nowhere_to_write)
    assert numba._kernel(lambda x: 2 * x)(21) == 42


# =============================================================================
# Gradients
# =============================================================================

ENGINES = ["triton"] if INTERPRETED else ["eager"]


def engine(name: str) -> ModuleType:
    if name == "triton":
        from vlmamba_eval.model_adapters.vlmamba.scan import triton

        return triton
    return eager


def gradients(run: Any, case: Case, backend: str, weights: list[Tensor]) -> dict[str, Tensor]:
    """Of the weighted sum of all outputs, by the name of the input."""
    case = case.leaves()
    outputs = run(case, backend)
    weights = [w.to(o) for w, o in zip(weights, outputs, strict=True)]
    found = torch.autograd.grad(outputs, list(case.inputs.values()), weights)
    return dict(zip(case.inputs, found, strict=True))


def check_gradients(run: Any, case: Case, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    weights = [torch.randn(o.shape, generator=g) for o in run(case, "reference")]
    expected = gradients(run, case, "reference", weights)
    terms = gradients(run, positive(case), "reference", [w.abs() for w in weights])
    for name, found in gradients(run, case.to(torch.float32), "autograd", weights).items():
        assert error(found, expected[name], *sizes([terms[name]])) < 5e-6, name


@pytest.mark.parametrize("name", ENGINES)
@settings(examples, max_examples=6 if INTERPRETED else 25)
@given(case=scans(35), seed=st.integers(0, 1000))
def test_gradients_of_the_scan_equal_autograd_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, name: str, case: Case, seed: int
):
    monkeypatch.setattr(autograd, "kernels_for", lambda device: engine(name))
    check_gradients(run_scan, case, seed)


@pytest.mark.parametrize("name", ENGINES)
@settings(examples, max_examples=6 if INTERPRETED else 25)
@given(case=convolutions(), seed=st.integers(0, 1000))
def test_gradients_of_the_convolution_equal_autograd_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, name: str, case: Case, seed: int
):
    monkeypatch.setattr(autograd, "kernels_for", lambda device: engine(name))
    check_gradients(run_conv, case, seed)


@pytest.mark.skipif(INTERPRETED, reason="float64 is for the eager backend")
@settings(examples, max_examples=15)
@given(case=scans(35))
def test_the_handwritten_backward_is_exact_in_float64(case: Case):
    weights = [torch.ones(o.shape) for o in run_scan(case, "reference")]
    expected = gradients(run_scan, case, "reference", weights)
    terms = gradients(run_scan, positive(case), "reference", weights)
    for name, found in gradients(run_scan, case, "autograd", weights).items():
        assert error(found, expected[name], *sizes([terms[name]])) < 1e-14, name


@pytest.mark.skipif(INTERPRETED, reason="float64 is for the eager backend")
def test_gradcheck_agrees():
    g = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    A = (-torch.rand(2, 3, generator=g, dtype=torch.float64) - 0.1).requires_grad_()
    inputs = (normal(3, 5, 3), normal(3, 5, 3), A, normal(3, 5, 2), normal(3, 5, 2), normal(3), normal(3, 5, 3))
    layout = Layout(torch.tensor([1, -1, 1]), torch.tensor([5, 0, 3]))

    def run(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor, state: Tensor):
        return scan.selective_scan(x, dt, A, B, C, D, z, dt_bias=bias, state=state, layout=layout, backend="autograd")

    assert torch.autograd.gradcheck(run, (*inputs, normal(3), normal(2, 2, 3)))


@pytest.mark.skipif(INTERPRETED, reason="eager")
@settings(examples, max_examples=15)
@given(case=scans(20))
def test_the_authors_kernel_gives_gradients_through_its_outputs(case: Case):
    def outputs(case: Case, backend: str) -> list[Tensor]:
        y, state = run_scan(case, backend)
        assert backend == "reference" or not state.requires_grad
        return [y]

    weights = [torch.ones(case.inputs["x"].shape)]
    expected = gradients(outputs, case, "reference", weights)
    terms = gradients(outputs, positive(case), "reference", weights)
    for name, found in gradients(outputs, case.to(torch.float32), "mamba_ssm", weights).items():
        assert error(found, expected[name], *sizes([terms[name]])) < 5e-6, name


@pytest.mark.skipif(INTERPRETED, reason="eager")
def test_training_keeps_no_tensor_of_tokens_times_states_times_channels():
    b, length, d, n = 2, 64, 8, 16
    x, dt, z = (torch.randn(b, length, d, requires_grad=True) for _ in range(3))
    B, C = (torch.randn(b, length, n, requires_grad=True) for _ in range(2))
    A, D = -torch.rand(n, d), torch.randn(d)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        scan.selective_scan(x, dt, A, B, C, D, z)
    assert max(kept) <= b * length * max(d, n)  # the states kept are those before every 16th token


@pytest.mark.skipif(INTERPRETED, reason="eager")
def test_autocast_does_not_reach_into_the_scan():
    case = _small(torch.float32).leaves()
    y, state = run_scan(case, "autograd")
    with torch.autocast("cpu", torch.bfloat16):
        cast_y, cast_state = run_scan(case, "autograd")
        assert torch.equal(run_scan(_small(torch.float32), "eager")[0], y)
    grads = torch.autograd.grad(y.sum() + state.sum(), list(case.inputs.values()))
    cast_grads = torch.autograd.grad(cast_y.sum() + cast_state.sum(), list(case.inputs.values()))
    assert torch.equal(cast_y, y)
    assert all(torch.equal(a, b) for a, b in zip(grads, cast_grads, strict=True))


# =============================================================================
# Choice and errors
# =============================================================================


def _small(dtype: torch.dtype) -> Case:
    g = torch.Generator().manual_seed(0)
    b, length, d, n = 2, 5, 6, 4
    inputs = {"x": (b, length, d), "dt": (b, length, d), "B": (b, length, n), "C": (b, length, n), "D": (d,)}
    tensors = {name: torch.randn(*shape, generator=g, dtype=dtype) for name, shape in inputs.items()}
    return Case({**tensors, "A": -torch.rand(n, d, generator=g, dtype=dtype)}, None, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_a_cpu_takes_its_own_backends_and_never_imports_mamba_ssm():
    assert scan.choose_backend("cpu") == ("numba" if sys.platform == "linux" else "eager")
    assert scan.choose_backend(torch.device("cpu"), requires_grad=True) == "autograd"
    assert "mamba_ssm" not in sys.modules


def test_a_gpu_takes_the_kernels_that_are_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scan, "find_spec", lambda name: object())
    assert scan.choose_backend("cuda") == "triton"
    assert scan.choose_backend("cuda", requires_grad=True) == "autograd"
    monkeypatch.setattr(scan, "find_spec", lambda name: None)
    assert scan.choose_backend("cuda") == "mamba_ssm"  # the stand-in is installed
    assert scan.choose_backend("cuda", requires_grad=True) == "mamba_ssm"
    monkeypatch.setattr(mamba_ssm, "selective_scan_fn", lambda: None)
    assert scan.choose_backend("cuda") == "eager"
    assert scan.choose_backend("cuda", requires_grad=True) == "autograd"


def test_every_backend_has_its_line():
    assert set(scan.BACKENDS) == {"reference", "eager", "numba", "autograd", "triton", "mamba_ssm"}


def test_an_unknown_backend_names_those_there_are():
    with pytest.raises(UsageError, match="'cuda': there are reference, eager"):
        run_scan(_small(torch.float32), "cuda")


@pytest.mark.skipif(INTERPRETED, reason="eager")
@pytest.mark.parametrize("backend", ["eager", "numba"])
def test_a_backend_without_gradients_refuses_to_lose_them(backend: str):
    case = _small(torch.float32).leaves()
    with pytest.raises(UsageError, match="no gradients"):
        run_scan(case, backend)
    with torch.no_grad():
        run_scan(case, backend)


@pytest.mark.skipif(INTERPRETED, reason="eager")
def test_float64_is_not_narrowed_unasked():
    case = _small(torch.float64)
    with pytest.raises(UsageError, match="for float64 take eager or reference"):
        run_scan(case, "numba")
    assert error(run_scan(case, "auto")[0], run_scan(case, "reference")[0]) < 1e-14


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="a machine without a GPU")
@pytest.mark.parametrize("backend", ["triton", "mamba_ssm"])
def test_a_gpu_backend_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, backend: str):
    monkeypatch.setattr(mamba_ssm, "selective_scan_fn", lambda: None)
    with pytest.raises(UsageError, match="needs"):
        run_scan(_small(torch.float32), backend)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dt": torch.zeros(2, 5, 7)}, r"dt must have the shape \[2, 5, 6\], not \[2, 5, 7\]"),
        ({"B": torch.zeros(2, 5, 3)}, r"B must have the shape \[2, 5, 4\]"),
        ({"A": torch.zeros(6, 4)}, r"A must have the shape \[any, 6\], not \[6, 4\]"),
        ({"state": torch.zeros(3, 4, 6)}, "3 states for 2 rows"),
        ({"state": torch.zeros(2, 6, 4)}, r"state must have the shape \[any, 4, 6\]"),
        ({"layout": Layout(torch.zeros(2, dtype=torch.long))}, "there is no state"),
        ({"layout": Layout(lengths=torch.zeros(3, dtype=torch.long))}, r"lengths must have the shape \[2\]"),
    ],
)
def test_wrong_shapes_are_named(change: dict[str, Tensor], message: str):
    with pytest.raises(ValueError, match=message):
        scan.selective_scan(**{**_small(torch.float32).arguments(), **change})


def test_a_step_takes_one_token_and_never_writes_over_a_state_that_others_read():
    case = _small(torch.float32)
    with pytest.raises(ValueError, match="one token per row, not 5"):
        scan.selective_step(**case.arguments())
    one = case.tokens(0, 1)
    states = torch.zeros(2, 4, 6)
    arguments = {**one.arguments(), "state": states, "layout": Layout(torch.tensor([0, 0]))}
    with pytest.raises(ValueError, match="another row may still read"):
        scan.selective_step(**arguments, out=states)
    shared = torch.zeros(1, 4, 6)
    with pytest.raises(ValueError, match="which rows share"):
        scan.selective_step(**{**one.arguments(), "state": shared}, out=shared.expand(2, 4, 6))


# =============================================================================
# The kernels' own ways
# =============================================================================


@pytest.mark.skipif(not INTERPRETED, reason="the Triton kernels")
@settings(examples, max_examples=6)
@given(case=scans(60), segments=st.integers(2, 4))
def test_time_cut_into_segments_gives_the_same_scan(case: Case, segments: int):
    from vlmamba_eval.model_adapters.vlmamba.scan import triton

    y, state = run_scan(case, "reference")
    found_y, found_state = triton.selective_scan(**case.to(torch.float32).arguments(), segments=segments)
    size, state_size = sizes(run_scan(positive(case), "reference"))
    assert error(found_y, y, size) < 5e-6
    assert error(found_state, state, state_size) < 5e-6


@pytest.mark.skipif(not INTERPRETED, reason="the Triton kernels")
def test_the_backward_pass_goes_by_groups_of_rows_where_memory_is_short(monkeypatch: pytest.MonkeyPatch):
    from vlmamba_eval.model_adapters.vlmamba.scan import triton

    monkeypatch.setattr(autograd, "kernels_for", lambda device: triton)
    case = _small(torch.float32).leaves()
    whole = torch.autograd.grad(run_scan(case, "autograd")[0].sum(), list(case.inputs.values()))
    monkeypatch.setattr(triton, "_PARTIAL_SUMS", 1)
    grouped = torch.autograd.grad(run_scan(case, "autograd")[0].sum(), list(case.inputs.values()))
    assert all(torch.equal(a, b) for a, b in zip(whole, grouped, strict=True))
