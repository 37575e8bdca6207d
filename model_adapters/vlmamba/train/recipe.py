"""A recipe: one YAML file that says which model is trained, on what, in which stages.

    model: vlmamba-2.8b            a preset of `config.PRESETS`, or a config.json beside the recipe
    stages:
      - name: alignment
        train: [connector]
        ...

A recipe may extend another (`extends: FILE`): its own keys replace the other's, and stages of equal name are merged.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlmamba_eval.model_adapters.vlmamba.config import PRESETS, ModelConfig, from_dict, to_dict
from vlmamba_eval.types import UsageError

FOLDER = Path(__file__).parent.parent / "recipes"
PARTS = ("vision", "connector", "language_model")


@dataclass(frozen=True, slots=True)
class Data:
    """Where examples come from: a LLaVA-format JSON list with its image folder, or a function that makes them.

    `json` and `images` are relative to the data folder of the command. `stream` names a function
    `module:function(seed: str, number: int, **options)` that returns rows of the same format whose `image` is a
    picture.
    """

    json: str = ""
    images: str = ""
    stream: str = ""
    seed: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of training. Learning rates follow a cosine to zero after a linear warm-up."""

    name: str
    train: tuple[str, ...]  # the parts that learn; all others stay as they are, bit for bit
    data: Data
    batch_size: int  # examples a step, over all devices
    micro_batch_size: int  # examples that one device holds at a time
    learning_rate: float
    template: Literal["vicuna_v1", "plain", "cobra_zephyr", "cobra_in_out"] = "vicuna_v1"
    epochs: float = 0.0  # of a JSON file
    steps: int = 0  # instead of epochs
    warmup_ratio: float = 0.0
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    weight_decay: float = 0.0  # on matrices only, never on A_log, D, norms, biases and embeddings
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    max_length: int = 2048  # tokens and image tokens together
    precision: Literal["float32", "tf32", "bf16"] = "bf16"  # bf16: autocast over float32 master weights
    gradient_checkpointing: bool = False
    patch_classes: dict[str, int] = field(default_factory=dict)  # auxiliary heads on the encoder: name -> classes
    patch_weight: float = 0.0  # of their loss, beside the answers' loss
    seed: int = 0
    workers: int = 4  # processes that prepare data, at most one for each CPU
    save_every: int = 500  # steps between checkpoints that a killed run resumes from
    log_every: int = 10


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe.

    `start`: `checkpoint` goes on with one that the command names; `parts` takes its encoder and language model and
    draws a fresh connector from `seed`; `random` draws all parameters. `save_dtype` is that of the last stage's
    checkpoint; the others stay in float32, since the next stage's master weights come from them.
    """

    name: str
    model: str
    stages: tuple[Stage, ...]
    start: Literal["checkpoint", "parts", "random"] = "checkpoint"
    seed: int = 0
    tokenizer_examples: int = 0  # for `start: random`: the tokenizer is made from this many of the first stage
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    connector: dict[str, str] = field(default_factory=dict)  # fields of the model's connector that differ
    config: ModelConfig = field(init=False)  # the model to be trained


def load_recipe(name: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe by path, or by name among those of the project.

    `overrides` are `key=value` for the recipe or `stage.key=value` for one stage. Raises `UsageError`.
    """
    path = Path(name)
    if not path.is_file():
        known = sorted(str(p.relative_to(FOLDER).with_suffix("")) for p in FOLDER.rglob("*.yaml"))
        if name not in known:
            raise UsageError(f"{name} is neither a file nor a recipe of the project. Recipes: {', '.join(known)}.")
        path = FOLDER / f"{name}.yaml"
    data = _extended(path)
    for override in overrides:
        _override(data, override)
    data["stages"] = list(data.get("stages", {}).values())
    recipe: Recipe = _read(Recipe, {**data, "name": str(data.get("name", path.stem))}, str(path), "")
    if recipe.start == "random" and not recipe.tokenizer_examples:
        raise UsageError(f"{path}: start: random needs tokenizer_examples")
    object.__setattr__(recipe, "config", _config(recipe, path))
    for stage in recipe.stages:
        _check(stage, f"{path}: stage {stage.name}")
    return recipe


