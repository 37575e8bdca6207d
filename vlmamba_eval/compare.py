"""Two runs, or more, over the same questions: what differs, by how much, and whether that could be chance.

Runs are joined by question and graded again by this version's rules, so that one scorer judged all of them. Runs over
other lists, prompts, conventions or kinds of scoring are refused. A run that lacks answers, or that was limited, is
compared on the questions that everybody answered, and the table says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vlmamba_eval import paired
from vlmamba_eval.baselines import Published
from vlmamba_eval.dataset import Dataset
from vlmamba_eval.manifest import Manifest
from vlmamba_eval.nearest import did_you_mean
from vlmamba_eval.paired import Difference
from vlmamba_eval.score import grade, texts
from vlmamba_eval.stats import ENOUGH, effective
from vlmamba_eval.store import data_source, find_runs, read_answers, read_manifest, read_scores, read_verdicts
from vlmamba_eval.submit import load_again
from vlmamba_eval.table import image_key, tabulate
from vlmamba_eval.task import Task
from vlmamba_eval.types import MEANING, DataError, Graded, Mark, Sample, Scores, UsageError, Verdict, by_scoring

SHARED = "compared on the questions that all of them answered, which is not the whole list"
FEW = "few images carry the difference: its interval is too narrow, believe p instead"


# =============================================================================
# Sides: who is compared
# =============================================================================


@dataclass(frozen=True)
class Member:
    """One run: its questions, each with its verdict, and its answers' texts by sample id."""

    folder: Path
    manifest: Manifest
    scores: Scores
    dataset: Dataset
    graded: tuple[Graded, ...]
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Side:
    """One system: its runs by task. Several runs of one task are seeds or checkpoints, whose mean is compared.

    `unscored` are tasks that it answered and that are not scored.
    """

    name: str
    members: Mapping[str, tuple[Member, ...]]
    unscored: tuple[str, ...] = ()


def open_sides(arguments: Sequence[str], data: str | None = None) -> list[Side]:
    """Read what the command line names: `[NAME=]RUN[,RUN...]`, each a run folder or a folder of one model's runs.

    `data` is where the annotation files are; by default where each run read them. Raises `UsageError` for a folder
    without runs, or with two runs of one task.
    """
    opener = Opener(data)
    sides: list[Side] = []
    for argument in arguments:
        name, paths = _argument(argument)
        members: dict[str, list[Member]] = defaultdict(list)
        unscored: dict[str, None] = {}
        for path in paths:
            runs = _runs_by_task(path)
            scored = [task for task, folder in runs.items() if "UNSCORED" not in read_scores(folder).marks]
            for task, folder in runs.items():
                if task in scored or not scored:  # alone it is refused, with the reason
                    members[task].append(opener.open(folder))
                else:
                    unscored[task] = None
        title = name or next(iter(members.values()))[0].manifest.name
        sides.append(Side(title, {task: tuple(runs) for task, runs in members.items()}, tuple(unscored)))
    return _told_apart(sides, arguments)


def _argument(argument: str) -> tuple[str, list[Path]]:
    """`NAME=A,B` as a name and paths; a folder of exactly that name is taken as it is."""
    if Path(argument).exists():
        return "", [Path(argument)]
    name, equals, rest = argument.rpartition("=")
    given = rest if equals else argument
    paths = [Path(given)] if Path(given).exists() else [Path(part.strip()) for part in given.split(",") if part.strip()]
    if not paths:
        raise UsageError(f"{argument!r} names no run. Expected [NAME=]RUN[,RUN...].")
    return name, paths


def _runs_by_task(path: Path) -> dict[str, Path]:
    """The run of each task at or below a folder."""
    folders = find_runs(path) if path.is_dir() else []
    if not folders:
        raise UsageError(
            f"{path} holds no run with scores. Expected results/runs/<model>, or one of the folders below it. "
            "An answer file becomes a run first: vlmamba-eval score --task NAME --answers FILE --data DIR."
        )
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        manifest = read_manifest(folder)
        found[by_scoring(manifest.task.name, manifest.scoring)].append(folder)
    for task, several in found.items():
        if len(several) > 1:
            raise UsageError(
                f"{path} holds {len(several)} runs of {task}:\n  "
                + "\n  ".join(map(str, several))
                + "\nName the one that is meant; or, for the mean of several seeds or checkpoints, all of them: "
                "NAME=RUN,RUN."
            )
    return {task: several[0] for task, several in found.items()}


