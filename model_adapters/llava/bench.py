"""How fast an image's prefix is shared at LLaVA-1.5-7B's shape, beside `generate` per question and one padded batch.

    python -m vlmamba_eval.model_adapters.llava.bench --out DIR [--minutes 5] [--device cuda]

Random weights, half precision on a GPU. Three contestants answer the same questions in turns within one process:

    shared    our engine: an image is read once, its questions stand packed behind it
    batch     transformers: all questions about an image as one padded batch, the image encoded for each
    one       transformers: `generate` per question, the image encoded each time, as evaluation scripts do

Question counts and lengths are those of GQA's and POPE's real files, MME's by description (`vlmamba.bench.profiles`).
Slow contestants answer a part of the images; times are per image. The floor is the time of the matrix products that the
shared path needs, at the rate that this device reaches on large ones. Results are written after every step.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmamba_eval.model_adapters.shared.prefix_engine import Asked, Prefix, PrefixEngine
from vlmamba_eval.model_adapters.vlmamba.bench.profiles import AboutImage, draw

PROFILES = ("gqa", "pope", "mme")
OPENING = 35  # tokens of the system sentence and `USER: `

# LLaVA-1.5-7B: CLIP-L/14 at 336 pixels, LLaMA-7B.
SHAPE: dict[str, Any] = {
    "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
               "image_size": 336, "patch_size": 14, "projection_dim": 768},
    "text": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
             "num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096},
}  # fmt: skip
TINY: dict[str, Any] = {
    "vision": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
               "image_size": 28, "patch_size": 14, "projection_dim": 16},
    "text": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 4, "vocab_size": 400, "max_position_embeddings": 4096},
}  # fmt: skip


@dataclass
class Measured:
    """One contestant on one profile: seconds per image of each repeat."""

    profile: str
    contestant: str
    images: int
    questions: int
    seconds_per_image: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds_per_image)


@dataclass(frozen=True)
class Picture:
    """One image and its questions as token ids."""

    prefix: Prefix
    questions: list[tuple[list[int], int]]  # tokens behind the image, tokens to decode


def random_model(shape: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
    """A LLaVA of this shape with random weights, made on the device."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tokens = (shape["vision"]["image_size"] // shape["vision"]["patch_size"]) ** 2
    arguments: dict[str, Any] = {
        "vision_config": CLIPVisionConfig(**shape["vision"]),
        "text_config": LlamaConfig(**shape["text"]),
        "image_token_index": shape["text"]["vocab_size"] - 64,
        "image_seq_length": tokens,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    config = LlavaConfig(**arguments)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def pictures(model: Any, about: Sequence[AboutImage], dtype: torch.dtype) -> list[Picture]:
    """Random pixels and random words in the numbers that a profile draws."""
    rng = random.Random(0)
    config = model.config
    size, words = config.vision_config.image_size, min(config.image_token_id, 30_000)
    tokens = (size // config.vision_config.patch_size) ** 2
    made = []
    for i, image in enumerate(about):
        opening = [rng.randrange(3, words) for _ in range(OPENING)]
        pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(i)).to(dtype)
        prefix = Prefix([*opening, *[config.image_token_id] * tokens], {"pixel_values": pixels})
        asked = [([rng.randrange(3, words) for _ in range(q.tokens)], q.new_tokens) for q in image.questions]
        made.append(Picture(prefix, asked))
    return made


# =============================================================================
# Contestants
# =============================================================================


def shared(engine: PrefixEngine, some: Sequence[Picture]) -> None:
    """Our engine on all of them at once."""
    asked = [Asked(ids, i, new) for i, picture in enumerate(some) for ids, new in picture.questions]
    engine.generate([picture.prefix for picture in some], asked)


def one_by_one(engine: PrefixEngine, some: Sequence[Picture]) -> None:
    """`generate` per question, with the image encoded each time."""
    for picture in some:
        for ids, new in picture.questions:
            inputs = {"input_ids": torch.tensor([[*picture.prefix.ids, *ids]]), **picture.prefix.inputs}
            engine.generate_plainly(inputs, Asked(ids, 0, new))


def in_batches(engine: PrefixEngine, some: Sequence[Picture]) -> None:
    """One padded batch per image, the image encoded for each of its questions; as long as the longest answer."""
    model, device = engine.model, engine.device
    for picture in some:
        longest = max(len(ids) for ids, _ in picture.questions)
        rows, masks = [], []
        for ids, _ in picture.questions:
            padding = longest - len(ids)
            rows.append([*[0] * padding, *picture.prefix.ids, *ids])
            masks.append([*[0] * padding, *[1] * (len(picture.prefix.ids) + len(ids))])
        pixels = picture.prefix.inputs["pixel_values"].to(device).expand(len(rows), -1, -1, -1)
        with torch.inference_mode():
            model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(masks, device=device),
                pixel_values=pixels,
                max_new_tokens=max(new for _, new in picture.questions),
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )


