"""The Mamba-2 block against transformers', whose parameters have the same names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.mamba2 import Mamba2Mixer
from vlmamba_eval.model_adapters.vlmamba.scan import Layout


@pytest.fixture(scope="module", params=[1, 2], ids=["one group", "two groups"])
def pair(request: pytest.FixtureRequest):
    """Ours and theirs with the same random parameters."""
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as Theirs

    torch.manual_seed(request.param)
    ours = Mamba2Mixer(32, d_state=16, headdim=8, ngroups=request.param)
    config = Mamba2Config(
        hidden_size=32, state_size=16, head_dim=8, num_heads=8, n_groups=request.param, chunk_size=16,
        num_hidden_layers=1, vocab_size=8,
    )  # fmt: skip
    theirs = Theirs(config, layer_idx=0).eval()
    with torch.no_grad():
        for name in ("D", "norm.weight", "conv1d.bias"):
            ours.get_parameter(name).add_(0.3 * torch.randn_like(ours.get_parameter(name)))
    theirs.load_state_dict(ours.state_dict())
    return ours.requires_grad_(False), theirs.requires_grad_(False)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def test_a_block_reads_as_transformers_does(pair: tuple[Mamba2Mixer, torch.nn.Module]):
    ours, theirs = pair
    u = torch.randn(2, 70, 32)
    y, _, _ = ours(u)
    assert relative(y, theirs(u)) < 1e-5


def test_a_block_continues_and_steps_as_transformers_does(pair: tuple[Mamba2Mixer, torch.nn.Module]):
    """Rows of other lengths, forked from one prefix, then single steps: each row as it would be alone."""
    ours, theirs = pair
    prefix, more = torch.randn(1, 21, 32), torch.randn(3, 9, 32)
    lengths = torch.tensor([9, 2, 5])
    _, tail, state = ours(prefix)
    y, tails, states = ours(more, tail, state, Layout(torch.tensor([0, -1, 0]), lengths))
    last = torch.randn(3, 2, 32)
    steps = torch.stack([ours.step(last[:, t], tails, states) for t in range(2)], 1)
    for i, length in enumerate(lengths.tolist()):
        start = prefix if i != 1 else prefix[:, :0]
        whole = theirs(torch.cat([start, more[i : i + 1, :length], last[i : i + 1]], 1))
        assert relative(y[i, :length], whole[0, start.shape[1] : -2]) < 1e-5
        assert relative(steps[i], whole[0, -2:]) < 1e-5


def test_packed_rows_are_read_as_padded_ones(pair: tuple[Mamba2Mixer, torch.nn.Module]):
    ours, _ = pair
    more, lengths = torch.randn(3, 9, 32), torch.tensor([9, 2, 5])
    y, tails, states = ours(more, layout=Layout(lengths=lengths))
    packed = torch.cat([more[i, :length] for i, length in enumerate(lengths)])[None]
    found, found_tails, found_states = ours(packed, layout=Layout(None, lengths, torch.tensor([0, 9, 11])))
    assert torch.equal(found_tails, tails)
    assert torch.allclose(found_states, states, atol=1e-6)
    assert torch.allclose(found[0, 9:11], y[1, :2], atol=1e-6)


def test_a_prepared_block_gives_the_same(pair: tuple[Mamba2Mixer, torch.nn.Module]):
    ours, _ = pair
    u = torch.randn(2, 12, 32)
    expected, _, _ = ours(u)
    packed = Mamba2Mixer(32, d_state=16, headdim=8, ngroups=ours.ngroups).requires_grad_(False)
    packed.load_state_dict(ours.state_dict())
    packed.prepare_for_inference()
    assert relative(packed(u)[0], expected) < 1e-5


def test_channels_that_are_no_whole_heads_are_refused():
    with pytest.raises(ValueError, match="64 channels are no heads of 24 in 1 equal groups"):
        Mamba2Mixer(32, headdim=24)


def test_nothing_goes_over_a_gap_between_examples(pair: tuple[Mamba2Mixer, torch.nn.Module]):
    """Two examples in one row, three empty places between them: each is read as if it were alone, gradients too."""
    ours, _ = pair
    first, second = torch.randn(1, 70, 32), torch.randn(1, 40, 32)
    row = torch.cat([first, torch.randn(1, 3, 32), second], 1)
    gaps = torch.zeros(1, 113, dtype=torch.bool)
    gaps[:, 70:73] = True
    row.requires_grad_()
    y, _, _ = ours(row, gaps=gaps)
    assert relative(y[:, :70], ours(first)[0]) < 1e-5
    assert relative(y[:, 73:], ours(second)[0]) < 1e-5
    [gradient] = torch.autograd.grad(y[:, 73:].square().sum(), row)
    # What is left before the gap is rounding: sums over a chunk that cancel.
    assert gradient[:, :73].abs().max() < 1e-6 * gradient[:, 73:].abs().max()
