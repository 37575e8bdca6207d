"""The whole of GQA testdev, POPE and MME on one GPU, and what limits it.

    python -m vlmamba_eval.model_adapters.vlmamba.bench.full_suite --out results/bench

23,862 questions of real length about 2,085 images, at the shape of a published model with random weights drawn on the
device. Steps, each of which writes its results before the next begins:

    rates     this card's bf16 matrix rate and copy bandwidth; encoder, prefill and decoding against them
    all-questions  every one, equal ones of an image once (as an evaluation asks them), under several `Limits`
    unshared  some of the questions, each with its own reading of the image
    compare   how many answers differ between sharing and not, and between bfloat16 and float32
    lengths   reading 512 to 65,536 tokens beside a LLaMA of about equal size
    scan      the scan's backends beside each other
    profile   which kernels the time goes to

Pixels are random and lie in memory: decoding files is left out. Words are numbers, one token each, so that lengths are
exact; answers end by their limit, at lengths of real answers (see `profiles`).
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from vlmamba_eval.model_adapters.shared.bench import AboutImage, machine, matrix_rate, seconds_of, timed
from vlmamba_eval.model_adapters.shared.device import choose
from vlmamba_eval.types import ImageQuestions

from ..adapter import VLMambaAdapter
from ..captured import Captured
from ..config import PRESETS, Provenance, TokenizerConfig
from ..decoder import Decoder
from ..engine import Engine, Limits
from ..language_model import LanguageModel, MambaMixer
from ..model import VLMamba, random_model
from ..scan import Layout, causal_conv, selective_scan
from ..scan.mamba_ssm import selective_scan_fn
from . import measure, report
from .command import LENGTHS
from .contestants import answers, spread
from .profiles import PROFILES, draw
from .subject import PAD, Subject, numbered_tokenizer, of_adapter, strengthen

STEPS = ("rates", "all-questions", "unshared", "compare", "lengths", "scan", "profile")
TASKS = ("gqa", "pope", "mme")
MATRIX_RATE = "matrix rate, bf16, TFLOP/s"


class Results:
    """Measured values by name; on the disk after every change."""

    def __init__(self, out: Path):
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / "full_suite.json"
        self.values: dict[str, Any] = {}
        self.start = time.perf_counter()

    def add(self, name: str, value: Any) -> None:
        self.values[name] = value
        self.path.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")
        shown = f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
        print(f"[{time.perf_counter() - self.start:6.1f} s] {name}: {shown}", flush=True)


# =============================================================================
# What is measured
# =============================================================================


def prepare(name: str, device: str, dtype: str, seed: int) -> Subject:
    return of_adapter(random_adapter(name, device, dtype, seed), seed)


def random_adapter(name: str, device: str, dtype: str, seed: int) -> VLMambaAdapter:
    """A preset's shape with random weights and the numbered words."""
    where, precision = choose(device, dtype)
    preset = PRESETS[name]
    shape = replace(preset.language_model, vocab_size=preset.language_model.padded_vocab_size)
    config = replace(
        preset,
        language_model=shape,
        tokenizer=TokenizerConfig("numbered", eos_token_id=-1, pad_token_id=PAD),
        provenance=Provenance(untrained=("vision", "connector", "language_model")),
    )
    model = random_model(config, seed, where, precision)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        strengthen(model.language_model)
    return VLMambaAdapter(model, numbered_tokenizer(shape.vocab_size), weights=f"random:{seed}")


def workload(fraction: float, seed: int) -> list[AboutImage]:
    """All images of the three benchmarks, or the same part of each."""
    images: list[AboutImage] = []
    for task in TASKS:
        whole = PROFILES[task].whole or 0
        images += draw(task, max(1, round(fraction * whole)), seed)
    return images


def distinct(batch: Sequence[ImageQuestions]) -> list[ImageQuestions]:
    """Equal questions of an image once: what the harness's plan asks."""
    return [ImageQuestions(item.image, tuple(dict.fromkeys(item.questions))) for item in batch]


def matrix_parameters(model: LanguageModel) -> int:
    """Parameters that multiply every token: the layers' matrices, without head and embeddings."""
    mixer = cast(MambaMixer, model.blocks[0].mixer)
    d, d_model, rank, n = mixer.d_inner, mixer.d_model, mixer.dt_rank, mixer.d_state
    return len(model.blocks) * (2 * d * d_model + d * (rank + 2 * n) + rank * d + d * d_model)


# =============================================================================
# Steps
# =============================================================================


