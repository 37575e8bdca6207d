"""Zamba2-VL's conversation: the chat template and the tokenizer of the folder, cut in two at the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmamba_eval.model_adapters.shared.configuration import read_json
from vlmamba_eval.types import ModelError

from .model import Zamba2VLConfig

_SAMPLE = "What colour is the sign on the left?\nAnswer the question using a single word or phrase."
_OTHER = "Is there a dog?"


class Zamba2VLConversation:
    """`hybrid.engine.Conversation` documents the methods.

    Made only if the image stands before every question in the template, so that all questions have the same beginning,
    and if the two sides of the image, tokenised apart, are what the whole text gives.
    """

    def __init__(self, folder: Path, config: Zamba2VLConfig):
        self._where = str(folder)
        self._tokenizer = _tokenizer(folder)
        self._template = _template(folder, self._tokenizer)
        self._image = self._tokenizer.convert_ids_to_tokens(config.image_token)
        if not isinstance(self._image, str):
            raise ModelError(f"{folder}: the tokenizer has no token of the id {config.image_token}, image_token_index")
        self.vocabulary = config.text.vocab_size
        self.eos = self.pad = self._end(folder)
        before, self._sep, after = self._render(_SAMPLE, image=True).partition(self._image)
        other = self._render(_OTHER, image=True)
        if not self._sep or self._image in after:
            raise ModelError(f"{folder}: expected one {self._image} in the chat template's text of one image")
        if _SAMPLE in before or not other.startswith(before + self._image):
            raise ModelError(f"{folder}: expected the image before the question in the chat template, found {before!r}")
        self._before = before
        self._opening = self._ids(before, first=True)
        parts = [*self._opening, config.image_token, *self._ids(after, first=False)]
        whole = self._ids(before + self._image + after, first=True)
        if parts != whole:
            raise ModelError(
                f"{folder}: expected the text before and after the image to have the same tokens apart as together; "
                f"they differ from token {_first_difference(parts, whole)} on"
            )

    def opening(self) -> list[int]:
        return list(self._opening)

    def question(self, text: str, *, image: bool) -> list[int]:
        rendered = self._render(text, image=image)
        if not image:
            return self._ids(rendered, first=True)
        return self._ids(rendered.removeprefix(self._before + self._image), first=False)

    def prompt(self, text: str, *, image: bool) -> str:
        rendered = self._render(text, image=image)
        if not image:
            return rendered
        return self._before + "<image>" + rendered.removeprefix(self._before + self._image)

    def continuation(self, text: str) -> list[int]:
        return self._ids(text or " ", first=False)

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _render(self, text: str, *, image: bool) -> str:
        content: list[dict[str, str]] = [{"type": "text", "text": text}]
        if image:
            content.insert(0, {"type": "image"})
        try:
            return self._tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:
            raise ModelError(f"{self._where}: the chat template cannot be used: {error}") from error

    def _ids(self, text: str, *, first: bool) -> list[int]:
        return self._tokenizer(text, add_special_tokens=first)["input_ids"]

    def _end(self, folder: Path) -> int:
        """The token that ends an answer: of generation_config.json if there is one."""
        own = self._tokenizer.eos_token_id
        path = folder / "generation_config.json"
        if path.is_file():
            found = read_json(path, "the settings of generation").get("eos_token_id", own)
            found = found[0] if isinstance(found, list) and len(found) == 1 else found
            if not isinstance(found, int):
                raise ModelError(f"{path}: expected one eos_token_id, found {found!r}")
            own = found
        if own is None:
            raise ModelError(f"{folder}: expected a tokenizer with an end token, found none")
        return own


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedConfig

    try:
        # With a configuration given, transformers does not look for a class that reads zamba2_vl's: it has none.
        return AutoTokenizer.from_pretrained(folder, config=PreTrainedConfig(), local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder}: transformers cannot read the tokenizer: {error}") from error


def _template(folder: Path, tokenizer: Any) -> str:
    """The template of the folder's processor, or of its tokenizer."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name, "a chat template").get("chat_template")
            if isinstance(found, str):
                return found
    if isinstance(tokenizer.chat_template, str):
        return tokenizer.chat_template
    raise ModelError(f"{folder}: expected a chat template (chat_template.jinja), found none; download the whole folder")


def _first_difference(a: list[int], b: list[int]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
