"""`report.html`: everything about some runs on one page that needs no server and no network.

What comes from files (names, questions, answers) is printed through Jinja's autoescape, or given to the page's script
as JSON that cannot end its element; the script writes it as text. The content-security policy lets nothing run but the
page's own script, known by its hash, and lets nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import math
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmamba_eval import __version__, text
from vlmamba_eval.baselines import Published
from vlmamba_eval.compare import Comparison, Pair
from vlmamba_eval.report import comparison as words
from vlmamba_eval.report import cost as costs
from vlmamba_eval.report import tables, thumbnails
from vlmamba_eval.report.comparison import interval, p_value, signed
from vlmamba_eval.report.plots import breakdown
from vlmamba_eval.report.questions import Answers, interesting, questions
from vlmamba_eval.report.tables import RunScores, in_order, rows_of_models, spoken
from vlmamba_eval.report.unreadable import commonest
from vlmamba_eval.types import MEANING, ImageRef, Mark, Score, by_scoring

PAGE_BYTES = 29_000_000  # of a whole page; pictures that do not fit any more are left out
COLOURS = 8


@dataclass(frozen=True)
class Row:
    """One model of the page: its letter, colour, name and the marks that all of its runs share."""

    name: str
    place: int
    runs: Mapping[str, RunScores]
    marks: tuple[str, ...] = ()

    @property
    def letter(self) -> str:
        """A to Z, as the page's script counts them too."""
        return chr(ord("A") + self.place % 26)

    @property
    def colour(self) -> int:
        """The number of its colour."""
        return self.place % COLOURS


# =============================================================================
# The page
# =============================================================================


