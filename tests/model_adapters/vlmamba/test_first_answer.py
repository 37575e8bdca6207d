"""What stands between a command and the first answer: imports cost more time than the model itself."""

from __future__ import annotations

import subprocess
import sys

# Not needed on the way, though installed: asking for them is an error here.
ABSENT = ("transformers", "pandas", "datasets", "scipy", "huggingface_hub", "accelerate", "sympy", "torch._dynamo")

FIRST_ANSWER = f"""
import sys
for name in {ABSENT!r}:
    sys.modules[name] = None
from PIL import Image
from vlmamba_eval.registry import load
from vlmamba_eval.types import ImageQuestions, Question
adapter = load("vlmamba-tiny", {{"device": "cpu"}})
image = adapter.prepare(Image.new("RGB", (60, 40), "red"))
[[answer]] = adapter.generate([ImageQuestions(image, (Question("Is there a dog?", 4),))])
print(answer.text)
"""


def test_a_first_answer_imports_no_library_that_it_does_not_need() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_ANSWER], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
