"""One evaluation as one process on one GPU, and as one share per GPU of this host: time, bytes, speed-up.

    python -m tests.gpu.shares_on_gpus --out FILE.json [--model vlmamba-2.8b] [--images 500] [--device cuda]

Random weights, generated pictures of 640 x 480 on the disk, questions of POPE's number and length. Times are after
loading, with reading, decoding and storing; `with loading` is the wall clock of the processes. The merged run's derived
files must be those of one process, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DERIVED = ("answers.jsonl", "scores.json", "verdicts.jsonl", "DONE")
WORDS = ("snowboard", "dining table", "traffic light", "person", "sports ball", "handbag", "clock", "truck", "bench")


def write_questions(folder: Path, images: int, per_image: int = 18) -> Path:
    """Pictures of noise in blocks, and yes/no questions about each."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    rng = random.Random(0)
    lines = []
    for i in range(images):
        noise = np.random.default_rng(i).integers(0, 256, (15, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((640, 480), Image.Resampling.BILINEAR).save(folder / f"{i}.jpg", quality=90)
        for q in range(per_image):
            question = f"Is there a {WORDS[q % len(WORDS)]} number {q} in the image?"
            lines.append({"question": question, "answer": rng.choice(("yes", "no")), "image": f"{i}.jpg"})
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def one_process(model: str, device: str, questions: Path, out: Path, part: tuple[int, int] | None) -> None:
    """Load the model, answer all or a share, print the seconds after loading."""
    from vlmamba_eval.dataset import load_dataset
    from vlmamba_eval.registry import get_task, load
    from vlmamba_eval.run import answer_share, evaluate

    task = get_task(f"file:{questions}")
    dataset = load_dataset(task, task.data)
    adapter: Any = load(model, {"device": device, "random_init": True})
    began = time.perf_counter()
    if part is None:
        evaluate(adapter, [dataset], out)
    else:
        answer_share(adapter, [dataset], out / "shards" / f"{part[0]}-of-{part[1]}", *part)
    print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


def run(arguments: list[str], gpus: int, parts: int | None) -> tuple[list[float], float]:
    """(seconds after loading of each process, wall clock of all)."""
    began = time.perf_counter()
    children = []
    for number in range(parts or 1):
        share = [] if parts is None else ["--part", f"{number + 1}/{parts}"]
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": str(number % gpus)} if gpus else {})
        command = [sys.executable, "-m", "tests.gpu.shares_on_gpus", *arguments, *share]
        children.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    seconds = [json.loads(child.communicate()[0].strip().splitlines()[-1])["seconds"] for child in children]
    return seconds, time.perf_counter() - began


def measure(model: str, device: str, images: int, gpus: int) -> dict[str, Any]:
    """One process, then a share per GPU, merged and compared."""
    from vlmamba_eval.merge import merge

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        questions = write_questions(folder / "data", images)
        common = ["--model", model, "--device", device, "--questions", str(questions), "--folder"]
        run([*common, str(folder / "warm")], gpus, None)  # kernels are compiled and kept
        [alone], alone_wall = run([*common, str(folder / "one")], gpus, None)
        parts = max(gpus, 2)
        seconds, wall = run([*common, str(folder / "shared")], gpus, parts)
        [merged] = merge([folder / "shared" / "shards"], folder / "merged")
        whole = next((folder / "one").rglob("DONE")).parent
        equal = {file: (whole / file).read_bytes() == (merged.folder / file).read_bytes() for file in DERIVED}
        return {
            "model": model, "images": images, "questions": images * 18, "processes": parts,
            "one_s": alone, "one_with_loading_s": alone_wall, "shares_s": seconds, "shares_with_loading_s": wall,
            "speed_up": alone / max(seconds), "speed_up_with_loading": alone_wall / wall, "equal_bytes": equal,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", default="vlmamba-2.8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--questions", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.questions:
        number, _, of = (given.part or "").partition("/")
        part = (int(number), int(of)) if given.part else None
        one_process(given.model, given.device, given.questions, given.folder, part)
        return
    gpus = 0
    if given.device == "cuda":
        import torch

        gpus = torch.cuda.device_count()
    found = measure(given.model, given.device, given.images, gpus)
    text = json.dumps(found, indent=1)
    if given.out:
        given.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
