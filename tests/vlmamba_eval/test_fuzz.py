"""Whatever stands in a file, a reader gives a typed error or reads it; never another exception, never a hang."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vlmamba_eval.answer_files import read_answer_file
from vlmamba_eval.dataset import Dataset, has_samples, load_dataset, samples_folder
from vlmamba_eval.registry import all_tasks, get_task
from vlmamba_eval.store import read_answers, read_manifest, read_scores, read_verdicts
from vlmamba_eval.task import Task
from vlmamba_eval.types import EvalError

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 10**30, 1.5, "", " ", "\x00", "\ud800", "\u202e", "../../x", "/etc/passwd", "a" * 5000,
    [], [[]], {}, {"a": []}, ["x"] * 20, "nan", "None", "=1+1", "9" * 5000, "\n", "yes", "A", [None], [1, "a"],
)  # fmt: skip
RAW = (
    b"", b"\xff\xfe", b"\x00" * 64, b"[" * 50_000, b'{"a": ' * 20_000, b"NaN", b'{"a": Infinity}', b"1" * 6000,
    b'{"a": 1, "a": 2}', b"\xef\xbb\xbf[]", b'"\\ud800"', b"PK\x03\x04", b"\x1f\x8b", b"<html>", b"{}\n{}\n", b"null",
)  # fmt: skip


def mutated(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """The value with something in it replaced, dropped, doubled, or put in another place."""
    if depth > 6 or rng.random() < 0.12:
        return rng.choice(ODD)
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        changed = dict(value)
        what = rng.random()
        if what < 0.2:
            del changed[key]
        elif what < 0.3:
            changed[rng.choice(["", "\ud800", "x" * 300])] = changed.pop(key)
        else:
            changed[key] = mutated(value[key], rng, depth + 1)
        return changed
    if isinstance(value, list) and value:
        place = rng.randrange(len(value))
        changed = list(value)
        what = rng.random()
        if what < 0.15:
            changed.insert(place, value[rng.randrange(len(value))])
        elif what < 0.25:
            del changed[place]
        else:
            changed[place] = mutated(value[place], rng, depth + 1)
        return changed
    return rng.choice(ODD)


def variants(content: bytes, name: str, rng: random.Random) -> Iterator[bytes]:
    """Endlessly, what could stand in a file in place of its content."""
    lines = content.split(b"\n")
    while True:
        kind = rng.random()
        if kind < 0.1:
            yield rng.choice(RAW)
        elif kind < 0.25:
            raw = bytearray(content)
            for _ in range(rng.randint(1, 4)):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            yield bytes(raw)
        elif kind < 0.35:
            yield content[: rng.randrange(len(content))]
        elif name.endswith((".tsv", ".txt")) or kind < 0.4:
            place = rng.randrange(len(lines))
            cells = lines[place].split(b"\t")
            cells[rng.randrange(len(cells))] = json.dumps(rng.choice(ODD)).encode()
            yield b"\n".join([*lines[:place], b"\t".join(cells), *lines[place + 1 :]])
        else:
            try:
                yield json.dumps(mutated(json.loads(content), rng)).encode()
            except ValueError:  # JSON lines
                place = rng.randrange(len(lines))
                try:
                    row = json.dumps(mutated(json.loads(lines[place] or b"{}"), rng)).encode()
                except ValueError:
                    row = rng.choice(RAW)
                yield b"\n".join([*lines[:place], row, *lines[place + 1 :]])


TASKS = [task for task in all_tasks().values() if has_samples(task)]


def annotation_files(task: Task) -> list[Path]:
    """The sample files of a benchmark that are text, relative to the samples' folder."""
    root = samples_folder()
    folders = [root / name for name in task.info.folders if (root / name).is_dir()]
    kinds = (".json", ".jsonl", ".tsv", ".txt")
    return sorted({p.relative_to(root) for folder in folders for p in folder.rglob("*") if p.suffix in kinds})[:6]


def readable(error: EvalError) -> None:
    """A message that a person can read: there, and not a page of what stood in the file."""
    if not 10 < len(str(error)) < 4_000:
        raise AssertionError(f"a message of {len(str(error))} characters: {error!s:.300}") from error


def loads_or_says_why(task: Task, folder: Path) -> None:
    try:
        dataset = load_dataset(task, str(folder), allow_partial=True)
    except EvalError as error:
        readable(error)
        return
    for sample in dataset.samples[:50]:
        task.prompt(sample)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.info.name)
def test_no_annotation_file_brings_a_reader_down(task: Task, tmp_path: Path, fuzz_rounds: int) -> None:
    rng = random.Random(task.info.name)
    files = annotation_files(task)
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(samples_folder() / file, tmp_path / file)
    for file in files:
        content = (tmp_path / file).read_bytes()
        source = variants(content, file.name, rng)
        for _ in range(fuzz_rounds):
            (tmp_path / file).write_bytes(next(source))
            loads_or_says_why(task, tmp_path)
        (tmp_path / file).write_bytes(content)


@pytest.fixture(scope="module")
def pope() -> Dataset:
    return load_dataset(get_task("pope"), "samples")


def test_no_answer_file_brings_a_reader_down(pope: Dataset, tmp_path: Path, fuzz_rounds: int) -> None:
    rng = random.Random(1)
    rows = [{"question_id": s.answer_key, "prompt": pope.task.prompt(s), "text": "yes"} for s in pope.samples[:20]]
    source = variants("".join(json.dumps(row) + "\n" for row in rows).encode(), "answers.jsonl", rng)
    for _ in range(8 * fuzz_rounds):
        (tmp_path / "answers.jsonl").write_bytes(next(source))
        try:
            read_answer_file(pope, tmp_path / "answers.jsonl")
        except EvalError as error:
            readable(error)


def test_no_run_on_disk_brings_a_reader_down(pope: Dataset, tmp_path: Path, fuzz_rounds: int) -> None:
    from vlmamba_eval.model_adapters.constant import Constant
    from vlmamba_eval.run import evaluate

    [outcome] = evaluate(Constant("yes"), [pope], tmp_path)
    rng = random.Random(2)
    for name in ("manifest.json", "answers.jsonl", "scores.json", "verdicts.jsonl", "DONE"):
        path = outcome.folder / name
        content = path.read_bytes()
        source = variants(content, name, rng)
        for _ in range(2 * fuzz_rounds):
            path.write_bytes(next(source))
            for read in (read_manifest, read_answers, read_scores, lambda folder: list(read_verdicts(folder))):
                try:
                    read(outcome.folder)
                except EvalError as error:
                    readable(error)
        path.write_bytes(content)


@pytest.fixture
def fuzz_rounds(request: pytest.FixtureRequest) -> int:
    """A few in the usual suite; `pytest -m slow` takes many."""
    return 300 if "slow" in (request.config.getoption("-m") or "").replace("not slow", "") else 8
