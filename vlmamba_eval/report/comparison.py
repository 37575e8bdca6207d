"""A comparison as text for the terminal, as Markdown, JSON and tidy CSV."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from vlmamba_eval import text
from vlmamba_eval.compare import FEW, SHARED, Comparison, Example, Pair
from vlmamba_eval.paired import Difference
from vlmamba_eval.types import MEANING

SHOWN = 3  # examples of questions that only one side got right, per side and task
PARTS = 6  # groups of questions in which the difference is shown
FOOTNOTES = (
    "[ ]: 95 % interval of the difference, from a bootstrap that draws the same images for both. p: swaps of whole "
    "images, two-sided; Holm: adjusted for all pairs of this table. McNemar's exact p takes questions for independent.",
    "The intervals cover the choice of images only, not training seeds or prompts.",
)


def number(value: float | None, points: bool = False) -> str:
    """A value on the published scale: one decimal, `-` if undefined."""
    return "-" if value is None else f"{value:,.1f}" if points or abs(value) >= 200 else f"{value:.2f}"


def signed(value: float | None) -> str:
    """A difference with its sign and two decimals; `-` if undefined."""
    return "-" if value is None else "0.00" if abs(value) < 0.005 else f"{value:+.2f}"


def interval(difference: Difference) -> str:
    """The interval of a difference in brackets, or nothing."""
    if difference.ci_low is None or difference.ci_high is None:
        return ""
    return f"[{signed(difference.ci_low)}, {signed(difference.ci_high)}]"


def p_value(p: float | None) -> str:
    """A p with two significant digits, never 0; `-` if nothing was tested."""
    return "-" if p is None else "1" if p > 0.995 else "<0.0001" if p < 0.0001 else f"{p:.2g}" if p > 1e-4 else "0.0001"


def spoken(metric: str) -> str:
    """A metric's name as a heading."""
    from vlmamba_eval.report.tables import spoken as heading

    return heading(metric)


# =============================================================================
# Sentences
# =============================================================================


def verdict(pair: Pair) -> str:
    """What the numbers say, in one sentence."""
    found = pair.headline
    if not pair.only_a and not pair.only_b:
        more = f", though {pair.other_text:,} answers have other words" if pair.other_text else ""
        return f"No difference: no answer of {pair.b} is worth more or less than {pair.a}'s{more}."
    better = pair.b if (found.difference or 0) > 0 else pair.a
    if pair.p_holm is not None:
        if pair.p_holm < 0.05:
            return f"{better} is better; chance would hardly show such a difference (p {p_value(pair.p_holm)})."
        return f"No difference that these images can show (p {p_value(pair.p_holm)})."
    if found.ci_low is None or found.ci_high is None or found.ci_low <= 0 <= found.ci_high:
        return "No difference that these images can show."
    return f"{better} is better on these images; seeds vary as well (see the spread)."


def facts(pair: Pair) -> Iterator[str]:
    """Everything else that must be said about a pair, a sentence each."""
    yield (
        f"{pair.only_a:,} answers only {pair.a} got right, {pair.only_b:,} only {pair.b}"
        + (f", {pair.both:,} both, {pair.neither:,} neither" if pair.both is not None else " (or more nearly so)")
        + f"; on {pair.n_images_differ:,} of {pair.n_images:,} images."
    )
    if pair.headline.detectable is not None:
        yield (
            f"The smallest difference that these images would show: {pair.headline.detectable:.2f} "
            "(5 % level, power 80 %)."
        )
    if pair.headline.apart is not None:
        yield f"Pairing is worth {pair.headline.apart:.1f} times as many images."
    if pair.p_mcnemar is not None and (pair.only_a or pair.only_b):
        yield f"McNemar's exact p: {p_value(pair.p_mcnemar)}."
    for name, spread in ((pair.a, pair.spread_a), (pair.b, pair.spread_b)):
        if spread:
            values = ", ".join(number(value) for value in spread.values)
            yield f"{name}: mean of {len(spread.values)} runs ({values}), standard deviation {spread.deviation:.2f}."
    if pair.few and (pair.only_a or pair.only_b):
        yield f"FEW IMAGES: {FEW} (effectively {pair.effective_images:.1f}; wanted 30)."
    if pair.shared:
        yield f"SHARED: {SHARED} ({pair.n:,} questions)."
    for mark in pair.marks:
        if mark != "INCOMPLETE" or not pair.shared:
            yield f"{mark}: {MEANING[mark]}."


