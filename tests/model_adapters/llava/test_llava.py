"""LLaVA through transformers' classes, with LLaVA's own bytes and pixels, an image's prefix read once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from tests.contract import AdapterContract
from tests.model_adapters.toy_vlms import llava, llava_next, picture
from vlmamba_eval.adapter import Adapter
from vlmamba_eval.model_adapters.shared.prefix_adapter import PrefixAdapter
from vlmamba_eval.registry import find_family, load
from vlmamba_eval.types import Generation, ImageQuestions, ModelError, Question

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module", params=[True, False], ids=["shared", "unshared"])
def made(request: pytest.FixtureRequest, folder: Path) -> Adapter:
    return load(f"llava:{folder}", {"device": "cpu", "sharing": request.param})


class TestContract(AdapterContract):
    @pytest.fixture
    def adapter(self, made: Adapter) -> Adapter:
        return made


def batch_for(adapter: Adapter) -> list[ImageQuestions]:
    questions = (
        "What colour is the shape?",
        "Is there a circle left of the square?\nAnswer the question.",
        "A. one",
        "",
    )
    return [
        ImageQuestions(adapter.prepare(picture(i, size)), tuple(Question(q, 6) for q in questions[: 2 + i]))
        for i, size in enumerate([(60, 40), (30, 90), (50, 50)])
    ]


@pytest.mark.parametrize("family", [llava, llava_next])
def test_sharing_an_images_prefix_changes_no_answer(tmp_path: Path, family) -> None:
    where = f"llava:{family(tmp_path)}"
    shared, alone = load(where, {"device": "cpu"}), load(where, {"device": "cpu", "sharing": False})
    found = shared.generate(batch_for(shared))
    assert found == alone.generate(batch_for(alone))
    said = {one.text for row in found for one in row if isinstance(one, Generation)}
    assert len(said) > 3  # the toy does not say one thing to everything
    assert isinstance(shared, PrefixAdapter)
    assert isinstance(alone, PrefixAdapter)
    assert shared.engine.images_encoded == 3


def square(image: Image.Image, size: int) -> torch.Tensor:
    """LLaVA's pixels, recomputed: a square of the mean colour, bicubic, scaled and normalised, [3, size, size]."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), tuple(int(255 * channel) for channel in CLIP_MEAN))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    values = np.asarray(canvas.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    return torch.from_numpy((values - CLIP_MEAN) / CLIP_STD).permute(2, 0, 1)


def test_answers_are_those_of_transformers_on_llavas_pixels_and_tokens(folder: Path) -> None:
    """The conversation is spelled out here, and the picture prepared here; transformers does the rest."""
    adapter = load(f"llava:{folder}", {"device": "cpu"})
    info = adapter.info.settings
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image, text = picture(1, (60, 30)), "What colour is the shape?\nAnswer the question using a single word or phrase."
    tokens = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    before = tokenizer(f"{SYSTEM}USER: ").input_ids
    behind = tokenizer(f"\n{text} ASSISTANT:").input_ids[1:]  # without a second <s>
    ids = torch.tensor([[*before, *[model.config.image_token_id] * tokens, *behind]])
    pixels = square(image, model.config.vision_config.image_size)[None].float()
    with torch.no_grad():
        rows = range(info["vocabulary"], model.config.text_config.vocab_size)  # LLaVA never trained these
        limits = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": list(rows)}
        made = model.generate(input_ids=ids, pixel_values=pixels, **limits)
    expected = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip()
    [[found]] = adapter.generate([ImageQuestions(adapter.prepare(image), (Question(text, 6),))])
    assert isinstance(found, Generation)
    assert found.text == expected
    assert found.prompt == f"{SYSTEM}USER: <image>\n{text} ASSISTANT:"


def test_what_decides_an_answer_is_recorded(folder: Path) -> None:
    info = load(f"llava:{folder}", {"device": "cpu"}).info
    assert info.weights.startswith("sha256:")
    assert info.dtype == "float32"
    assert info.settings["template"] == "llava_v1"
    assert info.settings["preprocessing"]["fit"] == "pad"
    assert info.settings["vision_feature_layer"] == -2


def test_a_bare_folder_is_recognised(folder: Path) -> None:
    family, rest = find_family(str(folder))
    assert (family.name, rest) == ("llava", str(folder))


def test_the_original_format_names_the_converted_twin(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"original format.*--model llava:llava-hf/llava-1\.5-7b-hf"):
        load("llava:liuhaotian/llava-v1.5-7b")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "mm_vision_tower": "openai/clip"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    with pytest.raises(ModelError, match="original format"):
        load(f"llava:{tmp_path}")


def test_another_feature_layer_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vision_feature_layer": -1}))
    with pytest.raises(ModelError, match="takes hidden state -2 of a CLIP tower"):
        load(f"llava:{tmp_path}", {"device": "cpu"})


@pytest.mark.slow
def test_samples_of_the_suite_are_answered_alike_shared_and_not(folder: Path, tmp_path: Path) -> None:
    """Random weights rarely end an answer: up to 128 tokens each, so that a few questions per list must do."""
    from vlmamba_eval.dataset import load_dataset
    from vlmamba_eval.registry import get_tasks
    from vlmamba_eval.run import evaluate
    from vlmamba_eval.store import read_answers

    suite = ["vqav2", "gqa", "scienceqa", "textvqa", "pope", "mme", "mmbench", "seed"]
    datasets = [load_dataset(task, "samples", limit=6) for task in get_tasks(suite)]
    answers = []
    for sharing in (True, False):
        adapter = load(f"llava:{folder}", {"device": "cpu", "sharing": sharing})
        outcomes = evaluate(adapter, datasets, tmp_path / str(sharing))
        answers.append([read_answers(outcome.folder) for outcome in outcomes])
    assert answers[0] == answers[1]
