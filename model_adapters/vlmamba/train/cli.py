"""`vlmamba-train`: a recipe, from its start to the checkpoint that `vlmamba-eval --model PATH` reads.

Several GPUs: `torchrun --nproc_per_node 8 -m vlmamba_eval.model_adapters.vlmamba.train.cli RECIPE ...`.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from vlmamba_eval.types import EvalError, UsageError


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("recipe")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where the stages' checkpoints go.")
@click.option("--start", type=click.Path(path_type=Path), help="The checkpoint to start from (vlmamba-eval assemble).")
@click.option("--data", type=click.Path(path_type=Path), default=Path(), help="The folder of the recipe's data files.")
@click.option("--stage", "only", multiple=True, help="Train this stage only (repeatable); all by default.")
@click.option("--device", type=click.Choice(["auto", "cpu"]), default="auto", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe: STAGE.KEY=VALUE.")
def train(
    recipe: str,
    out: Path,
    start: Path | None,
    data: Path,
    only: tuple[str, ...],
    device: str,
    overrides: tuple[str, ...],
) -> None:
    """Train a VL-Mamba by RECIPE, a YAML file or the name of one of the project's recipes.

    Each stage writes a checkpoint folder OUT/STAGE that `vlmamba-eval --model OUT/STAGE` reads. Running the same
    command again goes on where the last run stopped; stages that are complete are not trained again.
    """
    use_one_gpu()
    missing = [name for name in ("accelerate", "yaml") if find_spec(name) is None]
    if missing:
        raise UsageError(f"training needs {', '.join(missing)}: pip install 'vlmamba-eval[train]'")
    from .recipe import load_recipe
    from .run import run_recipe

    say = click.echo if os.environ.get("RANK", "0") == "0" else lambda line: None
    run_recipe(load_recipe(recipe, overrides), out, start=start, data=data, only=only, device=device, say=say)


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
        print("Interrupted. The same command goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except EvalError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


if __name__ == "__main__":
    main()
