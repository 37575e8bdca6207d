"""Rows that lie one after another in one long row, and the same rows padded on the right."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.scan.layout import Layout


class PackedRows:
    """Where packed rows lie among `total` tokens.

    Products with weight matrices want rows packed; what looks along time wants them padded.
    """

    def __init__(self, layout: Layout, b: int, total: int):
        lengths, starts = layout.packed(b)
        self.total = total
        self.longest = int(lengths.max()) if len(lengths) else 0
        ts = torch.arange(self.longest, device=lengths.device)
        self._places = (starts[:, None] + ts).clamp(max=max(0, total - 1))  # [b, l]
        self._valid = ts < lengths[:, None]  # [b, l]
        self._targets = self._places[self._valid]  # [tokens]

    def pad(self, tensor: Tensor) -> Tensor:
        """[1, total, ...] -> [b, l, ...]; what stands in the padding is no matter, but finite."""
        return tensor[0][self._places]

    def pack(self, tensor: Tensor) -> Tensor:
        """[b, l, ...] -> [1, total, ...]; 0 at tokens that belong to no row."""
        packed = tensor.new_zeros(self.total, *tensor.shape[2:])
        return packed.index_copy(0, self._targets, tensor[self._valid])[None]
