"""A run on disk: what decides its answers, the answers as they come, and files derived from them.

    runs/<model>/<task>/<key>/
        manifest.json     first: everything that decides the answers; `key` is its hash
        answers.jsonl     a journal: one line per question, flushed and synced
        telemetry.jsonl   times, host, versions: whatever may differ between equal runs
        scores.json       derived: a pure function of the answers and the annotation files
        verdicts.jsonl    derived: one line per question, what was read and what it is worth
        DONE              last: every question has its answer; it seals answers and scores by their sha256

Only one process at a time may write to a run.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import msgspec
from filelock import BaseFileLock, Timeout

from vlmamba_eval import journal
from vlmamba_eval.files import (
    cannot_write,
    read_typed,
    remove_leftovers,
    sync_folder,
    take_lock,
    write_atomic,
    write_json,
)
from vlmamba_eval.journal import Journal
from vlmamba_eval.manifest import FORMAT, Manifest, canonical_json, differences
from vlmamba_eval.strict_json import parse_json
from vlmamba_eval.types import Answer, Failure, Generation, Likelihood, Scores, StopReason, StoreError

MANIFEST, ANSWERS, TELEMETRY, SCORES, VERDICTS, DONE = (
    "manifest.json",
    "answers.jsonl",
    "telemetry.jsonl",
    "scores.json",
    "verdicts.jsonl",
    "DONE",
)

SHORT = 32  # characters: so short an answer is kept in memory once
REPEAT = "run the same evaluation (or `vlmamba-eval score`) again"
REWRITE = f"Delete it, then {REPEAT}: it is written anew, and no answer is lost."


@dataclass(frozen=True, slots=True)
class ScoresFile:
    """`scores.json`. `sha256` is that of the scores' canonical JSON: a value that was edited is noticed."""

    sha256: str
    scores: Scores
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Seal:
    """`DONE`: the sha256 of the two files that a finished run consists of."""

    answers: str
    scores: str
    format: int = FORMAT


