"""From run folders to `report.html`: reads what the page shows, and the annotation files if they are still there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmamba_eval.baselines import Published
from vlmamba_eval.compare import Comparison, Opener, Side, compare
from vlmamba_eval.files import write_atomic
from vlmamba_eval.report import html
from vlmamba_eval.report.cost import read_telemetry
from vlmamba_eval.report.questions import Answers
from vlmamba_eval.report.tables import RunScores, load_runs, rows_of_models
from vlmamba_eval.report.thumbnails import Choice
from vlmamba_eval.store import read_answers, read_verdicts
from vlmamba_eval.types import DataError, ImageRef, UsageError


def write_page(
    folders: Sequence[Path],
    path: Path,
    *,
    baselines: Sequence[Published] = (),
    pictures: Choice = "embed",
    data: str | None = None,
    command: str = "",
) -> Path:
    """Write the page about some run folders to `path`, atomically; its absolute path. Raises `StoreError`."""
    content = page_of(folders, path.parent, baselines=baselines, pictures=pictures, data=data, command=command)
    write_atomic(path, content)
    return path.resolve()


def page_of(
    folders: Sequence[Path],
    place: Path,
    *,
    baselines: Sequence[Published] = (),
    pictures: Choice = "embed",
    data: str | None = None,
    command: str = "",
) -> str:
    """The page about some run folders as HTML, to be kept in the folder `place`.

    Pictures and paired intervals need the annotation files: `data`, or where each run read them. Without them the page
    says so and has the rest. Raises `StoreError` for a damaged run.
    """
    runs = [load_runs([folder], place)[0] for folder in folders]
    places = dict(zip((run.source for run in runs), folders, strict=True))
    answers, telemetry = {}, {}
    for run in runs:
        folder = places[run.source]
        sent = {key: answer.generation.prompt for key, answer in read_answers(folder).items() if answer.generation}
        answers[run.source] = Answers(list(read_verdicts(folder)), sent)
        telemetry[run.source] = read_telemetry(folder)
    opener = Opener(data)
    compared, why = _compared(runs, places, opener)
    return html.page(
        runs,
        answers,
        baselines=baselines,
        compared=compared,
        unpaired=why,
        images=_images(runs, places, opener, answers) if pictures != "none" else {},
        pictures=pictures,
        folder=place,
        telemetry=telemetry,
        command=command,
    )


def _compared(runs: Sequence[RunScores], places: dict[str, Path], opener: Opener) -> tuple[Comparison | None, str]:
    """Each model against the first that has the task, and why some could not be compared."""
    sides: list[Side] = []
    reasons: list[str] = []
    for name, found in rows_of_models(runs).items():
        members = {}
        for task, run in found.items():
            others = sum(task == other.task for other in runs)
            if others > 1 and run.scores.scores:
                try:
                    members[task] = (opener.open(places[run.source]),)
                except (DataError, UsageError) as error:
                    reasons.append(str(error))
        if members:
            sides.append(Side(name, members))
    if len(sides) < 2:
        return None, " ".join(dict.fromkeys(reasons))
    comparison = compare(sides, refused=reasons)
    return (comparison if comparison.pairs else None), " ".join(dict.fromkeys(reasons))


def _images(
    runs: Sequence[RunScores], places: dict[str, Path], opener: Opener, answers: dict[str, Answers]
) -> dict[str, ImageRef]:
    """The pictures that the verdicts name, by the name that they have there; the data may have moved since."""
    images: dict[str, ImageRef] = {}
    for run in runs:
        rows = [row for row in answers[run.source].verdicts if row["image"] is not None and row["image"] not in images]
        if not rows:
            continue
        try:
            dataset = opener.dataset(places[run.source], run.manifest)
        except (DataError, UsageError):
            continue
        by_id = {sample.id: sample.image for sample in dataset.samples if sample.image}
        images |= {row["image"]: by_id[row["id"]] for row in rows if row["id"] in by_id}
    return images
