"""The commands that look at finished runs: report, compare, view, plot. They generate nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vlmamba_eval.options import BASELINES, DATA, published
from vlmamba_eval.typed import command as typed_command
from vlmamba_eval.types import UsageError

WORSE = 4  # exit code of a failed --fail-if-worse


def run_folders(given: tuple[Path, ...]) -> list[Path]:
    """The run folders at or below what is given, each once, in that order. Raises `UsageError`."""
    from vlmamba_eval.store import find_runs

    folders: list[Path] = []
    for path in given:
        found = find_runs(path)
        if not found:
            raise UsageError(f"{path} holds no run with scores. Expected results/runs/<model>/<task>/<key>, or above.")
        folders += found
    return list(dict.fromkeys(folders))


@click.command(short_help="Show the tables again, from runs on disk; as Markdown, CSV, LaTeX, JSON or a page.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@BASELINES
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "md", "csv", "latex", "json", "html"]),
    help="What is printed. Default: a table. csv and json hold every metric, html is the page of `view`.",
)
@click.option("--intervals/--no-intervals", default=False, help="With --format latex: intervals under the values.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Also write leaderboard.md and .csv here.")
def report(runs: tuple[Path, ...], baselines: str | None, form: str | None, intervals: bool, out: Path | None) -> None:
    """Show the tables again, from runs on disk: run folders, or folders that hold some."""
    from vlmamba_eval.report import formats
    from vlmamba_eval.report.console import show
    from vlmamba_eval.report.tables import board, load_runs, write_leaderboard

    folders, quoted = run_folders(runs), published(baselines)
    found = load_runs(folders, out or Path())
    if form in (None, "table"):
        show(board(found, quoted))
    elif form == "html":
        from vlmamba_eval.report.view import page_of

        click.echo(page_of(folders, Path(), baselines=quoted, command=typed_command()), nl=False)
    else:
        click.echo(formats.write(form, found, quoted, intervals=intervals), nl=False)
    if out is not None:
        for path in write_leaderboard(out, found, quoted):
            click.echo(path, err=form not in (None, "table"))


@click.command(
    short_help="Compare runs over the same questions: paired differences, p, where they come from.",
    epilog="Exit codes: 0 compared, 1 the runs were not asked the same, 2 wrong usage, 4 worse than --fail-if-worse.",
)
@click.argument("runs", nargs=-1, required=True, metavar="A B [C ...]")
@DATA
@BASELINES
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "md", "csv", "json"]),
    default="text",
    show_default=True,
    help="What is printed. json holds every question that only one of them got right.",
)
@click.option(
    "--fail-if-worse",
    "gates",
    metavar="TASK:POINTS",
    multiple=True,
    help="Exit code 4 if a later run is worse than A by more points, and chance does not explain it. Repeatable.",
)
def compare(runs: tuple[str, ...], data: str | None, baselines: str | None, form: str, gates: tuple[str, ...]) -> None:
    """Compare runs that answered the same questions: B, C, ... each against A, task by task.

    Each is [NAME=]RUN: a run folder, or a folder of one model's runs. NAME=RUN,RUN,... are seeds or checkpoints of one
    model, whose mean is compared. Answer files become runs by `vlmamba-eval score`.

    The interval belongs to the difference: both runs are drawn on the same images. Runs over other lists, prompts or
    kinds of scoring are refused; incomplete ones are compared on what all of them answered, marked SHARED.
    """
    from vlmamba_eval.compare import compare as measure
    from vlmamba_eval.compare import judge_gate, open_sides, read_gates
    from vlmamba_eval.report import comparison as shown
    from vlmamba_eval.text import one_line

    if len(runs) == 1:
        raise UsageError(f"{runs[0]} needs a second run to be compared with: vlmamba-eval compare A B.")
    found = measure(open_sides(runs, data), published(baselines))
    wanted = read_gates(gates, found)
    if form == "text":
        shown.show(found)
    else:
        writers = {"md": shown.markdown, "csv": shown.as_csv, "json": shown.as_json}
        click.echo(writers[form](found), nl=False)
    failed = False
    for gate in wanted:
        for pair in found.pairs:
            if pair.task == gate.task:
                worse, sentence = judge_gate(gate, pair)
                failed = failed or worse
                click.echo(one_line(sentence), err=True)
    if failed:
        sys.exit(WORSE)


@click.command(short_help="Write report.html about runs, and open it in the browser.")
@click.argument("runs", nargs=-1, metavar="[RUN...]", type=click.Path(path_type=Path))
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True)
@DATA
@BASELINES
@click.option(
    "--images",
    type=click.Choice(["embed", "link", "none"]),
    default="embed",
    show_default=True,
    help="Small pictures inside the page, links to the benchmark's files on this machine, or none.",
)
@click.option("--open/--no-open", "opened", default=True, show_default=True, help="Open the browser.")
def view(runs: tuple[Path, ...], out: Path, data: str | None, baselines: str | None, images: str, opened: bool) -> None:
    """Write one page about runs and open it: scores, comparisons, and a browser of single questions.

    RUN are run folders, or folders that hold some; results/runs without any. The page is one file that needs no server
    and no network, so it can be sent around. Pictures need the benchmark's folder.
    """
    from vlmamba_eval.report.view import write_page

    folders = run_folders(runs or (Path("results/runs"),))
    path = write_page(
        folders,
        out,
        baselines=published(baselines),
        pictures=images,  # type: ignore[arg-type] - click checks the choices
        data=data,
        command=typed_command(),
    )
    click.echo(path)
    if opened:
        import webbrowser

        if not webbrowser.open(path.as_uri()):
            click.echo("No browser could be opened here; open the file yourself.", err=True)


@click.command(short_help="Draw runs or measurements: PNG, SVG or PDF.")
@click.argument("what", type=click.Choice(["forest", "bars", "speed"]))
@click.argument("paths", nargs=-1, required=True, metavar="RUN...|CSV", type=click.Path(path_type=Path))
@click.option("--out", required=True, metavar="FILE", type=click.Path(path_type=Path), help="FILE.png, .svg or .pdf.")
@click.option("--task", metavar="NAME", help="bars: which benchmark, if the runs have several.")
@BASELINES
def plot(what: str, paths: tuple[Path, ...], out: Path, task: str | None, baselines: str | None) -> None:
    """Draw runs or measurements as a picture for a paper.

    forest: every model's headline with its interval. bars: one benchmark's groups of questions. speed: a CSV file of
    `vlmamba-eval bench`, seconds against the length of a text or the number of questions.
    """
    from vlmamba_eval.report import plots
    from vlmamba_eval.report.tables import load_runs

    if what == "speed":
        if len(paths) != 1:
            raise UsageError("plot speed takes one CSV file of `vlmamba-eval bench`.")
        rows = plots.read_speed(paths[0])
        click.echo(plots.speed(rows, plots.machine_of(paths[0]), out))
        return
    runs = load_runs(run_folders(paths), Path())
    if what == "forest":
        click.echo(plots.forest(runs, published(baselines), out))
        return
    tasks = list(dict.fromkeys(run.task for run in runs))
    if task is None and len(tasks) > 1:
        raise UsageError(f"These runs have several benchmarks; choose one with --task: {', '.join(tasks)}.")
    click.echo(plots.bars(runs, task or tasks[0], out))
