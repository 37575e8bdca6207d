"""What a training says while it runs: a line of JSON for each logged step, and a line for whoever watches."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vlmamba_eval.strict_json import parse_json


class Log(TrainerCallback):
    """One line of JSON for each logged step, kept over a resumption up to the step that is resumed from.

    `seconds` count on from the last line that is kept; `scan` is the backend that trained. What is measured on the way
    (`Eval`) has lines of its own, in `eval.jsonl` beside it.
    """

    def __init__(self, path: Path, scan: str, say: Callable[[str], None]):
        self.path, self.scan, self.say = path, scan, say
        self.began, self.before, self.resumed = time.monotonic(), 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began, self.resumed = time.monotonic(), state.global_step
        if not state.is_world_process_zero:
            return
        kept = keep_until(self.path, state.global_step)
        keep_until(self.path.with_name("eval.jsonl"), state.global_step)
        self.before = float(kept[-1]["seconds"]) if kept else 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False  # the finished stage is written as a checkpoint of its own

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        line = {"step": state.global_step, "loss": round(float(logs["loss"]), 5), "answers": round(logs["answers"], 5)}
        line |= {"grad_norm": round(float(logs["grad_norm"]), 4), "learning_rate": float(logs["learning_rate"])}
        line |= {name: logs[name] for name in logs if name.startswith("learning_rate_")}
        # A step's places on one device, image and padding counted in; the rate counts true tokens on all devices.
        line |= {"tokens": round(logs["tokens"]), "padding": round(logs["padding"], 4)}
        line |= {"tokens_per_second": round(logs["tokens_per_second"]), "matrix_share": round(logs["matrix_share"], 4)}
        line |= {"seconds_per_step": round(logs["seconds_per_step"], 4)}
        line |= {"seconds": round(self.before + time.monotonic() - self.began, 2), "scan": self.scan}
        append(self.path, line)
        pace = logs["seconds_per_step"]
        # A process's first step warms up, and says nothing about the others.
        known = state.global_step > self.resumed + 1
        left = f"  {duration(pace * (state.max_steps - state.global_step))} left" if known else ""
        self.say(
            f"step {state.global_step}/{state.max_steps}  loss {line['loss']:.4f}  answers {line['answers']:.4f}  "
            f"{pace:.2f} s/step  {line['tokens_per_second']:,} tokens/s  {100 * line['matrix_share']:.0f} % of the "
            f"matrix rate{left}"
        )


def append(path: Path, line: dict[str, Any]) -> None:
    """Add one line of JSON to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def keep_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the lines after a step, and one that was torn by a kill; the lines that stay."""
    old = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kept: list[dict[str, Any]] = []
    for text in old:
        try:
            line = parse_json(text, constants=True)
        except ValueError:
            break
        if line["step"] <= step:
            kept.append(line)
    if path.is_file() or not path.name.startswith("eval"):
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return kept


def duration(seconds: float) -> str:
    """A time that a person waits: `45 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
