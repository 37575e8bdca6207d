"""A YAML file to plain data, and plain data to typed values: every mistake is a sentence with file, key and value.

What a file can do is bounded here: its size, its depth, how much its aliases expand to; keys that appear twice are
refused. A recipe may come from anybody.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from vlmamba_eval.model_adapters.shared.configuration import reason
from vlmamba_eval.nearest import did_you_mean
from vlmamba_eval.types import UsageError

T = TypeVar("T")

_LARGEST = 1 << 20  # bytes of a file
_MOST = 20_000  # values of a file, its aliases written out
_DEEPEST = 50


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a file. Raises `UsageError`."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        text = content.decode("utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: expected a YAML file, found: {error}") from error
    if len(content) > _LARGEST:
        raise UsageError(f"{path}: expected a recipe, found a file of more than {_LARGEST:,} bytes")
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected keys and values, found {quoted(data)}")
    return data


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text says, `1e-3` being a number. `where` names it in messages."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, with the numbers of YAML 1.2, and without silent duplicates."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
            twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} appears twice", node.start_mark)
            return super().construct_mapping(node, deep)

    number = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
    integer = re.compile(r"^[-+]?[0-9]+$")
    Loader.yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in rules if not tag.endswith((":int", ":float", ":timestamp"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", integer, list("-+0123456789"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    loader = None
    try:
        loader = Loader(text)
        data = loader.get_single_data()
        _count(data, [_MOST])
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{where}: expected YAML, found: {_first_line(error)}") from error
    finally:
        if loader is not None:
            loader.dispose()
    return data


def _count(data: Any, left: list[int], depth: int = 0) -> None:
    """`ValueError` if there is more than a recipe can hold, aliases written out; loops end here too."""
    left[0] -= 1
    if left[0] < 0 or depth > _DEEPEST:
        raise ValueError(f"more than {_MOST:,} values, or more than {_DEEPEST} levels")
    if isinstance(data, dict):
        for key, value in data.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {quoted(key)}, which is not text")
            _count(value, left, depth + 1)
    elif isinstance(data, list):
        for value in data:
            _count(value, left, depth + 1)


def _first_line(error: Exception) -> str:
    text = reason(error)
    return text if len(text) <= 300 else text[:300] + " ..."


def quoted(value: Any) -> str:
    """A value for a message, at most 200 characters of it."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 120, 120
    text = short.repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


# =============================================================================
# Typed values
# =============================================================================


def convert(data: Any, kind: type[T], where: str) -> T:
    """Plain data as a value of `kind`, a `msgspec.Struct`. Raises `UsageError`: `FILE: KEY must be ..., found ...`."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise UsageError(_sentence(str(error), data, kind, where)) from None
    except (RecursionError, ValueError, OverflowError) as error:
        raise UsageError(f"{where}: expected a {kind.__name__.lower()}, found: {_first_line(error)}") from error


def _sentence(text: str, data: Any, kind: type, where: str) -> str:
    """msgspec's message, with what was found, what may be there, and the near names of a misspelt key."""
    message, _, path = text.partition(" - at `$")
    at = path.rstrip("`").lstrip(".")
    steps: list[str | int] = [
        int(step) if step.isdigit() else step for step in re.findall(r"[^.\[\]]+", at) if step != "..."
    ]
    hint, found = inspect.type_info(kind), data
    for step in steps:
        try:
            hint, found = _inside(hint, step), found[step]
        except (KeyError, IndexError, TypeError):
            return f"{where}: {at}: {message}"
    place = f"{where}: {at or 'the file'}"
    names = _names(hint)
    if named := re.match(r"Object (contains unknown|missing required) field `(.*)`", message):
        what, name = named.groups()
        known = f"Known keys: {', '.join(names)}."
        if what.startswith("contains"):
            return f"{place}: unknown {name}. {did_you_mean(name, names, known)}"
        return f"{place}: missing {name}. {known}"
    bounded = re.search("[<>=]|matching", message) is not None
    return f"{place} must be {_expected(hint, bounded)}, found {quoted(found)}"


def _plain(hint: Any) -> Any:
    while isinstance(hint, inspect.Metadata):
        hint = hint.type
    if isinstance(hint, inspect.UnionType):
        return next(_plain(kind) for kind in hint.types if not isinstance(kind, inspect.NoneType))
    return hint


def _inside(hint: Any, step: str | int) -> Any:
    hint = _plain(hint)
    if isinstance(hint, inspect.StructType):
        return next(field.type for field in hint.fields if field.encode_name == step)
    return hint.value_type if isinstance(hint, inspect.DictType) else hint.item_type


def _names(hint: Any) -> list[str]:
    hint = _plain(hint)
    return [field.encode_name for field in hint.fields] if isinstance(hint, inspect.StructType) else []


def _expected(hint: Any, bounded: bool = False) -> str:
    hint = _plain(hint)
    if isinstance(hint, inspect.LiteralType):
        return f"one of {', '.join(map(repr, hint.values))}"
    if isinstance(hint, inspect.StructType):
        return "keys and values"
    if isinstance(hint, inspect.DictType):
        return f"keys and values; each key {_expected(hint.key_type)}, each value {_expected(hint.value_type)}"
    if isinstance(hint, inspect.VarTupleType):
        return f"a list; each of it {_expected(hint.item_type)}"
    if isinstance(hint, inspect.AnyType):
        return "anything"
    name = type(hint).__name__.removesuffix("Type").lower()
    if not bounded:
        return name
    bounds = [
        f" {words} {limit}"
        for words, limit in (
            ("of at least", getattr(hint, "ge", None)),
            ("above", getattr(hint, "gt", None)),
            ("of at most", getattr(hint, "le", None)),
            ("below", getattr(hint, "lt", None)),
        )
        if limit is not None
    ]
    if getattr(hint, "pattern", None):
        bounds.append(f" like {hint.pattern}")
    return name + " and".join(bounds)
