"""Cobra's protocol: the lists of LLaVA's suite with the prompts and readings of Cobra's own evaluation.

Paper   Zhao et al. 2025, Cobra, AAAI-25, arXiv 2403.14520
Code    https://github.com/h-zhao1997/vlm-evaluation/tree/b0a691f, a fork of TRI-ML's: vlm_eval/models/cobra.py has the
        prompts, vlm_eval/tasks/harnesses the scoring

    pope_cobra     mean accuracy of the three lists, by the likelier of Yes and No as the first token
                   (`--scoring likelihood`); LLaVA's number is the mean F1 of what is generated
    vqav2_cobra    val; the answer is normalised, gold answers only lose their punctuation
    gqa_cobra      all punctuation is taken out of the answer
    textvqa_cobra  recognised words first, and the instruction twice

Their VizWiz and VSR have no twin in LLaVA's suite: `vizwiz`, `vsr`. None of these numbers may stand beside LLaVA's.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from vlmamba_eval.task import SHORT_ANSWER
from vlmamba_eval.tasks.gqa import GQA, Gqa
from vlmamba_eval.tasks.pope import PINNED, Pope
from vlmamba_eval.tasks.textvqa import BEFORE, OCR, TextVqa
from vlmamba_eval.tasks.vqa_accuracy import LEAVE_ONE_OUT, vqa, without_punctuation
from vlmamba_eval.tasks.vqav2 import VAL, VqaV2
from vlmamba_eval.types import Metric, Sample, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.sums import Sums

CODE = "https://github.com/h-zhao1997/vlm-evaluation/blob/b0a691f/vlm_eval"

POPE = replace(
    PINNED,
    name="pope_cobra",
    title="POPE (Cobra)",
    measures="object hallucination, the likelier of Yes and No (published with --scoring likelihood)",
    headline="mean_accuracy",
    protocol="cobra",
    scorer=f"{CODE}/tasks/harnesses/pope.py",
)
VQAV2 = replace(
    VAL,
    name="vqav2_cobra",
    title="VQAv2 (val, Cobra)",
    version=1,
    protocol="cobra",
    scorer=f"{CODE}/util/evaluation/vqav2/eval.py",
)
GQA_PLAIN = replace(
    GQA, name="gqa_cobra", title="GQA (Cobra)", protocol="cobra", scorer=f"{CODE}/tasks/harnesses/gqa.py"
)
TEXTVQA = replace(
    BEFORE,
    name="textvqa_cobra",
    title="TextVQA (Cobra)",
    measures="reading text in pictures; recognised words first, the instruction twice",
    protocol="cobra",
    scorer=f"{CODE}/util/evaluation/textvqa/m4c_evaluators.py",
)

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class CobraPope(Pope):
    def metrics(self, sums: Sums) -> Iterator[Metric]:
        for metric in super().metrics(sums):
            yield replace(metric, headline=metric.name == self.info.headline)


class CobraVqaV2(VqaV2):
    info = VQAV2

    def grade(self, sample: Sample, text: str) -> Verdict:
        """Leave-one-out accuracy of the normalised answer; gold answers keep their articles and number words."""
        prediction = vqa(text)
        credit = LEAVE_ONE_OUT[sum(without_punctuation(answer) == prediction for answer in sample.target or ())]
        return Verdict(prediction, credit, bool(prediction), {"raw": credit})

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        # There is one reading here; LLaVA's list has a second, of the answer as it is.
        yield from (metric for metric in super().metrics(sums) if metric.name != "accuracy_raw")


class CobraGqa(Gqa):
    info = GQA_PLAIN

    def grade(self, sample: Sample, text: str) -> Verdict:
        """The answer without any punctuation, in lower case, has to equal the gold answer."""
        prediction = text.translate(_NO_PUNCTUATION).lower()
        return Verdict(prediction, float(prediction == sample.target), bool(prediction.strip()))


class CobraTextVqa(TextVqa):
    def prompt(self, sample: Sample) -> str:
        """Cobra's evaluation moves the words of LLaVA's prompt to the front, and the instruction comes along."""
        words = OCR + ", ".join(sample.fields["words"] or ())
        return "\n".join((words, SHORT_ANSWER, sample.question.capitalize(), SHORT_ANSWER))


TASKS = (CobraPope(POPE), CobraVqaV2(), CobraGqa(), CobraTextVqa(TEXTVQA, "before"))
