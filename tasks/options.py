"""Which option a free text means: this project's rules, and VLMEvalKit's without its judge. Used by MMBench.

Neither guesses: what the rules can't read is None.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmamba_eval.task import LETTERS

# After `undressed`: (B) or B. at the beginning; alone; wherever one stands; and what is said in words.
LEADING = re.compile(r"(?:\(([A-H])\)|([A-H])(?:[.):,]|$))")
ALONE = re.compile(r"\(?([A-H])\)?[.:,]?")
DRESSED = re.compile(r"(?:[Oo]ption|[Cc]hoice)\s+\(?([A-H])\)?\.?|[\"'“‘]([A-H])\.?[\"'”’]\.?|\(([a-h])\)\.?")
NAMED = re.compile(r"\(([A-H])\)|(?<![\w'])([A-H])(?=[.):,](?:\s|$))")
SAID = re.compile(
    r"(?:\b(?:correct\s+|right\s+|best\s+|final\s+)?(?:answer|option|choice)(?:\s+is|\s*:|\s*=)|答案(?:是|为|:)|选(?:择|项)?(?:是|为|:)?)"
    r"\s*:?\s*(?:option\s+|choice\s+|选项)?\(?((?-i:[A-H])(?![\w'])|[a-h](?=\s*[).,]?\s*$))",
    re.IGNORECASE | re.MULTILINE,
)
_FULL_WIDTH = {ord("Ａ") + i: chr(ord("A") + i) for i in range(8)} | {
    ord(wide): narrow for wide, narrow in zip("（）［］：．，。", "()[]:.,.", strict=True)
}


def undressed(text: str) -> str:
    """A text without bold, boxes and full-width forms: what stays is what is said."""
    text = text.translate(_FULL_WIDTH)
    text = re.sub(r"\$?\\boxed\s*\{\s*(?:\\text\s*\{)?\s*([A-H])\s*\}?\s*\}\$?", r"\1", text)
    text = re.sub(r"\[\s*([A-H])\s*\]", r"(\1)", text)
    return re.sub(r"\*\*|__|`", "", text).strip()


def read_choice(text: str, choices: Sequence[str]) -> str | None:
    """The letter that a text stands for, or None if it supports none, or more than one.

    Marks of dress are taken off first: bold, full-width letters and brackets, `[B]`, `\\boxed{B}`, a final period. Then

    1. What is said explicitly: "the answer is B", "Answer: B", "答案是B". Said more than once, the last one counts, for
       that is what the answer concludes with.
    2. The whole text is one letter: `B`, `B.`, `(B)`; or `(b)`, `"B"`, `Option B`, unless an option reads so itself.
    3. It begins with an option's letter and a sign (`B. red`, `B) red`, `(B) red`) and no other option's letter stands
       so anywhere in it: an answer that repeats the options is not read by its first one. "B" and a word is not read,
       for "A" may be an article.
    4. Otherwise the text of exactly one option stands in it, as whole words, upper and lower case alike; if options
       contain each other ("cat", "black cat"), the longer one counts.
    """
    letters = LETTERS[: len(choices)]
    plain = undressed(text)
    said = [letter.upper() for letter in SAID.findall(plain) if letter.upper() in letters]
    if said:
        return said[-1]
    if (alone := ALONE.fullmatch(plain)) and alone[1] in letters:
        return alone[1]
    folded = [choice.strip().casefold() for choice in choices]
    dressed = None if plain.casefold() in folded else DRESSED.fullmatch(plain)
    if dressed and (letter := (dressed[1] or dressed[2] or dressed[3]).upper()) in letters:
        return letter
    named = {letter for found in NAMED.findall(plain) for letter in found if letter and letter in letters}
    if (leading := LEADING.match(plain)) and (letter := leading[1] or leading[2]) in letters:
        return letter if named == {letter} else None
    inside = [option for option in folded if option and _holds(plain.casefold(), option)]
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