class Opener:
    """Opens runs; a list of questions is read from the disk once. `data` as in `open_sides`."""

    def __init__(self, data: str | None) -> None:
        self._data = data
        self._datasets: dict[tuple[Any, ...], Dataset] = {}

    def open(self, folder: Path) -> Member:
        """The run with its verdicts. Raises `DataError` if it is not scored or its questions are not there."""
        manifest, scores = read_manifest(folder), read_scores(folder)
        if "UNSCORED" in scores.marks:
            raise DataError(
                f"{folder} is UNSCORED: {MEANING['UNSCORED']}. What is not scored can't be compared. "
                "For MM-Vet, have the answers judged first: vlmamba-eval judge."
            )
        dataset = self.dataset(folder, manifest)
        answers = read_answers(folder)
        graded = grade(dataset, answers, _judged(folder) if scores.judge else None)
        return Member(folder, manifest, scores, dataset, tuple(graded), texts(dataset, answers))

    def dataset(self, folder: Path, manifest: Manifest) -> Dataset:
        """The questions that a run answered. Raises `DataError`, `UsageError` if it is not known where they are."""
        key = (manifest.task.name, self._data or data_source(folder), manifest.data.sha256)
        if key not in self._datasets:
            self._datasets[key] = load_again(manifest, self._data or data_source(folder), folder)
        return self._datasets[key]


def _judged(folder: Path) -> dict[str, Verdict]:
    """A judge's verdicts as the run keeps them: rules can't give them again."""
    return {
        row["id"]: Verdict(row["parsed"], float(row["credit"]), bool(row["valid"]))
        for row in read_verdicts(folder)
        if row["credit"] is not None
    }


def _told_apart(sides: list[Side], arguments: Sequence[str]) -> list[Side]:
    """Equal names get what tells them apart: the arguments themselves if those are short, else numbers."""
    names = [side.name for side in sides]
    if len(set(names)) == len(names):
        return sides
    return [
        replace(side, name=f"{side.name} ({chr(ord('A') + i)})") if names.count(side.name) > 1 else side
        for i, side in enumerate(sides)
    ]


# =============================================================================
# What may be compared
# =============================================================================


def refuse_unlike(a: Member, b: Member, names: tuple[str, str]) -> None:
    """Raise `DataError` if two runs did not answer the same questions in the same way, with the fields that differ."""
    unlike: list[str] = []

    def check(field: str, left: Any, right: Any) -> None:
        if left != right:
            unlike.append(f"{field}: {left!r} in {names[0]}, {right!r} in {names[1]}")

    for field, left in msgspec.to_builtins(a.manifest.task).items():
        check(f"task.{field}", left, msgspec.to_builtins(b.manifest.task)[field])
    one, other = a.manifest.data, b.manifest.data
    whole = one.limit is None and other.limit is None
    if whole:  # a limited run has a hash of its own; its questions are compared one by one instead
        for field in ("questions", "sha256"):
            check(f"data.{field}", getattr(one, field), getattr(other, field))
    check("data.hub", dict(one.hub), dict(other.hub)) if one.hub and other.hub else None
    if a.manifest.decoding and b.manifest.decoding:  # of an answer file it is not known
        for field, left in msgspec.to_builtins(a.manifest.decoding).items():
            check(f"decoding.{field}", left, msgspec.to_builtins(b.manifest.decoding)[field])
    else:
        check("decoding.scoring", a.manifest.scoring, b.manifest.scoring)
    check("judge", a.scores.judge, b.scores.judge)
    if not unlike and not whole:
        theirs = {sample.id: b.dataset.task.prompt(sample) for sample in b.dataset.samples}
        for sample in a.dataset.samples:
            if sample.id in theirs and theirs[sample.id] != a.dataset.task.prompt(sample):
                check(f"the prompt of question {sample.id}", a.dataset.task.prompt(sample), theirs[sample.id])
                break
    if unlike:
        raise DataError(
            f"{names[0]} and {names[1]} can't be compared on {a.scores.title}: they were not asked the same. "
            "They differ in:\n  " + "\n  ".join(unlike) + f"\nThe runs are {a.folder} and {b.folder}."
        )


