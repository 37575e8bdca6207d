"""One prefill or one decoding step under way: each layer, in its turn, asks for its part of the state.

A model's layers are thus written once. `Reading` takes tokens [b, l] from saved states, of which many rows may name
one; `Step` takes one token per row and brings a state up to date in place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.scan import Layout
from vlmamba_eval.model_adapters.vlmamba.ssd import PackedRows

from .state import HybridState, Segment, Use


class Mixer(Protocol):
    """A Mamba block, as `Mamba2Mixer`."""

    @property
    def tail_shape(self) -> tuple[int, ...]: ...

    @property
    def state_shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(
        self,
        u: Tensor,
        tail: Tensor | None,
        state: Tensor | None,
        layout: Layout,
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def step(self, u: Tensor, tail: Tensor, state: Tensor) -> Tensor: ...


class Rope:
    """Rotary positions (arXiv 2104.09864), the two halves of a head's channels making the pairs."""

    def __init__(self, width: int, theta: float):
        places = torch.arange(0, width, 2, dtype=torch.float64, device="cpu")  # also where a model is made on meta
        self._frequencies = (theta ** -(places / width)).float()  # [w / 2]

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [b, l, heads, w] at positions [b, l], turned in float32."""
        if self._frequencies.device != x.device:
            self._frequencies = self._frequencies.to(x.device)
        angles = positions[..., None, None].float() * self._frequencies  # [b, l, 1, w / 2]
        cos, sin = angles.cos(), angles.sin()
        left, right = x.float().chunk(2, dim=-1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)


class Now(Protocol):
    """What a layer may ask for."""

    def mix(self, mixer: Mixer, u: Tensor) -> Tensor:
        """Run the next Mamba block over u [b, l, d_model]."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rope: Rope | None, scale: float) -> Tensor:
        """Attention of the next attention layer.

        Causal, from q [b, l, heads, w] to k, v [b, l, kv heads, w] and to all that the rows have read before.
        Returns [b, l, heads w].
        """
        ...


class Reading:
    """A prefill."""

    def __init__(self, x: Tensor, state: HybridState | None, layout: Layout):
        device = x.device
        self._state, self._layout = state, layout if state is not None else replace(layout, sources=None)
        self._packed = None
        b, length = x.shape[:2]
        if layout.starts is not None:
            self._packed = PackedRows(layout, b, length)
            b, length = layout.rows(b), self._packed.longest
        own = torch.full((b,), length, device=device) if layout.lengths is None else layout.lengths
        self._past: list[Use] = []
        if state is not None and state.uses():
            which = layout.sources if layout.sources is not None else torch.arange(b, device=device) % len(state)
            self._past = [use.of(which) for use in state.uses()]
        seen = torch.stack([use.lengths for use in self._past]).sum(0) if self._past else torch.zeros_like(own)
        self._positions = seen[:, None] + torch.arange(length, device=device)  # [b, l]
        self._mask: Tensor | None = None
        if self._past:
            causal = torch.ones(length, length, dtype=torch.bool, device=device).tril().expand(b, -1, -1)
            before = torch.cat([_read(use) for use in self._past], 1)[:, None].expand(-1, length, -1)
            self._mask = torch.cat([before, causal], 2)[:, None]  # [b, 1, l, all]
        self._new = Segment([], [], own)
        self._tails: list[Tensor] = []
        self._states: list[Tensor] = []

    def mix(self, mixer: Mixer, u: Tensor) -> Tensor:
        at, before = len(self._tails), self._state
        start = (None, None) if before is None else (before.tails[at], before.states[at])
        y, tail, state = mixer(u, *start, self._layout)
        self._tails.append(tail)
        self._states.append(state)
        return y

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rope: Rope | None, scale: float) -> Tensor:
        if self._packed is not None:
            q, k, v = (self._packed.pad(t) for t in (q, k, v))
        if rope is not None:
            q, k = rope(q, self._positions), rope(k, self._positions)
        layer = len(self._new.keys)
        keys = [_gather(use.segment.keys[layer], use.rows) for use in self._past]
        values = [_gather(use.segment.values[layer], use.rows) for use in self._past]
        self._new.keys.append(k)
        self._new.values.append(v)
        y = _attention(q, [*keys, k], [*values, v], self._mask, scale)
        return y if self._packed is None else self._packed.pack(y)

    def after(self) -> HybridState:
        """The state after each row's last token."""
        own = torch.arange(len(self._new.lengths), device=self._new.lengths.device)
        past = (*self._past, Use(self._new, own)) if self._new.keys else ()
        return HybridState(tuple(self._tails), tuple(self._states), past)


class Step:
    """A decoding step; `state` is brought up to date in place, its lengths by `close`."""

    def __init__(self, state: HybridState):
        self._state = state
        self._at = self._layer = 0
        self._uses: list[Use] = []
        if state.past:
            state.get_ready()
            assert state.open is not None  # noqa: S101
            self._uses = list(state.past)
            seen = torch.stack([use.lengths for use in state.uses()]).sum(0)
            self._positions = seen[:, None]  # [b, 1]
            longest = int(state.open.lengths.max()) + 1
            own = torch.arange(longest, device=seen.device) <= state.open.lengths[:, None]
            self._longest = longest
            self._mask = torch.cat([*(_read(use) for use in self._uses), own], 1)[:, None, None]  # [b, 1, 1, all]

    def mix(self, mixer: Mixer, u: Tensor) -> Tensor:
        y = mixer.step(u[:, 0], self._state.tails[self._at], self._state.states[self._at])
        self._at += 1
        return y[:, None]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rope: Rope | None, scale: float) -> Tensor:
        layer, own = self._layer, self._state.open
        assert own is not None, "a state that was not read by `prefill`"  # noqa: S101
        self._layer += 1
        if rope is not None:
            q, k = rope(q, self._positions), rope(k, self._positions)
        own.write(layer, k[:, 0], v[:, 0])
        keys = [_gather(use.segment.keys[layer], use.rows) for use in self._uses]
        values = [_gather(use.segment.values[layer], use.rows) for use in self._uses]
        keys.append(own.keys[layer][:, : self._longest])
        values.append(own.values[layer][:, : self._longest])
        return _attention(q, keys, values, self._mask, scale)

    def close(self) -> None:
        """The token has been read by all layers."""
        if self._state.open is not None:
            self._state.open.lengths = self._state.open.lengths + 1


def _read(use: Use) -> Tensor:
    """True [b, t] at the tokens of the segment that each row has read."""
    tokens = torch.arange(use.segment.keys[0].shape[1], device=use.rows.device)
    return tokens < use.lengths[:, None]


def _gather(storage: Tensor, rows: Tensor) -> Tensor:
    """[m, t, heads, w] -> [b, t, heads, w]; a row without a storage row gets any, and a mask that hides it."""
    return storage.expand(len(rows), -1, -1, -1) if len(storage) == 1 else storage[rows.clamp(min=0)]


def _attention(q: Tensor, keys: list[Tensor], values: list[Tensor], mask: Tensor | None, scale: float) -> Tensor:
    """[b, l, heads w]; without a mask causal among themselves."""
    k = torch.cat(keys, 1).transpose(1, 2)  # [b, kv heads, all, w]
    v = torch.cat(values, 1).transpose(1, 2)
    q = q.transpose(1, 2)  # [b, heads, l, w]
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return y.transpose(1, 2).flatten(2)
