"""The command line: commands and options, nothing else. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from vlmamba_eval import __version__
from vlmamba_eval.nearest import did_you_mean
from vlmamba_eval.options import DATA, INCLUDE, OUT, completed, names, published, say
from vlmamba_eval.process import Stopped, make_streams_last, output_failure, stop_cleanly
from vlmamba_eval.typed import command
from vlmamba_eval.types import EvalError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vlmamba_eval.run import Outcome

COMPLETE, FAILED, USAGE, INCOMPLETE, INTERRUPTED = 0, 1, 2, 3, 130

EPILOG = """\b
Exit codes
  0    complete
  1    failed
  2    wrong usage
  3    incomplete: more errors than --max-errors, or questions without an answer
  130  interrupted (143: terminated, 129: the terminal went away); the same command resumes

\b
Completion of commands, options, tasks and models
  bash  eval "$(_VLMAMBA_EVAL_COMPLETE=bash_source vlmamba-eval)"   in ~/.bashrc
  zsh   eval "$(_VLMAMBA_EVAL_COMPLETE=zsh_source vlmamba-eval)"    in ~/.zshrc
  fish  _VLMAMBA_EVAL_COMPLETE=fish_source vlmamba-eval | source    in ~/.config/fish/config.fish

\b
Examples
  vlmamba-eval --model vlmamba-tiny --tasks gqa,pope,mme --data samples
  vlmamba-eval --model CHECKPOINT_FOLDER --tasks pope --data playground/data/eval
  vlmamba-eval score --task pope --answers answers.jsonl --data playground/data/eval
"""


# Commands that are imported when they are called.
OTHERS = {
    "compare": "vlmamba_eval.report.commands:compare",
    "plot": "vlmamba_eval.report.commands:plot",
    "report": "vlmamba_eval.report.commands:report",
    "view": "vlmamba_eval.report.commands:view",
    "assemble": "vlmamba_eval.model_adapters.vlmamba.commands:assemble",
    "bench": "vlmamba_eval.model_adapters.vlmamba.commands:bench",
}


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

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.commands, *OTHERS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A family's own command is imported when it is called, or listed."""
        if cmd_name in OTHERS:
            from importlib import import_module

            module, _, name = OTHERS[cmd_name].partition(":")
            return getattr(import_module(module), name)
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            known = self.list_commands(ctx)
            hint = did_you_mean(args[0], known, f"The commands are: {', '.join(known)}.")
            hint += (
                "\nEvaluating has no subcommand: vlmamba-eval --model NAME --tasks A,B (with commas, without spaces)."
            )
            raise click.UsageError(f"{error.message} {hint}", ctx) from None


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--model",
    metavar="MODEL",
    shell_complete=completed("models"),
    help="A model by name, FAMILY:ID_OR_FOLDER, or a checkpoint folder (see `list models`).",
)
@click.option(
    "--tasks",
    metavar="A,B,C",
    shell_complete=completed("tasks"),
    help="Benchmarks by name (see `list tasks`), separated by commas; `paper` or `llava` for a suite; "
    "file:PATH for questions of your own.",
)
@click.option(
    "--data",
    metavar="auto|hub|samples|DIR|FILE.tar",
    default="auto",
    show_default=True,
    help="Where the benchmarks are: the hub, the bundled samples, a folder in the official or LLaVA's layout, or a tar "
    "file of one. auto: the folder `data`, or the hub.",
)
@click.option("--download", is_flag=True, help="Fetch missing data without asking (on a terminal it is offered).")
@OUT
@click.option("--name", help="The model's name in tables. Default: what its family or its configuration calls it.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    help="A seeded sample of at least N questions, by whole images; the result is marked PARTIAL.",
)
@click.option("--batch-tokens", type=_BatchTokens(), default="auto", show_default=True, help="Token budget of a batch.")
@click.option(
    "--scoring",
    type=click.Choice(["generate", "likelihood"]),
    default="generate",
    show_default=True,
    help="Generate answers, or rank the given choices by likelihood (reported under its own name).",
)
@click.option("--allow-partial", is_flag=True, help="Accept other counts than the declared ones, marked PARTIAL.")
@click.option(
    "--allow-missing-images",
    is_flag=True,
    help="Ask the other questions if pictures are missing; theirs fail and count as wrong.",
)
@click.option(
    "--max-errors",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Up to so many failed questions still count as complete; given, the run stops as soon as there are more.",
)
@click.option(
    "--sample-timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    help="A batch that takes longer is halved, until the question that hangs fails alone. Default: none.",
)
@click.option("--workers", metavar="N", type=click.IntRange(min=1), help="Answer on N processes, one GPU each (Ray).")
@click.option("--ray", metavar="ADDRESS", help="Answer on the workers of a Ray cluster.")
@click.option(
    "--shard",
    metavar="I/N",
    help="Answer part I of N alone, into OUT/shards/I-of-N; `merge` puts the parts together and scores them.",
)
@INCLUDE
@click.option(
    "--model-option",
    "model_options",
    metavar="KEY=VALUE",
    multiple=True,
    help="An option of the model's family, see `list models FAMILY`. The next six are short for it.",
)
@click.option("--weights", metavar="DIR", help="The checkpoint folder for a named model.")
@click.option("--device", metavar="cpu|cuda", help="Default: cuda if there is one, else cpu.")
@click.option("--dtype", help="Precision of the weights. Default: float32 on cpu, half precision on cuda.")
@click.option("--random-init", is_flag=True, help="Random weights, for timing only: every table says UNTRAINED.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of --limit and --random-init.")
@click.option("--no-sharing", is_flag=True, help="Read the image again for every question: the slow reference path.")
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
            if name == "tasks" and options["model"] and not options["include"]:
                from vlmamba_eval.registry import check_model

                chosen = {option: options[option] for option in ("weights", "random_init") if options[option]}
                check_model(str(options["model"]), chosen)  # a model that can't be had is the first thing to know
            raise UsageError(f"--{name} is missing. `vlmamba-eval list {name.removesuffix('s')}s` shows what there is.")
    given = {p for p in ctx.params if ctx.get_parameter_source(p) == click.core.ParameterSource.COMMANDLINE}
    ctx.exit(_evaluate(given, **options))


