"""The leaderboard as Markdown and as tidy CSV: pure functions of the runs' scores and the published numbers.

Measured and published numbers never look alike: a measured one carries its interval and its run, a published one a
dagger and its source. Whatever makes a number incomparable (SAMPLES, PARTIAL, INCOMPLETE, UNTRAINED, UNSCORED) is shown
beside it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vlmamba_eval import text
from vlmamba_eval.baselines import Published
from vlmamba_eval.files import write_atomic
from vlmamba_eval.manifest import Manifest, canonical_json
from vlmamba_eval.registry import all_tasks
from vlmamba_eval.store import DONE, read_manifest, read_scores
from vlmamba_eval.types import MEANING, Mark, Score, Scores, StoreError, by_scoring

ABBREVIATIONS = {
    **{word: word.upper() for word in ("f1", "img", "tp", "fp", "tn", "fn", "meteor")},
    **{f"bleu_{order}": f"BLEU-{order}" for order in (1, 2, 3, 4)},
    **{"cider": "CIDEr", "rouge_l": "ROUGE-L", "vlmevalkit": "VLMEvalKit"},
}
COLUMNS = [
    *("model", "task", "split", "category", "metric", "value", "ci_low", "ci_high"),
    *("n", "n_images", "n_unparsed", "n_missing", "n_error", "n_foreign", "n_truncated"),
    *("few_images", "headline", "status"),
    *("scoring", "weights", "dtype", "version", "key", "model_key", "source"),
]


@dataclass(frozen=True)
class RunScores:
    """The scores of one run folder, and whose they are; `source` is its path as tables show it."""

    source: str
    scores: Scores
    manifest: Manifest
    complete: bool = True

    @property
    def task(self) -> str:
        """The task's name, with how it was scored."""
        return by_scoring(self.scores.task, self.scores.scoring)

    @property
    def headline(self) -> Score | None:
        """The headline score, None if nothing could be scored."""
        return next((score for score in self.scores.scores if score.headline), None)


def load_runs(
    folders: Iterable[Path], relative_to: Path, left_out: Callable[[str], None] | None = None
) -> list[RunScores]:
    """The scores of run folders, in the order of tasks, then models.

    Raises `StoreError` for a damaged file; or, with `left_out`, tells that and continues without that run.
    """
    order = {name: i for i, name in enumerate(all_tasks())}
    runs = []
    for folder in folders:
        resolved = folder.resolve()
        base = relative_to.resolve()
        source = resolved.relative_to(base).as_posix() if resolved.is_relative_to(base) else folder.as_posix()
        try:
            runs.append(RunScores(source, read_scores(folder), read_manifest(folder), (folder / DONE).exists()))
        except StoreError as error:
            if left_out is None:
                raise
            left_out(f"Left out of the tables: {error}")
    return sorted(runs, key=lambda run: (order.get(run.scores.task, 99), run.task, run.scores.model, run.source))


TABLE_1 = ("vqav2", "gqa", "scienceqa", "scienceqa_img", "textvqa", "pope", "mme", "mmbench", "seed", "mmvet")
PAPER = ("vqav2", "gqa", "scienceqa", "textvqa", "pope", "mme", "mmbench", "seed", "mmvet")
"""The order of columns in the papers' Table 1; other tasks follow."""


def in_order(tasks: Iterable[str]) -> list[str]:
    """Tasks in the order of the papers' Table 1, a benchmark's variants beside each other; the others after them."""
    order = {name: i for i, name in enumerate(all_tasks())}

    def place(task: str) -> tuple[int, int, str]:
        name = task.split(" (")[0]
        family = next((i for i, base in enumerate(PAPER) if name.startswith(base)), len(PAPER))
        return family, order.get(name, len(order)), task

    return sorted(tasks, key=place)


# =============================================================================
# The leaderboard: one row per model, one column per task
# =============================================================================


