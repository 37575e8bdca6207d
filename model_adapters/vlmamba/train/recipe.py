"""A recipe: one YAML file that says which model is trained, on what, in which stages.

    model: vlmamba-2.8b            a preset of `config.PRESETS`, or a config.json beside the recipe
    stages:
      - name: alignment
        train: [connector]
        ...

A recipe may extend another (`extends: FILE`, or a recipe of the project by its name): its own keys replace the
other's, and stages of equal name are merged.
The types below are the whole language: `vlmamba-train --keys` prints them, `recipe.schema.json` says them to editors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from vlmamba_eval.model_adapters.vlmamba.config import PRESETS, ModelConfig, from_dict, to_dict
from vlmamba_eval.nearest import did_you_mean
from vlmamba_eval.strict_json import parse_json
from vlmamba_eval.types import EvalError, UsageError

from .reader import convert, parse_yaml, quoted, read_yaml

FOLDER = Path(__file__).parent.parent / "recipes"
PARTS = ("vision", "connector", "language_model")
Part = Literal["vision", "connector", "language_model"]
Tracker = Literal["tensorboard", "wandb", "trackio"]

# Who makes endless examples: by name only, so that a recipe can call nothing else. Other packages announce theirs as
# entry points of the group `vlmamba_eval.streams`.
STREAMS = {
    "scenes": "vlmamba_eval.tasks.samples.training:example",
    "made-up": "vlmamba_eval.model_adapters.vlmamba.train.timing:conversation",
}

_Count = Annotated[int, Meta(ge=0, le=10**12)]
_Amount = Annotated[float, Meta(ge=0, le=1e30)]


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where examples come from: a LLaVA-format JSON list with its image folder, or a function that makes them."""

    json: Annotated[str, Meta(description="a JSON list of conversations, below the command's --data")] = ""
    images: Annotated[str, Meta(description="the folder of its images, below the command's --data")] = ""
    stream: Annotated[
        str, Meta(description="scenes: drawn pictures without end; or the name of another package's stream")
    ] = ""
    seed: Annotated[str, Meta(description="of a stream; the stage's seed is put to it")] = ""
    options: Annotated[dict[str, Any], Meta(description="of a stream: scenes take turns, captions")] = {}


