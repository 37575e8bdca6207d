"""What can be wrong with a command's files, found in a fraction of a second: nothing heavy is imported for it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from vlmamba_eval.registry import get_task
from vlmamba_eval.types import DataError, UsageError

from .recipe import Recipe


def check_files(recipe: Recipe, out: Path, start: Path | None, data: Path, only: tuple[str, ...]) -> None:
    """`UsageError` or `DataError` unless what the stages to be trained need is there. Rows are not read."""
    names = [stage.name for stage in recipe.stages]
    unknown = sorted(set(only) - set(names))
    if unknown:
        raise UsageError(f"recipe {recipe.name} has no stage {', '.join(unknown)}, only {', '.join(names)}")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file: name a folder")
    if not data.is_dir():
        raise UsageError(f"--data {data}: no such folder")
    if start is not None and not (start / "config.json").is_file():
        raise UsageError(f"--start {start} is not a checkpoint: it has no config.json")
    will_be = set[str]()  # stages that this very run finishes before later ones need them
    for place, stage in enumerate(recipe.stages):
        if (only and stage.name not in only) or (out / stage.name / "config.json").is_file():
            continue
        before = names[place - 1] if place else None
        if before is None:
            if start is None and recipe.start != "random":
                raise UsageError(
                    f"recipe {recipe.name} starts from a checkpoint: --start DIR. "
                    f"`vlmamba-eval assemble {recipe.model} --out DIR` builds one from published parts."
                )
        elif before not in will_be and start is None and not (out / before / "config.json").is_file():
            raise UsageError(
                f"stage {stage.name} continues from {out / before}, which is not there: train it, or --start DIR"
            )
        will_be.add(stage.name)
        sources = [stage.data] + ([stage.eval.held_out] if stage.eval and stage.eval.held_out else [])
        for name in (source.json for source in sources if source.json):
            if not (data / name).is_file():
                raise DataError(
                    f"{data / name} is missing: stage {stage.name} expects a JSON list of conversations in LLaVA's "
                    "format there; --data names the folder that recipes' files are in"
                )
        if stage.eval and stage.eval.tasks:
            for name in stage.eval.benchmarks:
                get_task(name)
            if stage.eval.data not in ("samples", "hub") and not (data / stage.eval.data).is_dir():
                raise UsageError(f"stage {stage.name}: eval.data: {data / stage.eval.data}: no such folder")
        for module, extra in (("peft", stage.lora), ("bitsandbytes", stage.optimizer == "adamw_8bit" or None)):
            if extra is not None and find_spec(module) is None:
                raise UsageError(f"stage {stage.name} needs {module}: pip install {module}")
    for tracker in recipe.report_to:
        if find_spec(tracker) is None:
            raise UsageError(f"report_to: {tracker} is not installed: pip install {tracker}, or leave it out")
