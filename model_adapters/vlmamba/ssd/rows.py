"""Rows that lie one after another in one long row, and the same rows padded on the right."""

from __future__ import annotations

import torch
from torch import Tensor


class PackedRows:
    """Where packed rows lie: row i holds the tokens from starts[i] on, lengths[i] of them, of `total`.

    Products with weight matrices want rows packed; what looks along time wants them padded.
    """

    def __init__(self, lengths: Tensor, starts: Tensor, total: int, device: torch.device):
        self.lengths, starts = lengths.to(device), starts.to(device)  # [b]
        self.total = total
        self.longest = int(lengths.max()) if len(lengths) else 0
        ts = torch.arange(self.longest, device=device)
        self._sources = (starts[:, None] + ts).clamp(max=max(0, total - 1))  # [b, l]
        self._valid = ts < self.lengths[:, None]  # [b, l]
        self._targets = self._sources[self._valid]  # [tokens]

    def pad(self, tensor: Tensor) -> Tensor:
        """[1, total, ...] -> [b, l, ...]; what stands in the padding is no matter, but finite."""
        return tensor[0][self._sources]

    def pack(self, tensor: Tensor) -> Tensor:
        """[b, l, ...] -> [1, total, ...]; 0 at tokens that belong to no row."""
        packed = tensor.new_zeros(self.total, *tensor.shape[2:])
        return packed.index_copy(0, self._targets, tensor[self._valid])[None]