def _evaluate(
    given: set[str],
    *,
    model: str,
    tasks: str,
    data: str,
    download: bool,
    out: Path,
    name: str | None,
    limit: int | None,
    batch_tokens: int | None,
    scoring: str,
    allow_partial: bool,
    allow_missing_images: bool,
    max_errors: int,
    sample_timeout: float | None,
    workers: int | None,
    ray: str | None,
    shard: str | None,
    include: tuple[Path, ...],
    model_options: tuple[str, ...],
    seed: int,
    **shorthands: Any,
) -> int:
    from functools import partial

    from vlmamba_eval.commands_data import settled
    from vlmamba_eval.preflight import preflight
    from vlmamba_eval.prepare import together
    from vlmamba_eval.registry import defer, find_family, options_of, registry
    from vlmamba_eval.report.console import ConsoleProgress
    from vlmamba_eval.run import answer_share, evaluate, finished

    part = _shard(shard)
    if part and (workers or ray):
        raise UsageError("--shard is for machines without Ray; leave out --workers and --ray.")
    if workers or ray:
        from vlmamba_eval.workers import find_ray

        find_ray()  # before the data, which may take long to read
    for path in include:
        registry().include(path)
    chosen = _tasks(tasks)
    options = _key_values("--model-option", model_options)

    def found() -> Any:
        declared = {option.name for option in options_of(find_family(model)[0])}
        for short, value in {"seed": seed, **shorthands}.items():
            option, value = ("sharing", not value) if short == "no_sharing" else (short, value)
            if short in given and (option in declared or short != "seed"):
                options.setdefault(option, value)
        deferred = defer(model, options)
        return deferred if name is None else _named(deferred, name)

    problems: list[EvalError] = []  # of the model, the questions and the pictures, told together
    adapter = _tried(found, problems)
    if problems and data in ("hub", "auto"):
        raise problems[0]  # nothing is fetched for a model that is not there
    datasets = settled(chosen, data, download, problems, limit=limit, seed=seed, allow_partial=allow_partial)
    place = out / "shards" / f"{part[0]}-of-{part[1]}" if part else out
    unfinished = [each for each in datasets if not adapter or not finished(each, adapter.info, place, scoring)]  # type: ignore[arg-type] - click checks
    for note in (
        _tried(partial(preflight, unfinished, place, allow_missing_images=allow_missing_images), problems) or []
    ):
        say(note)
    if problems:
        raise together(problems)
    answering = None
    if workers or ray:
        from vlmamba_eval.workers import Recipe, answer_on_workers

        recipe = Recipe(model, options, include, scoring)  # type: ignore[arg-type] - click checks
        info = adapter.info
        answering = partial(
            answer_on_workers,
            recipe,
            device=info.device,
            image_tokens=info.image_tokens,
            workers=workers,
            address=ray,
        )
    progress = ConsoleProgress()
    shared: dict[str, Any] = {
        "scoring": scoring,
        "batch_tokens": batch_tokens,
        "seconds": sample_timeout,
        "stop_after": max_errors if "max_errors" in given else None,
        "progress": progress,
    }
    try:
        if part:
            answered, failed = answer_share(adapter, datasets, place, *part, **shared)
            progress.close()
            say(f"Part {part[0]} of {part[1]}: {answered:,} questions answered, {failed:,} failed.")
            say(f"When all parts are there: vlmamba-eval merge {out / 'shards'} --out {out}")
            return INCOMPLETE if failed > max_errors else COMPLETE
        outcomes = evaluate(adapter, datasets, out, max_errors=max_errors, answering=answering, **shared)
    except (KeyboardInterrupt, Stopped) as error:
        progress.close()
        far = f" at {progress.so_far} answers" if progress.so_far else ""
        say(f"Interrupted{far}. They are safe; continue with the same command:\n  {command()}")
        raise _Told(error.exit_code if isinstance(error, Stopped) else INTERRUPTED) from None
    finally:
        progress.close()
    return _finish(outcomes, out, "Run the same command again: it asks again what has no answer.")


