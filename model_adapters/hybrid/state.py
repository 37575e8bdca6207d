"""All that a model with Mamba and attention layers remembers of the tokens it has read.

Recurrent states have a fixed size and are copied when a row goes on. Keys and values grow with what was read, so they
are kept in segments, and a row refers to one storage row of each of its segments:

    opening of the conversation   1 storage row, of which every image makes use
    image                         1 storage row per image, of which all its questions make use
    question                      1 storage row per question
    answer                        the open segment, which grows: 1 storage row per row, nobody else's

To continue a row is to name it: no key is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

_GROWTH = 32  # tokens by which an open segment gets longer


@dataclass(slots=True)
class Segment:
    """Keys and values of some tokens: for each attention layer [m, t, kv heads, width]; `lengths` int64 [m]."""

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor

    def select(self, rows: Tensor) -> Segment:
        """Storage rows as a copy."""
        return Segment([k[rows] for k in self.keys], [v[rows] for v in self.values], self.lengths[rows])

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Put the next token's key and value [m, kv heads, width] of one layer behind the others."""
        rows = torch.arange(len(self.lengths), device=key.device)
        self.keys[layer][rows, self.lengths] = key
        self.values[layer][rows, self.lengths] = value

    def reserve(self) -> None:
        """Make room for one more token of the longest row."""
        needed = int(self.lengths.max()) + 1
        if needed > self.keys[0].shape[1]:
            self.keys = [F.pad(k, (0, 0, 0, 0, 0, _GROWTH)) for k in self.keys]
            self.values = [F.pad(v, (0, 0, 0, 0, 0, _GROWTH)) for v in self.values]


@dataclass(slots=True)
class Use:
    """A segment and, for each row, the storage row that it refers to: int64 [s], -1 for none."""

    segment: Segment
    rows: Tensor

    @property
    def lengths(self) -> Tensor:
        """How many tokens of the segment each row has read, int64 [s]."""
        return self.segment.lengths[self.rows.clamp(min=0)].masked_fill(self.rows < 0, 0)

    def of(self, rows: Tensor) -> Use:
        """What the given rows refer to; -1 stands for a row that has read nothing."""
        return Use(self.segment, self.rows[rows.clamp(min=0)].masked_fill(rows < 0, -1))


@dataclass(slots=True)
class HybridState:
    """For each Mamba layer the tails [s, k-1, channels] and states [s, h, p, n] of `s` rows; what they attend to."""

    tails: tuple[Tensor, ...]
    states: tuple[Tensor, ...]
    past: tuple[Use, ...] = ()
    open: Segment | None = field(default=None)

    def __len__(self) -> int:
        return len(self.past[0].rows) if self.past else len(self.states[0])

    def uses(self) -> tuple[Use, ...]:
        """All segments, the open one too."""
        if self.open is None:
            return self.past
        return *self.past, Use(self.open, torch.arange(len(self), device=self.open.lengths.device))

    def select(self, rows: Tensor) -> HybridState:
        """The given rows, in that order. Recurrent states and open segments are copied, the others are shared."""
        return HybridState(
            tuple(tail.index_select(0, rows) for tail in self.tails),
            tuple(state.index_select(0, rows) for state in self.states),
            tuple(use.of(rows) for use in self.past),
            None if self.open is None else self.open.select(rows),
        )

    def get_ready(self) -> None:
        """Make room for one more token: the segments of what was read close, and an open one follows them."""
        if self.open is None and self.past:
            like = self.past[-1].segment
            n, device = len(self), like.lengths.device
            self.open = Segment(
                [k.new_zeros(n, _GROWTH, *k.shape[2:]) for k in like.keys],
                [v.new_zeros(n, _GROWTH, *v.shape[2:]) for v in like.values],
                torch.zeros(n, dtype=torch.long, device=device),
            )
        elif self.open is not None:
            self.open.reserve()

    # Without attention layers a state is memory of a fixed size, over which a captured step is replayed.

    def view(self, n: int) -> HybridState:
        """The first `n` rows, sharing memory."""
        return HybridState(tuple(tail[:n] for tail in self.tails), tuple(state[:n] for state in self.states))

    def put(self, start: int, other: HybridState) -> None:
        """Copy the rows of `other` into this state from row `start` on."""
        for mine, theirs in zip(self.tails + self.states, other.tails + other.states, strict=True):
            mine[start : start + len(theirs)].copy_(theirs)

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy rows over other rows; no row may be both source and target."""
        device = self.states[0].device
        source, target = torch.tensor(sources, device=device), torch.tensor(targets, device=device)
        for tensor in self.tails + self.states:
            tensor.index_copy_(0, target, tensor.index_select(0, source))


def join(states: Sequence[HybridState]) -> HybridState:
    """The rows of several states, one after another. They were read in the same number of pieces."""
    if len(states) == 1:
        return states[0]
    depths = {len(state.past) for state in states}
    assert len(depths) == 1, f"states of different depth: {depths}"  # noqa: S101
    opens = [state.open for state in states]
    if any(opens) and not all(opens):
        for state in states:
            if state.open is None:
                state.get_ready()
        opens = [state.open for state in states]
    return HybridState(
        tuple(torch.cat(tails) for tails in zip(*(state.tails for state in states), strict=True)),
        tuple(torch.cat(kept) for kept in zip(*(state.states for state in states), strict=True)),
        tuple(_join_uses(uses) for uses in zip(*(state.past for state in states), strict=True)),
        _join_segments([segment for segment in opens if segment is not None]) if all(opens) else None,
    )


def _join_uses(uses: Sequence[Use]) -> Use:
    if all(use.segment is uses[0].segment for use in uses):
        return Use(uses[0].segment, torch.cat([use.rows for use in uses]))
    # Storage rows that nobody refers to any more are left behind.
    segments, rows, start = [], [], 0
    for use in uses:
        kept, places = use.rows.clamp(min=0).unique(return_inverse=True)
        segments.append(use.segment.select(kept))
        rows.append((places + start).masked_fill(use.rows < 0, -1))
        start += len(kept)
    return Use(_join_segments(segments), torch.cat(rows))


def _join_segments(segments: Sequence[Segment]) -> Segment:
    longest = max(segment.keys[0].shape[1] for segment in segments)

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([F.pad(t, (0, 0, 0, 0, 0, longest - t.shape[1])) for t in tensors])

    return Segment(
        [joined(keys) for keys in zip(*(segment.keys for segment in segments), strict=True)],
        [joined(values) for values in zip(*(segment.values for segment in segments), strict=True)],
        torch.cat([segment.lengths for segment in segments]),
    )
