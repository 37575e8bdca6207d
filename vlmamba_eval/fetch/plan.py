"""What the questions of a task need, what of it is missing in a data folder, and where that comes from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from vlmamba_eval.archive import data_root
from vlmamba_eval.dataset import Dataset, load_dataset
from vlmamba_eval.sources import ByHand, File, Pictures, Terms
from vlmamba_eval.types import DataError, EvalError, UsageError

if TYPE_CHECKING:
    from vlmamba_eval.task import Task
    from vlmamba_eval.types import ImageRef

SHARE = 4  # pictures are fetched one by one up to this part of their zip: 1 / SHARE of its bytes


@dataclass(frozen=True)
class Wanted:
    """A file that is missing: where it belongs, and how its source is declared. `size` is what is declared, about."""

    path: Path
    source: File | Pictures
    name: str = ""  # of a picture, below its picture folder

    @property
    def size(self) -> int:
        return self.source.size


@dataclass
class Need:
    """One task in one data folder.

    `dataset` is None while its questions can't be read; `error` says why. `expected` pictures are then not known by
    name. `by_hand` is what no program can fetch.
    """

    task: Task
    dataset: Dataset | None = None
    error: EvalError | None = None
    pictures: int = 0
    missing: list[Wanted] = field(default_factory=list)
    unsourced: list[ImageRef] = field(default_factory=list)
    expected: int = 0
    by_hand: list[ByHand] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Whether a run finds all questions and pictures, and gold labels if it is scored here."""
        if self.dataset is None or self.missing_pictures:
            return False
        return self.dataset.labelled or self.task.info.scored != "here"

    @property
    def problem(self) -> str:
        return str(self.error or "")

    @property
    def missing_pictures(self) -> int:
        """How many pictures of known names are missing."""
        return len(self.unsourced) + sum(isinstance(wanted.source, Pictures) for wanted in self.missing)

    @property
    def size(self) -> int:
        """About how many bytes have to come, as declared."""
        mean = next((s.size for s in self.task.info.sources if isinstance(s, Pictures)), 0)
        return sum(wanted.size for wanted in self.missing) + self.expected * mean


def look(task: Task, where: str, **load: Any) -> Need:
    """Read the task's questions from a data folder and look for every file that it needs.

    `load` goes to `load_dataset`: with a limit, only its questions' pictures are needed.
    """
    need = Need(task)
    info = task.info
    root = data_root(where)
    by_hand = [source for source in info.sources if isinstance(source, ByHand)]
    files = [
        Wanted(root / source.path, source)
        for source in info.sources
        # Not `Path.exists`, which raises if a folder may not be entered; what is in there counts as absent.
        if isinstance(source, File) and not os.path.exists(root / source.path)
    ]
    try:
        need.dataset = load_dataset(task, where, **load)
    except (DataError, UsageError) as error:
        need.error = error
        need.missing = files
        if any(isinstance(source, Pictures) for source in info.sources):
            need.expected = info.images or 0
        need.by_hand = by_hand
        return need
    if info.scored == "here" and not need.dataset.labelled:
        need.missing += files  # the official file has the gold labels that LLaVA's lacks
    images = {sample.image.key: sample.image for sample in need.dataset.samples if sample.image is not None}
    need.pictures = len(images)
    sources = [source for source in info.sources if isinstance(source, Pictures)]
    for image in images.values():
        if is_there(image):
            continue
        name = PurePosixPath(Path(image.path).relative_to(image.folder)).as_posix() if image.folder else ""
        source = next((source for source in sources if name.startswith(source.prefix)), None)
        if source is None or not name:
            need.unsourced.append(image)
        else:
            need.missing.append(Wanted(Path(image.path), source, name))
    if need.unsourced:
        need.by_hand = by_hand
    return need


def is_there(image: ImageRef) -> bool:
    """Whether a picture can be opened without a network (what it holds is not looked at)."""
    if image.member:
        from vlmamba_eval.archive import InArchive

        return (InArchive(image.path) / image.member).is_file()
    return not image.path or Path(image.path).exists()


# =============================================================================
# From where
# =============================================================================


@dataclass(frozen=True)
class Batch:
    """Missing files of one source: fetched together, shown on one line."""

    source: File | Pictures
    wanted: tuple[Wanted, ...]

    @property
    def size(self) -> int:
        return self.source.size * len({wanted.name for wanted in self.wanted})

    @property
    def terms(self) -> Terms:
        return self.source.terms

    @property
    def one_by_one(self) -> bool:
        """Whether the pictures' own addresses are cheaper than the directory of their zip."""
        source = self.source
        if not isinstance(source, Pictures) or not source.each:
            return False
        return not source.url or self.size * SHARE < source.zip_size

    @property
    def where(self) -> str:
        """The address to show."""
        source = self.source
        if isinstance(source, File):
            return f"{source.member} in {source.url}" if source.member else source.url
        return source.each.replace("{name}", "...") if self.one_by_one else f"members of {source.url}"

    @property
    def what(self) -> str:
        if isinstance(self.source, File):
            return self.source.path
        n = len({wanted.name for wanted in self.wanted})
        return f"{n:,} picture{'s' if n != 1 else ''}"


def batches(needs: Iterable[Need]) -> list[Batch]:
    """What is missing, by source; equal files of several tasks are together."""
    by_source: dict[File | Pictures, dict[Path, Wanted]] = {}
    for need in needs:
        for wanted in need.missing:
            by_source.setdefault(wanted.source, {})[wanted.path] = wanted
    return [Batch(source, tuple(wanted.values())) for source, wanted in by_source.items()]


def free_bytes(folder: Path) -> int:
    """Free disk space where a folder is, or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def announce(needs: Sequence[Need], root: Path) -> list[str]:
    """The plan in words, before anything is fetched; sizes are those that the declarations name."""
    lines = []
    total = 0
    for batch in batches(needs):
        total += batch.size
        lines.append(f"  {batch.what}: {about(batch.size)} from {batch.where}")
        lines.append(f"      terms: {batch.terms.text}{f' ({batch.terms.url})' if batch.terms.url else ''}")
    for need in needs:
        source = next((s for s in need.task.info.sources if isinstance(s, Pictures)), None)
        if need.expected and source is not None and any(isinstance(w.source, File) for w in need.missing):
            size = need.expected * source.size
            total += size
            lines.append(
                f"  pictures of {need.task.info.name}: {need.expected:,}, {about(size)} from "
                f"{source.each.replace('{name}', '...') or source.url}, when its questions are there"
            )
            lines.append(f"      terms: {source.terms.text}{f' ({source.terms.url})' if source.terms.url else ''}")
    if lines:
        lines.append(f"Together {about(total)}; {in_bytes(free_bytes(root))} are free in {root}.")
    return lines


def about(size: int) -> str:
    return f"about {in_bytes(size)}" if size else "size not declared"


def in_bytes(size: float) -> str:
    """A number of bytes for people: 3 digits, decimal units as servers and disks count."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:,.0f} {unit}" if size >= 100 or unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError
