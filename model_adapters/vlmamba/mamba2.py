"""The Mamba-2 block (arXiv 2405.21060), beside the Mamba-1 block of `language_model` and with the same methods.

Parameters carry the names of state-spaces/mamba@e9594ce (mamba_ssm/modules/mamba2.py), which transformers' Mamba2 and
Zamba2 use too. The glossary is that of `ssd`.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlmamba_eval.types import ModelError

from .config import Mamba2LanguageModelConfig, check_fields
from .linear import pack
from .scan import WHOLE, Layout, causal_conv, causal_conv_step
from .ssd import state_space_dual, state_space_dual_step
from .ssd.gated_norm import gated_norm

# The raw step size in a gap between examples: so long a step that no state outlives it.
FORGET = 1e4


class GatedRMSNorm(nn.Module):
    """Root mean square norm of the gated output, over each of `groups` equal parts, computed in float32."""

    def __init__(self, width: int, groups: int = 1, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.groups, self.eps = groups, eps

    def forward(self, y: Tensor, z: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """norm(y silu(z)): [..., width] of any precision -> the same in `dtype`."""
        width = y.shape[-1] // self.groups
        return gated_norm(y, z, self.weight, self.eps, gate_first=True, dtype=dtype, width=width)


class Mamba2Mixer(nn.Module):
    """One Mamba-2 block, without norm and residual."""

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.headdim, self.ngroups = d_model, d_state, d_conv, headdim, ngroups
        self.d_inner = expand * d_model
        self.nheads = self.d_inner // headdim
        if self.nheads * headdim != self.d_inner or self.nheads % ngroups:
            raise ValueError(f"{self.d_inner} channels are no heads of {headdim} in {ngroups} equal groups")
        conv = self.d_inner + 2 * ngroups * d_state
        self.in_proj: nn.Module = nn.Linear(d_model, self.d_inner + conv + self.nheads, bias=False)
        self.conv1d = nn.Conv1d(conv, conv, d_conv, groups=conv, padding=d_conv - 1)
        self.dt_bias = nn.Parameter(torch.empty(self.nheads))
        self.A_log = nn.Parameter(torch.empty(self.nheads))
        self.D = nn.Parameter(torch.empty(self.nheads))
        self.norm = GatedRMSNorm(self.d_inner, ngroups, norm_eps)
        self.out_proj: nn.Module = nn.Linear(self.d_inner, d_model, bias=False)
        self._A: Tensor | None = None
        self.reset_ssm()

    @property
    def tail_shape(self) -> tuple[int, int]:
        """What the convolution keeps of a row: its last inputs [k-1, channels]."""
        return self.d_conv - 1, self.conv1d.in_channels

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """The recurrent state of a row [h, p, n]."""
        return self.nheads, self.headdim, self.d_state

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the matrices and of what runs through them."""
        return self.conv1d.weight.dtype

    def reset_parameters(self) -> None:
        for layer in (self.in_proj, self.conv1d, self.out_proj):
            cast(nn.Linear, layer).reset_parameters()
        nn.init.ones_(self.norm.weight)
        self.reset_ssm()

    @torch.no_grad()
    def reset_ssm(self) -> None:
        """Mamba-2's own start: -A uniform between 1 and 16, step sizes log-uniform between 0.001 and 0.1, D = 1."""
        if self.D.is_meta:  # no memory to fill
            return
        low, high = math.log(1e-3), math.log(1e-1)
        dt = torch.exp(torch.rand_like(self.dt_bias) * (high - low) + low).clamp(min=1e-4)  # [h]
        # The inverse of softplus, so that softplus(bias) is the step size drawn above.
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        self.A_log.copy_(torch.log(torch.rand_like(self.A_log) * 15 + 1))
        nn.init.ones_(self.D)

    def decay(self) -> Tensor:
        """A of the recurrence, [h], negative float32."""
        return self._A if self._A is not None else -torch.exp(self.A_log.float())

    @torch.no_grad()
    def prepare_for_inference(self) -> None:
        """Fix A and pack the matrices for this machine. The block cannot be trained or saved afterwards."""
        self._A = self.decay()
        self.in_proj, self.out_proj = pack(self.in_proj), pack(self.out_proj)

    def forward(
        self,
        u: Tensor,
        tail: Tensor | None = None,
        state: Tensor | None = None,
        layout: Layout = WHOLE,
        gaps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the block over `u` [b, l, d_model], from saved states if there are any; see `MambaMixer.forward`.

        `tail` [s, k-1, channels], `state` [s, h, p, n]. `gaps` bool [b, l] is the packing of training: nothing goes
        over a gap.
        """
        z, xBC, dt = self._split(u)
        if gaps is not None:
            xBC = xBC.masked_fill(gaps[..., None], 0)
        xBC, tail = causal_conv(
            xBC, self.conv1d.weight[:, 0], self.conv1d.bias, tail=tail, layout=layout
        )  # [b, l, channels], [b, k-1, channels]
        if gaps is not None:
            xBC, dt = xBC.masked_fill(gaps[..., None], 0), dt.masked_fill(gaps[..., None], FORGET)
        y, state = state_space_dual(
            *self._heads(xBC, dt), self.D, dt_bias=self.dt_bias, state=state, layout=layout
        )  # [b, l, h, p], [b, h, p, n]
        return self._finish(y, z), tail, state

    def step(self, u: Tensor, tail: Tensor, state: Tensor) -> Tensor:
        """One token a row: `u` [b, d_model] -> [b, d_model]; `tail` and `state` are brought up to date in place."""
        z, xBC, dt = self._split(u[:, None])
        xBC, _ = causal_conv_step(xBC, self.conv1d.weight[:, 0], self.conv1d.bias, tail=tail, out=tail)
        y, _ = state_space_dual_step(
            *self._heads(xBC, dt), self.D, dt_bias=self.dt_bias, state=state, out=state
        )  # [b, 1, h, p]
        return self._finish(y, z)[:, 0]

    def _split(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gate [b, l, d], the convolution's input [b, l, channels] and the raw steps [b, l, h]."""
        sizes = [self.d_inner, self.conv1d.in_channels, self.nheads]
        z, xBC, dt = self.in_proj(u).split(sizes, dim=-1)
        return z, xBC, dt

    def _heads(self, xBC: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x [b, l, h, p], dt, A, B and C [b, l, g, n]."""
        width = self.ngroups * self.d_state
        x, B, C = xBC.split([self.d_inner, width, width], dim=-1)
        x, groups = x.unflatten(-1, (self.nheads, self.headdim)), (self.ngroups, self.d_state)
        return x, dt, self.decay(), B.unflatten(-1, groups), C.unflatten(-1, groups)

    def _finish(self, y: Tensor, z: Tensor) -> Tensor:
        return self.out_proj(self.norm(y.flatten(-2), z, self.dtype))  # [b, l, d_model]


# =============================================================================
# Configurations of published checkpoints
# =============================================================================


def is_published(data: dict[str, Any]) -> bool:
    """Whether a `config.json` is that of a Mamba-2 language model, of state-spaces/mamba2-* or of transformers."""
    ssm = data.get("ssm_cfg")
    return data.get("model_type") == "mamba2" or (isinstance(ssm, dict) and ssm.get("layer") == "Mamba2")


# JSON has no infinity: it is written as a name, or as a text.
_NO_LIMIT = [[low, high] for low in ("0", "0.0") for high in ("inf", "Infinity")]


def config_from_published(data: dict[str, Any], where: str) -> Mamba2LanguageModelConfig:
    """Read such a `config.json`. `ModelError` names what is missing or of another kind."""
    try:
        if "hidden_size" in data:
            found = Mamba2LanguageModelConfig(
                d_model=data["hidden_size"],
                n_layer=data["num_hidden_layers"],
                vocab_size=data["vocab_size"],
                pad_vocab_size_multiple=1,
                d_state=data.get("state_size", 128),
                d_conv=data.get("conv_kernel", 4),
                expand=data.get("expand", 2),
                headdim=data.get("head_dim", 64),
                ngroups=data.get("n_groups", 8),
                norm_eps=data.get("layer_norm_epsilon", 1e-5),
            )
            plain: dict[str, Any] = {
                "use_bias": False,
                "use_conv_bias": True,
                "hidden_act": "silu",
                "tie_word_embeddings": True,
                "num_heads": found.d_inner // found.headdim,
            }
            limit = data.get("time_step_limit")
        else:
            ssm = data["ssm_cfg"]
            found = Mamba2LanguageModelConfig(
                d_model=data["d_model"],
                n_layer=data["n_layer"],
                vocab_size=data["vocab_size"],
                pad_vocab_size_multiple=data.get("pad_vocab_size_multiple", 8),
                d_state=ssm.get("d_state", 128),
                d_conv=ssm.get("d_conv", 4),
                expand=ssm.get("expand", 2),
                headdim=ssm.get("headdim", 64),
                ngroups=ssm.get("ngroups", 1),
            )
            plain = {"rms_norm": True, "tie_embeddings": True, "d_intermediate": 0, "attn_layer_idx": []}
            limit = ssm.get("dt_limit")
    except KeyError as missing:
        raise ModelError(
            f"{where}: expected the configuration of a Mamba-2 language model, {missing} is missing"
        ) from None
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None
    except (TypeError, AttributeError):  # sizes are multiplied before each is looked at
        raise ModelError(f"{where}: a size of the Mamba-2 language model is not a whole number") from None
    check_fields(found, where)
    wrong = [
        f"{key} = {data[key]!r:.80} (expected {want!r})" for key, want in plain.items() if data.get(key, want) != want
    ]
    if limit is not None and (not isinstance(limit, list | tuple) or [str(end) for end in limit] not in _NO_LIMIT):
        wrong.append(f"time_step_limit = {limit!r:.80} (expected none)")
    if wrong:
        raise ModelError(f"{where}: not a Mamba-2 language model of the published kind: {', '.join(wrong)}")
    return found
