"""A whole run of a family's model through the command: four benchmarks' samples, each image read once and again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from vlmamba_eval.cli import cli

TASKS = "gqa,pope,mme,textvqa"


def assert_sharing_changes_no_answer_file(model: str, options: Mapping[str, Any], folder: Path) -> None:
    """Run `model` on a few whole images of each benchmark, with sharing and without; both leave the same bytes."""
    chosen = [part for name, value in options.items() for part in ("--model-option", f"{name}={value}")]
    files = []
    for sharing in ([], ["--no-sharing"]):
        out = folder / f"out{len(sharing)}"
        command = ["--model", model, "--tasks", TASKS, "--data", "samples", "--limit", "2", "--device", "cpu"]
        done = CliRunner().invoke(cli, [*command, "--out", str(out), *chosen, *sharing])
        assert done.exit_code == 0, done.output
        files.append(sorted(path.read_text() for path in out.rglob("answers.jsonl")))
    assert len(files[0]) == len(TASKS.split(","))
    assert files[0] == files[1]
