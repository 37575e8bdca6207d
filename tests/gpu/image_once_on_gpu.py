"""What reading an image once saves at the shapes of published Mamba models, with random weights, on POPE's real list.

    python -m tests.gpu.image_once_on_gpu --out DIR [--images N] [--alone N] [--model NAME ...] [--seconds N] [--tiny]

Per image as many questions as POPE's list has, equal ones once, of the lengths counted there (see `bench.profiles`:
16 to 18 questions of 24 to 26 tokens, and answers of one token and the end mark). Pixels are random; an image of
mmMamba has the tiles of 640 x 480 pixels. Steps, each written to DIR/image_once.json before the next begins:

    rate      this card's bfloat16 matrix rate
    NAME      `--images` images, `--repeats` times; `--alone` questions each by itself, from the pixels on, by the same
              kernels; a step of decoding with CUDA graphs and without
    mamba2    a Mamba-2 block alone, and a captured graph of it, against the matrix rate

`--tiny` does all of it on a CPU at a toy's size, to see that it runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.gpu.scan_on_gpu import graphed, milliseconds
from vlmamba_eval.model_adapters.cobra.loading import LANGUAGE_MODELS, TOWERS
from vlmamba_eval.model_adapters.cobra.model import Cobra, CobraConfig, TowerName
from vlmamba_eval.model_adapters.hybrid.decoder import GrowingDecoder
from vlmamba_eval.model_adapters.hybrid.engine import HybridEngine
from vlmamba_eval.model_adapters.mmmamba.model import MMMamba, MMMambaConfig, keeps_float32
from vlmamba_eval.model_adapters.mmmamba.tiles import grid_of
from vlmamba_eval.model_adapters.shared.bench import AboutImage
from vlmamba_eval.model_adapters.shared.template import TemplateConfig
from vlmamba_eval.model_adapters.shared.vision_tower import TowerConfig
from vlmamba_eval.model_adapters.vlmamba.bench.profiles import draw
from vlmamba_eval.model_adapters.vlmamba.bench.subject import PAD, numbered_tokenizer, strengthen
from vlmamba_eval.model_adapters.vlmamba.config import TokenizerConfig
from vlmamba_eval.model_adapters.vlmamba.decoder import Decoder
from vlmamba_eval.model_adapters.vlmamba.engine import Engine
from vlmamba_eval.model_adapters.vlmamba.making import drawn, empty
from vlmamba_eval.model_adapters.vlmamba.mamba2 import Mamba2Mixer
from vlmamba_eval.types import ImageQuestions, Question

MODELS = ("cobra-3b", "mmmamba-linear", "mmmamba-hybrid")
OPENING = 62  # tokens of mmMamba's template before the image


class Results:
    """Measured values by name, on the disk after every change."""

    def __init__(self, out: Path):
        out.mkdir(parents=True, exist_ok=True)
        self.path, self.values, self.began = out / "image_once.json", {}, time.monotonic()

    def add(self, name: str, value: Any) -> None:
        self.values[name] = value
        self.path.write_text(json.dumps(self.values, indent=1) + "\n")
        print(f"[{self.seconds():5.1f} s] {name}: {json.dumps(value)}", flush=True)

    def seconds(self) -> float:
        return time.monotonic() - self.began


# =============================================================================
# Models and questions
# =============================================================================


class Numbers:
    """mmMamba's conversation with questions `t3 t4 ...`, a token per word; no token ends an answer."""

    eos, pad = -1, PAD

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary

    def opening(self) -> list[int]:
        return [PAD + 1 + i for i in range(OPENING)]

    def question(self, text: str, *, image: bool) -> list[int]:
        return [int(word[1:]) for word in text.split()]

    def prompt(self, text: str, *, image: bool) -> str:
        return text

    def continuation(self, text: str) -> list[int]:
        return self.question(text, image=True)

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


