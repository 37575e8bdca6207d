"""What a benchmark needs, what is there, and what is missing and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlmamba_eval.dataset import Dataset, load_dataset
from vlmamba_eval.types import DataError, UsageError

if TYPE_CHECKING:
    from vlmamba_eval.task import Task


@dataclass(frozen=True)
class State:
    """One benchmark's state: lines to print, and whether a run would find everything."""

    lines: list[str]
    ready: bool


def inspect(task: Task, where: str) -> State:
    """Load a task's questions, check counts and hash, and look for every picture. On the hub this downloads them."""
    info = task.info
    lines = [f"{info.name}: {info.title}, {info.split}: {info.questions:,} questions"]
    try:
        dataset = load_dataset(task, where)
    except (DataError, UsageError) as error:
        lines += [f"  {line}" for line in str(error).splitlines()]
        return State([*lines, *_sources(task)], ready=False)
    images = {sample.image.key: sample.image for sample in dataset.samples if sample.image is not None}
    lines.append(f"  questions: {len(dataset.samples):,}, {_checked(dataset)}")
    if not dataset.labelled:
        lines.append("  gold labels: not here; answers can be generated, and scored by the benchmark's server")
    missing = [image.path for image in images.values() if image.path and not Path(image.path).exists()]
    lines.append(f"  images: {len(images) - len(missing):,} of {len(images):,}")
    if missing:
        lines.append(f"  missing, for example: {missing[0]}")
        return State([*lines, *_sources(task)], ready=False)
    return State([*lines, "  ready: a run needs no network"], ready=True)


def _checked(dataset: Dataset) -> str:
    sha = dataset.identity.sha256
    if "SAMPLES" in dataset.identity.marks:
        return f"the bundled samples, compared with nothing, sha256 {sha[:16]}..."
    checked = "as declared" if dataset.task.info.sha256 else "none is declared to compare with"
    return f"count as declared, sha256 {sha[:16]}... ({checked})"


def _sources(task: Task) -> list[str]:
    lines = ["  where it comes from:", *(f"    {source}" for source in task.info.sources)]
    if task.info.hub:
        lines.append(f"    or without files: --data hub ({task.info.hub})")
    return lines
