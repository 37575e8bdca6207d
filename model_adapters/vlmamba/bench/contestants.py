"""Who answers the questions of a measurement.

Ours, over one set of weights:

    shared      an image is read once, and all its questions continue its state
    unshared    the same engine and micro-batches, but every question reads its image again
    one-by-one  a question at a time, from the pixels on: the engine's plain reference

Peers, with the same weights:

    transformers          MambaForCausalLM.generate, a question at a time
    transformers-batched  the questions of an image in one batch, padded on the left
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmamba_eval.types import ImageQuestions, UsageError

from ..engine import Engine
from .subject import PAD, Subject

MODES = ("shared", "unshared", "one-by-one")
PEERS = ("transformers", "transformers-batched")

# Tokens of one call of the engine. A run's own batches have a fourth of it on a GPU, so that shares are of equal size.
_CALL_TOKENS = {"cpu": 16_384, "cuda": 262_144}

Answers = dict[tuple[int, int], str]
"""(image, question) -> answer."""


@dataclass(frozen=True)
class Contestant:
    """One way to answer. `places` are the (image, question) pairs that it answers; a slow one takes a part of them."""

    name: str
    backend: str
    places: tuple[tuple[int, int], ...]
    answer: Callable[[], Answers]
    warm_up: Callable[[], Answers]


def contestants(
    subject: Subject, batch: Sequence[ImageQuestions], modes: Sequence[str], peers: Sequence[str], part: int | None
) -> list[Contestant]:
    """The named contestants over a batch of questions.

    `part` is how many questions, spread evenly, the slow ones answer (one-by-one and the peers); None: all.
    """
    everything = tuple((i, j) for i, item in enumerate(batch) for j in range(len(item.questions)))
    some = spread(everything, part)
    made = []
    for mode in modes:
        places = some if mode == "one-by-one" else everything
        answer = _ours(subject, batch, mode, places)
        # A slow contestant warms up on as many questions as images are read at once, the slowest on one. On a GPU that
        # would leave out batch sizes whose graphs are captured when they first come.
        if mode == "shared" or (mode == "unshared" and subject.device.startswith("cuda")):
            warm_up = answer
        else:
            warm_up = _ours(subject, batch, mode, places[: subject.engine.limits.images if mode == "unshared" else 1])
        made.append(Contestant(mode, subject.backend, places, answer, warm_up))
    if peers:
        model = transformers_mamba(subject)
        for peer in peers:
            answer, warm_up = (_peer(subject, model, batch, peer, places) for places in (some, some[:1]))
            made.append(Contestant(peer, _transformers_backend(), some, answer, warm_up))
    return made


def spread(places: Sequence[tuple[int, int]], part: int | None) -> tuple[tuple[int, int], ...]:
    """`part` of the places at equal distances, all if there are no more."""
    if part is None or part >= len(places):
        return tuple(places)
    return tuple(places[(2 * i + 1) * len(places) // (2 * part)] for i in range(part))


# =============================================================================
# Ours
# =============================================================================


def _ours(
    subject: Subject, batch: Sequence[ImageQuestions], mode: str, places: tuple[tuple[int, int], ...]
) -> Callable[[], Answers]:
    engine = subject.engine
    if mode == "shared":
        groups = list(batch)
    else:  # every question is a group of its own, with its own reading of the image
        groups = [ImageQuestions(batch[i].image, (batch[i].questions[j],)) for i, j in places]
    if mode == "one-by-one":
        engine = Engine(engine.model, engine.tokenizer, sharing=False, limits=engine.limits)

    def answer() -> Answers:
        texts = [text for group in answers(subject, engine, groups) for text in group]
        return dict(zip(places, texts, strict=True))

    return answer


def answers(subject: Subject, engine: Engine, groups: Sequence[ImageQuestions]) -> list[list[str]]:
    """The texts that an engine, the subject's or another, gives to each group's questions."""
    texts = []
    for call in calls(subject, groups):
        texts += [[generation.text for generation in generations] for generations in engine.generate(call)]
    return texts


def calls(subject: Subject, groups: Sequence[ImageQuestions]) -> Iterator[list[ImageQuestions]]:
    """Groups in calls of the engine that hold about as many tokens as a batch of an evaluation."""
    budget = _CALL_TOKENS.get(torch.device(subject.device).type, _CALL_TOKENS["cpu"])
    call: list[ImageQuestions] = []
    used = 0
    for group in groups:
        tokens = subject.image_tokens + sum(len(question.text) // 4 + 32 for question in group.questions)
        if call and used + tokens > budget:
            yield call
            call, used = [], 0
        call.append(group)
        used += tokens
    if call:
        yield call


# =============================================================================
# transformers
# =============================================================================


def transformers_mamba(subject: Subject) -> Any:
    """MambaForCausalLM with the subject's weights, on its device, in its precision."""
    from transformers import MambaConfig, MambaForCausalLM
    from transformers.utils import logging

    if subject.parameters is None or subject.prefix_ids is None:
        raise UsageError("transformers has no VL-Mamba: peers are measured on a language model, with --shape")
    logging.set_verbosity_error()  # the missing kernels are in the table's backend column
    shape = subject.engine.model.config.language_model
    config = MambaConfig(
        hidden_size=shape.d_model,
        num_hidden_layers=shape.n_layer,
        vocab_size=shape.padded_vocab_size,
        state_size=shape.d_state,
        conv_kernel=shape.d_conv,
        expand=shape.expand,
        layer_norm_epsilon=shape.norm_eps,
        residual_in_fp32=True,
    )
    with torch.device("meta"):
        model = MambaForCausalLM(config)
    model = model.to_empty(device=subject.device)
    # One precision throughout, as from_pretrained(dtype=...) gives.
    precision = getattr(torch, subject.dtype)
    parameters = {
        name.replace("backbone.embedding.", "backbone.embeddings."): tensor.to(precision)
        for name, tensor in subject.parameters.items()
    }
    parameters["lm_head.weight"] = parameters["backbone.embeddings.weight"]
    model.load_state_dict(parameters, assign=True)
    return model.requires_grad_(False).eval()


