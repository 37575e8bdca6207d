"""mmMamba's template, and its tokenizer from the files that are published: `tokenizer.model` or `tokenizer.json`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

from vlmamba_eval.strict_json import parse_json
from vlmamba_eval.types import ModelError, UsageError

from .model import MMMambaConfig

SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
_BEFORE = f"<|im_start|>system\n{SYSTEM}<|im_end|><|im_start|>user\n"
_AFTER = "<|im_end|><|im_start|>assistant\n"
_BOS = "<s>"

# Ids in the published vocabulary of 92553 tokens.
_PUBLISHED_SIZE = 92553
_PUBLISHED = {"<|im_end|>": 92542, "<IMG_CONTEXT>": 92546}


class Texts(Protocol):
    """Texts to ids and back."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, in which added tokens stand by their names; none is put in front."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of ids, added tokens left out."""
        ...

    def id_of(self, token: str) -> int | None:
        """The id of one token."""
        ...


class MMMambaConversation:
    """The internlm2-chat template of InternVL; `hybrid.engine.Conversation` documents the methods."""

    def __init__(self, texts: Texts, config: MMMambaConfig, where: str):
        self._texts = texts
        ids: dict[str, int] = {}
        for token in ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", _BOS):
            found = texts.id_of(token)
            if found is None:
                raise ModelError(f"{where}: expected a tokenizer with the token {token}, which it does not have")
            if found >= config.vocab_size:
                raise ModelError(
                    f"{where}: {token} has the id {found}, but the model embeds {config.vocab_size} tokens"
                )
            ids[token] = found
        if ids["<IMG_CONTEXT>"] != config.image_token:
            raise ModelError(
                f"{where}: expected <IMG_CONTEXT> to have the id {config.image_token} of the configuration's "
                f"img_context_token_id, found {ids['<IMG_CONTEXT>']}"
            )
        if config.vocab_size == _PUBLISHED_SIZE:
            for token, expected in _PUBLISHED.items():
                if ids[token] != expected:
                    raise ModelError(f"{where}: expected {token} to have the id {expected}, found {ids[token]}")
        self._bos = ids[_BOS]
        self.eos = self.pad = ids["<|im_end|>"]
        self.vocabulary = config.vocab_size

    def opening(self) -> list[int]:
        return [self._bos, *self._texts.encode(f"{_BEFORE}<img>")]

    def question(self, text: str, *, image: bool) -> list[int]:
        if image:
            return self._texts.encode(f"</img>\n{text}{_AFTER}")
        return [self._bos, *self._texts.encode(f"{_BEFORE}{text}{_AFTER}")]

    def prompt(self, text: str, *, image: bool) -> str:
        middle = f"<img><image></img>\n{text}" if image else text
        return f"{_BOS}{_BEFORE}{middle}{_AFTER}"

    def continuation(self, text: str) -> list[int]:
        return self._texts.encode(text or " ")

    def decode(self, ids: list[int]) -> str:
        return self._texts.decode(ids).strip()


# =============================================================================
# Tokenizers
# =============================================================================


def load_texts(folder: Path) -> Texts:
    """The folder's tokenizer. `ModelError` if it has none, `UsageError` if a package is missing to read it."""
    if (folder / "tokenizer.json").is_file():
        return FastTexts(folder / "tokenizer.json")
    if (folder / "tokenizer.model").is_file():
        return SentencePieceTexts(folder)
    raise ModelError(f"{folder}: expected tokenizer.model or tokenizer.json, found neither; download the whole folder")


class FastTexts:
    """A `tokenizer.json` of the `tokenizers` library."""

    def __init__(self, path: Path):
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise ModelError(f"{path}: expected a tokenizer of the `tokenizers` library, found: {error}") from error

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)


class SentencePieceTexts:
    """A `tokenizer.model` with the added tokens that stand beside it, as transformers' slow tokenizers use the two.

    Added tokens are cut out of a text first; what stands between them goes through SentencePiece piece by piece.
    """

    def __init__(self, folder: Path):
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise UsageError(
                f"{folder / 'tokenizer.model'} needs the package sentencepiece: pip install 'vlmamba-eval[mmmamba]'"
            ) from None
        try:
            self._pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        except Exception as error:
            raise ModelError(f"{folder / 'tokenizer.model'}: expected a SentencePiece model, found: {error}") from error
        self._added = _added_tokens(folder)
        for id_ in range(self._pieces.vocab_size()):
            if self._pieces.is_control(id_):
                self._added.setdefault(self._pieces.id_to_piece(id_), id_)
        names = sorted(self._added, key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    def encode(self, text: str) -> list[int]:
        parts = [text] if self._cut is None else self._cut.split(text)
        ids: list[int] = []
        for number, part in enumerate(parts):
            if number % 2:
                ids.append(self._added[part])
            elif part:
                ids += self._pieces.encode(part)
        return ids

    def decode(self, ids: list[int]) -> str:
        special = set(self._added.values())
        known = self._pieces.vocab_size()
        return self._pieces.decode([id_ for id_ in ids if id_ not in special and id_ < known])

    def id_of(self, token: str) -> int | None:
        if token in self._added:
            return self._added[token]
        found = self._pieces.piece_to_id(token)
        return None if found == self._pieces.unk_id() and token != self._pieces.id_to_piece(found) else found


def _added_tokens(folder: Path) -> dict[str, int]:
    """Token -> id of `tokenizer_config.json`, or of the older `added_tokens.json`."""
    found: dict[str, int] = {}
    for name in ("added_tokens.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            data: Any = parse_json(path.read_text(encoding="utf-8"), constants=True)
            if name == "added_tokens.json":
                found |= {str(token): int(id_) for token, id_ in data.items()}
            else:
                decoder = data.get("added_tokens_decoder") or {}
                found |= {str(token["content"]): int(id_) for id_, token in decoder.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(f"{path}: expected the tokenizer's added tokens, found: {error!r}") from error
    return found