CONTESTANTS: dict[str, Callable[[PrefixEngine, Sequence[Picture]], None]] = {
    "shared": shared,
    "batch": in_batches,
    "one": one_by_one,
}


# =============================================================================
# Measuring
# =============================================================================


def products(model: Any, some: Sequence[Picture]) -> float:
    """Floating point operations of the matrix products that the shared path needs, attention left out, per image."""
    tower = sum(p.numel() for n, p in model.named_parameters() if "vision_tower" in n and p.ndim == 2)
    text = sum(p.numel() for n, p in model.named_parameters() if "language_model" in n and p.ndim == 2)
    head = model.get_output_embeddings().weight.numel()
    text -= model.get_input_embeddings().weight.numel()  # looked up, not multiplied
    total = 0.0
    for picture in some:
        decoded = sum(new - 1 for _, new in picture.questions)
        read = len(picture.prefix.ids) + sum(len(ids) for ids, _ in picture.questions) + decoded
        patches = len(picture.prefix.ids) - OPENING
        total += 2.0 * (tower * patches + text * read + head * (len(picture.questions) + decoded))
    return total / len(some)


def matrix_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """Operations per second of a large square product."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(5):
        began = _now(device)
        for _ in range(4):
            a @ b
        times.append((_now(device) - began) / 4)
    return 2.0 * size**3 / min(times)


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(
    shape: dict[str, Any], device: str, out: Path, *, minutes: float, images: int, repeats: int = 3
) -> dict[str, Any]:
    """Measure all profiles, write `llava.json` and `llava.md` after every step, and return what they hold."""
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    end = time.perf_counter() + 60 * minutes
    model = random_model(shape, device, dtype)
    engine = PrefixEngine(model, eos=(), vocabulary=model.config.image_token_id, pad=0)
    card = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or "cpu"
    rate = matrix_rate(device, dtype, 8192 if device.startswith("cuda") else 512)
    found: dict[str, Any] = {
        "card": card, "torch": torch.__version__, "dtype": str(dtype), "parameters": _size(model),
        "matrix_rate": rate, "profiles": {}, "rows": [],
    }  # fmt: skip
    rows: list[Measured] = []
    for profile in PROFILES:
        some = pictures(model, draw(profile, images, 0), dtype)
        n = sum(len(picture.questions) for picture in some) / len(some)
        found["profiles"][profile] = {"questions_per_image": n, "floor": products(model, some) / rate}
        # The slow ones answer the images whose number of questions is nearest to the mean.
        usual = sorted(some, key=lambda picture: abs(len(picture.questions) - n))
        parts = {"shared": some, "batch": usual[:4], "one": usual[:2]}
        measured = {
            name: Measured(profile, name, len(part), sum(len(p.questions) for p in part))
            for name, part in parts.items()
        }
        rows += measured.values()
        for repeat in range(repeats + 1):  # the first warms up
            for name, part in parts.items():
                if time.perf_counter() > end:
                    break
                began = _now(device)
                CONTESTANTS[name](engine, part if repeat or name == "shared" else part[:1])
                took = _now(device) - began
                if repeat:
                    # Of few images the questions differ in number: seconds are scaled to the profile's mean.
                    scale = n / (measured[name].questions / len(part))
                    measured[name].seconds_per_image.append(took / len(part) * scale)
            found["rows"] = [asdict(row) for row in rows]
            write(found, rows, out)
    return found


def _size(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def write(found: dict[str, Any], rows: Sequence[Measured], out: Path) -> None:
    """The results as JSON and as a table."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "llava.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        f"# LLaVA-1.5 with random weights, {found['parameters'] / 1e9:.1f}B parameters, {found['card']}",
        "",
        f"torch {found['torch']}, {found['dtype']}, matrix products at {found['matrix_rate'] / 1e12:.0f} TFLOP/s. "
        "Seconds per image, median (least to most); "
        "ratios to `shared` of the same repeat, median (least to most).",
        "",
        "| profile | questions per image | shared | floor of its matrix products | one padded batch | one by one |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for profile, about in found["profiles"].items():
        by = {row.contestant: row for row in rows if row.profile == profile and row.seconds_per_image}
        if "shared" not in by:
            continue
        ours = by["shared"]
        cells = [f"{ours.median:.4f} ({min(ours.seconds_per_image):.4f} to {max(ours.seconds_per_image):.4f})"]
        cells.append(f"{about['floor']:.4f} (ours takes {ours.median / about['floor']:.1f}x)")
        for name in ("batch", "one"):
            if name not in by:
                cells.append("-")
                continue
            # A repeat's contestants ran one after another: their ratio is of the same minute.
            pairs = zip(by[name].seconds_per_image, ours.seconds_per_image, strict=False)
            ratios = [theirs / own for theirs, own in pairs]
            cells.append(
                f"{by[name].median:.3f}: **{statistics.median(ratios):.1f}x** ({min(ratios):.1f} to {max(ratios):.1f})"
            )
        lines.append(f"| {profile} | {about['questions_per_image']:.1f} | " + " | ".join(cells) + " |")
    (out / "llava.md").write_text("\n".join(lines) + "\n")