class Run:
    """One run folder, opened for writing. Use as a context manager: it holds the run's lock.

    `answers` maps each answered sample id to its answer; failed ones are there too until they are tried again. The
    prompts that were sent are in the file alone.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.answers: dict[str, Answer] = {}
        self._lock: BaseFileLock | None = None
        self._journal = Journal(folder / ANSWERS)
        self._tried_again = False  # whether the file holds a failed answer beside its later try
        self._said: _Said = {}  # "yes" is kept in memory once

    def __enter__(self) -> Run:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = take_lock(self.folder / ".lock")
        except Timeout:
            owner = self.folder / ".owner"
            who = owner.read_text(errors="replace").strip() if owner.exists() else "another process"
            raise StoreError(
                f"{self.folder} is being written by {who}. Wait for it, stop it, or give another folder with --out."
            ) from None
        except OSError as error:
            if not (self.folder / DONE).exists():
                raise StoreError(cannot_write(self.folder, error)) from error
            self._check_manifest()  # finished, and nothing can be written: it can still be shown
            self.answers = _read_answers(self.folder, self._said)[0]
            return self
        try:
            remove_leftovers(self.folder)
            write_atomic(self.folder / ".owner", f"process {os.getpid()} on {socket.gethostname()}\n")
            self._check_manifest()
            self._journal.__enter__()
            self.answers, n_lines = _read_answers(self.folder, self._said)
            self._tried_again = n_lines > len(self.answers)
            sync_folder(self.folder)
        except BaseException as error:
            self.__exit__(None, None, None)
            if isinstance(error, OSError):
                raise StoreError(cannot_write(self.folder / ANSWERS, error)) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._journal.close()
        if self._lock is not None:
            self._lock.release()

    def _check_manifest(self) -> None:
        path = self.folder / MANIFEST
        if not path.exists():
            write_json(path, self.manifest)
            return
        found = read_manifest(self.folder)
        if canonical_json(found) != canonical_json(self.manifest):
            raise StoreError(
                f"{path} belongs to another configuration; it differs in:\n  "
                + "\n  ".join(differences(found, self.manifest))
                + "\nIts answers are not mixed with these. Give another folder with --out."
            )

    def append(self, answers: Sequence[Answer]) -> None:
        """Write answers, one line each, and return once they are on the disk. Raises `StoreError` (disk full)."""
        self._journal.append([_to_record(answer) for answer in answers])
        for answer in answers:
            self._tried_again |= answer.id in self.answers
            self.answers[answer.id] = self._bare(answer)

    def _bare(self, answer: Answer) -> Answer:
        """An answer without its prompt."""
        if answer.generation is None:
            return answer
        one = answer.generation
        return Answer(answer.id, _bare(one.text, one.n_tokens, one.stop, one.likelihoods, self._said), answer.failure)

    def settle(self, ids: Sequence[str]) -> None:
        """Put the answers into the order of `ids`, without failures that a later try mended.

        A run that was interrupted, or answered by many workers, so ends with the bytes of an undisturbed one. Nothing
        is written if they are in order. Raises `StoreError`.
        """
        order = [key for key in ids if key in self.answers]
        if self._tried_again or order != list(self.answers):
            self._journal.rewrite(self._lines(order))
            self.answers = {key: self.answers[key] for key in order}
            self._tried_again = False

    def _lines(self, order: Iterable[str]) -> Iterator[bytes]:
        """The last line of each of these answers."""
        starts, end = dict[str, int](), 0
        with open(self.folder / ANSWERS, "rb") as file:
            for line in file:
                starts[_decode(journal.whole(line[:-1])).id] = end
                end += len(line)
            for key in order:
                file.seek(starts[key])
                yield file.readline()

    def state(self, sample_id: str) -> Literal["ok", "missing", "error"]:
        """Whether a sample has its answer, none, or a failure."""
        answer = self.answers.get(sample_id)
        return "missing" if answer is None else "ok" if answer.failure is None else "error"

    def finish(self, scores: Scores, verdicts: Callable[[], Iterable[Mapping[str, Any]]], *, complete: bool) -> None:
        """Write the derived files, `DONE` last. `verdicts` gives the rows of its file, each time that it is called."""
        write_atomic(self.folder / VERDICTS, lambda: (json.dumps(row) + "\n" for row in verdicts()))
        write_json(self.folder / SCORES, ScoresFile(_sha256(canonical_json(scores).encode()), scores))
        self.seal(complete=complete)

    def seal(self, *, complete: bool) -> None:
        """Write `DONE` for a complete run, with the hashes of what it consists of; remove it otherwise."""
        if complete:
            write_json(
                self.folder / DONE, Seal(_file_sha256(self.folder / ANSWERS), _file_sha256(self.folder / SCORES))
            )
        else:
            try:
                (self.folder / DONE).unlink(missing_ok=True)
            except OSError as error:
                raise StoreError(cannot_write(self.folder / DONE, error)) from error

    def log(self, **event: Any) -> None:
        """Append to the telemetry, which no derived file reads. Raises `StoreError`."""
        path = self.folder / TELEMETRY
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            raise StoreError(cannot_write(path, error)) from error


# =============================================================================
# Reading a run
# =============================================================================


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a run folder. Raises `StoreError`."""
    missing = "Is this a run folder (runs/<model>/<task>/<key>)?"
    return read_typed(folder / MANIFEST, Manifest, format=FORMAT, missing=missing, remedy=REWRITE)


def read_scores(folder: Path) -> Scores:
    """The scores of a run folder. Raises `StoreError` if they, or a finished run's answers, were edited afterwards."""
    path = folder / SCORES
    missing = f"To have it written, {REPEAT}."
    found = read_typed(path, ScoresFile, format=FORMAT, missing=missing, remedy=REWRITE)
    if found.sha256 != _sha256(canonical_json(found.scores).encode()):
        raise StoreError(f"{path} was edited: its values are not those that were scored. {REWRITE}")
    if (folder / DONE).exists():
        seal = read_typed(folder / DONE, Seal, format=FORMAT, missing=missing, remedy=REWRITE)
        for name, sha256 in ((ANSWERS, seal.answers), (SCORES, seal.scores)):
            if _file_sha256(folder / name) != sha256:
                raise StoreError(
                    f"{folder / name} changed after the run was finished, so its scores can't be shown. "
                    f"Restore it from a copy, or {REPEAT} to have what is there scored."
                )
    return found.scores


def read_answers(folder: Path) -> dict[str, Answer]:
    """The answers of a run folder by sample id, without touching the file. Raises `StoreError`.

    A failed answer may be followed by a later try.
    """
    return _read_answers(folder)[0]


