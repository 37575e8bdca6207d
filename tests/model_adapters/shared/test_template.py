from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from vlmamba_eval.model_adapters.shared.template import Segment, answer_text, render
from vlmamba_eval.model_adapters.vlmamba.config import TemplateConfig
from vlmamba_eval.types import UsageError

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
IMAGE = Segment("image", "<image>")


def test_vicuna_puts_the_image_in_the_first_turn() -> None:
    assert render(TemplateConfig(), [("Is it red?\nAnswer.", None)], image=True) == (
        Segment("text", SYSTEM + "USER: "),
        IMAGE,
        Segment("text", "\nIs it red?\nAnswer. ASSISTANT:"),
    )


def test_vicuna_without_an_image_has_no_image_line() -> None:
    assert render(TemplateConfig(), [("Why?", None)], image=False) == (
        Segment("text", SYSTEM + "USER: Why? ASSISTANT:"),
    )


def test_vicuna_turns_end_with_the_mark_of_the_tokenizer_and_follow_without_a_space() -> None:
    segments = render(TemplateConfig(), [("a?", "Yes"), ("b?", "No")], image=True)
    assert segments[2:] == (
        Segment("text", "\na? ASSISTANT:"),
        Segment("answer", " Yes<|endoftext|>"),
        Segment("text", "USER: b? ASSISTANT:"),
        Segment("answer", " No<|endoftext|>"),
    )


def test_alignment_shows_the_image_and_its_caption_alone() -> None:
    plain = TemplateConfig(name="plain")
    segments = render(plain, [("Describe the image.", "a red circle")], image=True)
    assert segments == (IMAGE, Segment("answer", "a red circle\n"))
    with pytest.raises(UsageError, match="no place for a question"):
        render(plain, [("What?", None)], image=True)


def test_cobra_puts_the_image_before_all_text() -> None:
    zephyr = TemplateConfig(name="cobra_zephyr", image_first=True)
    assert render(zephyr, [(" Why? ", "So"), ("And?", None)], image=True) == (
        IMAGE,
        Segment("text", "<|user|>\nWhy?<|endoftext|>\n<|assistant|>\n"),
        Segment("answer", "So<|endoftext|>"),
        Segment("text", "\n<|user|>\nAnd?<|endoftext|>\n<|assistant|>\n"),
    )
    in_out = TemplateConfig(name="cobra_in_out", image_first=True)
    assert render(in_out, [("Why?", "So"), ("And?", None)], image=True) == (
        IMAGE,
        Segment("text", "In: Why?\nOut: "),
        Segment("answer", "So<|endoftext|>"),
        Segment("text", "\nIn: And?\nOut: "),
    )


def test_vicuna_can_have_the_image_first_too() -> None:
    segments = render(TemplateConfig(image_first=True), [("Why?", None)], image=True)
    assert segments == (IMAGE, Segment("text", SYSTEM + "USER: Why? ASSISTANT:"))


@given(st.text(max_size=40), st.text(max_size=20))
def test_training_sees_the_pieces_that_evaluation_sends(question: str, answer: str) -> None:
    for image in (True, False):
        asked = render(TemplateConfig(), [(question, None)], image=image)
        taught = render(TemplateConfig(), [(question, answer)], image=image)
        assert taught[:-1] == asked
        assert taught[-1].text == answer_text(TemplateConfig(), answer) + "<|endoftext|>"


def test_the_end_mark_is_one_token_in_the_bundled_tokenizer(tokenizer: Tokenizer) -> None:
    *_, answer = render(TemplateConfig(), [("a?", "Yes")], image=True)
    assert tokenizer.encode(answer.text, add_special_tokens=False).ids[-1] == 0
    assert tokenizer.decode(tokenizer.encode(answer.text).ids, skip_special_tokens=True) == " Yes"
