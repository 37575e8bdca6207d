"""Checked reading of annotation and answer files: text, JSON, JSON lines, and rows with named fields.

Everything read here is untrusted. A wrong file is a `DataError` that names file and line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from vlmamba_eval.strict_json import NotJSON, parse_json
from vlmamba_eval.types import DataError, ImageRef

MAX_MESSAGE = 600
PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip; Excel sheets are such files too"}


class Row:
    """One annotation row with checked access: a missing or ill-typed field is an error that names file and row."""

    __slots__ = ("values", "where")

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise DataError(f"{where}: expected an object with named fields, found {shorten(values)}.")
        self.values = values
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def fail(self, message: str) -> NoReturn:
        """Raise a `DataError` about this row. What it quotes is cut off after a few hundred characters."""
        raise DataError(f"{self.where}: {message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + '...'}")

    def get(self, name: str) -> Any:
        """The field as it is. Raises `DataError` if it is absent."""
        try:
            return self.values[name]
        except KeyError:
            there = [repr(field) for field in self.values]
            named = ", ".join(there[:8]) + (f" and {len(there) - 8:,} more" if len(there) > 8 else "")
            self.fail(f"field {name!r} is missing; the row has {named or 'no fields'}.")

    def text(self, name: str, default: str | None = None) -> str:
        """A string field; `default`, if given, stands for an absent or null one."""
        value = self.values.get(name) if default is not None else self.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            self.fail(f"field {name!r} should be text, found {shorten(value)}.")
        return value

    def integer(self, name: str) -> int:
        """An integer field (not a truth value)."""
        value = self.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(f"field {name!r} should be a whole number, found {shorten(value)}.")
        return value

    def identifier(self, name: str) -> str:
        """An id: a whole number or a non-empty text, as text."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            self.fail(f"field {name!r} should be an id (a number or text), found {shorten(value)}.")
        return str(value)

    def number(self, name: str) -> int:
        """A whole number from 0 on, which may be written as text, of 18 digits at most."""
        text = self.identifier(name)
        if not text.isdecimal() or len(text) > 18:
            self.fail(f"field {name!r} should be a whole number, found {shorten(text)}.")
        return int(text)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self.get(name)
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
            self.fail(f"field {name!r} should be a list of texts, found {shorten(value)}.")
        return tuple(value)

    def one_of(self, name: str, allowed: Sequence[str]) -> str:
        """A string field with one of a few values."""
        value = self.text(name)
        if value not in allowed:
            self.fail(f"field {name!r} should be one of {', '.join(map(repr, allowed))}, found {value!r}.")
        return value

    def row(self, name: str) -> Row:
        """A nested object."""
        return Row(self.get(name), f"{self.where}, field {name!r}")

    def rows(self, name: str) -> list[Row]:
        """A list of nested objects."""
        value = self.get(name)
        if not isinstance(value, list):
            self.fail(f"field {name!r} should be a list, found {shorten(value)}.")
        return [Row(item, f"{self.where}, {name}[{i}]") for i, item in enumerate(value)]

    def image(self, name: str, key: str = "") -> ImageRef:
        """An image held by the row itself: base64 text (TSV files), or bytes (hub data sets).

        Without a `key` the picture's identity is the sha256 of its content.
        """
        value = self.get(name)
        if isinstance(value, ImageRef):
            return replace(value, key=key) if key else value
        if not isinstance(value, str):
            self.fail(f"field {name!r} should hold an image, found {shorten(value)}.")
        where = f"{self.where}, field {name!r}"
        return ImageRef(key or hashlib.sha256(value.encode()).hexdigest(), where, base64=value)


def shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte order mark. Raises `DataError` naming the first bad line, or what it is."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from None
    start = raw[:64].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{path} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`.")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(f"{path} is a web page, not the file itself: was it saved from a page that shows the file?")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        packed = next((kind for magic, kind in PACKED.items() if raw.startswith(magic)), "")
        if packed:
            raise DataError(f"{path} is compressed ({packed}). Unpack it and give what was inside.") from None
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 (byte {error.start}: {raw[error.start]:#04x}). Save the file as UTF-8."
        ) from None


def read_jsonl(path: Path) -> Iterator[Row]:
    """The rows of a JSON-lines file, blank lines left out. Raises `DataError` naming file and line."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                value = parse_json(line)
            except NotJSON as error:
                place = f", column {error.column}" if error.line else ""
                raise DataError(
                    f"{where}: not a valid JSON line ({error.reason}{place}): {shorten(line)}. "
                    "The file may be cut off or hold something else."
                ) from None
            if not isinstance(value, dict):
                raise DataError(f"{where}: expected one JSON object a line, found {shorten(value)}.")
            yield Row(value, where)


def read_json(path: Path) -> Any:
    """A whole JSON file. Raises `DataError` with line and column if it is damaged."""
    text = read_text(path)
    try:
        return parse_json(text)
    except NotJSON as error:
        place, column = (f"{path}:{error.line}", f", column {error.column}") if error.line else (path, "")
        raise DataError(
            f"{place}: not valid JSON ({error.reason}{column}); it begins with {text[:40]!r}. "
            "The file may be cut off or be something else: fetch it again and compare its size."
        ) from None