def _shard(text: str | None) -> tuple[int, int] | None:
    """`I/N` as numbers."""
    if text is None:
        return None
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise UsageError(f"--shard {text}: expected I/N, the part from 1 to N and their number, for example 3/8.")
    return int(number), int(of)


def _key_values(option: str, given: tuple[str, ...]) -> dict[str, Any]:
    """`KEY=VALUE` texts by key."""
    options: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} {text}: expected KEY=VALUE.")
        options[key.strip().replace("-", "_")] = value
    return options


def _tried(work: Callable[[], Any], problems: list[EvalError]) -> Any:
    """What `work` gives, or None: then its error is one more of the problems."""
    try:
        return work()
    except EvalError as error:
        problems.append(error)
        return None


def _named(adapter: Any, name: str) -> Any:
    """The same adapter under another name."""
    from dataclasses import replace

    from vlmamba_eval.adapter import Deferred

    info = replace(adapter.info, name=name)
    if isinstance(adapter, Deferred):
        return replace(adapter, info=info)
    adapter.info = info
    return adapter


@cli.command(
    short_help="Score anybody's answers into the same tables.", epilog="Exit codes are those of `vlmamba-eval --help`."
)
@click.option(
    "--task",
    required=True,
    shell_complete=completed("tasks"),
    help="The benchmark that the answers are for (see `list tasks`).",
)
@click.option(
    "--answers",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A file or folder of answers: LLaVA's, an official result file, or another harness's (EVAL.md lists them).",
)
@click.option("--data", required=True, metavar="DIR", help="The annotation files; no image is needed.")
@OUT
@click.option("--name", help="The model's name in tables. Default: the answers' `model_id`, else the file's name.")
@click.option("--allow-partial", is_flag=True, help="Accept other counts than the declared ones, marked PARTIAL.")
@click.option(
    "--clean", is_flag=True, help="Take off special tokens, reasoning tags and outer white space; tables say so."
)
def score(task: str, answers: Path, data: str, out: Path, name: str | None, allow_partial: bool, clean: bool) -> None:
    """Score anybody's answers, LLaVA's own files among them, into the same tables.

    Answers are joined by id and by what their saved prompt asks; never by order.
    """
    from vlmamba_eval.answer_files import score_answers
    from vlmamba_eval.dataset import load_dataset
    from vlmamba_eval.registry import get_task

    dataset = load_dataset(get_task(task), data, allow_partial=allow_partial)
    outcome = score_answers(dataset, answers, out, name, clean=clean, note=say)
    sys.exit(_finish([outcome], out, f"Add the missing answers to {answers} and run the same command again."))


