"""Attention over what rows have read: through segments that many rows refer to, it is plain causal attention.

Recomputed here by itself: each row's whole text, one softmax per token, in float64.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vlmamba_eval.model_adapters.hybrid.reading import Reading, Rope, Step
from vlmamba_eval.model_adapters.hybrid.state import HybridState
from vlmamba_eval.model_adapters.vlmamba.scan import Layout

HEADS, KV, WIDTH = 4, 2, 6
SCALE = WIDTH**-0.5


class Text:
    """Queries, keys and values of the tokens of one row, in order."""

    def __init__(self, *parts: tuple[Tensor, Tensor, Tensor]):
        self.q, self.k, self.v = (torch.cat(tensors) for tensors in zip(*parts, strict=True))

    def attended(self, theta: float | None) -> Tensor:
        """[tokens, heads * width]: every token attends to itself and to all before it."""
        q, k = self.q.double(), self.k.double()
        if theta is not None:
            q, k = turned(q, theta), turned(k, theta)
        out = torch.zeros(len(q), HEADS, WIDTH, dtype=torch.float64)
        for t in range(len(q)):
            for head in range(HEADS):
                own = head // (HEADS // KV)
                weights = torch.softmax((k[: t + 1, own] @ q[t, head]) * SCALE, 0)
                out[t, head] = weights @ self.v[: t + 1, own].double()
        return out.flatten(1)


def turned(x: Tensor, theta: float) -> Tensor:
    """x [tokens, heads, width], token t turned by t theta^(-2 i / width) in its pair (i, i + width / 2)."""
    out = x.clone()
    for t in range(len(x)):
        for i in range(WIDTH // 2):
            angle = t * theta ** (-2 * i / WIDTH)
            a, b = x[t, :, i], x[t, :, i + WIDTH // 2]
            out[t, :, i] = a * math.cos(angle) - b * math.sin(angle)
            out[t, :, i + WIDTH // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def drawn(length: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(length, HEADS, WIDTH), torch.randn(length, KV, WIDTH), torch.randn(length, KV, WIDTH)


def read(
    parts: list[tuple[Tensor, Tensor, Tensor]],
    state: HybridState | None,
    sources: list[int] | None,
    rope: Rope | None,
    packed: bool,
) -> tuple[list[Tensor], HybridState]:
    """What the tokens of each row attend to, and the state after them."""
    lengths = [len(part[0]) for part in parts]
    layout = Layout.of(lengths, sources, torch.device("cpu"), packed=packed)
    if packed:
        q, k, v = (torch.cat(tensors)[None] for tensors in zip(*parts, strict=True))
    else:
        q, k, v = (torch.nn.utils.rnn.pad_sequence(list(t), batch_first=True) for t in zip(*parts, strict=True))
    reading = Reading(torch.zeros(*q.shape[:2], 1), state, layout)
    y = reading.attend(q, k, v, rope, SCALE)
    rows = list(y[0].split(lengths)) if packed else [row[:n] for row, n in zip(y, lengths, strict=True)]
    return rows, reading.after()


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("theta", [None, 100.0], ids=["no rope", "rope"])
def test_questions_attend_to_opening_image_and_themselves(theta: float | None, packed: bool) -> None:
    torch.manual_seed(0)
    rope = None if theta is None else Rope(WIDTH, theta)
    opening, images = drawn(3), [drawn(5), drawn(2)]
    questions, belongs = [drawn(4), drawn(1), drawn(3), drawn(2)], [1, 0, 1, -1]  # the last has no image
    _, state = read([opening], None, None, rope, packed)
    _, state = read(images, state, [0, 0], rope, packed)
    found, state = read(questions, state, belongs, rope, packed)
    texts = [
        Text(*([opening, images[image]] if image >= 0 else []), question)
        for image, question in zip(belongs, questions, strict=True)
    ]
    for text, question, attended in zip(texts, questions, found, strict=True):
        wanted = text.attended(theta)[-len(question[0]) :]
        torch.testing.assert_close(attended.double(), wanted, rtol=1e-5, atol=1e-5)

    # Two tokens more; then one row leaves and the others change places; then more than an open segment has room for.
    texts, state = stepped(texts, state, rope, theta, 2)
    order = [3, 0, 1]
    state = state.select(torch.tensor(order))
    stepped([texts[place] for place in order], state, rope, theta, 33)


def stepped(
    texts: list[Text], state: HybridState, rope: Rope | None, theta: float | None, tokens: int
) -> tuple[list[Text], HybridState]:
    for token in range(tokens):
        parts = [drawn(1) for _ in texts]
        texts = [Text((text.q, text.k, text.v), part) for text, part in zip(texts, parts, strict=True)]
        step = Step(state)
        q, k, v = (torch.stack(tensors) for tensors in zip(*parts, strict=True))  # [b, 1, heads, width]
        found = step.attend(q, k, v, rope, SCALE)
        step.close()
        if token in (0, tokens - 1):
            for text, attended in zip(texts, found, strict=True):
                torch.testing.assert_close(attended[0].double(), text.attended(theta)[-1], rtol=1e-5, atol=1e-5)
    return texts, state
