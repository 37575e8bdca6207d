"""Mamba-1 (arXiv 2312.00752), the language model of VL-Mamba, with a state that can be saved, forked and continued.

Parameters carry the names of state-spaces/mamba@e9594ce (mamba_ssm/modules/mamba_simple.py,
mamba_ssm/models/mixer_seq_simple.py). Right padding alone is legal, and it never touches a state.

Glossary (symbols of the paper in brackets)
    b, l      rows, tokens of a row
    s         saved states
    d_model   width of the residual stream                         [D]
    d, d_inner  expand * d_model, channels of the scan             [E D]
    n, d_state  numbers of state a channel                         [N]
    k, d_conv   width of the causal convolution
    r, dt_rank  rank of the step size's projection
    dt        step size [Delta];  A, B, C, D of the recurrence     [A, B, C, D]
    v         vocabulary
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlmamba_eval.types import ModelError

from . import mamba2
from .add_norm import add_norm
from .config import LanguageModelConfig, Mamba2LanguageModelConfig, check_fields
from .linear import linear_of, pack
from .scan import WHOLE, Layout, causal_conv, causal_conv_step, selective_scan, selective_step

# These stay float32 whatever the precision of the rest: the recurrence is sensitive to them, and they are small.
FLOAT32_PARAMETERS = (".A_log", ".D", ".dt_proj.bias", ".dt_bias", ".A_log_b", ".D_b", ".dt_bias_b")

# A step size after which nothing of a state is left: exp(-_FORGET * |A|) is 0 in float32 for every |A| above 1e-6.
_FORGET = 1e8


class RMSNorm(nn.Module):
    """Root mean square norm, computed in float32."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] of any precision -> float32."""
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps)

    def after(self, x: Tensor, y: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The norm of x + y in `dtype`; x, float32, takes up y in place, without gradients. See `add_norm`."""
        return add_norm(x, y, self.weight, self.eps, dtype)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)


class MambaMixer(nn.Module):
    """One Mamba-1 block, without norm and residual (state-spaces/mamba@e9594ce:mamba_ssm/modules/mamba_simple.py)."""

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2):
        super().__init__()
        self.d_model, self.d_state, self.d_conv = d_model, d_state, d_conv
        self.d_inner = expand * d_model
        self.dt_rank = -(-d_model // 16)
        self.in_proj: nn.Module = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
        self.x_proj: nn.Module = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.empty(self.d_inner, d_state))
        self.D = nn.Parameter(torch.empty(self.d_inner))
        self.out_proj: nn.Module = nn.Linear(self.d_inner, d_model, bias=False)
        self._A: Tensor | None = None
        self._dt_matrix: nn.Module | None = None
        self.reset_ssm()

    def reset_parameters(self) -> None:
        for layer in (self.in_proj, self.conv1d, self.x_proj, self.out_proj):
            cast(nn.Linear, layer).reset_parameters()
        self.reset_ssm()

    @torch.no_grad()
    def reset_ssm(self) -> None:
        """Mamba's own start of the recurrence: A = -(1..N), step sizes log-uniform between 0.001 and 0.1, D = 1."""
        if self.D.is_meta:  # no memory to fill, and PyTorch would import its compiler for trying
            return
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        low, high = math.log(1e-3), math.log(1e-1)
        dt = torch.exp(torch.rand_like(self.D) * (high - low) + low).clamp(min=1e-4)  # [d]
        # The inverse of softplus, so that softplus(bias) is the step size drawn above.
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        steps = torch.arange(1, self.d_state + 1, device=self.A_log.device, dtype=torch.float32)
        self.A_log.copy_(torch.log(steps).expand(self.d_inner, -1))
        nn.init.ones_(self.D)

    @property
    def tail_shape(self) -> tuple[int, int]:
        """What the convolution keeps of a row: its last inputs [k-1, d]."""
        return self.d_conv - 1, self.d_inner

    @property
    def state_shape(self) -> tuple[int, int]:
        """The recurrent state of a row [n, d]."""
        return self.d_state, self.d_inner

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the matrices and of what runs through them."""
        return self.conv1d.weight.dtype

    def decay(self) -> Tensor:
        """A of the recurrence, [n, d], negative float32."""
        return self._A if self._A is not None else -torch.exp(self.A_log.float()).T

    def raw_dt(self, low_rank: Tensor) -> Tensor:
        """The step size before its bias, which the scan adds in float32: [..., r] -> [..., d]."""
        return F.linear(low_rank, self.dt_proj.weight) if self._dt_matrix is None else self._dt_matrix(low_rank)

    @torch.no_grad()
    def prepare_for_inference(self) -> None:
        """Fix A and pack the matrices for this machine. The block cannot be trained or saved afterwards."""
        self._A = self.decay().contiguous()
        self.in_proj, self.x_proj, self.out_proj = pack(self.in_proj), pack(self.x_proj), pack(self.out_proj)
        self._dt_matrix = pack(linear_of(self.dt_proj.weight))

    def forward(
        self,
        u: Tensor,
        tail: Tensor | None = None,
        state: Tensor | None = None,
        layout: Layout = WHOLE,
        gaps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the block over `u` [b, l, d_model], from saved states if there are any.

        `tail` [s, k-1, d] and `state` [s, n, d] are what earlier tokens left, and `layout` says which of them each row
        continues and where its tokens stand.

        `gaps` bool [b, l] marks places between examples that share a row, at least k-1 of them in each gap. Nothing
        goes over a gap: the convolution reads zeros there, and the recurrence forgets its state to the last bit. This
        needs no kernel of its own, and it holds for gradients too.

        Returns the output [b, l, d_model], undefined but finite in the padding, and the rows' tails and states.
        """
        x, z = self.in_proj(u).chunk(2, dim=-1)  # 2 x [b, l, d]
        if gaps is not None:
            x = x.masked_fill(gaps[..., None], 0)
        x, tail = causal_conv(
            x, self.conv1d.weight[:, 0], self.conv1d.bias, tail=tail, layout=layout
        )  # [b, l, d], [b, k-1, d]
        if gaps is not None:
            x = x.masked_fill(gaps[..., None], 0)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = self.raw_dt(dt)  # [b, l, d]
        if gaps is not None:
            dt = dt.masked_fill(gaps[..., None], _FORGET)
        y, state = selective_scan(
            x, dt, self.decay(), B, C, self.D, z, dt_bias=self.dt_proj.bias, state=state, layout=layout
        )  # [b, l, d], [b, n, d]
        return self.out_proj(y), tail, state  # [b, l, d_model]

    def step(self, u: Tensor, tail: Tensor, state: Tensor) -> Tensor:
        """One token a row: `u` [b, d_model] -> [b, d_model]; `tail` and `state` are brought up to date in place."""
        x, z = self.in_proj(u[:, None]).chunk(2, dim=-1)  # 2 x [b, 1, d]
        x, _ = causal_conv_step(x, self.conv1d.weight[:, 0], self.conv1d.bias, tail=tail, out=tail)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = self.raw_dt(dt)  # [b, 1, d]
        y, _ = selective_step(
            x, dt, self.decay(), B, C, self.D, z, dt_bias=self.dt_proj.bias, state=state, out=state
        )  # [b, 1, d]
        return self.out_proj(y)[:, 0]  # [b, d_model]


@dataclass(frozen=True, slots=True)
class State:
    """All that the model remembers of the tokens it has read, for `s` rows.

    For each layer the convolution's last inputs [s, k-1, d], in the precision of the weights, and the recurrent state
    in float32: [s, n, d] of a Mamba-1, [s, h, p, n] of a Mamba-2.
    """

    tails: tuple[Tensor, ...]
    states: tuple[Tensor, ...]

    def __len__(self) -> int:
        return self.states[0].shape[0]

    def select(self, rows: Tensor) -> State:
        """The state of the given rows, in that order, as a copy; a row named twice is forked."""
        return State(
            tuple(tail.index_select(0, rows) for tail in self.tails),
            tuple(state.index_select(0, rows) for state in self.states),
        )

    def fork(self, n: int) -> State:
        """The state of one row, `n` times, as a view: nothing is copied, and steps need `select` first."""
        return State(
            tuple(tail.expand(n, *tail.shape[1:]) for tail in self.tails),
            tuple(state.expand(n, *state.shape[1:]) for state in self.states),
        )

    def view(self, n: int) -> State:
        """The first `n` rows, sharing memory."""
        return State(tuple(tail[:n] for tail in self.tails), tuple(state[:n] for state in self.states))

    def put(self, start: int, other: State) -> None:
        """Copy the rows of `other` into this state from row `start` on."""
        for mine, theirs in zip(self.tails + self.states, other.tails + other.states, strict=True):
            mine[start : start + len(theirs)].copy_(theirs)

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy rows over other rows of this state; no row may be both source and target."""
        device = self.states[0].device
        source, target = torch.tensor(sources, device=device), torch.tensor(targets, device=device)
        for tensor in self.tails + self.states:
            tensor.index_copy_(0, target, tensor.index_select(0, source))


class Block(nn.Module):
    """Norm, mixer, residual."""

    def __init__(self, config: LanguageModelConfig):
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer: MambaMixer | mamba2.Mamba2Mixer
        if isinstance(config, Mamba2LanguageModelConfig):
            self.mixer = mamba2.Mamba2Mixer(
                config.d_model, config.d_state, config.d_conv, config.expand, config.headdim, config.ngroups
            )
        else:
            self.mixer = MambaMixer(config.d_model, config.d_state, config.d_conv, config.expand)

    def forward(
        self,
        x: Tensor,
        tail: Tensor | None,
        state: Tensor | None,
        layout: Layout,
        gaps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The residual stream [b, l, d_model] in float32, and the mixer's tails and states."""
        y, new_tail, new_state = self.mixer(self.norm(x).to(self.mixer.dtype), tail, state, layout, gaps)
        return x + y, new_tail, new_state


class Backbone(nn.Module):
    """Embeddings, blocks and final norm: the level that state-spaces' parameter names have."""

    def __init__(self, config: LanguageModelConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.padded_vocab_size, config.d_model)
        self.layers = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.norm_f = RMSNorm(config.d_model, config.norm_eps)


class LanguageModel(nn.Module):
    """A Mamba-1 or Mamba-2 language model with tied embeddings and a float32 residual stream.

    `gradient_checkpointing` recomputes each block in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: LanguageModelConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.gradient_checkpointing = False
        self._head: nn.Module | None = None

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The start of state-spaces/mamba@e9594ce:mamba_ssm/models/mixer_seq_simple.py:89-126."""
        nn.init.normal_(self.backbone.embedding.weight, std=0.02)
        for block in self.blocks:
            block.norm.reset_parameters()
            block.mixer.reset_parameters()
            cast(nn.Linear, block.mixer.out_proj).weight /= math.sqrt(self.config.n_layer)
        self.backbone.norm_f.reset_parameters()

    @property
    def blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.backbone.layers))

    def prepare_for_inference(self) -> None:
        """Pack the matrices for this machine; see `MambaMixer.prepare_for_inference`."""
        for block in self.blocks:
            block.mixer.prepare_for_inference()
        self._head = pack(linear_of(self.backbone.embedding.weight))

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> embeddings [..., d_model]."""
        return self.backbone.embedding(ids)

    def new_state(self, n: int) -> State:
        """The state of `n` rows that have read nothing yet."""
        mixer = self.blocks[0].mixer
        device = self.backbone.embedding.weight.device
        tail, state = (n, *mixer.tail_shape), (n, *mixer.state_shape)
        layers = range(self.config.n_layer)
        return State(
            tuple(torch.zeros(tail, dtype=mixer.dtype, device=device) for _ in layers),
            tuple(torch.zeros(state, dtype=torch.float32, device=device) for _ in layers),
        )

    def prefill(
        self,
        embeds: Tensor,
        state: State | None = None,
        layout: Layout = WHOLE,
        gaps: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Read `embeds` [b, l, d_model], continuing saved states if there are any.

        `layout` says which row of `state` each row continues and where its tokens stand: padded on the right, which
        changes no state by a bit, or packed, for a scan backend that takes packed rows. `gaps` bool [b, l] is the
        packing of training: see `MambaMixer.forward`.

        Returns the residual stream [b, l, d_model] in float32 before the final norm, for `logits`, and the state after
        the last true token of each row. `state` is left as it was.
        """
        x = embeds.to(torch.float32, copy=True, memory_format=torch.contiguous_format)  # [b, l, d_model]
        y: Tensor | None = None  # what the last block says, if the stream has not taken it up yet
        tails, states = [], []
        for i, block in enumerate(self.blocks):
            before = (None, None) if state is None else (state.tails[i], state.states[i])
            if not torch.is_grad_enabled():
                u = block.norm.after(x, y, block.mixer.dtype)
                y, tail, ssm = block.mixer(u, *before, layout, gaps)
            elif self.gradient_checkpointing:
                x, tail, ssm = cast(
                    "tuple[Tensor, Tensor, Tensor]",
                    checkpoint(block, x, *before, layout, gaps, use_reentrant=False),
                )
            else:
                x, tail, ssm = block(x, *before, layout, gaps)
            tails.append(tail)
            states.append(ssm)
        return x if y is None else x.add_(y), State(tuple(tails), tuple(states))

    forward = prefill

    @torch.no_grad()
    def step(self, ids: Tensor, state: State) -> Tensor:
        """Read one token a row, ids [b]; `state` (b rows, no views) is brought up to date in place.

        Returns the residual stream [b, d_model], for `logits`.
        """
        x = self.embed(ids).to(torch.float32, copy=True)  # [b, d_model]
        y: Tensor | None = None
        for block, tail, ssm in zip(self.blocks, state.tails, state.states, strict=True):
            y = block.mixer.step(block.norm.after(x, y, block.mixer.dtype), tail, ssm)
        return x if y is None else x.add_(y)

    def logits(self, x: Tensor) -> Tensor:
        """Residual stream [..., d_model] -> logits [..., padded vocabulary] in float32."""
        weight = self.backbone.embedding.weight
        x = self.backbone.norm_f(x).to(weight.dtype)
        return (self._head(x) if self._head is not None else F.linear(x, weight)).float()


