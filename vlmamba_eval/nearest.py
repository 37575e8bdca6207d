"""What a misspelt name probably meant: one rule for commands, tasks, models, options, baselines and columns."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of the known names that look like `name`, the most similar first."""
    spelled: dict[str, str] = {}
    for candidate in known:
        spelled.setdefault(candidate.lower(), candidate)
    return [spelled[found] for found in difflib.get_close_matches(name.lower(), spelled, n=3, cutoff=0.5)]


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """`Did you mean: a, b?`, or `otherwise` if nothing is near."""
    found = nearest(name, known)
    return f"Did you mean: {', '.join(found)}?" if found else otherwise
