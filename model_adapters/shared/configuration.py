"""The config.json of a published model, read without believing anything in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmamba_eval.strict_json import parse_json
from vlmamba_eval.types import ModelError

_LARGEST = 64 * 2**20

LFS = (
    "is the pointer that git-lfs leaves in place of a large file; get the file itself with `git lfs pull`, or download "
    "it again"
)


def read_json(path: Path, what: str = "") -> dict[str, Any]:
    """The object in a JSON file. Raises `ModelError` for anything else, however large or deep.

    `what` says in messages what a file that is not there should hold.
    """
    if what and not path.exists():
        raise ModelError(f"{path} is missing: expected {what}")
    try:
        if not path.is_file():
            raise ModelError(f"{path}: expected a JSON file, found {kind_of(path)}")
        if (size := path.stat().st_size) > _LARGEST:
            raise ModelError(f"{path}: expected a small JSON file, found {size:,} bytes")
        text = path.read_text(encoding="utf-8")
        if text.startswith("version https://git-lfs"):
            raise ModelError(f"{path}: {LFS}")
        data = parse_json(text, constants=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: expected JSON, found: {str(error)[:200]}") from None
    if not isinstance(data, dict):
        raise ModelError(f"{path}: expected a JSON object, found {shorten(data)}")
    return data


def whole_number(data: Mapping[str, Any], key: str, where: str, low: int = 1, high: int = 2**20) -> int:
    """A whole number of a configuration, within bounds; `ModelError` names the field."""
    value = data.get(key)
    if type(value) is not int or not low <= value <= high:
        raise ModelError(f"{where}: {key} must be a whole number from {low} to {high:,}, found {shorten(value)}")
    return value


def shorten(value: Any) -> str:
    """A value as a message quotes it, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # numbers of thousands of digits, deep nesting
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."


def reason(error: BaseException) -> str:
    """What another library's error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def kind_of(path: Path) -> str:
    """What stands in place of an ordinary file."""
    if path.is_symlink() and not path.exists():
        return "a link to a file that is not there"
    return "no file" if not path.exists() else "a folder" if path.is_dir() else "no ordinary file"
