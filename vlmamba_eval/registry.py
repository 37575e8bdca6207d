"""Benchmarks and models by name: ours, those of other packages, and those in a plain file.

Other packages announce theirs by entry points, a file is given with `--include`:

    [project.entry-points."vlmamba_eval.tasks"]      a module with a tuple TASKS, or the tuple itself
    [project.entry-points."vlmamba_eval.models"]     a module with FAMILY, or the `Family` itself

Listing names imports no model code: a family's adapter module is imported when one of its models is asked for.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from vlmamba_eval.nearest import did_you_mean
from vlmamba_eval.strict_json import parse_json
from vlmamba_eval.types import EvalError, UsageError

if TYPE_CHECKING:
    from vlmamba_eval.adapter import Adapter, Deferred
    from vlmamba_eval.task import Task

# In the order of the columns of VL-Mamba's Table 1, then what else is measured.
OUR_TASKS = (
    "vqav2", "gqa", "scienceqa", "textvqa", "pope", "mme", "mmbench", "seed", "mmvet", "captions",
    "vizwiz", "vsr", "refcoco", "cobra", "mambavl", "mmmamba",
)  # fmt: skip
OUR_FAMILIES = (
    "vlmamba", "mlmamba", "cobra", "mambavl", "pythiavl", "mmmamba", "zamba2vl", "llava", "hf", "served", "constant",
)  # fmt: skip
OURS = "vlmamba-eval"


# =============================================================================
# Families of models
# =============================================================================


@dataclass(frozen=True)
class NoOptions:
    """The options of a family that has none."""


@dataclass(frozen=True)
class Family:
    """Models of one kind. `--model NAME:REST` gives `REST` (an id, a folder) to `load`, which is imported then.

    `load` is `module:function`, called with the model and the options (an instance of `options`, a frozen dataclass
    whose fields are annotated with `Annotated[type, msgspec.Meta(description=...)]`); it returns an `Adapter`, or a
    `Deferred` if the model can be described without loading it. `models` are names that need no family on the
    command line. `recognises` tells from the config.json of a bare folder whether it is one of this family. `check` is
    called before `load`, with the same, and raises `UsageError` for what can be told without importing a model.
    """

    name: str
    summary: str
    load: str | Callable[[str, Any], Adapter | Deferred]
    options: type = NoOptions
    models: Mapping[str, str] = field(default_factory=dict)
    takes: str = "ID|DIR"
    recognises: Callable[[Mapping[str, Any]], bool] = lambda config: False
    check: Callable[[str, Any], None] = lambda model, options: None


@dataclass(frozen=True)
class Option:
    """One option of a family, as `list models` shows it."""

    name: str
    type: str
    default: str
    help: str


def options_of(family: Family) -> list[Option]:
    """The options that a family declares."""
    hints = get_type_hints(family.options, include_extras=True)
    found = []
    for item in fields(family.options):
        kind, text = hints[item.name], ""
        if metadata := getattr(kind, "__metadata__", ()):
            text = next((meta.description or "" for meta in metadata if isinstance(meta, msgspec.Meta)), "")
            kind = kind.__origin__
        default = "required" if item.default is MISSING else str(item.default)
        found.append(Option(item.name, _as_word(kind), default, text))
    return found


def _as_word(kind: Any) -> str:
    """A type as the user writes a value of it: `int`, `first|last`."""
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "").replace(" ", "")


def parse_options(family: Family, given: Mapping[str, Any]) -> Any:
    """The family's options from texts (`--model-option KEY=VALUE`) or values. Raises `UsageError`."""
    known = [option.name for option in options_of(family)]
    for name in given:
        if name not in known:
            there = f"Its options are: {', '.join(known)}." if known else "It has no options."
            hint = did_you_mean(name, known, there)
            raise UsageError(f"Models of the family {family.name} have no option {name!r}. {hint}")
    try:
        return msgspec.convert(dict(given), family.options, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"--model-option of the family {family.name}: {error}. `vlmamba-eval list models {family.name}` shows its "
            "options."
        ) from None


# =============================================================================
# Everything by name
# =============================================================================


