"""Conversations to tokens, through the template that evaluation uses.

A row is LLaVA's: `{"id", "image"?, "conversations": [{"from": "human"|"gpt", "value"}, ...]}`, the mark `<image>` in
the first question of rows with an image (haotian-liu/LLaVA@c121f04:docs/Finetune_Custom_Data.md). All turns about one
image make one sequence.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vlmamba_eval.model_adapters.shared.pixels import prepare
from vlmamba_eval.model_adapters.shared.template import IMAGE, Segment, render
from vlmamba_eval.model_adapters.vlmamba.config import ModelConfig
from vlmamba_eval.strict_json import parse_json
from vlmamba_eval.types import DataError

from .reader import quoted
from .recipe import Data, Stage, find_stream

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPEAKERS = ("human", "gpt")
# Rows are padded to a multiple of this, so that few different shapes occur.
_MULTIPLE = 32


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation as tokens.

    `ids` has one entry a token and one (-1) for each embedding of the image; `answered[i]` says whether token i
    belongs to an answer, which the model has to predict.
    """

    ids: list[int]
    answered: list[bool]
    pixels: Tensor | None  # uint8 [3, h, w]
    patch_labels: dict[str, list[int]]


# =============================================================================
# Rows
# =============================================================================


class JsonRows:
    """The rows of a LLaVA-format file.

    Rows, and whether their images are there, are checked before any training; an image that cannot be read is found
    when its turn comes. Raises `DataError` that names file and row.
    """

    def __init__(self, path: Path, images: Path):
        self.path, self.images = path, images
        try:
            rows = parse_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path} is missing: expected a JSON list of conversations in LLaVA's format") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: expected a JSON list of conversations, found: {quoted(str(error))}") from error
        if not isinstance(rows, list) or not rows:
            raise DataError(f"{path}: expected a JSON list with at least one conversation")
        for number, row in enumerate(rows):
            _check_row(row, f"{path}, row {number}")
        self.rows: list[dict[str, Any]] = rows
        self._check_images()

    def _check_images(self) -> None:
        """Look for every image in a listing of its folder: 665,000 rows name images in a few folders."""
        listed: dict[str, set[str]] = {}
        missing: list[int] = []
        for number, row in enumerate(self.rows):
            if not row.get("image"):
                continue
            name = PurePosixPath(row["image"])
            if name.is_absolute() or ".." in name.parts:
                raise DataError(f"{self.path}, row {number}: the image {quoted(row['image'])} is outside {self.images}")
            folder = str(name.parent)
            if folder not in listed:
                try:
                    listed[folder] = set(os.listdir(self.images / folder))
                except (OSError, ValueError):
                    listed[folder] = set()
            if name.name not in listed[folder]:
                missing.append(number)
        if missing:
            more = f", and none for {len(missing) - 1:,} further rows" if len(missing) > 1 else ""
            image = self.images / self.rows[missing[0]]["image"]
            raise DataError(f"{self.path}, row {missing[0]}: expected an image at {image}, found none{more}")

    def __len__(self) -> int:
        return len(self.rows)

    def sizes(self) -> tuple[list[int], list[bool]]:
        """How long each row's texts are, in characters, and whether it has an image: what rows are grouped by."""
        lengths = [sum(len(turn["value"]) for turn in row["conversations"]) for row in self.rows]
        return lengths, [bool(row.get("image")) for row in self.rows]

    def __getitem__(self, number: int) -> tuple[dict[str, Any], str]:
        """A row with its image opened, and what to call it in messages."""
        row, where = self.rows[number], f"{self.path}, row {number}"
        if not row.get("image"):
            return row, where
        path = self.images / row["image"]
        # The data sets' own folders may be links to anywhere; what is below them may not lead elsewhere.
        parts = PurePosixPath(row["image"]).parts
        root = (self.images / parts[0] if len(parts) > 1 else self.images).resolve()
        try:
            if not path.resolve().is_relative_to(root):
                raise DataError(f"{where}: the image {row['image']!r} is a link that is outside {root}")
            image = Image.open(path, formats=("JPEG", "PNG", "WEBP", "BMP", "GIF"))
            image.load()
        except (OSError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
            raise DataError(f"{where}: expected an image at {path}, found: {error}") from error
        return {**row, "image": image}, where


class StreamRows:
    """The rows that a function makes, numbered from 0."""

    def __init__(self, data: Data, seed: int, length: int, patches: int):
        module, _, name = find_stream(data.stream, "data").partition(":")
        self.make: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), name)
        self.data, self.length = data, length
        self.seed = f"{data.seed} {seed}" if seed else data.seed
        self.options = data.options | ({"patches": patches} if patches else {})

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> tuple[dict[str, Any], str]:
        return self.make(self.seed, number, **self.options), f"{self.data.stream}, row {number}"


