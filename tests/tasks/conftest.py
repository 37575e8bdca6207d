"""What the benchmarks' tests share: golden cases, the scores of a set of answers, and real files if they are there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from vlmamba_eval.dataset import Dataset
from vlmamba_eval.hub import Hub
from vlmamba_eval.manifest import DataIdentity
from vlmamba_eval.rows import Row
from vlmamba_eval.score import grade
from vlmamba_eval.stats import summarise
from vlmamba_eval.task import Task
from vlmamba_eval.types import Answer, Generation, ImageRef, Loaded, Sample

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def golden() -> Callable[[str], list[dict[str, Any]]]:
    """The lines of a file in `golden/`."""

    def read(name: str) -> list[dict[str, Any]]:
        text = (HERE / "golden" / f"{name}.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line]

    return read


@pytest.fixture(scope="session")
def score() -> Callable[..., dict[tuple[str, str], float]]:
    """Score answer texts by sample id: (metric, "all" or its category or split) -> value, NaN if undefined."""

    def run(
        task: Task, samples: Sequence[Sample] | Loaded, texts: Mapping[str, str], extra: Any = None
    ) -> dict[tuple[str, str], float]:
        answers = {key: Answer(key, Generation(text, "", 0, "eos")) for key, text in texts.items()}
        values: dict[tuple[str, str], float] = {}
        loaded = samples if isinstance(samples, Loaded) else Loaded(list(samples), extra)
        dataset = Dataset(task, loaded.samples, DataIdentity(len(loaded.samples), ""), extra=loaded.extra)
        for row in summarise(task, grade(dataset, answers), loaded.extra, replicates=2):
            group = row.category if row.category != "all" else "all" if row.split == task.info.split else row.split
            values[row.metric, group] = math.nan if row.value is None else row.value
        return values

    return run


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder with real question and answer files, for replays; the test is skipped if it is not there."""
    folder = Path(os.environ.get("VLMAMBA_REAL", HERE.parents[2] / "shared" / "real"))
    if not folder.is_dir():
        pytest.skip("no real files: set VLMAMBA_REAL")
    return folder


@pytest.fixture(scope="session")
def samples_folder() -> Path:
    """The data folder of the bundled samples."""
    return HERE.parents[1] / "tasks" / "samples" / "data"


class TableHub(Hub):
    """The hub without a network: rows held in memory, under (data set, configuration, split)."""

    def __init__(self, tables: Mapping[tuple[str, str | None, str], Sequence[Mapping[str, Any]]]) -> None:
        super().__init__()
        self.tables = tables

    def rows(self, dataset: str, split: str, *, config: str | None = None, image: str | None = None) -> Iterator[Row]:
        for i, values in enumerate(self.tables[dataset, config, split]):
            where = f"{dataset} ({split}) row {i}"
            held = {image: ImageRef(f"{dataset}/{config}/{split}/{i}", where)} if image else {}
            yield Row({**values, **held}, where)


@pytest.fixture(scope="session")
def hub() -> Callable[..., Hub]:
    return TableHub


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Write a file below a fresh data folder: text as it is, bytes as they are, a list as JSON lines, else JSON."""

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list) and name.endswith("l"):
            content = "".join(json.dumps(row) + "\n" for row in content)
        elif not isinstance(content, str | bytes):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write
