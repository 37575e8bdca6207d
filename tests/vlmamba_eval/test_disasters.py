"""A run that dies at any call, on any byte, or whose disk fails at any call ends, run again, with the same bytes."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.toys import ToyAdapter, ToyTask, in_a_child, write_toy_data
from vlmamba_eval.dataset import Dataset, load_dataset
from vlmamba_eval.run import evaluate
from vlmamba_eval.types import EvalError

DERIVED = ("manifest.json", "answers.jsonl", "scores.json", "verdicts.jsonl", "DONE")
CALLS = ("fsync", "replace", "ftruncate", "open", "chmod", "write")  # of os, and what writes through them


def sets(data: Path) -> list[Dataset]:
    """Two tasks that share their pictures, so that a kill can fall between their appends."""
    return [load_dataset(ToyTask(name), str(data)) for name in ("toy", "twin")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("toy", "twin"):
        write_toy_data(tmp_path / "data", name)
    return tmp_path / "data"


def answer(data: Path, out: Path) -> None:
    evaluate(ToyAdapter(), sets(data), out, batch_tokens=60)


def files(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.name in DERIVED
    }  # fmt: skip


class Disk:
    """Counts the calls that reach the disk, and does something at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, then: Callable[[], Any]) -> None:
        self.calls = 0
        for name in CALLS:
            monkeypatch.setattr(os, name, self._around(getattr(os, name), at, then))

    def _around(self, call: Callable[..., Any], at: int, then: Callable[[], Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == at:
                then()
            return call(*arguments, **named)

        return counted


def n_calls(data: Path, out: Path) -> int:
    """How many calls an undisturbed run makes."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, 0, lambda: None)
        answer(data, out)
        return disk.calls


@pytest.mark.slow
def test_killed_at_any_call_to_the_disk_a_run_ends_with_the_same_bytes(data: Path, tmp_path: Path) -> None:
    calls = n_calls(data, tmp_path / "whole")
    whole = files(tmp_path / "whole")
    assert len(whole) == 10
    assert calls > 60
    for at in range(1, calls + 1):
        out = tmp_path / f"killed {at}"

        def killed(at: int = at, out: Path = out) -> None:
            Disk(pytest.MonkeyPatch(), at, lambda: os._exit(9))
            answer(data, out)

        assert in_a_child(killed) == 9
        answer(data, out)
        assert files(out) == whole, f"killed at call {at}"
        assert not list(out.rglob(".*.json*.*")), f"killed at call {at}, a temporary file was left"


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_disk_that_fails_at_any_call_gives_a_typed_error_and_loses_nothing(
    data: Path, tmp_path: Path, code: int
) -> None:
    calls = n_calls(data, tmp_path / "whole")
    whole = files(tmp_path / "whole")

    said: list[str] = []

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    for at in range(1, calls + 1):
        out = tmp_path / f"failed {at}"
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, at, fail)
            try:
                answer(data, out)
            except EvalError as error:
                said.append(str(error))
        answer(data, out)
        assert files(out) == whole, f"failed at call {at}"
    assert said
    assert all("cannot be" in message for message in said)


@pytest.mark.slow
def test_cut_off_at_any_byte_answers_are_completed_to_the_same_bytes(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer(data, out)
    whole = files(out)
    path = next(path for path in out.rglob("answers.jsonl") if "toy" in path.parts)
    content = path.read_bytes()
    for size in range(0, len(content), 11):
        path.write_bytes(content[:size])
        answer(data, out)
        assert files(out) == whole, f"cut off at byte {size}"


@pytest.mark.slow
def test_killed_at_random_times_a_run_ends_with_the_same_bytes(data: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom tests.toys import ToyAdapter\n"
        "from tests.vlmamba_eval.test_disasters import evaluate, sets\n"
        "class Slow(ToyAdapter):\n    def generate(self, batch):\n        time.sleep(0.01)\n"
        "        return super().generate(batch)\n"
        "print('here', flush=True)\n"
        "evaluate(Slow(), sets(Path(sys.argv[1])), Path(sys.argv[2]), batch_tokens=60)\n"
    )
    answer(data, tmp_path / "whole")
    whole = files(tmp_path / "whole")
    rng = random.Random(0)
    for round_ in range(40):
        out = tmp_path / f"killed {round_}"
        with subprocess.Popen([sys.executable, "-c", code, data, out], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.random() * 0.4)
            child.kill()
        answer(data, out)
        assert files(out) == whole
