"""What a terminal shows: whole words and numbers at any width, with and without colour."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from vlmamba_eval import cli as module
from vlmamba_eval.cli import cli
from vlmamba_eval.model_adapters.shared.device import choose
from vlmamba_eval.process import Stopped
from vlmamba_eval.report.columns import columns
from vlmamba_eval.report.console import BAR, ConsoleProgress, duration
from vlmamba_eval.types import Progress, UsageError


def working(done: int = 189, total: int = 4089, errors: int = 0) -> ConsoleProgress:
    progress = ConsoleProgress()
    progress._total, progress._images_total, progress._questions, progress._images = total, 509, done, 119
    progress._errors = errors
    progress._began = 0.0
    return progress


@pytest.mark.parametrize("width", [200, 100, 80, 60, 50, 40, 30])
def test_count_time_left_and_rate_are_never_cut(width: int) -> None:
    line = working(errors=2).line(width, now=1.5)
    assert len(line) <= width
    for piece in ("189/4,089", "0:31", "126"):
        assert piece in line
    if width >= 50:
        assert "2 errors" in line
    if width >= 80:
        assert "119/509 images" in line
        assert BAR[0] in line
        assert BAR[1] in line  # two signs: the bar can be read without colour


def test_a_line_without_a_bar_has_none() -> None:
    assert BAR[1] not in working().line(120, now=1.5, bar=False)


def test_nothing_is_promised_before_the_first_answer() -> None:
    assert "-:-- left" in working(done=0).line(80, now=1.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "0:05"), (760, "12:40"), (10_930, "3:02:10"), (187_200, "2 d 4 h"), (59.7, "1:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


ROWS = [("task", "n", "measures"), ("pope_9000", "9,000", "object hallucination: is there a thing in the image?")]


def test_columns_are_left_out_then_wrapped_then_listed_and_no_word_is_broken() -> None:
    words = {word for row in ROWS for cell in row for word in cell.split()}
    assert columns(ROWS, None).splitlines()[1].endswith("image?")
    assert columns(ROWS, 30, ["measures"]).splitlines() == ["task       n", "pope_9000  9,000"]
    for width in (60, 50, 40, 30, 24):
        text = columns(ROWS, width)
        assert max(map(len, text.splitlines())) <= width
        assert {word.strip(";") for word in text.split()} <= words | {"n", "measures"}


@pytest.mark.parametrize("device", ["mps", "xpu", "nonsense", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_answered_in_a_sentence(device: str) -> None:
    if device.startswith("cuda") and torch.cuda.is_available() and torch.cuda.device_count() > 99:
        pytest.skip("a hundred GPUs")
    with pytest.raises(UsageError, match="cuda"):
        choose(device, "auto")


def in_terminal(*arguments: str, width: int, **environment: str) -> str:
    """What a command writes to a terminal of that many columns."""
    import fcntl
    import struct
    import termios

    plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "vlmamba_eval", *arguments],
        stdin=child, stdout=child, stderr=child, close_fds=True, cwd=Path(__file__).parents[2],
        env={**plain, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(child)
    seen = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
    process.wait()
    os.close(parent)
    return seen.decode()


@pytest.mark.parametrize("width", [80, 50])
def test_list_tasks_fits(width: int) -> None:
    lines = in_terminal("list", "tasks", width=width).split("\r\n")
    assert max(map(len, lines)) <= width
    assert lines[1].split()[:2] == ["vqav2", "214,354"]


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), ("terminated", 143)])
def test_an_interrupted_run_says_how_far_and_what_to_type(
    stop: Any, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--model", "vlmamba-tiny", "--tasks", "pope", "--data", "samples", "--out", "a folder"]

    def evaluate(*arguments: Any, progress: Progress, **options: Any) -> None:
        progress.start(16, 200, 88)
        progress.advance(3, 54, 0)
        raise Stopped(15) if stop == "terminated" else stop

    monkeypatch.setattr("vlmamba_eval.run.evaluate", evaluate)
    monkeypatch.setattr("sys.argv", ["vlmamba-eval", *command])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert "Interrupted at 142 of 288 answers. They are safe" in said
    assert "vlmamba-eval --model vlmamba-tiny --tasks pope --data samples --out 'a folder'" in said


@pytest.mark.parametrize(
    ("command", "said"),
    [("bench", "begins anew"), ("judge", "Judgements so far are kept"), ("report", "Interrupted.\n")],
)
def test_no_command_promises_a_resumption_that_it_lacks(
    command: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(**options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["vlmamba-eval", command])
    monkeypatch.setattr(module.cli, "main", interrupted)
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 130
    assert said in capsys.readouterr().err


def test_completion_is_documented_and_knows_tasks_and_models() -> None:
    from click.shell_completion import ShellComplete

    complete = ShellComplete(cli, {}, "vlmamba-eval", "_VLMAMBA_EVAL_COMPLETE")

    def offered(*typed: str, last: str) -> set[str]:
        return {item.value for item in complete.get_completions(list(typed), last)}

    assert {"pope", "pope_9000"} <= offered("--tasks", last="po")
    assert "gqa,pope" in offered("--tasks", last="gqa,po")
    assert "vlmamba-tiny" in offered("--model", last="vlm")
    assert offered("score", "--task", last="mm") >= {"mme", "mmvet"}
    assert "llava-1.5-7b" in offered("report", "--baselines", last="llava-1.5-7")
    assert "_VLMAMBA_EVAL_COMPLETE" in CliRunner().invoke(cli, ["--help"]).output


def test_a_command_is_remembered_without_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmamba_eval.typed import command

    words = [
        "--model",
        "openai:x",
        "--model-option",
        "api_key=sk-1",
        "--model-option",
        "url=http://me:pw@host/v1",
        "a b",
    ]
    monkeypatch.setattr("sys.argv", ["vlmamba-eval", *words])
    assert command() == (
        "vlmamba-eval --model openai:x --model-option api_key=... --model-option url=http://...@host/v1 'a b'"
    )
    monkeypatch.setattr("sys.argv", ["train.py", "x"])
    assert command() == ""
