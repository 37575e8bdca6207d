"""What models leave around an answer: special tokens, reasoning in tags, white space."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

TOKENS = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|</?s>|<(?:unk|pad|eos|bos|image)>|<(?:start|end)_of_turn>|\[/?INST\]"
)
THOUGHT = re.compile(r"<(think|thinking|thought|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
OPENED_BEFORE = re.compile(r"^.*</(?:think|thinking|thought|reasoning)>", re.DOTALL | re.IGNORECASE)
NEVER_CLOSED = re.compile(r"<(?:think|thinking|thought|reasoning)>.*$", re.DOTALL | re.IGNORECASE)


def clean(text: str) -> str:
    """A text without special tokens, reasoning tags and what stands in them, and outer white space.

    A tag that the chat template opened has only its end in the text: everything up to it is reasoning. A tag that is
    never closed leaves no answer behind it.
    """
    text = THOUGHT.sub("", text)
    text = OPENED_BEFORE.sub("", text)
    text = NEVER_CLOSED.sub("", text)
    return TOKENS.sub("", text).strip()


def remarks(texts: Iterable[str]) -> str:
    """A sentence on how many texts `clean` would change, and why; empty if none."""
    counts: Counter[str] = Counter()
    n = 0
    for text in texts:
        n += 1
        if "<" not in text and "[" not in text and text == text.strip():
            continue
        if OPENED_BEFORE.search(text) or NEVER_CLOSED.search(text):
            counts["hold reasoning tags (<think>...)"] += 1
        tokens = TOKENS.findall(text)
        if tokens:
            counts["hold special tokens"] += 1
        if text != text.strip():
            counts["begin or end in white space"] += 1
    if not counts:
        return ""
    found = ", ".join(f"{count:,} {what}" for what, count in counts.most_common())
    return (
        f"Of {n:,} answers {found}. They are scored as they are, which is what the official scorer does; "
        "--clean takes these off first, under a name of its own."
    )
