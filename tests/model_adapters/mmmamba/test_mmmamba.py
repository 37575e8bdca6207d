"""mmMamba, linear and hybrid: small random checkpoints in the published layout against the definition."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.model_adapters.mmmamba import published
from tests.model_adapters.through_the_command import assert_sharing_changes_no_answer_file
from vlmamba_eval.adapter import Deferred
from vlmamba_eval.model_adapters.hybrid.adapter import HybridAdapter
from vlmamba_eval.model_adapters.mmmamba import Options
from vlmamba_eval.model_adapters.mmmamba.adapter import load
from vlmamba_eval.model_adapters.mmmamba.tiles import cut, grid_of
from vlmamba_eval.model_adapters.vlmamba.engine import Limits
from vlmamba_eval.types import ImageQuestions, ModelError, Question, UsageError

KINDS = {"linear": ["mamba2"] * 4, "hybrid": ["mha", "mamba2", "mha", "mamba2"]}
QUESTIONS = ("Is there a red square?", "what colour is the circle on the left", "no", "two or three?\nyes")


@pytest.fixture(scope="module", params=list(KINDS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    where = tmp_path_factory.mktemp("mmmamba") / request.param
    published.write(where, KINDS[request.param])
    return where


def adapter(folder: Path, limits: Limits | None = None, **options: Any) -> HybridAdapter:
    found = load(str(folder), Options(device="cpu", **options)).load()
    assert isinstance(found, HybridAdapter)
    if limits is not None:
        found.engine.limits = limits
    return found


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (5, 7, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.NEAREST)


def batch(model: HybridAdapter, n: int = 6) -> list[ImageQuestions]:
    """Three images of other shapes, one without questions, and questions without an image."""
    ask = tuple(Question(text, n) for text in QUESTIONS)
    images = [model.prepare(scene(*size, seed)) for seed, size in enumerate([(28, 28), (90, 30), (40, 64)])]
    return [
        ImageQuestions(images[0], ask),
        ImageQuestions(images[1], ask[:3]),
        ImageQuestions(None, ask[1:2]),
        ImageQuestions(images[2], ask[::-1]),
    ]


# =============================================================================
# The numbers
# =============================================================================


def test_logits_after_image_and_question_are_those_of_the_definition(folder: Path):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = published.parameters(config)
    model = adapter(folder)
    tiles = model.prepare(scene(90, 30))
    assert tiles.shape == (4, 3, 28, 28)  # three tiles and a thumbnail
    talk, table = model.engine.conversation, tensors["embedding_model.llm_text_embeddings.weight"].double()
    image = torch.cat([published.embed_tile(tile, tensors, 7) for tile in tiles])
    [ours] = model.engine.model.embed_images([tiles])
    assert float((ours - image).abs().max()) < 1e-4
    question = talk.question(QUESTIONS[0], image=True)
    whole = torch.cat([table[talk.opening()], image, table[question]])
    expected = published.logits(whole, tensors, config)
    language_model = model.engine.model.language_model
    with torch.no_grad():
        x, _ = language_model.prefill(whole[None].float())
        found = language_model.logits(x[0])
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


def test_answers_are_those_of_the_definition(folder: Path):
    """Greedy, token by token, each from a full recomputation."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = published.parameters(config)
    model = adapter(folder)
    talk, table = model.engine.conversation, tensors["embedding_model.llm_text_embeddings.weight"].double()
    tiles = model.prepare(scene(28, 28))
    [[found]] = model.generate([ImageQuestions(tiles, (Question(QUESTIONS[0], 4),))])
    image = published.embed_tile(tiles[0], tensors, 7)
    ids, said = talk.question(QUESTIONS[0], image=True), []
    for _ in range(4):
        x = torch.cat([table[talk.opening()], image, table[[*ids, *said]]])
        token = int(published.logits(x, tensors, config)[-1].argmax())
        if token == talk.eos:
            break
        said.append(token)
    assert found.text == talk.decode(said)
    assert found.n_tokens == len(said)


# =============================================================================
# Sharing
# =============================================================================


@pytest.mark.parametrize("limits", [Limits(images=8, tokens=4096, rows=64), Limits(images=2, tokens=40, rows=3)])
def test_an_image_read_once_gives_the_answers_of_each_question_alone(folder: Path, limits: Limits):
    alone, shared = adapter(folder, sharing=False), adapter(folder, limits)
    expected = alone.generate(batch(alone))
    assert shared.generate(batch(shared)) == expected
    assert shared.generate(batch(shared)) == expected  # nothing is left of the first time
    assert shared.images_encoded == 6
    assert alone.images_encoded == 11
    assert len({answer.text for answers in expected for answer in answers}) > 3


def test_padded_rows_give_the_answers_of_packed_ones(folder: Path):
    packed, padded = adapter(folder), adapter(folder)
    padded.engine.packs = False
    assert padded.generate(batch(padded)) == packed.generate(batch(packed))


