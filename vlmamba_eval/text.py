"""Names, answers and messages come from files of strangers: what they must not do to a terminal, a page, a sheet.

And the order in which names stand.
"""

from __future__ import annotations

import re

LONGEST_MESSAGE = 1000  # characters; an error may quote a whole tensor, or a header of a server

# Controls (terminal escapes among them), line ends but \n, direction marks, which show text in another order than it
# has, and halves of surrogate pairs, which no encoding can write.
_UNSEEN = "\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"


def printable(text: str) -> str:
    """The text without terminal escapes and the like, each run of which becomes a space; line ends stay."""
    return re.sub(f"[{_UNSEEN}]+", " ", text)


def one_line(text: str) -> str:
    """The same on one line."""
    return re.sub(f"[{_UNSEEN}\n]+", " ", text)


def short_message(text: str) -> str:
    """What another program says, of which only the beginning is kept."""
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}..."


def markdown(text: str) -> str:
    """Text that stays text in a cell of a Markdown table: no markup, no links, no HTML."""
    return re.sub(r"[\\`*\[\]<>|]", r"\\\g<0>", one_line(text))


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts `words/9` before `words/10`: of two numbers the longer is larger, and none is too long."""
    parts = re.split(r"(\d+)", name)
    return [(len(part.lstrip("0")), part.lstrip("0")) if i % 2 else (0, part) for i, part in enumerate(parts)]


def cell(text: str) -> str:
    """Text that a spreadsheet does not run as a formula, by a leading quote (OWASP, CSV injection)."""
    text = one_line(text)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