@dataclass(frozen=True)
class Line:
    """One row of the leaderboard: its cells are in the order of `Board.tasks`, each a value and what follows it.

    `kind`: "measured" on a benchmark, "apart" (on the samples, or with random weights: comparable with nothing
    published), or "published".
    """

    model: str
    marks: tuple[Mark, ...]
    kind: Literal["measured", "apart", "published"]
    cells: tuple[str, ...]
    values: tuple[float | None, ...] = ()
    intervals: tuple[str, ...] = ()  # "" for none
    remarks: tuple[str, ...] = ()  # marks, splits: what is shown after a value


@dataclass(frozen=True)
class Section:
    """Lines that may be read against each other, under a heading ("" if there is nothing else)."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Board:
    """The leaderboard's cells as text, columns in the order of the papers' Table 1."""

    tasks: tuple[str, ...]
    headers: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    flaws: tuple[tuple[str, ...], ...] = ()  # rows under `FLAWS`, of the runs that have any

    @property
    def sections(self) -> tuple[Section, ...]:
        """Measured and published lines together; what is comparable with none of them apart, never above them."""
        fair = tuple(line for line in self.lines if line.kind == "measured")
        quoted = tuple(line for line in self.lines if line.kind == "published")
        apart = tuple(line for line in self.lines if line.kind == "apart")
        if not apart:
            return (Section("", (*fair, *quoted)),)
        beside = Section(APART, apart)
        if not fair:
            return (beside, Section(QUOTED, quoted)) if quoted else (Section("", apart),)
        return (Section(FAIR, (*fair, *quoted)), beside)


FOOTNOTE = (
    "Measured values with their 95 % interval (bootstrap over images; ‡ few images carry it: a rough one); "
    "† published, not measured."
)
FAIR = "On the benchmarks"
APART = "On the bundled samples, or with random weights: comparable with nothing published"
QUOTED = "Published, on the benchmarks themselves"


def board(runs: Sequence[RunScores], baselines: Sequence[Published]) -> Board:
    """Arrange runs and published numbers: one line per model, one column per task."""
    firsts: dict[str, RunScores] = {}
    for run in runs:
        firsts.setdefault(run.task, run)
    tasks = tuple(in_order(firsts))
    headers = tuple(_header(firsts[task]) for task in tasks)
    lines: list[Line] = []
    notes: list[str] = []
    for model, cells in sorted(rows_of_models(runs).items()):
        marks = [set(run.scores.marks) for run in cells.values()]
        common = set.intersection(*marks)
        found = [cells.get(task) for task in tasks]
        heads = [run.headline if run else None for run in found]
        own = [" ".join(mark for mark in run.scores.marks if mark not in common) if run else "" for run in found]
        texts = [
            " ".join(filter(None, (shown(head), mine))) if run else ""
            for run, head, mine in zip(found, heads, own, strict=True)
        ]
        kind = "apart" if all(each & {"SAMPLES", "UNTRAINED"} for each in marks) else "measured"
        lines.append(
            Line(
                model,
                tuple(mark for mark in MEANING if mark in common),
                kind,
                tuple(texts),
                tuple(head.value if head else None for head in heads),
                tuple(interval(head) for head in heads),
                tuple(own),
            )
        )
        notes += [f"{mark}: {MEANING[mark]}." for mark in MEANING if any(mark in each for each in marks)]
        notes += [_by_judge(run) for run in cells.values() if run.scores.judge]
        notes += [note for run in cells.values() for note in _doubts(run)]
        if kind == "measured":
            notes += _beside_published(cells, baselines)
    wanted = {
        task: (run.scores.title, run.scores.headline, run.headline.split if run.headline else run.scores.split)
        for task in tasks
        for run in (firsts[task],)
    }
    quoted, sources = _published(wanted, baselines)
    flaws = tuple(row for run in runs if (row := _flaws(run)))
    return Board(tasks, headers, (*lines, *quoted), (*dict.fromkeys(notes), *sources), flaws)


FLAWS = ("model", "task", "answers", "unreadable", "truncated", "missing", "failed", "foreign")
"""What can be wrong with answers, in the columns of a table; each counts its answers."""


def _counts(run: RunScores) -> tuple[int, int, int, int, int]:
    """The numbers under `FLAWS`, of the whole list."""
    whole = next((score for score in run.scores.scores if score.category == "all" and score.n == run.scores.n), None)
    unparsed, truncated = (whole.n_unparsed, whole.n_truncated) if whole else (0, 0)
    return unparsed, truncated, run.scores.n_missing, run.scores.n_error, run.scores.n_foreign


def _flaws(run: RunScores) -> tuple[str, ...]:
    counts = _counts(run)
    if not any(counts):
        return ()
    return (run.scores.model, run.scores.title, f"{run.scores.n:,}", *(f"{count:,}" for count in counts))


LOUD = 0.01
"""The share of answers from which on what is wrong with them is said beside the headline."""


def _doubts(run: RunScores) -> list[str]:
    """What a reader of the headline should know: answers that are unreadable, truncated, missing, failed, foreign."""
    what = (
        "hold no readable answer, and the official rule scores them all the same",
        "were cut off at the limit of tokens",
        "are missing and count as wrong",
        "failed and count as wrong",
    )
    *counts, foreign = _counts(run)
    told = [
        f"{count:,} of {run.scores.n:,} answers {text_}"
        for text_, count in zip(what, counts, strict=True)
        if count > LOUD * run.scores.n
    ]
    if foreign:  # one is enough to doubt the file
        is_ = (
            "is to another question (foreign) and counts"
            if foreign == 1
            else "are to other questions (foreign) and count"
        )
        told.append(f"{foreign:,} of {run.scores.n:,} answers {is_} as wrong")
    return [f"{_whose(run)}: {each}." for each in told]


def _whose(run: RunScores) -> str:
    return f"{text.markdown(run.scores.model)}, {run.scores.title}"


def _by_judge(run: RunScores) -> str:
    return f"{_whose(run)}: the judge {text.markdown(run.scores.judge or '')} gave the grades; others give others."


def _beside_published(cells: Mapping[str, RunScores], baselines: Sequence[Published]) -> list[str]:
    """How far a model is from the numbers that were published for itself, on whole lists of the same split."""
    known = {(row.model, row.task, row.metric): row for row in baselines if row.category == "all"}
    found: dict[str, list[str]] = {}
    for task, run in cells.items():
        head, name = run.headline, run.scores.model.rpartition("/")[2].removesuffix("-hf").lower()
        row = known.get((name, task, run.scores.headline))
        if (
            row is None
            or head is None
            or head.value is None
            or run.scores.marks
            or row.split not in (head.split, "all")
        ):
            continue
        found.setdefault(row.title, []).append(f"{run.scores.title} {head.value - row.value:+,.1f}")
    model = text.markdown(next(iter(cells.values())).scores.model)
    return [f"{model} less the published {title}: {', '.join(each)}." for title, each in found.items()]


def _header(run: RunScores) -> str:
    return by_scoring(f"{run.scores.title} {spoken(run.scores.headline)}", run.scores.scoring)


def _published(
    wanted: Mapping[str, tuple[str, str, str]], baselines: Sequence[Published]
) -> tuple[list[Line], list[str]]:
    """The lines of published numbers for tasks' (title, headline metric, measured split), and a note on each source."""
    rows: list[Line] = []
    quoting: dict[str, list[str]] = {}  # who quotes a source
    for model in dict.fromkeys(row.model for row in baselines):
        own = {(row.task, row.metric): row for row in baselines if row.model == model and row.category == "all"}
        chosen = {task: own[task, metric] for task, (_, metric, _) in wanted.items() if (task, metric) in own}
        if not chosen:
            continue
        title = next(iter(chosen.values())).title
        texts = [_quoted(chosen[task], split) if task in chosen else "" for task, (_, _, split) in wanted.items()]
        values = tuple(chosen[task].value if task in chosen else None for task in wanted)
        places = [chosen[task].split or "split not stated" if task in chosen else "" for task in wanted]
        remarks = tuple(
            "" if place in (split, "all") else place
            for place, (_, _, split) in zip(places, wanted.values(), strict=True)
        )
        rows.append(Line(title, (), "published", tuple(texts), values, ("",) * len(wanted), remarks))
        sources: dict[str, list[str]] = {}
        for task, row in chosen.items():
            sources.setdefault(f"{row.source}{row.note and '; '}{row.note}", []).append(wanted[task][0])
        usual = max(sources, key=lambda source: len(sources[source]))
        for source, names in sources.items():
            quoting.setdefault(source, []).append(title if source == usual else f"{title} on {', '.join(names)}")
    return rows, [f"† {', '.join(names)}: {source}." for source, names in quoting.items()]


