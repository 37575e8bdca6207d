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
    texts = list(texts)
    for text in texts:
        counts["hold reasoning tags (<think>...)"] += bool(OPENED_BEFORE.search(text) or NEVER_CLOSED.search(text))
        counts["hold special tokens"] += bool(TOKENS.search(text))
        counts["begin or end in white space"] += text != text.strip()
    if not counts.total():
        return ""
    found = ", ".join(f"{count:,} {what}" for what, count in counts.most_common() if count)
    return (
        f"Of {len(texts):,} answers {found}. They are scored as they are, which is what the official scorer does; "
        "--clean takes these off first, under a name of its own."
    )