def common(members: Sequence[Member]) -> tuple[list[Sample], bool]:
    """The questions that all of the runs answered, in the order of the first, and whether that is not all of them.

    If a benchmark counts questions of an image together (MME's pairs), an image that anybody left half answered is
    left out whole.
    """
    first = members[0]
    ids = set.intersection(*({g.sample.id for g in m.graded if g.state == "ok"} for m in members))
    samples = [sample for sample in first.dataset.samples if sample.id in ids]
    task = first.dataset.task
    if type(task).count_image is not Task.count_image:
        lists = {id(m.dataset): m.dataset.samples for m in members}.values()
        torn = {_unit(task, sample) for own in lists for sample in own if sample.id not in ids}
        samples = [sample for sample in samples if _unit(task, sample) not in torn]
    return samples, any(len(samples) < len(m.dataset.samples) for m in members)


def _unit(task: Task, sample: Sample) -> tuple[str, str]:
    return task.stratum(sample), image_key(Graded(sample, None))


# =============================================================================
# The comparison
# =============================================================================


@dataclass(frozen=True)
class Part:
    """Where a difference lies: one group of questions, and how many of them only one side got right."""

    group: str
    n: int
    only_a: int
    only_b: int


@dataclass(frozen=True)
class Example:
    """A question that only one side got right; the answers are those of single runs, else empty."""

    id: str
    question: str
    gold: tuple[str, ...]
    answer_a: str
    answer_b: str


@dataclass(frozen=True)
class Spread:
    """The headline of each of several seeds or checkpoints, and their standard deviation."""

    values: tuple[float, ...]
    deviation: float


@dataclass(frozen=True)
class Pair:
    """Two sides on one task: B minus A.

    Counts are of the headline's questions: `only_a` are those to which A's answer is worth more. `n_images_differ` of
    the `n_images` images carry a difference, effectively `effective_images` of them; `few` marks an interval that is
    too narrow for want of such images. `p` is the swap test's, `p_mcnemar` the exact McNemar's (single runs of right
    and wrong answers), `p_holm` is `p` adjusted for all of the comparison's pairs.
    """

    task: str
    title: str
    split: str
    a: str
    b: str
    n: int
    n_images: int
    n_images_differ: int
    effective_images: float
    only_a: int
    only_b: int
    both: int | None
    neither: int | None
    other_text: int | None
    p: float | None
    p_mcnemar: float | None
    p_holm: float | None
    marks: tuple[Mark, ...]
    shared: bool
    differences: tuple[Difference, ...]
    parts: tuple[Part, ...]
    questions_a: tuple[Example, ...]
    questions_b: tuple[Example, ...]
    spread_a: Spread | None = None
    spread_b: Spread | None = None

    @property
    def few(self) -> bool:
        """Whether too few images differ for the interval to keep its 95 %."""
        return self.effective_images < ENOUGH

    @property
    def headline(self) -> Difference:
        """The difference of the task's headline metric."""
        return next(difference for difference in self.differences if difference.headline)


@dataclass(frozen=True)
class Comparison:
    """Every pair of the first side with another, task by task.

    `only` are tasks that not all sides have, `unscored` those that a side answered and that are not scored.
    """

    names: tuple[str, ...]
    pairs: tuple[Pair, ...]
    only: Mapping[str, tuple[str, ...]]
    unscored: Mapping[str, tuple[str, ...]]
    published: tuple[Published, ...] = ()