def _check_row(row: Any, where: str) -> None:
    talk = row.get("conversations") if isinstance(row, dict) else None
    if not isinstance(talk, list) or not talk:
        raise DataError(f'{where}: expected an object with a list "conversations", found {quoted(row)}')
    for place, turn in enumerate(talk):
        if not isinstance(turn, dict) or turn.get("from") not in _SPEAKERS or not isinstance(turn.get("value"), str):
            raise DataError(
                f'{where}: turn {place} must be {{"from": "human" or "gpt", "value": text}}, found {quoted(turn)}'
            )
        if not _is_text(turn["value"]):
            raise DataError(f"{where}: turn {place} holds half of a character (a lone surrogate), which is not text")
        if place and turn["from"] == talk[place - 1]["from"]:
            raise DataError(f"{where}: turn {place} is of {turn['from']!r} again; human and gpt must alternate")
    turns = turns_of(talk)
    if not turns:
        raise DataError(f"{where}: expected at least one question with an answer")
    image = row.get("image")
    if image and not (isinstance(image, str) and _is_text(image) and "\0" not in image):
        raise DataError(f"{where}: image must be a file name, found {quoted(image)}")
    first = next(turn["value"] for turn in talk if turn["from"] == "human")
    later = sum(turn["value"].count(IMAGE) for turn in talk) - first.count(IMAGE)
    if image and (first.count(IMAGE) != 1 or later):
        raise DataError(
            f"{where}: expected one mark {IMAGE} in the first question and none elsewhere, found {first.count(IMAGE)} "
            f"and {later}"
        )
    if not image and (first.startswith(f"{IMAGE}\n") or first.endswith(f"\n{IMAGE}")):
        raise DataError(f"{where}: the first question has the mark {IMAGE}, but the row names no image")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


# =============================================================================
# Tokens
# =============================================================================


def turns_of(conversations: Sequence[dict[str, str]], image: bool = True) -> list[tuple[str, str | None]]:
    """(question, answer) pairs, without the image's mark and the line breaks around it: its place is the template's.

    As in LLaVA, a first turn of the assistant is left out (haotian-liu/LLaVA@c121f04:llava/train/train.py:419-421) and
    the mark is moved to the front (:319). A last question without an answer is left out too.
    """
    values = [turn["value"] for turn in conversations]
    if conversations[0]["from"] == "gpt":
        values = values[1:]
    pairs: list[tuple[str, str | None]] = list(zip(values[::2], values[1::2], strict=False))
    if image and pairs and IMAGE in pairs[0][0]:
        pairs[0] = (pairs[0][0].replace(IMAGE, "").strip(), pairs[0][1])
    return pairs


def segments(row: dict[str, Any], config: ModelConfig) -> tuple[Segment, ...]:
    """The pieces of a row's conversation, as the model's template makes them."""
    image = row.get("image") is not None
    return render(config.template, turns_of(row["conversations"], image), image=image)


