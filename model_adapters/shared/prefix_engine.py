"""One image, one prefix, for the models of transformers: an image is read once, all its questions continue from it.

    packed   attention alone: the questions about an image stand in one row behind its keys and values, and a mask lets
             each see the prefix and itself; a decoding step appends one token of each question to the same row
    forked   recurrent states or sliding windows: questions of equal length continue from copies of the prefix's cache

Both take several images at once, and give the logits that reading every prompt by itself gives, but for rounding:
`PrefixEngine.deviation` measures that on one sample, so that a model whose cache forgets something is found out.
`generate_plainly` and `rank_plainly` are that reading by itself, through the model's own `generate`.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import DynamicLayer

from vlmamba_eval.types import Likelihood, StopReason

from .fused import Fused
from .memory import memory_errors
from .packing import Rows, packed
from .pretrained import output_head
from .room import Room, as_rows, is_plain, prefix_cache

# What no question may see: keys of padding.
_NOTHING = -1
# Keys and logits are easier to multiply in multiples of this.
_ALIGNMENT = 8
# Steps for which a row gets room when it is made.
_STEPS = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is done at once. These bound memory and never change an answer.

    What is given is where an engine begins: each time the memory is short, it goes on with half of each.
    """

    images: int
    """Images whose prefix is read at once."""
    row: int
    """Tokens of questions that stand in one row; always at least one question."""
    positions: int
    """Keys of one layer, padding included, that are kept for the rows that are answered at once."""

    def halved(self) -> Limits:
        """Half of each, at least one."""
        return Limits(max(1, self.images // 2), max(1, self.row // 2), max(1, self.positions // 2))


LIMITS = {"cuda": Limits(images=32, row=512, positions=49152), "cpu": Limits(images=4, row=512, positions=8192)}


@dataclass(frozen=True, slots=True)
class Prefix:
    """What is read of an image: the tokens up to its end, and what else the model's `forward` takes (pixels).

    The first dimension of every tensor in `inputs` is what several images are joined along.
    """

    ids: Sequence[int]
    inputs: Mapping[str, Tensor]


@dataclass(slots=True)
class Asked:
    """One question under way: its tokens behind the prefix of `image`, or the whole prompt if `image` is -1.

    `continuations` are the tokens of what is to be scored in place of generating.
    """

    ids: Sequence[int]
    image: int
    max_new_tokens: int = 0
    continuations: Sequence[Sequence[int]] = ()
    answer: list[int] = field(default_factory=list)
    stop: StopReason | None = None
    likelihoods: list[Likelihood] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Read:
    """A prefix that was read: row `row` of `cache`; its questions begin at position `start`."""

    cache: Cache
    row: int
    length: int
    start: int


class _Work(Protocol):
    """Questions that are answered together, each known by its place."""

    asked: list[Asked]

    def ask(self) -> Tensor:
        """Read all questions; the logits after each [n, vocabulary]."""
        ...

    def step(self, places: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Let the questions at `places`, which are in order, read one token more each; the logits after it."""
        ...

    def read_on(self, pieces: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        """Read pieces behind their questions, each as if it were the only one.

        `pieces` are (place, tokens); returns the logits after every token of every piece, in order.
        """
        ...


class PrefixEngine:
    """Greedy answers and likelihoods of an image-text-to-text model of transformers.

    `eos` are the tokens that end an answer; ids from `vocabulary` on are never generated, and no probability falls on
    them. `finish` is applied to inputs once they are on the device (pixels that are kept as bytes until then).
    `images_encoded` counts how many images were read since the engine was made.
    """

    def __init__(
        self,
        model: Any,
        *,
        eos: Collection[int],
        vocabulary: int,
        pad: int,
        finish: Callable[[dict[str, Any]], dict[str, Any]] = lambda inputs: inputs,
        limits: Limits | None = None,
    ):
        self.model = model
        self.eos = frozenset(eos)
        self.vocabulary = vocabulary
        self.pad = pad
        self._finish = finish
        self.device: torch.device = model.device
        self.limits = limits or LIMITS["cuda" if self.device.type == "cuda" else "cpu"]
        self.images_encoded = 0
        self._text_config = model.config.get_text_config(decoder=True)
        self._head = output_head(model)
        self.kernels = Fused(model, self.device)
        """What computes the shared forwards' elementwise parts; whole prompts go through transformers' own."""
        parameters = inspect.signature(model.forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"

    # =========================================================================
    # Sharing
    # =========================================================================

    def generate(self, prefixes: Sequence[Prefix], asked: Sequence[Asked]) -> None:
        """Answer greedily: fills `answer` and `stop` of every question. Each used prefix is read once."""
        for question in asked:
            if question.max_new_tokens <= 0:
                question.stop = "length"
        with torch.inference_mode(), self.memory_errors():
            for work in self._works(prefixes, [question for question in asked if question.stop is None]):
                going = self._say(work.asked, range(len(work.asked)), work.ask())
                while going:
                    tokens = [work.asked[place].answer[-1] for place in going]
                    going = self._say(work.asked, going, work.step(going, tokens))

    def rank(self, prefixes: Sequence[Prefix], asked: Sequence[Asked]) -> None:
        """Score all continuations: fills `likelihoods` of every question. Each used prefix is read once."""
        with torch.inference_mode(), self.memory_errors():
            for work in self._works(prefixes, asked):
                options = [(place, ids) for place, question in enumerate(work.asked) for ids in question.continuations]
                first = _logprobs(work.ask(), [place for place, _ in options], [ids[0] for _, ids in options])
                scores = first.tolist()
                longer = [number for number, (_, ids) in enumerate(options) if len(ids) > 1]
                if longer:
                    logits = work.read_on([(options[number][0], options[number][1][:-1]) for number in longer])
                    targets = [(number, token) for number in longer for token in options[number][1][1:]]
                    found = _logprobs(logits, range(len(targets)), [token for _, token in targets]).tolist()
                    for (number, _), logprob in zip(targets, found, strict=True):
                        scores[number] += logprob
                for (place, ids), score in zip(options, scores, strict=True):
                    work.asked[place].likelihoods.append(Likelihood(score, len(ids)))

    def deviation(self, prefix: Prefix, asked: Sequence[Asked], whole: Sequence[Mapping[str, Tensor]]) -> float:
        """How far the shared logits are from those of whole prompts, relative to the largest logit.

        `whole` are the model's inputs for each question's whole prompt. Compared are the logits after each prompt, and
        after one token more, so that reading behind a prefix and decoding are both looked at.
        """
        worst = 0.0
        with torch.inference_mode(), self.memory_errors():
            for work in self._works([prefix], asked):
                number = {id(question): at for at, question in enumerate(asked)}
                inputs = [self._on_device(whole[number[id(question)]]) for question in work.asked]
                plain = torch.cat([self._whole(each, 1) for each in inputs])  # [n, vocabulary]
                tokens = plain.argmax(-1).tolist()
                more = torch.cat([self._whole(_longer(each, [t]), 1) for each, t in zip(inputs, tokens, strict=True)])
                for shared, alone in ((work.ask(), plain), (work.step(range(len(tokens)), tokens), more)):
                    scale = alone.float().abs().max().clamp(min=1e-6)
                    worst = max(worst, float((shared.float() - alone.float()).abs().max() / scale))
        return worst

    # =========================================================================
    # One prompt at a time
    # =========================================================================

    def generate_plainly(self, inputs: Mapping[str, Tensor], question: Asked) -> None:
        """Answer one whole prompt with the model's own `generate`; `inputs` are what its processor gives, one row."""
        if question.max_new_tokens <= 0:
            question.stop = "length"
            return
        with torch.inference_mode(), self.memory_errors():
            here = self._on_device(inputs)
            # Without a mask, `generate` would hide whatever equals the padding, `<unk>` in a text for one.
            here.setdefault("attention_mask", torch.ones_like(here["input_ids"]))
            config = GenerationConfig(
                max_new_tokens=question.max_new_tokens,
                do_sample=False,
                num_beams=1,
                eos_token_id=sorted(self.eos) or None,
                pad_token_id=self.pad,
            )
            found = self.model.generate(
                **here, generation_config=config, logits_processor=LogitsProcessorList([_OnlyBelow(self.vocabulary)])
            )
            tokens = found[0, here["input_ids"].shape[1] :].tolist()
        question.stop = "length"
        if tokens and tokens[-1] in self.eos:
            question.stop = "eos"
            tokens.pop()
        question.answer = tokens

    def rank_plainly(self, inputs: Mapping[str, Tensor], question: Asked) -> None:
        """Score the continuations of one whole prompt, read anew for each; token by token, as `generate` goes on."""
        with torch.inference_mode(), self.memory_errors():
            here = self._on_device(inputs)
            length = here["input_ids"].shape[1]
            for ids in question.continuations:
                cache = DynamicCache(config=self._text_config)
                found = [self._forward(here, cache, (length - 1,))]
                shift = self._rope_shift()
                start = length if shift is None else length + int(shift.flatten()[0])
                for offset, token in enumerate(ids[:-1]):
                    positions = torch.tensor([[start + offset]], device=self.device)
                    more = {
                        "input_ids": torch.tensor([[token]], device=self.device),
                        "position_ids": self._positions(positions),
                    }
                    found.append(self._forward(more, cache, (0,)))
                score = _logprobs(torch.cat(found), range(len(ids)), ids).sum()
                question.likelihoods.append(Likelihood(float(score), len(ids)))

    # =========================================================================
    # Planning
    # =========================================================================

    def _works(self, prefixes: Sequence[Prefix], asked: Sequence[Asked]) -> Iterator[_Work]:
        """Questions in the groups in which they are answered; reads the prefixes on the way."""
        by_image: dict[int, list[Asked]] = defaultdict(list)
        for question in asked:
            by_image[question.image].append(question)
        # Neighbours in this order have rows of about equal length, and rows are padded to the longest.
        rows = {image: _rows(questions, self.limits.row) for image, questions in by_image.items()}
        lengths = {image: len(prefixes[image].ids) if image >= 0 else 0 for image in rows}
        order = sorted(rows, key=lambda image: (image < 0, lengths[image], len(rows[image]), _size(rows[image][0])))
        batch: list[int] = []
        for image in order:
            widest = max(lengths[image], *(lengths[other] for other in batch), 0) + self.limits.row
            places = widest * sum(len(rows[other]) for other in (*batch, image))
            if batch and (
                len(batch) == self.limits.images or places > self.limits.positions or (image < 0) != (batch[0] < 0)
            ):
                yield from self._answer_rows(prefixes, batch, rows)
                batch = []
            batch.append(image)
        if batch:
            yield from self._answer_rows(prefixes, batch, rows)

    def _answer_rows(
        self, prefixes: Sequence[Prefix], images: Sequence[int], rows: Mapping[int, list[list[Asked]]]
    ) -> Iterator[_Work]:
        """The rows of some images, whose prefixes are read together and once."""
        read = self._read({image: prefixes[image] for image in images if image >= 0})
        if read and not is_plain(next(iter(read.values())).cache):
            for image in images:
                yield from self._forks([q for row in rows[image] for q in row], read[image])
            return
        if not read and not self._packs_without_prefix():
            yield from self._forks([q for image in images for row in rows[image] for q in row], None)
            return
        waiting = [(image, row) for image in images for row in rows[image]]
        while waiting:
            longest = max((read[image].length for image, _ in waiting if image in read), default=0)
            room = max(1, self.limits.positions // (longest + self.limits.row))
            now, waiting = waiting[:room], waiting[room:]
            yield _Packed(self, [row for _, row in now], [read.get(image) for image, _ in now])

    def _forks(self, asked: Sequence[Asked], read: _Read | None) -> Iterator[_Work]:
        """Questions of equal length together, each with its own copy of the cache."""
        by_length: dict[int, list[Asked]] = defaultdict(list)
        for question in asked:
            by_length[len(question.ids)].append(question)
        for questions in by_length.values():
            fits = max(1, self.limits.positions // ((read.length if read else 0) + len(questions[0].ids) + _STEPS))
            for start in range(0, len(questions), fits):
                yield _Forked(self, questions[start : start + fits], read)

    def _packs_without_prefix(self) -> bool:
        """Whether texts without an image can be packed: as long as no layer keeps anything but keys and values."""
        return not DynamicCache(config=self._text_config).layers or is_plain(DynamicCache(config=self._text_config))

    # =========================================================================
    # Reading
    # =========================================================================

    def _read(self, prefixes: Mapping[int, Prefix]) -> dict[int, _Read]:
        """Read prefixes, those of equal shapes together."""
        alike: dict[Any, list[int]] = defaultdict(list)
        for image, prefix in prefixes.items():
            shapes = tuple((name, tuple(tensor.shape)) for name, tensor in sorted(prefix.inputs.items()))
            alike[len(prefix.ids), shapes].append(image)
        read: dict[int, _Read] = {}
        for images in alike.values():
            ids = torch.tensor([list(prefixes[image].ids) for image in images])
            names = prefixes[images[0]].inputs
            inputs = {name: torch.cat([prefixes[image].inputs[name] for image in images]) for name in names}
            cache = prefix_cache(self._text_config)
            with self.kernels:
                self._forward(self._on_device({"input_ids": ids} | inputs), cache, ())
            self.images_encoded += len(images)
            starts = [ids.shape[1]] * len(images)
            shift = self._rope_shift()
            if shift is not None:  # Qwen-VL's images take fewer positions than tokens
                starts = [start + int(by) for start, by in zip(starts, shift.flatten().tolist(), strict=True)]
            for row, image in enumerate(images):
                read[image] = _Read(cache, row, ids.shape[1], starts[row])
        return read

    def _rope_shift(self) -> Tensor | None:
        return getattr(getattr(self.model, "model", None), "rope_deltas", None)

    def _forward(self, inputs: Mapping[str, Any], cache: Cache | None, places: Sequence[int] | Tensor | None) -> Tensor:
        """The logits at `places` of all tokens of all rows, counted through [n, vocabulary]; None: everywhere.

        The rest never goes through the output head, whose input is cut to the places by a hook: so that whatever a
        model does to its logits afterwards is done here as well.
        """
        if places is not None and not isinstance(places, Tensor):
            places = torch.tensor(list(places), dtype=torch.long, device=self.device)

        def cut(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden, *others = arguments
            hidden = hidden.flatten(0, -2)
            return ((hidden if places is None else hidden[places])[None], *others)

        handle = self._head.register_forward_pre_hook(cut)
        try:
            caching = {self._cache_argument: cache} if cache is not None else {}
            logits = self.model(**inputs, **caching, use_cache=cache is not None, return_dict=True).logits
        finally:
            handle.remove()
        return logits[0, :, : self.vocabulary]

    def _whole(self, inputs: Mapping[str, Tensor], last: int) -> Tensor:
        """The logits at the last few tokens of one whole prompt [last, vocabulary], without anything shared."""
        length = inputs["input_ids"].shape[1]
        return self._forward(inputs, None, range(length - last, length))

    def _positions(self, positions: Tensor) -> Tensor:
        """[b, l] -> what the model's `position_ids` are: three equal rows for texts of Qwen-VL."""
        return positions if self._rope_shift() is None else positions.expand(3, *positions.shape)

    def _on_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        here = {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}
        dtype = self.model.dtype
        return {
            name: value.to(dtype) if value.is_floating_point() else value for name, value in self._finish(here).items()
        }

    def _say(self, asked: Sequence[Asked], places: Sequence[int], logits: Tensor) -> list[int]:
        """Give each question its next token; returns the places of those that go on."""
        going = []
        for place, token in zip(places, logits.argmax(-1).tolist(), strict=True):
            question = asked[place]
            if token in self.eos:
                question.stop = "eos"
                continue
            question.answer.append(token)
            if len(question.answer) == question.max_new_tokens:
                question.stop = "length"
            else:
                going.append(place)
        return going

    def memory_errors(self) -> AbstractContextManager[None]:
        """After a lack of memory, micro-batches are half as large."""
        return memory_errors(self._shrink)

    def _shrink(self) -> None:
        self.limits = self.limits.halved()


# =============================================================================
# Packed rows
# =============================================================================


class _Packed:
    """Rows of questions behind prefixes.

    Every key has the number of the question that it belongs to: 0 is a prefix, which all questions of its row see.
    """

    def __init__(self, engine: PrefixEngine, rows: Sequence[Sequence[Asked]], prefixes: Sequence[_Read | None]):
        self.engine = engine
        self.asked = [question for row in rows for question in row]
        self._row = [number for number, row in enumerate(rows) for _ in row]
        self._number = [number for row in rows for number in range(1, len(row) + 1)]
        starts = [read.start if read else 0 for read in prefixes]
        self._position = [starts[row] for row in self._row]
        lengths = [read.length if read else 0 for read in prefixes]
        prefix = _aligned(max(lengths))
        longest, most = max(_size(row) for row in rows), max(len(row) for row in rows)
        capacity = prefix + _aligned(longest) + _STEPS * _aligned(most)
        self._room = Room(engine._text_config.num_hidden_layers, len(rows), capacity, prefix)
        self._fill(prefixes)
        owned = torch.where(torch.arange(prefix) < torch.tensor(lengths)[:, None], 0, _NOTHING)  # [r, prefix]
        self._owners = owned.to(engine.device)

    def ask(self) -> Tensor:
        pieces = [(place, question.ids) for place, question in enumerate(self.asked)]
        ends = accumulate(len(question.ids) for question in self.asked)
        return self._go_on(pieces, self._number, [end - 1 for end in ends])

    def step(self, places: Sequence[int], tokens: Sequence[int]) -> Tensor:
        self._close_ranks(places)
        pieces = [(place, (token,)) for place, token in zip(places, tokens, strict=True)]
        return self._go_on(pieces, [self._number[place] for place in places], range(len(pieces)))

    def read_on(self, pieces: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        # Numbers that no question has: a piece sees its question, and nobody sees the piece.
        highest = max(self._number)
        numbers = [highest + 1 + number for number in range(len(pieces))]
        return self._append(pieces, numbers, range(sum(len(ids) for _, ids in pieces)))

    def _go_on(
        self, pieces: Sequence[tuple[int, Sequence[int]]], numbers: Sequence[int], wanted: Sequence[int]
    ) -> Tensor:
        """As `_append`, with at most one piece for each question, which it goes on from."""
        logits = self._append(pieces, numbers, wanted)
        for place, ids in pieces:
            self._position[place] += len(ids)
        return logits

    def _append(
        self, pieces: Sequence[tuple[int, Sequence[int]]], numbers: Sequence[int], wanted: Sequence[int]
    ) -> Tensor:
        """Put pieces (place, tokens) behind everything in their rows, as keys of these numbers.

        Each token sees the prefix, its question's keys, and its own piece up to itself. Returns the logits after the
        tokens that are `wanted`, counted through all pieces.
        """
        engine = self.engine
        filled = [0] * self._room.rows
        ids: list[int] = []
        rows, offsets, owners, sees, positions = [], [], [], [], []
        for (place, piece), number in zip(pieces, numbers, strict=True):
            row, length, position = self._row[place], len(piece), self._position[place]
            ids += piece
            rows += [row] * length
            offsets += range(filled[row], filled[row] + length)
            owners += [number] * length
            sees += [self._number[place]] * length
            positions += range(position, position + length)
            filled[row] += length
        width = _aligned(max(filled))
        line = torch.tensor([ids, rows, offsets, owners, sees, positions]).to(engine.device)  # one transfer
        return self._forward(line, width, wanted)

    def _forward(self, line: Tensor, width: int, wanted: Sequence[int]) -> Tensor:
        """`line` [6, n]: tokens, rows, offsets, numbers as keys, numbers of the older keys that are seen, positions."""
        engine, before = self.engine, self._owners  # [r, k]
        ids, rows, offsets, owners, sees, positions = line.unbind()
        slots = rows * width + offsets
        empty = torch.full((self._room.rows * width,), _NOTHING, device=engine.device)
        owned = empty.index_copy(0, slots, owners).unflatten(0, (-1, width))  # [r, l]
        seen = empty.index_copy(0, slots, sees).unflatten(0, (-1, width))
        past = (before == 0)[:, None] | (before[:, None] == seen[:, :, None])  # [r, l, k]
        past &= (before != _NOTHING)[:, None]
        new = owned[:, None] == owned[:, :, None]  # [r, l, l]
        new &= torch.ones(new.shape[1:], dtype=torch.bool, device=engine.device).tril()
        allowed = torch.cat([past, new], dim=-1)[:, None]  # [r, 1, l, k + l]
        dtype = engine.model.dtype
        mask = torch.zeros(allowed.shape, dtype=dtype, device=engine.device)
        mask.masked_fill_(~allowed, torch.finfo(dtype).min)
        self._owners = torch.cat([before, owned], dim=1)
        self._room.aim(rows, offsets, width)
        inputs = {"input_ids": ids[None], "position_ids": engine._positions(positions[None]), "attention_mask": mask}
        with engine.kernels, packed(engine._text_config, Rows(slots, self._room.rows, width)):
            return engine._forward(inputs, self._room.cache, wanted)

    def _fill(self, prefixes: Sequence[_Read | None]) -> None:
        """Copy the prefixes' keys and values into the rows."""
        sources: dict[int, tuple[Cache, list[int], list[int]]] = {}
        for row, read in enumerate(prefixes):
            if read is not None:
                _, rows, froms = sources.setdefault(id(read.cache), (read.cache, [], []))
                rows.append(row)
                froms.append(read.row)
        layers = self._room.layers
        for cache, rows, froms in sources.values():
            if len(cache.layers) != len(layers):
                raise ValueError(f"{len(layers)} layers, but {len(cache.layers)} of them keep keys and values")
            target, source = (torch.tensor(index, device=self.engine.device) for index in (rows, froms))
            all_rows = None if len(rows) == self._room.rows else target
            for layer, kept in zip(layers, cache.layers, strict=True):
                assert isinstance(kept, DynamicLayer)  # noqa: S101 - `is_plain` was asked
                keys, values = kept.keys, kept.values
                assert isinstance(keys, Tensor) and isinstance(values, Tensor)  # noqa: S101, PT018
                if froms != list(range(len(keys))):
                    keys, values = keys.index_select(0, source), values.index_select(0, source)
                layer.place(all_rows, keys, values)

    def _close_ranks(self, places: Sequence[int]) -> None:
        """Give up the rows whose questions are all answered, if that halves them."""
        used = sorted({self._row[place] for place in places})
        if 2 * len(used) > self._room.rows:
            return
        rows = torch.tensor(used, device=self.engine.device)
        self._room.keep(rows)
        self._owners = self._owners[rows]
        new = {row: number for number, row in enumerate(used)}
        self._row = [new.get(row, -1) for row in self._row]


# =============================================================================
# Forked caches
# =============================================================================


class _Forked:
    """Questions of equal length, each behind its own copy of one prefix's cache, of whatever kind that is."""

    def __init__(self, engine: PrefixEngine, asked: list[Asked], read: _Read | None):
        self.engine = engine
        self.asked = asked
        self._position = (read.start if read else 0) + len(asked[0].ids)
        if read is None:
            self._cache: Cache = DynamicCache(config=engine._text_config)
        else:
            self._cache = as_rows(read.cache, self._index([read.row] * len(asked)))
        self._rows = list(range(len(asked)))

    def ask(self) -> Tensor:
        length = len(self.asked[0].ids)
        ends = range(length - 1, length * len(self.asked), length)
        return self._forward([question.ids for question in self.asked], self._position - length, self._cache, ends)

    def step(self, places: Sequence[int], tokens: Sequence[int]) -> Tensor:
        if list(places) != self._rows:
            kept = [self._rows.index(place) for place in places]
            self._cache.reorder_cache(self._index(kept))  # type: ignore[arg-type]
            self._rows = list(places)
        logits = self._forward([[token] for token in tokens], self._position, self._cache, range(len(tokens)))
        self._position += 1
        return logits

    def read_on(self, pieces: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        by_length: dict[int, list[int]] = defaultdict(list)
        for number, (_, ids) in enumerate(pieces):
            by_length[len(ids)].append(number)
        found: dict[int, Tensor] = {}
        for length, numbers in by_length.items():
            cache = as_rows(self._cache, self._index([pieces[number][0] for number in numbers]))
            ids = [pieces[number][1] for number in numbers]
            logits = self._forward(ids, self._position, cache, range(length * len(ids)))
            found |= dict(zip(numbers, logits.split(length), strict=True))
        return torch.cat([found[number] for number in range(len(pieces))])

    def _forward(self, ids: Sequence[Sequence[int]], start: int, cache: Cache, places: Sequence[int]) -> Tensor:
        engine = self.engine
        tokens = torch.tensor([list(row) for row in ids], device=engine.device)  # [n, l]
        positions = torch.arange(start, start + tokens.shape[1], device=engine.device).expand(tokens.shape)
        inputs = {"input_ids": tokens, "position_ids": engine._positions(positions)}
        with engine.kernels:
            return engine._forward(inputs, cache, places)

    def _index(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self.engine.device)


# =============================================================================
# Small parts
# =============================================================================


class _OnlyBelow(LogitsProcessor):
    """Nothing from `vocabulary` on is ever the likeliest token."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.vocabulary :] = -torch.inf
        return scores


def _rows(questions: Sequence[Asked], limit: int) -> list[list[Asked]]:
    """Questions in as few rows as the limit allows, of about equal length."""
    total = sum(len(question.ids) for question in questions)
    share = total / max(1, -(-total // limit))
    rows: list[list[Asked]] = [[]]
    before = 0
    for question in questions:
        if rows[-1] and before + len(question.ids) / 2 > share * len(rows):
            rows.append([])
        rows[-1].append(question)
        before += len(question.ids)
    return rows


def _aligned(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT


def _size(row: Sequence[Asked]) -> int:
    return sum(len(question.ids) for question in row)


def _longer(inputs: Mapping[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """A whole prompt with more tokens behind it; what else has an entry for each token goes on as it ended."""
    if not ids:
        return dict(inputs)
    tokens = inputs["input_ids"]
    more = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == tokens.shape:
            more[name] = torch.cat([value, value[:, -1:].expand(-1, len(ids))], dim=1)
    more["input_ids"] = torch.cat([tokens, tokens.new_tensor([list(ids)])], dim=1)
    return more


def _logprobs(logits: Tensor, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """log p(tokens[i]) under row rows[i] of the logits [n, vocabulary] -> float32 [len(tokens)]."""
    picked = torch.tensor(list(rows), dtype=torch.long, device=logits.device)
    targets = torch.tensor(list(tokens), dtype=torch.long, device=logits.device)
    scores = logits.float()
    return scores[picked, targets] - scores.logsumexp(-1)[picked]
