"""Is this the benchmark's list? Its size, its groups, its ids, and its words if a true copy of them was at hand."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from vlmamba_eval.task import Task
from vlmamba_eval.types import Sample


def list_problem(task: Task, samples: Sequence[Sample]) -> str:
    """What is not as the task declares it, in words; "" if nothing is."""
    info = task.info
    if len(samples) != info.questions:
        return f"expected {info.questions:,} questions ({info.split}), found {len(samples):,}"
    images = len({sample.image.key for sample in samples if sample.image is not None})
    if info.images is not None and images != info.images:
        return f"expected {info.images:,} images ({info.split}), found {images:,}"
    for sample in samples:
        if info.ids and not re.fullmatch(info.ids, sample.id):
            return f"{sample.where}: {sample.id!r} has not the form of {info.split}'s ids ({info.ids})"
    found = Counter(group for sample in samples for group in sample.groups)
    kinds = {_kind(group) for group in found}
    for group, expected in info.counts.items():
        if _kind(group) in kinds and found[group] != expected:
            return f"expected {expected:,} questions of {group} ({info.split}), found {found[group]:,}"
    if info.sha256 and identity(task, samples) not in info.sha256:
        return (
            f"the {len(samples):,} questions are not those of {info.split}: their sha256 differs from the declared one"
        )
    labelled = all(sample.target is not None for sample in samples)
    if info.labels_sha256 and labelled and identity(task, samples, labels=True) not in info.labels_sha256:
        return f"the gold labels are not those of {info.split}: their sha256 differs from the declared one"
    return ""


def identity(task: Task, samples: Iterable[Sample], *, labels: bool = False) -> str:
    """The sha256 of what identifies a list in every copy of it, in any order and with any white space.

    One line per sample: `task.identity`, whether there is a picture, and with `labels` its gold label.
    """
    lines = []
    for sample in samples:
        parts = task.identity(sample), str(sample.image is not None), str(sample.target) if labels else ""
        lines.append("\0".join(" ".join(part.split()) for part in parts))
    return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogatepass")).hexdigest()


def whose(task: Task, samples: Sequence[Sample]) -> str:
    """The task of the same benchmark whose whole list this is, one of the same protocol first; "" if there is none."""
    for other in _relatives(task):
        # Samples of a task of another make, as of a plug-in that reads the same folder, say nothing to this one.
        akin = isinstance(other, type(task)) or isinstance(task, type(other))
        known = (
            other.info.sha256 or other.info.counts or other.info.ids
        )  # a size alone, as of own lists, proves nothing
        if akin and known and other.info.questions == len(samples) and not list_problem(other, samples):
            return other.info.name
    return ""


def advice(task: Task, questions: int) -> str:
    """Which task to choose for a list of another size: by name, if that size is one of the same benchmark's lists."""
    for other in _relatives(task):
        if other.info.questions == questions != task.info.questions and other.info.protocol == task.info.protocol:
            return f"This is the size of {other.info.name}'s list: use --tasks {other.info.name}"
    return "Choose the task that stands for your list (vlmamba-eval list tasks)"


def _relatives(task: Task) -> list[Task]:
    """The other lists of a benchmark, which share its folder or its code; those of its protocol first."""
    from vlmamba_eval.registry import all_tasks

    mine = task.info
    related = [
        other
        for other in all_tasks().values()
        if other.info.name != mine.name and (set(other.info.folders) & set(mine.folders) or type(other) is type(task))
    ]
    return sorted(related, key=lambda other: other.info.protocol != mine.protocol)


def _kind(group: str) -> str:
    """Groups of one kind (`type/...`) are counted if a copy names them at all: LLaVA's files lack some."""
    return group.rpartition("/")[0]
