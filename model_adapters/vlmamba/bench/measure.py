"""One profile after another into rows."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vlmamba_eval.model_adapters.shared.bench import MIB, AboutImage, Asked, Times, peak_memory, ratio, take_turns
from vlmamba_eval.types import ImageQuestions

from ..config import LanguageModelConfig
from .contestants import Contestant, contestants
from .report import Row
from .subject import Subject

Say = Callable[[str], None]

QUESTIONS_PER_IMAGE = (1, 2, 4, 8, 16, 32)

PIECE = 4096
"""Tokens of a piece, when a long text is read piece by piece."""


# =============================================================================
# Answering
# =============================================================================


def answering(
    subject: Subject,
    profile: str,
    images: Sequence[AboutImage],
    modes: Sequence[str],
    peers: Sequence[str],
    repeats: int,
    part: int | None,
    seed: int,
    say: Say,
) -> list[Row]:
    """All contestants over the questions of a profile, in turns; ratios to the first."""
    batch = subject.batch(images, seed)
    entered = contestants(subject, batch, modes, peers, part)
    say(f"in turns, each after a warm-up: {', '.join(contestant.name for contestant in entered)}")
    runs = {contestant.name: contestant.answer for contestant in entered}
    warm_ups = {contestant.name: contestant.warm_up for contestant in entered}
    times = take_turns(runs, repeats, subject.device, warm_ups, say)
    return _rows(subject, profile, images, batch, entered, times)


def _rows(
    subject: Subject,
    profile: str,
    images: Sequence[AboutImage],
    batch: Sequence[ImageQuestions],
    entered: Sequence[Contestant],
    times: dict[str, Times[Any]],
) -> list[Row]:
    questions = [question for about in images for question in about.questions]
    lengths = {
        (i, j): subject.opening
        + subject.image_tokens
        + len(subject.asked_ids(question))
        + images[i].questions[j].new_tokens
        for i, item in enumerate(batch)
        for j, question in enumerate(item.questions)
    }
    base = times[entered[0].name]
    rows = []
    for contestant in entered:
        # A question's time goes with its tokens, the image's among them: what a part took is scaled to the whole.
        share = sum(lengths[place] for place in contestant.places) / sum(lengths.values())
        own = times[contestant.name]
        compared = [place for place in contestant.places if place in (base.returned or {})]
        rows.append(
            Row(
                profile=profile,
                model=subject.name,
                mode=contestant.name,
                backend=contestant.backend,
                device=subject.device,
                dtype=subject.dtype,
                images=len(images),
                questions=len(questions),
                prefix_tokens=subject.opening + subject.image_tokens,
                question_tokens=_mean([len(subject.asked_ids(q)) for item in batch for q in item.questions]),
                new_tokens=_mean([question.new_tokens for question in questions]),
                measured_questions=len(contestant.places),
                **_spread([second / share for second in own.seconds], base.seconds),
                compared=len(compared),
                same_answers=sum((own.returned or {})[place] == (base.returned or {})[place] for place in compared),
            )
        )
    return rows


def _spread(seconds: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """The fields of a row that say how long something took, and how many times as long as the base."""
    quotient = ratio(seconds, base)
    return {
        "repeats": len(seconds),
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "ratio": quotient.of_medians,
        "ratio_min": quotient.least,
        "ratio_max": quotient.most,
    }


def per_image(
    subject: Subject, counts: Sequence[int], modes: Sequence[str], repeats: int, seed: int, say: Say
) -> list[Row]:
    """One image with more and more questions of 20 to 40 tokens."""
    rows = []
    for count in counts:
        rng = random.Random(seed)
        image = AboutImage(tuple(Asked(rng.randint(20, 40), 4) for _ in range(count)), count)
        say(f"{count} questions per image")
        rows += answering(subject, "images", [image], modes, (), repeats, None, seed, lambda line: None)
    return rows


# =============================================================================
# Reading
# =============================================================================


@dataclass(frozen=True)
class Reader:
    """Reads texts of any length; `read(ids)` returns the bytes that must be kept to continue."""

    mode: str
    model: str
    backend: str
    read: Callable[[torch.Tensor], int]


def lengths(
    subject: Subject, lengths: Sequence[int], repeats: int, seed: int, say: Say, *, llama: bool = True
) -> list[Row]:
    """Time and memory of reading one text, up to the scores of its next token, by length.

    Ours reads it whole, and in pieces of 4,096 tokens with the state carried on. Beside it a LLaMA of about
    equal size through transformers, with the fastest attention that PyTorch has for it.
    """
    readers = [_ours(subject, "whole", max(lengths)), _ours(subject, "pieces", PIECE)]
    if llama:
        say("drawing the LLaMA")
        readers.append(_llama(subject, max(lengths), seed))
    generator = torch.Generator().manual_seed(seed)
    vocabulary = subject.engine.model.config.language_model.vocab_size
    rows: list[Row] = []
    with torch.inference_mode():
        for length in sorted(lengths):
            say(f"{length} tokens")
            ids = torch.randint(2, vocabulary, (1, length), generator=generator).to(subject.device)
            # A piece is the whole if the text is no longer.
            fitting = [reader for reader in readers if length > PIECE or reader.mode != "pieces"]
            rows += _read(subject, fitting, ids, repeats)
    return rows


def _read(subject: Subject, readers: Sequence[Reader], ids: torch.Tensor, repeats: int) -> list[Row]:
    def reading(reader: Reader) -> Callable[[], int | None]:
        def run() -> int | None:
            try:
                return reader.read(ids)
            except torch.OutOfMemoryError:
                return None

        return run

    runs = {reader.mode: reading(reader) for reader in readers}
    peaks, kept = {}, {}
    for mode, run in runs.items():  # the first reading warms up; only the second one's memory is counted
        run()
        with peak_memory(subject.device) as peak:
            kept[mode] = run()
        peaks[mode] = peak.used
    fits = {mode: run for mode, run in runs.items() if kept[mode] is not None}
    times = take_turns(fits, repeats, subject.device)
    rows = []
    for reader in readers:
        row = Row(
            profile="lengths",
            model=reader.model,
            mode=reader.mode,
            backend=reader.backend,
            device=subject.device,
            dtype=subject.dtype,
            images=0,
            questions=0,
            prefix_tokens=ids.shape[1],
            question_tokens=0.0,
            new_tokens=0.0,
            repeats=0,
            measured_questions=0,
        )
        if reader.mode not in fits:
            rows.append(replace(row, backend=f"{reader.backend}: out of memory"))
            continue
        own, base = times[reader.mode], times.get("whole") or times[reader.mode]
        used, state = peaks[reader.mode], kept[reader.mode]
        rows.append(
            replace(
                row,
                **_spread(own.seconds, base.seconds),
                peak_mib=None if used is None else used / MIB,
                kept_mib=None if state is None else state / MIB,
            )
        )
    return rows


def _ours(subject: Subject, mode: str, piece: int) -> Reader:
    """Our language model, so many tokens at a time."""
    model = subject.engine.model.language_model

    def read(ids: torch.Tensor) -> int:
        x, state = model.prefill(model.embed(ids[:, :piece]))
        for start in range(piece, ids.shape[1], piece):
            x, state = model.prefill(model.embed(ids[:, start : start + piece]), state)
        model.logits(x[:, -1])
        return sum(tensor.nbytes for tensor in state.tails + state.states)

    return Reader(mode, subject.name, subject.backend, read)


def llama_like(shape: LanguageModelConfig, positions: int) -> Any:
    """The LLaMA of about equal size: one block, of equal width and an MLP of 8/3, holds as much as two Mamba blocks."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=shape.d_model,
        intermediate_size=-(-shape.d_model * 8 // 3 // 256) * 256,
        num_hidden_layers=shape.n_layer // 2,
        num_attention_heads=max(1, shape.d_model // 64),
        vocab_size=shape.padded_vocab_size,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
    )


def _llama(subject: Subject, positions: int, seed: int) -> Reader:
    import transformers
    from transformers import LlamaForCausalLM

    config = llama_like(subject.engine.model.config.language_model, positions)
    precision = getattr(torch, subject.dtype)
    device = torch.device(subject.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM._from_config(config, dtype=precision, attn_implementation="sdpa")
    model.to(device).requires_grad_(False).eval()

    def read(ids: torch.Tensor) -> int:
        out = model(ids, use_cache=True, logits_to_keep=1)
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in out.past_key_values.layers)

    size = sum(parameter.numel() for parameter in model.parameters())
    return Reader("llama", f"LLaMA {size / 1e9:.2f}B", f"transformers {transformers.__version__}, sdpa", read)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