def compare(
    sides: Sequence[Side], published: Sequence[Published] = (), seed: int = 0, refused: list[str] | None = None
) -> Comparison:
    """Compare the first side with each of the others on every task that both have.

    Raises `DataError` if they were not asked the same questions, or have no task in common. With a list `refused` such
    pairs are left out instead, and the reasons are added to it.
    """
    reference, *others = sides
    pairs: list[Pair] = []
    for other in others:
        for task in reference.members:
            if task in other.members:
                try:
                    pairs.append(_pair(task, reference, other, seed))
                except DataError as error:
                    if refused is None:
                        raise
                    refused.append(str(error))
    if not pairs and refused is None:
        have = "; ".join(f"{side.name}: {', '.join(side.members)}" for side in sides)
        raise DataError(f"These runs have no task in common. {have}.")
    tested = [i for i, pair in enumerate(pairs) if pair.p is not None]
    for i, adjusted in zip(tested, paired.holm([pairs[i].p or 0.0 for i in tested]), strict=True):
        pairs[i] = replace(pairs[i], p_holm=adjusted)
    everywhere = set.intersection(*(set(side.members) for side in sides))
    only = {side.name: tuple(t for t in side.members if t not in everywhere) for side in sides}
    compared = {pair.task for pair in pairs}
    quoted = tuple(row for row in published if row.task in compared and row.category == "all")
    unscored = {side.name: side.unscored for side in sides}
    return Comparison(tuple(side.name for side in sides), tuple(pairs), only, unscored, quoted)


def _pair(name: str, a: Side, b: Side, seed: int) -> Pair:
    ours, theirs = a.members[name], b.members[name]
    everybody = (*ours, *theirs)
    for member in everybody[1:]:
        refuse_unlike(everybody[0], member, (a.name, a.name if member in ours else b.name))
    samples, shared = common(everybody)
    if not samples:
        raise DataError(f"{a.name} and {b.name} answered no question of {ours[0].scores.title} in common.")
    task, extra = ours[0].dataset.task, ours[0].dataset.extra
    chosen = [_restricted(member, samples) for member in everybody]
    tables = paired.aligned([tabulate(task, graded, extra) for graded in chosen])
    names, systems = paired.draw(task, tables, seed)
    left, right = paired.mean(systems[: len(ours)]), paired.mean(systems[len(ours) :])
    found = paired.differences(names, left, right, task.info.split)
    headline = next(i for i, metric in enumerate(names) if metric.headline)
    group = names[headline].group
    single = len(everybody) == 2

    credits = np.array([[g.verdict.credit if g.verdict else 0.0 for g in graded] for graded in chosen])
    gap = credits[: len(ours)].mean(0) - credits[len(ours) :].mean(0)  # [questions]
    inside = np.array([group == "all" or group in sample.groups for sample in samples])
    only_a, only_b = (gap > 1e-9) & inside, (gap < -1e-9) & inside
    binary = bool(np.isin(credits, (0.0, 1.0)).all())
    keys = [_unit(task, sample) for sample in samples]
    units = {key: i for i, key in enumerate(dict.fromkeys(k for k, there in zip(keys, inside, strict=True) if there))}
    carried = np.zeros(len(units))
    for key, differs in zip(keys, only_a | only_b, strict=True):
        if differs:
            carried[units[key]] += 1
    p = paired.swap_test(task, tables[0], tables[1], seed) if single else {}
    metric = names[headline]
    return Pair(
        task=name,
        title=ours[0].scores.title,
        split=task.info.split,
        a=a.name,
        b=b.name,
        n=int(inside.sum()),
        n_images=len(units),
        n_images_differ=int(np.count_nonzero(carried)),
        effective_images=round(effective(carried), 3),
        only_a=int(only_a.sum()),
        only_b=int(only_b.sum()),
        both=int(((credits == 1).all(0) & inside).sum()) if single and binary else None,
        neither=int(((credits == 0).all(0) & inside).sum()) if single and binary else None,
        other_text=sum(
            ours[0].texts[sample.id] != theirs[0].texts[sample.id]
            for sample, there in zip(samples, inside, strict=True)
            if there
        )
        if single
        else None,
        p=p.get((metric.name, metric.split, metric.category)),
        p_mcnemar=paired.mcnemar(int(only_a.sum()), int(only_b.sum())) if single and binary else None,
        p_holm=None,
        marks=tuple(mark for mark in MEANING if any(mark in member.scores.marks for member in everybody)),
        shared=shared,
        differences=tuple(found),
        parts=_parts(samples, inside, only_a, only_b),
        questions_a=_examples(samples, only_a, everybody, single),
        questions_b=_examples(samples, only_b, everybody, single),
        spread_a=_spread([system.points[headline] for system in systems[: len(ours)]]),
        spread_b=_spread([system.points[headline] for system in systems[len(ours) :]]),
    )