class Lora(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Low-rank updates in the language model instead of all of its weights (arXiv 2106.09685), through PEFT."""

    rank: Annotated[int, Meta(ge=1, le=4096, description="width of each update")] = 128
    alpha: Annotated[_Amount, Meta(description="updates are multiplied by alpha / rank")] = 256.0
    dropout: Annotated[float, Meta(ge=0, lt=1, description="of the updates' inputs")] = 0.05
    targets: Annotated[
        tuple[Literal["in_proj", "x_proj", "out_proj"], ...], Meta(description="the matrices of a block with an update")
    ] = ("in_proj", "x_proj", "out_proj")


class Eval(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is measured while a stage learns, and at its end."""

    every: Annotated[int, Meta(ge=1, description="steps from one measurement to the next")]
    held_out: Annotated[Data | None, Meta(description="examples that nobody learns: the loss of their answers")] = None
    examples: Annotated[int, Meta(ge=1, le=10**7, description="at most this many of them")] = 512
    tasks: Annotated[str, Meta(description="benchmarks, as vlmamba-eval's --tasks names them: pope,mme")] = ""
    data: Annotated[str, Meta(description="their data: samples, or a folder below --data")] = "samples"
    limit: Annotated[_Count, Meta(description="images of each benchmark at most; 0: all")] = 0

    @property
    def benchmarks(self) -> list[str]:
        """The names in `tasks`."""
        return [name.strip() for name in self.tasks.split(",") if name.strip()]


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One stage of training."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="also its folder's name")]
    train: Annotated[tuple[Part, ...], Meta(description="the parts that learn; all others stay, bit for bit")]
    data: Annotated[Data, Meta(description="what it learns from")]
    batch_size: Annotated[int, Meta(ge=1, le=10**7, description="examples of a step, over all devices")]
    micro_batch_size: Annotated[int, Meta(ge=1, le=10**7, description="examples that one device holds at a time")]
    learning_rate: Annotated[_Amount, Meta(description="at its highest, for every part")]
    learning_rates: Annotated[dict[Part, _Amount], Meta(description="of parts that have their own")] = {}
    template: Annotated[
        Literal["vicuna_v1", "plain", "cobra_zephyr", "cobra_in_out"], Meta(description="of its conversations")
    ] = "vicuna_v1"
    epochs: Annotated[_Amount, Meta(description="how often a JSON file is read")] = 0.0
    steps: Annotated[_Count, Meta(description="instead of epochs")] = 0
    warmup_ratio: Annotated[float, Meta(ge=0, le=1, description="share of the steps in which rates rise")] = 0.0
    schedule: Annotated[
        Literal["cosine", "linear", "constant_with_warmup"], Meta(description="of the rates after that, to zero")
    ] = "cosine"
    optimizer: Annotated[
        Literal["adamw", "adamw_8bit"], Meta(description="adamw_8bit: moments of one byte, through bitsandbytes")
    ] = "adamw"
    weight_decay: Annotated[
        _Amount, Meta(description="on matrices only, never on A_log, D, norms, biases and embeddings")
    ] = 0.0
    adam_beta2: Annotated[float, Meta(ge=0, lt=1, description="of Adam's second moment")] = 0.999
    max_grad_norm: Annotated[_Amount, Meta(description="longer gradients are scaled to it; 0: never")] = 1.0
    max_length: Annotated[int, Meta(ge=1, le=10**7, description="tokens and image tokens of an example")] = 2048
    group_by_length: Annotated[
        bool, Meta(description="steps of rows of like length, with images or without, never mixed")
    ] = False
    packing: Annotated[bool, Meta(description="short examples share a row, without any influence on each other")] = (
        False
    )
    lora: Annotated[Lora | None, Meta(description="low-rank updates in place of the language model's weights")] = None
    precision: Annotated[
        Literal["auto", "float32", "tf32", "bf16"],
        Meta(description="of products; weights are float32. auto: bf16 on a GPU that has it, float32 on a CPU"),
    ] = "auto"
    gradient_checkpointing: Annotated[bool, Meta(description="recompute blocks: less memory, more time")] = False
    shard: Annotated[
        bool, Meta(description="FSDP: each of several devices keeps a share of weights, gradients and moments")
    ] = False
    patch_classes: Annotated[dict[str, int], Meta(description="auxiliary heads on the encoder: name, classes")] = {}
    patch_weight: Annotated[_Amount, Meta(description="of their loss, beside the answers' loss")] = 0.0
    seed: Annotated[int, Meta(ge=0, lt=2**32, description="of the order, and of what is drawn")] = 0
    workers: Annotated[int, Meta(ge=0, le=1024, description="processes that prepare data, at most one a CPU")] = 4
    save_every: Annotated[int, Meta(ge=1, description="steps between checkpoints that a killed run resumes from")] = 500
    log_every: Annotated[int, Meta(ge=1, description="steps between lines of the log")] = 10
    eval: Annotated[Eval | None, Meta(description="what is measured on the way")] = None


class RecipeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole recipe, as its file says it.

    `start`: `checkpoint` continues with one that the command names; `parts` takes its encoder and language model and
    draws a fresh connector from `seed`; `random` draws all parameters.
    """

    name: Annotated[str, Meta(max_length=200, description="the file's name by default")] = ""
    model: Annotated[str, Meta(description="a preset's name, or a config.json beside the recipe")]
    stages: Annotated[tuple[Stage, ...], Meta(description="one after another")]
    start: Annotated[
        Literal["checkpoint", "parts", "random"],
        Meta(description="checkpoint: --start as it is; parts: --start with a fresh connector; random: from nothing"),
    ] = "checkpoint"
    seed: Annotated[int, Meta(ge=0, lt=2**32, description="of parameters that are drawn")] = 0
    tokenizer_examples: Annotated[
        _Count, Meta(description="start: random makes its tokenizer from this many examples of the first stage")
    ] = 0
    save_dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        Meta(description="of the last stage's checkpoint; the others stay float32, from which the next one starts"),
    ] = "float32"
    connector: Annotated[dict[str, str], Meta(description="fields of the model's connector that differ")] = {}
    report_to: Annotated[tuple[Tracker, ...], Meta(description="trackers that get every logged number")] = ()


class Recipe(RecipeFile, frozen=True, kw_only=True):
    """A recipe with the configuration of its model."""

    config: ModelConfig


def recipe_names() -> list[str]:
    """The project's own recipes."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


def load_recipe(name: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe by path, or by name among those of the project.

    `overrides` are `key=value` for the recipe or `stage.key=value` for one stage. Raises `UsageError`.
    """
    path = Path(name)
    if not _is_file(path):
        known = recipe_names()
        if name not in known:
            there = f"Recipes: {', '.join(known)}."
            raise UsageError(
                f"{quoted(name)[1:-1]} is neither a file nor a recipe of the project. {did_you_mean(name, known)} "
                f"{there}".replace(".  ", ". ")
            )
        path = FOLDER / f"{name}.yaml"
    data = _extended(path)
    for override in overrides:
        _override(data, override)
    data["stages"] = list(data["stages"].values())
    file = convert({"name": path.stem, **data}, RecipeFile, str(path))
    if not file.stages:
        raise UsageError(f"{path}: a recipe needs stages")
    if file.start == "random" and not file.tokenizer_examples:
        raise UsageError(
            f"{path}: start: random needs tokenizer_examples, the number of the first stage's examples that the "
            "tokenizer is made from (tiny takes 4000)"
        )
    for stage in file.stages:
        _check(stage, f"{path}: stage {stage.name}")
    return Recipe(**msgspec.structs.asdict(file), config=_config(file, path))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _config(recipe: RecipeFile, path: Path) -> ModelConfig:
    """The preset or configuration file that a recipe names, with its own connector."""
    if recipe.model.endswith(".json"):
        model = path.parent / recipe.model
        try:
            with model.open("rb") as file:
                config = from_dict(parse_json(file.read(1 << 20)), str(model))
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(f"{path}: expected a model's config.json at {model}, found: {error}") from error
    elif recipe.model in PRESETS:
        config = PRESETS[recipe.model]
    else:
        raise UsageError(
            f"{path}: model must be a preset ({', '.join(PRESETS)}) or a .json file, found {quoted(recipe.model)}"
        )
    data = to_dict(config)
    try:
        return from_dict({**data, "connector": {**data["connector"], **recipe.connector}}, str(path))
    except EvalError as error:
        raise UsageError(str(error)) from None


def _extended(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file with what it extends, its stages by name."""
    if path.resolve() in below:
        raise UsageError(f"{path}: extends itself, by way of {below[-1]}")
    if len(below) > 9:
        raise UsageError(f"{path}: is the tenth file that extends another; a recipe extends fewer")
    data = read_yaml(path)
    stages = data.pop("stages", None) or []
    if not isinstance(stages, list) or not all(
        isinstance(stage, dict) and isinstance(stage.get("name"), str) for stage in stages
    ):
        raise UsageError(f"{path}: stages must be a list whose items have a name, found {quoted(stages)}")
    names = [stage["name"] for stage in stages]
    if len(set(names)) < len(names):
        raise UsageError(f"{path}: two stages have the same name, of {quoted(names)}")
    data["stages"] = {stage["name"]: stage for stage in stages}
    if "extends" not in data:
        return data
    other = data.pop("extends")
    places = (path.parent / other, FOLDER / f"{other}.yaml") if isinstance(other, str) else ()
    found = next(filter(_is_file, places), None)
    if found is None:
        raise UsageError(
            f"{path}: extends must name a file beside it or a recipe of the project, found {quoted(other)}"
        )
    base = _extended(found, (*below, path.resolve()))
    for stage_name, stage in data.pop("stages").items():
        base["stages"][stage_name] = {**base["stages"].get(stage_name, {}), **stage}
    return {**base, **data}


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    target, names = data, key.split(".")
    if not equals or not all(names):
        raise UsageError(f"--set {override}: expected KEY=VALUE or STAGE.KEY=VALUE")
    # A stage's name may hold a point itself.
    stage = next((name for name in sorted(data["stages"], key=len, reverse=True) if key.startswith(f"{name}.")), None)
    if stage is not None:
        target, names = data["stages"][stage], key[len(stage) + 1 :].split(".")
    elif len(names) > 1 and names[0] != "connector":
        raise UsageError(f"--set {override}: there is no stage {names[0]!r}, only {', '.join(data['stages'])}")
    for name in names[:-1]:
        inner = target.get(name)
        target[name] = dict(inner) if isinstance(inner, dict) else {}
        target = target[name]
    target[names[-1]] = parse_yaml(value, f"--set {override}")


def _check(stage: Stage, where: str) -> None:
    data, lora = stage.data, stage.lora
    held_out = stage.eval.held_out if stage.eval else None
    wrong = [
        message
        for bad, message in (
            (not stage.train, f"train must name some of {', '.join(PARTS)}"),
            (bool(data.json) == bool(data.stream), "data needs either json or stream"),
            (bool(stage.epochs) == bool(stage.steps), "give either epochs or steps"),
            (bool(data.stream and stage.epochs), "a stream has no epochs: give steps"),
            (bool(data.stream and stage.group_by_length), "a stream comes in its own order: no group_by_length"),
            (bool(stage.patch_classes) != bool(stage.patch_weight), "patch_classes and patch_weight go together"),
            (any(n < 1 for n in stage.patch_classes.values()), "patch_classes must be positive"),
            (lora is not None and "language_model" not in stage.train, "lora needs language_model in train"),
            (lora is not None and not lora.targets, "lora needs targets"),
            (bool(set(stage.learning_rates) - set(stage.train)), "learning_rates names a part that does not learn"),
            (stage.optimizer == "adamw_8bit" and stage.shard, "adamw_8bit can't be sharded: shard: false, or adamw"),
            (held_out is not None and bool(held_out.json) == bool(held_out.stream), "held_out needs json or stream"),
            (stage.eval is not None and not stage.eval.tasks and held_out is None, "eval needs held_out or tasks"),
            (stage.packing and bool(stage.patch_classes), "patch_classes can't be packed"),
        )
        if bad
    ]
    if wrong:
        raise UsageError(f"{where}: {'; '.join(wrong)}")
    for source in (data, held_out):
        if source is not None and source.stream:
            find_stream(source.stream, where)


def find_stream(name: str, where: str) -> str:
    """`module:function` of a stream that is known by this name, or written out. Raises `UsageError`."""
    from importlib.metadata import entry_points

    known = {**STREAMS, **{point.name: point.value for point in entry_points(group="vlmamba_eval.streams")}}
    if name in known:
        return known[name]
    if name in known.values():
        return name
    raise UsageError(f"{where}: there is no stream {quoted(name)}, only {', '.join(known)}")


# =============================================================================
# The language, documented
# =============================================================================


def schema() -> dict[str, Any]:
    """The language as a JSON schema, for editors and other programs."""
    found = msgspec.json.schema(RecipeFile)
    file = found["$defs"]["RecipeFile"]
    file["properties"]["extends"] = {"type": "string", "description": "another recipe, whose keys this one replaces"}
    # What a file lacks may be in the one that it extends.
    for kind in ("RecipeFile", "Stage"):
        found["$defs"][kind].pop("required", None)
    _sort(found)
    return parse_json(json.dumps(found))


def _sort(schema: Any) -> None:
    """Bring choices into an order, so that equal schemas are equal files."""
    if isinstance(schema, dict):
        if "enum" in schema:
            schema["enum"] = sorted(schema["enum"])
        for value in schema.values():
            _sort(value)
    elif isinstance(schema, list):
        for value in schema:
            _sort(value)


def keys() -> str:
    """The language as text: every key with its type, its default, and what it decides."""
    lines: list[str] = []
    kinds = (("A recipe", RecipeFile), ("stages: each", Stage), ("data", Data), ("lora", Lora), ("eval", Eval))
    for title, kind in kinds:
        lines += [title]
        for field in msgspec.inspect.type_info(kind).fields:  # type: ignore[union-attr]
            hint, text = field.type, ""
            while isinstance(hint, msgspec.inspect.Metadata):
                text = text or (hint.extra_json_schema or {}).get("description", "")
                hint = hint.type
            default = "required" if field.required else _default(field)
            lines += [f"  {field.name:<22} {default:<14} {text}"]
        lines += [""]
    return "\n".join(lines).rstrip()


def _default(field: Any) -> str:
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if value is None or value == "":
        return "-"
    if isinstance(value, tuple):
        return ", ".join(value) or "-"
    return str(value).lower() if isinstance(value, bool) else str(value) if value != {} else "-"
