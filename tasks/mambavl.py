"""The protocol of Mamba-VL and Pythia-VL, where it differs from LLaVA's by more than the conversation template.

Paper   Pantazopoulos et al. 2024, Shaking Up VLMs, arXiv 2409.05395
Code    https://github.com/gpantaz/vl_mamba/tree/c788f5f/src/vl_mamba/evaluation

    pope_mambavl     no `Question:` and no `Answer:`; a no is the answer `no` and nothing else
    textvqa_mambavl  recognised words in front of the question, with spaces between them

The families' template turns GQA's and VQAv2's usual texts into the authors' own, and the usual readings take off the
full stop that these models end with: `gqa` and `vqav2` need no twin.
"""

from __future__ import annotations

from dataclasses import replace

from vlmamba_eval.task import SHORT_ANSWER
from vlmamba_eval.tasks.pope import PINNED, Pope
from vlmamba_eval.tasks.textvqa import BEFORE, TextVqa
from vlmamba_eval.types import Sample, Verdict

CODE = "https://github.com/gpantaz/vl_mamba/blob/c788f5f/src/vl_mamba/evaluation"

POPE = replace(
    PINNED,
    name="pope_mambavl",
    title="POPE (Mamba-VL)",
    max_new_tokens=10,
    protocol="mambavl",
    scorer=f"{CODE}/evaluate_pope.py",
    sha256="",
)
TEXTVQA = replace(
    BEFORE,
    name="textvqa_mambavl",
    title="TextVQA (Mamba-VL)",
    max_new_tokens=20,
    protocol="mambavl",
    scorer=f"{CODE}/evaluate_textvqa.py",
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
        return prompt.rpartition("\nQuestion: ")[2].removesuffix("Answer: ").strip().lower()

    def grade(self, sample: Sample, text: str) -> Verdict:
        """The full stop that ends an answer is no part of it."""
        return super().grade(sample, text.removesuffix("."))


def spelled(question: str) -> str:
    """As the authors spell: stripped, the first letter large, all others small, and a mark at the end."""
    question = question.strip().capitalize()
    return question if question.endswith((".", "?", "!")) else f"{question}."


TASKS = (MambaVLPope(POPE), MambaVLTextVqa(TEXTVQA, "before"))