def rows_of_models(runs: Sequence[RunScores]) -> dict[str, dict[str, RunScores]]:
    """One row per model, in the order of the runs: equal weights, precision and settings.

    A second run of the same task is a row of its own.

    Models of one name are told apart by what differs between them: precision, sharing, weights, other settings.
    """
    rows: dict[tuple[str, str, int], dict[str, RunScores]] = {}
    for run in runs:
        place = next(n for n in itertools.count() if run.task not in rows.get((*_identity(run), n), {}))
        rows.setdefault((*_identity(run), place), {})[run.task] = run
    names = _labels([next(iter(cells.values())) for cells in rows.values()])
    return dict(zip(names, rows.values(), strict=True))


def _identity(run: RunScores) -> tuple[str, str]:
    return run.scores.model, run.manifest.model_key


def _labels(runs: Sequence[RunScores]) -> list[str]:
    """A distinct name for each of the runs that begin a row: the model's, and what tells equal names apart."""
    by_name: dict[str, list[RunScores]] = defaultdict(list)
    for run in runs:
        by_name[run.scores.model].append(run)
    labels = []
    for run in runs:
        others = by_name[run.scores.model]
        parts = [describe(run) for describe in _DIFFERENCES if len({describe(other) for other in others}) > 1]
        labels.append(" ".join([run.scores.model, *(f"({part})" for part in parts if part)]))
    return [
        label if labels.count(label) == 1 else f"{label} #{Path(run.source).name[:6]}"
        for label, run in zip(labels, runs, strict=True)
    ]


