"""Zamba2 (arXiv 2411.15242): Mamba-2 layers, before some of which a transformer block speaks that several share.

A shared block reads the residual stream and the embeddings side by side; low-rank adapters of each of its places are
added to its matrices; its output is added to the input of the place's Mamba-2 layer, not to the residual stream.

Step sizes are not clamped: with their kernels, the published models' own code clamps only if a configuration sets
`time_step_limit`. transformers 5 clamps at `time_step_min` what is read, and not what is said; that is another model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmamba_eval.model_adapters.hybrid.checkpoint import Facts
from vlmamba_eval.model_adapters.hybrid.model import HybridModel
from vlmamba_eval.model_adapters.hybrid.reading import Mixer, Now, Rope
from vlmamba_eval.model_adapters.vlmamba.language_model import RMSNorm
from vlmamba_eval.model_adapters.vlmamba.linear import linear_of, pack
from vlmamba_eval.model_adapters.vlmamba.mamba2 import Mamba2Mixer


@dataclass(frozen=True, slots=True)
class Zamba2Config:
    """What decides the shape of a Zamba2. `shared_at` are the layers before which a shared block stands, in order."""

    vocab_size: int
    hidden_size: int
    n_layer: int
    shared_at: tuple[int, ...]
    shared_blocks: int
    intermediate_size: int
    heads: int
    kv_heads: int
    adapter_rank: int
    attention_adapters: bool
    rope_theta: float | None
    d_state: int
    d_conv: int
    expand: int
    headdim: int
    ngroups: int
    norm_eps: float

    @property
    def head_dim(self) -> int:
        """Attention runs on twice the width: residual stream and embeddings."""
        return 2 * self.hidden_size // self.heads


def config_of_published(data: dict[str, Any], where: str) -> Zamba2Config:
    """Read a `text_config`; what it leaves out has the default of transformers' Zamba2Config."""
    from transformers import Zamba2Config as Theirs

    from vlmamba_eval.types import ModelError

    given = Facts(data, where)
    given.expect("model_type", "zamba2")
    # JSON has no infinity: transformers writes it as a string.
    given.expect("time_step_limit", None, [0.0, float("inf")], [0.0, "inf"], [0.0, "Infinity"])
    given.check("a Zamba2 language model")
    try:
        full = Theirs(**{key: value for key, value in data.items() if key != "model_type"}).to_dict()
    except Exception as error:
        raise ModelError(f"{where}: transformers cannot read this Zamba2 configuration: {str(error)[:300]}") from error
    facts = Facts(full, where)
    facts.expect("use_conv_bias", True)
    facts.expect("add_bias_linear", False)
    facts.expect("hidden_act", "gelu")
    facts.expect("use_long_context", False)
    facts.expect("tie_word_embeddings", True)
    kinds = facts.get("layers_block_type", list)
    facts.expect("num_hidden_layers", len(kinds))
    hidden, expand, heads = (facts.size(key) for key in ("hidden_size", "mamba_expand", "n_mamba_heads"))
    unknown = [kind for kind in kinds if kind not in ("linear_attention", "mamba", "hybrid")]
    if unknown:
        raise ModelError(f"{where}: layers_block_type names {unknown[0]!r:.80}; known are mamba and hybrid")
    facts.check("a Zamba2 language model")
    rope = facts.get("rope_parameters", dict) if full["use_mem_rope"] else None
    if rope is not None and rope.get("rope_type", "default") != "default":
        raise ModelError(f"{where}: rope_type = {rope['rope_type']!r:.80} (expected 'default')")
    return Zamba2Config(
        vocab_size=facts.size("vocab_size", 2**24),
        hidden_size=hidden,
        n_layer=len(kinds),
        shared_at=tuple(i for i, kind in enumerate(kinds) if kind == "hybrid"),
        shared_blocks=facts.size("num_mem_blocks"),
        intermediate_size=facts.size("intermediate_size"),
        heads=facts.size("num_attention_heads"),
        kv_heads=facts.size("num_key_value_heads"),
        adapter_rank=facts.size("adapter_rank"),
        attention_adapters=facts.get("use_shared_attention_adapter", bool),
        rope_theta=None if rope is None else float(Facts(rope, where).get("rope_theta", (int, float))),
        d_state=facts.size("mamba_d_state"),
        d_conv=facts.size("mamba_d_conv"),
        expand=expand,
        headdim=expand * hidden // heads,
        ngroups=facts.size("mamba_ngroups"),
        norm_eps=float(facts.get("rms_norm_eps", float)),
    )


def _adapters(config: Zamba2Config, block: int, width: int, out: int) -> nn.ModuleDict:
    """A low-rank pair for each place, by its number, where the block stands."""
    places = [place for place in range(len(config.shared_at)) if place % config.shared_blocks == block]
    return nn.ModuleDict({
        str(place): nn.Sequential(
            nn.Linear(width, config.adapter_rank, bias=False), nn.Linear(config.adapter_rank, out, bias=False)
        )
        for place in places
    })  # fmt: skip