def _restricted(member: Member, samples: Sequence[Sample]) -> list[Graded]:
    """A run's verdicts on some samples, in their order; the samples are those of the first run."""
    own = {graded.sample.id: graded for graded in member.graded}
    return [replace(own[sample.id], sample=sample) for sample in samples]


def _parts(samples: Iterable[Sample], inside: Any, only_a: Any, only_b: Any) -> tuple[Part, ...]:
    """By group, the most differing answers first."""
    counts: dict[str, list[int]] = {}
    for sample, there, mine, yours in zip(samples, inside, only_a, only_b, strict=True):
        for group in sample.groups if there else ():
            count = counts.setdefault(group, [0, 0, 0])
            count[0] += 1
            count[1] += int(mine)
            count[2] += int(yours)
    parts = [Part(group, *count) for group, count in counts.items()]
    return tuple(sorted(parts, key=lambda part: (-(part.only_a + part.only_b), part.group)))


def _examples(samples: Sequence[Sample], hits: Any, everybody: Sequence[Member], single: bool) -> tuple[Example, ...]:
    texts = [everybody[0].texts, everybody[-1].texts] if single else [{}, {}]
    return tuple(
        Example(
            id=sample.id,
            question=sample.question,
            gold=(sample.target,) if isinstance(sample.target, str) else tuple(sample.target or ()),
            answer_a=texts[0].get(sample.id, ""),
            answer_b=texts[1].get(sample.id, ""),
        )
        for sample, hit in zip(samples, hits, strict=True)
        if hit
    )


def _spread(values: Sequence[float]) -> Spread | None:
    if len(values) < 2:
        return None
    return Spread(tuple(round(value, 9) for value in values), round(float(np.std(values, ddof=1)), 9))


# =============================================================================
# A gate for continuous integration
# =============================================================================


@dataclass(frozen=True)
class Gate:
    """How much worse a task's headline may become, in points of its scale."""

    task: str
    margin: float


def read_gates(texts: Sequence[str], comparison: Comparison) -> list[Gate]:
    """`POPE:0.5` as gates; names are tasks or titles, in any case. Raises `UsageError`."""
    known = {name.casefold(): pair.task for pair in comparison.pairs for name in (pair.title, pair.task)}
    gates = []
    for text in texts:
        name, colon, number = text.rpartition(":")
        try:
            margin = float(number) if colon else -1.0
        except ValueError:
            margin = -1.0
        if not 0 <= margin < float("inf"):
            raise UsageError(f"--fail-if-worse {text}: expected TASK:POINTS, for example POPE:0.5.")
        if name.strip().casefold() not in known:
            hint = did_you_mean(name, sorted({pair.task for pair in comparison.pairs}), "")
            raise UsageError(f"--fail-if-worse {text}: {name!r} is not among the compared tasks. {hint}".rstrip())
        gates.append(Gate(known[name.strip().casefold()], margin))
    return gates


def judge_gate(gate: Gate, pair: Pair) -> tuple[bool, str]:
    """Whether a pair fails its gate, and the sentence that says why or why not.

    It fails if the difference is beyond the margin and not chance: the paired interval is below zero and, if few
    images differ, p is below 5 %. If the interval reaches beyond the margin without that, the sentence says so.
    """
    found = pair.headline
    value = found.difference or 0.0
    if not pair.only_a and not pair.only_b:
        return False, f"Passed: no answer of {pair.b} is worth more or less than {pair.a}'s on {pair.title}."
    spoken = f"{pair.b} is {abs(value):.2f} points {'worse' if value < 0 else 'better'} than {pair.a} on {pair.title}"
    low, high = found.ci_low, found.ci_high
    if low is not None and high is not None:
        spoken += f" [{low:+.2f}, {high:+.2f}]"
    below = value < 0 if high is None else high < 0  # without an interval every image differs alike
    certain = below and (pair.p is None or pair.p < 0.05 or not pair.few)
    if value < -gate.margin and certain:
        return True, f"FAILED: {spoken}; at most {gate.margin:g} is allowed."
    if (value if low is None else low) < -gate.margin:
        return False, f"Passed, but not certain: {spoken}; a loss of more than {gate.margin:g} is not excluded."
    return False, f"Passed: {spoken}; a loss of more than {gate.margin:g} is excluded."
