"""A model behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, `transformers serve`, the OpenAI API.

adapter   questions as chat requests, images as data URLs; the client is `vlmamba_eval.chat`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from vlmamba_eval.registry import Family


@dataclass(frozen=True)
class Options:
    """The options of a served model."""

    base_url: Annotated[str, Meta(description="the server's address, such as http://localhost:8000/v1")] = (
        "https://api.openai.com/v1"
    )
    api_key_env: Annotated[
        str | None,
        Meta(
            description="environment variable that holds the key, sent wherever base_url says; "
            "without it OPENAI_API_KEY, sent only over https or to this machine"
        ),
    ] = None
    dialect: Annotated[
        Literal["auto", "vllm", "openai", "transformers"],
        Meta(description="fields that the server knows; auto: openai for OpenAI's API, else vllm (SGLang, llama.cpp)"),
    ] = "auto"
    system: Annotated[str, Meta(description="system sentence; empty: whatever the server's template has")] = ""
    temperature: Annotated[float | None, Meta(description="0: greedy; null: not sent, for models that refuse it")] = 0.0
    top_p: Annotated[float | None, Meta(description="null: not sent")] = 1.0
    seed: Annotated[int | None, Meta(description="null: not sent")] = 0
    thinking: Annotated[
        Literal["off", "on", "unset"],
        Meta(description="enable_thinking of the server's chat template; unset: not sent"),
    ] = "off"
    thinking_tokens: Annotated[
        int, Meta(ge=0, description="tokens that reasoning may take beyond the benchmark's limit, if it can't be off")
    ] = 0
    image_format: Annotated[
        Literal["original", "png", "jpeg"],
        Meta(
            description="original: the file as it is if every server decodes it alike (JPEG and PNG in RGB or grey, up "
            "to 4 MiB), else PNG; png: every pixel as decoded; jpeg: quality 95, for slow lines"
        ),
    ] = "original"
    concurrency: Annotated[
        int, Meta(ge=1, description="requests at a time; beyond 16, raise --batch-tokens as well")
    ] = 8
    timeout: Annotated[float, Meta(gt=0, description="seconds that one try of one question may take")] = 120.0
    max_retries: Annotated[int, Meta(ge=0, description="new tries of one question after a failure that may pass")] = 5


FAMILY = Family(
    name="openai",
    summary="a model that an OpenAI-compatible server serves: --model-option base_url=http://localhost:8000/v1",
    load="vlmamba_eval.model_adapters.served.adapter:load",
    options=Options,
    takes="MODEL",
)
