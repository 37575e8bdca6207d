"""Conversation templates: one function turns turns of talk into the pieces that training and evaluation tokenise.

Each piece is tokenised on its own, as LLaVA does around its image token
(haotian-liu/LLaVA@c121f04:llava/mm_utils.py:185), and the shared state of an image ends exactly where the image piece
ends: the first question, with its leading line break, is always tokenised as a whole.

    vicuna_v1     haotian-liu/LLaVA@c121f04:llava/conversation.py:242, `</s>` replaced by `<|endoftext|>`
    llava_v1      the same with LLaVA's own end mark, `</s>`
    llava_mistral haotian-liu/LLaVA@c121f04:llava/conversation.py, `mistral_instruct`: LLaVA-1.6 with Mistral
    plain         LLaVA's alignment stage: the image, then the caption; a question has no place in it
    cobra_zephyr  h-zhao1997/cobra:cobra/models/backbones/llm/prompting/zephyr_prompter.py
    cobra_in_out  h-zhao1997/cobra:cobra/models/backbones/llm/prompting/mamba_prompter.py
    mambavl       gpantaz/vl_mamba@c788f5f:src/vl_mamba/evaluation; see `mambavl_text`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vlmamba_eval.task import LETTER_ANSWER, SHORT_ANSWER
from vlmamba_eval.types import UsageError

END = "<|endoftext|>"
IMAGE = "<image>"


@dataclass(frozen=True, slots=True)
class TemplateConfig:
    """Which conversation template, and the place of the image.

    With `image_first` the image embeddings stand before all text (Cobra); otherwise they open the first user turn
    (LLaVA).
    """

    name: Literal["vicuna_v1", "llava_v1", "llava_mistral", "plain", "cobra_zephyr", "cobra_in_out", "mambavl"] = (
        "vicuna_v1"
    )
    image_first: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of a conversation. `answer` pieces are what the model has to say; the loss stands on them alone."""

    kind: Literal["text", "image", "answer"]
    text: str


@dataclass(frozen=True, slots=True)
class _Template:
    system: str
    user: str
    assistant: str
    answer: str
    end: str
    between_turns: str
    strips: bool = False
    rewrite: Callable[[str], str] | None = None


def mambavl_text(text: str) -> str:
    """A benchmark's text as Mamba-VL and Pythia-VL are asked: the instruction first, the question in their spelling.

    LLaVA's `what is it?` and its instruction for short answers or letters become
    `{instruction}\\nQuestion: What is it?\\nAnswer: `, choices `A: Text`. Any other text is a turn of talk, closed by a
    line break. A text that ends as theirs do, with `Answer: ` or a line break, is taken as it is.
    """
    if text.endswith(("Answer: ", "\n")):
        return text
    *lines, instruction = text.strip().split("\n")
    if instruction not in (SHORT_ANSWER, LETTER_ANSWER) or not lines:
        return f"{mambavl_spelling(text)}\n"
    choices = [match for line in lines if (match := _CHOICE.fullmatch(line))]
    others = [line for line in lines if not _CHOICE.fullmatch(line)] or [""]
    # In LLaVA's texts OCR follows the question, and hints go before one with choices; here both go before.
    question = others.pop(-1 if choices else 0)
    asked = [f"Question: {mambavl_spelling(question)}"]
    asked += [f"{match[1]}: {match[2].strip().capitalize()}" for match in choices]
    return "\n".join([instruction, *others, *asked, "Answer: "])


def mambavl_spelling(text: str) -> str:
    """Stripped, the first letter large and all others small, closed by a full stop unless it ends with one of `.?!`."""
    text = text.strip().capitalize()
    return text if text.endswith((".", "?", "!")) else f"{text}."


_CHOICE = re.compile(r"([A-Z])\. (.*)")

_VICUNA = _Template(
    system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    ),
    user="USER: ",
    assistant=" ASSISTANT:",
    answer=" ",
    end=END,
    between_turns="",
)

_TEMPLATES = {
    "vicuna_v1": _VICUNA,
    "llava_v1": replace(_VICUNA, end="</s>"),
    "llava_mistral": _Template(
        system="", user="[INST] ", assistant=" [/INST]", answer=" ", end="</s>", between_turns=""
    ),
    "plain": _Template(system="", user="", assistant="", answer="", end="\n", between_turns=""),
    "cobra_zephyr": _Template(
        system="",
        user="<|user|>\n",
        assistant=f"{END}\n<|assistant|>\n",
        answer="",
        end=END,
        between_turns="\n",
        strips=True,
    ),
    "cobra_in_out": _Template(
        system="", user="In: ", assistant="\nOut: ", answer="", end=END, between_turns="\n", strips=True
    ),
    "mambavl": _Template(system="", user="", assistant="", answer="", end=END, between_turns="", rewrite=mambavl_text),
}


def render(template: TemplateConfig, turns: Sequence[tuple[str, str | None]], *, image: bool) -> tuple[Segment, ...]:
    """The pieces of a conversation, in order.

    `turns` are (question, answer) pairs; the last answer is None if the model is to give it. With `image` the
    conversation is about one image, which stands in its first turn or before all text; the questions themselves
    contain no image mark. Pieces without text are left out.
    """
    parts = _TEMPLATES[template.name]
    segments: list[Segment] = [Segment("image", IMAGE)] if image and template.image_first else []
    in_turn = image and not template.image_first
    text = parts.system
    for number, (question, answer) in enumerate(turns):
        question = question.strip() if parts.strips else question
        question = parts.rewrite(question) if parts.rewrite else question
        if template.name == "plain":
            if answer is None:
                raise UsageError(
                    "the template `plain` is for alignment training and has no place for a question; "
                    "evaluate with the template of the instruction stage (`vicuna_v1`)"
                )
            question = ""
        text += (parts.between_turns if number else "") + parts.user
        if number == 0 and in_turn:
            segments += [Segment("text", text), Segment("image", IMAGE)]
            text = "" if template.name == "plain" else "\n"
        segments.append(Segment("text", text + question + parts.assistant))
        text = ""
        if answer is not None:
            segments.append(Segment("answer", answer_text(template, answer) + parts.end))
    return tuple(segment for segment in segments if segment.text)


def answer_text(template: TemplateConfig, answer: str) -> str:
    """An answer as it continues a prompt, without its end mark: what the likelihood of an option is measured on."""
    return (_TEMPLATES[template.name].answer + answer) or " "
