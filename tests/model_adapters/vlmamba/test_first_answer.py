"""What stands between a command and the first answer: imports cost more time than the model itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# All that is imported on the way; dill, tqdm and yaml by PyTorch and numba, which take them if they are installed.
NEEDED = {
    "PIL", "click", "dill", "filelock", "llvmlite", "msgspec", "numba", "numpy", "rich", "safetensors", "tokenizers",
    "torch", "torchgen", "tqdm", "typing_extensions", "vlmamba_eval", "yaml",
}  # fmt: skip
# numba asks for scipy's BLAS, which no kernel of ours uses and no package that we need brings.
FIRST_ANSWER = """
import sys
at_the_start = set(sys.modules)
sys.modules["scipy"] = None
from vlmamba_eval.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 0
since = {name: module for name, module in sys.modules.items() if name not in at_the_start}
files = {name.split(".")[0]: getattr(module, "__file__", None) or "" for name, module in since.items()}
print("imported", *(name for name, file in files.items() if "site-packages" in file), "torch._dynamo" in sys.modules)
"""


def test_a_run_imports_no_library_that_it_does_not_need(tmp_path: Path) -> None:
    """From the command to the tables: one image of POPE's samples."""
    run = ["--model", "vlmamba-tiny", "--tasks", "pope", "--data", "samples", "--limit", "1", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", FIRST_ANSWER, *run, "--device", "cpu"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "leaderboard.csv").read_text().startswith("model,task,split,")
    *imported, dynamo = done.stdout.splitlines()[-1].split()[1:]
    assert {"torch", "numba"} <= set(imported) <= NEEDED
    assert dynamo == "False"


def test_a_run_whose_data_is_there_imports_nothing_that_fetches() -> None:
    code = (
        "import sys\n"
        "for name in ('httpx', 'httpx2', 'filelock', 'torch', 'pandas'): sys.modules[name] = None\n"
        "from vlmamba_eval.commands_data import settled\n"
        "from vlmamba_eval.registry import get_task\n"
        "print(len(settled([get_task('pope')], 'samples', False, [])[0].samples))"
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
