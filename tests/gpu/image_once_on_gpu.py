"""How much is gained by reading an image once, at the shapes of published Mamba-2 models with random weights.

    python -m tests.gpu.image_once_on_gpu [--images N] [--alone N] [--model mmmamba-linear|mmmamba-hybrid] [--out FILE]

POPE asks 18 questions about each of 500 images of 640 x 480 pixels, in 21 to 33 tokens, and wants one word. Here are
as many per image, of those lengths, about random pixels in the tiles that such an image gets. Answers have three
tokens. `--alone` questions are also answered each by itself, from the pixels on, by the same kernels: the ratio.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence

import torch

from vlmamba_eval.model_adapters.hybrid.engine import HybridEngine
from vlmamba_eval.model_adapters.mmmamba.model import MMMamba, MMMambaConfig, keeps_float32
from vlmamba_eval.model_adapters.mmmamba.tiles import grid_of
from vlmamba_eval.types import ImageQuestions, Question

QUESTIONS, OPENING, ANSWER = 18, 62, 3


class Numbers:
    """A conversation in which a question is its length; no token ends an answer."""

    eos, pad = -1, 0

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary

    def opening(self) -> list[int]:
        return list(range(OPENING))

    def question(self, text: str, *, image: bool) -> list[int]:
        draw = random.Random(text)
        return [draw.randrange(self.vocabulary) for _ in range(int(text.split()[0]))]

    def prompt(self, text: str, *, image: bool) -> str:
        return text

    def continuation(self, text: str) -> list[int]:
        return [1]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def published_shape(kind: str) -> MMMambaConfig:
    """32 layers; the hybrid attends in every fourth, from the first on."""
    layers = ["mha" if kind == "mmmamba-hybrid" and i % 4 == 0 else "mamba2" for i in range(32)]
    return MMMambaConfig(
        hidden_size=2048, heads=16, kv_heads=8, intermediate_size=8192, embedding_layers=8,
        layers=tuple(layers),  # type: ignore[arg-type]
        vocab_size=92553, image_size=448, patch_size=14, norm_eps=1e-5, rope_theta=1e6, image_token=92546,
    )  # fmt: skip


def random_model(config: MMMambaConfig, device: str) -> MMMamba:
    """Weights by fan-in, in bfloat16; A, D and the step's bias in float32, as they are loaded."""
    with torch.device("meta"):
        model = MMMamba(config)
    generator = torch.Generator(device).manual_seed(0)
    parameters = {}
    for name, parameter in model.state_dict().items():
        value = torch.randn(parameter.shape, generator=generator, device=device)
        if "norm" in name:
            value = 1 + 0.1 * value
        elif parameter.ndim > 1:
            value *= parameter[0].numel() ** -0.5
        elif name.endswith("dt_bias"):
            value -= 4
        parameters[name] = value if keeps_float32(name) else value.bfloat16()
    model.load_state_dict(parameters, assign=True)
    model.prepare_for_inference()
    return model


def batch_of(images: int, config: MMMambaConfig) -> list[ImageQuestions]:
    columns, rows = grid_of(640, 480, config.image_size, 6)
    draw = random.Random(0)
    found = []
    for i in range(images):
        shape = (columns * rows + 1, 3, config.image_size, config.image_size)
        tiles = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        lengths = [draw.randint(21, 33) for _ in range(QUESTIONS)]
        found.append(ImageQuestions(tiles, tuple(Question(f"{n} {i} {k}", ANSWER) for k, n in enumerate(lengths))))
    return found


def seconds_for(engine: HybridEngine, batch: Sequence[ImageQuestions]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    engine.generate(batch)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["mmmamba-linear", "mmmamba-hybrid"], action="append")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--alone", type=int, default=18, help="questions that are also answered by themselves")
    parser.add_argument("--out", help="also write the numbers as JSON")
    options = parser.parse_args()
    results = []
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    for kind in options.model or ["mmmamba-linear", "mmmamba-hybrid"]:
        config = published_shape(kind)
        model = random_model(config, "cuda")
        batch = batch_of(options.images, config)
        shared = HybridEngine(model, Numbers(config.vocab_size))
        alone = HybridEngine(model, Numbers(config.vocab_size), sharing=False)
        seconds_for(shared, batch[:2])  # kernels are compiled, graphs captured
        together = seconds_for(shared, batch) / (QUESTIONS * len(batch))
        one = ImageQuestions(batch[0].image, batch[0].questions[: options.alone])
        seconds_for(alone, [ImageQuestions(one.image, one.questions[:1])])
        apart = seconds_for(alone, [one]) / len(one.questions)
        # In bfloat16 sums in another order may change a near tie; random weights are full of them.
        same = shared.generate([one]) == alone.generate([one])
        result = {
            "model": kind, "image_tokens": len(batch[0].image) * config.tile_tokens, "questions": QUESTIONS,
            "images": len(batch), "seconds_per_question_shared": together, "seconds_per_question_alone": apart,
            "ratio": apart / together, "answers_equal": same, "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        }  # fmt: skip
        results.append(result)
        print(json.dumps(result), flush=True)
        del model, shared, alone
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if options.out:
        with open(options.out, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