class Contestant:
    """A model, its engine with sharing and without, and how many of a question's tokens the template adds."""

    def __init__(self, name: str, device: str, tiny: bool):
        self.name, self.marks = name, 0
        if name == "cobra-3b":
            self.marks = 2
            config = cobra_shape(tiny)
            model = drawn(empty(lambda: Cobra(config), precision(device)), 0, torch.device(device))
            with torch.random.fork_rng(devices=["cuda"] if device == "cuda" else []):
                torch.manual_seed(0)
                strengthen(model.language_model)
            model.prepare_for_inference()
            tokenizer = numbered_tokenizer(config.language_model.vocab_size)
            self.model: Any = model
            self.shared: Any = Engine(model, tokenizer)
            self.alone: Any = Engine(model, tokenizer, sharing=False)
            self.image_tokens, pixels = config.image_tokens, (3, config.image_size, config.image_size)
        else:
            shape = mmmamba_shape(name, tiny)
            self.model = random_mmmamba(shape, device)
            words = Numbers(shape.vocab_size)
            self.shared = HybridEngine(self.model, words)
            self.alone = HybridEngine(self.model, words, sharing=False)
            columns, rows = grid_of(640, 480, 448, 6)
            tiles = columns * rows + 1
            self.image_tokens, pixels = tiles * shape.tile_tokens, (tiles, 3, shape.image_size, shape.image_size)
        self.pixels = pixels

    def about(self, images: Sequence[AboutImage]) -> list[ImageQuestions]:
        """The questions of those images in numbered words, about random pixels."""
        generator, found = torch.Generator().manual_seed(0), []
        for image in images:
            questions = []
            for asked in image.questions[: image.distinct]:
                words = torch.randint(PAD + 1, 200, (max(1, asked.tokens - self.marks),), generator=generator).tolist()
                questions.append(Question(" ".join(f"t{word}" for word in words), asked.new_tokens))
            pixels = torch.randint(0, 256, self.pixels, dtype=torch.uint8, generator=generator)
            found.append(ImageQuestions(pixels, tuple(questions)))
        return found


