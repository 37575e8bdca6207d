"""Mamba-1 against transformers' implementation, and the state against one full prefill."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from vlmamba_eval.model_adapters.vlmamba.config import LanguageModelConfig
from vlmamba_eval.model_adapters.vlmamba.language_model import (
    LanguageModel,
    State,
    config_from_published,
    name_of_published,
)
from vlmamba_eval.model_adapters.vlmamba.scan import Layout, choose_backend, takes_packed_rows
from vlmamba_eval.types import ModelError

SHAPES = [
    LanguageModelConfig(d_model=32, n_layer=2, vocab_size=61),
    LanguageModelConfig(d_model=48, n_layer=3, vocab_size=64, d_state=8, d_conv=3, expand=3),
    LanguageModelConfig(d_model=130, n_layer=1, vocab_size=17, d_conv=2, pad_vocab_size_multiple=1),
]


def perturbed(config: LanguageModelConfig, seed: int = 0) -> LanguageModel:
    """A model in which nothing stands at its initial constant."""
    torch.manual_seed(seed)
    model = LanguageModel(config)
    model.reset_parameters()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("proj.weight"):
                parameter += 0.2 * torch.randn_like(parameter)
    return model.requires_grad_(False)


def transformers_twin(model: LanguageModel) -> Any:
    """The same parameters in transformers' Mamba."""
    config = model.config
    twin = MambaForCausalLM(
        MambaConfig(
            vocab_size=config.padded_vocab_size,
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layer,
            state_size=config.d_state,
            conv_kernel=config.d_conv,
            expand=config.expand,
        )
    ).eval()
    state = {name.replace("embedding.", "embeddings."): p for name, p in model.state_dict().items()}
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert missing in ([], ["lm_head.weight"])
    assert unexpected == []
    twin.tie_weights()
    return twin


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"{config.d_model}x{config.n_layer}")
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 2), (3, 5), (2, 67)])
def test_logits_equal_transformers(config: LanguageModelConfig, rows: int, length: int, packed: bool) -> None:
    model = perturbed(config)
    ids = torch.randint(config.vocab_size, (rows, length))
    with torch.no_grad():
        expected = transformers_twin(model)(ids).logits
        if packed:
            model.prepare_for_inference()
        x, _ = model.prefill(model.embed(ids))
        assert relative(model.logits(x), expected) <= 1e-4


def test_generated_tokens_equal_transformers() -> None:
    model = perturbed(SHAPES[0])
    prompt = torch.randint(61, (1, 9))
    twin = transformers_twin(model)
    expected = twin.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, 9:].tolist()
    x, state = model.prefill(model.embed(prompt))
    found = [int(model.logits(x[:, -1]).argmax())]
    while len(found) < 12:
        found.append(int(model.logits(model.step(torch.tensor(found[-1:]), state)).argmax()))
    assert found == expected


@pytest.mark.parametrize("cut", [1, 2, 3, 20, 39])
def test_a_prefill_that_is_forked_and_continued_equals_one_full_prefill(cut: int) -> None:
    model = perturbed(SHAPES[1])
    prefix, endings = torch.randint(60, (cut,)), torch.randint(60, (3, 40 - cut))
    whole = torch.cat([prefix.expand(3, -1), endings], dim=1)
    expected, expected_state = model.prefill(model.embed(whole))
    _, state = model.prefill(model.embed(prefix[None]))
    for start, rows in ((state, None), (state.fork(3), None), (state, torch.zeros(3, dtype=torch.long))):
        x, after = model.prefill(model.embed(endings), start, Layout(rows))
        assert relative(model.logits(x), model.logits(expected[:, cut:])) <= 1e-5
        assert_states_close(after, expected_state)


def assert_states_close(found: State, expected: State) -> None:
    for ours, theirs in zip(found.tails + found.states, expected.tails + expected.states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_steps_equal_a_prefill() -> None:
    model = perturbed(SHAPES[0])
    ids = torch.randint(61, (2, 30))
    expected, expected_state = model.prefill(model.embed(ids))
    x, state = model.prefill(model.embed(ids[:, :12]))
    for t in range(12, 30):
        x = model.step(ids[:, t], state)
    assert relative(model.logits(x), model.logits(expected[:, -1])) <= 1e-5
    assert_states_close(state, expected_state)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any),
    saved=st.integers(0, 3),
    data=st.data(),
)
def test_padding_never_enters_a_state(lengths: list[int], saved: int, data: st.DataObject) -> None:
    """Whatever a row is padded with, its state and its outputs are those of the row alone."""
    model = perturbed(SHAPES[0])
    sources = [data.draw(st.integers(-1, saved - 1)) for _ in lengths]
    torch.manual_seed(len(lengths))
    states = model.prefill(model.embed(torch.randint(61, (saved, 7))))[1] if saved else None
    rows = [torch.randint(61, (length,)) for length in lengths]
    padded = torch.randint(61, (len(rows), max(lengths)))
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    rows_of = torch.tensor(sources) if states else None
    x, after = model.prefill(model.embed(padded), states, Layout(rows_of, torch.tensor(lengths)))
    assert x.isfinite().all()
    for i, row in enumerate(rows):
        alone = states.select(torch.tensor(sources[i : i + 1])) if states and sources[i] >= 0 else None
        if not len(row):
            start = alone or model.new_state(1)
            assert all(torch.equal(a[i], b[0]) for a, b in zip(after.states, start.states, strict=True))
            assert all(torch.equal(a[i], b[0]) for a, b in zip(after.tails, start.tails, strict=True))
            continue
        expected, expected_state = model.prefill(model.embed(row[None]), alone)
        torch.testing.assert_close(x[i : i + 1, : len(row)], expected, rtol=1e-5, atol=1e-5)
        assert_states_close(after.select(torch.tensor([i])), expected_state)


