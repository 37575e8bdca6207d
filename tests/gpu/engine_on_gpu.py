"""The engine on a GPU: reading few images as CUDA graphs changes no answer.

python -m tests.gpu.engine_on_gpu
"""

from __future__ import annotations

from vlmamba_eval.dataset import load_dataset
from vlmamba_eval.images import open_image
from vlmamba_eval.model_adapters.vlmamba.engine import Limits
from vlmamba_eval.registry import get_task, load
from vlmamba_eval.types import ImageQuestions, Question


def check(device: str = "cuda") -> int:
    """Answers of `vlmamba-tiny` in float32, shared in every number of images and each by itself; how many there are.

    Each batch is asked three times: its reading runs as it is, is captured, is replayed. AssertionError names what
    differs.
    """
    options = {"device": device, "dtype": "float32"}
    shared, alone = load("vlmamba-tiny", options), load("vlmamba-tiny", {**options, "sharing": "false"})
    engine = shared.engine  # type: ignore[attr-defined]
    engine.limits = Limits(images=4, tokens=256, rows=8)  # several micro-batches
    dataset = load_dataset(get_task("gqa"), "samples")
    questions: dict[str, list[Question]] = {}
    images = {}
    for sample in dataset.samples:
        assert sample.image is not None
        images[sample.image.key] = sample.image
        questions.setdefault(sample.image.key, []).append(Question(dataset.task.prompt(sample), 4))
    items = [ImageQuestions(shared.prepare(open_image(images[key])), tuple(asked)) for key, asked in questions.items()]
    expected = [alone.generate([item])[0] for item in items]
    compared = 0
    for size in (1, 2, 3, 4, 5, 9):
        for _ in range(3):
            for start in range(0, len(items) - size + 1, size):
                found = shared.generate(items[start : start + size])
                for one, other in zip(found, expected[start : start + size], strict=True):
                    assert [said.text for said in one] == [said.text for said in other], (size, start)  # type: ignore[union-attr]
                    compared += len(one)
    return compared


if __name__ == "__main__":
    print(f"{check()} answers are equal")
