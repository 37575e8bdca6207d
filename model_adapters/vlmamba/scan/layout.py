"""Where the tokens of each row stand, and which saved state the row continues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """What the engine tells the kernels about `b` rows of tokens. Each part is int64 [b], on the tokens' device.

    `sources` names the saved state that a row starts from: many rows may name one state, so that a fork costs nothing,
    and -1 is the zero state. Without it the states belong to the rows in order, or, if there is only one, to all.
    `lengths` counts the valid tokens of each row; without it all are valid. With `starts` the rows are packed: tensors
    of tokens are [1, l, ...], and row i holds the tokens from starts[i] on, lengths[i] of them.
    """

    sources: Tensor | None = None
    lengths: Tensor | None = None
    starts: Tensor | None = None

    @classmethod
    def of(
        cls, lengths: Sequence[int], sources: Sequence[int] | None, device: torch.device, *, packed: bool = False
    ) -> Layout:
        """The layout of rows that lie packed in order, or padded on the right; one copy to the device."""
        columns = {"lengths": lengths} if packed or min(lengths) < max(lengths) else {}
        if packed:
            columns["starts"] = [0, *accumulate(lengths[:-1])]
        if sources is not None:
            columns["sources"] = sources
        if not columns:
            return WHOLE
        return cls(**dict(zip(columns, to_device(list(columns.values()), device).unbind(0), strict=True)))

    def rows(self, b: int) -> int:
        """How many rows tensors [b, l, ...] hold."""
        return b if self.starts is None else len(self.packed(b)[1])

    def packed(self, b: int) -> tuple[Tensor, Tensor]:
        """Lengths and starts of rows packed into tensors [b, l, ...]; `ValueError` unless b is 1."""
        lengths, starts = self.lengths, self.starts
        if b != 1 or lengths is None or starts is None:
            raise ValueError(f"packed rows are [1, l, ...] with lengths and starts, not {b} rows with {self}")
        return lengths, starts


# All tokens valid, each row continuing the state of its own number.
WHOLE = Layout()


def to_device(numbers: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Integers as int64 on the device; the host does not wait for a GPU."""
    made = torch.tensor(numbers, dtype=torch.long)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)
