"""A list of half a million questions fits the memory of a small machine, whatever the model answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toys import picture

WHOLE_RUN = """
import resource, sys
from pathlib import Path
from vlmamba_eval.dataset import load_dataset
from vlmamba_eval.registry import get_task, load
from vlmamba_eval.run import evaluate

dataset = load_dataset(get_task("vqav2_testdev"), sys.argv[1], allow_partial=True)
[outcome] = evaluate(load("constant"), [dataset], Path(sys.argv[2]))
assert outcome.complete
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak(folder: Path, questions: int) -> int:
    """Bytes that a run from list to scores takes at most; its pictures have 5.5 questions each, as test2015's."""
    images = questions * 2 // 11
    pictures = folder / "vqav2" / "test2015"
    pictures.mkdir(parents=True)
    for image in range(images):
        path = pictures / f"COCO_test2015_{image + 1:012d}.jpg"
        if image % 30_000 == 0:  # a file has so many names at most
            path.write_bytes(picture())
        else:
            os.link(pictures / f"COCO_test2015_{image // 30_000 * 30_000 + 1:012d}.jpg", path)
    rows = [
        {"image_id": 1 + i % images, "question": f"What is the colour of thing {i} here?", "question_id": 10_000 + i}
        for i in range(questions)
    ]
    (folder / "vqav2" / "v2_OpenEnded_mscoco_test-dev2015_questions.json").write_text(json.dumps({"questions": rows}))
    command = [sys.executable, "-c", WHOLE_RUN, folder, folder / "out"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is counted otherwise there")
def test_a_question_takes_less_than_a_kilobyte_of_the_driver(tmp_path: Path) -> None:
    """Two KiB before: each question had a picture, a prompt and an answer of its own in memory."""
    few, many = peak(tmp_path / "few", 50_000), peak(tmp_path / "many", 400_000)
    assert (many - few) / 350_000 < 1_000