def rates(subject: Subject, results: Results, small: bool) -> None:
    peak = _ceilings(subject.device, results, 256 if small else 8192)
    with torch.inference_mode():
        _reading(subject, results, small, peak)
        _empty_cache(subject)
        _decoding(subject, results, (1, 2) if small else (1, 32, 128, 256, 512))


def _ceilings(device: str, results: Results, side: int) -> float:
    """What the card can do: multiply bfloat16 matrices, copy. Returns FLOP/s."""
    peak = matrix_rate(device, torch.bfloat16, side)
    results.add(MATRIX_RATE, peak / 1e12)
    source, target = (torch.empty(side * side * 4, device=device) for _ in range(2))
    seconds = seconds_of(partial(target.copy_, source), device)
    results.add("copy, read and written, TB/s", 2 * source.nbytes / seconds / 1e12)
    return peak


def _reading(subject: Subject, results: Results, small: bool, peak: float) -> None:
    model, device, count = subject.engine.model, subject.device, 2 if small else 32
    language_model = model.language_model
    flops = 2 * matrix_parameters(language_model)
    pixels = torch.stack([subject.image(i) for i in range(count)]).to(device)
    seconds = seconds_of(partial(model.embed_images, pixels), device)
    results.add("encoder and connector, images/s", count / seconds)
    embeds = model.embed_images(pixels)  # [i, t, d_model]
    _, opening = language_model.prefill(language_model.embed(torch.full((1, subject.opening), 5, device=device)))
    for rows in (1, count // 4 or 1, count):
        seconds = seconds_of(partial(language_model.prefill, embeds[:rows], opening), device)
        tokens = rows * embeds.shape[1]
        results.add(f"prefill of {rows} images, tokens/s", tokens / seconds)
        results.add(f"prefill of {rows} images, share of the matrix rate", flops * tokens / seconds / peak)
    for rows in (1, 2) if small else (1, 2, 4):
        captured = Captured(lambda few: language_model.prefill(few, opening)[1], "prefill")
        seconds = seconds_of(partial(captured, embeds[:rows].clone()), device)
        share = flops * rows * embeds.shape[1] / seconds / peak
        results.add(f"prefill of {rows} images as a CUDA graph, share of the matrix rate", share)
        seconds = seconds_of(partial(subject.engine._read_few, pixels[:rows].clone()), device)
        results.add(f"{rows} images from the pixels to the state as a CUDA graph, ms", seconds * 1000)
    _, prefixes = language_model.prefill(embeds, opening)
    for rows in (4,) if small else (64, 256):
        ids = torch.randint(PAD + 1, 200, (rows, 26), device=device)
        lengths = torch.randint(20, 27, (rows,), device=device)
        layout = Layout(torch.arange(rows, device=device) * count // rows, lengths)
        asked = language_model.embed(ids)
        seconds = seconds_of(partial(language_model.prefill, asked, prefixes, layout), device)
        results.add(f"prefill of {rows} questions of up to 26 tokens, tokens/s", ids.numel() / seconds)
        results.add(f"prefill of {rows} questions, share of the matrix rate", flops * ids.numel() / seconds / peak)


def _decoding(subject: Subject, results: Results, sizes: Sequence[int]) -> None:
    for rows in sizes:
        for how, graphs in (("", True), (" without graphs", False)):
            if not graphs and rows not in (1, 256):
                continue
            decoder = Decoder(subject.engine.model.language_model, subject.engine.vocabulary, rows, graphs=graphs)
            seconds = seconds_of(partial(decoder.step, [5] * rows), subject.device)
            results.add(f"decoding {rows} rows{how}, ms per step", seconds * 1000)
            results.add(f"decoding {rows} rows{how}, tokens/s", rows / seconds)


def all_questions(
    subject: Subject, results: Results, batch: Sequence[ImageQuestions], tries: Sequence[Limits], fraction: float
) -> None:
    """Every limit over an eighth of the images, the fastest over all."""
    asked = distinct(batch)
    some = asked[:: max(1, round(8 * fraction))] if fraction > 0.2 else asked
    found: dict[Limits, float] = {}
    answers(subject, subject.engine, some)  # kernels are compiled before the first is timed
    for limits in tries:
        engine = Engine(subject.engine.model, subject.engine.tokenizer, limits=limits)
        answers(subject, engine, some[:8])  # warms up: kernels, graphs
        _reset_peak(subject)
        found[limits], _ = timed(lambda e=engine: answers(subject, e, some), subject.device)
        name = f"images {limits.images}, tokens {limits.tokens}, rows {limits.rows}"
        results.add(f"all questions: {len(some)} images with {name}: s", found[limits])
        results.add(f"all questions: {len(some)} images with {name}: peak GiB", _peak(subject))
        del engine
        _empty_cache(subject)
    best = min(found, key=lambda limits: found[limits])
    results.add("all questions: limits", asdict(best))
    engine = Engine(subject.engine.model, subject.engine.tokenizer, limits=best)
    answers(subject, engine, some[:8])
    flops, peak = 2 * matrix_parameters(subject.engine.model.language_model), results.values.get(MATRIX_RATE)
    for name, questions in (("equal ones once", asked), ("each asked", batch)):
        _reset_peak(subject)
        seconds, _ = timed(lambda q=questions: answers(subject, engine, q), subject.device)
        n = sum(len(item.questions) for item in questions)
        results.add(f"all questions, {name}: questions answered", n)
        results.add(f"all questions, {name}: images", len(questions))
        results.add(f"all questions, {name}: s", seconds)
        tokens = subject.image_tokens * len(questions)
        tokens += sum(len(subject.asked_ids(question)) for item in questions for question in item.questions)
        tokens += sum(question.max_new_tokens - 1 for item in questions for question in item.questions)
        results.add(f"all questions, {name}: tokens read by the language model", tokens)
        if peak is not None:  # what the language model's layers alone would take at the measured matrix rate
            results.add(f"all questions, {name}: floor of the matrix products, s", flops * tokens / (peak * 1e12))
        results.add(f"all questions, {name}: peak GiB with the weights", _peak(subject))
    subject.engine.limits = best


def unshared(subject: Subject, results: Results, batch: Sequence[ImageQuestions], part: int) -> None:
    """Some questions, each with its own image, in the engine's micro-batches; and a few one by one."""
    asked = distinct(batch)
    places = [(i, j) for i, item in enumerate(asked) for j in range(len(item.questions))]
    for name, count, sharing in (("in micro-batches", part, True), ("one by one", max(1, part // 16), False)):
        chosen = spread(places, count)
        groups = [ImageQuestions(asked[i].image, (asked[i].questions[j],)) for i, j in chosen]
        model, tokenizer = subject.engine.model, subject.engine.tokenizer
        engine = Engine(model, tokenizer, limits=subject.engine.limits, sharing=sharing)
        answers(subject, engine, groups[:4])
        seconds, _ = timed(lambda e=engine, g=groups: answers(subject, e, g), subject.device)
        results.add(f"unshared, {name}: questions measured", len(chosen))
        results.add(f"unshared, {name}: s", seconds)
        results.add(
            f"unshared, {name}: extrapolated to {len(places)} questions, s", seconds * len(places) / len(chosen)
        )


def compare(subject: Subject, results: Results, batch: Sequence[ImageQuestions], images: int) -> None:
    """Shares of answers of 4 tokens, and of their first tokens, that differ."""
    some = [
        ImageQuestions(item.image, tuple(replace(question, max_new_tokens=4) for question in item.questions))
        for item in distinct(batch)[:: max(1, len(batch) // images)]
    ]
    model, tokenizer, limits = subject.engine.model, subject.engine.tokenizer, subject.engine.limits
    engine = Engine(model, tokenizer, limits=limits)
    shared = answers(subject, engine, some)
    alone = [ImageQuestions(item.image, (question,)) for item in some for question in item.questions]
    plain = iter(answers(subject, engine, alone))
    apart = [[next(plain)[0] for _ in item.questions] for item in some]
    smaller = Engine(model, tokenizer, limits=Limits(limits.images, limits.tokens // 8, max(1, limits.rows // 8)))
    regrouped = answers(subject, smaller, some)
    del engine, smaller
    _empty_cache(subject)
    # The packed matrices of a CPU can't be copied, but are float32 already.
    wide = model if subject.dtype == "float32" else copy.deepcopy(cast(VLMamba, model)).float()
    engine = Engine(wide, tokenizer, limits=Limits(max(1, limits.images // 2), limits.tokens // 2, limits.rows))
    exact = answers(subject, engine, some)
    plain = iter(answers(subject, engine, alone[: len(alone) // 4]))
    exact_apart = [next(plain)[0] for _ in range(len(alone) // 4)]
    flat = [text for texts in exact for text in texts]
    results.add("compare: questions", len(flat))
    results.add("compare: distinct answers in float32", len(set(flat)))
    pairs = {
        f"{subject.dtype}, shared and unshared": (shared, apart),
        f"{subject.dtype}, shared, in micro-batches of an eighth": (shared, regrouped),
        f"{subject.dtype} and float32, shared": (shared, exact),
        "float32, shared and unshared": ([flat[: len(exact_apart)]], [exact_apart]),
    }
    for name, (left, right) in pairs.items():
        both = [(a, b) for xs, ys in zip(left, right, strict=True) for a, b in zip(xs, ys, strict=True)]
        results.add(f"compare: {name}: answers that differ", sum(a != b for a, b in both) / len(both))
        first = sum(a.split()[:1] != b.split()[:1] for a, b in both) / len(both)
        results.add(f"compare: {name}: first tokens that differ", first)
    del engine, wide
    _empty_cache(subject)


def lengths(subject: Subject, results: Results, out: Path, small: bool, repeats: int, seed: int) -> None:
    wanted = (64, 128) if small else LENGTHS["cuda"]
    subject = replace(subject, name=subject.name.replace("vlmamba", "mamba").partition(" ")[0])
    rows = measure.lengths(subject, wanted, repeats, seed, lambda line: None)
    command = "python -m vlmamba_eval.model_adapters.vlmamba.bench.full_suite --steps lengths"
    paths = report.write(out, "lengths", rows, machine(subject.device), command)
    results.add("lengths: written", [path.name for path in paths])
    for row in rows:
        results.add(f"lengths: {row.mode}, {row.prefix_tokens} tokens, s and peak MiB", [row.seconds, row.peak_mib])
    _empty_cache(subject)


def scan(subject: Subject, results: Results, small: bool) -> None:
    """The scan and the convolution of one layer, in bfloat16, ms."""
    device = torch.device(subject.device)
    mixer = cast(MambaMixer, subject.engine.model.language_model.blocks[0].mixer)
    d, n, k = mixer.d_inner, mixer.d_state, mixer.d_conv
    authors = selective_scan_fn()
    backends = ["triton"] * (device.type == "cuda") + ["eager"] + ["mamba_ssm"] * (authors is not None)
    shapes = ((2, 8),) if small else ((1, 729), (8, 729), (32, 729), (256, 26), (512, 26), (256, 1), (1, 16384))
    for b, length in shapes:
        xz = torch.randn(b, length, 2 * d, device=device, dtype=mixer.dtype)
        x, z = xz.chunk(2, dim=-1)
        dt = torch.randn(b, length, d, device=device, dtype=mixer.dtype)
        bc = torch.randn(b, length, 2 * n, device=device, dtype=mixer.dtype)
        B, C = bc.chunk(2, dim=-1)
        state = torch.randn(4, n, d, device=device)
        layout = Layout(torch.arange(b, device=device) % 4)
        tail = torch.randn(4, k - 1, d, device=device, dtype=mixer.dtype)
        weight, bias = mixer.conv1d.weight[:, 0], mixer.conv1d.bias
        runs = {
            "scan": partial(
                selective_scan, x, dt, mixer.decay(), B, C, mixer.D, z,
                dt_bias=mixer.dt_proj.bias, state=state, layout=layout,
            ),
            "convolution": partial(causal_conv, x, weight, bias, tail=tail, layout=layout),
        }  # fmt: skip
        entered = {
            f"{what} of {b} rows of {length} tokens, {backend}": partial(run, backend=backend)
            for backend in backends
            for what, run in runs.items()
        }
        if authors is not None:  # on tensors as it wants them, which the backend has to lay out
            parts = (t.mT.contiguous() for t in (x, dt, mixer.decay(), B, C))
            entered[f"scan of {b} rows of {length} tokens, mamba-ssm's kernel alone, from zero"] = partial(
                authors, *parts, mixer.D, z.mT.contiguous(), mixer.dt_proj.bias, delta_softplus=True,
                return_last_state=True,
            )  # fmt: skip
        for name, run in entered.items():
            results.add(f"{name}, ms", seconds_of(run, device, least=3) * 1000)


def profile(subject: Subject, results: Results, batch: Sequence[ImageQuestions], out: Path) -> None:
    """Kernels by time, over 16 images with all their questions."""
    from torch.profiler import ProfilerActivity, profile

    some = distinct(batch)[:16]
    answers(subject, subject.engine, some)
    cuda = torch.device(subject.device).type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with torch.inference_mode(), profile(activities=activities) as trace:
        seconds, _ = timed(lambda: answers(subject, subject.engine, some), subject.device)
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    table = trace.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=70)
    (out / "profile.txt").write_text(f"{seconds:.3f} s\n{table}\n", encoding="utf-8")
    events: list[Any] = list(trace.key_averages())
    if cuda:  # the kernels themselves, not the operators that launch them
        events = [event for event in events if event.device_type.name == "CUDA"]
    spent = {e.key: (e.self_device_time_total if cuda else e.self_cpu_time_total) / 1e3 for e in events}
    most = sorted(spent, key=lambda key: -spent[key])[:14]
    results.add("profile: 16 images, s", seconds)
    results.add("profile: on the device, ms", sum(spent.values()))
    for key in most:
        results.add(f"profile: {key[:80]}, ms", spent[key])


# =============================================================================
# Measuring
# =============================================================================


def _reset_peak(subject: Subject) -> None:
    if torch.device(subject.device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(subject: Subject) -> float:
    on_gpu = torch.device(subject.device).type == "cuda"
    return torch.cuda.max_memory_allocated() / 2**30 if on_gpu else float("nan")


def _empty_cache(subject: Subject) -> None:
    if torch.device(subject.device).type == "cuda":
        torch.cuda.empty_cache()


def _limits(text: str) -> list[Limits]:
    return [Limits(*map(int, part.split(":"))) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vlmamba-2.8b", choices=sorted(PRESETS))
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--steps", default=",".join(STEPS))
    parser.add_argument("--fraction", type=float, default=1.0, help="part of the images")
    parser.add_argument("--limits", type=_limits, help="images:tokens:rows, several separated by commas")
    parser.add_argument("--unshared", type=int, default=512, help="questions answered without sharing")
    parser.add_argument("--compare", type=int, default=48, help="images whose answers are compared")
    parser.add_argument("--repeats", type=int, default=3, help="of the step `lengths`")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    results = Results(given.out)
    results.start = time.perf_counter()
    seconds, subject = timed(lambda: prepare(given.model, given.device, given.dtype, given.seed), "cpu")
    small = torch.device(subject.device).type == "cpu"
    results.add("machine", machine(subject.device))
    results.add("model", {"name": subject.name, "dtype": subject.dtype, "scan": subject.backend, "states": "float32"})
    results.add("loading, s", seconds)
    images = workload(given.fraction, given.seed)
    batch = subject.batch(images, given.seed)
    results.add("questions", sum(len(item.questions) for item in batch))
    results.add("images", len(batch))
    tries = given.limits or [subject.engine.limits]
    steps: dict[str, Callable[[], None]] = {
        "rates": lambda: rates(subject, results, small),
        "all-questions": lambda: all_questions(subject, results, batch, tries, given.fraction),
        "unshared": lambda: unshared(subject, results, batch, given.unshared),
        "compare": lambda: compare(subject, results, batch, given.compare),
        "lengths": lambda: lengths(subject, results, given.out, small, given.repeats, given.seed),
        "scan": lambda: scan(subject, results, small),
        "profile": lambda: profile(subject, results, batch, given.out),
    }
    for step in given.steps.split(","):
        try:
            steps[step]()
        except torch.OutOfMemoryError as error:
            results.add(f"{step}: out of memory", str(error)[:200])
        _empty_cache(subject)
    for path in write_tables(results.values, given.out):
        print(path)
    print("\n".join(f"{name:<90} {value:>14}" for name, value in lines(results.values)))


def lines(values: dict[str, Any]) -> list[tuple[str, str]]:
    """The single numbers among the results, in order, as people read them."""
    return [
        (name, f"{value:,.4g}" if isinstance(value, float) and value < 1e4 else f"{value:,.0f}")
        for name, value in values.items()
        if isinstance(value, float | int)
    ]


def write_tables(values: dict[str, Any], out: Path) -> list[Path]:
    """`full_suite.csv`, and `full_suite.md` with the machine; `full_suite.json` has the unrounded values."""
    csv, markdown = out / "full_suite.csv", out / "full_suite.md"
    rows = lines(values)
    csv.write_text("name,value\n" + "".join(f'"{name}",{values[name]:.6g}\n' for name, _ in rows), encoding="utf-8")
    about = {**values["machine"], **values["model"]}
    text = [*(f"- {key}: {value}" for key, value in about.items()), "", "| measured | value |", "|---|---|"]
    text += [f"| {name} | {value} |" for name, value in rows]
    markdown.write_text("\n".join(text) + "\n", encoding="utf-8")
    return [csv, markdown]


if __name__ == "__main__":
    main()
