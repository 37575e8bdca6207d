"""The one way in for JSON, whoever wrote it: files, servers, command lines.

Python's reader takes more than JSON, and raises four kinds of errors. Here keys that appear twice and numbers that are
none are refused, and whatever is wrong is one error that says what, in few words.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


class NotJSON(ValueError):
    """Why something is not JSON. `line` and `column` count from 1, `position` from 0; `line` is 0 if none is known."""

    def __init__(self, reason: str, line: int = 0, column: int = 0, position: int = 0) -> None:
        super().__init__(f"{reason}, line {line}, column {column}" if line else reason)
        self.reason, self.line, self.column, self.position = reason, line, column, position


def parse_json(content: str | bytes, *, constants: bool = False) -> Any:
    """A whole JSON text (bytes: UTF-8) as plain data. Raises `NotJSON`.

    `constants` lets NaN and Infinity in, which Python's own writers, transformers among them, put out.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        if constants:
            return json.loads(text, object_pairs_hook=_unique_keys)
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite)
    except NotJSON:
        raise
    except json.JSONDecodeError as error:
        raise NotJSON(error.msg, error.lineno, error.colno, error.pos) from None
    except UnicodeDecodeError as error:
        raise NotJSON(f"not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from None
    except RecursionError:
        raise NotJSON("its lists or objects are nested too deeply") from None
    except ValueError:  # the one that is left: Python refuses to read very long whole numbers
        raise NotJSON("a whole number in it has thousands of digits") from None


def _refuse_constant(name: str) -> NoReturn:
    raise NotJSON(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise NotJSON(f"the number {text:.40} is too large")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise NotJSON(f"key {twice!r:.80} occurs twice in one object")
    return result