def _weights(run: RunScores) -> str:
    """The beginning of what identifies a model's weights, or an answer file."""
    model = run.manifest.model
    if model is None:
        return f"answers {run.manifest.answers.sha256[:6]}" if run.manifest.answers else ""
    kind, _, value = model.weights.partition(":")
    return f"{kind} {value[:6]}" if value else kind


def _settings(run: RunScores) -> str:
    model = run.manifest.model
    if model is None:
        return ""
    others = {name: value for name, value in model.settings.items() if name != "sharing"}
    return f"settings {hashlib.sha256(canonical_json(others).encode()).hexdigest()[:6]}"


_DIFFERENCES: tuple[Callable[[RunScores], str], ...] = (
    _weights,
    lambda run: run.manifest.model.dtype if run.manifest.model else "",
    lambda run: run.manifest.model.device if run.manifest.model else "",
    lambda run: "no sharing" if run.manifest.model and run.manifest.model.settings.get("sharing") is False else "",
    _settings,
)


def _quoted(row: Published, split: str) -> str:
    """A published value with its dagger, and with its split if that is not the one that was measured."""
    value = f"{number(row.value)}†"
    return value if row.split in (split, "all") else f"{value} ({row.split or 'split not stated'})"


def shown(score: Score | None) -> str:
    """A score's value with its interval in brackets, if it has one; `-` if it is undefined."""
    if score is None or score.value is None:
        return "-"
    if score.plain:
        return f"{score.value:,.0f}"
    return f"{number(score.value)} {interval(score)}".rstrip()


