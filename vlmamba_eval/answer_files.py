"""Answers that somebody else's program produced, scored into the same tables: a run without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vlmamba_eval.answers.cleaning import clean as cleaned
from vlmamba_eval.answers.cleaning import remarks
from vlmamba_eval.answers.join import Joined, join
from vlmamba_eval.answers.layouts import Saved, read_saved
from vlmamba_eval.dataset import Dataset
from vlmamba_eval.manifest import Imported, Manifest, task_identity
from vlmamba_eval.run import Outcome, conclude
from vlmamba_eval.store import Run
from vlmamba_eval.typed import command
from vlmamba_eval.types import Answer


def score_answers(
    dataset: Dataset,
    answers_file: Path,
    out: Path,
    name: str | None = None,
    *,
    clean: bool = False,
    note: Callable[[str], None] | None = None,
) -> Outcome:
    """Read a file or folder of answers, keep them as a run named `name`, and score them.

    Without a name the run takes the file's `model_id`, else the file's own name. With `clean`, special tokens,
    reasoning tags and outer white space are taken off before scoring, and the run is named so. What the user should
    know goes to `note`. Raises `DataError`.
    """
    rows, joined = _read(dataset, answers_file)
    texts = [answer.generation.text for answer in joined.answers.values() if answer.generation is not None]
    if not clean and (remark := remarks(texts)):
        joined.notes.append(remark)
    answers = {key: _clean(answer) if clean else answer for key, answer in joined.answers.items()}
    model = name or rows[0].model or answers_file.resolve().stem
    imported = Imported(model, _sha256(answers_file), cleaned=clean)
    manifest = Manifest(task_identity(dataset.task), dataset.identity, answers=imported)
    with Run(manifest.folder(out), manifest) as run:
        new = [answer for answer in answers.values() if answer.id not in run.answers]
        if new:
            where = str(answers_file.resolve())
            run.log(event="imported", data=dataset.source, answers=where, notes=joined.notes, command=command())
            run.append(new)
        outcome = conclude(dataset, run)
    if note is not None:
        for message in joined.notes:
            note(f"{dataset.task.info.title}: {message}")
    return outcome


def read_answer_file(dataset: Dataset, path: Path) -> dict[str, Answer]:
    """Anybody's answers by sample id: any layout of `answers.layouts`, joined as `answers.join` says. `DataError`."""
    return _read(dataset, path)[1].answers


def _read(dataset: Dataset, path: Path) -> tuple[list[Saved], Joined]:
    rows = list(read_saved(path))
    return rows, join(dataset, rows, str(path))


def _clean(answer: Answer) -> Answer:
    if answer.generation is None:
        return answer
    return replace(answer, generation=replace(answer.generation, text=cleaned(answer.generation.text)))


def _sha256(path: Path) -> str:
    """Of a file's content; of a folder's, file by file with their names."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")):
        line = f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
