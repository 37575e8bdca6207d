"""How fast a LLaVA answers through the harness, beside what evaluation scripts do with transformers.

    vlmamba-eval bench --family llava [--model DIR] [--profile gqa,pope,mme] [--device cuda] [--repeats 3] [--out DIR]

Without a checkpoint: LLaVA-1.5-7B's shape with random weights, in half precision on a GPU. Contestants answer the same
questions about the same picture files in turns within one process, from the file to the text:

    shared  `run.evaluate`: pictures decoded ahead on threads, each read once, answers stored, scored
    listed  the same with equal questions as the list has them: they are asked once
    batch   transformers: all questions about a picture in one padded batch, the picture encoded for each of them
    one     transformers: the picture opened, prepared and encoded for every question, then `generate`

Question counts and lengths are those of the real lists (`question_lengths.json`, counted with Vicuna's tokenizer), and
so are the lengths of answers; words and pictures are drawn. But for `listed`, equal questions are worded differently,
so that every contestant answers all of them. The slow contestants answer the pictures whose number of questions is
nearest to the mean; times are per image. The floor is the time of the matrix products that `shared` needs, at the rate
that this device reaches on large ones. Results are written after every step.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlmamba_eval.dataset import Dataset
from vlmamba_eval.folder import Folder
from vlmamba_eval.images import open_image
from vlmamba_eval.manifest import DataIdentity
from vlmamba_eval.model_adapters.shared.bench import counted, matrix_rate, now
from vlmamba_eval.model_adapters.shared.device import choose
from vlmamba_eval.model_adapters.shared.prefix_adapter import PrefixAdapter
from vlmamba_eval.model_adapters.shared.prefix_engine import Asked
from vlmamba_eval.model_adapters.shared.template import TemplateConfig
from vlmamba_eval.run import evaluate
from vlmamba_eval.store import read_answers
from vlmamba_eval.sums import Sums
from vlmamba_eval.task import Task, TaskInfo, accuracy_metrics
from vlmamba_eval.types import ImageRef, Loaded, Metric, Sample, UsageError, Verdict

from .adapter import adapter_of

PROFILES = ("gqa", "pope", "mme")
LENGTHS = Path(__file__).parent / "question_lengths.json"
BATCH_TOKENS = 65_536
"""`--batch-tokens` of the runs: some fifty images, so that the next ones are decoded meanwhile in short runs too."""

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
             "num_key_value_heads": 4, "vocab_size": 464, "max_position_embeddings": 4096},
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A picture file and its questions: texts, and how many tokens each answer takes. `distinct` differ in the list."""

    image: ImageRef
    questions: list[tuple[str, int]]
    distinct: int

    def listed(self) -> Item:
        """With equal questions: what is over `distinct` repeats the first ones."""
        repeated = [self.questions[place % self.distinct] for place in range(len(self.questions))]
        return Item(self.image, repeated, self.distinct)


@dataclass
class Measured:
    """One contestant on one profile: seconds per image of each repeat."""

    profile: str
    contestant: str
    images: int
    questions: int
    seconds_per_image: list[float] = field(default_factory=list)


# =============================================================================
# The model
# =============================================================================


