"""Examples that share a row learn as if each had its own, and rows are grouped without any being lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from tests.model_adapters.vlmamba.gradients import worst
from vlmamba_eval.model_adapters.vlmamba.config import ModelConfig
from vlmamba_eval.model_adapters.vlmamba.model import random_model
from vlmamba_eval.model_adapters.vlmamba.train.data import Collator, Example, JsonRows, Order
from vlmamba_eval.model_adapters.vlmamba.train.recipe import PARTS, Data, Stage
from vlmamba_eval.model_adapters.vlmamba.train.trained import TrainedModel

from .conftest import small_config

STAGE = Stage(
    name="one", train=PARTS, data=Data(stream="scenes"), batch_size=4, micro_batch_size=4, learning_rate=1e-3, steps=1
)


def examples(config: ModelConfig, lengths: list[int], images: list[bool]) -> list[Example]:
    """Random conversations; the second half of each is answered."""
    g = torch.Generator().manual_seed(0)
    size, tokens = config.vision.image_size, config.vision.image_tokens
    found = []
    for text, image in zip(lengths, images, strict=True):
        ids = torch.randint(2, config.language_model.vocab_size, (text,), generator=g).tolist()
        pixels = torch.randint(0, 256, (3, size, size), generator=g, dtype=torch.uint8) if image else None
        before = tokens if image else 0
        answered = [False] * before + [place >= text // 2 for place in range(text)]
        found.append(Example([-1] * before + ids, answered, pixels, {}))
    return found


def step(batch: dict[str, Tensor], config: ModelConfig, double: bool, checkpointing: bool = False) -> dict[str, Tensor]:
    """The loss and every gradient of one batch."""
    from msgspec.structs import replace as changed

    trained = TrainedModel(random_model(config, 0), changed(STAGE, gradient_checkpointing=checkpointing))
    if double:
        trained.double()
    loss = trained(**batch)["loss"]
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad for n, p in trained.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_examples_have_the_gradients_of_rows_of_their_own(checkpointing: bool):
    """In one row are three examples, with and without images; every gradient agrees to float32's rounding."""
    config = small_config()
    talks = examples(config, [70, 9, 12, 5, 20], [True, True, False, False, True])
    collator = Collator(config.tokenizer.pad_token_id, gap=config.language_model.d_conv - 1, max_length=128)
    packed, plain = collator(talks), Collator(config.tokenizer.pad_token_id)(talks)
    assert len(packed["ids"]) < len(plain["ids"]) == 5
    assert packed["ids"].numel() < plain["ids"].numel()
    assert int(packed["tokens"]) == int(plain["tokens"]) == sum(len(talk.ids) for talk in talks)
    assert sorted(packed["labels"].tolist()) == sorted(plain["labels"].tolist())
    found, expected = (step(batch, config, False, checkpointing) for batch in (packed, plain))
    name, off = worst(found, expected)
    assert off < 2e-5, name


def test_without_its_gap_a_packed_example_reads_what_stands_before_it():
    """The test above can fail: the state of the example before must be forgotten."""
    config = small_config()
    talks = examples(config, [70, 9, 12], [True, True, False])
    collator = Collator(config.tokenizer.pad_token_id, gap=3, max_length=128)
    packed = collator(talks)
    expected = step(packed, config, False)["loss"]
    packed["gaps"] = torch.zeros_like(packed["gaps"])
    assert abs(float(step(packed, config, False)["loss"] - expected)) > 1e-4


def test_no_bit_of_an_example_reaches_the_one_behind_it():
    """Whatever stands first in a row, the loss of the second example alone is the same, bit for bit."""
    config = small_config()
    losses = set()
    for seed in range(3):
        first, second = examples(config, [20, 30], [False, False])
        ids = torch.randint(2, 500, (20,), generator=torch.Generator().manual_seed(seed)).tolist()
        first = replace(first, ids=ids, answered=[False] * 20)
        batch = Collator(1, gap=3, max_length=128)([first, second])
        assert len(batch["ids"]) == 1
        losses.add(float(step(batch, config, False)["loss"]))
    assert len(losses) == 1


def test_rows_are_filled_up_to_max_length_and_not_beyond():
    config = small_config()
    talks = examples(config, [60, 60, 60, 30, 30], [False] * 5)
    batch = Collator(1, gap=3, max_length=128)(talks)
    assert batch["ids"].shape == (2, 128)
    assert (~batch["gaps"]).sum() == 240
    wide = Collator(1, gap=3, max_length=100)(talks)
    assert wide["ids"].shape[1] <= 128
    assert int((~wide["gaps"]).sum(1).max()) <= 100


# =============================================================================
# The order
# =============================================================================


class Rows:
    """Rows of given lengths, every third without an image."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def sizes(self) -> tuple[list[int], list[bool]]:
        return [7 * number % 101 for number in range(self.n)], [bool(number % 3) for number in range(self.n)]


def order(n: int, steps: int, size: int, group: bool, seed: int = 0) -> list[list[int]]:
    numbers = list(Order(cast(JsonRows, Rows(n)), steps, size, seed, group))
    assert len(numbers) == steps * size
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


@pytest.mark.parametrize("group", [False, True])
def test_every_row_comes_once_a_pass(group: bool):
    steps = order(110, 55, 4, group)
    counts = Counter(number for step in steps for number in step)
    assert set(counts) == set(range(110))
    assert max(counts.values()) - min(counts.values()) <= 1
    assert order(110, 55, 4, group) == steps, "a function of the seed"
    assert order(110, 55, 4, group, seed=1) != steps


def test_a_grouped_step_holds_rows_of_like_length_with_images_or_without():
    lengths, has_image = Rows(600).sizes()
    steps = order(600, 75, 8, True)
    mixed = [step for step in steps if len({has_image[number] for number in step}) > 1]
    assert len(mixed) <= 1
    spread = [max(lengths[n] for n in step) - min(lengths[n] for n in step) for step in steps if step not in mixed]
    random = [max(lengths[n] for n in step) - min(lengths[n] for n in step) for step in order(600, 75, 8, False)]
    assert sum(spread) < 0.2 * sum(random)
    kinds = [has_image[step[0]] for step in steps]
    assert kinds != sorted(kinds), "steps come in random order"