@cli.command(short_help="Put together what --shard answered, and score it.")
@click.argument("shares", nargs=-1, required=True, metavar="FOLDER...", type=click.Path(path_type=Path))
@DATA
@OUT
@click.option("--max-errors", type=click.IntRange(min=0), default=0, show_default=True)
def merge(shares: tuple[Path, ...], data: str | None, out: Path, max_errors: int) -> None:
    """Put together the answers of `--shard 1/N` to `--shard N/N`, and score them as one run.

    FOLDER... are the folders that the parts were written to, or a folder above them. What is missing is counted.
    """
    from vlmamba_eval.merge import merge as together

    outcomes = together(shares, out, data, max_errors, note=say)
    sys.exit(_finish(outcomes, out, "Run the parts again whose answers are missing, then merge again."))


@cli.command(short_help="The data: what is there, what is missing; fetch it, pack it, check it.")
@click.option(
    "--tasks",
    metavar="A,B,C",
    shell_complete=completed("tasks"),
    help="Benchmarks by name (see `list tasks`). Default: an overview of all.",
)
@click.option(
    "--data",
    metavar="DIR|FILE.tar|hub",
    default="data",
    show_default=True,
    help="The folder to look into and to fill, an archive of one, or `hub` to load everything from there.",
)
@click.option(
    "--download", is_flag=True, help="Fetch what is missing: question files, and only the pictures asked about."
)
@click.option("--yes", is_flag=True, help="Fetch without asking, for scripts.")
@click.option(
    "--mirror", metavar="URL|DIR", default="", help="Look here first: the beginning of an address, or a folder of zips."
)
@click.option("--whole", is_flag=True, help="Fetch whole archives from servers that give no parts of files.")
@click.option(
    "--pack", metavar="FILE.tar", type=click.Path(path_type=Path), help="Write all that --tasks need into one archive."
)
@click.option("--verify", is_flag=True, help="Check every file against its sha256, or decode it.")
@INCLUDE
def prepare(tasks: str | None, data: str, include: tuple[Path, ...], **options: Any) -> None:
    """Say what benchmarks need, what is there, what is missing and where it comes from; check counts and hashes.

    What is ready needs no network in a run. Exit code 3: not all is ready.
    """
    from vlmamba_eval import commands_data
    from vlmamba_eval.registry import all_tasks, registry

    for path in include:
        registry().include(path)
    for name in ("download", "pack"):
        if options[name] and not tasks:
            raise UsageError(f"--{name} needs --tasks: which benchmarks? `vlmamba-eval prepare` shows all of them.")
    chosen = _tasks(tasks) if tasks else list(all_tasks().values())
    ready = commands_data.prepare(chosen, data, detailed=bool(tasks), **options)
    sys.exit(COMPLETE if ready else INCOMPLETE)


@cli.command(short_help="Write the file that a benchmark's server wants.")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@DATA
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Default: RUN/submission.")
def submit(run: Path, data: str | None, out: Path | None) -> None:
    """Write the file that a benchmark's server wants, from a complete run, and check it by reading it back.

    RUN is a run folder, or a folder above it if only one run there has such a file.
    """
    from vlmamba_eval.submit import run_at
    from vlmamba_eval.submit import submit as write
    from vlmamba_eval.task import Submits

    for path in write(run_at(run, Submits, "runs with a submission file"), data, out):
        click.echo(path.resolve())