def tokenise(
    row: dict[str, Any], config: ModelConfig, tokenizer: Tokenizer, max_length: int, where: str = "the conversation"
) -> Example:
    """A row with an opened image as tokens; what is beyond `max_length` is cut off.

    As in LLaVA, a row whose first answer would begin beyond it stays, with nothing to predict.
    """
    has_image = row.get("image") is not None
    ids: list[int] = []
    answered: list[bool] = []
    for segment in segments(row, config):
        if segment.kind == "image":
            piece = [-1] * config.vision.image_tokens
        else:
            piece = tokenizer.encode(segment.text, add_special_tokens=False).ids
        ids += piece
        answered += [segment.kind == "answer"] * len(piece)
    if has_image and max_length <= ids.index(-1) + config.vision.image_tokens:
        raise DataError(f"{where}: max_length {max_length} leaves no room for a text after the image")
    pixels = prepare(row["image"], config.vision.image_size, config.preprocessing) if has_image else None
    return Example(ids[:max_length], answered[:max_length], pixels, row.get("patch_labels", {}))


class Conversations(Dataset[Example]):
    """The examples of a stage, each a function of its number only."""

    def __init__(self, rows: JsonRows | StreamRows, config: ModelConfig, tokenizer: Tokenizer, max_length: int):
        self.rows, self.config, self.max_length = rows, config, max_length
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Example:
        row, where = self.rows[number]
        return tokenise(row, self.config, self.tokenizer, self.max_length, where)


def open_rows(stage: Stage, root: Path, patches: int = 0) -> JsonRows | StreamRows:
    """The rows of a stage; `root` is the data folder."""
    return open_data(stage.data, root, stage.seed, stage.steps * stage.batch_size, patches)


def open_data(data: Data, root: Path, seed: int, length: int, patches: int = 0) -> JsonRows | StreamRows:
    """The rows of a file, or the first `length` rows of a stream."""
    if data.json:
        return JsonRows(root / data.json, root / data.images)
    return StreamRows(data, seed, length, patches)


class Order(Sampler[int]):
    """Which example comes when: `steps * batch_size` numbers, a function of the seed only.

    Numbers at `step * batch_size` and on make one step, however many devices share it, so that a run can continue with
    another number of them. Rows of a file are shuffled again on every pass; with `group` the steps are made of rows of
    like length, all with images or all without, in random order. If a pass ends within a step, the next one fills
    it up. A stream comes in its own order.
    """

    # Steps whose rows are sorted by length together: enough that the rows of a step are alike, few enough that which
    # rows meet in a step stays a matter of chance.
    _WINDOW = 32

    def __init__(self, rows: JsonRows | StreamRows, steps: int, batch_size: int, seed: int, group: bool = False):
        self.rows, self.total, self.batch_size, self.seed, self.group = (
            rows,
            steps * batch_size,
            batch_size,
            seed,
            group,
        )

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        if isinstance(self.rows, StreamRows):
            yield from range(self.total)
            return
        sizes = self.rows.sizes() if self.group else None
        left, passes, rest = self.total, 0, list[int]()
        while left:
            generator = torch.Generator().manual_seed((self.seed << 20) + passes)
            order = torch.randperm(len(self.rows), generator=generator).tolist()
            passes += 1
            if sizes is None:
                batch = order
            else:
                batch, rest = self._grouped(order, rest, *sizes, generator)
            yield from batch[:left]
            left -= min(left, len(batch))

    def _grouped(
        self, order: list[int], rest: list[int], lengths: list[int], has_image: list[bool], generator: torch.Generator
    ) -> tuple[list[int], list[int]]:
        """The steps of one pass, and the rows that fill none; `rest` are those of the pass before, which begin it."""
        size = self.batch_size
        filled = min(len(order), -len(rest) % size)
        first, order = (rest + order[:filled], order[filled:]) if rest else ([], order)
        whole = len(first) - len(first) % size
        steps, over = [first[i : i + size] for i in range(0, whole, size)], first[whole:]
        grouped: list[list[int]] = []
        for kind in (True, False):
            rows = [number for number in order if has_image[number] == kind]
            keep = len(rows) - len(rows) % size
            over += rows[keep:]
            for start in range(0, keep, self._WINDOW * size):
                window = sorted(rows[start : min(keep, start + self._WINDOW * size)], key=lengths.__getitem__)
                grouped += [window[i : i + size] for i in range(0, len(window), size)]
        steps += [grouped[place] for place in torch.randperm(len(grouped), generator=generator).tolist()]
        # What is left of both kinds: mixed steps at the end of the pass.
        keep = len(over) - len(over) % size
        steps += [over[i : i + size] for i in range(0, keep, size)]
        return [number for step in steps for number in step], over[keep:]


