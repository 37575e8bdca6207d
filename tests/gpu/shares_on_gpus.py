"""One evaluation on one GPU, and as one share per GPU of this host: time, bytes, speed-up, a kill.

    python -m tests.gpu.shares_on_gpus --out FILE.json [--model vlmamba-2.8b] [--part 1.0] [--device cuda] [--large]

GQA, POPE and MME: questions and answers of real length about JPEG files on the disk, random weights. Pictures are of
640 x 480; `--large` makes MME's of 4,000 x 3,000. Steps, each of which writes what it found:

    engine    one process: the model alone on pixels in memory, nothing read, stored or scored
    one       one process: the whole evaluation, with reading, decoding, storing and scoring
    shares    a process per GPU, each with its share; merged, and compared byte for byte with `one`
    killed    the same, the first share killed in the middle and begun again with the same command

Times are after loading; `wall` is that of the processes, with loading. `--processes` are as many as GPUs, or
two on a CPU. The model `waits` only waits, in proportion to tokens: what it takes besides is the harness's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmamba_eval.adapter import AdapterInfo
from vlmamba_eval.dataset import Dataset, load_dataset
from vlmamba_eval.folder import Folder
from vlmamba_eval.model_adapters.llava import bench as llava
from vlmamba_eval.model_adapters.vlmamba.bench.full_suite import random_adapter
from vlmamba_eval.model_adapters.vlmamba.bench.profiles import PROFILES, draw
from vlmamba_eval.plan import ImageJobs, batches, plan, written
from vlmamba_eval.registry import registry
from vlmamba_eval.store import read_answers
from vlmamba_eval.sums import Sums
from vlmamba_eval.task import Task, TaskInfo, accuracy_metrics
from vlmamba_eval.types import Failure, Generation, ImageQuestions, Loaded, Metric, Progress, Sample, Verdict

PROFILES_ASKED = ("gqa", "pope", "mme")
DERIVED = ("answers.jsonl", "scores.json", "verdicts.jsonl", "DONE")
SIZES = {"gqa": (640, 480), "pope": (640, 480), "mme": (640, 480)}
LARGE = SIZES | {"mme": (4000, 3000)}
TEMPLATE = 5  # tokens of the template behind the image
DRAWN = 24  # different pictures of a size; the others are copies under names of their own


class Timed(Task):
    """Questions of a benchmark's lengths, in words of which each is a token, and answers of one token and the end."""

    def __init__(self, profile: str) -> None:
        self.info = TaskInfo(
            name=f"timed_{profile}", title=profile, measures="time", split="drawn", questions=0, images=None,
            headline="accuracy", max_new_tokens=2, paper="", scorer="", folders=(profile,),
        )  # fmt: skip

    def load(self, data: Folder) -> Loaded:
        path = data.find("questions.jsonl", what="questions")
        return Loaded(
            [
                Sample(
                    row.identifier("id"),
                    data.image(path.parent, row.text("image"), row.where),
                    row.text("question"),
                    row.text("answer"),
                )
                for row in data.jsonl(path)
            ]
        )

    def prompt(self, sample: Sample) -> str:
        return sample.question

    def grade(self, sample: Sample, text: str) -> Verdict:
        return Verdict(text, float(text == sample.target), valid=bool(text))

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        yield from accuracy_metrics(sums)


TASKS = tuple(Timed(profile) for profile in PROFILES_ASKED)


# =============================================================================
# The data
# =============================================================================