class Registry:
    """All tasks and families, each with where it comes from. Made once for a process; `include` adds to it."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.families: dict[str, Family] = {}
        self.origins: dict[tuple[str, str], str] = {}  # ("task" | "family", name) -> package or file
        package = __package__ or "vlmamba_eval"
        for name in OUR_TASKS:
            self._add_tasks(import_module(f"{package}.tasks.{name}"), OURS)
        for name in OUR_FAMILIES:
            self._add_family(import_module(f"{package}.model_adapters.{name}"), OURS)
        for point in _entry_points("vlmamba_eval.tasks"):
            self._add_tasks(_loaded(point), _origin(point))
        for point in _entry_points("vlmamba_eval.models"):
            self._add_family(_loaded(point), _origin(point))

    def include(self, path: Path) -> None:
        """Add what a Python file, or every Python file of a folder, exports as TASKS and FAMILY. It runs that code.

        Raises `UsageError` for a path that is not there, or a file that exports neither.
        """
        if not path.exists():
            raise UsageError(f"--include {path}: no such file or folder.")
        files = sorted(path.glob("*.py")) if path.is_dir() else [path]
        found = False
        for file in files:
            module = _module_of(file)
            if hasattr(module, "TASKS"):
                self._add_tasks(module, str(file))
                found = True
            if hasattr(module, "FAMILY"):
                self._add_family(module, str(file))
                found = True
        if not found:
            raise UsageError(f"--include {path}: exports neither TASKS (a tuple of Task) nor FAMILY (a Family).")

    def _add_tasks(self, source: Any, origin: str) -> None:
        from vlmamba_eval.task import Task

        tasks = getattr(source, "TASKS", source)
        if not isinstance(tasks, tuple | list) or not all(isinstance(task, Task) for task in tasks):
            raise UsageError(f"{origin}: TASKS should be a tuple of `vlmamba_eval.task.Task`, found {tasks!r:.80}.")
        for task in tasks:
            self._claim("task", task.info.name, origin)
            self.tasks[task.info.name] = task

    def _add_family(self, source: Any, origin: str) -> None:
        family = getattr(source, "FAMILY", source)
        if not isinstance(family, Family):
            raise UsageError(f"{origin}: FAMILY should be a `vlmamba_eval.registry.Family`, found {family!r:.80}.")
        self._claim("family", family.name, origin)
        self.families[family.name] = family

    def _claim(self, kind: str, name: str, origin: str) -> None:
        before = self.origins.setdefault((kind, name), origin)
        if before != origin:
            raise UsageError(f"The {kind} {name!r} of {origin} has the name of one of {before}. Rename one of them.")


_registry: Registry | None = None


def registry() -> Registry:
    """The registry of this process."""
    global _registry
    if _registry is None:
        _registry = Registry()
    return _registry


def all_tasks() -> dict[str, Task]:
    """Every task by its name on the command line, in the order of tables."""
    return registry().tasks


GROUPS: dict[str, tuple[str, ...]] = {
    "llava": (
        "vqav2_testdev",
        "gqa",
        "scienceqa_img",
        "textvqa",
        "pope",
        "mme",
        "mmbench",
        "mmbench_cn",
        "seed",
        "mmvet",
    ),
    "paper": ("vqav2", "gqa", "scienceqa_img", "textvqa", "pope", "mme", "mmbench", "seed", "mmvet"),
    "sqa": ("scienceqa_img",),
    "sqa-i": ("scienceqa_img",),
    "vqa-t": ("textvqa",),
    "mmb": ("mmbench",),
    "seed-i": ("seed_image",),
}
"""Names for several tasks: LLaVA-1.5's suite, VL-Mamba's Table 1 as it is scored here, the papers' abbreviations."""


def get_tasks(names: Iterable[str]) -> list[Task]:
    """The tasks and groups of those names, each once. Raises `UsageError` that names the nearest tasks."""
    single = [one for name in names for one in GROUPS.get(name.lower(), (name,))]
    return [get_task(name) for name in dict.fromkeys(single)]


def get_task(name: str) -> Task:
    """The task of that name, or the questions of `file:PATH`. Raises `UsageError` that names the nearest tasks."""
    tasks = all_tasks()
    if name.startswith("file:"):
        return import_module(f"{__package__}.tasks.own").from_file(Path(name.removeprefix("file:")))
    if name not in tasks:
        hint = did_you_mean(name, [*tasks, *GROUPS], "`vlmamba-eval list tasks` shows all of them.")
        raise UsageError(f"Unknown task {name!r}. {hint}\nTasks: {', '.join(tasks)}. Groups: {', '.join(GROUPS)}.")
    return tasks[name]