def equal_answers(shape: dict[str, Any], device: str, images: int = 2) -> tuple[int, int]:
    """(questions, those whose answer differs) between the shared path and one by one, in this device's precision."""
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    model = random_model(shape, device, dtype)
    engine = PrefixEngine(model, eos=(), vocabulary=model.config.image_token_id, pad=0)
    some = pictures(model, draw("pope", images, 1), dtype)
    asked = [Asked(ids, i, new) for i, picture in enumerate(some) for ids, new in picture.questions]
    engine.generate([picture.prefix for picture in some], asked)
    differing = 0
    for one in asked:
        picture = some[one.image]
        alone = Asked(one.ids, 0, one.max_new_tokens)
        whole: dict[str, Tensor] = {
            "input_ids": torch.tensor([[*picture.prefix.ids, *one.ids]]), **picture.prefix.inputs
        }  # fmt: skip
        engine.generate_plainly(whole, alone)
        differing += alone.answer != one.answer
    return len(asked), differing


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--tiny", action="store_true", help="a few thousand parameters, to see that it runs")
    given = parser.parse_args()
    shape = TINY if given.tiny else SHAPE
    found = measure(shape, given.device, given.out, minutes=given.minutes, images=given.images)
    found["answers"], found["answers_differing"] = equal_answers(shape, given.device)
    (given.out / "llava.json").write_text(json.dumps(found, indent=1) + "\n")
    print((given.out / "llava.md").read_text())
    print(f"{found['answers_differing']} of {found['answers']} answers differ between shared and one by one")


if __name__ == "__main__":
    main()