def _read_answers(folder: Path, said: _Said | None = None) -> tuple[dict[str, Answer], int]:
    """The answers by sample id, and the number of lines that they were read from. With `said`: without prompts."""
    path = folder / ANSWERS
    answers: dict[str, Answer] = {}
    number = 0
    with _no_garbage_collection():
        for number, record in journal.read(path, "answer", _decode):
            answer = _from_record(record, said)
            before = answers.get(answer.id)
            if before is not None and before.failure is None:
                raise StoreError(f"{path}:{number}: sample {answer.id!r} has two answers. Delete one of the lines.")
            answers[answer.id] = answer
    return answers, number


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """While many objects without circles are made: looking for circles would take a fifth of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def read_verdicts(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of `verdicts.jsonl`, in the order of the questions. Raises `StoreError`."""
    path = folder / VERDICTS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror or error}). To have it written, {REPEAT}.") from None
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is damaged: {error}. {REWRITE}") from None
    for number, line in enumerate(lines, 1):
        try:
            yield parse_json(line)
        except ValueError as error:
            raise StoreError(f"{path}:{number} is damaged: {error}. {REWRITE}") from None


def data_source(folder: Path) -> str | None:
    """Where the data of a run was read from last (`hub`, `samples`, or a folder), as its telemetry remembers."""
    try:
        lines = (folder / TELEMETRY).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # torn by a crash, or an event of another kind
            return str(parse_json(line)["data"])
    return None


def find_runs(root: Path) -> list[Path]:
    """The run folders at or below a folder that have scores, sorted."""
    return sorted(path.parent for path in root.rglob(SCORES) if (path.parent / MANIFEST).exists())


# =============================================================================
# Answers as records
# =============================================================================


class _Record(msgspec.Struct):
    """One line of `answers.jsonl`: a generation's fields, or a failure."""

    id: str
    prompt: str = ""
    text: str | None = None
    n_tokens: int = 0
    stop: StopReason = "unknown"
    likelihoods: list[tuple[float, int]] = []
    failure: Failure | None = None


_decoder = msgspec.json.Decoder(_Record)


def _decode(line: bytes) -> _Record:
    """A record, every field checked. Raises `ValueError` (msgspec's errors are such) for one that is not as it was."""
    try:
        return _decoder.decode(line)
    except msgspec.DecodeError:  # half a surrogate pair, which only Python's reader takes
        return msgspec.convert(parse_json(line, constants=True), _Record)


def _to_record(answer: Answer) -> dict[str, Any]:
    record: dict[str, Any] = {"id": answer.id}
    if answer.generation is not None:
        generation = answer.generation
        record |= {
            "prompt": generation.prompt,
            "text": generation.text,
            "n_tokens": generation.n_tokens,
            "stop": generation.stop,
        }
        if generation.likelihoods:
            record["likelihoods"] = [[item.logprob, item.n_tokens] for item in generation.likelihoods]
    if answer.failure is not None:
        record["failure"] = asdict(answer.failure)
    return record


def _from_record(record: _Record, said: _Said | None) -> Answer:
    if record.text is None:
        return Answer(record.id, None, record.failure)
    likelihoods = tuple(Likelihood(logprob, n) for logprob, n in record.likelihoods) if record.likelihoods else ()
    if said is not None:
        generation = _bare(record.text, record.n_tokens, record.stop, likelihoods, said)
    else:
        text = sys.intern(record.text) if len(record.text) <= SHORT else record.text
        generation = Generation(text, record.prompt, record.n_tokens, record.stop, likelihoods)
    return Answer(record.id, generation, record.failure)


_Said = dict[tuple[str, int, StopReason], Generation]


def _bare(text: str, n_tokens: int, stop: StopReason, likelihoods: tuple[Likelihood, ...], said: _Said) -> Generation:
    """A generation without its prompt; short ones that are equal become one object, which `said` holds."""
    if likelihoods or len(text) > SHORT:
        return Generation(text, "", n_tokens, stop, likelihoods)
    key = (text, n_tokens, stop)
    found = said.get(key)
    if found is None:
        found = said[key] = Generation(text, "", n_tokens, stop)
    return found


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _file_sha256(path: Path) -> str:
    try:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror or error}).") from None
