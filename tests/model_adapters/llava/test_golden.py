"""LLaVA's token ids and pixels against numbers that other programs made: `golden.json`.

Token ids: llama-tokenizer-js 1.2.2, which has LLaMA's vocabulary, on LLaVA's pieces. `vocabulary` and `merges` are the
part of that vocabulary which these texts touch. Pixels: LLaVA's padding, then CLIP's processor of transformers at 336;
every 35th row and column from the seventh on.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tests.model_adapters.llava.test_llava import CLIP_MEAN, CLIP_STD, SYSTEM
from vlmamba_eval.model_adapters.llava.adapter import Llava15, check_tokens
from vlmamba_eval.model_adapters.shared.template import TemplateConfig
from vlmamba_eval.types import ModelError

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))
IMAGE = 32_000
BYTES = {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}


def vicuna(*, before: str = "▁") -> PreTrainedTokenizerFast:
    """Vicuna's tokenizer on the golden texts; `before` stands before every text."""
    vocabulary = {**GOLDEN["vocabulary"], **BYTES, "<image>": IMAGE}
    merges = [tuple(merge.split(" ")) for merge in GOLDEN["merges"]]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend(before), normalizers.Replace(" ", "▁")])  # type: ignore[assignment]
    made.decoder = decoders.ByteFallback()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


@pytest.fixture(scope="module")
def talk() -> Llava15:
    return Llava15(vicuna(), TemplateConfig("llava_v1"), IMAGE, size=336, tokens=576)


def by_rank(text: str) -> list[int]:
    """Token ids by the definition: of all neighbours, join the pair of lowest rank first; bytes for what is unknown."""
    rank = {merge: place for place, merge in enumerate(GOLDEN["merges"])}
    pieces = list("▁" + text.replace(" ", "▁"))
    while True:
        known = [(rank.get(f"{a} {b}", len(rank)), at) for at, (a, b) in enumerate(pairwise(pieces))]
        best, at = min(known, default=(len(rank), 0))
        if best == len(rank):
            break
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    vocabulary = GOLDEN["vocabulary"]
    return [
        token
        for piece in pieces
        for token in ([vocabulary[piece]] if piece in vocabulary else [byte + 3 for byte in piece.encode()])
    ]


def test_a_conversation_has_the_tokens_that_llava_was_trained_with(talk: Llava15) -> None:
    opening = GOLDEN["opening"]
    assert len(opening) == 35
    assert talk.opening == opening == [1, *by_rank(f"{SYSTEM}USER: ")]
    prefix = talk.prefix(talk.prepare(drawn(40, 30)))
    assert prefix.ids == [*opening, *[IMAGE] * 576]
    for question in GOLDEN["questions"]:
        asked = talk.asked(question["text"], image=True)
        assert asked == question["ids"] == by_rank(f"\n{question['text']} ASSISTANT:")
        assert (asked[:2], asked[-5:]) == ([29871, 13], [319, 1799, 9047, 13566, 29901])
    check_tokens(talk, "vicuna")


def test_a_tokenizer_that_puts_no_space_before_a_piece_is_refused() -> None:
    """`legacy` set to false: the line break behind the image would be one token, not two."""
    other = Llava15(vicuna(before=""), TemplateConfig("llava_v1"), IMAGE, size=336, tokens=576)
    with pytest.raises(ModelError, match=r"Its `legacy` setting must be true"):
        check_tokens(other, "vicuna")


def drawn(width: int, height: int) -> Image.Image:
    """The golden pictures, by a formula."""
    y, x = np.mgrid[0:height, 0:width]
    red, green, blue = x * 255 // (width - 1), y * 255 // (height - 1), (x * 7 + y * 13 + (x * y) // 5) % 256
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("name", GOLDEN["pixels"])
def test_pixels_are_those_of_llava(talk: Llava15, name: str) -> None:
    width, height = map(int, name.split("x"))
    image = drawn(width, height)
    pixels = talk.finish({"pixel_values": talk.prepare(image)[None]})["pixel_values"][0].numpy()  # [3, 336, 336]
    assert pixels.shape == (3, 336, 336)
    np.testing.assert_allclose(pixels[:, 7::35, 7::35], GOLDEN["pixels"][name], atol=2e-5)
    # By hand: the mean colour around the picture, then bicubic, scaled, normalised.
    side = max(width, height)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = (122, 116, 104)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = np.asarray(image)
    small = np.asarray(Image.fromarray(square).resize((336, 336), Image.Resampling.BICUBIC), dtype=np.float64)
    np.testing.assert_allclose(pixels, ((small / 255 - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1), atol=1e-5)