def random_adapter(shape: Mapping[str, Any], device: str, dtype: str) -> PrefixAdapter:
    """A LLaVA of this shape with random weights, made on the device, and a tokenizer of numbered words."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    where, precision = choose(device, "float16" if dtype == "auto" and device.startswith("cuda") else dtype)
    words = shape["text"]["vocab_size"] - 64
    arguments: dict[str, Any] = {
        "vision_config": CLIPVisionConfig(**shape["vision"]),
        "text_config": LlamaConfig(**shape["text"]),
        "image_token_index": words,
        "image_seq_length": (shape["vision"]["image_size"] // shape["vision"]["patch_size"]) ** 2,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    config = LlavaConfig(**arguments)
    before = torch.get_default_dtype()
    torch.set_default_dtype(precision)
    try:
        with torch.device(where):
            torch.manual_seed(0)
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return adapter_of(
        model.eval(),
        numbered_tokenizer(words),
        template=TemplateConfig("llava_v1"),
        name="LLaVA-1.5 with random weights",
        weights="random:0",
        untrained=True,
    )


def numbered_tokenizer(words: int) -> Any:
    """A tokenizer whose words are `w3`, `w4`, ..., one token each, with LLaMA's marks and `<image>` behind them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, words)}
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=marks["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return made


# =============================================================================
# What is asked
# =============================================================================


def items(adapter: PrefixAdapter, profile: str, images: int, folder: Path, seed: int = 0) -> list[Item]:
    """Pictures in files, 640 x 480 as COCO's, with questions of a profile's lengths in this model's tokens."""
    rng = random.Random(f"{profile}/{seed}")
    drawn = counted(LENGTHS, profile, rng, images)
    writer = _Writer(adapter, rng)
    made = []
    for number, about in enumerate(drawn):
        path = folder / f"{profile}-{number}.jpg"
        _picture(rng.randrange(2**31)).save(path, quality=90)
        ref = ImageRef(key=path.name, where=str(path), path=str(path), folder=str(folder))
        made.append(Item(ref, [(writer.text(one.tokens), one.new_tokens) for one in about.questions], about.distinct))
    return made


def _picture(seed: int) -> Image.Image:
    """Smooth colours with some noise: a file of about the size of a photograph."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (12, 16, 3), generator=generator, dtype=torch.uint8)
    smooth = Image.fromarray(coarse.numpy()).resize((640, 480), Image.Resampling.BICUBIC)
    noise = torch.randint(0, 256, (480, 640, 3), generator=generator, dtype=torch.uint8)
    return Image.blend(smooth, Image.fromarray(noise.numpy()), 0.08)


class _Writer:
    """Texts that have a given number of tokens behind an image."""

    def __init__(self, adapter: PrefixAdapter, rng: random.Random) -> None:
        self._talk, self._rng = adapter.conversations, rng
        known = sorted(word.lstrip("▁") for word in self._talk.tokenizer.get_vocab())  # type: ignore[attr-defined]
        rng.shuffle(known)
        self._words = [word for word in known if word.isascii() and word.isalnum()][:2000]

    def text(self, tokens: int) -> str:
        words = [self._rng.choice(self._words) for _ in range(tokens)]
        while words and len(self._talk.asked(" ".join(words), image=True)) > tokens:
            words.pop()
        return " ".join(words)


class _Asks(Task):
    """Questions of a bench that are answered in equally many tokens; nothing is right."""

    def __init__(self, profile: str, limit: int) -> None:
        self.info = TaskInfo(
            name=f"{profile}_{limit}", title=profile, measures="speed", split="drawn", questions=0, images=None,
            headline="accuracy", max_new_tokens=limit, paper="", scorer="",
        )  # fmt: skip

    def load(self, data: Folder) -> Loaded:
        raise NotImplementedError

    def prompt(self, sample: Sample) -> str:
        return sample.question

    def grade(self, sample: Sample, text: str) -> Verdict:
        return Verdict(text, float(text == sample.target), valid=bool(text))

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        yield from accuracy_metrics(sums)


def datasets(profile: str, some: Sequence[Item]) -> list[Dataset]:
    """The questions as the harness takes them: a list for each length of answers."""
    by_limit: dict[int, list[Sample]] = defaultdict(list)
    for number, item in enumerate(some):
        for place, (text, limit) in enumerate(item.questions):
            by_limit[limit].append(Sample(f"{number}/{place}", item.image, text, "w3"))
    return [
        Dataset(_Asks(profile, limit), samples, DataIdentity(len(samples), ""))
        for limit, samples in sorted(by_limit.items())
    ]


# =============================================================================
# Contestants: the texts of all answers, by (image, question)
# =============================================================================

Texts = dict[tuple[int, int], str]


def shared(adapter: PrefixAdapter, profile: str, some: Sequence[Item]) -> Texts:
    """A whole evaluation in an empty folder."""
    out = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        outcomes = evaluate(adapter, datasets(profile, some), out, batch_tokens=BATCH_TOKENS)
        found: Texts = {}
        for outcome in outcomes:
            for key, answer in read_answers(outcome.folder).items():
                assert answer.generation is not None, answer.failure  # noqa: S101 - a failure must not be timed
                image, _, place = key.partition("/")
                found[int(image), int(place)] = answer.generation.text
        return found
    finally:
        shutil.rmtree(out)


def listed(adapter: PrefixAdapter, profile: str, some: Sequence[Item]) -> Texts:
    """A whole evaluation that asks equal questions once."""
    return shared(adapter, profile, [item.listed() for item in some])


def in_batches(adapter: PrefixAdapter, profile: str, some: Sequence[Item]) -> Texts:
    """One padded batch per image; every row decodes as long as the longest answer."""
    engine, talk, found = adapter.engine, adapter.conversations, {}
    for number, item in enumerate(some):
        prepared = adapter.prepare(open_image(item.image))
        wholes = [talk.whole(prepared, text) for text, _ in item.questions]
        longest = max(whole["input_ids"].shape[1] for whole in wholes)
        rows = torch.full((len(wholes), longest), engine.pad)
        masks = torch.zeros_like(rows)
        for row, whole in enumerate(wholes):
            length = whole["input_ids"].shape[1]
            rows[row, longest - length :] = whole["input_ids"][0]
            masks[row, longest - length :] = 1
        pixels = engine._on_device({"pixel_values": torch.cat([whole["pixel_values"] for whole in wholes])})
        with torch.inference_mode():
            made = engine.model.generate(
                input_ids=rows.to(engine.device),
                attention_mask=masks.to(engine.device),
                max_new_tokens=max(limit for _, limit in item.questions),
                do_sample=False,
                pad_token_id=engine.pad,
                eos_token_id=None,
                suppress_tokens=list(range(engine.vocabulary, engine.model.config.get_text_config().vocab_size)),
                **pixels,
            )
        for place, (_, limit) in enumerate(item.questions):
            found[number, place] = talk.decode(made[place, longest : longest + limit].tolist()).strip()
    return found


def one_by_one(adapter: PrefixAdapter, profile: str, some: Sequence[Item]) -> Texts:
    """Every question from its picture's file on."""
    found: Texts = {}
    for number, item in enumerate(some):
        for place, (text, limit) in enumerate(item.questions):
            prepared = adapter.prepare(open_image(item.image))
            asked = Asked((), 0, limit)
            adapter.engine.generate_plainly(adapter.conversations.whole(prepared, text), asked)
            found[number, place] = adapter.conversations.decode(asked.answer).strip()
    return found


CONTESTANTS: dict[str, Callable[[PrefixAdapter, str, Sequence[Item]], Texts]] = {
    "shared": shared,
    "listed": listed,
    "batch": in_batches,
    "one": one_by_one,
}


# =============================================================================
# Measuring
# =============================================================================


def products(adapter: PrefixAdapter, some: Sequence[Item]) -> float:
    """Floating point operations per image of the matrix products that `shared` needs, attention left out."""
    model, talk = adapter.engine.model, adapter.conversations
    tower = sum(p.numel() for n, p in model.named_parameters() if "vision_tower" in n and p.ndim == 2)
    text = sum(p.numel() for n, p in model.named_parameters() if "language_model" in n and p.ndim == 2)
    head = model.get_output_embeddings().weight.numel()
    text -= model.get_input_embeddings().weight.numel()  # looked up, not multiplied
    patches = adapter.info.image_tokens
    total = 0.0
    for item in some:
        decoded = sum(limit - 1 for _, limit in item.questions)
        asked = talk.all_asked([words for words, _ in item.questions], image=True)
        read = len(talk.opening) + patches + sum(len(ids) for ids in asked if isinstance(ids, list)) + decoded  # type: ignore[attr-defined]
        total += 2.0 * (tower * patches + text * read + head * (len(item.questions) + decoded))
    return total / len(some)


def seconds_of_a_picture(adapter: PrefixAdapter, some: Sequence[Item]) -> float:
    """From the file to what the adapter keeps, on one thread: what `one` does for every question."""
    began = time.perf_counter()
    for item in some:
        adapter.prepare(open_image(item.image))
    return (time.perf_counter() - began) / len(some)


def measure(
    adapter: PrefixAdapter,
    out: Path,
    *,
    profiles: Sequence[str] = PROFILES,
    images: int = 256,
    slow: Mapping[str, int] | None = None,
    repeats: int = 3,
    seed: int = 0,
    command: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure all contestants on all profiles and write `llava.json` and `llava.md`; returns what they hold.

    `slow` says how many images the contestants of transformers answer.
    """
    device = adapter.engine.device
    large = 8192 if device.type == "cuda" else 512
    found: dict[str, Any] = {
        "model": adapter.info.name,
        "parameters": sum(parameter.numel() for parameter in adapter.engine.model.parameters()),
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "dtype": adapter.info.dtype,
        "kernels": adapter.engine.kernels.name,
        "command": command,
        "matrix_rate": matrix_rate(device, adapter.engine.model.dtype, large),
        "profiles": {},
        "rows": [],
    }
    rows: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for profile in profiles:
            some = items(adapter, profile, images, Path(folder), seed)
            n = sum(len(item.questions) for item in some) / len(some)
            usual = sorted(range(len(some)), key=lambda i: abs(len(some[i].questions) - n))
            parts = {"shared": range(len(some)), "listed": range(len(some))}
            few = slow or {"batch": 4, "one": 2}
            parts |= {name: usual[: few[name]] for name in ("batch", "one")}
            about: dict[str, Any] = {
                "questions_per_image": n,
                "floor": products(adapter, some) / found["matrix_rate"],
                "seconds_of_a_picture": seconds_of_a_picture(adapter, some[:16]),
            }
            found["profiles"][profile] = about
            measured = {
                name: Measured(profile, name, len(part), sum(len(some[i].questions) for i in part))
                for name, part in parts.items()
            }
            rows += measured.values()
            texts: dict[str, Texts] = {}
            for repeat in range(repeats + 1):  # the first warms up
                for name, part in parts.items():
                    asked = [some[i] for i in part]
                    say(f"{profile}, {name}, " + (f"turn {repeat} of {repeats}" if repeat else "warming up"))
                    began = now(device)
                    # Ours warms up on everything: each shape that it meets is prepared once.
                    whole = repeat or name in ("shared", "listed")
                    answers = CONTESTANTS[name](adapter, profile, asked if whole else asked[:1])
                    took = now(device) - began
                    if repeat:
                        # Of few images the questions differ in number: seconds are scaled to the profile's mean.
                        scale = n / (measured[name].questions / len(part))
                        measured[name].seconds_per_image.append(took / len(part) * scale)
                        texts[name] = {(part[image], place): text for (image, place), text in answers.items()}
                found["rows"] = [asdict(row) for row in rows]
                for name in ("batch", "one"):
                    if name in texts and "shared" in texts:
                        differ = sum(texts["shared"][key] != text for key, text in texts[name].items())
                        about[f"differ_{name}"] = [differ, len(texts[name])]
                write(found, out)
    return found


# =============================================================================
# The table
# =============================================================================


def _spread(values: Sequence[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    # Contestants of a repeat ran one after another: their ratio is of the same minute.
    return [a / b for a, b in zip(theirs, ours, strict=False)]


def table(found: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        f"# {found['model']}, {found['parameters'] / 1e9:.1f}B parameters, {found['card']}",
        "",
        f"torch {found['torch']}, {found['dtype']}, kernels: {found['kernels']}, matrix products at "
        f"{found['matrix_rate'] / 1e12:.2f} TFLOP/s. Seconds per image from the picture's file to the text, median "
        "(least to most); times as long as `shared` of the same repeat, median (least to most).",
        "",
        "| profile | questions per image | shared, through the harness | equal questions once "
        "| floor of the matrix products | one padded batch per image | `generate` per question "
        "| the same without opening pictures |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for profile, about in found["profiles"].items():
        by = {row["contestant"]: row["seconds_per_image"] for row in found["rows"] if row["profile"] == profile}
        if not by.get("shared"):
            continue
        ours, n = by["shared"], about["questions_per_image"]
        floor = f"{about['floor']:.4f} (ours takes {statistics.median(ours) / about['floor']:.1f} times that)"
        listed = "-"
        if by["listed"] and by["one"]:
            listed = f"{_spread(by['listed'], 4)}: `generate` **{_spread(_ratios(by['one'], by['listed']))}**"
        cells = [f"{n:.1f}", _spread(ours, 4), listed, floor]
        for name in ("batch", "one"):
            times = by[name]
            cells.append(
                f"{statistics.median(times):.3f} s: **{_spread(_ratios(times, ours))}**" if times else "-"
            )  # fmt: skip
        bare = [seconds - n * about["seconds_of_a_picture"] for seconds in by["one"]]
        cells.append(_spread(_ratios(bare, ours)) if bare else "-")
        lines.append(f"| {profile} | " + " | ".join(cells) + " |")
    lines += ["", f"Answers that differ from those of `shared` ({found['model']}, {found['dtype']}):", ""]
    for profile, about in found["profiles"].items():
        shown = [
            f"{differ} of {asked} of `{name}`"
            for name in ("batch", "one")
            for differ, asked in [about.get(f"differ_{name}", (0, 0))]
            if asked
        ]
        lines.append(f"- {profile}: {', '.join(shown)}")
    return "\n".join(lines) + "\n"


def write(found: Mapping[str, Any], out: Path) -> None:
    """The results as JSON and as a table."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "llava.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "llava.md").write_text(table(found), encoding="utf-8")


def bench(
    *,
    model: str | None,
    device: str,
    dtype: str,
    profiles: Sequence[str],
    repeats: int,
    images: int | None,
    seed: int,
    out: Path,
    command: str,
    say: Callable[[str], None],
) -> list[Path]:
    """`vlmamba-eval bench --family llava`; returns the files written. Raises `UsageError`."""
    for profile in profiles:
        if profile not in PROFILES:
            raise UsageError(f"--profile {profile}: a LLaVA is measured on {', '.join(PROFILES)}.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if model is None and not device.startswith("cuda"):
        raise UsageError(
            "LLaVA-1.5-7B's shape needs a GPU: take --device cuda, or a smaller checkpoint with --model FOLDER."
        )
    if model is None:
        adapter = random_adapter(SHAPE, device, dtype)
    else:
        from vlmamba_eval.registry import load

        loaded = load(f"llava:{model.removeprefix('llava:')}", {"device": device, "dtype": dtype})
        assert isinstance(loaded, PrefixAdapter)  # noqa: S101 - what the family loads
        adapter = loaded
    found = measure(
        adapter,
        out,
        profiles=profiles or PROFILES,
        images=images or (256 if device.startswith("cuda") else 4),
        repeats=repeats,
        seed=seed,
        command=command,
        say=say,
    )
    print(table(found))
    return [out / "llava.json", out / "llava.md"]
