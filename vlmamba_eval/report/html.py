"""`report.html`: everything about some runs on one page that needs no server and no network.

What comes from files (names, questions, answers) is printed through Jinja's autoescape, or given to the page's script
as JSON that cannot end its element; the script writes it as text. The content-security policy lets nothing run but the
page's own script, known by its hash, and lets nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlmamba_eval import __version__
from vlmamba_eval.baselines import Published
from vlmamba_eval.compare import Comparison, Pair
from vlmamba_eval.images import open_image
from vlmamba_eval.report import comparison as words
from vlmamba_eval.report import cost as costs
from vlmamba_eval.report import text
from vlmamba_eval.report.comparison import interval, p_value, signed
from vlmamba_eval.report.plots import breakdown
from vlmamba_eval.report.tables import RunScores, rows_of_models, spoken
from vlmamba_eval.report.unreadable import commonest, golds
from vlmamba_eval.types import MEANING, DataError, ImageRef, Mark, Score

Pictures = Literal["embed", "link", "none"]
THUMBNAIL = 256  # pixels of the longer side
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


@dataclass(frozen=True)
class Answers:
    """What the page shows of one run's single questions: its verdicts, and the prompts that were really sent."""

    verdicts: Sequence[Mapping[str, Any]]
    sent: Mapping[str, str] = field(default_factory=dict)


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
    pictures: Pictures = "embed",
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
    data, keys = _questions(models, answers)
    shown, note = _pictures(keys, images or {}, pictures, folder, PAGE_BYTES - len(data), _interesting(data))
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
    tasks = _tasks(models)
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


def as_json(value: Any) -> str:
    """JSON that can be put into a script element of type application/json: no `<`, so that nothing can end it."""
    plain = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _models(runs: Sequence[RunScores]) -> list[Row]:
    rows = []
    for place, (name, found) in enumerate(rows_of_models(runs).items()):
        common = set.intersection(*(set(run.scores.marks) for run in found.values()))
        rows.append(Row(text.one_line(name), place, found, tuple(mark for mark in MEANING if mark in common)))
    return rows


def _tasks(models: Sequence[Row]) -> list[str]:
    """The tasks in the order of the leaderboard."""
    from vlmamba_eval.report.tables import in_order

    return in_order({task for model in models for task in model.runs})


def _run(models: Sequence[Row], task: str) -> RunScores:
    return next(model.runs[task] for model in models if task in model.runs)


def _titled(run: RunScores) -> str:
    scoring = "" if run.scores.scoring == "generate" else f" ({run.scores.scoring})"
    return text.one_line(run.scores.title + scoring)


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


def _interval(score: Score | None) -> str:
    if score is None or score.ci_low is None or score.ci_high is None:
        return ""
    return f"[{one_decimal(score.ci_low)}, {one_decimal(score.ci_high)}]"


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
                    "interval": _interval(score),
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
                "cells": [{"value": _value(score), "interval": _interval(score)} for score in scores],
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
                "between": _interval(score),
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
    for task in _tasks(models):
        for model in models:
            run = model.runs.get(task)
            if not run:
                continue
            scores = run.scores
            whole = next((s for s in scores.scores if s.n == scores.n), None)
            unparsed = max((s.n_unparsed for s in scores.scores), default=0)
            cut = max((s.n_truncated for s in scores.scores), default=0)
            unparsed, cut = (whole.n_unparsed, whole.n_truncated) if whole else (unparsed, cut)
            counts = (unparsed, cut, scores.n_missing, scores.n_error)
            cells = [f"{scores.n:,}", *(_share(count, scores.n) for count in counts)]
            rows.append({"task": _titled(run), "run": model, "cells": cells})
    return rows


def _share(count: int, n: int) -> str:
    return "0" if not count else f"{count:,} ({100 * count / n:.1f} %)"


