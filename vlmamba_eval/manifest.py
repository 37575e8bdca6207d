"""What decides the answers of one task, and so which answers may be mixed: typed, with a key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from vlmamba_eval.adapter import AdapterInfo
from vlmamba_eval.task import Task
from vlmamba_eval.types import Mark, Scoring

FORMAT = 2  # of all files of a run; a reader of another one refuses them


@dataclass(frozen=True, slots=True)
class TaskIdentity:
    """Which benchmark, in which version of its prompt, parsing and scoring."""

    name: str
    version: int
    split: str
    protocol: str


@dataclass(frozen=True, slots=True)
class Limit:
    """A seeded sample of whole images."""

    questions: int
    seed: int


@dataclass(frozen=True, slots=True)
class DataIdentity:
    """Which questions: their number, the sha256 of ids and prompts, and where a hub's copy comes from."""

    questions: int
    sha256: str
    marks: tuple[Mark, ...] = ()
    limit: Limit | None = None
    hub: Mapping[str, str] = field(default_factory=dict)  # data set -> commit


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are made."""

    scoring: Scoring
    max_new_tokens: int
    greedy: bool = True


@dataclass(frozen=True, slots=True)
class Imported:
    """Whose answer file, by its content; `cleaned` if marks around the answers were taken off (`--clean`)."""

    model: str
    sha256: str
    cleaned: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that decides the answers of one task: either a model that is asked, or a file of answers.

    Not in it: batch size, resumption, the place of the data. They change no answer.
    """

    task: TaskIdentity
    data: DataIdentity
    model: AdapterInfo | None = None
    decoding: Decoding | None = None
    answers: Imported | None = None
    format: int = FORMAT

    @property
    def name(self) -> str:
        """The model's name in tables."""
        return self.model.name if self.model else self.answers.model if self.answers else "unknown"

    @property
    def scoring(self) -> Scoring:
        """How the answers were made; those of a file count as generated, or as cleaned."""
        if self.answers is not None and self.answers.cleaned:
            return "cleaned"
        return self.decoding.scoring if self.decoding else "generate"

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits of the sha256 of all of it."""
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()[:12]

    @property
    def model_key(self) -> str:
        """The same of the model only: equal for the runs that make up one row of the leaderboard."""
        who = self.model or (self.answers and replace(self.answers, sha256="", cleaned=False))
        return hashlib.sha256(canonical_json(who).encode()).hexdigest()[:12]

    def folder(self, out: Path) -> Path:
        """`runs/<model>/<task>/<key>/` below `out`."""
        return out / "runs" / folder_name(self.name) / self.task.name / self.key


def task_identity(task: Task) -> TaskIdentity:
    """The part of a manifest that the task decides."""
    info = task.info
    return TaskIdentity(info.name, info.version, info.split, info.protocol)


def canonical_json(value: Any) -> str:
    """JSON that is equal for equal values: sorted keys, no spaces, ASCII."""
    plain = msgspec.to_builtins(value)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def folder_name(name: str) -> str:
    """A name that is safe as one folder: letters, digits, dot, dash, underscore."""
    safe = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "_" for char in name)
    return safe[:80].strip("._") or "model"


def differences(found: Any, wanted: Any, prefix: str = "") -> list[str]:
    """One line per field that differs, `a.b: 1 on disk, 2 now`; of dataclasses or plain data."""
    found, wanted = msgspec.to_builtins(found), msgspec.to_builtins(wanted)
    lines: list[str] = []
    for name in sorted({*found, *wanted}):
        a, b = found.get(name), wanted.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            lines.append(f"{prefix}{name}: {a!r} on disk, {b!r} now")
    return lines