def interval(score: Score | None) -> str:
    """A score's interval in brackets; "" if it has none."""
    if score is None or score.ci_low is None or score.ci_high is None:
        return ""
    return f"[{number(score.ci_low)}, {number(score.ci_high)}]" + ("‡" if score.few_images else "")


def spoken(metric: str) -> str:
    """A metric's name as a heading: words instead of underscores, abbreviations as the field writes them."""
    return ABBREVIATIONS.get(metric) or " ".join(ABBREVIATIONS.get(word, word) for word in metric.split("_"))


def number(value: float) -> str:
    """A value on the published scale, one decimal as the papers have it; CSV and JSON hold all digits."""
    return f"{value:,.1f}"


# =============================================================================
# Markdown
# =============================================================================


def markdown(runs: Sequence[RunScores], baselines: Sequence[Published]) -> str:
    """The whole report: the papers' Table 1, other benchmarks, notes, then every metric of every run."""
    table = board(runs, baselines)
    lines = ["# Leaderboard"]
    for section in table.sections:
        if section.title:
            lines += ["", f"## {section.title}"]
        for columns in _halves(table):
            rows = [(_named(line), *(line.cells[i] for i in columns)) for line in section.lines]
            rows = [row for row in rows if any(row[1:])]
            if rows:
                lines += ["", *_table(("model", *(table.headers[i] for i in columns)), rows, left=1)]
    lines += [
        "",
        "Measured values carry their 95 % interval, from the bootstrap over images (‡ few images carry the errors, or "
        "the right answers: a rough one); † published, not measured.",
    ]
    lines += ["", *(f"- {note}" for note in table.notes)]
    for run in sorted(runs, key=lambda run: table.tasks.index(run.task)):
        lines += ["", f"## {run.scores.title}: {text.markdown(run.scores.model)}", ""]
        lines += [" ".join([f"Task `{run.task}`{_links(run)}, split {run.scores.split}.", *_described(run)])]
        lines += _details(run)
    return "\n".join(lines) + "\n"


def _halves(table: Board) -> list[list[int]]:
    """The places of the columns of the papers' Table 1, and of the other benchmarks."""
    first = [i for i, task in enumerate(table.tasks) if task in TABLE_1]
    rest = [i for i, task in enumerate(table.tasks) if task not in TABLE_1]
    return [columns for columns in (first, rest) if columns]


def _named(line: Line) -> str:
    name = text.markdown(line.model)
    return f"{name} (published)" if line.kind == "published" else " ".join((f"**{name}**", *line.marks))


def _links(run: RunScores) -> str:
    """The benchmark's paper and official scorer; nothing for a task that this version does not know."""
    task = all_tasks().get(run.scores.task)
    return f" ([paper]({task.info.paper}), [official scorer]({task.info.scorer}))" if task else ""


def _described(run: RunScores) -> list[str]:
    scores = run.scores
    marks = [f"**{mark}**: {MEANING[mark]}." for mark in scores.marks]
    counts = f"{scores.n:,} questions, {scores.n_missing:,} missing, {scores.n_error:,} failed"
    counts += f", {scores.n_foreign:,} foreign." if scores.n_foreign else "."
    if scores.judge:
        marks.append(_by_judge(run))
    if run.manifest.decoding and not run.manifest.decoding.greedy:
        marks.append("Not deterministic: another run may give other answers.")
    return [counts, *marks, f"Run: [{text.markdown(run.source)}]({urllib.parse.quote(run.source, errors='replace')})."]


