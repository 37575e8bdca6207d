"""A run that dies at any call, on any byte, or whose disk fails at any call ends, run again, with the same bytes.

A disk that forgets what it was told to keep is not tried: `fsync` does nothing here, what calls it is held by
`test_store`.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image

from tests.toys import ToyAdapter, ToyTask, in_a_child, write_toy_data
from vlmamba_eval import score
from vlmamba_eval.dataset import Dataset, load_dataset
from vlmamba_eval.run import evaluate, manifest_of
from vlmamba_eval.stats import summarise
from vlmamba_eval.store import read_answers
from vlmamba_eval.types import EvalError

Moment = Literal["before", "within", "after"]

DERIVED = {"manifest.json", "answers.jsonl", "scores.json", "verdicts.jsonl", "DONE"}
BESIDES = {"telemetry.jsonl", ".owner", ".lock"}
CALLS = ("fsync", "replace", "ftruncate", "open", "chmod", "mkdir", "unlink")  # of os; files' own writes besides


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """What costs time and is not tried here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(score, "summarise", functools.partial(summarise, replicates=2))
        yield


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """Two tasks that share six pictures, so that a kill can fall between their appends."""
    data = tmp_path_factory.mktemp("data")
    for name in ("toy", "twin"):
        write_toy_data(data, name)
        for i in range(6):
            path = data / name / "images" / f"{i}.png"
            with Image.open(path) as image:
                image.putpixel((7, 7), (i, i, i))
                image.save(path)
    return [load_dataset(ToyTask(name), str(data)) for name in ("toy", "twin")]


def answer(datasets: list[Dataset], out: Path, adapter: ToyAdapter | None = None) -> None:
    evaluate(adapter or ToyAdapter(), datasets, out, batch_tokens=60)


def answer_the_rest(datasets: list[Dataset], out: Path) -> None:
    """Run again, and see that only what has no answer on the disk is asked, and nothing else lies there afterwards."""
    adapter = ToyAdapter()
    left: set[tuple[str, str]] = set()
    for dataset in datasets:
        folder = manifest_of(dataset, adapter.info, "generate").folder(out)
        kept = {key for key, answer in read_answers(folder).items() if answer.failure is None}
        left |= {(Path(s.image.path).name, s.question) for s in dataset.samples if s.image and s.id not in kept}
    answer(datasets, out, adapter)
    assert len(adapter.asked) == len(left)
    assert {path.name for path in out.rglob("*") if path.is_file()} <= DERIVED | BESIDES


def files(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.name in DERIVED
    }  # fmt: skip


class Disk:
    """Counts the calls that change the disk, and does something before, after or in the middle of one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, moment: Moment, then: Callable[[], Any]) -> None:
        self.names: list[str] = []
        self.at, self.moment, self.then = at, moment, then
        for name in CALLS:
            patch.setattr(os, name, functools.partial(self.call, name, getattr(os, name)))
        for owner, name in ((builtins, "open"), (os, "fdopen")):
            patch.setattr(owner, name, functools.partial(self.open, getattr(owner, name)))

    def call(self, name: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self.names.append(name)
        now = len(self.names) == self.at
        if now and self.moment == "within":
            if name == "write":  # half of it
                call(arguments[0][: len(arguments[0]) // 2])
            self.then()
        if now and self.moment == "before":
            self.then()
        try:
            return call(*arguments, **named)
        finally:  # also of one that fails, as mkdir does for a folder that is there
            if now and self.moment == "after":
                self.then()

    def open(self, really: Callable[..., Any], file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if not set(mode) & set("wax+"):
            return really(file, mode, *rest, **named)
        opened = self.call("open", really, file, mode, *rest, **named)
        return _Written(opened, self)


class _Written:
    """A file opened for writing, whose writes are counted and reach the disk at once."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, content: Any) -> int:
        def through(content: Any) -> int:
            written = self._file.write(content)
            self._file.flush()
            return written

        return self._disk.call("write", through, content)

    def writelines(self, lines: Iterable[Any]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *problem: object) -> None:
        self._file.close()