def precision(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def cobra_shape(tiny: bool) -> CobraConfig:
    towers: dict[TowerName, TowerConfig] = dict(TOWERS["dinosiglip-vit-so-384px"])
    words = LANGUAGE_MODELS["mamba-2.8b-zephyr"]
    if tiny:
        towers = {
            name: replace(tower, image_size=28, hidden_size=16, layers=1, num_attention_heads=2, intermediate_size=16)
            for name, tower in towers.items()
        }
        words = replace(words, d_model=16, n_layer=2, vocab_size=256)
    return CobraConfig(
        "cobra+3b", towers, "fused-gelu-mlp", words, TemplateConfig("cobra_in_out", image_first=True),
        TokenizerConfig("numbered", eos_token_id=-1, pad_token_id=PAD),
    )  # fmt: skip


def mmmamba_shape(name: str, tiny: bool) -> MMMambaConfig:
    """32 layers; the hybrid attends in every fourth, from the first on."""
    layers = ["mha" if name == "mmmamba-hybrid" and i % 4 == 0 else "mamba2" for i in range(2 if tiny else 32)]
    config = MMMambaConfig(
        hidden_size=2048, heads=16, kv_heads=8, intermediate_size=8192, embedding_layers=8,
        layers=tuple(layers),  # type: ignore[arg-type]
        vocab_size=92553, image_size=448, patch_size=14, norm_eps=1e-5, rope_theta=1e6, image_token=92546,
    )  # fmt: skip
    if tiny:
        return replace(
            config, hidden_size=16, heads=2, kv_heads=1, intermediate_size=16, embedding_layers=1, vocab_size=256,
            image_size=56, image_token=255,
        )  # fmt: skip
    return config


def random_mmmamba(config: MMMambaConfig, device: str) -> MMMamba:
    """Weights by fan-in; A and the step's bias in float32, as they are loaded."""
    with torch.device("meta"):
        model = MMMamba(config)
    generator, parameters = torch.Generator(device).manual_seed(0), {}
    for name, parameter in model.state_dict().items():
        value = torch.randn(parameter.shape, generator=generator, device=device)
        if "norm" in name:
            value = 1 + 0.1 * value
        elif parameter.ndim > 1:
            value *= parameter[0].numel() ** -0.5
        elif name.endswith("dt_bias"):
            value -= 4
        parameters[name] = value if keeps_float32(name) else value.to(precision(device))
    model.load_state_dict(parameters, assign=True)
    model.prepare_for_inference()
    return model


# =============================================================================
# Steps
# =============================================================================


def timed(run: Callable[[], Any], device: str) -> tuple[float, Any]:
    synchronise(device)
    began = time.perf_counter()
    found = run()
    synchronise(device)
    return time.perf_counter() - began, found


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def image_once(model: Contestant, device: str, images: int, alone: int, repeats: int) -> dict[str, Any]:
    """Seconds per question, the image read once and each question from the pixels on."""
    batch = model.about(draw("pope", images, 0))
    questions = sum(len(item.questions) for item in batch)
    first = batch[0]
    one = [ImageQuestions(first.image, first.questions[:alone])]
    model.shared.generate(batch)  # kernels are compiled, graphs captured
    model.alone.generate([ImageQuestions(first.image, first.questions[:2])])
    # The whole batch comes in calls of 32 images, as the harness asks.
    shared, apart, answers = [], [], []
    for _ in range(repeats):
        calls = partial(lambda: [model.shared.generate(batch[i : i + 32]) for i in range(0, images, 32)])
        shared.append(timed(calls, device)[0] / questions)
        seconds, answers = timed(partial(model.alone.generate, one), device)
        apart.append(seconds / len(one[0].questions))
    together = model.shared.generate(one)
    same = sum(a.text == b.text for a, b in zip(together[0], answers[0], strict=True))
    ratio = statistics.median(apart) / statistics.median(shared)
    return {
        "image_tokens": model.image_tokens, "images": images, "questions": questions,
        "ms_per_question_shared": [1000 * s for s in shared],
        "ms_per_question_alone": [1000 * s for s in apart], "alone": len(one[0].questions),
        "ratio": ratio, "ratio_least": min(apart) / max(shared), "ratio_most": max(apart) / min(shared),
        # In bfloat16 sums in another order may change a near tie, and random weights are full of them.
        "equal_answers": f"{same} of {len(one[0].questions)}",
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
    }  # fmt: skip


def decoding(model: Contestant, device: str, sizes: Sequence[int]) -> dict[str, Any]:
    """Milliseconds of one step of all rows."""
    found, language_model = {}, model.model.language_model
    for rows in sizes:
        if getattr(language_model, "attends", False):
            x = language_model.embed(torch.full((1, model.image_tokens), 5, device=device))
            image = language_model.prefill(x)[1]
            decoder: Any = GrowingDecoder(language_model, 200, rows)
            decoder.add(0, image.select(torch.zeros(rows, dtype=torch.long, device=device)))
            found[f"{rows} rows"] = step_of(decoder, rows, device)
            continue
        for graphs in (True, False):
            decoder = Decoder(language_model, 200, rows, graphs=graphs)
            found[f"{rows} rows, {'graph' if graphs else 'eager'}"] = step_of(decoder, rows, device)
    return found


def step_of(decoder: Any, rows: int, device: str) -> float:
    for _ in range(3):
        decoder.step([5] * rows)
    return 100 * timed(lambda: [decoder.step([5] * rows) for _ in range(10)], device)[0]


def matrix_rate(device: str, side: int) -> float:
    """FLOP/s of a square bfloat16 product."""
    square = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    times = [timed(lambda: square @ square, device)[0] for _ in range(10)][1:]
    return 2 * side**3 / statistics.median(times)


def share_of_matrix_rate(device: str, rate: float, tiny: bool) -> dict[str, Any]:
    """A block's own products per second over the rate, launched as usual and as a captured graph."""
    found = {}
    shapes = {"mamba2-2.7b": (2560, 128, 64, 1, 2), "mmmamba": (2048, 128, 128, 16, 1)}
    for name, (d_model, n, p, groups, expand) in shapes.items():
        if tiny:
            d_model, n, p, groups = 32, 8, 8, 2
        torch.manual_seed(0)
        with torch.device(device):
            block = Mamba2Mixer(d_model, d_state=n, headdim=p, ngroups=groups, expand=expand, d_conv=4)
        block = block.to(precision(device)).requires_grad_(False)
        for parameter in (block.A_log, block.D, block.dt_bias):
            parameter.data = parameter.data.float()
        weights: list[Any] = [block.in_proj, block.out_proj]
        flops = 2 * sum(part.weight.numel() for part in weights)
        for b, length in ((1, 8),) if tiny else ((1, 768), (8, 768), (32, 768)):
            u = torch.randn(b, length, d_model, device=device, dtype=precision(device))
            ways: dict[str, Callable[[], object]] = {"launched": partial(block, u)}
            if device == "cuda":
                ways["graph"] = graphed(ways["launched"])
            for how, run in ways.items():
                ms = milliseconds(run) if device == "cuda" else 1000 * timed(run, device)[0]
                share = flops * b * length / ms * 1e3 / rate
                found[f"{name} {b}x{length}, {how}"] = {"ms": ms, "share_of_matrix_rate": share}
    return found


def prefill(model: Contestant, device: str, rate: float, counts: Sequence[int]) -> dict[str, Any]:
    """Reading images' embeddings, against the matrix rate: products of the layers' matrices alone."""
    language_model = model.model.language_model
    outside = ("embedding", "output", "_head", "A_log")
    weights = sum(
        parameter.numel()
        for name, parameter in language_model.named_parameters()
        if parameter.ndim == 2 and not any(part in name for part in outside)
    )
    found = {}
    for images in counts:
        x: Tensor = language_model.embed(torch.full((images, model.image_tokens), 5, device=device))
        language_model.prefill(x)
        seconds = statistics.median(timed(partial(language_model.prefill, x), device)[0] for _ in range(5))
        tokens = images * model.image_tokens
        found[f"{images} images"] = {
            "tokens_per_second": tokens / seconds,
            "share_of_matrix_rate": 2 * weights * tokens / seconds / rate,
        }
    return found


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--alone", type=int, default=12, help="questions of one image that are also asked alone")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=200.0, help="begin no further step after this long")
    parser.add_argument("--skip", choices=["image-once"], help="leave out the ratio, which takes longest")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    device = "cpu" if options.tiny else "cuda"
    results = Results(options.out)
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU, a toy's size"
    results.add("machine", f"{card}, torch {torch.__version__}")
    rate = matrix_rate(device, 64 if options.tiny else 8192)
    results.add("matrix rate, bfloat16, TFLOP/s", rate / 1e12)
    sizes = (1, 2) if options.tiny else (1, 64, 256)
    for name in options.model or MODELS:
        if results.seconds() > options.seconds:
            break
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        model = Contestant(name, device, options.tiny)
        if options.skip != "image-once":
            once = image_once(model, device, options.images, options.alone, options.repeats)
            results.add(f"{name}: image once", once)
        results.add(f"{name}: decoding, ms a step", decoding(model, device, sizes))
        results.add(f"{name}: prefill", prefill(model, device, rate, (1, 2) if options.tiny else (1, 8, 32)))
        del model
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    if results.seconds() <= options.seconds:
        results.add("mamba2 block", share_of_matrix_rate(device, rate, options.tiny))


if __name__ == "__main__":
    main()
