"""Summed counts, as a benchmark's metrics see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vlmamba_eval.nearest import did_you_mean

Floats = NDArray[np.float64]
Column = tuple[str, str]
"""A column's name and the group that it counts."""


class Sums:
    """Summed columns, each an array over bootstrap replicates: what `Task.metrics` computes with."""

    def __init__(self, index: Mapping[Column, int], values: Floats, groups: tuple[str, ...], names: Sequence[str]):
        self._index = index
        self._values = values  # [replicates, columns]
        self._names = names
        self.groups = groups

    def __call__(self, column: str, group: str = "all") -> Floats:
        """The sum of a column in a group, [replicates]; zeros if nothing was counted there.

        Raises `LookupError` for a column that the task does not declare.
        """
        check_column(column, self._names)
        position = self._index.get((column, group))
        return np.zeros(len(self._values)) if position is None else self._values[:, position]

    def groups_of(self, column: str) -> Iterator[str]:
        """The groups in which something was counted in a column."""
        check_column(column, self._names)
        return (group for name, group in self._index if name == column)

    def n(self, group: str = "all") -> Floats:
        """The number of questions of a group, missing and failed ones included, [replicates]."""
        return self("n", group)

    def credit(self, group: str = "all") -> Floats:
        """The summed credit of a group's questions, [replicates]."""
        return self("credit", group)

    @staticmethod
    def ratio(numerator: Floats, denominator: Floats) -> Floats:
        """Their quotient; NaN if the denominator is 0."""
        undefined = np.full(np.broadcast(numerator, denominator).shape, np.nan)
        return np.divide(numerator, denominator, out=undefined, where=denominator != 0)


def check_column(column: str, declared: Sequence[str]) -> None:
    """Raise `LookupError` for a column that is not declared, with the nearest names."""
    if column not in declared:
        hint = did_you_mean(column, declared, f"Declared are: {', '.join(declared)}.")
        raise LookupError(f"the task has no column {column!r} (`Task.columns`). {hint}")
