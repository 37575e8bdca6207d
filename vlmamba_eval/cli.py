"""The command line: commands and options, nothing else. Heavy imports wait until a command needs them."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from vlmamba_eval import __version__
from vlmamba_eval.types import EvalError, UsageError

if TYPE_CHECKING:
    from vlmamba_eval.run import Outcome

COMPLETE, FAILED, USAGE, INCOMPLETE, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143

EPILOG = """\b
Exit codes
  0    complete
  1    failed
  2    wrong usage
  3    incomplete: more errors than --max-errors, or questions without an answer
  130  interrupted (143: terminated); the same command resumes

\b
Examples
  vlmamba-eval --model vlmamba-tiny --tasks gqa,pope,mme --data samples
  vlmamba-eval --model CHECKPOINT_FOLDER --tasks pope --data playground/data/eval
  vlmamba-eval score --task pope --answers answers.jsonl --data playground/data/eval
"""


class _BatchTokens(click.ParamType):
    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value is None or value == "auto":
            return None
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"{value!r} is neither a positive number of tokens nor 'auto'.", param, ctx)
        return number


class _Commands(click.Group):
    """A group that names the nearest command for a misspelt one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.commands, n=2, cutoff=0.5)
            hint = f"Did you mean: {', '.join(near)}?" if near else f"The commands are: {', '.join(self.commands)}."
            hint += "\nAn evaluation is no command: vlmamba-eval --model NAME --tasks A,B (with commas, no spaces)."
            raise click.UsageError(f"{error.message} {hint}", ctx) from None


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("--model", metavar="NAME|PATH", help="A model by name (see `list models`), or a checkpoint folder.")
@click.option("--tasks", metavar="A,B,C", help="Benchmarks by name (see `list tasks`), separated by commas.")
@click.option(
    "--data",
    metavar="hub|samples|DIR",
    default="hub",
    show_default=True,
    help="Where the benchmarks lie: the hub, the bundled samples, or a folder in the official or LLaVA's layout.",
)
@click.option(
    "--weights", metavar="DIR", type=click.Path(path_type=Path), help="The checkpoint folder for a named model."
)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Where runs and leaderboards are written.",
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    help="A seeded sample of at least N questions, by whole images; the result is marked PARTIAL.",
)
@click.option("--batch-tokens", type=_BatchTokens(), default="auto", show_default=True, help="Token budget of a batch.")
@click.option(
    "--device", metavar="cpu|cuda", default="auto", show_default=True, help="auto: cuda where there is one, else cpu."
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Precision of the weights; the recurrent state is always float32. auto: float32 on cpu, bfloat16 on cuda.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of --limit and --random-init.")
@click.option(
    "--scoring",
    type=click.Choice(["generate", "likelihood"]),
    default="generate",
    show_default=True,
    help="Generate answers, or rank the given choices by likelihood (reported under its own name).",
)
@click.option("--random-init", is_flag=True, help="Random weights, for timing only: every table says UNTRAINED.")
@click.option("--no-sharing", is_flag=True, help="Read the image again for every question: the slow reference path.")
@click.option("--allow-partial", is_flag=True, help="Accept other counts than the declared ones, marked PARTIAL.")
@click.option(
    "--max-errors",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Up to so many failed questions still count as complete.",
)
@click.version_option(__version__, prog_name="vlmamba-eval")
@click.pass_context
def cli(ctx: click.Context, **options: Any) -> None:
    """Measure vision-language models with a Mamba language model on the LLaVA benchmark suite.

    Answers are stored as they come: running the same command again resumes, and a finished run only prints its report.
    """
    if ctx.invoked_subcommand is not None:
        given = [p for p in ctx.params if ctx.get_parameter_source(p) == click.core.ParameterSource.COMMANDLINE]
        if given:
            raise UsageError(
                f"--{given[0].replace('_', '-')} belongs to an evaluation, not to `{ctx.invoked_subcommand}`. "
                f"Put options behind the command: vlmamba-eval {ctx.invoked_subcommand} --help shows its own."
            )
        return
    if options["model"] is None and options["tasks"] is None:
        click.echo(ctx.get_help())
        return
    for name in ("model", "tasks"):
        if not options[name]:
            raise UsageError(f"--{name} is missing. `vlmamba-eval list {name.removesuffix('s')}s` shows what there is.")
    ctx.exit(_evaluate(**options))


def _evaluate(
    *,
    model: str,
    tasks: str,
    data: str,
    weights: Path | None,
    out: Path,
    limit: int | None,
    batch_tokens: int | None,
    device: str,
    dtype: str,
    seed: int,
    scoring: str,
    random_init: bool,
    no_sharing: bool,
    allow_partial: bool,
    max_errors: int,
) -> int:
    from model_adapters.registry import defer
    from vlmamba_eval.dataset import load_dataset
    from vlmamba_eval.report.console import ConsoleProgress
    from vlmamba_eval.run import evaluate

    chosen = _tasks(tasks)
    datasets = [load_dataset(task, data, limit=limit, seed=seed, allow_partial=allow_partial) for task in chosen]
    adapter = defer(
        model, weights=weights, device=device, dtype=dtype, random_init=random_init, seed=seed, sharing=not no_sharing
    )
    progress = ConsoleProgress()
    try:
        outcomes = evaluate(
            adapter,
            datasets,
            out,
            scoring=scoring,  # type: ignore[arg-type] - click checks the choices
            batch_tokens=batch_tokens,
            max_errors=max_errors,
            progress=progress,
        )
    finally:
        progress.close()
    remedy = "Run the same command again: it asks again what has no answer."
    if any(outcome.n_model_errors for outcome in outcomes):
        remedy += (
            " What makes the model fail takes its whole batch with it; with --batch-tokens 1 as well, only the other "
            "questions about the same image."
        )
    return _finish(outcomes, out, remedy)


@cli.command(
    short_help="Score anybody's answers into the same tables.", epilog="Exit codes are those of `vlmamba-eval --help`."
)
@click.option("--task", required=True, help="The benchmark that the answers are for (see `list tasks`).")
@click.option(
    "--answers",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="JSON lines with `question_id`, `text` and, where ids repeat, `prompt`.",
)
@click.option("--data", required=True, metavar="DIR", help="The annotation files; no image is needed.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), default=Path("results"), show_default=True)
@click.option("--name", help="The model's name in tables. Default: the answers' `model_id`, else the file's name.")
@click.option("--allow-partial", is_flag=True, help="Accept other counts than the declared ones, marked PARTIAL.")
def score(task: str, answers: Path, data: str, out: Path, name: str | None, allow_partial: bool) -> None:
    """Score anybody's answers, LLaVA's own files among them, into the same tables.

    Answers are joined by id and, where ids repeat (MME, TextVQA), by the prompt; never by order.
    """
    from tasks.registry import get_task
    from vlmamba_eval.dataset import load_dataset
    from vlmamba_eval.imported import score_answers

    dataset = load_dataset(get_task(task), data, allow_partial=allow_partial)
    outcome = score_answers(dataset, answers, out, name)
    sys.exit(_finish([outcome], out, f"Add the missing answers to {answers} and run the same command again."))


@cli.command(short_help="Show the tables again, from runs on disk.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--baselines",
    metavar="A,B,C",
    help="Published rows to show, by their name in results/baselines.csv; `none` for none.",
)
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Also write leaderboard.md and .csv here.")
def report(runs: tuple[Path, ...], baselines: str | None, out: Path | None) -> None:
    """Show the tables again, from runs on disk: run folders, or folders that hold some."""
    from vlmamba_eval.store import find_runs

    folders: list[Path] = []
    for given in runs:
        found = find_runs(given)
        if not found:
            raise UsageError(f"{given} holds no run with scores. Expected results/runs/<model>/<task>/<key>, or above.")
        folders += found
    _report(list(dict.fromkeys(folders)), baselines, out, relative_to=out or Path())


@cli.command(short_help="Check a data folder: what is there, what is missing.")
@click.option("--tasks", required=True, metavar="A,B,C", help="Benchmarks by name (see `list tasks`).")
@click.option("--data", required=True, metavar="hub|DIR", help="The folder to look into, or `hub` to download.")
def prepare(tasks: str, data: str) -> None:
    """Say what benchmarks need, what is there, what is missing and where it comes from; check counts and hashes.

    With `--data hub` everything is downloaded. What is ready needs no network in a run. Exit code 3: not all is ready.
    """
    from vlmamba_eval.prepare import inspect

    states = [inspect(task, data) for task in _tasks(tasks)]
    for state in states:
        click.echo("\n".join(state.lines))
    sys.exit(COMPLETE if all(state.ready for state in states) else INCOMPLETE)


@cli.command(short_help="Write the file that a benchmark's server wants.")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--data", metavar="hub|DIR", help="Where the benchmark lies. Default: where the run read it.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Default: RUN/submission.")
def submit(run: Path, data: str | None, out: Path | None) -> None:
    """Write the file that a benchmark's server wants, from a complete run, and check it by reading it back."""
    from vlmamba_eval.finished import submit as write

    for path in write(run, data, out):
        click.echo(path.resolve())


@cli.command(short_help="Have a model grade a run's answers (MM-Vet).")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--judge-url", required=True, metavar="URL", help="An OpenAI-compatible endpoint, for example .../v1.")
@click.option("--judge-model", required=True, metavar="NAME", help="The judge's name at that endpoint.")
@click.option("--data", metavar="DIR", help="Where the benchmark lies. Default: where the run read it.")
def judge(run: Path, judge_url: str, judge_model: str, data: str | None) -> None:
    """Have a model grade a run's answers (MM-Vet). The key is read from OPENAI_API_KEY.

    Judgements are kept in the run folder: the same command goes on where it was stopped. Judges differ, so the judge's
    name stands beside the score.
    """
    from vlmamba_eval.finished import judge as grade

    def tell(done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            _say(f"{done:,}/{total:,} answers judged")

    grade(run, judge_url, judge_model, data, tell)
    _report([run], None, None, relative_to=Path())


@cli.command(short_help="Build a checkpoint folder from published parts.")
@click.argument("model", metavar="NAME")
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="The checkpoint to write.")
@click.option("--vision", metavar="ID|DIR", help="A SigLIP or CLIP of transformers. Default: the model's own.")
@click.option(
    "--language-model",
    metavar="ID|DIR",
    help="A Mamba-1 in either naming. Default: the model's own (state-spaces/...).",
)
@click.option(
    "--connector",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A safetensors file. Default: a fresh connector, recorded as untrained.",
)
@click.option("--tokenizer", metavar="ID|DIR|FILE", help="Default: the model's own (EleutherAI/gpt-neox-20b).")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of a fresh connector.")
def assemble(
    model: str,
    out: Path,
    vision: str | None,
    language_model: str | None,
    connector: Path | None,
    tokenizer: str | None,
    seed: int,
) -> None:
    """Build the checkpoint folder of model NAME from published parts: vision encoder, Mamba language model, connector.

    A fresh connector must be trained before its numbers mean anything (see `vlmamba-train --help`).
    """
    from model_adapters.vlmamba.assemble import assemble as build
    from model_adapters.vlmamba.config import PRESETS

    if model not in PRESETS:
        raise UsageError(f"Unknown model {model!r}. Models that can be assembled: {', '.join(PRESETS)}.")
    build(
        PRESETS[model],
        out,
        vision=vision,
        language_model=language_model,
        connector=connector,
        tokenizer=tokenizer,
        seed=seed,
        say=_say,
    )
    click.echo(out.resolve())


@cli.command(short_help="Measure the speed of this machine.")
@click.option("--model", metavar="NAME|PATH", help="A whole model by name, or a checkpoint folder.")
@click.option(
    "--shape",
    metavar="130m|370m|790m|1.4b|2.8b",
    help="A Mamba language model alone, with random weights. Default: 130m.",
)
@click.option(
    "--weights", metavar="DIR", type=click.Path(path_type=Path), help="The checkpoint folder for a named model."
)
@click.option("--random-init", is_flag=True, help="Random weights for --model; a --shape always has them.")
@click.option("--device", metavar="cpu|cuda", default="auto", show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Precision of the weights. auto: float32 on cpu, bfloat16 on cuda.",
)
@click.option(
    "--profile",
    type=click.Choice(["uniform", "gqa", "pope", "vqav2", "mme", "lengths", "images"]),
    default="uniform",
    show_default=True,
    help="What is asked: 18 questions of 20 to 40 tokens about an image, a benchmark's questions, texts of growing "
    "length, or more and more questions about an image.",
)
@click.option(
    "--modes",
    metavar="A,B,C",
    default="shared,unshared",
    show_default=True,
    help="Ours: shared, unshared (micro-batches that read the image for every question), one-by-one. Ratios are to "
    "the first.",
)
@click.option(
    "--peers",
    metavar="A,B|none",
    help="For a --shape: transformers (a question at a time; the default), transformers-batched. Slow ones answer a "
    "part of the questions, and the table says so.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Turns of every mode.")
@click.option("--images", type=click.IntRange(min=1), help="Images of a profile. Default: 4 on cpu, 32 on cuda.")
@click.option("--lengths", metavar="A,B,C", default="", help="Tokens. Default: 512 to 4096 on cpu, to 65536 on cuda.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), default=Path("results/bench"), show_default=True)
def bench(modes: str, peers: str | None, lengths: str, **options: Any) -> None:
    """Measure the speed of this machine: the engine's modes and transformers, in turns within one process.

    Prints a table of times and ratios with their spread, and writes it as CSV, Markdown and, where matplotlib is
    installed (the extra `bench`), a figure.
    """
    from model_adapters.vlmamba.bench.command import bench as measure

    try:
        tokens = [int(length) for length in _names(lengths)]
    except ValueError:
        raise UsageError(f"--lengths {lengths}: expected numbers of tokens, separated by commas.") from None
    command = "vlmamba-eval " + " ".join(sys.argv[1:])
    entered = None if peers is None else [name for name in _names(peers) if name != "none"]
    paths = measure(modes=_names(modes), peers=entered, lengths=tokens, command=command, say=_say, **options)
    for path in paths:
        click.echo(path.resolve())


@cli.group(name="list")
def list_() -> None:
    """Show what there is: tasks, models."""


@list_.command(name="tasks", short_help="Benchmarks: split, size, headline, who scores.")
def list_tasks() -> None:
    """Benchmarks: what they measure, their split and size, and who scores them."""
    from tasks.registry import all_tasks
    from vlmamba_eval.dataset import has_samples

    rows = [("task", "questions", "images", "split", "headline", "scored", "samples", "measures")]
    for task in all_tasks().values():
        info = task.info
        rows.append(
            (
                info.name,
                f"{info.questions:,}",
                "?" if info.images is None else f"{info.images:,}",
                info.split,
                info.headline,
                {"here": "here", "server": "by its server", "judge": "by a judge"}[info.scored],
                "yes" if has_samples(task) else "no",
                info.measures,
            )
        )
    _print_columns(rows)


@list_.command(name="models", short_help="Models by name.")
def list_models() -> None:
    """Models by name; any checkpoint folder can be given instead."""
    from model_adapters.registry import MODELS

    _print_columns([("model", "what it is"), *((name, entry.summary) for name, entry in MODELS.items())])


def _print_columns(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


# =============================================================================
# Shared endings
# =============================================================================


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _tasks(names: str) -> list[Any]:
    from tasks.registry import get_task

    chosen = _names(names)
    if not chosen:
        raise UsageError("--tasks names no task. `vlmamba-eval list tasks` shows what there is.")
    return [get_task(name) for name in dict.fromkeys(chosen)]


def _finish(outcomes: list[Outcome], out: Path, remedy: str) -> int:
    """Print and write the leaderboard of everything under `out`; the exit code. `remedy` makes a run complete."""
    from vlmamba_eval.store import find_runs

    _report(find_runs(out / "runs"), None, out, relative_to=out)
    code = COMPLETE
    for outcome in outcomes:
        scores = outcome.scores
        if not scores["scores"]:
            click.echo(
                f"{scores['title']}: {scores['n'] - scores['n_missing']:,} answers are there, none is scored: "
                f"{_unscored(scores['task'], outcome.folder)}",
                err=True,
            )
        if not outcome.complete:
            code = INCOMPLETE
            click.echo(
                f"{scores['title']} is INCOMPLETE: of {scores['n']:,} answers {scores['n_missing']:,} are missing and "
                f"{scores['n_error']:,} failed; they count as wrong."
                + (f" Why: {outcome.folder.resolve()}/answers.jsonl" if scores["n_error"] else ""),
                err=True,
            )
    if code == INCOMPLETE:
        click.echo(remedy, err=True)
    return code


def _unscored(task: str, folder: Path) -> str:
    from tasks.base import Task
    from tasks.registry import get_task

    chosen = get_task(task)
    if chosen.info.scored == "judge":
        return f"a judge grades them: vlmamba-eval judge {folder.resolve()} --judge-url URL --judge-model NAME"
    hint = (
        "there are no gold labels here. Put the official annotation file into the data folder and run the same "
        "command again"
    )
    if type(chosen).submit is not Task.submit:
        hint += f", or send the answers to the benchmark's server: vlmamba-eval submit {folder.resolve()}"
    return hint + "."


def _report(folders: list[Path], baselines: str | None, out: Path | None, relative_to: Path) -> None:
    from vlmamba_eval.baselines import DEFAULT, choose
    from vlmamba_eval.report.console import show
    from vlmamba_eval.report.tables import board, load_runs, write_leaderboard

    names = DEFAULT if baselines is None else [name.strip() for name in baselines.split(",") if name.strip() != "none"]
    quoted = choose([name for name in names if name])
    runs = load_runs(folders, relative_to)
    show(board(runs, quoted))
    if out is not None:
        for path in write_leaderboard(out, runs, quoted):
            click.echo(path)


class _Terminated(BaseException):
    """SIGTERM. No KeyboardInterrupt, which click would turn into an `Abort`, the sign of Ctrl-C."""


def _on_terminate(number: int, frame: object) -> NoReturn:
    raise _Terminated


def main() -> NoReturn:
    """The console script. Ends with one of the documented exit codes."""
    signal.signal(signal.SIGTERM, _on_terminate)
    for stream in (sys.stdout, sys.stderr):  # a terminal that can't show a dagger, or a file name, is no failure
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else COMPLETE)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(USAGE)
    except UsageError as error:
        _say(f"Error: {error}")
        sys.exit(USAGE)
    except EvalError as error:
        _say(f"Error: {error}")
        sys.exit(FAILED)
    except (KeyboardInterrupt, click.Abort, _Terminated) as error:
        _say("Interrupted. What was answered is safe: run the same command again to resume.")
        sys.exit(TERMINATED if isinstance(error, _Terminated) else INTERRUPTED)
    except BrokenPipeError:
        sys.exit(FAILED)
    except Exception:  # noqa: BLE001 - the last resort: the traceback, and what to do
        import traceback

        traceback.print_exc()
        _say("This is a fault of vlmamba-eval. What was answered is safe; run the same command again to resume.")
        sys.exit(FAILED)


def _say(message: str) -> None:
    from vlmamba_eval.report.text import printable

    click.echo(printable(message), err=True)
