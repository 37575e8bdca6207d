"""Pictures for papers and pages: intervals, breakdowns, speed against length. PNG, SVG or PDF, by the file's name.

One style: titles in words, every line named where it ends, nothing told only by colour, two pixels for one.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmamba_eval import text
from vlmamba_eval.baselines import Published
from vlmamba_eval.report.tables import RunScores, in_order, number, rows_of_models, spoken
from vlmamba_eval.types import MEANING, DataError, Mark, Score, UsageError, by_scoring

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = (".png", ".svg", ".pdf")
INK, SOFT, RULE = "#1b2430", "#55606f", "#d9dee5"
COLOURS = ("#0b5cad", "#b5500b", "#5b3fa8", "#17703a", "#a3195b", "#5c5c00", "#00687a", "#6b4a2b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MAX_GROUPS = 30


@contextmanager
def style() -> Iterator[Any]:
    """matplotlib in the project's style, without a screen. Raises `UsageError` if it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise UsageError("A plot needs matplotlib: pip install 'vlmamba-eval[bench]'.") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings: Any = {
        "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": SOFT, "axes.labelcolor": SOFT,
        "text.color": INK, "xtick.color": SOFT, "ytick.color": SOFT, "axes.grid": True, "grid.color": RULE,
        "grid.linewidth": 0.6, "axes.axisbelow": True, "svg.fonttype": "none", "svg.hashsalt": "vlmamba-eval",
        "pdf.fonttype": 42, "savefig.dpi": 200, "text.parse_math": False,
    }  # fmt: skip
    with plt.rc_context(settings):
        yield plt


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as its name says; its absolute path. The same figure gives the same bytes. Raises `UsageError`."""
    import matplotlib.pyplot as plt

    if path.suffix.lower() not in KINDS:
        raise UsageError(f"{path}: expected a name that ends in {', '.join(KINDS)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
    figure.savefig(path, bbox_inches="tight", pad_inches=0.12, metadata=dates)
    plt.close(figure)
    return path.resolve()


# =============================================================================
# Scores
# =============================================================================


def forest(runs: Sequence[RunScores], baselines: Sequence[Published], path: Path) -> Path:
    """Each model's headline with its interval, a panel per task; published values as ticks beside comparable ones."""
    models = rows_of_models(runs)
    tasks = [
        task
        for task in in_order({run.task for run in runs})
        if any(_head(found.get(task)) for found in models.values())
    ]
    if not tasks:
        raise DataError("None of these runs has a score to draw.")
    panels = [_forest_rows(task, models, baselines) for task in tasks]
    with style() as plt:
        heights = [len(rows) + 1.6 for _, rows in panels]
        figure, grid = plt.subplots(
            len(panels), 1, figsize=(6.4, 0.26 * sum(heights) + 0.5), squeeze=False, height_ratios=heights
        )
        for axes, (title, rows) in zip(grid[:, 0], panels, strict=True):
            _forest_panel(axes, title, rows)
        note = "Lines: 95 % interval (bootstrap over images). † published, not measured." + _marked(runs)
        figure.text(0.01, 0, note, color=SOFT, va="top", fontsize=8)
        figure.tight_layout(h_pad=1.1)
        return save(figure, path)


def _head(run: RunScores | None) -> Score | None:
    return run.headline if run and run.headline and run.headline.value is not None else None


def _forest_rows(
    task: str, models: Mapping[str, Mapping[str, RunScores]], baselines: Sequence[Published]
) -> tuple[str, list[tuple[str, int | None, Any, Any, Any]]]:
    """The panel's title and rows: name, colour (None: published), value, low, high."""
    first = next(found[task] for found in models.values() if task in found)
    rows: list[tuple[str, int | None, Any, Any, Any]] = []
    fair = False
    for place, (name, found) in enumerate(models.items()):
        head = _head(found.get(task))
        if head is not None:
            marks = found[task].scores.marks
            fair = fair or not {"SAMPLES", "UNTRAINED"} & set(marks)
            label = " ".join((text.one_line(name), *marks))
            rows.append((label, place, head.value, head.ci_low, head.ci_high))
    for row in baselines if fair and first.scores.scoring == "generate" else ():
        if (row.task, row.metric, row.category) == (first.scores.task, first.scores.headline, "all"):
            rows.append((f"{row.title}†", None, row.value, None, None))
    return by_scoring(f"{first.scores.title}, {spoken(first.scores.headline)}", first.scores.scoring), rows


