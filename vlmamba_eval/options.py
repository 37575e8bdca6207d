"""What the commands share: options, names in them, shell completion, and how the user is told something."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlmamba_eval.text import printable

if TYPE_CHECKING:
    from vlmamba_eval.baselines import Published


def names(text: str) -> list[str]:
    """`A,B,C` as names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def completed(kind: str) -> Any:
    """Shell completion of an option that names tasks, models or published rows, the last of a list of several."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + name for name in _known(kind) if name.startswith(last)]

    return complete


def _known(kind: str) -> list[str]:
    """The names of `tasks`, `models` or `baselines`, in the order of their lists."""
    from vlmamba_eval.registry import names_of, registry

    if kind == "baselines":
        from vlmamba_eval.baselines import published

        return [*dict.fromkeys(row.model for row in published()), "none"]
    known = registry()
    return list(known.tasks) if kind == "tasks" else [name for name, _ in names_of(list(known.families.values()))]


INCLUDE = click.option(
    "--include",
    metavar="FILE|DIR",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A Python file (or a folder of some) that exports TASKS or FAMILY; its code is run.",
)
OUT = click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Where runs and leaderboards are written.",
)
DATA = click.option("--data", metavar="hub|DIR", help="Where the benchmarks are. Default: where each run read them.")
BASELINES = click.option(
    "--baselines",
    metavar="A,B,C",
    shell_complete=completed("baselines"),
    help="Published rows to show, by their name in results/baselines.csv; `none` for none.",
)


def published(baselines: str | None) -> list[Published]:
    """The published rows that `--baselines` names; without the option the usual ones."""
    from vlmamba_eval.baselines import DEFAULT, choose

    return choose(DEFAULT if baselines is None else [name for name in names(baselines) if name != "none"])


def say(message: str) -> None:
    """A line on standard error; it may hold text of others, which is made harmless to a terminal."""
    click.echo(printable(message), err=True)