def _details(run: RunScores) -> list[str]:
    """One row per group of questions, one column per metric; groups with other metrics have a table of their own."""
    groups: dict[tuple[str, str, int], dict[str, Score]] = {}  # metrics over other questions go apart
    for score in run.scores.scores:
        groups.setdefault((score.split, score.category, score.n), {})[score.metric] = score
    tables: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for (split, category, _), found in groups.items():
        some = next(iter(found.values()))
        values = [f"**{shown(score)}**" if score.headline else shown(score) for score in found.values()]
        flaws = some.n_unparsed, some.n_truncated, some.n_missing, some.n_error, some.n_foreign
        counts = [f"{count:,}" for count in (some.n, some.n_images, *flaws)]
        tables.setdefault(tuple(found), []).append((text.markdown(split), text.markdown(category), *values, *counts))
    lines: list[str] = []
    for metrics, rows in tables.items():
        headers = ["split", "category", *map(spoken, metrics), "n", "images", "unparsed", *FLAWS[4:]]
        told = (
            1 if len({row[0] for row in rows}) == 1 and len(rows) > 1 else 0
        )  # one split for all stands above already
        lines += ["", *_table(headers[told:], [row[told:] for row in rows], left=2 - told)]
    return lines


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """A table whose first `left` columns are words, and whose others are numbers on the right."""
    rule = ["---"] * left + ["---:"] * (len(headers) - left)
    return ["| " + " | ".join(cells) + " |" for cells in (headers, rule, *rows)]


# =============================================================================
# Tidy CSV
# =============================================================================


def tidy(runs: Sequence[RunScores], baselines: Sequence[Published]) -> list[dict[str, Any]]:
    """One row per model, task, split, category and metric, with the columns `COLUMNS`; None if a cell is empty.

    Published rows have `status` "published" and neither counts nor intervals. Only baselines of the tasks that were
    run are listed.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        model, scores = run.manifest.model, run.scores
        shared = {
            "model": scores.model,
            "task": scores.task,
            "scoring": scores.scoring,
            "status": " ".join(["measured", *scores.marks]),
            "weights": model.weights if model else run.manifest.answers and f"sha256:{run.manifest.answers.sha256}",
            "dtype": model.dtype if model else None,
            "version": run.manifest.task.version,
            "key": run.manifest.key,
            "model_key": run.manifest.model_key,
            "source": run.source,
        }
        rows += [shared | asdict(score) for score in scores.scores]
        if not scores.scores:
            counts = {name: getattr(scores, name) for name in ("n", "n_missing", "n_error", "n_foreign")}
            place = {"split": scores.split, "category": "all", "metric": scores.headline}
            rows.append(shared | place | counts | {"headline": True})
    headlines = {run.scores.task: run.scores.headline for run in runs}
    for row in baselines:
        if row.task in headlines:
            rows.append(
                {
                    "model": row.model,
                    "task": row.task,
                    "split": row.split,
                    "category": row.category,
                    "metric": row.metric,
                    "value": row.value,
                    "headline": row.category == "all" and row.metric == headlines[row.task],
                    "status": "published",
                    "source": f"{row.source} ({row.note})" if row.note else row.source,
                }
            )
    return [{name: text.cell(v) if isinstance(v := row.get(name), str) else v for name in COLUMNS} for row in rows]


def as_csv(runs: Sequence[RunScores], baselines: Sequence[Published]) -> str:
    """The tidy table as CSV, numbers with all their digits."""
    made = io.StringIO()
    writer = csv.DictWriter(made, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(tidy(runs, baselines))
    return made.getvalue()


def write_leaderboard(out: Path, runs: Sequence[RunScores], baselines: Sequence[Published]) -> tuple[Path, Path]:
    """Write `leaderboard.md` and `leaderboard.csv` into `out`, atomically; their absolute paths."""
    paths = (out / "leaderboard.md").resolve(), (out / "leaderboard.csv").resolve()
    write_atomic(paths[0], markdown(runs, baselines))
    write_atomic(paths[1], as_csv(runs, baselines))
    return paths
