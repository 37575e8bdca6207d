"""The benchmarks by name. A module listed here has a tuple `TASKS` with its list versions and options."""

from __future__ import annotations

import difflib
from functools import lru_cache
from importlib import import_module

from tasks.base import Task
from vlmamba_eval.types import UsageError

# In the order of the columns of VL-Mamba's Table 1.
MODULES = ("vqav2", "gqa", "scienceqa", "textvqa", "pope", "mme", "mmbench", "seed", "mmvet", "captions")


@lru_cache(maxsize=1)
def all_tasks() -> dict[str, Task]:
    """Every task by its name on the command line, in the order of tables."""
    return {task.info.name: task for module in MODULES for task in import_module(f"tasks.{module}").TASKS}


def get_task(name: str) -> Task:
    """The task of that name. Raises `UsageError` that names the nearest ones."""
    tasks = all_tasks()
    if name not in tasks:
        near = difflib.get_close_matches(name.lower(), tasks, n=3, cutoff=0.5)
        hint = f"Did you mean: {', '.join(near)}?" if near else "`vlmamba-eval list tasks` shows all of them."
        raise UsageError(f"Unknown task {name!r}. {hint}\nTasks: {', '.join(tasks)}.")
    return tasks[name]