def _unreadable(models: Sequence[Row], answers: Mapping[str, Answers]) -> list[dict[str, Any]]:
    blocks = []
    for task in _tasks(models):
        for model in models:
            run = model.runs.get(task)
            if run is None or run.source not in answers:
                continue
            rows, total, right = commonest(answers[run.source].verdicts)
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
                "anchor": "start" if x(s) < 180 else "end" if x(s) > 340 else "middle",
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
    for task in _tasks(models):
        for model in models:
            run = model.runs.get(task)
            if run is None:
                continue
            flat = _flat(msgspec.to_builtins(run.manifest))
            facts = [("run", run.source), ("key", run.manifest.key), *flat]
            events = telemetry.get(run.source, ())
            command = next((event["command"] for event in reversed(events) if event.get("command")), "")
            for name in ("version", "machine", "python", "answers"):
                value = next((event[name] for event in reversed(events) if event.get(name)), None)
                if value is not None:
                    facts.append((f"written with {name}" if name != "answers" else "answer file", str(value)))
            facts = [(name, text.one_line(value)) for name, value in facts]
            items.append({"task": _titled(run), "run": model, "facts": facts, "command": text.printable(str(command))})
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


# =============================================================================
# Single questions
# =============================================================================


def _questions(models: Sequence[Row], answers: Mapping[str, Answers]) -> tuple[str, list[str]]:
    """The page's data as JSON, and the keys of the pictures in the order of their numbers.

    Columns instead of rows, and every text once: 8,910 questions of two runs take about a megabyte.
    """
    pictures: dict[str, int] = {}
    tasks = []
    for name in _tasks(models):
        asked = [
            (m.place, answers[m.runs[name].source]) for m in models if name in m.runs and m.runs[name].source in answers
        ]
        for number, alike in enumerate(_alike(asked)):
            title = _titled(_run(models, name)) + (f" (list {number + 1})" if number else "")
            tasks.append(_columns(name + (f" {number + 1}" if number else ""), title, alike, pictures))
    return as_json({"runs": [model.name for model in models], "tasks": tasks}), list(pictures)


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


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts `popular/9` before `popular/10`."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdecimal() and part.isascii() else (0, 0, part) for part in parts]


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


def _interesting(data: str) -> list[int]:
    """The numbers of the pictures, those first on which runs differ or are wrong."""
    wanted: dict[int, int] = {}
    for task in json.loads(data)["tasks"]:
        for i, image in enumerate(task["image"]):
            if image >= 0:
                signs = {run["signs"][i] for run in task["answers"]}
                rank = 0 if len(signs - {"-"}) > 1 else 1 if signs - {"r", "-"} else 2
                wanted[image] = min(rank, wanted.get(image, 2))
    return sorted(wanted, key=lambda image: (wanted[image], image))


# =============================================================================
# Pictures
# =============================================================================


def _pictures(
    keys: Sequence[str],
    images: Mapping[str, ImageRef],
    choice: Pictures,
    folder: Path | None,
    room: int,
    order: Sequence[int],
) -> tuple[str, str]:
    """The pictures as JSON, by number (null: not there), and a sentence about them."""
    if not keys:
        return "[]", "These questions have no pictures."
    shown: list[str | None] = [None] * len(keys)
    if choice == "none":
        return as_json([]), "Pictures were left out of this page (--images none)."
    if choice == "link":
        for number in order:
            ref = images.get(keys[number])
            if ref and ref.path and not ref.member:
                shown[number] = _link(Path(ref.path), folder)
        there = sum(item is not None for item in shown)
        return as_json(
            shown
        ), f"{there:,} of {len(keys):,} pictures are read from where the benchmark is on this machine."
    used = 0
    with ThreadPoolExecutor(2, thread_name_prefix="thumbnail") as pool:
        refs = [images.get(keys[number]) for number in order]
        for number, small in zip(order, pool.map(_thumbnail, refs), strict=True):
            if small is not None and used + len(small) + 4 <= room:
                shown[number] = small
                used += len(small) + 4
    there = sum(item is not None for item in shown)
    if there == len(keys):
        return as_json(shown), f"{there:,} pictures, at most {THUMBNAIL} pixels a side, are part of this page."
    missing = (
        "the others would make it larger than 30 MB: --images link reads them from the disk"
        if there
        else "where the benchmark is was not found: give its folder with --data"
    )
    return as_json(shown), f"{there:,} of {len(keys):,} pictures are part of this page; {missing}."


def _thumbnail(ref: ImageRef | None) -> str | None:
    """A small JPEG as base64; None if the picture can't be read, which its question's verdict says anyway."""
    if ref is None:
        return None
    try:
        image = open_image(ref)
    except DataError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=72, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _link(path: Path, folder: Path | None) -> str:
    """A file's address as seen from the page."""
    resolved = path.resolve()
    if folder is None:
        return resolved.as_uri()
    return urllib.parse.quote(os.fsencode(Path(os.path.relpath(resolved, folder.resolve())).as_posix()))
