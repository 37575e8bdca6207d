"""What a shell may complete: names of tasks, models and published rows."""

from __future__ import annotations


def names(kind: str) -> list[str]:
    """The names of `tasks`, `models` or `baselines`, in the order of their lists."""
    if kind == "baselines":
        from vlmamba_eval.baselines import published

        return [*dict.fromkeys(row.model for row in published()), "none"]
    from vlmamba_eval.registry import names_of, registry

    known = registry()
    if kind == "tasks":
        return list(known.tasks)
    return [name for name, *_ in names_of(list(known.families.values()))]
