from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from vlmamba_eval.model_adapters.vlmamba.tokenizer import train_tokenizer

TEXTS = ["Is there a red circle in the image?", "Answer the question using a single word or phrase."] * 3


def test_equal_texts_give_an_equal_tokenizer() -> None:
    assert train_tokenizer(TEXTS, 400).to_str() == train_tokenizer(iter(TEXTS), 400).to_str()


def test_the_end_mark_is_0_and_the_padding_1(tokenizer: Tokenizer) -> None:
    for made in (tokenizer, train_tokenizer(TEXTS, 400)):
        assert made.id_to_token(0) == "<|endoftext|>"
        assert made.id_to_token(1) == "<|padding|>"
        assert made.encode("a<|endoftext|>").ids[-1] == 0


def test_words_of_the_texts_are_single_tokens() -> None:
    assert len(train_tokenizer(TEXTS, 400).encode(" circle").ids) == 1


@given(st.text(max_size=30).filter(lambda text: "<|" not in text))
def test_any_text_survives(text: str) -> None:
    made = train_tokenizer(TEXTS, 300)
    assert made.decode(made.encode(text, add_special_tokens=False).ids) == text
