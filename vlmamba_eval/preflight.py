"""What a run would stumble over hours later, told before a model is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from vlmamba_eval.dataset import Dataset
from vlmamba_eval.fetch.plan import in_bytes, is_there
from vlmamba_eval.files import cannot_write
from vlmamba_eval.prepare import scoring_needs
from vlmamba_eval.types import DataError, ImageRef, StoreError

MISSING = "missing-images.txt"
PER_ANSWER = 500  # bytes of a short answer in all files of a run, besides its prompt


def preflight(datasets: Sequence[Dataset], out: Path, *, allow_missing_images: bool = False) -> list[str]:
    """What the user should know before these data sets are asked, one sentence each.

    The full list of missing pictures is written to `out`. Raises `DataError` for them, with the other sentences, unless
    they are allowed; `StoreError` if nothing can be written there.
    """
    notes = [f"{dataset.task.info.name}: {need}" for dataset in datasets for need in scoring_needs(dataset)]
    notes += _disk(datasets, out)
    missing = missing_images(datasets)
    try:
        written = _write(missing, out)
    except OSError as error:
        raise StoreError("\n".join([*notes, cannot_write(out, error)])) from None
    if missing:
        message = f"{_counted(datasets, missing)} All of them: {written}"
        if not allow_missing_images:
            raise DataError(
                "\n".join([*notes, message])
                + "\n--download fetches them, if their source is known (vlmamba-eval prepare shows it); with "
                "--allow-missing-images the run goes on, their questions fail and count as wrong."
            )
        notes.append(f"{message}\nTheir questions fail and count as wrong.")
    return notes


def missing_images(datasets: Sequence[Dataset]) -> list[ImageRef]:
    """Each picture that some question shows and that is not there, once, in the order of the questions."""
    images = {sample.image.key: sample.image for data in datasets for sample in data.samples if sample.image}
    return [image for image in images.values() if not is_there(image)]


def _counted(datasets: Sequence[Dataset], missing: Sequence[ImageRef]) -> str:
    lost = {image.key for image in missing}
    parts = []
    for dataset in datasets:
        shown = {sample.image.key for sample in dataset.samples if sample.image is not None}
        if here := len(shown & lost):
            parts.append(f"{dataset.task.info.name}: {here:,} of {len(shown):,} pictures are missing.")
    first = ", ".join(_place(image) for image in missing[:3])
    return " ".join([*parts, f"The first: {first}."])


def _place(image: ImageRef) -> str:
    return f"{image.path}/{image.member}" if image.member else image.path


def _write(missing: Sequence[ImageRef], out: Path) -> Path:
    path = out / MISSING
    if not missing:
        path.unlink(missing_ok=True)
        return path
    out.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{_place(image)}\n" for image in missing), encoding="utf-8", errors="surrogateescape")
    return path


def _disk(datasets: Sequence[Dataset], out: Path) -> list[str]:
    """A sentence if the answers hardly fit. It stops nothing: a run that resumes has some of them already."""
    prompts = sum(
        len(data.task.prompt(sample).encode(errors="replace")) for data in datasets for sample in data.samples
    )
    least = prompts + PER_ANSWER * sum(len(dataset.samples) for dataset in datasets)
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    return [f"{out}: all answers need about {in_bytes(least)}; {in_bytes(free)} are free."] if free < least else []