def _transformers_backend() -> str:
    import transformers

    from ..scan.mamba_ssm import selective_scan_fn

    return f"transformers {transformers.__version__}" + (" with mamba_ssm" if selective_scan_fn() else " in PyTorch")


def _peer(
    subject: Subject, model: Any, batch: Sequence[ImageQuestions], name: str, places: Sequence[tuple[int, int]]
) -> Callable[[], Answers]:
    assert subject.prefix_ids is not None  # noqa: S101 - transformers_mamba has checked it
    prompts = {(i, j): [*subject.prefix_ids(i), *subject.asked_ids(batch[i].questions[j])] for i, j in places}
    steps = {(i, j): batch[i].questions[j].max_new_tokens for i, j in places}
    if name == "transformers":
        together = [[place] for place in places]
    else:
        together = [[place for place in places if place[0] == i] for i in range(len(batch))]
        together = [group for group in together if group]

    def answer() -> Answers:
        found = {}
        for group in together:
            most = max(steps[place] for place in group)
            ids, mask = _padded([prompts[place] for place in group], subject.device)
            # The attention mask is given only if it is needed: without one, the peer does less.
            extra = {} if mask is None else {"attention_mask": mask}
            with torch.inference_mode():
                out = model.generate(
                    ids, max_new_tokens=most, do_sample=False, eos_token_id=None, pad_token_id=PAD, **extra
                )
            for place, row in zip(group, out[:, ids.shape[1] :].tolist(), strict=True):
                found[place] = subject.engine.tokenizer.decode(row[: steps[place]], skip_special_tokens=True).strip()
        return found

    return answer


def _padded(prompts: Sequence[Sequence[int]], device: str) -> tuple[Tensor, Tensor | None]:
    """Ids [b, l], padded on the left, and their mask if there is padding."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    if all(len(prompt) == longest for prompt in prompts):
        return ids, None
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask
