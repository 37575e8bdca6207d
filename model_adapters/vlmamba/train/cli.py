"""`vlmamba-train`: a recipe, from its start to the checkpoint that `vlmamba-eval --model PATH` reads.

Several GPUs: `torchrun --nproc_per_node 8 -m vlmamba_eval.model_adapters.vlmamba.train.cli RECIPE ...`.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from vlmamba_eval import __version__
from vlmamba_eval.types import EvalError, UsageError


def _keys(context: click.Context, parameter: Any, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from .recipe import keys

        click.echo(keys())
        context.exit()


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("recipe", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="Where the stages' checkpoints go.")
@click.option("--start", type=click.Path(path_type=Path), help="The checkpoint to start from (vlmamba-eval assemble).")
@click.option("--data", type=click.Path(path_type=Path), default=Path(), help="The folder of the recipe's data files.")
@click.option("--stage", "only", multiple=True, help="Train this stage only (repeatable); all by default.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe: STAGE.KEY=VALUE.")
@click.option(
    "--keys", is_flag=True, is_eager=True, expose_value=False, callback=_keys, help="Say what a recipe holds."
)
@click.version_option(__version__)
def train(
    recipe: str | None,
    out: Path | None,
    start: Path | None,
    data: Path,
    only: tuple[str, ...],
    device: str,
    overrides: tuple[str, ...],
) -> None:
    """Train a VL-Mamba by RECIPE, a YAML file or the name of one of the project's recipes.

    Each stage writes a checkpoint folder OUT/STAGE that `vlmamba-eval --model OUT/STAGE` reads. Running the same
    command again continues where the last run stopped; stages that are complete are not trained again. Without a
    recipe, those of the project are listed.
    """
    missing = [name for name in ("accelerate", "yaml") if find_spec(name) is None]
    if missing and (recipe or "yaml" in missing):
        raise UsageError(f"training needs {', '.join(missing)}: pip install 'vlmamba-eval[train]'")
    from .check import check_files
    from .recipe import load_recipe

    if recipe is None:
        _list()
        return
    # What can be wrong is looked at before PyTorch and transformers are imported, which takes seconds.
    loaded = load_recipe(recipe, overrides)
    if out is None:
        raise UsageError("where to? --out DIR is missing: the stages' checkpoints go there")
    check_files(loaded, out, start, data, only)
    say = click.echo if os.environ.get("RANK", "0") == "0" else lambda line: None
    stages = ", ".join(stage.name for stage in loaded.stages)
    say(f"recipe {loaded.name}: {loaded.config.name}, stages {stages}, into {out}")
    use_one_gpu()
    from .run import run_recipe

    run_recipe(loaded, out, start=start, data=data, only=only, device=device, say=say)


def _list() -> None:
    """The project's recipes, each with the first sentence of its file."""
    from .recipe import FOLDER, recipe_names

    names = recipe_names()
    width = max(map(len, names))
    for name in names:
        lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        about = " ".join(line.lstrip("# ") for line in lines[:3] if line.startswith("#")).split(". ")[0]
        click.echo(f"{name:<{width}}  {about.strip().rstrip('.')}")
    click.echo("\nvlmamba-train RECIPE --out DIR trains one; --keys says what a recipe of your own may hold.")


def use_one_gpu() -> None:
    """Hide all GPUs but the first from a process without a launcher: the Trainer would split batches over them.

    Without effect once CUDA is in use.
    """
    if "LOCAL_RANK" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def main() -> None:
    """The console command. Exit codes: 0 complete, 1 failed, 2 wrong usage, 130 interrupted and resumable."""
    try:
        train(standalone_mode=False)
    except click.exceptions.Abort:
        print("Interrupted. The same command resumes from the last checkpoint.", file=sys.stderr)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except EvalError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


if __name__ == "__main__":
    main()