def where(pair: Pair) -> list[tuple[str, Difference | None, int, int, int]]:
    """The groups with the most differing answers: name, difference of the main metric there, n, only A, only B."""
    found = []
    for part in pair.parts:
        inside = [d for d in pair.differences if part.group in (d.category, d.split) and d.group == part.group]
        found.append((part.group, _main(inside, pair.headline), part.n, part.only_a, part.only_b))
    return found


def _main(candidates: Sequence[Difference], headline: Difference) -> Difference | None:
    """Of a group's metrics the one that is like the headline (mean F1 of all: F1 of a part), else the first."""
    for difference in candidates:
        if headline.metric.endswith(difference.metric) or difference.metric in ("score", "accuracy"):
            return difference
    return candidates[0] if candidates else None


# =============================================================================
# Terminal
# =============================================================================


def show(comparison: Comparison) -> None:
    """Print a comparison to standard output, in whatever width there is."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 100)
    with console.capture() as shown:
        _print(console, comparison)
    lines = shown.get().removesuffix("\n").split("\n")  # rich leaves the space at which it wrapped a line
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))


def _print(console: Any, comparison: Comparison) -> None:
    from rich.markup import escape

    for pair in comparison.pairs:
        console.print()
        console.print(
            f"[bold]{escape(_title(pair))}[/bold]  {pair.n:,} questions, {pair.n_images:,} images"
            + (f"  [yellow]{' '.join(_marks(pair))}[/yellow]" if _marks(pair) else "")
        )
        for line in _headline_lines(pair, comparison):
            _put(console, line)
        console.print(f"[bold]{escape(text.one_line(verdict(pair)))}[/bold]")
        for fact in facts(pair):
            console.print(escape(text.one_line(fact)), style="dim")
        _show_parts(console, pair)
        for title, examples in ((pair.a, pair.questions_a), (pair.b, pair.questions_b)):
            _show_examples(console, pair, title, examples)
    console.print()
    for name, tasks in comparison.only.items():
        if tasks:
            console.print(f"Not every side has: {', '.join(tasks)} ({escape(text.one_line(name))} has).", style="dim")
    for name, tasks in comparison.unscored.items():
        if tasks:
            console.print(
                f"Not scored, so not compared: {', '.join(tasks)} of {escape(text.one_line(name))}.", style="dim"
            )
    for note in FOOTNOTES:
        console.print(escape(note), style="dim")


def _title(pair: Pair) -> str:
    return text.one_line(f"{pair.title} {spoken(pair.headline.metric)}: {pair.b} against {pair.a}")


def _marks(pair: Pair) -> list[str]:
    marks = [str(mark) for mark in pair.marks if mark != "INCOMPLETE" or not pair.shared]
    return marks + ["SHARED"] * pair.shared + ["FEW IMAGES"] * (pair.few and bool(pair.only_a or pair.only_b))


def _headline_lines(pair: Pair, comparison: Comparison) -> Iterator[str]:
    found = pair.headline
    rows = [(pair.a, number(found.a), ""), (pair.b, number(found.b), "")]
    rows.append(("difference", signed(found.difference), interval(found)))
    if pair.p is not None and (pair.only_a or pair.only_b):
        rows.append(("p", p_value(pair.p), f"Holm {p_value(pair.p_holm)}"))
    for row in comparison.published:
        if row.task == pair.task and row.metric == found.metric:
            rows.append((f"{row.title}†", number(row.value), "published, not tested"))
    name = min(30, max(len(text.one_line(row[0])) for row in rows))
    width = max(len(row[1]) for row in rows)
    for label, value, rest in rows:
        yield f"  {text.one_line(label)[:name]:<{name}}  {value:>{width}}  {rest}".rstrip()


def _put(console: Any, line: str) -> None:
    """Print a line; what does not fit continues under it, further in."""
    from rich.padding import Padding
    from rich.text import Text

    stripped = line.lstrip(" ")
    indent = len(line) - len(stripped)
    if len(line) <= console.width:
        console.print(Padding(Text(stripped), (0, 0, 0, indent), expand=False))
        return
    first, *rest = Text(stripped).wrap(console, console.width - indent - 2)
    console.print(Padding(first, (0, 0, 0, indent), expand=False))
    for part in rest:
        console.print(Padding(part, (0, 0, 0, indent + 2), expand=False))


def _show_parts(console: Any, pair: Pair) -> None:
    parts = [part for part in where(pair) if part[3] or part[4]]
    if len(parts) < 2:
        return
    console.print("  where the answers differ:")
    name = min(26, max(len(part[0]) for part in parts[:PARTS]))
    for group, difference, n, only_a, only_b in parts[:PARTS]:
        shown = f"{signed(difference.difference)} {interval(difference)}" if difference else ""
        line = f"    {text.one_line(group)[:name]:<{name}}  -{only_a:,} +{only_b:,} of {n:,}  {shown}"
        _put(console, line.rstrip())
    if len(parts) > PARTS:
        console.print(f"    and {len(parts) - PARTS} more groups", style="dim")


def _show_examples(console: Any, pair: Pair, name: str, examples: Sequence[Example]) -> None:
    if not examples:
        return
    console.print(text.one_line(f"  only {name} is right on"), markup=False)
    for example in examples[:SHOWN]:
        said = f"; {_short(example.answer_a)} / {_short(example.answer_b)}" if example.answer_a else ""
        line = f"    {example.id}: {_short(example.question, 60)} ({_short(', '.join(example.gold))}{said})"
        _put(console, text.one_line(line))
    if len(examples) > SHOWN:
        console.print(f"    and {len(examples) - SHOWN:,} more; `vlmamba-eval view` shows all of them", style="dim")


def _short(words: str, length: int = 24) -> str:
    line = text.one_line(words)
    return line if len(line) <= length else f"{line[: length - 1]}…"


# =============================================================================
# Files
# =============================================================================


def markdown(comparison: Comparison) -> str:
    """One table of headlines, then each pair's sentences and groups."""
    lines = ["# " + text.markdown(" against ".join(reversed(comparison.names))), ""]
    lines += ["| task | A | B | A | B | difference | 95 % | p (Holm) | only A | only B |"]
    lines += ["|---|---|---|---:|---:|---:|:---:|---:|---:|---:|"]
    for pair in comparison.pairs:
        found = pair.headline
        cells = (
            " ".join((f"{pair.title} {spoken(found.metric)}", *_marks(pair))),
            *(text.markdown(name) for name in (pair.a, pair.b)),
            *(number(value) for value in (found.a, found.b)),
            signed(found.difference),
            interval(found),
            p_value(pair.p_holm),
            *(f"{count:,}" for count in (pair.only_a, pair.only_b)),
        )
        lines.append("| " + " | ".join(cells) + " |")
    for row in comparison.published:
        lines += ["", f"† {text.markdown(row.title)} on {row.task}: {row.metric} {number(row.value)} ({row.source})."]
    for pair in comparison.pairs:
        lines += ["", f"## {text.markdown(_title(pair))}", "", text.markdown(verdict(pair))]
        lines += ["", *(f"- {text.markdown(fact)}" for fact in facts(pair))]
        lines += ["", "| group | n | difference | 95 % | only A | only B |", "|---|---:|---:|:---:|---:|---:|"]
        for group, difference, n, only_a, only_b in where(pair):
            shown = (signed(difference.difference), interval(difference)) if difference else ("", "")
            lines.append(f"| {text.markdown(group)} | {n:,} | {shown[0]} | {shown[1]} | {only_a:,} | {only_b:,} |")
    lines += ["", *FOOTNOTES]
    return "\n".join(lines) + "\n"


def as_json(comparison: Comparison) -> str:
    """Everything, the questions included."""
    value = asdict(comparison)
    for pair, plain in zip(comparison.pairs, value["pairs"], strict=True):
        plain |= {"few": pair.few, "detectable": pair.headline.detectable}
    return json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def as_csv(comparison: Comparison) -> str:
    """One row per pair and metric."""
    import csv
    import io

    buffer = io.StringIO()
    fields = ("task", "a", "b", "metric", "split", "category", "value_a", "value_b", "difference", "ci_low", "ci_high")
    more = ("headline", "n", "n_images_differ", "few_images", "p", "p_holm", "p_mcnemar", "marks")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(fields + more)
    for pair in comparison.pairs:
        for d in pair.differences:
            tested = (pair.p, pair.p_holm, pair.p_mcnemar) if d.headline else (None, None, None)
            names = [text.cell(part) for part in (pair.task, pair.a, pair.b, d.metric, d.split, d.category)]
            numbers = (d.a, d.b, d.difference, d.ci_low, d.ci_high)
            counts = (d.headline, pair.n, pair.n_images_differ, pair.few, *tested, " ".join(_marks(pair)))
            writer.writerow((*names, *numbers, *counts))
    return buffer.getvalue()