def page(
    runs: Sequence[RunScores],
    answers: Mapping[str, Answers],
    *,
    baselines: Sequence[Published] = (),
    compared: Comparison | None = None,
    unpaired: str = "",
    images: Mapping[str, ImageRef] | None = None,
    pictures: thumbnails.Choice = "embed",
    folder: Path | None = None,
    telemetry: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    command: str = "",
) -> str:
    """The page as HTML.

    `answers` and `telemetry` are by the runs' `source`; `images` by image key; `compared` holds the pairs, and
    `unpaired` says why there are none. With `pictures="link"` pictures are named relative to `folder`.
    """
    import jinja2
    from markupsafe import Markup

    models = _models(runs)
    tasks = _tasks(models)
    lists = []
    for task in tasks:
        asked = [(run, model.place) for model in models if (run := model.runs.get(task)) and run.source in answers]
        lists.append((task, _titled(_run(models, task)), [(place, answers[run.source]) for run, place in asked]))
    data, keys = questions(lists, [model.name for model in models])
    room = PAGE_BYTES - len(data)
    shown, note = thumbnails.pictures(keys, images or {}, pictures, folder, room, interesting(data))
    here = Path(__file__).with_name("page")
    css, js = (here.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    links = "" if pictures != "link" else " file: 'self'"
    policy = (
        f"default-src 'none'; img-src data:{links}; style-src '{_hash(css)}'; script-src '{_hash(js)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(here, encoding="utf-8"),
    )
    return environment.get_template("page.html.j2").render(
        title=_title(models, tasks),
        version=__version__,
        policy=policy,
        css=Markup(css),  # noqa: S704 - a file of ours
        js=Markup(js),  # noqa: S704 - a file of ours
        data=Markup(data),  # noqa: S704 - JSON without any "<"
        pictures=Markup(shown),  # noqa: S704 - the same
        meaning=MEANING | {"SHARED": words.SHARED, "FEW IMAGES": words.FEW},
        models=models,
        board=_board(models, baselines),
        forests=_forests(models, tasks, baselines),
        pairs=[_pair(pair, models) for pair in compared.pairs] if compared else [],
        pair_plots=_pair_plots(compared, models),
        unpaired=unpaired,
        tasks=[_task(task, [model for model in models if task in model.runs]) for task in tasks],
        readability=_readability(models),
        unreadable=_unreadable(models, answers),
        command=command,
        pictures_note=note,
        provenance=_provenance(models, telemetry or {}),
        **_cost(models, tasks, telemetry or {}),
    )


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _models(runs: Sequence[RunScores]) -> list[Row]:
    rows = []
    for place, (name, found) in enumerate(rows_of_models(runs).items()):
        common = set.intersection(*(set(run.scores.marks) for run in found.values()))
        rows.append(Row(text.one_line(name), place, found, tuple(mark for mark in MEANING if mark in common)))
    return rows


def _tasks(models: Sequence[Row]) -> list[str]:
    """The tasks in the order of the leaderboard."""
    return in_order({task for model in models for task in model.runs})


def _each(models: Sequence[Row]) -> Iterator[tuple[Row, RunScores]]:
    """Every run with its model, task by task."""
    for task in _tasks(models):
        yield from ((model, model.runs[task]) for model in models if task in model.runs)


def _run(models: Sequence[Row], task: str) -> RunScores:
    return next(model.runs[task] for model in models if task in model.runs)


def _titled(run: RunScores) -> str:
    return text.one_line(by_scoring(run.scores.title, run.scores.scoring))


def _title(models: Sequence[Row], tasks: Sequence[str]) -> str:
    one = _titled(_run(models, tasks[0])) if len(tasks) == 1 else f"{len(tasks)} benchmarks"
    who = " and ".join(model.name for model in models) if len(models) <= 2 else f"{len(models)} models"
    return f"{who} on {one}"


# =============================================================================
# Numbers
# =============================================================================


def one_decimal(value: float | None) -> str:
    """A value as the tables show it."""
    return "-" if value is None else f"{value:,.1f}"


def _value(score: Score | None) -> str:
    if score is None:
        return ""
    return f"{score.value:,.0f}" if score.plain and score.value is not None else one_decimal(score.value)


def _quoted(baselines: Sequence[Published], run: RunScores) -> list[Published]:
    return [
        row
        for row in baselines
        if (row.task, row.metric, row.category) == (run.scores.task, run.scores.headline, "all")
        and run.scores.scoring == "generate"
    ]


def comparable(models: Sequence[Row]) -> bool:
    """Whether any measured number may be shown beside published ones: not samples, not random weights."""
    return any(not {"SAMPLES", "UNTRAINED"} & set(run.scores.marks) for row in models for run in row.runs.values())


def _board(models: Sequence[Row], baselines: Sequence[Published]) -> dict[str, Any]:
    tasks = _tasks(models)
    firsts = [_run(models, task) for task in tasks]
    best = {}
    for task in tasks:
        values = [_number(model.runs[task]) for model in models if task in model.runs]
        clean = [value for value in values if value is not None]
        best[task] = max(clean) if len(clean) > 1 else None
    measured = []
    for model in models:
        cells = []
        for task in tasks:
            run = model.runs.get(task)
            score = run.headline if run else None
            marks = [mark for mark in run.scores.marks if mark not in model.marks] if run else []
            cells.append(
                {
                    "value": _value(score) if score else "-" if run else "",
                    "interval": tables.interval(score),
                    "marks": marks,
                    "best": bool(run) and best[task] is not None and _number(run) == best[task],
                }
            )
        measured.append({"model": model, "cells": cells})
    quoted, notes = [], []
    fair = comparable(models)
    for name in dict.fromkeys(row.model for row in baselines):
        own = {row.task: row for first in firsts for row in _quoted(baselines, first) if row.model == name}
        if own and fair:
            cells = [f"{one_decimal(own[t.scores.task].value)}†" if t.scores.task in own else "" for t in firsts]
            quoted.append({"name": next(iter(own.values())).title, "cells": cells})
            notes += [
                f"† {row.title} on {row.task}: {row.source}{row.note and '; '}{row.note}." for row in own.values()
            ]
    marks = {mark for model in models for run in model.runs.values() for mark in run.scores.marks}
    seen: list[Mark] = [mark for mark in MEANING if mark in marks]
    return {
        "headers": [f"{_titled(run)} {spoken(run.scores.headline)}" for run in firsts],
        "measured": measured,
        "quoted": quoted,
        "incomparable": bool(baselines) and not fair,
        "notes": [f"{mark}: {MEANING[mark]}." for mark in seen],
        "sources": notes,
    }


def _number(run: RunScores | None) -> float | None:
    return run.headline.value if run and run.headline else None


# =============================================================================
# Forest plots
# =============================================================================


def _scale(values: Iterable[float | None], *, zero: bool = False) -> tuple[float, float]:
    found = [value for value in values if value is not None] + [0.0] * zero
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def _forests(models: Sequence[Row], tasks: Sequence[str], baselines: Sequence[Published]) -> list[dict[str, Any]]:
    """One plot per task: each run with its interval, then the published values, all on one scale."""
    plots = []
    for task in tasks:
        run = _run(models, task)
        quoted = _quoted(baselines, run) if comparable(models) else []
        rows: list[tuple[Row | None, str, float | None, float | None, float | None]] = []
        for model in models:
            score = model.runs[task].headline if task in model.runs else None
            if score and score.value is not None:
                rows.append((model, model.name, score.value, score.ci_low, score.ci_high))
        rows += [(None, f"{row.title}†", row.value, None, None) for row in quoted]
        if rows:
            title = f"{_titled(run)}, {spoken(run.scores.headline)}"
            plots.append(_forest(title, rows, one_decimal, {m.name: _own_marks(m, task) for m in models}))
    return plots


def _own_marks(model: Row, task: str) -> list[str]:
    return [mark for mark in model.runs[task].scores.marks if mark not in model.marks] if task in model.runs else []


def _forest(
    title: str, rows: Sequence[tuple[Any, ...]], show: Any, marks: Mapping[str, Sequence[str]], *, zero: bool = False
) -> dict[str, Any]:
    low, high = _scale([value for row in rows for value in row[2:5]], zero=zero)

    def place(value: float | None) -> float | None:
        return None if value is None else round(100 * (value - low) / (high - low), 3)

    shown = []
    for model, name, value, ci_low, ci_high in rows:
        between = "" if ci_low is None else f"[{show(ci_low)}, {show(ci_high)}]"
        shown.append(
            {
                "name": name,
                "letter": model.letter if model else "",
                "colour": model.colour if model else 0,
                "quoted": model is None,
                "marks": marks.get(name, []),
                "at": place(value),
                "low": place(ci_low),
                "high": place(ci_high),
                "text": show(value) + "†" * (model is None),
                "between": between,
            }
        )
    ends = (show(low), show(high))
    return {"title": title, "rows": shown, "start": ends[0], "end": ends[1], "zero": place(0.0) if zero else None}


def _pair_plots(compared: Comparison | None, models: Sequence[Row]) -> list[dict[str, Any]]:
    """The headlines' differences, those in percent on one scale and those of larger scales (MME) on another."""
    plots = []
    for large in (False, True):
        rows = []
        for pair in compared.pairs if compared else ():
            d = pair.headline
            if (max(abs(d.a or 0), abs(d.b or 0)) > 100) == large:
                side, other = _side(models, pair.b), _side(models, pair.a)
                name = f"{pair.title}: {side.letter} − {other.letter}"
                rows.append((side, name, d.difference, d.ci_low, d.ci_high))
        if rows:
            title = "Differences of the headlines, in points" + " of a larger scale than percent" * large
            plots.append(_forest(title, rows, signed, {}, zero=True))
    return plots


def _side(models: Sequence[Row], name: str) -> Row:
    return next((model for model in models if model.name == name), Row(name, len(models), {}))


def _pair(pair: Pair, models: Sequence[Row]) -> dict[str, Any]:
    a, b = _side(models, pair.a), _side(models, pair.b)
    found = pair.headline
    runs = [model for model in models if pair.task in model.runs]

    def link(winner: Row, loser: Row) -> str:
        query = {"better": f"{runs.index(winner)}>{runs.index(loser)}"}
        if found.group != "all":
            query["group"] = found.group
        return f"#q/{urllib.parse.quote(pair.task, safe='')}/?{urllib.parse.urlencode(query)}"

    return {
        "title": f"{pair.title} {spoken(found.metric)}",
        "a": a,
        "b": b,
        "marks": [
            *(m for m in pair.marks if m != "INCOMPLETE" or not pair.shared),
            *(["SHARED"] if pair.shared else []),
            *(["FEW IMAGES"] if pair.few and (pair.only_a or pair.only_b) else []),
        ],
        "verdict": words.verdict(pair),
        "value_a": words.number(found.a),
        "value_b": words.number(found.b),
        "difference": signed(found.difference),
        "interval": interval(found),
        "p": p_value(pair.p) if pair.p is not None else "",
        "holm": p_value(pair.p_holm),
        "only_a": f"{pair.only_a:,}",
        "only_b": f"{pair.only_b:,}",
        "link_a": link(a, b) if a in runs and b in runs else "",
        "link_b": link(b, a) if a in runs and b in runs else "",
        "facts": list(words.facts(pair)),
        "parts": [
            {
                "group": group,
                "n": f"{n:,}",
                "only_a": f"{only_a:,}",
                "only_b": f"{only_b:,}",
                "difference": signed(d.difference) if d else "",
                "interval": interval(d) if d else "",
            }
            for group, d, n, only_a, only_b in words.where(pair)
        ],
    }


# =============================================================================
# One benchmark
# =============================================================================


def _task(name: str, models: Sequence[Row]) -> dict[str, Any]:
    from vlmamba_eval.registry import all_tasks

    runs = {model.name: model.runs[name] for model in models}
    first = next(iter(runs.values())).scores
    info = all_tasks()[first.task].info if first.task in all_tasks() else None
    by_run = [{(s.split, s.category, s.metric): s for s in runs[model.name].scores.scores} for model in models]
    keys = list(dict.fromkeys(key for scores in by_run for key in scores))
    metrics = []
    for key in keys:
        scores = [own.get(key) for own in by_run]
        some = next(score for score in scores if score)
        metrics.append(
            {
                "split": key[0],
                "category": key[1],
                "metric": spoken(key[2]),
                "cells": [{"value": _value(score), "interval": tables.interval(score)} for score in scores],
                "n": f"{some.n:,}",
                "images": f"{some.n_images:,}",
            }
        )
    bars, title = _bars(models, by_run, first.headline)
    return {
        "title": _titled(next(iter(runs.values()))),
        "described": f"{info.measures[0].upper() + info.measures[1:]}. {first.split}, {first.n:,} questions."
        if info
        else f"{first.split}, {first.n:,} questions.",
        "paper": info.paper if info else "",
        "scorer": info.scorer if info else "",
        "runs": models,
        "metrics": metrics,
        "confusions": _confusions(models, by_run),
        "bars": bars,
        "bar_title": title,
    }


def _confusions(models: Sequence[Row], by_run: Sequence[Mapping[Any, Score]]) -> list[dict[str, Any]]:
    """A table of outcomes for each split that reports TP, FP, TN and FN, with the share of yes."""
    places = dict.fromkeys((split, category) for own in by_run for split, category, metric in own if metric == "tp")
    cards = []
    for split, category in places:
        for model, own in zip(models, by_run, strict=True):
            found = [own.get((split, category, outcome)) for outcome in ("tp", "fp", "tn", "fn")]
            counts = [round(score.value) for score in found if score and score.value is not None]
            if len(counts) != 4:
                continue
            tp, fp, tn, fn = counts
            total = tp + fp + tn + fn
            said = own.get((split, category, "yes_ratio"))
            gold = 100 * (tp + fn) / total if total else None
            cards.append(
                {
                    "split": split if category == "all" else category,
                    "run": model,
                    **{name: f"{count:,}" for name, count in zip(("tp", "fp", "tn", "fn"), counts, strict=True)},
                    "ratio": f"says yes {one_decimal(said.value if said else None)} %, gold {one_decimal(gold)} %",
                }
            )
    return cards


def _bars(
    models: Sequence[Row], by_run: Sequence[Mapping[Any, Score]], headline: str
) -> tuple[list[dict[str, Any]], str]:
    """The metric that is most like the headline for each group of questions, as bars."""
    groups = breakdown([list(own.values()) for own in by_run], headline)
    bars = []
    for name, (split, category, metric) in groups:
        scores = [own.get((split, category, metric)) for own in by_run]
        values = [score.value for own in by_run for (_, _, m), score in own.items() if m == metric and score.value]
        top = 100.0 if max(values, default=0) <= 100 else 200.0 if max(values) <= 200 else max(values)
        rows = [
            {
                "run": model,
                "width": round(100 * max(0.0, min(1.0, (score.value or 0) / top)), 2),
                "text": one_decimal(score.value),
                "between": tables.interval(score),
            }
            for model, score in zip(models, scores, strict=True)
            if score
        ]
        bars.append({"group": name, "rows": rows})
    names = dict.fromkeys(spoken(metric) for _, (_, _, metric) in groups)
    return bars, " and ".join(names)


# =============================================================================
# Readability, cost, provenance
# =============================================================================


def _readability(models: Sequence[Row]) -> list[dict[str, Any]]:
    rows = []
    for model, run in _each(models):
        scores = run.scores
        whole = [s for s in scores.scores if s.n == scores.n][:1] or scores.scores
        unparsed, cut = (max((getattr(s, count) for s in whole), default=0) for count in ("n_unparsed", "n_truncated"))
        counts = (unparsed, cut, scores.n_missing, scores.n_error, scores.n_foreign)
        cells = [f"{scores.n:,}", *(_share(count, scores.n) for count in counts)]
        rows.append({"task": _titled(run), "run": model, "cells": cells})
    return rows


def _share(count: int, n: int) -> str:
    return "0" if not count else f"{count:,} ({100 * count / n:.1f} %)"


def _unreadable(models: Sequence[Row], answers: Mapping[str, Answers]) -> list[dict[str, Any]]:
    blocks = []
    for model, run in _each(models):
        rows, total, right = commonest(answers[run.source].verdicts) if run.source in answers else ((), 0, 0)
        if not rows:
            continue
        shown = [
            {
                "count": f"{row.count:,}",
                "answer": text.one_line(row.answer)[:300] or "(empty)",
                "gold": text.one_line(row.gold)[:200],
                "reading": text.one_line(row.reading) or "none",
                "right": f"{row.right:,}",
            }
            for row in rows
        ]
        summary = (
            f"{total:,} of {run.scores.n:,} answers. Read in the way of the fourth column, {right:,} of them would "
            "be right; the score stays that of the official parser."
        )
        blocks.append({"task": _titled(run), "run": model, "rows": shown, "summary": summary})
    return blocks


def _cost(
    models: Sequence[Row], tasks: Sequence[str], telemetry: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    rows, points = [], {task: [] for task in tasks}
    for model in models:
        found = costs.cost([telemetry.get(run.source, ()) for run in model.runs.values()])
        asked = sum(run.scores.n - run.scores.n_missing for run in model.runs.values())
        if found.seconds is None:
            continue
        per_thousand = 1000 * found.seconds / max(asked, 1)
        headlines = [(_titled(run), _number(run)) for run in model.runs.values()]
        rows.append(
            {
                "run": model,
                "task": f"{asked:,} questions",
                "score": ", ".join(f"{title} {one_decimal(value)}" for title, value in headlines),
                "seconds": f"{per_thousand:,.1f}",
                "parameters": costs.millions(found.parameters),
                "state": costs.size(found.state_bytes),
                "where": text.one_line(found.where),
            }
        )
        for task, run in model.runs.items():
            if (value := _number(run)) is not None:
                points[task].append((model, per_thousand, value))
    plots = [_scatter(_titled(_run(models, task)), found) for task, found in points.items() if len(found) > 1]
    return {"cost": rows, "cost_plots": plots}


def _scatter(title: str, points: Sequence[tuple[Row, float, float]]) -> dict[str, Any]:
    """Score against time, the time on a scale of powers."""
    x_low, x_high = _scale([math.log10(max(seconds, 1e-3)) for _, seconds, _ in points])
    y_low, y_high = _scale([value for _, _, value in points])

    def x(seconds: float) -> float:
        return round(50 + 415 * (math.log10(max(seconds, 1e-3)) - x_low) / (x_high - x_low), 1)

    def y(value: float) -> float:
        return round(205 - 190 * (value - y_low) / (y_high - y_low), 1)

    ticks = sorted({seconds for _, seconds, _ in points})
    return {
        "title": f"{title}: score against time",
        "xs": [{"at": x(seconds), "label": f"{seconds:,.1f}"} for seconds in (ticks[0], ticks[-1])],
        "ys": [{"at": y(value), "label": f"{value:,.1f}"} for value in (y_low, y_high)],
        "points": [
            {
                "run": model,
                "x": x(s),
                "y": y(value),
                "anchor": _anchor(x(s)),
            }
            for model, s, value in points
        ],
    }


def _anchor(x: float) -> str:
    """On which side of its dot a label has room."""
    return "start" if x < 180 else "end" if x > 340 else "middle"


def _provenance(models: Sequence[Row], telemetry: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    import msgspec

    items = []
    for model, run in _each(models):
        facts = [("run", run.source), ("key", run.manifest.key), *_flat(msgspec.to_builtins(run.manifest))]
        events = telemetry.get(run.source, ())
        last = {name: value for event in events for name, value in event.items() if value}
        for name in ("version", "machine", "python", "answers"):
            if name in last:
                facts.append(("answer file" if name == "answers" else f"written with {name}", str(last[name])))
        facts = [(name, text.one_line(value)) for name, value in facts]
        command = text.printable(str(last.get("command", "")))
        items.append({"task": _titled(run), "run": model, "facts": facts, "command": command})
    return items


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested fields as (`a.b`, text); empty ones are left out."""
    found: list[tuple[str, str]] = []
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            found += _flat(inner, f"{prefix}{name}.")
        elif inner not in (None, "", [], ()):
            shown = ", ".join(map(str, inner)) if isinstance(inner, (list, tuple)) else str(inner)
            found.append((prefix + name, shown))
    return found
