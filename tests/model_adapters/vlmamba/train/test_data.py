"""Training reads LLaVA's format and sends the model the tokens that evaluation sends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from vlmamba_eval.model_adapters.shared.template import END
from vlmamba_eval.model_adapters.vlmamba.adapter import VLMambaAdapter
from vlmamba_eval.model_adapters.vlmamba.model import random_model
from vlmamba_eval.model_adapters.vlmamba.tokenizer import train_tokenizer
from vlmamba_eval.model_adapters.vlmamba.train.data import Collator, JsonRows, tokenise, turns_of
from vlmamba_eval.tasks.samples.training import example
from vlmamba_eval.types import DataError, ImageQuestions, Question

from .conftest import llava_rows, small_config

CONFIG = small_config()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer((turn["value"] for row in llava_rows() for turn in row["conversations"]), 512)


def opened(row: dict[str, Any]) -> dict[str, Any]:
    return row | ({"image": Image.new("RGB", (20, 20))} if "image" in row else {})


@pytest.mark.parametrize("number", [0, 7])
def test_training_sees_the_tokens_that_evaluation_sends(
    tokenizer: Tokenizer, number: int, monkeypatch: pytest.MonkeyPatch
):
    """Up to the answer, the engine reads exactly the ids of the training example: with an image and without."""
    row = opened(llava_rows()[number])
    found = tokenise(row, CONFIG, tokenizer, 512)
    question = row["conversations"][0]["value"].removeprefix("<image>\n")
    adapter = VLMambaAdapter(random_model(CONFIG, 0), tokenizer, weights="random:0", sharing=False)
    read: list[torch.Tensor] = []
    language_model = adapter.engine.model.language_model
    prefill = language_model.prefill

    def watched(embeds: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        lengths = arguments[1] if len(arguments) > 1 else options.get("lengths")
        read.append(embeds[0, : int(lengths[0])] if lengths is not None else embeds[0])
        return prefill(embeds, *arguments, **options)

    monkeypatch.setattr(language_model, "prefill", watched)
    monkeypatch.setattr(language_model, "forward", watched)
    image = adapter.prepare(row["image"]) if "image" in row else None
    adapter.generate([ImageQuestions(image, (Question(question, max_new_tokens=1),))])
    seen = torch.cat(read)
    prompt = found.ids[: found.answered.index(True)]
    embedded = language_model.embed(torch.tensor(prompt).clamp(min=0))
    text = torch.tensor(prompt) >= 0
    assert seen.shape[0] == len(prompt)
    assert torch.equal(seen[text], embedded[text])
    if image is not None:
        assert int((~text).sum()) == CONFIG.vision.image_tokens
        patches = adapter.engine.model.embed_images(image[None])[0]
        assert torch.allclose(seen[~text], patches, atol=1e-5)


def test_the_loss_stands_on_the_assistants_turns_alone(tokenizer: Tokenizer):
    row = opened(llava_rows()[2])
    found = tokenise(row, CONFIG, tokenizer, 512)
    answered = [token for token, answer in zip(found.ids, found.answered, strict=True) if answer]
    assert tokenizer.decode(answered, skip_special_tokens=False) == f" blue 2{END} No{END}"
    batch = Collator(1)([found])
    assert batch["labels"].tolist() == answered
    assert [found.ids[place + 1] for place in batch["predict_at"]] == answered
    assert len(batch["image_at"]) == CONFIG.vision.image_tokens


def test_rows_of_a_batch_keep_their_places(tokenizer: Tokenizer):
    examples = [tokenise(opened(row), CONFIG, tokenizer, 512) for row in llava_rows()[5:9]]
    batch = Collator(1)(examples)
    ids, length = batch["ids"], batch["ids"].shape[1]
    for row, found in enumerate(examples):
        text = [token if token >= 0 else 0 for token in found.ids]
        assert ids[row].tolist() == text + [1] * (length - len(text))
        places = batch["image_at"][(batch["image_at"] // length) == row] % length
        assert [place for place, token in enumerate(found.ids) if token < 0] == places.tolist()
    assert batch["pixels"].shape == (3, 3, 32, 32)


def test_a_stream_of_scenes_is_read_like_a_file(tokenizer: Tokenizer):
    row = example("test", 3, patches=4)
    found = tokenise(row, CONFIG, tokenizer, 2048)
    answers = [turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"]
    said = [token for token, answer in zip(found.ids, found.answered, strict=True) if answer]
    assert tokenizer.decode(said, skip_special_tokens=False) == "".join(f" {answer}{END}" for answer in answers)
    assert len(found.patch_labels["shape"]) == 16


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def test_a_greeting_and_an_unanswered_question_are_left_out_as_llava_does():
    turns = [{"from": "gpt", "value": "Hello."}, *talk("a <image>", "b"), {"from": "human", "value": "And?"}]
    assert turns_of(turns) == [("a", "b")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("text", 'expected an object with a list "conversations"'),
        ({"conversations": []}, 'expected an object with a list "conversations"'),
        ({"conversations": [{"from": "gpt", "value": "Yes"}]}, "expected at least one question with an answer"),
        ({"conversations": [{"from": "human", "value": "Why?"}]}, "expected at least one question with an answer"),
        ({"conversations": [{"from": "human", "value": 3}]}, "turn 0 must be"),
        ({"conversations": [{"from": "user", "value": "a"}]}, "turn 0 must be"),
        ({"conversations": [{"from": "human", "value": "a"}] * 2}, "turn 1 is of 'human' again"),
        ({"conversations": talk("<image>\na", "b")}, "has the mark <image>, but the row names no image"),
        ({"image": "a.png", "conversations": talk("a", "b")}, "expected one mark <image> in the first question"),
        ({"image": "a.png", "conversations": talk("<image> a", "<image>")}, "none elsewhere, found 1 and 1"),
        ({"image": 3, "conversations": talk("<image> a", "b")}, "image must be a file name"),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_number(tmp_path: Path, row: Any, message: str):
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([llava_rows()[0], row]))
    with pytest.raises(DataError, match=r"talk\.json, row 1: ") as error:
        JsonRows(path, tmp_path)
    assert message in str(error.value)


def with_images(folder: Path, names: list[str]) -> Path:
    """A file whose rows name these images; 0.png is there."""
    (folder / "images").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "images/0.png")
    rows = [{**llava_rows()[0], "image": name} for name in ("0.png", *names)]
    (folder / "talk.json").write_text(json.dumps(rows))
    return folder / "talk.json"


def test_missing_images_are_named_before_any_training_with_file_row_and_number(tmp_path: Path):
    path = with_images(tmp_path, ["a/1.png", "2.png"])
    with pytest.raises(
        DataError, match=r"talk\.json, row 1: expected an image at .*a/1\.png, found none, and none for 1 further rows$"
    ):
        JsonRows(path, tmp_path / "images")
    (tmp_path / "images/a").mkdir()
    (tmp_path / "images/a/1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"talk\.json, row 2: expected an image at .*2\.png, found none$"):
        JsonRows(path, tmp_path / "images")


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png", "a/../../outside.png"])
def test_an_image_outside_the_folder_is_refused(tmp_path: Path, name: str):
    path = with_images(tmp_path, [name])
    with pytest.raises(DataError, match=r"talk\.json, row 1: the image .*outside\.png' is outside .*images"):
        JsonRows(path, tmp_path / "images")


def test_an_image_that_cannot_be_read_is_named_with_its_file_and_row(tmp_path: Path):
    path = with_images(tmp_path, ["broken.png"])
    (tmp_path / "images/broken.png").write_bytes(b"no picture")
    rows = JsonRows(path, tmp_path / "images")
    assert rows[0][0]["image"].size == (4, 4)
    with pytest.raises(DataError, match=r"talk\.json, row 1: expected an image at .*broken\.png, found"):
        rows[1]


def test_a_data_sets_own_folder_may_be_a_link_and_nothing_below_it_leads_elsewhere(tmp_path: Path):
    """As if coco, gqa, vg lay on other disks."""
    path = with_images(tmp_path, ["coco/train2017/1.png", "coco/train2017/2.png"])
    elsewhere = tmp_path / "elsewhere/train2017"
    elsewhere.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(elsewhere / "1.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (elsewhere / "2.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "images/coco").symlink_to(tmp_path / "elsewhere")
    rows = JsonRows(path, tmp_path / "images")
    assert rows[1][0]["image"].size == (4, 4)
    with pytest.raises(DataError, match=r"row 2: the image 'coco/train2017/2\.png' is a link that is outside"):
        rows[2]


@pytest.mark.parametrize("content", ["[]", "{", "{}"])
def test_a_file_that_is_no_list_of_conversations_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "talk.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"talk\.json: expected a JSON list"):
        JsonRows(path, tmp_path)
    with pytest.raises(DataError, match="is missing"):
        JsonRows(tmp_path / "none.json", tmp_path)


def test_what_is_beyond_max_length_is_cut_off_but_the_image_must_fit(tokenizer: Tokenizer):
    row = opened(llava_rows()[0])
    with pytest.raises(DataError, match="row 0: max_length 20 leaves no room for a text after the image"):
        tokenise(row, CONFIG, tokenizer, 20, "talk.json, row 0")
    whole = tokenise(row, CONFIG, tokenizer, 512)
    begins = whole.answered.index(True)
    cut = tokenise(row, CONFIG, tokenizer, begins + 1)
    assert cut.ids == whole.ids[: begins + 1]
    assert cut.answered.count(True) == 1
    assert not any(tokenise(row, CONFIG, tokenizer, begins).answered), "a long question stays, as in LLaVA"
