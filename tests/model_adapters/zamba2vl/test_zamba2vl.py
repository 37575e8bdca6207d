"""Zamba2-VL: a small random folder in the published layout against transformers' Zamba2 and Qwen2.5-VL tower."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.model_adapters.through_the_command import assert_sharing_changes_no_answer_file
from tests.model_adapters.zamba2vl import published
from vlmamba_eval.model_adapters.hybrid.adapter import HybridAdapter
from vlmamba_eval.model_adapters.vlmamba.engine import Limits
from vlmamba_eval.model_adapters.zamba2vl import Options
from vlmamba_eval.model_adapters.zamba2vl.adapter import load
from vlmamba_eval.model_adapters.zamba2vl.images import normalisation_table, patches_of, prepare, size_of
from vlmamba_eval.types import DataError, ImageQuestions, ModelError, Question, UsageError

QUESTIONS = ("Is there a red square?", "what colour is the circle on the left", "no", "two or three?\nyes")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("zamba2vl") / "Zamba2-VL-micro"
    return folder, *published.write(folder)


def adapter(folder: Path, limits: Limits | None = None, **options: Any) -> HybridAdapter:
    found = load(
        str(folder), Options(device="cpu", **{"max_image_tokens": 12, "min_image_tokens": 4, **options})
    ).load()
    assert isinstance(found, HybridAdapter)
    if limits is not None:
        found.engine.limits = limits
    return found


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (5, 7, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.NEAREST)


def batch(model: HybridAdapter, n: int = 6) -> list[ImageQuestions]:
    ask = tuple(Question(text, n) for text in QUESTIONS)
    images = [model.prepare(scene(*size, seed)) for seed, size in enumerate([(60, 60), (120, 40), (50, 90)])]
    return [
        ImageQuestions(images[0], ask),
        ImageQuestions(images[1], ask[:3]),
        ImageQuestions(None, ask[1:2]),
        ImageQuestions(images[2], ask[::-1]),
    ]


def whole_embeds(model: HybridAdapter, made: tuple[Path, Any, Any], image: Any, text: str) -> torch.Tensor:
    """Image and question as the authors' processor and model put them together: from the whole text's ids."""
    _, language_model, tower = made
    processor = _processor()
    pixels = processor(images=[Image.fromarray(image.permute(1, 2, 0).numpy())], return_tensors="pt")
    features = tower(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
    rendered = f"<|vision_start|>{'<image>' * len(features)}<|vision_end|>\n<s>user\n{text}</s>\n<s>assistant\n"
    tokenizer = published.tokenizer()
    ids = torch.tensor(tokenizer.encode(rendered, add_special_tokens=True).ids)
    embeds = language_model.model.embed_tokens(ids)
    embeds[ids == tokenizer.token_to_id("<image>")] = features
    return embeds[None]


def _processor() -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        temporal_patch_size=1, size={"shortest_edge": 4 * 28 * 28, "longest_edge": 12 * 28 * 28}
    )


# =============================================================================
# The numbers
# =============================================================================


def test_logits_after_image_and_question_are_those_of_transformers(made: tuple[Path, Any, Any]):
    model = adapter(made[0])
    image = model.prepare(scene(120, 40))
    embeds = whole_embeds(model, made, image, QUESTIONS[0])
    expected = made[1](inputs_embeds=embeds).logits
    language_model = model.engine.model.language_model
    with torch.no_grad():
        x, _ = language_model.prefill(embeds)
        found = language_model.logits(x)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


def test_answers_are_those_of_transformers(made: tuple[Path, Any, Any]):
    model = adapter(made[0])
    for size in [(120, 40), (60, 60)]:
        image = model.prepare(scene(*size))
        embeds = whole_embeds(model, made, image, QUESTIONS[1])
        said: list[int] = []
        [[found]] = model.generate([ImageQuestions(image, (Question(QUESTIONS[1], 5),))])
        for _ in range(5):
            more = made[1].model.embed_tokens(torch.tensor([said], dtype=torch.long))
            token = int(made[1](inputs_embeds=torch.cat([embeds, more], 1)).logits[0, -1].argmax())
            if token == model.engine.eos:
                break
            said.append(token)
        assert found.n_tokens == len(said)
        assert found.text == published.tokenizer().decode(said, skip_special_tokens=True).strip()


def test_the_language_model_steps_as_transformers_does(made: tuple[Path, Any, Any]):
    language_model = adapter(made[0]).engine.model.language_model
    ids = torch.randint(0, published.tokenizer().get_vocab_size(), (3, 12), generator=torch.Generator().manual_seed(1))
    expected = made[1](ids).logits[:, 8:]
    with torch.no_grad():
        x, state = language_model.prefill(language_model.embed(ids[:, :9]))
        found = [language_model.logits(x[:, -1])]
        found += [language_model.logits(language_model.step(ids[:, t], state)) for t in range(9, 12)]
    assert float((torch.stack(found, 1) - expected).abs().max() / expected.abs().max()) < 1e-4


# =============================================================================
# Sharing
# =============================================================================


@pytest.mark.parametrize("limits", [Limits(images=8, tokens=4096, rows=64), Limits(images=2, tokens=60, rows=3)])
def test_an_image_read_once_gives_the_answers_of_each_question_alone(made: tuple[Path, Any, Any], limits: Limits):
    alone, shared = adapter(made[0], sharing=False), adapter(made[0], limits)
    expected = alone.generate(batch(alone))
    assert shared.generate(batch(shared)) == expected
    assert shared.generate(batch(shared)) == expected  # nothing is left of the first time
    assert shared.images_encoded == 6
    assert len({answer.text for answers in expected for answer in answers}) > 3


def test_padded_rows_give_the_answers_of_packed_ones(made: tuple[Path, Any, Any]):
    packed, padded = adapter(made[0]), adapter(made[0])
    padded.engine.packs = False
    assert padded.generate(batch(padded)) == packed.generate(batch(packed))


def test_a_fork_without_the_images_keys_would_be_blind(made: tuple[Path, Any, Any]):
    """The test of the tests: these models do look at the image through attention."""
    model = adapter(made[0])
    item = batch(model)[0]
    prefixes = model.engine._read_images([item])
    blind = dataclasses.replace(prefixes, past=())
    ids = [row.ids for row in model.engine._rows([item])]
    with torch.inference_mode():
        x, starts, _ = model.engine._prefill_ids(ids, prefixes, [0] * len(ids))
        y, _, _ = model.engine._prefill_ids(ids, blind, [0] * len(ids))
    assert float((x - y)[starts].abs().max()) > 1e-2


def test_continuations_are_scored_alike_shared_or_not(made: tuple[Path, Any, Any]):
    alone, shared = adapter(made[0], sharing=False), adapter(made[0], Limits(images=2, tokens=60, rows=4))
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


@pytest.mark.parametrize("size", [(640, 480), (33, 500), (5, 9), (3000, 2000), (28, 28), (1333, 750)])
def test_images_are_prepared_as_transformers_prepares_them(size: tuple[int, int]):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    image = scene(*size)
    if min(size) >= 28:  # below, transformers' rounding can find no column at all; the authors' client takes one
        edges = {"shortest_edge": 10 * 28 * 28, "longest_edge": 300 * 28 * 28}
        theirs = Qwen2VLImageProcessorPil(temporal_patch_size=1, size=edges)(images=[image], return_tensors="pt")
        pixels = prepare(image, 28, 10, 300)
        table = normalisation_table()
        patches = patches_of(table[torch.arange(3)[:, None, None], pixels.long()], 14, 2)
        assert theirs["image_grid_thw"].tolist() == [[1, pixels.shape[1] // 14, pixels.shape[2] // 14]]
        assert torch.allclose(patches, theirs["pixel_values"], atol=1e-6)
    width, height = size_of(*size, 28, 10, 300)
    assert 10 <= width * height // 28**2 <= 300


def test_a_strip_is_refused_with_a_sentence():
    with pytest.raises(DataError, match="3 x 900 pixels: its sides should differ by a factor of 200 at most"):
        prepare(scene(3, 900), 28, 10, 300)


def test_the_prompt_is_the_folders_own(made: tuple[Path, Any, Any]):
    talk = adapter(made[0]).engine.conversation
    assert talk.prompt("Q?", image=True) == ("<|vision_start|><image><|vision_end|>\n<s>user\nQ?</s>\n<s>assistant\n")
    assert talk.prompt("Q?", image=False) == "<s>user\nQ?</s>\n<s>assistant\n"


# =============================================================================
# What is not as it should be
# =============================================================================


@pytest.fixture
def copy(made: tuple[Path, Any, Any], tmp_path: Path) -> Path:
    for file in made[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change(folder: Path, part: str | None, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    (config if part is None else config[part]).update(values)
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (None, {"model_type": "zamba3_vl"}, "model_type = 'zamba3_vl'"),
        ("text_config", {"model_type": "qwen2"}, "model_type = 'qwen2' \\(expected 'zamba2'\\)"),
        ("text_config", {"time_step_limit": [0.0, 0.1]}, "time_step_limit = \\[0.0, 0.1\\]"),
        ("text_config", {"hidden_act": "silu"}, "hidden_act = 'silu' \\(expected 'gelu'\\)"),
        ("vision_config", {"temporal_patch_size": 2}, "temporal_patch_size = 2 \\(expected 1\\)"),
        ("vision_config", {"out_hidden_size": 64}, "out_hidden_size = 64 \\(expected 32\\)"),
        ("vision_config", {"depth": 3}, "missing: vision_tower.blocks.2"),
        ("text_config", {"intermediate_size": 64}, "down_proj.weight: expected \\[32, 64\\], found \\[32, 48\\]"),
        (None, {"image_token_index": 3}, "expected one .* in the chat template's text of one image"),
    ],
)
def test_a_folder_of_another_kind_is_refused_with_a_sentence(copy: Path, part: str | None, values: dict, message: str):
    change(copy, part, **values)
    with pytest.raises(ModelError, match=message):
        adapter(copy)


def test_a_missing_tower_is_named(copy: Path):
    tensors = {n: t for n, t in load_file(copy / "model.safetensors").items() if not n.startswith("vision_tower.")}
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing: vision_tower\.blocks\.0"):
        adapter(copy)


def test_shared_blocks_that_are_stored_twice_must_agree(copy: Path):
    tensors = load_file(copy / "model.safetensors")
    name = "language_model.model.layers.1.shared_transformer.pre_ff_layernorm.weight"
    again = name.replace("layers.1.", "layers.4.")
    save_file(tensors | {again: tensors[name].clone()}, copy / "model.safetensors")
    adapter(copy)
    save_file(tensors | {again: tensors[name] + 1}, copy / "model.safetensors")
    with pytest.raises(ModelError, match="to be one tied parameter; they differ"):
        adapter(copy)


def test_a_template_with_the_question_before_the_image_is_refused(copy: Path):
    (copy / "chat_template.jinja").write_text(
        "<s>{{ messages[0]['content'][-1]['text'] }}<image></s>", encoding="utf-8"
    )
    with pytest.raises(ModelError, match="expected the image before the question in the chat template"):
        adapter(copy)
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="expected a chat template"):
        adapter(copy)


def test_options_that_contradict_each_other_are_refused(copy: Path):
    with pytest.raises(UsageError, match="min_image_tokens=20 is more than max_image_tokens=12"):
        adapter(copy, min_image_tokens=20)


@pytest.mark.slow
def test_a_whole_run_gives_the_same_answers_shared_or_not(made: tuple[Path, Any, Any], tmp_path: Path):
    options = {"min_image_tokens": 4, "max_image_tokens": 12}
    assert_sharing_changes_no_answer_file(f"zamba2vl:{made[0]}", options, tmp_path)
