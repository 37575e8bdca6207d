"""A run on disk: what decides its answers, the answers as they come, and files derived from them.

    runs/<model>/<task>/<key>/
        manifest.json     first: everything that decides the answers; `key` is its hash
        answers.jsonl     append-only, one line a question, each with its check sum, flushed and synced
        telemetry.jsonl   times, host, versions: whatever may differ between equal runs
        scores.json       derived: a pure function of the answers and the annotation files
        DONE              last: every question has its answer

A process that dies loses at most the line it was writing. Opening a run cuts off such a torn tail; a damaged line
before it is refused, never skipped. Only one process at a time may write to a run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, get_type_hints

from filelock import FileLock, Timeout

from vlmamba_eval.types import Answer, Failure, Generation, Likelihood, StoreError

MANIFEST, ANSWERS, TELEMETRY, SCORES, DONE = (
    "manifest.json",
    "answers.jsonl",
    "telemetry.jsonl",
    "scores.json",
    "DONE",
)

FORMAT = 1  # of all these files; a reader of another one refuses them
REPEAT = "run the same evaluation (or `vlmamba-eval score`) again"


def run_key(manifest: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of the sha256 of what decides the answers (the manifest's canonical JSON)."""
    return hashlib.sha256(canonical_json(manifest).encode()).hexdigest()[:12]


def canonical_json(value: Any) -> str:
    """JSON that is equal for equal values: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def folder_name(name: str) -> str:
    """A name that is safe as one folder: letters, digits, dot, dash, underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:80].strip("._") or "model"


def write_atomic(path: Path, content: str) -> None:
    """Write a text file so that a reader sees the old content or the new one, also after a power failure.

    Temporary file in the same folder, flush, fsync, rename, fsync of the folder. What has no UTF-8 (a lone surrogate)
    is written as its JSON escape. A file that holds the content already is not touched, so that what is finished can
    be shown again from a disk that can only be read. Raises `StoreError`.
    """
    encoded = content.encode(errors="backslashreplace")
    try:
        if path.is_file() and path.read_bytes() == encoded:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(encoded)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise StoreError(cannot_write(path, error)) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, keys in the given order."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


class Run:
    """One run folder, opened for writing. Use as a context manager: it holds the run's lock.

    `answers` maps each answered sample id to its answer; failed ones are there too until they are tried again.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.manifest = {"format": FORMAT, **manifest}
        self.answers: dict[str, Answer] = {}
        self._lock = FileLock(str(folder / ".lock"))
        self._file: BinaryIO | None = None
        self._size = 0

    def __enter__(self) -> Run:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            owner = self.folder / ".owner"
            who = owner.read_text(errors="replace").strip() if owner.exists() else "another process"
            raise StoreError(
                f"{self.folder} is being written by {who}. Wait for it, stop it, or give another folder with --out."
            ) from None
        except OSError as error:
            if not (self.folder / DONE).exists():
                raise StoreError(cannot_write(self.folder, error)) from error
            self._check_manifest()  # finished, where nothing can be written: it can still be shown
            self.answers = read_answers(self.folder)
            return self
        try:
            write_atomic(self.folder / ".owner", f"process {os.getpid()} on {socket.gethostname()}\n")
            self._check_manifest()
            self.answers, self._size = _load_answers(self.folder / ANSWERS, heal=True)
            self._file = open(self.folder / ANSWERS, "ab", buffering=0)
            _sync_folder(self.folder)
        except BaseException as error:
            self.__exit__(None, None, None)
            if isinstance(error, OSError):
                raise StoreError(cannot_write(self.folder / ANSWERS, error)) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()

    def _check_manifest(self) -> None:
        path = self.folder / MANIFEST
        if not path.exists():
            write_json(path, self.manifest)
            return
        found = read_manifest(self.folder)
        if canonical_json(found) != canonical_json(self.manifest):
            changed = _difference(found, self.manifest)
            raise StoreError(
                f"{path} belongs to another configuration; it differs in:\n  " + "\n  ".join(changed) + "\n"
                "Its answers are not mixed with these. Give another folder with --out."
            )

    def append(self, answers: Sequence[Answer]) -> None:
        """Write answers, one line each, and return once they are on the disk.

        Raises `StoreError` where that is impossible (disk full); the file then ends with the last whole answer.
        """
        if self._file is None:
            raise StoreError(cannot_write(self.folder / ANSWERS, OSError(errno.EROFS, os.strerror(errno.EROFS))))
        lines = b"".join(encode_answer(answer) for answer in answers)
        try:
            view = memoryview(lines)
            while view:
                view = view[self._file.write(view) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # else the torn tail is cut off when the run is opened again
                os.ftruncate(self._file.fileno(), self._size)
            raise StoreError(cannot_write(self.folder / ANSWERS, error)) from error
        self._size += len(lines)
        for answer in answers:
            self.answers[answer.id] = answer

    def state(self, sample_id: str) -> Literal["ok", "missing", "error"]:
        """Whether a sample has its answer, none, or a failure."""
        answer = self.answers.get(sample_id)
        return "missing" if answer is None else "ok" if answer.failure is None else "error"

    def finish(self, scores: Mapping[str, Any], *, complete: bool) -> None:
        """Write the derived files, `DONE` last and only where every question has an answer."""
        write_json(self.folder / SCORES, {"format": FORMAT, **scores})
        if complete:
            write_atomic(self.folder / DONE, "")
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


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder. Raises `StoreError`."""
    shape = {"task": {"name": str}, "data": {"sha256": str, "marks": [str]}}
    return _read_json(folder / MANIFEST, shape, missing="Is this a run folder (runs/<model>/<task>/<key>)?")