@pytest.mark.skipif(not takes_packed_rows(choose_backend("cpu")), reason="the scan here takes padded rows alone")
def test_packed_rows_are_read_as_padded_ones_are() -> None:
    model = perturbed(SHAPES[0])
    _, saved = model.prefill(model.embed(torch.randint(61, (2, 7))))
    lengths, rows = torch.tensor([5, 1, 9, 3]), torch.tensor([1, -1, 1, 0])
    padded = torch.randint(61, (4, 9))
    packed = torch.cat([row[:n] for row, n in zip(padded, lengths.tolist(), strict=True)])
    x, after = model.prefill(model.embed(padded), saved, Layout(rows, lengths))
    y, also = model.prefill(model.embed(packed[None]), saved, Layout(rows, lengths, lengths.cumsum(0) - lengths))
    expected = torch.cat([row[:n] for row, n in zip(x, lengths.tolist(), strict=True)])
    torch.testing.assert_close(y[0], expected, rtol=1e-5, atol=1e-5)
    assert_states_close(also, after)


def test_a_prefill_changes_neither_its_embeddings_nor_the_state_it_continues() -> None:
    model = perturbed(SHAPES[0])
    _, state = model.prefill(model.embed(torch.randint(61, (1, 9))))
    before = state.select(torch.tensor([0]))
    embeds = model.embed(torch.randint(61, (2, 5)))
    kept = embeds.clone()
    model.prefill(embeds, state)
    assert torch.equal(embeds, kept)
    assert all(torch.equal(a, b) for a, b in zip(state.states + state.tails, before.states + before.tails, strict=True))


def test_rows_of_a_state_can_be_moved_and_replaced() -> None:
    model = perturbed(SHAPES[0])
    _, state = model.prefill(model.embed(torch.randint(61, (4, 6))))
    pool = model.new_state(6)
    pool.put(2, state)
    pool.move([5, 2], [0, 4])
    expected = [state.states[0][i] for i in (3, 0)]
    assert torch.equal(pool.states[0][0], expected[0])
    assert torch.equal(pool.states[0][4], expected[1])
    assert len(pool.view(3)) == 3
    assert pool.view(3).states[0].data_ptr() == pool.states[0].data_ptr()


def test_gradients_reach_every_parameter_and_checkpointing_does_not_change_them() -> None:
    model = perturbed(SHAPES[0]).requires_grad_(True)
    embeds = model.embed(torch.randint(61, (2, 11))).detach().requires_grad_()
    gradients = []
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        model.zero_grad()
        x, _ = model(embeds, layout=Layout(lengths=torch.tensor([11, 6])))
        model.logits(x[:, :6]).logsumexp(-1).sum().backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        assert found.keys() == dict(model.named_parameters()).keys()
        gradients.append(found)
    for name, gradient in gradients[0].items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-6)


def test_low_precision_keeps_the_stream_and_the_states_in_float32() -> None:
    model = perturbed(SHAPES[0])
    ids = torch.randint(61, (2, 20))
    expected = model.logits(model.prefill(model.embed(ids))[0])
    for name, parameter in model.named_parameters():
        if not name.endswith((".A_log", ".D", ".dt_proj.bias")):
            parameter.data = parameter.data.bfloat16()
    x, state = model.prefill(model.embed(ids))
    assert x.dtype == torch.float32
    assert {tensor.dtype for tensor in state.states} == {torch.float32}
    assert {tensor.dtype for tensor in state.tails} == {torch.bfloat16}
    assert relative(model.logits(x), expected) < 0.05
    assert model.step(ids[:, 0], state).dtype == torch.float32


NATIVE: dict[str, Any] = {
    "d_model": 2560,
    "n_layer": 64,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}


def test_both_kinds_of_published_configuration_are_read() -> None:
    native = config_from_published(NATIVE, "config.json")
    assert native == LanguageModelConfig(d_model=2560, n_layer=64)
    theirs = config_from_published(MambaConfig(hidden_size=768, num_hidden_layers=24).to_dict(), "config.json")
    assert (theirs.d_model, theirs.n_layer, theirs.padded_vocab_size) == (768, 24, 50280)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"d_model": 8}, "'n_layer' is missing"),
        (NATIVE | {"ssm_cfg": {"layer": "Mamba3"}}, r"layer = 'Mamba3' \(expected 'Mamba1'\)"),
        (NATIVE | {"rms_norm": False}, "rms_norm = False"),
        (NATIVE | {"ssm_cfg": {"dt_rank": 7}}, r"dt_rank = 7 \(expected 160\)"),
        (MambaConfig(hidden_size=32).to_dict() | {"use_bias": True}, "use_bias = True"),
        (MambaConfig(hidden_size=32).to_dict() | {"intermediate_size": 99}, r"intermediate_size = 99 \(expected 64\)"),
        (MambaConfig(hidden_size=32).to_dict() | {"model_type": "bamba"}, "model_type = 'bamba'"),
    ],
)
def test_other_kinds_of_language_model_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        config_from_published(data, "config.json")


def test_names_of_both_kinds_lead_to_ours() -> None:
    assert name_of_published("backbone.embedding.weight") == "backbone.embedding.weight"
    assert name_of_published("backbone.embeddings.weight") == "backbone.embedding.weight"
    assert name_of_published("backbone.layers.3.mixer.A_log") == "backbone.layers.3.mixer.A_log"
    assert name_of_published("lm_head.weight") is None
