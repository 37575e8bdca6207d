"""Whether a saved prompt asks the question that a benchmark asks, whatever stands around it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

from vlmamba_eval.task import Task
from vlmamba_eval.types import Sample

OPTION = re.compile(r"^\s*\(?([A-H])[.):]\s*(.*)$")
BEFORE = "\n:.>?!)]}\"'-,|"  # what may stand before a question: a line end, `Question:`, `<image>`, the end of a hint
AFTER = "\n:.?!)]}\"',;<|"  # and behind it: no other word; "What is it" is not in "What is it made of?"


def plain(text: str) -> str:
    """A text without differences of case and white space, `<image>` apart; lines stay lines."""
    lines = (" ".join(line.split()) for line in text.replace("<image>", "\n").split("\n"))
    return "\n".join(line for line in lines if line).casefold()


class Asking:
    """The prompts of one list of questions."""

    def __init__(self, task: Task, samples: Sequence[Sample]) -> None:
        self._task = task
        self._samples = samples
        self._own: dict[str, str] = {}

    @cached_property
    def checkable(self) -> bool:
        """Whether prompts tell the questions apart at all: all captions are asked for in the same words."""
        return len(self._samples) == 1 or len({sample.question for sample in self._samples}) > 1

    @cached_property
    def _all(self) -> frozenset[str]:
        return frozenset(self.prompt(sample) for sample in self._samples)

    def prompt(self, sample: Sample) -> str:
        """The benchmark's own prompt, `plain`."""
        if sample.id not in self._own:
            self._own[sample.id] = plain(self._task.prompt(sample))
        return self._own[sample.id]

    def asks(self, sample: Sample, prompt: str) -> bool:
        """Whether `prompt` asks `sample`'s question: the benchmark's own words, or other words around the question.

        A prompt that is another sample's, or that holds lettered options which are not the sample's, does not.
        """
        if not self.checkable:
            return True
        saved = plain(prompt)
        if saved == self.prompt(sample):
            return True
        if saved in self._all:
            return False
        own_key = self._task.join_key(self._task.prompt(sample))
        if own_key and plain(own_key) == plain(self._task.join_key(prompt)):
            return True
        return _holds(saved, plain(sample.question)) and _same_options(sample, prompt)

    def as_asked(self, sample: Sample, prompt: str) -> bool:
        """Whether `prompt` holds the benchmark's own words, or is a part of them (LLaVA saves MMBench's so)."""
        saved, own = plain(prompt), self.prompt(sample)
        return own in saved or saved in own


def _holds(saved: str, question: str) -> bool:
    question = question.rstrip(" .?!")
    if "\n" in question and question not in saved:  # a question of several lines may stand on one
        saved, question = saved.replace("\n", " "), question.replace("\n", " ")
    around = rf"(?:^|[{re.escape(BEFORE)}]) *{re.escape(question)} *(?:$|[{re.escape(AFTER)}])"
    return bool(question) and question in saved and re.search(around, saved) is not None


def _same_options(sample: Sample, prompt: str) -> bool:
    """Whether the lettered options of a prompt, if it has any, are the sample's, each under its letter."""
    found = [match.groups() for line in prompt.split("\n") if (match := OPTION.match(line))]
    if not sample.choices or [letter for letter, _ in found[:2]] != ["A", "B"]:
        return True
    # An option of several lines shows its first one here.
    wanted = [plain(choice).split("\n")[0] for choice in sample.choices]
    return len(found) >= len(wanted) and all(
        plain(text).split("\n")[0] == choice for (_, text), choice in zip(found, wanted, strict=False)
    )