def _forest_panel(axes: Axes, title: str, rows: Sequence[tuple[str, int | None, Any, Any, Any]]) -> None:
    for y, (_, place, value, low, high) in enumerate(rows):
        if place is None:
            axes.plot([value], [y], marker="|", markersize=11, markeredgewidth=2, color=SOFT, linestyle="none")
        else:
            colour = COLOURS[place % len(COLOURS)]
            if low is not None:
                axes.plot([low, high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot([value], [y], marker=MARKERS[place % len(MARKERS)], markersize=6, color=colour, linestyle="none")
        between = "" if low is None else f"  [{number(low)}, {number(high)}]"
        axes.annotate(
            f"{number(value)}{between}", (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=8,
            color=SOFT if place is None else INK, annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.06)
    axes.set_title(title)


def _marked(runs: Sequence[RunScores]) -> str:
    seen: list[Mark] = [mark for mark in MEANING if any(mark in run.scores.marks for run in runs)]
    return "".join(f"\n{mark}: {MEANING[mark]}." for mark in seen)


def bars(runs: Sequence[RunScores], task: str, path: Path) -> Path:
    """A benchmark's groups of questions, a bar with its interval for each model. Raises `UsageError`."""
    models = {name: found[task] for name, found in rows_of_models(runs).items() if task in found}
    if not models:
        have = ", ".join(in_order({run.task for run in runs}))
        raise UsageError(f"--task {task}: none of these runs has it; they have {have}.")
    first = next(iter(models.values())).scores
    groups = breakdown([run.scores.scores for run in models.values()], first.headline)
    if not groups:
        raise DataError(f"{task} has no groups of questions to draw.")
    left_out = max(0, len(groups) - MAX_GROUPS)
    groups = groups[:MAX_GROUPS]
    with style() as plt:
        step = len(models) + 0.7
        figure, axes = plt.subplots(figsize=(6.4, 0.21 * step * len(groups) + 1.2))
        for place, (name, run) in enumerate(models.items()):
            found = {(s.split, s.category, s.metric): s for s in run.scores.scores}
            own = [(i, found.get(key)) for i, (_, key) in enumerate(groups)]
            drawn = [(i * step + place, score) for i, score in own if score and score.value is not None]
            colour = COLOURS[place % len(COLOURS)]
            label = f"{text.one_line(name)} {' '.join(run.scores.marks)}".strip()
            axes.barh(
                [y for y, _ in drawn], [score.value or 0 for _, score in drawn], height=0.86, color=colour, label=label,
                hatch=("", "///", "...", "xxx")[place % 4], edgecolor="white", linewidth=0,
            )  # fmt: skip
            for y, score in drawn:
                if score.ci_low is not None and score.ci_high is not None:
                    axes.plot([score.ci_low, score.ci_high], [y, y], color=INK, linewidth=1)
                axes.annotate(
                    number(score.value or 0), (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=7.5,
                    annotation_clip=False, color=INK,
                )  # fmt: skip
        middle = (len(models) - 1) / 2
        axes.set_yticks([i * step + middle for i in range(len(groups))], [text.one_line(name) for name, _ in groups])
        axes.set_ylim(len(groups) * step - 0.5, -0.9)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(left=0)
        metrics = " and ".join(dict.fromkeys(spoken(key[2]) for _, key in groups))
        axes.set_title(f"{first.title}: {metrics} by group of questions", pad=22 if len(models) > 1 else 8)
        if len(models) > 1:
            axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=min(3, len(models)), fontsize=8)
        if left_out:
            axes.set_xlabel(f"{left_out} more groups are in the tables")
        return save(figure, path)


def breakdown(runs: Sequence[Sequence[Score]], headline: str) -> list[tuple[str, tuple[str, str, str]]]:
    """A benchmark's groups of questions, each with the metric that is most like the headline (mean F1: F1).

    As (name, (split, category, metric)), in the order of the tables.
    """
    keys = dict.fromkeys((s.split, s.category, s.metric) for scores in runs for s in scores if not s.plain)
    heads = {(s.split, s.category) for scores in runs for s in scores if s.headline}
    places: dict[tuple[str, str], list[str]] = {}
    for split, category, metric in keys:
        places.setdefault((split, category), []).append(metric)
    chosen = []
    for (split, category), metrics in places.items():
        alike = [m for m in metrics if m == headline or headline.endswith(m)]
        alike += [m for m in metrics if m in ("score", "accuracy")]
        if alike and (split, category) not in heads:
            chosen.append((split, category, alike[0]))
    splits = {split for split, _, _ in chosen}
    return [
        (split if category == "all" else category if len(splits) == 1 else f"{split}, {category}", (split, category, m))
        for split, category, m in chosen
    ]


# =============================================================================
# Speed
# =============================================================================

_MODES = {
    "shared": "an image read once",
    "unshared": "read again for each question, in micro-batches",
    "one-by-one": "read again, one by one",
    "transformers": "transformers, one by one",
    "transformers-batched": "transformers, in batches",
}


def read_speed(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file that `vlmamba-eval bench` wrote, numbers as numbers. Raises `DataError`."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read ({error}). Expected a CSV file of `vlmamba-eval bench`.") from None
    if not rows or not {"profile", "mode", "prefix_tokens", "seconds"} <= set(rows[0]):
        raise DataError(f"{path} is not a CSV file of `vlmamba-eval bench`: it lacks its columns.")
    return rows


def machine_of(path: Path) -> str:
    """The processor that a measurement's Markdown file, beside its CSV, names; else nothing."""
    try:
        lines = path.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    told = dict(line[2:].split(": ", 1) for line in lines if line.startswith("- ") and ": " in line)
    return told.get("GPU") or told.get("processor", "")


def _number(value: str | None) -> Any:
    if not value:
        return None
    try:
        return float(value)
    except ValueError:
        return value


def speed(rows: Sequence[Mapping[str, Any]], where: str, path: Path) -> Path:
    """Seconds (and memory) of a measurement: against length, against questions, or a bar for each contestant."""
    profile, dtype = rows[0]["profile"], rows[0]["dtype"]
    with style() as plt:
        if profile == "lengths":
            figure, (time, memory) = plt.subplots(1, 2, figsize=(10.5, 3.6))
            _curves(time, rows, "prefix_tokens", ("seconds", "seconds_min", "seconds_max"))
            time.set(xlabel="tokens of the text", title="Seconds to read a text")
            _curves(memory, rows, "prefix_tokens", ("kept_mib",) * 3)
            _curves(memory, rows, "prefix_tokens", ("peak_mib",) * 3, dotted=True)
            memory.set(xlabel="tokens of the text", title="MiB kept to continue (dotted: at the peak)")
        elif profile == "images":
            figure, axes = plt.subplots(figsize=(5.6, 3.6))
            _curves(axes, rows, "questions", ("seconds", "seconds_min", "seconds_max"))
            axes.set(xlabel="questions about the image", title="Seconds to answer all questions about one image")
        else:
            figure, axes = plt.subplots(figsize=(6.4, 0.9 + 0.42 * len(rows)))
            _speed_bars(axes, rows)
        below = ", ".join(filter(None, (str(rows[0]["model"]), dtype, where)))
        figure.text(0.01, 0, below, color=SOFT, va="top", fontsize=8)
        figure.tight_layout(w_pad=2.5)
        return save(figure, path)


def _curves(axes: Axes, rows: Sequence[Mapping[str, Any]], x: str, y: tuple[str, ...], *, dotted: bool = False) -> None:
    """A line for each contestant with its least and most as a band, named at its end, on logarithmic axes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ends = []
    for place, mode in enumerate(dict.fromkeys(row["mode"] for row in rows)):
        own = [row for row in rows if row["mode"] == mode and _there(row.get(y[0]))]
        if not own:
            continue
        xs = [row[x] for row in own]
        middle, low, high = ([row[name] for row in own] for name in y)
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(
            xs, middle, color=colour, marker=MARKERS[place], markersize=4, linewidth=1 if dotted else 1.8,
            linestyle=":" if dotted else "-",
        )  # fmt: skip
        axes.fill_between(xs, low, high, color=colour, alpha=0.2, linewidth=0)
        name = {"pieces": "in pieces of 4,096", "llama": f"{own[0]['model']}, transformers"}.get(mode)
        ends.append((middle[-1], xs[-1], name or _MODES.get(mode, str(own[0]["model"])), colour))
    axes.set(xscale="log", yscale="log")
    ticks = sorted({row[x] for row in rows})
    axes.set_xticks(ticks, [f"{tick / 1024:g}k" if tick % 1024 == 0 else f"{tick:g}" for tick in ticks], fontsize=8)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if not dotted:
        _name_ends(axes, ends)


def _there(value: Any) -> bool:
    return value is not None and value == value


def _name_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Name each line at its last point, the names far enough apart to be read."""
    import math

    low, high = (math.log10(value) for value in axes.get_ylim())
    least = 0.075 * (high - low)
    reached = -math.inf
    for y, x, name, colour in sorted(ends):
        place = max(math.log10(y), reached + least)
        reached = place
        axes.annotate(
            name, (x, y), xytext=(1.02, 10**place), textcoords=("axes fraction", "data"), color=colour, fontsize=8,
            va="center", annotation_clip=False,
        )  # fmt: skip


def _speed_bars(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for place, row in enumerate(rows):
        images = row["images"] or 1
        middle, low, high = (row[name] / images for name in ("seconds", "seconds_min", "seconds_max"))
        axes.barh(place, middle, color=COLOURS[place % len(COLOURS)], height=0.6)
        axes.plot([low, high], [place, place], color=INK, linewidth=1)
        times = f", {row['ratio']:.3g} times the first" if place else ""
        axes.annotate(
            f"{middle:.3g} s{times}", (1.01, place), xycoords=("axes fraction", "data"),
            va="center", fontsize=8, annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [_MODES.get(row["mode"], str(row["mode"])) for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="seconds", title="Seconds for one image with its questions")