@cli.command(short_help="Have a model grade a run's answers (MM-Vet).")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--judge-url", required=True, metavar="URL", help="An OpenAI-compatible endpoint, for example .../v1.")
@click.option("--judge-model", required=True, metavar="NAME", help="The judge's name at that endpoint.")
@click.option(
    "--judge-option",
    "judge_options",
    metavar="KEY=VALUE",
    multiple=True,
    help="One of api_key_env, concurrency, timeout, max_retries, temperature, top_p, seed, thinking, dialect.",
)
@DATA
def judge(run: Path, judge_url: str, judge_model: str, judge_options: tuple[str, ...], data: str | None) -> None:
    """Have a model grade a run's answers (MM-Vet). The key is read from OPENAI_API_KEY.

    RUN is a run folder, or a folder above it if only one run there is graded by a judge. Judgements are kept in the run
    folder: the same command resumes. Judges differ, so the judge's name is shown beside the score.
    """
    from vlmamba_eval.judge import judge as grade
    from vlmamba_eval.judge import parse_judging
    from vlmamba_eval.submit import run_at
    from vlmamba_eval.task import Judged

    def tell(done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            say(f"{done:,}/{total:,} answers judged")

    judging = parse_judging(_key_values("--judge-option", judge_options))
    run = run_at(run, Judged, "runs that a judge grades")
    grade(run, judge_url, judge_model, data, tell, judging=judging, announce=say)
    _report([run], None, relative_to=Path())


@cli.group(name="list")
def list_() -> None:
    """Show what there is: tasks, models."""


@list_.command(name="tasks", short_help="Benchmarks: split, size, headline, who scores.")
def list_tasks() -> None:
    """Benchmarks: what they measure, their split and size, and who scores them."""
    from vlmamba_eval.dataset import has_samples
    from vlmamba_eval.registry import registry
    from vlmamba_eval.task import SCORED

    known = registry()
    rows = [("task", "questions", "images", "split", "protocol", "headline", "scored", "samples", "measures", "from")]
    for task in known.tasks.values():
        info = task.info
        rows.append(
            (
                info.name,
                f"{info.questions:,}",
                "unknown" if info.images is None else f"{info.images:,}",
                info.split,
                info.protocol,
                info.headline,
                SCORED[info.scored],
                "yes" if has_samples(task) else "no",
                info.measures,
                known.origins["task", info.name],
            )
        )
    _print_columns(rows, ("from", "measures", "images", "samples", "split", "scored", "protocol"))


@list_.command(name="models", short_help="Models by name, families and their options.")
@click.argument("family", required=False)
def list_models(family: str | None) -> None:
    """Models by name, and families that take any id or folder; with FAMILY the options of that family."""
    from vlmamba_eval.registry import find_family, names_of, options_of, registry

    known = registry()
    if family is None:
        rows = [("model", "what it is", "from")]
        for name, found in known.families.items():
            rows += [(*row, known.origins["family", name]) for row in names_of([found])]
        _print_columns(rows, ("from",))
        click.echo("\nOptions of a family: vlmamba-eval list models FAMILY")
        return
    found = known.families.get(family) or find_family(family)[0]
    click.echo(f"{found.name}: {found.summary}\n")
    options = options_of(found)
    if not options:
        click.echo("It has no options.")
        return
    _print_columns(
        [("option", "type", "default", "what it does"), *((o.name, o.type, o.default, o.help) for o in options)]
    )


def _print_columns(rows: list[tuple[str, ...]], spare: tuple[str, ...] = ()) -> None:
    """Columns as wide as they need, or fitted to the terminal's width: without the `spare` ones, then wrapped."""
    from vlmamba_eval.report.columns import columns

    click.echo(columns(rows, _width(), spare))


def _width() -> int | None:
    """The columns of the terminal; None if standard output is none, so that lines stay whole."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


# =============================================================================
# Shared endings
# =============================================================================


def _tasks(given: str) -> list[Any]:
    from vlmamba_eval.registry import get_tasks

    chosen = names(given)
    if not chosen:
        raise UsageError("--tasks names no task. `vlmamba-eval list tasks` shows what there is.")
    return get_tasks(chosen)


def _finish(outcomes: list[Outcome], out: Path, remedy: str) -> int:
    """Print and write the leaderboard of everything under `out`; the exit code. `remedy` makes a run complete."""
    from vlmamba_eval.store import find_runs

    _report(find_runs(out / "runs"), out, relative_to=out)
    code = COMPLETE
    for outcome in outcomes:
        scores = outcome.scores
        if not scores.scores:
            click.echo(
                f"{scores.title}: {scores.n - scores.n_missing:,} answers are there, none is scored: "
                f"{_unscored(scores.task, outcome.folder)}",
                err=True,
            )
        if not outcome.complete:
            code = INCOMPLETE
            click.echo(
                f"{scores.title} is INCOMPLETE: of {scores.n:,} answers {scores.n_missing:,} are missing and "
                f"{scores.n_error:,} failed"
                + (f" and {scores.n_foreign:,} are foreign (to other questions)" if scores.n_foreign else "")
                + "; they count as wrong."
                + (f" Why: {outcome.folder.resolve()}/answers.jsonl" if scores.n_error or scores.n_foreign else ""),
                err=True,
            )
    if code == INCOMPLETE:
        click.echo(remedy, err=True)
    return code


def _unscored(task: str, folder: Path) -> str:
    from vlmamba_eval.registry import get_task
    from vlmamba_eval.task import Submits

    chosen = get_task(task)
    if chosen.info.scored == "judge":
        return f"a judge grades them: vlmamba-eval judge {folder.resolve()} --judge-url URL --judge-model NAME"
    hint = (
        "there are no gold labels here. Put the official annotation file into the data folder and run the same "
        "command again"
    )
    if isinstance(chosen, Submits):
        hint += f", or send the answers to the benchmark's server: vlmamba-eval submit {folder.resolve()}"
    return hint + "."


def _report(folders: list[Path], out: Path | None, relative_to: Path) -> None:
    from vlmamba_eval.report.console import show
    from vlmamba_eval.report.tables import board, load_runs, write_leaderboard

    # Another model's damaged run never takes this one's tables; `report`, asked for it, does not continue.
    runs, quoted = load_runs(folders, relative_to, say), published(None)
    written = write_leaderboard(out, runs, quoted) if out is not None else ()  # before anything is printed
    show(board(runs, quoted))
    for path in written:
        click.echo(path)


class _Told(BaseException):
    """A run was interrupted, and the user knows how far it came."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


def main() -> NoReturn:
    """The console script. Ends with one of the documented exit codes."""
    make_streams_last()
    stop_cleanly()
    try:
        _main()
    except SystemExit as ended:
        failure = output_failure()
        if failure and not ended.code:
            say(f"Standard output could not be written ({failure}). The files were: nothing else is lost.")
            sys.exit(FAILED)
        raise


def _main() -> NoReturn:
    try:
        code = cli(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else COMPLETE)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(USAGE)
    except UsageError as error:
        say(f"Error: {error}")
        sys.exit(USAGE)
    except EvalError as error:
        say(f"Error: {error}")
        sys.exit(FAILED)
    except _Told as error:
        sys.exit(error.code)
    except (KeyboardInterrupt, click.Abort, Stopped) as error:
        say(f"Interrupted. {_kept()}".strip())
        sys.exit(error.exit_code if isinstance(error, Stopped) else INTERRUPTED)
    except Exception:  # noqa: BLE001 - the last resort: the traceback, and what to do
        import traceback

        traceback.print_exc()
        say(f"This is a fault of vlmamba-eval. {_kept()}".strip())
        sys.exit(FAILED)


def _kept() -> str:
    """What a command that stopped has left, and how to continue."""
    typed = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if typed == "judge":
        return f"Judgements so far are kept; continue with the same command:\n  {command()}"
    if typed == "bench":
        return "A measurement keeps nothing until it is finished: the same command begins anew."
    if typed in cli.list_commands(click.Context(cli)):
        return ""
    return f"What was answered is safe; continue with the same command:\n  {command()}"