def read_scores(folder: Path) -> dict[str, Any]:
    """The scores of a run folder. Raises `StoreError`."""
    from vlmamba_eval.stats import Score

    shape = {
        **dict.fromkeys(("model", "task", "title", "split", "headline", "scoring"), str),
        **dict.fromkeys(("n", "n_missing", "n_error"), int),
        "judge": str | None,
        "marks": [str],
        "scores": [get_type_hints(Score)],
    }
    return _read_json(folder / SCORES, shape, missing=f"To have it written, {REPEAT}.")


def read_answers(folder: Path) -> dict[str, Answer]:
    """The answers of a run folder by sample id, without touching the file. Raises `StoreError`."""
    return _load_answers(folder / ANSWERS, heal=False)[0]


def data_source(folder: Path) -> str | None:
    """Where the data of a run was read from last (`hub`, `samples`, or a folder), as its telemetry remembers."""
    try:
        lines = (folder / TELEMETRY).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # torn by a crash, or an event of another kind
            return str(json.loads(line)["data"])
    return None


def find_runs(root: Path) -> list[Path]:
    """The run folders at or below a folder that have scores, sorted."""
    return sorted(path.parent for path in root.rglob(SCORES) if (path.parent / MANIFEST).exists())


def encode_answer(answer: Answer) -> bytes:
    """The answer's line: JSON in ASCII with the CRC-32 of what stands before it, newline-terminated."""
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
    body = json.dumps(record)[:-1].encode()
    return body + b', "crc": "%08x"}\n' % zlib.crc32(body)


_LINE = re.compile(rb'(?P<body>.*), "crc": "(?P<crc>[0-9a-f]{8})"\}\Z', re.DOTALL)


def decode_answer(line: bytes) -> Answer:
    """The inverse of `encode_answer`, without the newline. Raises `ValueError` for a damaged line."""
    match = _LINE.match(line)
    if match is None or zlib.crc32(match["body"]) != int(match["crc"], 16):
        raise ValueError("its check sum does not fit")
    record = json.loads(match["body"] + b"}")
    generation = None
    if "text" in record:
        likelihoods = tuple(Likelihood(logprob, n) for logprob, n in record.get("likelihoods", ()))
        generation = Generation(record["text"], record["prompt"], record["n_tokens"], record["stop"], likelihoods)
    failure = Failure(**record["failure"]) if "failure" in record else None
    return Answer(record["id"], generation, failure)


def _load_answers(path: Path, *, heal: bool) -> tuple[dict[str, Answer], int]:
    """The answers of a file and the size of its whole lines. A failed answer may be followed by a later try."""
    if not path.exists():
        return {}, 0
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror or error}). Restore it from a copy.") from None
    size = raw.rfind(b"\n") + 1
    if heal and size < len(raw):
        os.truncate(path, size)
    answers: dict[str, Answer] = {}
    for number, line in enumerate(raw[:size].split(b"\n")[:-1], 1):
        try:
            answer = decode_answer(line)
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path}:{number}: this answer is damaged ({error}). It is not skipped silently: delete the line "
                "to have this question answered again, or restore the file from a copy."
            ) from None
        before = answers.get(answer.id)
        if before is not None and before.failure is None:
            raise StoreError(f"{path}:{number}: sample {answer.id!r} has two answers. Delete one of the lines.")
        answers[answer.id] = answer
    return answers, size


def _read_json(path: Path, shape: Mapping[str, Any], *, missing: str) -> dict[str, Any]:
    """One of the files that a run can write anew, checked as far as its readers rely on it. Raises `StoreError`."""
    remedy = f"Delete it, then {REPEAT}: it is written anew, and no answer is lost."
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} is missing. {missing}") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror or error}).") from None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: expected JSON ({error}). {remedy}") from None
    if isinstance(value, dict) and value.get("format") != FORMAT:
        raise StoreError(
            f"{path} is of format {value.get('format')!r}; this version of vlmamba-eval reads format {FORMAT}. "
            "Read it with the version that wrote it, or evaluate again with another --out."
        )
    problem = _misfit(value, shape, "it")
    if problem:
        raise StoreError(f"{path} is damaged: {problem}. {remedy}")
    return value


def _misfit(value: Any, shape: Any, place: str) -> str:
    """Where a JSON value first departs from a shape: an object's fields, `[shape of each item]`, or a type."""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} should be a list, found {value!r:.80}"
        return next(filter(None, (_misfit(v, shape[0], f"{place}[{i}]") for i, v in enumerate(value))), "")
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{place} should be an object, found {value!r:.80}"
        for name, inner in shape.items():
            if name not in value:
                return f"{place} has no field {name!r}"
            problem = _misfit(value[name], inner, name if place == "it" else f"{place}.{name}")
            if problem:
                return problem
        return ""
    wanted = getattr(shape, "__name__", str(shape))
    return "" if isinstance(value, shape) else f"{place} should be {wanted}, found {value!r:.80}"


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines: list[str] = []
    for name in sorted({*found, *wanted}):
        a, b = found.get(name), wanted.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += _difference(a, b, f"{prefix}{name}.")
        elif a != b:
            lines.append(f"{prefix}{name}: {a!r} on disk, {b!r} now")
    return lines


def cannot_write(path: Path, error: OSError) -> str:
    """The message for a file that can't be written: why, and what to do."""
    remedy = "Give another folder with --out"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        existing = next((p for p in (path, *path.parents) if os.path.exists(p)), Path("/"))
        free = shutil.disk_usage(existing).free / 2**20
        remedy = f"{free:,.1f} MiB are free there: make room, or give another folder"
    return (
        f"{path} cannot be written ({error.strerror or error}). What was answered before is safe. "
        f"{remedy}, and run the same command again."
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