def keeps_float32(name: str) -> bool:
    """Whether a parameter of this name stays in float32 in a model of lower precision."""
    return name.endswith(FLOAT32_PARAMETERS)


# =============================================================================
# Names of published checkpoints
# =============================================================================


def config_from_published(data: dict[str, Any], where: str) -> LanguageModelConfig:
    """Read the `config.json` of state-spaces/mamba-*, mamba2-*, or of transformers' Mamba(2)ForCausalLM."""
    if mamba2.is_published(data):
        return mamba2.config_from_published(data, where)
    try:
        if "hidden_size" in data:
            found = LanguageModelConfig(
                d_model=data["hidden_size"],
                n_layer=data["num_hidden_layers"],
                vocab_size=data["vocab_size"],
                pad_vocab_size_multiple=1,
                d_state=data.get("state_size", 16),
                d_conv=data.get("conv_kernel", 4),
                expand=data.get("expand", 2),
                norm_eps=data.get("layer_norm_epsilon", 1e-5),
            )
            rank = data.get("time_step_rank", "auto")
            plain: dict[str, Any] = {
                "use_bias": False,
                "use_conv_bias": True,
                "hidden_act": "silu",
                "model_type": "mamba",
            }
        else:
            ssm = data.get("ssm_cfg") or {}
            if not isinstance(ssm, dict):
                raise ModelError(f"{where}: ssm_cfg must be an object, found {ssm!r:.80}")
            found = LanguageModelConfig(
                d_model=data["d_model"],
                n_layer=data["n_layer"],
                vocab_size=data["vocab_size"],
                pad_vocab_size_multiple=data.get("pad_vocab_size_multiple", 8),
                d_state=ssm.get("d_state", 16),
                d_conv=ssm.get("d_conv", 4),
                expand=ssm.get("expand", 2),
            )
            rank = ssm.get("dt_rank", "auto")
            plain = {"rms_norm": True, "tie_embeddings": True, "layer": "Mamba1"}
            data = {**data, "layer": ssm.get("layer", "Mamba1")}
        check_fields(found, where)
        inner = data.get("intermediate_size", found.d_inner)
    except KeyError as missing:
        raise ModelError(
            f"{where}: expected the configuration of a Mamba-1 language model, {missing} is missing"
        ) from None
    wrong = [
        f"{key} = {data[key]!r:.80} (expected {want!r})" for key, want in plain.items() if data.get(key, want) != want
    ]
    if rank not in ("auto", found.dt_rank):
        wrong.append(f"dt_rank = {rank!r} (expected {found.dt_rank})")
    if inner != found.d_inner:
        wrong.append(f"intermediate_size = {inner!r} (expected {found.d_inner})")
    if wrong:
        raise ModelError(f"{where}: not a Mamba-1 language model of the published kind: {', '.join(wrong)}")
    return found


def name_of_published(name: str) -> str | None:
    """The parameter of `LanguageModel` that a tensor of a published file belongs to.

    state-spaces and transformers name all but the embeddings alike. None for the output head, which is tied.
    """
    if name == "lm_head.weight":
        return None
    return name.replace("backbone.embeddings.", "backbone.embedding.")
