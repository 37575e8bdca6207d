"""Attention for tokens of many rows that stand in one line, so that nothing but attention computes on padding.

A model gets one line of tokens, [1, n]. Its attention is asked for by the name `PACKED`, under which `attention` is
registered with transformers: that puts the queries into their rows, has the model's own attention computed there, and
takes what comes out back into the line. Keys and values come in rows already, from a `Room`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PACKED = "vlmamba_packed"


@dataclass(slots=True)
class Rows:
    """Where the tokens of a line stand: token i at `slots[i]` of the rows [count, width], counted through."""

    slots: Tensor
    count: int
    width: int
    _spread: Tensor | None = None

    def spread(self, tokens: Tensor) -> Tensor:
        """tokens [n, heads, d] in their rows, [count * width, heads, d]; good until the next call.

        Every layer fills the same places: the zeros between them are written once.
        """
        if self._spread is None or self._spread.shape[1:] != tokens.shape[1:]:
            self._spread = tokens.new_zeros(self.count * self.width, *tokens.shape[1:])
        return self._spread.index_copy_(0, self.slots, tokens)


_now: ContextVar[tuple[Rows, str]] = ContextVar("rows and attention of the forward under way")


@contextmanager
def packed(config: Any, rows: Rows) -> Iterator[None]:
    """Forwards of the language model with this configuration take a line that stands in these rows."""
    own = config._attn_implementation
    token = _now.set((rows, own))
    config._attn_implementation = PACKED
    try:
        yield
    finally:
        config._attn_implementation = own
        _now.reset(token)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """query [1, heads, n, d]; key, value [rows, heads, k, d]; the mask is of the rows -> [1, n, heads, d]."""
    rows, own = _now.get()
    if own in ALL_ATTENTION_FUNCTIONS:
        inner = ALL_ATTENTION_FUNCTIONS[own]
    else:  # `eager`: a function of the model's own module
        inner = sys.modules[type(module).__module__].eager_attention_forward
    spread = rows.spread(query[0].transpose(0, 1))  # [rows * width, heads, d]
    spread = spread.unflatten(0, (rows.count, rows.width)).transpose(1, 2)  # [rows, heads, width, d]
    found, _ = inner(module, spread, key, value, attention_mask, **kwargs)  # [rows, width, heads, d]
    return found.flatten(0, 1).index_select(0, rows.slots)[None], None


AttentionInterface.register(PACKED, attention)
