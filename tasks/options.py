"""Which option a free text means: this project's rules, and VLMEvalKit's without its judge. Used by MMBench.

Neither guesses: what the rules can't read is None.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmamba_eval.task import LETTERS

LEADING = re.compile(r"\s*(?:\(([A-H])\)|([A-H])(?:[.):,]|\s*$))")


def read_choice(text: str, choices: Sequence[str]) -> str | None:
    """The letter that a text stands for, or None.

    1. It begins with an option's letter: `B` alone, `B.`, `B)`, `B:`, `B,` or `(B)`, with anything after the sign.
       "B" and a word is not read, for "A" may be an article.
    2. Otherwise the text of exactly one option stands in it, as whole words, upper and lower case alike; where options
       contain each other ("cat", "black cat"), the longer one counts.
    """
    letters = LETTERS[: len(choices)]
    if (leading := LEADING.match(text)) and (letter := leading[1] or leading[2]) in letters:
        return letter
    folded = [choice.strip().casefold() for choice in choices]
    inside = [option for option in folded if option and _holds(text.casefold(), option)]
    longest = [option for option in inside if not any(option != other and _holds(other, option) for other in inside)]
    return letters[folded.index(longest[0])] if len(longest) == 1 else None


def _holds(text: str, part: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text) is not None


REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def read_choice_vlmevalkit(text: str, choices: Sequence[str]) -> str | None:
    """VLMEvalKit's `can_infer` with its environment variable VERBOSE unset; "Z" is a refusal.

    https://github.com/open-compass/VLMEvalKit/blob/e8e78f0/vlmeval/utils/matching_util.py#L18-L127. First a letter that
    is the only one among the words and one of the last four of them (the article "A" counts); then "answer is X"; then
    the one option whose text stands anywhere in the answer, inside words too, unless the answer is more than twice as
    long as all options together.
    """
    letters = LETTERS[: len(choices)]
    if "Failed to obtain answer via API" not in text:
        if any(refusal in text for refusal in REFUSALS):
            return "Z"
        words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
        named = [letter for letter in letters if letter in words]
        if len(named) == 1 and words.index(named[0]) >= len(words) - 4:
            return named[0]
        if not named and "Z" in words:
            return "Z"
        said = re.search(r"answer\s+is\s+\**([A-D])", text, re.IGNORECASE)
        if said and said[1].upper() in letters:
            return said[1].upper()
    if len(text.lower()) > 2 * sum(map(len, choices)):
        return None
    inside = [letter for letter, choice in zip(letters, choices, strict=True) if choice.lower() in text.lower()]
    return inside[0] if len(inside) == 1 else None
