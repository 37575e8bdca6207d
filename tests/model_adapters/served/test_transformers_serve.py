"""A server that nobody here wrote: `transformers serve` with a tiny random LLaVA, beside the same model in process.

The server is started and stopped here and listens on 127.0.0.1 alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.servers import free_port
from vlmamba_eval.dataset import load_dataset
from vlmamba_eval.registry import defer, get_task, load
from vlmamba_eval.run import evaluate
from vlmamba_eval.store import read_answers
from vlmamba_eval.types import Failure, Generation, ImageQuestions, Question

pytestmark = pytest.mark.slow

NEW_TOKENS = 12
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of two small layers with random weights and a tokenizer of bytes."""
    torch = pytest.importorskip("torch")
    import transformers as hf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<pad>", "<s>", "</s>", "<image>"]
    vocabulary = {token: i for i, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    letters = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    letters.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=letters, bos_token="<s>", eos_token="</s>", pad_token="<pad>", extra_special_tokens=["<image>"]
    )
    pixels = hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = hf.LlavaProcessor(
        image_processor=pixels,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    small: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    }  # fmt: skip
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**small, image_size=28, patch_size=14),
        text_config=hf.LlamaConfig(**small, vocab_size=len(vocabulary), bos_token_id=1, eos_token_id=2, pad_token_id=0),
        image_token_id=3,  # type: ignore[call-arg] - the configuration's decorator hides it
        vision_feature_layer=-2,
    )
    torch.manual_seed(0)
    model = hf.LlavaForConditionalGeneration(config)
    for weights in model.parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, std=0.3)  # large enough that answers differ from image to image
    folder = tmp_path_factory.mktemp("tiny-llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `transformers serve`, which runs as long as this module's tests."""
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        pytest.skip("transformers' serving extra is not installed")
    port = free_port()
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
    command += [str(checkpoint), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 180
    while time.monotonic() < until:
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(address, timeout=5).close()  # the fixture's own server
            return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"transformers serve did not start:\n{log.read_text(errors='replace')[-3000:]}")


def picture(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((40, 32), Image.Resampling.NEAREST)


def in_this_process(folder: Path, image: Image.Image | None, text: str) -> str:
    """The answer of the same checkpoint by transformers' own `generate`."""
    import torch
    import transformers as hf

    processor = hf.AutoProcessor.from_pretrained(folder)
    model: Any = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    parts: list[dict[str, Any]] = [{"type": "image", "image": image}] if image is not None else []
    parts.append({"type": "text", "text": text})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    made = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_a_served_model_answers_as_the_same_model_in_this_process(url: str, checkpoint: Path) -> None:
    adapter: Any = load(f"openai:{checkpoint}", {"base_url": url, "dialect": "transformers", "concurrency": "3"})
    texts = ["What is it?", "Is there a cat?\nAnswer yes or no."]
    batch = [
        ImageQuestions(adapter.prepare(picture(seed)), tuple(Question(text, NEW_TOKENS) for text in texts))
        for seed in range(3)
    ]
    batch.append(ImageQuestions(None, (Question("2 + 2?", NEW_TOKENS),)))
    outcomes = adapter.generate(batch)
    expected = [[in_this_process(checkpoint, picture(seed), text) for text in texts] for seed in range(3)]
    expected.append([in_this_process(checkpoint, None, "2 + 2?")])
    found = [[one.text if isinstance(one, Generation) else one for one in group] for group in outcomes]
    assert found == expected
    assert len({text for group in expected[:3] for text in group}) >= 4  # the picture matters, and so does the question
    assert {one.stop for group in outcomes for one in group} <= {"length", "eos"}
    used = adapter.telemetry()
    assert used["requests"] == used["answered"] == 7
    assert used["completion_tokens"] == sum(one.n_tokens for group in outcomes for one in group) > 0
    adapter.close()


def test_a_field_that_the_server_does_not_know_is_said_question_by_question(url: str, checkpoint: Path) -> None:
    adapter: Any = load(f"openai:{checkpoint}", {"base_url": url, "dialect": "vllm"})
    [[outcome]] = adapter.generate([ImageQuestions(None, (Question("2 + 2?", 4),))])
    assert isinstance(outcome, Failure)
    assert "HTTP 422: Unexpected fields in the request" in outcome.message
    assert "choose another dialect" in outcome.message
    adapter.close()


def test_a_whole_evaluation_goes_through_the_server(url: str, checkpoint: Path, tmp_path: Path) -> None:
    dataset = load_dataset(get_task("pope"), "samples", limit=12, seed=1)
    adapter = defer(f"openai:{checkpoint}", {"base_url": url, "dialect": "transformers"})
    [outcome] = evaluate(adapter, [dataset], tmp_path)
    assert outcome.complete
    answers = read_answers(outcome.folder)
    assert len(answers) == len(dataset.samples)
    assert all(answer.failure is None for answer in answers.values())
