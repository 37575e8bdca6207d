"""What a server sends, read with suspicion: nothing of it is trusted to have a type, a size or an end."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from vlmamba_eval.chat.server import Reply
from vlmamba_eval.strict_json import NotJSON, parse_json
from vlmamba_eval.types import StopReason

if TYPE_CHECKING:
    import httpx2

MAX_BODY = 8 * 2**20
"""Bytes of a reply that are read; no answer is as long."""

MAX_ERROR_BODY = 64 * 2**10
"""Bytes that are read of a reply that is an error."""

MAX_CHARACTERS_PER_TOKEN = 1024
"""No vocabulary has a longer token; a text beyond this times the limit on tokens is not the model's."""

SHOWN = 300
"""Characters of a server's text that stand in a message."""

STOPS: dict[str, StopReason] = {"stop": "eos", "eos": "eos", "length": "length"}


class Passing(Exception):
    """May go better next time. `nobody`: nothing listens at the address."""

    def __init__(
        self, message: str, *, kind: Literal["model_error", "timeout"] = "model_error", nobody: bool = False
    ) -> None:
        super().__init__(message)
        self.kind: Literal["model_error", "timeout"] = kind
        self.nobody = nobody


class Busy(Exception):
    """The server asks for a pause, of `wait` seconds if it says how long."""

    def __init__(self, message: str, wait: float | None) -> None:
        super().__init__(message)
        self.wait = wait


class Refused(Exception):
    """Asking again would not help. `key`: because of the key."""

    def __init__(self, message: str, *, key: bool = False) -> None:
        super().__init__(message)
        self.key = key


async def body_of(response: httpx2.Response, most: int) -> bytes:
    """A body up to `most` bytes, and a part more if it is longer. As it comes: nothing is unpacked."""
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > most:
            break
    return bytes(body)


# =============================================================================
# Answers
# =============================================================================


def completion_of(body: bytes) -> dict[str, Any]:
    """The chat completion in a body. Raises `Passing` if it is none, `Refused` if it is too long to be one."""
    if len(body) > MAX_BODY:
        raise Refused(f"it sent more than {MAX_BODY} bytes in place of an answer")
    try:
        completion = parse_json(body, constants=True)
    except NotJSON:
        raise Passing(f"the reply is no whole JSON: {_excerpt(body)!r}") from None
    choices = get(completion, "choices", list)
    if not choices or get(choices[0], "message", dict) is None:
        raise Passing(f"the reply is no chat completion: {_excerpt(body)}")
    return completion


def reply_of(completion: dict[str, Any], limit: int | None) -> Reply:
    """The reply in a completion of at most `limit` tokens. Raises `Passing` or `Refused` if there is none."""
    choice = completion["choices"][0]
    message = choice["message"]
    reason = get(choice, "finish_reason", str) or ""
    if reason in ("abort", "error"):
        raise Passing(f"it broke the answer off (finish_reason {reason!r})")
    if reason == "content_filter":
        raise Refused("it withheld the answer (finish_reason 'content_filter')")
    content = _text(message.get("content")) or get(message, "refusal", str) or ""
    text, inside = without_reasoning(content)
    if not text and not inside and reason in ("tool_calls", "function_call"):
        raise Refused("it called a tool in place of an answer")
    if limit is not None and len(text) > MAX_CHARACTERS_PER_TOKEN * max(limit, 16):
        raise Refused(f"it sent {len(text)} characters, although at most {limit} tokens were asked for")
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate can't be stored
    return Reply(text, STOPS.get(reason, "unknown"), count(get(completion, "usage", dict), "completion_tokens"))


def reasoned(completion: dict[str, Any]) -> bool:
    """Whether the model reasoned before it answered, wherever the server puts that."""
    message = completion["choices"][0]["message"]
    if get(message, "reasoning_content", str) or get(message, "reasoning", str):
        return True
    content = _text(message.get("content"))
    return without_reasoning(content)[0] != content.strip()


def without_reasoning(content: str) -> tuple[str, bool]:
    """(the answer in a text, whether the text ends inside its reasoning).

    For servers that leave `<think>...</think>` in the content; some templates open it themselves, so that only its end
    is there.
    """
    _, end, answer = content.rpartition("</think>")
    if end:
        return answer.strip(), False
    if content.lstrip().startswith("<think>"):
        return "", True
    return content.strip(), False


# =============================================================================
# Trouble
# =============================================================================


def trouble_of(status: int, headers: Mapping[str, str], body: bytes, model: str) -> Passing | Busy | Refused:
    """What a status other than 200 means."""
    said = _said(body)
    told = f"HTTP {status}: {said}" if said else f"HTTP {status}"
    if status in (401, 403):
        return Refused(told, key=True)
    if status == 429 and "insufficient_quota" in said:
        return Refused(told)
    if status == 429 or (status == 503 and ("retry-after" in headers or "retry-after-ms" in headers)):
        return Busy(told, _retry_after(headers))
    if status in (408, 409, 425) or status >= 500:
        return Passing(told)
    hint = ""
    if status == 404:
        hint = f". Does it serve {model!r}, and does base_url end as it should (often in /v1)?"
    elif 300 <= status < 400:
        hint = ". Give the address that it redirects to as base_url."
    elif status in (400, 422):
        hint = ". If it is a field that it does not know, choose another dialect."
    return Refused(told + hint)


def pause_of(headers: Mapping[str, str]) -> float:
    """Seconds to hold back because this was the last request, or the last token, of the server's period; else 0."""
    return max(
        duration(headers.get(f"x-ratelimit-reset-{what}", ""))
        if headers.get(f"x-ratelimit-remaining-{what}", "").strip() == "0"
        else 0.0
        for what in ("requests", "tokens")
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: `retry-after-ms`, or `Retry-After` as seconds or a date."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(headers.get("retry-after-ms", "")) / 1000)
    value = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


_PARTS = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str) -> float:
    """Seconds of `1s`, `6m0s`, `20ms` or a bare number; 0 for anything else."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(text))
    return sum(float(number) * _SECONDS[unit] for number, unit in _PARTS.findall(text[:40]))


def _said(body: bytes) -> str:
    """The message in an error's body: OpenAI's `error.message` and code, FastAPI's `detail`, or the body itself."""
    try:
        found = parse_json(body, constants=True)
    except NotJSON:
        return _excerpt(body)
    error = found.get("error", found) if isinstance(found, dict) else found
    if isinstance(error, dict):
        message = error.get("message", error.get("detail"))
        code = error.get("code")
        if isinstance(message, str):
            return message[:SHOWN] + (f" ({code[:SHOWN]})" if isinstance(code, str) else "")
    return error[:SHOWN] if isinstance(error, str) else _excerpt(body)


# =============================================================================
# Values that may be anything
# =============================================================================


def get(source: Any, name: str, kind: type) -> Any:
    """A field of that type; None if it is not there or of another."""
    value = source.get(name) if isinstance(source, dict) else None
    return value if isinstance(value, kind) else None


def count(source: Any, name: str) -> int:
    """A number of tokens; 0 for anything that is none."""
    value = source.get(name) if isinstance(source, dict) else None
    return value if type(value) is int and 0 <= value < 2**40 else 0


def _text(content: Any) -> str:
    """A message's content: a text, or the texts of its parts."""
    if isinstance(content, list):
        return "".join(get(part, "text", str) or "" for part in content)
    return content if isinstance(content, str) else ""


def _excerpt(body: bytes) -> str:
    return body[:SHOWN].decode(errors="replace")
