"""Whom to ask, how patiently, and with which fields."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from vlmamba_eval.types import StopReason, UsageError

OPENAI_HOSTS = ("openai.com", "openai.azure.com")
OPENAI_KEY = "OPENAI_API_KEY"

Dialect = Literal["auto", "vllm", "openai", "transformers"]
Thinking = Literal["off", "on", "unset"]
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Server:
    """An endpoint and how patiently it is asked. It holds the name of the key's variable, never the key.

    `base_url` ends in `/v1` for most servers. `timeout` is in seconds and holds for one try, from connecting to the
    last byte. `first_wait`, in seconds, is the first pause before a new try; each further one is twice as long. Without
    `api_key_env` the variable is OPENAI_API_KEY, and its key goes only over https or to this machine: it may be a paid
    one. A variable that is named goes wherever `base_url` says. Raises `UsageError`.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    max_retries: int = 5
    first_wait: float = 0.5

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        try:
            host = url.hostname
            _ = url.port
        except ValueError:
            host = None
        if url.scheme not in ("http", "https") or not host or not self.base_url.isprintable() or " " in self.base_url:
            raise UsageError(
                f"base_url should be an address such as http://localhost:8000/v1, found {_shown(self.base_url)!r}."
            )
        if url.username is not None or url.password is not None or url.query or url.fragment:
            raise UsageError(
                f"base_url should be an address without a user, a password, '?' or '#': {_shown(self.base_url)}. "
                "A key belongs into an environment variable; name it with api_key_env."
            )
        if not self.model:
            raise UsageError(f"Name the model that {_shown(self.base_url)} serves.")
        for name, least in (("concurrency", 1), ("max_retries", 0), ("timeout", 0.001), ("first_wait", 0.0)):
            if not least <= getattr(self, name) < 1e6:
                raise UsageError(f"{name} should be at least {least}, found {getattr(self, name)}.")

    @property
    def url(self) -> str:
        """The address without a slash at its end."""
        return self.base_url.rstrip("/")

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self.base_url).netloc

    @property
    def is_openai(self) -> bool:
        """Whether it is OpenAI's own API, which refuses fields that it does not know."""
        host = urlsplit(self.base_url).hostname or ""
        return any(host == known or host.endswith(f".{known}") for known in OPENAI_HOSTS)

    def key(self) -> str:
        """The key from the environment; empty if there is none, or if it must not be sent there.

        Raises `UsageError` if a variable is named that is not set, or the key can't stand in an HTTP header.
        """
        name = self.api_key_env or OPENAI_KEY
        key = os.environ.get(name, "").strip()
        if not key:
            if self.api_key_env or self.is_openai:
                raise UsageError(f"{self.host} needs a key: set the environment variable {name}.")
            return ""
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise UsageError(
                f"The environment variable {name} holds no key: it has a space or a sign that is not ASCII."
            )
        url = urlsplit(self.base_url)
        local = url.hostname in ("localhost", "127.0.0.1", "::1")
        return key if self.api_key_env or local or url.scheme == "https" else ""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How an answer is sampled. Everything is sent, for what is left out a server takes from the checkpoint.

    None leaves a field out, for models that refuse it. `thinking` sets the variable `enable_thinking` of the chat
    template, if the server lets a request set it.
    """

    temperature: float | None = 0.0
    top_p: float | None = 1.0
    seed: int | None = 0
    thinking: Thinking = "off"
    dialect: Dialect = "auto"

    def fields(self, server: Server, max_tokens: int | None) -> dict[str, Any]:
        """The fields of a request's body besides model and messages."""
        dialect = self.dialect
        if dialect == "auto":
            dialect = "openai" if server.is_openai else "vllm"
        limit = "max_completion_tokens" if dialect == "openai" else "max_tokens"
        found = {limit: max_tokens, "temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        found = {name: value for name, value in found.items() if value is not None}
        if dialect == "vllm":
            found |= {"top_k": -1, "repetition_penalty": 1.0}
        if dialect != "openai" and self.thinking != "unset":
            found["chat_template_kwargs"] = {"enable_thinking": self.thinking == "on"}
        return found


@dataclass(frozen=True, slots=True)
class Request:
    """One conversation to continue, and the other fields of the body (`Decoding.fields`)."""

    messages: Sequence[Message]
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def limit(self) -> int | None:
        """The most tokens that the reply may have, if the fields say."""
        found = self.fields.get("max_completion_tokens", self.fields.get("max_tokens"))
        return found if isinstance(found, int) else None


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, without its reasoning and with its ends stripped.

    A reply that was cut inside its reasoning is empty and has `stop == "length"`. `n_tokens` counts reasoning too; 0 if
    the server does not say.
    """

    text: str
    stop: StopReason
    n_tokens: int = 0


def _shown(url: str) -> str:
    """An address for a message, without what may be a secret in it."""
    bare = re.split(r"[?#]", url, maxsplit=1)[0]
    return re.sub(r"//[^/]*@", "//", bare)[:200]
