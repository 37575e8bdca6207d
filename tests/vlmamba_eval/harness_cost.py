"""What the command costs around the model, on one core: `python -m tests.vlmamba_eval.harness_cost [--part 0.1]`.

GQA, POPE and MME with questions of real length and number per picture, JPEG files on the disk. CPU time, not seconds of
the clock, so that a busy machine does not count; waiting for the disk is left out for the same reason.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.gpu.shares_on_gpus import LARGE, TASKS, write_data
from vlmamba_eval.adapter import AdapterInfo
from vlmamba_eval.dataset import load_dataset
from vlmamba_eval.generate import AUTO_BATCH_TOKENS
from vlmamba_eval.images import open_image, read_image
from vlmamba_eval.model_adapters.shared.pixels import PreprocessingConfig, prepare
from vlmamba_eval.plan import batches, plan, unanswered, written
from vlmamba_eval.run import conclude, manifest_of, question
from vlmamba_eval.store import Run
from vlmamba_eval.types import Answer, Generation, ImageRef

SIGLIP = PreprocessingConfig((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TEMPLATE = "USER: <image>\n{} ASSISTANT:"


def timed(found: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    """What `work` returns; its milliseconds of one core are added to `found`."""
    began = time.process_time()
    result = work()
    found[name] = found.get(name, 0.0) + 1_000 * (time.process_time() - began)
    return result


def of_pictures(refs: list[ImageRef]) -> dict[str, float]:
    """Milliseconds per picture of each step."""
    found: dict[str, float] = {}
    for ref in refs:
        timed(found, "read", partial(read_image, ref))
        image = timed(found, "read and decode", partial(open_image, ref))
        timed(found, "fit to 384 x 384", partial(prepare, image, 384, SIGLIP))
    return {name: round(total / len(refs), 3) for name, total in found.items()}


def of_questions(data: Path, out: Path) -> tuple[int, dict[str, float]]:
    """Questions, and milliseconds per question of each step, model left out."""
    found: dict[str, float] = {}
    info = AdapterInfo("nobody", "none", "cpu", "none", image_tokens=729)
    datasets = timed(found, "load", lambda: [load_dataset(task, str(data), allow_partial=True) for task in TASKS])
    by_name = {dataset.task.info.name: dataset for dataset in datasets}

    def make_plan() -> list[Any]:
        pairs = ((name, sample) for name, dataset in by_name.items() for sample in dataset.samples)
        groups = plan(pairs, lambda name, sample: question(by_name[name], sample, "generate"))
        return list(batches(groups, info.image_tokens, AUTO_BATCH_TOKENS["cuda"]))

    cut = timed(found, "plan", make_plan)
    runs = {
        name: Run(manifest_of(d, info, "generate").folder(out), manifest_of(d, info, "generate"))
        for name, d in by_name.items()
    }
    for run in runs.values():
        run.__enter__()

    def store(batch: list[Any]) -> None:
        lines: dict[str, list[Answer]] = {}
        for group in written(unanswered(batch, lambda name, key: runs[name].state(key) == "ok")):
            for job in group.jobs:
                said = Generation("w7", TEMPLATE.format(job.question.text), 2, "eos")
                for name, key in job.recipients:
                    lines.setdefault(name, []).append(Answer(key, said))
        for name, answers in lines.items():
            runs[name].append(answers)

    for batch in cut:
        timed(found, "hand out and store", partial(store, batch))
    for name, run in runs.items():
        timed(found, "grade, score, write", partial(conclude, by_name[name], run))
        run.__exit__(None, None, None)
    n = sum(len(dataset.samples) for dataset in datasets)
    return n, {name: round(total / n, 4) for name, total in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=float, default=0.1, help="of the lists' pictures")
    parser.add_argument("--pictures", type=int, default=24, help="decoded of each size")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        counted = write_data(data, arguments.part, "w", LARGE)
        n, per_question = of_questions(data, Path(folder) / "out")
        pictures = {}
        for name, task in (("640 x 480", "pope"), ("4000 x 3000", "mme")):
            paths = sorted((data / task).glob("*.jpg"))[: arguments.pictures]
            pictures[name] = of_pictures(
                [ImageRef(str(path), str(path), path=str(path), folder=str(path.parent)) for path in paths]
            )
    found = {"counted": counted, "questions": n, "ms per question": per_question, "ms per picture": pictures}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
