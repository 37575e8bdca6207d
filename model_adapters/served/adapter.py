"""Questions as chat requests to a server, images as data URLs.

One request per question: an image part, then the benchmark's text. The conversation template is the server's. Questions
about one image start next to each other, so that a server that caches prefixes reads the image once.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlmamba_eval.adapter import AdapterInfo, Deferred
from vlmamba_eval.chat import Chat, Decoding, Reply, Request, Server
from vlmamba_eval.images import ENCODED
from vlmamba_eval.types import Failure, Generation, ImageQuestions, Question

if TYPE_CHECKING:
    from vlmamba_eval.model_adapters.served import Options

JPEG_QUALITY = 95
PNG_LEVEL = 1  # lossless at any level; this one is fast
LARGEST_ORIGINAL = 4 * 2**20  # bytes; hosted servers refuse from 5 MB on
_ORIENTATION = 0x0112  # in EXIF
IMAGE_TOKENS = 64  # for the size of batches alone: at most some forty images, of about a megabyte each, are held


def load(model: str, options: Options) -> Deferred:
    """`openai:MODEL`: described from its options; loading it asks the server whether it is there.

    Raises `UsageError` for wrong options or a missing key; `Deferred.load` raises `ModelError` if nobody answers.
    """
    server = Server(
        base_url=options.base_url,
        model=model,
        api_key_env=options.api_key_env,
        concurrency=options.concurrency,
        timeout=options.timeout,
        max_retries=options.max_retries,
    )
    decoding = Decoding(options.temperature, options.top_p, options.seed, options.thinking, options.dialect)
    info = AdapterInfo(
        name=model,
        weights=f"served:{model}",
        device="server",
        dtype="unknown",
        image_tokens=IMAGE_TOKENS,
        deterministic=False,
        settings={
            "server": server.url,
            "request": decoding.fields(server, None),
            "system": options.system,
            "thinking_tokens": options.thinking_tokens,
            "image_format": options.image_format,
            "template": "the server's",
        },
    )

    def connect() -> Served:
        chat = Chat(server)
        chat.check()
        return Served(info, chat, decoding, options)

    return Deferred(info, connect)


class Served:
    """The adapter of a served model; see `vlmamba_eval.adapter.Adapter`."""

    def __init__(self, info: AdapterInfo, chat: Chat, decoding: Decoding, options: Options) -> None:
        self.info = info
        self._chat = chat
        self._decoding = decoding
        self._options = options

    def prepare(self, image: Image.Image) -> str:
        """The image as a data URL."""
        return data_url(image, self._options.image_format)

    def generate(self, batch: Sequence[ImageQuestions]) -> list[list[Generation | Failure]]:
        """Ask every question in a request of its own; whatever happens to it happens to it alone."""
        outcomes = self._chat.ask_all(self._requests(batch))
        return [
            [self._generation(question, group.image, next(outcomes)) for question in group.questions] for group in batch
        ]

    def telemetry(self) -> Mapping[str, Any]:
        return self._chat.telemetry()

    def close(self) -> None:
        """Close the connections; also done when the process ends."""
        self._chat.close()

    def _requests(self, batch: Sequence[ImageQuestions]) -> Iterator[Request]:
        for group in batch:
            for question in group.questions:
                limit = question.max_new_tokens + self._options.thinking_tokens
                fields = self._decoding.fields(self._chat.server, limit)
                yield Request(messages(question.text, group.image, self._options.system), fields)

    def _generation(self, question: Question, image: Any, outcome: Reply | Failure) -> Generation | Failure:
        if isinstance(outcome, Failure):
            return outcome
        shown = question.text if image is None else f"<image>\n{question.text}"
        prompt = f"{self._options.system}\n{shown}" if self._options.system else shown
        return Generation(outcome.text, prompt, outcome.n_tokens, outcome.stop)


def messages(text: str, image: str | None, system: str = "") -> list[dict[str, Any]]:
    """The conversation of one question: the system sentence if there is one, then image and text in one turn."""
    content: Any = text
    if image is not None:
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
    turns: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    return [*turns, {"role": "user", "content": content}]


def data_url(image: Image.Image, kind: str = "original") -> str:
    """An RGB image as `data:image/...;base64,...`: its file, or encoded anew as PNG (every pixel) or JPEG (smaller)."""
    found = _original(image) if kind == "original" else None
    if found is None:
        buffer = io.BytesIO()
        if kind == "jpeg":
            image.save(buffer, "JPEG", quality=JPEG_QUALITY)
        else:
            image.save(buffer, "PNG", compress_level=PNG_LEVEL)
        found = ("jpeg" if kind == "jpeg" else "png", buffer.getvalue())
    name, raw = found
    return f"data:image/{name};base64,{base64.b64encode(raw).decode('ascii')}"


def _original(image: Image.Image) -> tuple[str, bytes] | None:
    """(subtype, bytes) of the picture's file; None if it is too large, or if servers differ on what it shows.

    They do on transparency and palettes, on colours for print, and on whether a camera's orientation is applied.
    """
    name, mode, raw = image.info.get(ENCODED, ("", "", b""))
    if name not in ("JPEG", "PNG") or mode not in ("RGB", "L") or len(raw) > LARGEST_ORIGINAL:
        return None
    if "transparency" in image.info or image.getexif().get(_ORIENTATION, 1) != 1:
        return None
    return name.lower(), raw
