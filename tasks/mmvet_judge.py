"""What MM-Vet's judge is asked, and how its reply is read.

The idea is that of https://github.com/yuweihao/MM-Vet/blob/c7ff270d86fb/mm-vet_evaluator.py#L14-L27 (few-shot, one
number from 0 to 1 in steps of 0.1), in other words and with other examples: scores come near
the authors' only with their judge (gpt-4-0613), and are never the same.
"""

from __future__ import annotations

import re

from vlmamba_eval.task import Message
from vlmamba_eval.types import DataError, Sample

RULES = (
    "You grade answers to questions about pictures. You see the question, the reference and a model's answer, not the "
    "picture. Say how much of the reference the answer gets right, from 0.0 (nothing) to 1.0 (all of it), in steps of "
    "0.1. Parts of a reference that are joined by <AND> are all needed for 1.0, and each is worth its share; of parts "
    "joined by <OR>, one is enough. Wording, length and order don't matter; what contradicts the reference counts as "
    "wrong. Reply with the number alone."
)
# question, reference, answer, grade
EXAMPLES = (
    ("Which numbers solve the equation?", "2 <AND> -7", "x is 2 or -7", "1.0"),
    ("Which numbers solve the equation?", "2 <AND> -7", "x = -7", "0.5"),
    ("Which numbers solve the equation?", "2 <AND> -7", "x = 7", "0.0"),
    ("What colour is the car?", "gray <OR> silver", "The car is silver.", "1.0"),
    (
        "Why is this sign funny?",
        "The sign forbids signs, so it breaks its own rule; whoever put it up did what it forbids.",
        "It is funny because it says that no signs are allowed.",
        "0.4",
    ),
    (
        "Why is this sign funny?",
        "The sign forbids signs, so it breaks its own rule; whoever put it up did what it forbids.",
        "A sign that bans all signs can't stand there itself: its owner breaks the rule by announcing it.",
        "1.0",
    ),
)


def judge_messages(sample: Sample, answer: str) -> list[Message]:
    """The conversation that asks for one grade; the examples are earlier turns of it.

    Raises `DataError` if the sample has no official answer to compare with.
    """
    if "gold" not in sample.fields:
        raise DataError(
            f"{sample.where}: no official answers here, so a judge has nothing to compare with. "
            "Put mm-vet.json into the data folder."
        )
    messages: list[Message] = [{"role": "system", "content": RULES}]
    gold = re.sub(r"\s*<(AND|OR)>\s*", r" <\1> ", sample.fields["gold"])
    answer = answer.encode(errors="replace").decode()  # a lone surrogate can't be sent
    for question, reference, text, grade in (*EXAMPLES, (sample.question, gold, answer, "")):
        messages.append({"role": "user", "content": f"Question: {question}\nReference: {reference}\nAnswer: {text}"})
        messages.append({"role": "assistant", "content": grade})
    return messages[:-1]


def read_judgement(reply: str) -> float | None:
    """The number, 0 to 1, that a reply begins with."""
    number = re.match(r"\d*\.?\d+", reply.strip())
    return float(number[0]) if number and 0 <= float(number[0]) <= 1 else None