def find_family(model: str) -> tuple[Family, str]:
    """The family of a model as given on the command line, and what to give to the family's `load`.

    `FAMILY:REST`, a family's own name for a model, or a folder whose config.json one of the families recognises. Raises
    `UsageError`.
    """
    families = registry().families
    prefix, colon, rest = model.partition(":")
    if colon and prefix in families:
        return families[prefix], rest
    for family in families.values():
        if model in family.models:
            return family, model
    folder = Path(model)
    if folder.is_dir():
        config = _config(folder)
        for family in families.values():
            if family.recognises(config):
                return family, model
        kinds = ", ".join(f"{name}:{model}" for name in families)
        raise UsageError(f"{model}: no family of models recognises its config.json. Say which it is: {kinds}.")
    raise UsageError(_unknown(model, families))


def defer(model: str, options: Mapping[str, Any] | None = None) -> Adapter | Deferred:
    """Make the adapter of a model, without loading its weights if it can be described without them.

    Raises `UsageError` for an unknown model or wrong options, `ModelError` for a damaged checkpoint.
    """
    family, rest = find_family(model)
    chosen = parse_options(family, options or {})
    family.check(rest, chosen)
    load = family.load
    if isinstance(load, str):
        module, _, function = load.partition(":")
        load = getattr(import_module(module), function)
    return load(rest, chosen)


def check_model(model: str, options: Mapping[str, Any] | None = None) -> None:
    """Raise `UsageError` for an unknown model, wrong options, or a model that can't be had; nothing is imported."""
    family, rest = find_family(model)
    family.check(rest, parse_options(family, options or {}))


def load(model: str, options: Mapping[str, Any] | None = None) -> Adapter:
    """Make the adapter of a model and load it."""
    from vlmamba_eval.adapter import Deferred

    found = defer(model, options)
    return found.load() if isinstance(found, Deferred) else found


def _unknown(model: str, families: Mapping[str, Family]) -> str:
    names = [*(name for family in families.values() for name in family.models), *(f"{name}:" for name in families)]
    hint = did_you_mean(model, names, f"There are: {', '.join(names)}.")
    return (
        f"Unknown model {model!r}, and no folder of that name. {hint}\n"
        "Give a name, a checkpoint folder, or FAMILY:ID_OR_FOLDER; `vlmamba-eval list models` shows them."
    )


def _config(folder: Path) -> Mapping[str, Any]:
    """The folder's config.json; empty if it has none, or one that no family could read."""
    try:
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"), constants=True)
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


# =============================================================================
# Other people's code
# =============================================================================


def _entry_points(group: str) -> Iterator[importlib.metadata.EntryPoint]:
    yield from sorted(importlib.metadata.entry_points(group=group), key=lambda point: (_origin(point), point.name))


def _origin(point: importlib.metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _loaded(point: importlib.metadata.EntryPoint) -> Any:
    try:
        return point.load()
    except EvalError:
        raise
    except Exception as error:  # noqa: BLE001 - another package's code can fail in any way
        raise UsageError(
            f"The package {_origin(point)} announces {point.value!r} ({point.group}), which cannot be loaded: "
            f"{type(error).__name__}: {error}. Repair it or uninstall it."
        ) from None


def _module_of(file: Path) -> Any:
    """A plain file as a module, under a name that hides nothing else."""
    name = f"vlmamba_eval_included_{file.stem}_{zlib.crc32(os.fsencode(file.resolve())):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"--include {file}: not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except EvalError:
        raise
    except Exception as error:
        del sys.modules[name]
        raise UsageError(f"--include {file}: {type(error).__name__}: {error}") from error
    return module


def names_of(families: Sequence[Family]) -> list[tuple[str, str]]:
    """(what to write behind --model, what it is) of every family: its own names, then the general form."""
    rows = []
    for family in families:
        rows += family.models.items()
        rows.append((f"{family.name}:{family.takes}", family.summary))
    return rows
