"""The program as its user meets it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vlmamba_eval.dataset import samples_folder

HEAVY = ("torch", "transformers", "pandas", "datasets")


def vlmamba_eval(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vlmamba_eval", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


@pytest.mark.parametrize("arguments", [["--help"], ["list", "tasks"], ["list", "models"], ["score", "--help"]])
def test_help_and_lists_answer_at_once_and_import_nothing_heavy(arguments: list[str]) -> None:
    """In processor time and at the best of three tries, so that a busy machine does not fail it."""
    code = (
        "import sys; from vlmamba_eval.cli import main\n"
        f"sys.argv = ['vlmamba-eval', *{arguments!r}]\n"
        "try: main()\n"
        f"finally: assert not [name for name in {HEAVY!r} if name in sys.modules]"
    )

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Seconds, half of them for a busy machine. Lists import every benchmark and family; torch takes two seconds.
    limit = 0.8 if arguments[0] == "list" else 0.5
    assert any(once() < limit for _ in range(3))


def test_lists_name_what_there_is() -> None:
    tasks, models = vlmamba_eval("list", "tasks").stdout, vlmamba_eval("list", "models").stdout
    assert all(name in tasks for name in ("gqa", "pope", "mme", "8,910", "mean_f1", "testdev_balanced", "llava-1.5"))
    assert all(name in models for name in ("vlmamba-2.8b", "vlmamba-1.4b", "vlmamba-tiny"))
    options = vlmamba_eval("list", "models", "llava").stdout
    assert "auto|float32|bfloat16|float16" in options
    assert "float16 on CUDA as LLaVA's own numbers" in options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vlmamba-tiny", "--tasks", "gpa", "--data", "samples"], "Unknown task 'gpa'. Did you mean: gqa"),
        (["--model", "vlmamba-tini", "--tasks", "pope", "--data", "samples"], "vlmamba-tiny"),
        (["--model", "vlmamba-tiny"], "--tasks is missing"),
        (["--model", "vlmamba-tiny", "--tasks", "pope", "--data", "/no/such/folder"], "no such folder"),
        (["--model", "vlmamba-tiny", "--tasks", "POPE", "--data", "samples"], "Did you mean: pope"),
        (["--model", "vlmamba-tiny", "--tasks", "pope", "--data", ""], "--data '': no such folder"),
        (["scor"], "Did you mean: score"),
        (["--model", "vlmamba-tiny", "--tasks", "gqa", "pope"], "--tasks A,B (with commas"),
        (["evaluate", "--model", "vlmamba-tiny"], "Evaluating has no subcommand: vlmamba-eval --model NAME"),
        (["--model", "vlmamba-tiny", "score"], "--model belongs to an evaluation, not to `score`"),
        (["--model", "vlmamba-2.8b", "--tasks", "pope", "--data", "samples"], "--random-init"),
        (["--model", "vlmamba-tiny", "--tasks", "pope", "--batch-tokens", "many"], "neither a positive number"),
        (["report", "/no/such/run"], "holds no run with scores"),
    ],
)
def test_wrong_usage_ends_with_exit_code_2_and_what_to_do(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = vlmamba_eval(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_data_error_ends_with_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "pope").mkdir()
    done = vlmamba_eval("--model", "vlmamba-tiny", "--tasks", "pope", "--data", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1
    assert f" in:\n  {tmp_path}/pope\n  {tmp_path}\nPut it there" in done.stderr
    assert "Traceback" not in done.stderr


def test_short_help_is_whole() -> None:
    for arguments in ([], ["list"]):
        lines = vlmamba_eval(*arguments, "--help").stdout.partition("Commands:")[2].splitlines()
        assert len(lines) > 2
        assert not [line for line in lines if line.endswith("...")]


def scored(data: Path, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Score answers to the bundled ScienceQA, whose model has a name that no terminal should get."""
    answers = data / "answers.jsonl"
    answers.write_text('{"question_id": "18", "text": "A", "model_id": "\\u001b[31mred"}\n')
    command = [sys.executable, "-m", "vlmamba_eval", "score", "--task", "scienceqa", "--allow-partial"]
    return subprocess.run(
        [*command, "--answers", str(answers), "--data", str(samples_folder()), "--out", str(out)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_terminal_without_a_dagger_is_no_failure(tmp_path: Path) -> None:
    done = scored(tmp_path, tmp_path / "out", PYTHONIOENCODING="ascii")
    assert done.returncode == 3, done.stderr
    assert "\\u2020" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("name", ["with space", "é 図", "%d%s", "[red]", "a/b/c"])
def test_results_go_into_a_folder_of_any_name_and_through_a_link(tmp_path: Path, name: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path, target_is_directory=True)
    done = scored(tmp_path, link / name)
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[-2:] == [str(tmp_path / name / f"leaderboard.{kind}") for kind in ("md", "csv")]
    assert (tmp_path / name / "leaderboard.md").exists()


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = scored(tmp_path, tmp_path / "file")
    assert done.returncode == 1
    assert "cannot be written (Not a directory)" in done.stderr
    assert "Give another folder with --out" in done.stderr


def test_the_console_scripts_module_is_importable_without_side_effects() -> None:
    subprocess.run(
        [sys.executable, "-c", "import vlmamba_eval.cli, vlmamba_eval.registry, vlmamba_eval.adapter"], check=True
    )


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command as a user types it, with `vlmamba-eval` for this interpreter's."""
    line = line.replace("vlmamba-eval", f"{sys.executable} -m vlmamba_eval")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=cwd, check=False, env=environment)


@pytest.mark.parametrize("where", ["> /dev/full", ">&-", "2> /dev/full", "2>&-", "> /dev/full 2>&1", "| head -n 1"])
def test_a_closed_or_full_terminal_costs_no_result_and_gives_no_traceback(tmp_path: Path, where: str) -> None:
    done = shell(
        f"set -o pipefail; vlmamba-eval --model constant --tasks pope --data samples --out out {where}", tmp_path
    )
    full = where.startswith("> /dev/full")  # the table is lost, and that is said
    assert done.returncode == full, done.stderr
    if where == "> /dev/full":
        assert "Standard output could not be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert (tmp_path / "out" / "leaderboard.csv").stat().st_size > 0
    assert len(list((tmp_path / "out").rglob("DONE"))) == 1


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_each_signal_ends_a_run_with_its_code_and_what_to_do(tmp_path: Path, name: str, code: int) -> None:
    (tmp_path / "sleeping.py").write_text(
        "import time\nfrom vlmamba_eval.adapter import AdapterInfo\nfrom vlmamba_eval.registry import Family\n"
        "class Sleeping:\n    info = AdapterInfo('s', 'w', 'cpu', 'none')\n"
        "    def prepare(self, image): return None\n"
        "    def generate(self, batch):\n        print('asked', flush=True)\n        time.sleep(60)\n"
        "FAMILY = Family('sleeping', '', lambda model, options: Sleeping(), models={'sleeping': ''})\n"
    )
    command = [sys.executable, "-m", "vlmamba_eval", "--include", "sleeping.py", "--model", "sleeping"]
    with subprocess.Popen(
        [*command, "--tasks", "pope", "--data", "samples"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=lambda: signal.signal(getattr(signal, name), signal.SIG_DFL),
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "asked\n"
        child.send_signal(getattr(signal, name))
        _, said = child.communicate(timeout=30)
    assert child.returncode == code
    assert "Interrupted. They are safe; continue with the same command:" in said
    assert "Traceback" not in said
