"""A benchmark's samples as one run uses them: loaded, counted, limited, identified."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmamba_eval.archive import data_root
from vlmamba_eval.folder import Folder
from vlmamba_eval.hub import Hub, is_snapshot
from vlmamba_eval.identity import advice, list_problem, whose
from vlmamba_eval.manifest import DataIdentity, Limit
from vlmamba_eval.task import Task
from vlmamba_eval.types import DataError, Loaded, Mark, Sample, UsageError


@dataclass(frozen=True)
class Dataset:
    """The samples of one task in one run.

    `identity` goes into the manifest, its `marks` are the words that every table of the run must carry (SAMPLES,
    PARTIAL). `source` (`hub`, `samples`, or the absolute folder) does not, since data may be moved. `extra` is what
    belongs to the whole list (`Loaded`).
    """

    task: Task
    samples: list[Sample]
    identity: DataIdentity
    source: str = ""
    extra: Any = None

    @property
    def labelled(self) -> bool:
        """Whether every sample has a gold label, so that answers can be scored here."""
        return all(sample.target is not None for sample in self.samples)


def load_dataset(
    task: Task,
    where: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    allow_partial: bool = False,
) -> Dataset:
    """Load a task from `"hub"`, `"samples"` (the bundled scenes), a folder, or a local copy of the hub's data set.

    Another list than the declared one (`identity`) is refused or, with `allow_partial`, marked PARTIAL; so is a limited
    run. The whole list of another task is always refused, by that task's name.
    Raises `DataError`, or `UsageError` for a folder that is not there.
    """
    marks: list[Mark] = []
    revisions: dict[str, str] = {}
    if where == "hub":
        hub = Hub()
        loaded = read_hub(task, hub)
        revisions = dict(hub.revisions)
    else:
        root = samples_folder() if where == "samples" else data_root(where)
        bundled = root.resolve() == samples_folder().resolve()  # whatever they are called, they are no benchmark
        if not where or not root.is_dir():
            raise UsageError(
                f"--data {where or repr(where)}: no such folder. Give a folder, a tar file of one, `hub`, or `samples`."
            )
        if bundled and not has_samples(task):
            raise UsageError(
                f"No samples of {task.info.name} are bundled; `vlmamba-eval list tasks` shows which tasks have some."
            )
        loaded = read_hub(task, Hub(root)) if is_snapshot(root) else read_folder(task, root)
        if bundled:
            marks.append("SAMPLES")
    samples = loaded.samples
    if not samples:
        raise DataError(f"{task.info.name}: no questions found in {where}.")
    _refuse_duplicates(task, samples)
    if "SAMPLES" not in marks:
        problem = list_problem(task, samples)
        if problem and (name := whose(task, samples)):
            raise DataError(f"{task.info.name}: {problem}. This is the list of {name}: use --tasks {name}.")
        if problem and not allow_partial:
            raise DataError(
                f"{task.info.name}: {problem}. Numbers on another list are not comparable with published ones. "
                f"{advice(task, len(samples))}, fetch the official files again, or give --allow-partial to mark the "
                "result PARTIAL."
            )
        if problem:
            marks.append("PARTIAL")
    drawn = None
    if limit is not None and limit < len(samples):
        samples, drawn = limited(samples, limit, seed), Limit(limit, seed)
        if "PARTIAL" not in marks:
            marks.append("PARTIAL")
    identity = DataIdentity(len(samples), fingerprint(task, samples), tuple(marks), drawn, revisions)
    source = where if where in ("hub", "samples") else str(Path(where).resolve())
    return Dataset(task, samples, identity, source, loaded.extra)


def read_folder(task: Task, root: Path) -> Loaded:
    """The task's samples from the official release below a folder, or else from LLaVA's question file there."""
    info = task.info
    data = Folder(root, info.folders)
    if info.llava_file and not data.has(*info.files) and (path := data.find_optional(info.llava_file)):
        return task.load_llava(data, path)
    return task.load(data)


def read_hub(task: Task, hub: Hub) -> Loaded:
    """The task's samples from the hub's copy. Raises `DataError` if the hub holds no equal list."""
    if not task.info.hub:
        raise DataError(
            f"{task.info.name}: the hub holds no copy of this list. "
            "Give the folder with the official files: --data DIR (vlmamba-eval prepare shows which)."
        )
    return task.load_hub(hub)


def samples_folder() -> Path:
    """The data folder of the bundled samples."""
    return Path(__file__).parent / "tasks" / "samples" / "data"


def has_samples(task: Task) -> bool:
    """Whether samples of this task are bundled."""
    try:
        return bool(read_folder(task, samples_folder()).samples)
    except DataError:
        return False


def limited(samples: Sequence[Sample], limit: int, seed: int) -> list[Sample]:
    """A fair sample of at least `limit` questions: whole images, in an order drawn from the seed and their content.

    A larger limit contains a smaller one of the same seed. Samples keep their order.
    """
    images: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        images[sample.image.key if sample.image else f"text only: {sample.id}"].append(sample)

    def draw(key: str) -> bytes:
        # The first question's id, not the key: keys hold paths, and the draw must not depend on where the data lies.
        return hashlib.sha256(f"{seed}/{min(sample.id for sample in images[key])}".encode()).digest()

    taken: set[str] = set()
    for key in sorted(images, key=draw):
        if len(taken) >= limit:
            break
        taken.update(sample.id for sample in images[key])
    return [sample for sample in samples if sample.id in taken]


def fingerprint(task: Task, samples: Iterable[Sample]) -> str:
    """The sha256 of what is asked: each sample's id and prompt, in order of ids; neither paths nor labels."""
    digest = hashlib.sha256()
    for sample in sorted(samples, key=lambda sample: sample.id):
        digest.update(
            f"{sample.id}\0{task.prompt(sample)}\0{sample.image is not None}\1".encode("utf-8", "surrogatepass")
        )
    return digest.hexdigest()


def _refuse_duplicates(task: Task, samples: Iterable[Sample]) -> None:
    """Ids that only differ in white space at their ends, or in how Unicode spells a letter, are the same id."""
    seen: dict[str, Sample] = {}
    for sample in samples:
        other = seen.setdefault(unicodedata.normalize("NFC", sample.id).strip(), sample)
        if other is not sample:
            raise DataError(
                f"{sample.where or task.info.name}: question id {sample.id!r} occurs twice; the first, "
                f"{other.id!r}, is at {other.where or 'an earlier row'}. Ids must be unique: remove one of the rows."
            )
