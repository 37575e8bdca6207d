"""Three lines load a checkpoint in transformers, and it answers as the engine does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoTokenizer

from tests.model_adapters.vlmamba.conftest import TINY, micro_config, mild_model
from vlmamba_eval.model_adapters.vlmamba import automodel, checkpoint
from vlmamba_eval.model_adapters.vlmamba.adapter import VLMambaAdapter
from vlmamba_eval.model_adapters.vlmamba.config import load_config
from vlmamba_eval.model_adapters.vlmamba.language_model import keeps_float32
from vlmamba_eval.tasks.samples.training import example
from vlmamba_eval.types import ImageQuestions, ModelError, Question, UsageError


def bundled() -> automodel.VLMambaForConditionalGeneration:
    model: Any = AutoModelForImageTextToText.from_pretrained(TINY)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_folder_comes_back_bit_for_bit_with_the_precisions_of_its_file(tmp_path: Path, dtype: torch.dtype):
    model = mild_model(micro_config())
    tokenizer = checkpoint.load_tokenizer(TINY / "tokenizer.json", model.config)
    stored = {
        name: tensor.detach().to(torch.float32 if keeps_float32(name) else dtype)
        for name, tensor in model.state_dict().items()
    }
    checkpoint.save(tmp_path, stored, model.config, tokenizer)
    for auto in (AutoModelForImageTextToText, AutoModel):
        loaded = auto.from_pretrained(tmp_path)
        assert isinstance(loaded, automodel.VLMambaForConditionalGeneration)
        found = loaded.state_dict()
        assert set(found) == set(stored)
        for name, tensor in stored.items():
            assert found[name].dtype == tensor.dtype, name
            assert torch.equal(found[name], tensor), name
    assert load_config(tmp_path) == model.config, "our own reader takes the same file"
    assert AutoConfig.from_pretrained(tmp_path).model_config() == model.config
    assert AutoTokenizer.from_pretrained(tmp_path)("Yes").input_ids == tokenizer.encode("Yes").ids


def test_it_answers_as_the_engine_does_with_an_image_and_without():
    loaded = bundled()
    model, _, tokenizer = checkpoint.load(TINY)
    adapter = VLMambaAdapter(model, tokenizer, weights="sha256:0")
    for number in (3, 5):
        row = example("three lines", number, turns=1)
        question = row["conversations"][0]["value"].removeprefix("<image>\n")
        for image in (row["image"], None):
            pixels = None if image is None else adapter.prepare(image)
            ((expected,),) = adapter.generate([ImageQuestions(pixels, (Question(question, max_new_tokens=24),))])
            assert loaded.answer(image, question, max_new_tokens=24) == expected.text


def test_its_loss_is_the_cross_entropy_of_its_logits_and_its_inputs_are_checked():
    loaded = bundled()
    given = loaded.inputs("What is it?", example("three lines", 3)["image"])
    labels = given["input_ids"].clamp(min=0)
    labels[:, :-4] = -100
    found = loaded(**given, labels=labels)
    expected = torch.nn.functional.cross_entropy(found.logits[0, -5:-1], labels[0, -4:])
    assert torch.allclose(found.loss, expected)
    assert loaded(**given, return_dict=False)[0].shape == found.logits.shape
    with pytest.raises(UsageError, match="has places for images"):
        loaded(input_ids=given["input_ids"])
    with pytest.raises(UsageError, match=r"1 images take 64 places \(-1\) in input_ids, found 63"):
        loaded(
            input_ids=given["input_ids"][:, 1 + int((given["input_ids"] < 0).int().argmax()) :],
            **{"pixel_values": given["pixel_values"]},
        )


def test_a_model_that_was_not_loaded_from_a_folder_says_that_it_has_no_tokenizer():
    bare = automodel.VLMambaForConditionalGeneration(automodel.VLMambaConfig.of(micro_config()))
    with pytest.raises(ModelError, match="expected the tokenizer of the folder"):
        bare.answer(None, "Why?")


@pytest.mark.slow
def test_the_three_lines_of_the_model_card_work_in_a_process_of_their_own():
    lines = [
        "import vlmamba_eval.model_adapters.vlmamba.automodel",
        "from transformers import AutoModelForImageTextToText",
        f"model = AutoModelForImageTextToText.from_pretrained({str(TINY)!r})",
        "print(type(model).__name__)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "VLMambaForConditionalGeneration"
