"""Single questions for the report's page: columns of numbers and texts, which the page's script turns into rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmamba_eval.report.unreadable import golds
from vlmamba_eval.strict_json import parse_json
from vlmamba_eval.text import natural


@dataclass(frozen=True)
class Answers:
    """What the page shows of one run's single questions: its verdicts, and the prompts that were really sent."""

    verdicts: Sequence[Mapping[str, Any]]
    sent: Mapping[str, str] = field(default_factory=dict)


def as_json(value: Any) -> str:
    """JSON that can be put into a script element of type application/json: no `<`, so that nothing can end it."""
    plain = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


Asked = Sequence[tuple[int, Answers]]
"""Runs of one task, each with the place of its model."""


def questions(lists: Iterable[tuple[str, str, Asked]], names: Sequence[str]) -> tuple[str, list[str]]:
    """The page's data as JSON, and the keys of the pictures in the order of their numbers.

    `lists` are a task's name, its title and its runs; `names` are the models'. Columns instead of rows, and every text
    once: 8,910 questions of two runs take about a megabyte.
    """
    pictures: dict[str, int] = {}
    tasks = []
    for name, title, asked in lists:
        for number, alike in enumerate(_alike(asked)):
            more = (f" {number + 1}", f" (list {number + 1})") if number else ("", "")
            tasks.append(_columns(name + more[0], title + more[1], alike, pictures))
    return as_json({"runs": names, "tasks": tasks}), list(pictures)


def _alike(runs: Sequence[tuple[int, Answers]]) -> list[list[tuple[int, Answers]]]:
    """Runs that can be shown side by side: the same id is the same question."""
    lists: list[tuple[dict[str, str], list[tuple[int, Answers]]]] = []
    for place, own in runs:
        prompts = {row["id"]: row["question"] for row in own.verdicts}
        for known, members in lists:
            if all(known.get(key, prompt) == prompt for key, prompt in prompts.items()):
                known |= prompts
                members.append((place, own))
                break
        else:
            lists.append((prompts, [(place, own)]))
    return [members for _, members in lists]


def _counted(answers: Sequence[str]) -> str:
    """Gold answers, one per line, equal ones once with their number (VQA has ten people's)."""
    counts = Counter(answers)
    return "\n".join(answer if n == 1 else f"{answer} × {n}" for answer, n in counts.items())


class _Strings:
    """Every text once, by number; -1 for none."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def __call__(self, value: str | None) -> int:
        return -1 if value is None else self._places.setdefault(value, len(self._places))

    def all(self) -> list[str]:
        return list(self._places)


def _columns(name: str, title: str, runs: Sequence[tuple[int, Answers]], pictures: dict[str, int]) -> dict[str, Any]:
    first: dict[str, Mapping[str, Any]] = {}
    for _, own in runs:
        for row in own.verdicts:
            first.setdefault(row["id"], row)
    first = {key: first[key] for key in sorted(first, key=natural)}
    strings = _Strings()
    groups: dict[str, int] = {}
    members = [[groups.setdefault(group, len(groups)) for group in row["groups"]] for row in first.values()]
    columns: dict[str, Any] = {
        "name": name,
        "title": title,
        "groups": list(groups),
        "who": [place for place, _ in runs],
        "id": list(first),
        "prompt": [strings(row["question"]) for row in first.values()],
        "gold": [strings(_counted(golds(row)) or None) for row in first.values()],
        "image": [
            -2 if row["image"] is None else pictures.setdefault(row["image"], len(pictures)) for row in first.values()
        ],
        "members": members,
        "answers": [],
    }
    for _, own in runs:
        by_id = {row["id"]: row for row in own.verdicts}
        rows = [by_id.get(key) for key in first]
        columns["answers"].append(
            {
                "signs": "".join(map(_sign, rows)),
                "cut": "".join("1" if row and row["truncated"] else "0" for row in rows),
                "credit": [None if row is None or row["credit"] is None else round(row["credit"], 4) for row in rows],
                "raw": [strings(row["answer"] if row else None) for row in rows],
                "parsed": [strings(row["parsed"] if row else None) for row in rows],
                "error": [strings(row.get("error") if row else None) for row in rows],
                "sent": [strings(_template(own.sent.get(row["id"]), row["question"])) if row else -1 for row in rows],
            }
        )
    columns["strings"] = strings.all()
    return columns


def _sign(row: Mapping[str, Any] | None) -> str:
    """One letter for what became of an answer: right, partly, wrong, unreadable, no answer, not asked."""
    if row is None:
        return "-"
    if row["state"] != "ok":
        return "n"
    if row["credit"] is None:
        return "-"
    if row["credit"] >= 1:
        return "r"
    return "u" if row["valid"] is False else "p" if row["credit"] > 0 else "w"


def _template(sent: str | None, question: str) -> str | None:
    """The prompt that was sent, its question replaced by a mark, so that equal templates are one text."""
    return None if not sent else sent.replace("\0", " ").replace(question, "\0", 1) if question in sent else sent


def interesting(data: str) -> list[int]:
    """The numbers of the pictures, those first on which runs differ or are wrong."""
    wanted: dict[int, int] = {}
    for task in parse_json(data)["tasks"]:
        for i, image in enumerate(task["image"]):
            if image >= 0:
                signs = {run["signs"][i] for run in task["answers"]}
                rank = 0 if len(signs - {"-"}) > 1 else 1 if signs - {"r", "-"} else 2
                wanted[image] = min(rank, wanted.get(image, 2))
    return sorted(wanted, key=lambda image: (wanted[image], image))