# =============================================================================
# Batches
# =============================================================================


class Collator:
    """Examples as one batch, padded on the right, or packed: several examples in a row with gaps between them.

    Gives `ids` int64 [b, l] (0 in place of image embeddings), `image_at` int64 [i * t]: the flat places of the image
    embeddings, `pixels` uint8 [i, 3, h, w], `predict_at` int64 [n]: the flat places whose next token belongs to an
    answer, and `labels` int64 [n]: these tokens; `patch_labels` int64 [i, t] of each auxiliary head; `tokens` int64 []:
    how many places hold a token of an example. With `gap`, the least number of places between two examples of a row,
    examples that fit share rows of at most `max_length` places, and `gaps` bool [b, l] marks all places of no example.
    """

    def __init__(self, pad_token_id: int, gap: int = 0, max_length: int = 0):
        self.pad_token_id, self.gap, self.max_length = pad_token_id, gap, max_length

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        rows = self._packed(examples) if self.gap else [[example] for example in examples]
        longest = max(sum(len(example.ids) + self.gap for example in row) - self.gap for row in rows)
        length = -(-longest // _MULTIPLE) * _MULTIPLE
        ids = torch.full((len(rows), length), self.pad_token_id)
        answered = torch.zeros(len(rows), length, dtype=torch.bool)
        gaps = torch.ones(len(rows), length, dtype=torch.bool)
        for place, row in enumerate(rows):
            start = 0
            for example in row:
                span = slice(start, start + len(example.ids))
                ids[place, span] = torch.tensor(example.ids)
                answered[place, span] = torch.tensor(example.answered)
                answered[place, start] = False  # nothing comes before the first token
                gaps[place, span] = False
                start = span.stop + self.gap
        predict_at = answered[:, 1:].nonzero() @ torch.tensor([length, 1])
        flat = ids.view(-1)
        image_at = (flat < 0).nonzero()[:, 0]
        labels = flat[predict_at + 1]
        flat[image_at] = 0
        batch: dict[str, Any] = {"ids": ids, "image_at": image_at, "predict_at": predict_at, "labels": labels}
        batch["tokens"] = (~gaps).sum()
        if self.gap:
            batch["gaps"] = gaps
        pixels = [example.pixels for row in rows for example in row if example.pixels is not None]
        if pixels:
            batch["pixels"] = torch.stack(pixels)
        labelled = [example.patch_labels for row in rows for example in row if example.patch_labels]
        if labelled:
            batch["patch_labels"] = {name: torch.tensor([item[name] for item in labelled]) for name in labelled[0]}
        return batch

    def _packed(self, examples: Sequence[Example]) -> list[list[Example]]:
        """Rows as few and as short as can be: the longest first, each into the first row with room (first fit)."""
        by_length = sorted(examples, key=lambda example: -len(example.ids))
        longest = len(by_length[0].ids)
        best: list[list[Example]] = []
        least = 0
        for width in dict.fromkeys((longest, max(longest, self.max_length))):
            rows: list[list[Example]] = []
            used: list[int] = []
            for example in by_length:
                needs = len(example.ids) + self.gap
                place = next((i for i, taken in enumerate(used) if taken + len(example.ids) <= width), None)
                if place is None:
                    rows.append([example])
                    used.append(needs)
                else:
                    rows[place].append(example)
                    used[place] += needs
            area = len(rows) * max(used)
            if not best or area < least:
                best, least = rows, area
        return best