class SharedAttention(nn.Module):
    def __init__(self, config: Zamba2Config, block: int):
        super().__init__()
        width, self.head_dim = 2 * config.hidden_size, config.head_dim
        queries, keys = config.heads * self.head_dim, config.kv_heads * self.head_dim
        self.q_proj: nn.Module = nn.Linear(width, queries, bias=False)
        self.k_proj: nn.Module = nn.Linear(width, keys, bias=False)
        self.v_proj: nn.Module = nn.Linear(width, keys, bias=False)
        self.o_proj: nn.Module = nn.Linear(queries, config.hidden_size, bias=False)
        self.adapted = config.attention_adapters
        if self.adapted:
            self.linear_q_adapter_list = _adapters(config, block, width, width)
            self.linear_k_adapter_list = _adapters(config, block, width, width)
            self.linear_v_adapter_list = _adapters(config, block, width, width)
        self.rope = None if config.rope_theta is None else Rope(self.head_dim, config.rope_theta)

    def forward(self, u: Tensor, place: str, now: Now) -> Tensor:
        """u [b, l, 2 hidden] -> [b, l, hidden]."""
        q, k, v = self.q_proj(u), self.k_proj(u), self.v_proj(u)
        if self.adapted:
            q = q + self.linear_q_adapter_list[place](u)
            k = k + self.linear_k_adapter_list[place](u)
            v = v + self.linear_v_adapter_list[place](u)
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in (q, k, v))
        # The width counts half: the embeddings are only carried along.
        return self.o_proj(now.attend(q, k, v, self.rope, (self.head_dim / 2) ** -0.5))


class SharedFeedForward(nn.Module):
    def __init__(self, config: Zamba2Config, block: int):
        super().__init__()
        inner = 2 * config.intermediate_size
        self.gate_up_proj: nn.Module = nn.Linear(config.hidden_size, inner, bias=False)
        self.down_proj: nn.Module = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.gate_up_proj_adapter_list = _adapters(config, block, config.hidden_size, inner)

    def forward(self, x: Tensor, place: str) -> Tensor:
        gate, up = (self.gate_up_proj(x) + self.gate_up_proj_adapter_list[place](x)).chunk(2, dim=-1)
        return self.down_proj(F.gelu(gate) * up)


class SharedBlock(nn.Module):
    """Attention, then a feed-forward layer, without residuals of its own."""

    def __init__(self, config: Zamba2Config, block: int):
        super().__init__()
        self.self_attn = SharedAttention(config, block)
        self.feed_forward = SharedFeedForward(config, block)
        self.input_layernorm = RMSNorm(2 * config.hidden_size, config.norm_eps)
        self.pre_ff_layernorm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, embeds: Tensor, place: str, now: Now) -> Tensor:
        """Residual stream and embeddings [b, l, hidden] -> [b, l, hidden] in the precision of the matrices."""
        dtype = self.input_layernorm.weight.dtype
        u = self.input_layernorm(torch.cat([x, embeds], -1)).to(dtype)
        u = self.self_attn(u, place, now)
        return self.feed_forward(self.pre_ff_layernorm(u).to(dtype), place)


class Layer(nn.Module):
    """A Mamba-2 layer; `linear` brings in what a shared block says."""

    def __init__(self, config: Zamba2Config, shared: bool):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mamba = Mamba2Mixer(
            config.hidden_size, config.d_state, config.d_conv, config.expand, config.headdim, config.ngroups
        )
        if shared:
            self.linear: nn.Module = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, said: Tensor | None, now: Now) -> Tensor:
        u = x if said is None else x + self.linear(said)
        return x + now.mix(self.mamba, self.input_layernorm(u).to(self.mamba.dtype))


class Zamba2(HybridModel):
    """The language model, its output matrix tied to the embeddings."""

    def __init__(self, config: Zamba2Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config, i in config.shared_at) for i in range(config.n_layer)])
        blocks = range(min(config.shared_blocks, len(config.shared_at)))
        self.blocks = nn.ModuleList([SharedBlock(config, block) for block in blocks])
        self.final_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self._head: nn.Module | None = None

    @property
    def mixers(self) -> Sequence[Mixer]:
        return [cast("Layer", layer).mamba for layer in self.layers]

    @property
    def attends(self) -> bool:
        return bool(self.config.shared_at)

    def pack_head(self) -> None:
        """Pack the output matrix for this machine."""
        self._head = pack(linear_of(self.embed_tokens.weight))

    def embed(self, ids: Tensor) -> Tensor:
        return self.embed_tokens(ids)

    def run(self, x: Tensor, now: Now) -> Tensor:
        embeds, places = x, {layer: place for place, layer in enumerate(self.config.shared_at)}
        for i, layer in enumerate(self.layers):
            said = None
            if i in places:
                block = self.blocks[places[i] % self.config.shared_blocks]
                said = block(x, embeds, str(places[i]), now)
            x = layer(x, said, now)
        return x

    def logits(self, x: Tensor) -> Tensor:
        weight = self.embed_tokens.weight
        x = self.final_layernorm(x).to(weight.dtype)
        return (self._head(x) if self._head is not None else F.linear(x, weight)).float()


def name_of_published(config: Zamba2Config, name: str) -> str | None:
    """The parameter of `Zamba2` that a tensor of a published language model belongs to; None for the tied head."""
    if name == "lm_head.weight":
        return None
    name = name.removeprefix("model.")
    if match := re.fullmatch(r"layers\.(\d+)\.shared_transformer\.(.+)", name):
        if int(match[1]) not in config.shared_at:
            return name
        block = config.shared_at.index(int(match[1])) % config.shared_blocks
        return f"blocks.{block}.{match[2]}"
    return re.sub(r"^(layers\.\d+\.)mamba_decoder\.", r"\1", name)
