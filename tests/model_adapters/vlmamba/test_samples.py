"""The bundled model on all bundled samples: what the whole path answers does not depend on how it is answered."""

from __future__ import annotations

import pytest

from vlmamba_eval import registry
from vlmamba_eval.dataset import has_samples, load_dataset
from vlmamba_eval.images import open_image
from vlmamba_eval.model_adapters.vlmamba.adapter import TINY
from vlmamba_eval.plan import plan
from vlmamba_eval.registry import all_tasks
from vlmamba_eval.types import ImageQuestions, Question


@pytest.mark.slow
@pytest.mark.skipif(not (TINY / "model.safetensors").is_file(), reason="the bundled weights are not here")
def test_sharing_changes_no_answer_on_any_picture() -> None:
    """All questions are asked; alone, only the first five about each picture, which takes most of the time."""
    adapter = registry.load("vlmamba-tiny", {"device": "cpu"})
    plain = registry.load("vlmamba-tiny", {"device": "cpu", "sharing": False})
    tasks = {name: task for name, task in all_tasks().items() if has_samples(task)}
    wanted = [(name, sample) for name, task in tasks.items() for sample in load_dataset(task, "samples").samples]
    batch = []
    for group in plan(wanted, lambda name, sample: Question(tasks[name].prompt(sample), 16)):
        image = None if group.image is None else adapter.prepare(open_image(group.image))
        batch.append(ImageQuestions(image, tuple(job.question for job in group.jobs)))
    assert len(batch) > 40
    found = adapter.generate(batch)
    expected = plain.generate([ImageQuestions(item.image, item.questions[:5]) for item in batch])
    pairs = [(a, b) for x, y in zip(found, expected, strict=True) for a, b in zip(x[:5], y, strict=True)]
    assert [(a, b) for a, b in pairs if a != b] == []
    for start in range(0, len(batch), 7):
        assert adapter.generate(batch[start : start + 7]) == found[start : start + 7]
