"""The protocol of Mamba-VL and Pythia-VL, where it differs from LLaVA's by more than the conversation template.

Paper   Pantazopoulos et al. 2024, Shaking Up VLMs, arXiv 2409.05395
Code    https://github.com/gpantaz/vl_mamba/tree/c788f5f/src/vl_mamba/evaluation

    pope_mambavl     no `Question:` and no `Answer:`; a no is the answer `no` and nothing else
    textvqa_mambavl  recognised words in front of the question, with spaces between them
    vqav2_mambavl    val; the answer is normalised, gold answers are not, and each that agrees is worth 0.3
    gqa_mambavl      the answer without its full stop has to equal the gold answer, in any case

Their models end an answer with a full stop. The authors' scripts take off the stop and the end mark together, so that
an answer without the stop keeps its end mark and is wrong there; here it is read as it stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from vlmamba_eval.task import SHORT_ANSWER
from vlmamba_eval.tasks.gqa import GQA, Gqa
from vlmamba_eval.tasks.pope import PINNED, Pope
from vlmamba_eval.tasks.textvqa import BEFORE, TextVqa
from vlmamba_eval.tasks.vqa_accuracy import LEAVE_ONE_OUT, evalai
from vlmamba_eval.tasks.vqav2 import VAL, VqaV2
from vlmamba_eval.types import Metric, Sample, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.sums import Sums

CODE = "https://github.com/gpantaz/vl_mamba/blob/c788f5f/src/vl_mamba/evaluation"

POPE = replace(
    PINNED,
    name="pope_mambavl",
    title="POPE (Mamba-VL)",
    max_new_tokens=10,
    protocol="mambavl",
    scorer=f"{CODE}/evaluate_pope.py",
)
TEXTVQA = replace(
    BEFORE,
    name="textvqa_mambavl",
    title="TextVQA (Mamba-VL)",
    max_new_tokens=20,
    protocol="mambavl",
    scorer=f"{CODE}/evaluate_textvqa.py",
)
VQAV2 = replace(
    VAL,
    name="vqav2_mambavl",
    title="VQAv2 (val, Mamba-VL)",
    max_new_tokens=15,
    version=1,
    protocol="mambavl",
    scorer=f"{CODE}/evaluate_vqav2.py",
)
GQA_STOPPED = replace(
    GQA,
    name="gqa_mambavl",
    title="GQA (Mamba-VL)",
    max_new_tokens=20,
    protocol="mambavl",
    scorer=f"{CODE}/evaluate_gqa.py",
)


class MambaVLPope(Pope):
    def prompt(self, sample: Sample) -> str:
        return f"{SHORT_ANSWER}\n{spelled(sample.question)}\n"

    def grade(self, sample: Sample, text: str) -> Verdict:
        """The official script counts everything as a yes that is not `no`."""
        said = text.lower()
        parsed = "no" if said == "no" else "yes"
        return Verdict(parsed, float(parsed == sample.target), said in ("yes", "no"))


class MambaVLTextVqa(TextVqa):
    def prompt(self, sample: Sample) -> str:
        words = " ".join(sample.fields["words"] or ())
        return f"{SHORT_ANSWER}\nOCR text:\n{words}\nQuestion: {spelled(sample.question)}\nAnswer: "

    def join_key(self, prompt: str) -> str:
        """The question alone: the picture's words stand in front of it."""
        return _asked(prompt)

    def grade(self, sample: Sample, text: str) -> Verdict:
        """The full stop that ends an answer is no part of it."""
        return super().grade(sample, text.removesuffix("."))


class MambaVLVqaV2(VqaV2):
    info = VQAV2

    def prompt(self, sample: Sample) -> str:
        return _question(sample)

    def join_key(self, prompt: str) -> str:
        return _asked(prompt)

    def grade(self, sample: Sample, text: str) -> Verdict:
        """A tenth of three for each gold answer that is the normalised answer to the letter, at most one."""
        prediction = evalai(text.removesuffix(".").lower())
        # Steps of 0.3, as leave-one-out gives them.
        credit = LEAVE_ONE_OUT[sum(answer == prediction for answer in sample.target or ())]
        return Verdict(prediction, credit, bool(prediction), {"raw": credit})

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        # There is one reading here; LLaVA's list has a second, of the answer as it is.
        yield from (metric for metric in super().metrics(sums) if metric.name != "accuracy_raw")


class MambaVLGqa(Gqa):
    info = GQA_STOPPED

    def prompt(self, sample: Sample) -> str:
        return _question(sample)

    def join_key(self, prompt: str) -> str:
        return _asked(prompt)

    def grade(self, sample: Sample, text: str) -> Verdict:
        """One full stop at the end is no part of the answer."""
        prediction = text.removesuffix(".").lower()
        return Verdict(prediction, float(prediction == str(sample.target).lower()), bool(prediction.strip()))


def _question(sample: Sample) -> str:
    return f"{SHORT_ANSWER}\nQuestion: {spelled(sample.question)}\nAnswer: "


def _asked(prompt: str) -> str:
    """The question as it identifies itself: what the spelling changed is gone."""
    return prompt.rpartition("\nQuestion: ")[2].removesuffix("Answer: ").strip().lower()


def spelled(question: str) -> str:
    """As the authors spell: stripped, the first letter large, all others small, and a mark at the end."""
    question = question.strip().capitalize()
    return question if question.endswith((".", "?", "!")) else f"{question}."


TASKS = (MambaVLPope(POPE), MambaVLTextVqa(TEXTVQA, "before"), MambaVLVqaV2(), MambaVLGqa())