class Case:
    """A beginning, and what an undisturbed run makes of it."""

    def __init__(self, datasets: list[Dataset], folder: Path, begun: bool) -> None:
        self.datasets, self.folder = datasets, folder
        self.beginning = folder / "beginning"
        self.beginning.mkdir(parents=True)
        if begun:  # failed answers are tried again, and the files put in order
            answer(datasets, self.beginning, ToyAdapter(poison="(2)"))
        whole = self.start("whole")
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, 0, "before", lambda: None)
            answer(datasets, whole)
        self.calls = disk.names
        self.whole = files(whole)
        assert len(self.whole) == 10

    def start(self, name: str) -> Path:
        return Path(shutil.copytree(self.beginning, self.folder / name))

    def ends(self, out: Path, what: str) -> None:
        """Run again, it ends as if nothing had happened."""
        answer_the_rest(self.datasets, out)
        assert files(out) == self.whole, what
        shutil.rmtree(out)


@pytest.fixture(scope="module", params=[False, True], ids=["from nothing", "after failures"])
def case(datasets: list[Dataset], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Case:
    return Case(datasets, tmp_path_factory.mktemp("case"), begun=request.param)


def test_every_kind_of_call_is_made(case: Case) -> None:
    """Of what follows."""
    assert {*CALLS, "write"} - {*case.calls} <= {"unlink"}
    assert case.calls.count("write") >= 24


@pytest.mark.slow
def test_killed_at_any_call_to_the_disk_a_run_ends_with_the_same_bytes(case: Case) -> None:
    kills = 0
    for at, name in enumerate(case.calls, 1):
        moments: tuple[Moment, ...] = ("before", "after", "within")
        for moment in moments[: 3 if name == "write" else 2]:
            out = case.start("killed")

            def killed(at: int = at, moment: Moment = moment, out: Path = out) -> None:
                Disk(pytest.MonkeyPatch(), at, moment, lambda: os._exit(9))
                answer(case.datasets, out)

            assert in_a_child(killed) == 9
            kills += 1
            case.ends(out, f"killed {moment} call {at}, {name}")
    print(f"{kills} kills")
    assert kills > 250


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_disk_that_fails_at_any_call_gives_a_typed_error_and_loses_nothing(case: Case, code: int) -> None:
    said: list[str] = []

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    for at, name in enumerate(case.calls, 1):
        out = case.start("failed")
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, at, "within", fail)
            try:
                answer(case.datasets, out)
            except EvalError as error:
                said.append(str(error))
        case.ends(out, f"{os.strerror(code)} at call {at}, {name}")
    print(f"{len(case.calls)} faults, {len(said)} of them said")
    assert len(said) > len(case.calls) / 2
    assert all("cannot be" in message for message in said)


@pytest.mark.slow
def test_cut_off_at_any_byte_answers_are_completed_to_the_same_bytes(datasets: list[Dataset], tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer(datasets, out)
    whole = files(out)
    path = next(path for path in out.rglob("answers.jsonl") if "toy" in path.parts)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        answer_the_rest(datasets, out)
        assert files(out) == whole, f"cut off at byte {size}"
    print(f"{len(content)} cuts")


class Slow(ToyAdapter):
    def generate(self, batch: Any) -> Any:
        time.sleep(0.01)
        return super().generate(batch)


@pytest.mark.slow
def test_killed_at_random_times_a_run_ends_with_the_same_bytes(datasets: list[Dataset], tmp_path: Path) -> None:
    begun = time.monotonic()
    answer(datasets, tmp_path / "whole", Slow())
    took = time.monotonic() - begun
    whole = files(tmp_path / "whole")
    rng = random.Random(0)
    killed = 0
    for round_ in range(100):
        out = tmp_path / f"killed {round_}"
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                answer(datasets, out, Slow())
            os._exit(0)
        time.sleep(rng.random() * took)
        os.kill(child, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        answer_the_rest(datasets, out)
        assert files(out) == whole
    print(f"{killed} of 100 were under way")
    assert killed > 50