def write_data(root: Path, part: float, letter: str, sizes: dict[str, tuple[int, int]]) -> dict[str, int]:
    """Each task's pictures and questions below `root`; how many in all. `letter` begins the model's words."""
    found: Counter[str] = Counter()
    for task in PROFILES_ASKED:
        folder = root / task
        folder.mkdir(parents=True)
        pictures = _pictures(root, sizes[task])
        rng = random.Random(task)
        lines: list[dict[str, str]] = []
        for number, about in enumerate(draw(task, max(2, round(part * (PROFILES[task].whole or 0))), 0)):
            os.link(pictures[number % len(pictures)], folder / f"{task}-{number}.jpg")
            texts = [_words(letter, asked.tokens - TEMPLATE, rng) for asked in about.questions[: about.distinct]]
            for place in range(len(about.questions)):
                line = {"id": f"{number}-{place}", "image": f"{task}-{number}.jpg", "answer": _words(letter, 1, rng)}
                lines.append(line | {"question": texts[place % about.distinct]})
            found["images"] += 1
            found["questions"] += len(about.questions)
        (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return dict(found)


def _words(letter: str, number: int, rng: random.Random) -> str:
    return " ".join(f"{letter}{rng.randrange(3, 400)}" for _ in range(max(1, number)))


def _pictures(root: Path, size: tuple[int, int]) -> list[Path]:
    """Smooth colours with noise: about as many bytes per pixel as photographs have."""
    import numpy as np
    from PIL import Image

    def write(number: int) -> Path:
        path = root / f"{size[0]}-{number}.jpg"
        if not path.exists():
            rng = np.random.default_rng(number)
            colours = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(size)
            noise = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
            Image.blend(colours, noise, 0.08).save(path, quality=90)
        return path

    with ThreadPoolExecutor() as pool:
        return list(pool.map(write, range(DRAWN)))


# =============================================================================
# One process
# =============================================================================


class Waits:
    """A device whose time is in proportion to tokens, and that leaves the processor alone: what shares cost besides."""

    info = AdapterInfo("waits", "none", "cpu", "none", image_tokens=729)
    seconds_per_token = 1e-4

    def prepare(self, image: Any) -> Any:
        return image.size

    def generate(self, batch: Sequence[ImageQuestions]) -> list[list[Generation | Failure]]:
        tokens = sum(729 + sum(len(q.text) // 4 + 32 for q in item.questions) for item in batch)
        time.sleep(tokens * self.seconds_per_token)
        return [[Generation("t3", question.text, 1, "eos") for question in item.questions] for item in batch]


def load_model(name: str, device: str) -> Any:
    """A model of this shape with random weights, and a tokenizer of numbered words."""
    if name == "waits":
        return Waits()
    if name == "llava-1.5-7b":
        return llava.random_adapter(llava.SHAPE, device, "auto")
    return random_adapter(name, device, "auto", 0)


@dataclass
class Arguments:
    """What a child process is told."""

    model: str
    device: str
    data: Path
    folder: Path
    step: str


class Told(Progress):
    """Says how far it is, so that a kill can be in the middle."""

    def __init__(self) -> None:
        self.done = 0

    def advance(self, images: int, questions: int, errors: int) -> None:
        self.done += questions
        print(json.dumps({"answered": self.done, "failed": errors}), flush=True)

    def note(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)


def child(arguments: Arguments) -> None:
    """Load the model; then answer, or answer a share, or run the engine alone; print the seconds."""
    from vlmamba_eval.run import answer_share, evaluate

    began = time.perf_counter()
    adapter = load_model(arguments.model, arguments.device)
    _synchronize(arguments.device)
    loading = time.perf_counter() - began
    datasets = [load_dataset(task, str(arguments.data), allow_partial=True) for task in TASKS]
    warm_up(adapter, datasets)
    began = time.perf_counter()
    if arguments.step == "engine":
        from vlmamba_eval.generate import batch_tokens_for
        from vlmamba_eval.images import open_image

        groups = grouped([(dataset, sample) for dataset in datasets for sample in dataset.samples])
        first = datasets[0].samples[0].image
        assert first
        pixels = adapter.prepare(open_image(first))
        cut = list(batches(groups, adapter.info.image_tokens, batch_tokens_for(adapter.info.device)))
        began = time.perf_counter()
        for batch in cut:
            adapter.generate([ImageQuestions(pixels, tuple(job.question for job in group.jobs)) for group in batch])
    elif arguments.step == "one":
        evaluate(adapter, datasets, arguments.folder, progress=Told())
    else:
        number, _, of = arguments.step.partition("/")
        folder = arguments.folder / "shards" / f"{number}-of-{of}"
        answer_share(adapter, datasets, folder, int(number), int(of), progress=Told())
    _synchronize(arguments.device)
    print(json.dumps({"seconds": time.perf_counter() - began, "loading": loading}), flush=True)


def warm_up(adapter: Any, datasets: Sequence[Dataset]) -> None:
    """Kernels are compiled, and captured for the usual shapes, before the clock runs."""
    from vlmamba_eval.generate import generate

    for dataset in datasets:
        ids = dict.fromkeys(sample.image.key for sample in dataset.samples if sample.image)
        first = set(list(ids)[:40])
        some = [sample for sample in dataset.samples if sample.image and sample.image.key in first]
        for _ in generate(adapter, [grouped([(dataset, sample) for sample in some])]):
            pass


def grouped(asked: Sequence[tuple[Dataset, Sample]]) -> list[ImageJobs]:
    """The questions about these samples, by image."""
    from vlmamba_eval.run import question

    by_name = {dataset.task.info.name: dataset for dataset, _ in asked}
    return written(
        plan(
            ((dataset.task.info.name, sample) for dataset, sample in asked),
            lambda name, sample: question(by_name[name], sample, "generate"),
        )
    )


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


# =============================================================================
# All processes
# =============================================================================


class Measured:
    """What was found, on the disk after each step."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.values, self.began = path, {}, time.perf_counter()

    def add(self, name: str, value: Any) -> None:
        self.values[name] = value
        if self.path:
            self.path.write_text(json.dumps(self.values, indent=1) + "\n")
        print(f"[{time.perf_counter() - self.began:6.1f} s] {name}: {json.dumps(value)}", flush=True)


def start(arguments: list[str], step: str, gpu: int | None) -> subprocess.Popen[str]:
    environment = os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)})
    command = [sys.executable, "-m", "tests.gpu.shares_on_gpus", *arguments, "--step", step]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> dict[str, float]:
    """The last line of a process that went well."""
    said = process.communicate()[0].strip().splitlines()
    if process.returncode:
        raise RuntimeError(f"a process ended with {process.returncode}; it is told above why")
    return json.loads(said[-1])


def measure(
    model: str, device: str, part: float, large: bool, gpus: int, parts: int, steps: Sequence[str], out: Measured
) -> None:
    """The steps of the module's text, each written when it is done."""
    from vlmamba_eval.merge import merge

    registry().include(Path(__file__))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        letter = "w" if model == "llava-1.5-7b" else "t"
        out.add("asked", {"model": model, **write_data(folder / "data", part, letter, LARGE if large else SIZES)})
        common = ["--model", model, "--device", device, "--data", str(folder / "data"), "--folder"]
        on = [number % gpus if gpus else None for number in range(parts)]

        if "engine" in steps or "one" in steps:  # side by side, if there are GPUs for both
            alone = [step for step in ("engine", "one") if step in steps]
            children = []
            for step, gpu in zip(alone, on, strict=False):
                children.append(start([*common, str(folder / "one")], step, gpu))
                if not gpus:
                    children[-1].wait()
            for step, process in zip(alone, children, strict=True):
                out.add(step, finished(process))
        if "shares" in steps:
            began = time.perf_counter()
            children = [start([*common, str(folder / "shares")], f"{i + 1}/{parts}", on[i]) for i in range(parts)]
            each = [finished(process) for process in children]
            out.add("shares", {"each": each, "wall": time.perf_counter() - began})
            merged = merge([folder / "shares" / "shards"], folder / "merged")
            if "one" in out.values:
                out.add("shares, bytes", compared(folder / "one", [outcome.folder for outcome in merged]))
                slowest = max(one["seconds"] for one in each)
                out.add("speed-up after loading", out.values["one"]["seconds"] / slowest)
        if "killed" in steps:
            began = time.perf_counter()
            arguments = [*common, str(folder / "killed")]
            children = [start(arguments, f"{i + 1}/{parts}", on[i]) for i in range(parts)]
            lost = kill_in_the_middle(children[0], out.values["asked"]["questions"] // (2 * parts))
            children[0] = start(arguments, f"1/{parts}", on[0])
            each = [finished(process) for process in children]
            out.add("killed", {"after": lost, "each": each, "wall": time.perf_counter() - began})
            merged = merge([folder / "killed" / "shards"], folder / "merged again")
            if "one" in out.values:
                out.add("killed, bytes", compared(folder / "one", [outcome.folder for outcome in merged]))


def kill_in_the_middle(process: subprocess.Popen[str], answers: int) -> int:
    """kill -9 once so many questions are answered; how many were."""
    assert process.stdout
    for line in process.stdout:
        done = json.loads(line).get("answered", 0) if line.startswith("{") else 0
        if done >= answers:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return done
    raise RuntimeError(f"the process ended before {answers} questions were answered")


def compared(whole: Path, merged: Sequence[Path]) -> dict[str, Any]:
    """Whether the derived files are equal, byte for byte, and how many answers differ."""
    alone = {path.parent.parent.name: path.parent for path in whole.rglob("DONE")}
    found: dict[str, Any] = {"equal": len(alone) == len(merged) == len(TASKS), "answers": 0, "different": 0}
    for folder in merged:
        other = alone[folder.parent.name]
        found["equal"] &= all((folder / file).read_bytes() == (other / file).read_bytes() for file in DERIVED)
        ours, theirs = read_answers(folder), read_answers(other)
        found["answers"] += len(ours)
        found["different"] += sum(theirs.get(key) != answer for key, answer in ours.items())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", default="vlmamba-2.8b", help="a preset of VL-Mamba, llava-1.5-7b, or waits")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--part", type=float, default=1.0, help="of each benchmark's images")
    parser.add_argument("--large", action="store_true", help="MME's pictures of 4,000 x 3,000")
    parser.add_argument("--processes", type=int, help="shares; by default one per GPU, or two")
    parser.add_argument("--steps", default="engine,one,shares,killed")
    for hidden in ("--data", "--folder"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        child(Arguments(given.model, given.device, given.data, given.folder, given.step))
        return
    gpus = 0
    if given.device == "cuda":
        import torch

        gpus = torch.cuda.device_count()
    processes = given.processes or max(gpus, 2)
    steps = given.steps.split(",")
    measure(given.model, given.device, given.part, given.large, gpus, processes, steps, Measured(given.out))


if __name__ == "__main__":
    main()