def _config(recipe: Recipe, path: Path) -> ModelConfig:
    """The preset or configuration file that a recipe names, with its own connector."""
    if recipe.model.endswith(".json"):
        model = path.parent / recipe.model
        try:
            config = from_dict(json.loads(model.read_text(encoding="utf-8")), str(model))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: expected a model's config.json at {model}, found: {error}") from error
    elif recipe.model in PRESETS:
        config = PRESETS[recipe.model]
    else:
        raise UsageError(
            f"{path}: model must be a preset ({', '.join(PRESETS)}) or a .json file, found {recipe.model!r}"
        )
    connector: dict[str, Any] = {**dataclasses.asdict(config.connector), **recipe.connector}
    data = to_dict(config) | {"connector": connector}
    return from_dict(json.loads(json.dumps(data)), str(path))


def _extended(path: Path) -> dict[str, Any]:
    """The file with what it extends, its stages by name."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: expected YAML, found: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected keys and values, found {type(data).__name__}")
    stages = data.pop("stages", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) and "name" in stage for stage in stages):
        raise UsageError(f"{path}: stages must be a list whose items have a name")
    data["stages"] = {stage["name"]: stage for stage in stages}
    if "extends" not in data:
        return data
    base = _extended(path.parent / data.pop("extends"))
    for stage_name, stage in data.pop("stages").items():
        base["stages"][stage_name] = {**base["stages"].get(stage_name, {}), **stage}
    return {**base, **data}


def _override(data: dict[str, Any], override: str) -> None:
    import yaml

    key, equals, value = override.partition("=")
    target, names = data, key.split(".")
    if len(names) > 1:
        target = data["stages"].get(names[0])
        if target is None:
            raise UsageError(f"--set {override}: there is no stage {names[0]!r}, only {', '.join(data['stages'])}")
    if not equals or len(names) > 2:
        raise UsageError(f"--set {override}: expected KEY=VALUE or STAGE.KEY=VALUE")
    target[names[-1]] = yaml.safe_load(value)


def _check(stage: Stage, where: str) -> None:
    wrong = [
        message
        for bad, message in (
            (not stage.train or set(stage.train) - set(PARTS), f"train must name some of {', '.join(PARTS)}"),
            (bool(stage.data.json) == bool(stage.data.stream), "data needs either json or stream"),
            (bool(stage.epochs) == bool(stage.steps), "give either epochs or steps"),
            (bool(stage.data.stream and stage.epochs), "a stream has no epochs: give steps"),
            (min(stage.batch_size, stage.micro_batch_size) < 1, "batch_size and micro_batch_size must be positive"),
            (bool(stage.patch_classes) != bool(stage.patch_weight), "patch_classes and patch_weight go together"),
        )
        if bad
    ]
    if wrong:
        raise UsageError(f"{where}: {'; '.join(wrong)}")


def _read(kind: Any, data: Any, where: str, at: str) -> Any:
    """A dataclass from plain data: no unknown keys, defaults where there are some, every value of its type."""
    place = f"{where}: {at or 'the recipe'}"
    if not isinstance(data, dict):
        raise UsageError(f"{place} must have keys and values, found {data!r}")
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    unknown = sorted(set(data) - set(fields))
    required = [f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in data]
    if unknown or missing:
        parts = [f"{what} {', '.join(names)}" for what, names in (("unknown", unknown), ("missing", missing)) if names]
        raise UsageError(f"{place}: {'; '.join(parts)}. Known keys: {', '.join(fields)}.")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _value(hints[name], value, where, f"{at}.{name}".lstrip(".")) for name, value in data.items()})


def _value(hint: Any, value: Any, where: str, at: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _read(hint, value, where, at)
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_value(arguments[0], item, where, f"{at}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return dict(value)
    if hint is float and isinstance(value, str | int | float) and not isinstance(value, bool):
        # YAML reads 1e-3 (without a point) as a text.
        try:
            return float(value)
        except ValueError:
            pass
    if hint in (bool, int, str) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    expected = f"one of {', '.join(map(repr, arguments))}" if origin is Literal else getattr(hint, "__name__", hint)
    raise UsageError(f"{where}: {at} must be {expected}, found {value!r}")
