"""Every backend of Mamba-2's scan against the float64 recurrence, and the promises about states, forks and padding.

Run with TRITON_INTERPRET=1 these are the tests of the Triton kernels: `test_triton.py` does that.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.model_adapters.vlmamba.scan.cases import error, sizes
from tests.model_adapters.vlmamba.ssd.cases import PER_TOKEN, Case, duals, positive
from vlmamba_eval.model_adapters.vlmamba import ssd
from vlmamba_eval.model_adapters.vlmamba.scan import Layout
from vlmamba_eval.types import UsageError

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["triton"] if INTERPRETED else ["chunked"]
TOLERANCE = {"chunked": 3e-6, "triton": 6e-6}
LONGEST = 80 if INTERPRETED else 150  # tokens: more than one chunk

examples = settings(
    max_examples=6 if INTERPRETED else 25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(case: Case, backend: str, **more: Any) -> tuple[Tensor, Tensor]:
    return ssd.state_space_dual(**(case.arguments() | more), backend=backend)


# =============================================================================
# The numbers
# =============================================================================


@each_backend
@examples
@given(case=duals(LONGEST))
def test_the_scan_equals_the_float64_recurrence(backend: str, case: Case):
    y, state = run(case, "reference")
    found_y, found_state = run(case.to(torch.float32), backend)
    size, state_size = sizes(run(positive(case), "reference"))
    assert found_state.dtype == torch.float32
    assert error(found_y, y, size) < TOLERANCE[backend]
    assert error(found_state, state, state_size) < TOLERANCE[backend]


@each_backend
@settings(examples, max_examples=6)
@given(case=duals(40))
def test_half_precision_inputs_keep_a_float32_state(backend: str, case: Case):
    small = replace(case, inputs={n: t.bfloat16() if n in PER_TOKEN else t.float() for n, t in case.inputs.items()})
    y, state = run(small.to(torch.float64), "reference")
    found_y, found_state = run(small, backend)
    assert found_y.dtype == torch.bfloat16
    assert found_state.dtype == torch.float32
    size, state_size = sizes(run(positive(small.to(torch.float64)), "reference"))
    assert error(found_y, y, size) < 2**-6
    assert error(found_state, state, state_size) < 2**-6


@pytest.mark.skipif(INTERPRETED, reason="compares the definition")
def test_the_definition_equals_the_transformers_library():
    """Also continued from a state, in two groups, with a clamp: all that transformers can do in one call."""
    from transformers.models.mamba2 import modeling_mamba2

    g = torch.Generator().manual_seed(0)
    b, length, h, p, groups, n = 2, 21, 4, 8, 2, 16
    x, dt = torch.randn(b, length, h, p, generator=g), torch.randn(b, length, h, generator=g)
    B, C = (torch.randn(b, length, groups, n, generator=g) for _ in range(2))
    A, D, bias = -torch.rand(h, generator=g) * 8, torch.randn(h, generator=g), torch.randn(h, generator=g)
    state = torch.randn(b, h, p, n, generator=g)
    theirs, their_state = modeling_mamba2.mamba2_chunk_scan(
        x, dt, A, B, C, chunk_size=8, D=D, dt_bias=bias, initial_states=state, dt_softplus=True,
        dt_limit=(0.1, 2.0), return_final_states=True,
    )  # fmt: skip
    ours, our_state = ssd.state_space_dual(
        x, dt, A, B, C, D, dt_bias=bias, dt_limit=(0.1, 2.0), state=state, backend="reference"
    )
    assert error(ours, theirs.view_as(ours)) < 1e-5
    assert error(our_state, their_state) < 1e-5


@pytest.mark.skipif(INTERPRETED, reason="the kernels have no gradients")
@settings(examples, max_examples=8)
@given(case=duals(70))
def test_gradients_of_the_chunked_form_are_those_of_the_recurrence(case: Case):
    gradients = []
    for backend in ("reference", "chunked"):
        leaves = {n: t.detach().clone().requires_grad_() for n, t in case.inputs.items()}
        y, state = ssd.state_space_dual(
            **leaves, layout=Layout(case.rows, case.lengths), dt_limit=case.limit, backend=backend
        )
        loss = (y * y).sum() + (state * state).sum()
        gradients.append(torch.autograd.grad(loss, list(leaves.values()), allow_unused=True))
    for name, want, have in zip(case.inputs, *gradients, strict=True):
        assert (want is None) == (have is None), name
        if want is not None and have is not None:
            # A's gradient is a sum over all tokens, in which much cancels: 1.04e-9 was seen.
            assert float((have - want).abs().max()) <= 1e-8 * max(1.0, float(want.abs().max())), name


# =============================================================================
# States
# =============================================================================


@each_backend
@examples
@given(case=duals(LONGEST), data=st.data())
def test_a_scan_continued_in_pieces_equals_the_whole(backend: str, case: Case, data: st.DataObject):
    y, state = run(case, "reference")
    cut = data.draw(st.integers(0, case.length))
    case = case.to(torch.float32)
    first, middle = run(case.tokens(0, cut), backend)
    rest = case.tokens(cut, case.length)
    second, last = run(replace(rest, inputs={**rest.inputs, "state": middle}, rows=None), backend)
    size, state_size = sizes(run(positive(case), "reference"))
    assert error(torch.cat([first, second], 1), y, size) < TOLERANCE[backend]
    assert error(last, state, state_size) < TOLERANCE[backend]


@each_backend
@examples
@given(case=duals(40), junk=st.sampled_from([float("nan"), float("inf"), 1e30, 0.0]))
def test_padding_never_enters_a_state(backend: str, case: Case, junk: float):
    case = case.to(torch.float32)
    pad = ~case.valid()
    soiled = {}
    for name, t in case.inputs.items():
        mask = pad.view(*pad.shape, *[1] * (t.ndim - 2))
        soiled[name] = t.masked_fill(mask, junk) if name in PER_TOKEN else t
    y, state = run(case, backend)
    soiled_y, soiled_state = run(replace(case, inputs=soiled), backend)
    assert torch.equal(soiled_state, state)
    assert torch.equal(soiled_y, y)
    assert not y[pad].any()


@each_backend
@examples
@given(case=duals(20))
def test_a_row_of_length_0_carries_its_state(backend: str, case: Case):
    case = replace(case.to(torch.float32), lengths=torch.zeros(case.b, dtype=torch.long))
    _, state = run(case, backend)
    start = case.inputs.get("state")
    if start is None:
        assert not state.any()
        return
    rows = case.rows if case.rows is not None else torch.arange(case.b) % len(start)
    for i, row in enumerate(rows.tolist()):
        assert torch.equal(state[i], start[row] if row >= 0 else torch.zeros_like(state[i]))


@each_backend
@examples
@given(case=duals(20))
def test_saved_states_are_never_changed(backend: str, case: Case):
    case = case.to(torch.float32)
    before = {n: t.clone() for n, t in case.inputs.items()}
    _, state = run(case, backend)
    state.fill_(7.0)  # the new states are the caller's
    assert all(torch.equal(t, before[n]) for n, t in case.inputs.items())


@each_backend
@examples
@given(case=duals(20), order=st.randoms(use_true_random=False))
def test_packed_rows_equal_padded_ones(backend: str, case: Case, order: Any):
    case = case.to(torch.float32)
    y, state = run(case, backend)
    lengths = case.valid().sum(1)
    places = list(range(case.b))
    order.shuffle(places)  # rows may lie in any order
    starts, packed, at = torch.zeros(case.b, dtype=torch.long), {n: [] for n in PER_TOKEN}, 0
    for i in places:
        starts[i] = at
        at += int(lengths[i])
        for name in PER_TOKEN:
            packed[name].append(case.inputs[name][i : i + 1, : lengths[i]])
    inputs = {**case.inputs, **{n: torch.cat(t, 1) for n, t in packed.items()}}
    found_y, found_state = run(replace(case, inputs=inputs), backend, layout=Layout(case.rows, lengths, starts))
    assert torch.allclose(found_state, state, rtol=1e-5, atol=1e-5)
    for i in range(case.b):
        row = found_y[0, starts[i] : starts[i] + lengths[i]]
        assert torch.allclose(row, y[i, : lengths[i]], rtol=1e-5, atol=1e-4)


@each_backend
@examples
@given(case=duals(6))
def test_steps_in_place_equal_the_scan(backend: str, case: Case):
    case = replace(case.to(torch.float32), rows=None)
    h, p, n = case.inputs["x"].shape[2], case.inputs["x"].shape[3], case.inputs["B"].shape[3]
    start = case.inputs.get("state", torch.zeros(1, h, p, n))
    state = start[:1].expand(case.b, -1, -1, -1).clone() if len(start) != case.b else start.clone()
    y, last = run(replace(case, inputs={**case.inputs, "state": state.clone()}), "reference")
    for t in range(case.length):
        now = case.tokens(t, t + 1)
        inputs = {k: v for k, v in now.inputs.items() if k != "state"}
        found, out = ssd.state_space_dual_step(
            **inputs, state=state, out=state, layout=Layout(lengths=now.lengths), dt_limit=case.limit, backend=backend
        )
        assert out is state
        assert torch.allclose(found[:, 0], y[:, t], rtol=1e-4, atol=1e-4)
    assert torch.allclose(state, last, rtol=1e-4, atol=1e-4)


# =============================================================================
# Misuse
# =============================================================================


def test_wrong_shapes_are_named():
    x, dt, A = torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 4), -torch.ones(4)
    B = torch.zeros(2, 3, 2, 16)
    with pytest.raises(ValueError, match=r"dt must have the shape \[2, 3, 4\]"):
        ssd.state_space_dual(x, dt[..., :3], A, B, B)
    with pytest.raises(ValueError, match="4 heads cannot be divided into 3 groups"):
        ssd.state_space_dual(x, dt, A, torch.zeros(2, 3, 3, 16), torch.zeros(2, 3, 3, 16))
    with pytest.raises(ValueError, match="3 states for 2 rows"):
        ssd.state_space_dual(x, dt, A, B, B, state=torch.zeros(3, 4, 8, 16))
    with pytest.raises(UsageError, match="there are reference, chunked, triton"):
        ssd.state_space_dual(x, dt, A, B, B, backend="fast")
    state = torch.zeros(2, 4, 8, 16)
    with pytest.raises(ValueError, match="with `sources`, out must not be the states"):
        ssd.state_space_dual_step(
            x[:, :1], dt[:, :1], A, B[:, :1], B[:, :1], state=state, out=state, layout=Layout(torch.tensor([0, 0]))
        )


# =============================================================================
# The gated norm
# =============================================================================


@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("alike", [True, False])
def test_the_gated_norm_equals_its_formula(gate_first: bool, alike: bool):
    g = torch.Generator().manual_seed(0)
    wide = torch.randn(3, 5, 70, generator=g)
    y, z, weight = torch.randn(3, 5, 60, generator=g), wide[..., 7:67], torch.randn(20 if alike else 60, generator=g)
    if INTERPRETED:
        from vlmamba_eval.model_adapters.vlmamba.ssd.triton import gated_norm
    else:
        from vlmamba_eval.model_adapters.vlmamba.ssd.gated_norm import gated_norm
    found = gated_norm(y, z, weight, 1e-5, gate_first=gate_first, dtype=torch.float32, width=20)
    for i in range(3):
        for t in range(5):
            for part in range(3):
                at = slice(part * 20, part * 20 + 20)
                v, gate = y[i, t, at].double(), z[i, t, at].double() * torch.sigmoid(z[i, t, at].double())
                v = v * gate if gate_first else v
                v = v / (v.pow(2).mean() + 1e-5).sqrt() * (weight if alike else weight[at]).double()
                v = v if gate_first else v * gate
                assert torch.allclose(found[i, t, at].double(), v, rtol=1e-5, atol=1e-6)
