"""The commonest answers that the official parser could not read, and what another, more lenient reading would give.

The other reading never decides a score. It shows how much of an error is a model's form rather than its sight.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COMMONEST = 20
_LETTER = (
    r"\b(?:answer|option|choice)\s*(?:is|:)?\s*\(?([A-H])\b",
    r"\(([A-H])\)",
    r"^\W*([A-H])\b(?!')",
    r"\b([B-H])\b",
)


@dataclass(frozen=True)
class Unreadable:
    """One text: how often it was the answer, to which gold answers, and how it could be read."""

    answer: str
    count: int
    gold: str
    reading: str  # "" if no other reading finds an answer
    right: int  # how many of them would be right if read so


def commonest(rows: Iterable[Mapping[str, Any]], limit: int = COMMONEST) -> tuple[list[Unreadable], int, int]:
    """A run's commonest unreadable answers; how many there are in all; how many another reading makes right."""
    rows = list(rows)
    kind = _kind([gold for row in rows for gold in golds(row)])
    found: dict[str, list[tuple[list[str], str]]] = {}
    for row in rows:
        if row["state"] == "ok" and row["valid"] is False:
            found.setdefault(row["answer"] or "", []).append((golds(row), _read(kind, row["answer"] or "", golds(row))))
    result = []
    for answer, seen in found.items():
        readings = Counter(reading for _, reading in seen if reading)
        gold = Counter(", ".join(g[:2]) + ("…" if len(g) > 2 else "") for g, _ in seen)
        shown = ", ".join(name for name, _ in gold.most_common(3)) + ("…" if len(gold) > 3 else "")
        right = sum(reading.casefold() in {g.casefold() for g in gold_answers} for gold_answers, reading in seen)
        result.append(Unreadable(answer, len(seen), shown, ", ".join(n for n, _ in readings.most_common(2)), right))
    result.sort(key=lambda item: (-item.count, item.answer))
    return result[:limit], sum(item.count for item in result), sum(item.right for item in result)


def golds(row: Mapping[str, Any]) -> list[str]:
    """The gold answers of a verdict's row; none if they are not public."""
    gold = row["gold"]
    return [gold] if isinstance(gold, str) else list(gold or ())


def _kind(all_golds: Sequence[str]) -> str:
    found = {gold.casefold() for gold in all_golds}
    if found and found <= {"yes", "no"}:
        return "yes or no"
    return "letter" if found and all(len(gold) == 1 and "a" <= gold <= "h" for gold in found) else "words"


def _read(kind: str, answer: str, gold: Sequence[str]) -> str:
    """What a lenient reader takes for the answer: the first yes or no, a letter as people write it, the gold words."""
    if kind == "yes or no":
        match = re.search(r"\b(yes|no)\b", answer.casefold())
        return match[1] if match else ""
    if kind == "letter":
        return next((match[1] for pattern in _LETTER if (match := re.search(pattern, answer))), "")
    spaced = f" {_words(answer)} "
    for text in gold:
        wanted = _words(text)
        if wanted and f" {wanted} " in spaced:
            return text
    return ""


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))
