"""What stands between a command and the first answer: imports cost more time than the model itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Not needed on the way, though installed: asking for them is an error here.
ABSENT = ("transformers", "pandas", "datasets", "scipy", "huggingface_hub", "accelerate", "sympy", "torch._dynamo")

FIRST_ANSWER = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r})); from vlmamba_eval.cli import main; main()"


def test_a_run_imports_no_library_that_it_does_not_need(tmp_path: Path) -> None:
    """From the command to the tables: one image of POPE's samples."""
    run = ["--model", "vlmamba-tiny", "--tasks", "pope", "--data", "samples", "--limit", "1", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", FIRST_ANSWER, *run, "--device", "cpu"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "leaderboard.csv").read_text().startswith("model,task,split,")


def test_a_run_whose_data_is_there_imports_nothing_that_fetches() -> None:
    code = (
        "import sys\n"
        "for name in ('httpx', 'httpx2', 'filelock', 'torch', 'pandas'): sys.modules[name] = None\n"
        "from vlmamba_eval.commands_data import settled\n"
        "from vlmamba_eval.registry import get_task\n"
        "print(len(settled([get_task('pope')], 'samples', False)[0].samples))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 0


@pytest.mark.parametrize("tasks", [[], ["--tasks", "gqa,mme"]])
def test_a_model_without_weights_is_told_at_once_what_there_is_instead(tasks: list[str]) -> None:
    code = "import sys; sys.modules['torch'] = None; from vlmamba_eval.cli import main; main()"
    command = [sys.executable, "-c", code, "--model", "vlmamba-2.8b", *tasks]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no public VL-Mamba weights exist" in done.stderr
    for way in (
        "vlmamba-eval assemble vlmamba-2.8b",
        "vlmamba-train",
        "--random-init",
        "--model cobra-3b",
        "mambavl-2.8b",
    ):
        assert way in done.stderr
    assert max(map(len, done.stderr.splitlines())) <= 80
    assert "..." not in done.stderr  # every command can be run as it stands