def test_continuations_are_scored_alike_shared_or_not(folder: Path):
    alone, shared = adapter(folder, sharing=False), adapter(folder, Limits(images=2, tokens=60, rows=4))
    options = ("yes", "no", "two or three", "the circle on the left")

    def asked(model: HybridAdapter) -> list[ImageQuestions]:
        return [
            dataclasses.replace(
                item, questions=tuple(dataclasses.replace(q, continuations=options) for q in item.questions)
            )
            for item in batch(model)
        ]

    for ours, theirs in zip(shared.rank(asked(shared)), alone.rank(asked(alone)), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.text == b.text
            for x, y in zip(a.likelihoods, b.likelihoods, strict=True):
                assert x.logprob == pytest.approx(y.logprob, rel=1e-4, abs=1e-4)


# =============================================================================
# Images and texts
# =============================================================================


@pytest.mark.parametrize(
    ("size", "most", "grid"),
    [
        ((448, 448), 6, (1, 1)),
        ((640, 640), 6, (2, 2)),  # equally near; more than half the pixels of 2 x 2 tiles
        ((633, 633), 6, (1, 1)),  # fewer
        ((640, 480), 6, (3, 2)),
        ((480, 640), 6, (2, 3)),
        ((1000, 200), 6, (5, 1)),
        ((640, 480), 12, (4, 3)),
    ],
)
def test_grids_are_chosen_as_the_authors_choose_them(size: tuple[int, int], most: int, grid: tuple[int, int]):
    assert grid_of(*size, 448, most) == grid


def test_tiles_are_the_squares_of_the_resized_image_and_a_thumbnail():
    image = scene(90, 60)
    tiles = cut(image, 28, 6)
    assert tiles.shape == (7, 3, 28, 28)
    resized = image.resize((84, 56), Image.Resampling.BICUBIC)
    for number, tile in enumerate(tiles[:6]):
        left, top = number % 3 * 28, number // 3 * 28
        square = resized.crop((left, top, left + 28, top + 28))
        assert Image.fromarray(tile.permute(1, 2, 0).numpy()).tobytes() == square.tobytes()
    thumbnail = image.resize((28, 28), Image.Resampling.BICUBIC)
    assert Image.fromarray(tiles[6].permute(1, 2, 0).numpy()).tobytes() == thumbnail.tobytes()


def test_the_prompt_is_the_published_one_to_the_byte(folder: Path):
    talk = adapter(folder).engine.conversation
    assert talk.prompt("Q?", image=True) == (
        "<s><|im_start|>system\n你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
        "是一个有用无害的人工智能助手。<|im_end|><|im_start|>user\n<img><image></img>\nQ?<|im_end|><|im_start|>assistant\n"
    )


def test_ids_are_those_of_the_whole_prompt(folder: Path):
    """Pieces before and after the image, tokenised apart, are what the whole text gives."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))  # pyright: ignore
    known = pieces.vocab_size()
    im_start, im_end, img, end_img, context = range(known, known + 5)
    system = published.TEXTS[2]
    expected = [
        1, im_start, *pieces.encode(f"system\n{system}"), im_end, im_start, *pieces.encode("user\n"),
        img, context, context, end_img, *pieces.encode("\nIs it?"), im_end, im_start, *pieces.encode("assistant\n"),
    ]  # fmt: skip
    talk = adapter(folder).engine.conversation
    assert [*talk.opening(), context, context, *talk.question("Is it?", image=True)] == expected
    assert talk.eos == im_end


# =============================================================================
# What is not as it should be
# =============================================================================


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "internvl_chat"}, "model_type = 'internvl_chat' \\(expected 'mmMamba_chat'\\)"),
        ({"template": "phi3-chat"}, "template = 'phi3-chat'"),
        ({"embedding_config__pixel_shuffle_loc": "post"}, "pixel_shuffle_loc = 'post'"),
        ({"embedding_config__rope_theta": None}, "expected rope_theta to be of type int or float, found None"),
        ({"llm_config__num_hidden_layers": 3}, "num_hidden_layers = 3 \\(expected 2\\)"),
        ({"llm_config__layers_block_type": ["mamba2", "gla"]}, "'gla'"),
        ({"embedding_config__img_context_token_id": 7}, "expected <IMG_CONTEXT> to have the id 7"),
    ],
)
def test_a_configuration_of_another_kind_is_refused_with_a_sentence(
    tmp_path: Path, changes: dict[str, Any], message: str
):
    published.write(tmp_path, KINDS["linear"])
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for name, value in changes.items():
        target, *rest = name.split("__")
        if rest:
            config[target][rest[0]] = value
        else:
            config[target] = value
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        adapter(tmp_path)


def test_weights_of_another_shape_are_named(folder: Path, tmp_path: Path):
    wrong = tmp_path / "wrong"
    published.write(wrong, KINDS["linear"])
    config = json.loads((wrong / "config.json").read_text(encoding="utf-8"))
    for part in ("embedding_config", "llm_config"):
        config[part]["intermediate_size"] = 64
    (wrong / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"w1.weight: expected \[64, 32\], found \[48, 32\]"):
        adapter(wrong)


def test_a_missing_tokenizer_or_folder_is_named(tmp_path: Path):
    published.write(tmp_path, KINDS["linear"])
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(ModelError, match=r"expected tokenizer.model or tokenizer.json, found neither"):
        adapter(tmp_path)
    with pytest.raises(UsageError, match=r"no such folder\. Download a published checkpoint"):
        adapter(tmp_path / "nowhere")


def test_a_model_is_described_without_being_loaded(folder: Path):
    found = load(str(folder), Options(device="cpu", max_tiles=12, sharing=False))
    assert isinstance(found, Deferred)
    assert found.info.weights.startswith("sha256:")
    assert found.info.image_tokens == 13 * 4
    assert found.info.settings["sharing"] is False


def test_a_published_name_is_fetched_from_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def snapshot_download(source: str, *, allow_patterns: list[str]) -> str:
        asked.append((source, "tokenizer.model" in allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    found = load("mmmamba-hybrid", Options(device="cpu"))
    assert asked == [("hustvl/mmMamba_hybrid", True)]
    assert found.info.name == "mmmamba-hybrid"


@pytest.mark.slow
def test_a_whole_run_gives_the_same_answers_shared_or_not(folder: Path, tmp_path: Path):
    assert_sharing_changes_no_answer_file(f"mmmamba:{folder}", {}, tmp_path)
