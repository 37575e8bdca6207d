"""How far gradients are from what they should be, and the gradients of one whole training step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.config import ModelConfig
from vlmamba_eval.model_adapters.vlmamba.model import random_model
from vlmamba_eval.model_adapters.vlmamba.train.data import Collator, Example
from vlmamba_eval.model_adapters.vlmamba.train.recipe import PARTS, Data, Stage
from vlmamba_eval.model_adapters.vlmamba.train.trainer import TrainedModel


def error(found: Tensor, expected: Tensor, size: float = 0.0) -> float:
    """The largest difference as a share of the largest expected number of the same tensor, or of `size` if larger.

    A share of each number by itself would say nothing: sums that cancel are rounded at the size of their terms, so
    that an entry near 0 may be off by many times itself in a gradient that is right. Infinite if something is not
    a number, or differs from a tensor of zeros.
    """
    if found.shape != expected.shape:
        raise ValueError(f"shapes {list(found.shape)} and {list(expected.shape)}")
    if not expected.numel():
        return 0.0
    difference = float((found.detach().to(expected.device, torch.float64) - expected.detach()).abs().max())
    size = max(size, float(expected.abs().max()))
    if difference == 0:
        return 0.0
    return difference / size if size > 0 and math.isfinite(difference) else math.inf


def worst(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[str, float]:
    """The tensor that is furthest off, and by how much; the same names must be in both.

    The gradient of a key's bias is 0: it shifts all scores of a query alike, which softmax does not see. What is
    computed for it is rounding of terms as large as those of the key's matrix, and is measured at the size of these.
    """
    if found.keys() != expected.keys():
        raise ValueError(f"in one of them only: {', '.join(sorted(found.keys() ^ expected.keys()))}")

    def measured(name: str) -> float:
        matrix = expected[name.removesuffix("bias") + "weight"] if name.endswith("k_proj.bias") else None
        return error(found[name], expected[name], 0.0 if matrix is None else float(matrix.abs().max()))

    return max(((name, measured(name)) for name in expected), key=lambda item: item[1])


def training_step(
    config: ModelConfig, device: str = "cpu", bf16: bool = False, gradient_checkpointing: bool = False
) -> dict[str, Tensor]:
    """The gradient of every parameter after one training step, and the loss: all parts learn, two ragged rows.

    The model, its start and its batch are the same on every device.
    """
    data = Data(stream="none")
    stage = Stage(
        name="one", train=PARTS, data=data, batch_size=2, micro_batch_size=2, learning_rate=1e-3,
        gradient_checkpointing=gradient_checkpointing,
    )  # fmt: skip
    trained = TrainedModel(random_model(config, 0), stage).to(device)
    g = torch.Generator().manual_seed(0)
    tokens, size = config.vision.image_tokens, config.vision.image_size
    examples = []
    for text, image in ((27, True), (20, False)):
        ids = torch.randint(2, config.language_model.vocab_size, (text,), generator=g).tolist()
        answered = [place >= text // 2 for place in range(text)]
        pixels = torch.randint(0, 256, (3, size, size), generator=g, dtype=torch.uint8) if image else None
        before = tokens if image else 0
        examples.append(Example([-1] * before + ids, [False] * before + answered, pixels, {}))
    batch = {name: tensor.to(device) for name, tensor in Collator(config.tokenizer.pad_token_id)(examples).items()}
    with torch.autocast(device, torch.bfloat16) if bf16 else contextlib.nullcontext():
        loss = trained(**batch)["loss"]
    loss.backward()
    found = {name: p.grad for name, p in trained.named_parameters() if p.grad is not None}
    assert len(found) == len(list(trained.parameters())), "every parameter has a part in the loss"
    return {"loss": loss.detach(), **found}
