"""mmMamba's protocol, where it differs from LLaVA's.

Paper   Liao et al. 2025, Multimodal Mamba, arXiv 2502.13145
Code    https://github.com/hustvl/mmMamba/blob/85143d0/eval/mmMamba.py, prompts for VLMEvalKit; docs/train_eval.md: GQA
        and POPE are evaluated with InternVL's kit, all else with VLMEvalKit

    mme_mmmamba  MME's own question and request, the instruction glued to it; a yes or a no anywhere in the answer
    gqa_mmmamba  the instruction on the question's line, after a space (InternVL's evaluate_vqa.py)

InternVL's kit asks POPE from LLaVA's own question file and scores it with LLaVA's script: `pope`. TextVQA without
recognised words, and the prompts of choices, are LLaVA's too: `textvqa_no_ocr`, `mmbench`, `seed`.
"""

from __future__ import annotations

from dataclasses import replace

from vlmamba_eval.task import SHORT_ANSWER
from vlmamba_eval.tasks.gqa import GQA, Gqa
from vlmamba_eval.tasks.mme import ASK, MME, Mme
from vlmamba_eval.tasks.vqa_accuracy import without_punctuation
from vlmamba_eval.types import Sample, Verdict

RELEASE = replace(
    MME,
    name="mme_mmmamba",
    title="MME (mmMamba)",
    max_new_tokens=1_024,
    protocol="mmmamba",
    scorer="https://github.com/open-compass/VLMEvalKit/blob/e8e78f0/vlmeval/dataset/utils/yorn.py",
)
ONE_LINE = replace(
    GQA,
    name="gqa_mmmamba",
    title="GQA (mmMamba)",
    max_new_tokens=10,
    protocol="mmmamba",
    scorer="https://github.com/OpenGVLab/InternVL/blob/2410d1d/internvl_chat/eval/vqa/evaluate_vqa.py",
)


class MMMambaMme(Mme):
    info = RELEASE

    def prompt(self, sample: Sample) -> str:
        return f"{sample.question} {ASK}{SHORT_ANSWER}"

    def grade(self, sample: Sample, text: str) -> Verdict:
        """VLMEvalKit's reading, without a judge: yes or no as a word, not both; anything else is wrong."""
        said = {"yes", "no"}.intersection(without_punctuation(text.lower()).split())
        parsed = said.pop() if len(said) == 1 else "other"
        return Verdict(parsed, float(parsed == str(sample.target).lower()), parsed != "other")


class MMMambaGqa(Gqa):
    info = ONE_LINE

    def prompt(self, sample: Sample) -> str:
        return f"{sample.question} {SHORT_ANSWER}"


TASKS = (MMMambaMme(), MMMambaGqa())
