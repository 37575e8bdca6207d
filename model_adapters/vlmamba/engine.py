"""The engine: an image is read once, and every question about it continues from a copy of the same state.

    images    -> encoder and connector, several at once
              -> prefill of the image after the template's opening: one state per image
    questions -> sorted by length into micro-batches over all images, each row continuing its image's state
              -> decoded together; finished rows leave and waiting ones take their place

Rows are packed one after another if the scan takes them so, as on CPUs, and padded on the right elsewhere. Padding
never enters a state, so an answer depends on its image and question alone.
With `sharing=False` every question is answered by itself, from the pixels on: the plain reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from vlmamba_eval.model_adapters.shared.memory import memory_errors
from vlmamba_eval.model_adapters.shared.template import answer_text, render
from vlmamba_eval.types import Generation, ImageQuestions, Likelihood, Question, StopReason

from .captured import Captured
from .config import LanguageModelConfig, TemplateConfig, TokenizerConfig
from .decoder import Decoder
from .language_model import LanguageModel, State
from .scan import Layout, choose_backend, takes_packed_rows
from .scan.layout import to_device

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_T = TypeVar("_T")

# So few images are read faster than their kernels can be launched one by one.
_FEW = 4


class Configured(Protocol):
    """What the engine needs to know of a model."""

    @property
    def template(self) -> TemplateConfig: ...
    @property
    def tokenizer(self) -> TokenizerConfig: ...
    @property
    def language_model(self) -> LanguageModelConfig: ...


class ReadsImages(Protocol):
    """A model whose image becomes embeddings in front of the question: a VL-Mamba, and families that are built alike.

    `embed_images` takes stacked pixels, as the family prepares them, to embeddings [i, t, d_model].
    """

    @property
    def config(self) -> Configured: ...
    @property
    def language_model(self) -> LanguageModel: ...

    def embed_images(self, pixels: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is done at once. These bound memory and never change an answer.

    What is given is where an engine begins: each time the memory is short, it goes on with half of each.
    """

    images: int
    """Images that are encoded, and whose prefix is prefilled, at once."""
    tokens: int
    """Tokens of questions, padding included, that are prefilled at once; always at least one question."""
    rows: int
    """Questions that are decoded at once."""

    def halved(self) -> Limits:
        """Half of each, at least one."""
        return Limits(max(1, self.images // 2), max(1, self.tokens // 2), max(1, self.rows // 2))


# Packed rows are on a CPU: each micro-batch reads all weights from memory, and beyond a thousand tokens that no longer
# matters. Padded rows there are the eager scan's, whose temporaries outgrow the caches sooner.
LIMITS = {
    "cuda": Limits(images=32, tokens=32768, rows=256),
    "packed": Limits(images=4, tokens=1024, rows=96),
    "padded": Limits(images=4, tokens=400, rows=64),
}


@dataclass(slots=True)
class _Row:
    """One question under way."""

    group: int
    number: int
    question: Question
    prompt: str
    ids: list[int]
    source: int
    """Which image's state it continues; -1: none."""
    answer: list[int] = field(default_factory=list)
    stop: StopReason | None = None
    likelihoods: list[Likelihood] = field(default_factory=list)


class Engine:
    """Greedy answers and likelihoods for groups of questions.

    `images_encoded` counts how many images went through the encoder since the engine was made.
    """

    def __init__(
        self,
        model: ReadsImages,
        tokenizer: Tokenizer,
        *,
        sharing: bool = True,
        limits: Limits | None = None,
    ):
        config = model.config
        self.model = model
        self.tokenizer = tokenizer
        self.template: TemplateConfig = config.template
        self.eos = config.tokenizer.eos_token_id
        self.pad = config.tokenizer.pad_token_id
        self.sharing = sharing
        self.device = model.language_model.backbone.embedding.weight.device
        self.packs = takes_packed_rows(choose_backend(self.device))
        kind = "cuda" if self.device.type == "cuda" else "packed" if self.packs else "padded"
        self.limits = limits or LIMITS[kind]
        # Rows of the embedding matrix that no token has can't be said.
        self.vocabulary = min(config.language_model.vocab_size, tokenizer.get_vocab_size())
        self.images_encoded = 0
        self._opening: State | None = None
        self._read_few = Captured(self._read, "reading of few images")
        self._decoder: Decoder | None = None

    # =========================================================================
    # What the adapter asks
    # =========================================================================

    def generate(self, batch: Sequence[ImageQuestions]) -> list[list[Generation]]:
        """Answer every question greedily, in order."""
        with torch.inference_mode(), memory_errors(self._shrink):
            # A GPU reads the images while the host makes tokens of the questions.
            prefixes = self._read_images(batch) if self.sharing else None
            rows = self._rows(batch)
            if self.sharing:
                self._decode_all(rows, prefixes)
            else:
                for row in rows:
                    self._generate_plainly(row, batch[row.group].image)
        return self._in_order(batch, rows)

    def rank(self, batch: Sequence[ImageQuestions]) -> list[list[Generation]]:
        """Score every continuation of every question, in order; the best mean log-probability a token is the text."""
        with torch.inference_mode(), memory_errors(self._shrink):
            for question in (question for item in batch for question in item.questions):
                if not question.continuations:
                    raise ValueError(f"nothing to rank: the question {question.text!r} has no continuations")
            prefixes = self._read_images(batch) if self.sharing else None
            rows = self._rows(batch)
            if self.sharing:
                self._rank_all(rows, prefixes)
            else:
                for row in rows:
                    self._rank_plainly(row, batch[row.group].image)
        return self._in_order(batch, rows)

    def _shrink(self) -> None:
        """After a lack of memory: let go of the decoder and the rows in it, and halve the limits."""
        self._decoder = None
        self.limits = self.limits.halved()

    # =========================================================================
    # Texts
    # =========================================================================

    def encode(self, text: str) -> list[int]:
        """Token ids of one piece of a conversation; no token is put in front."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _rows(self, batch: Sequence[ImageQuestions]) -> list[_Row]:
        """All questions with the tokens that follow the image, or all tokens if there is none."""
        rows = []
        images = 0
        for group, item in enumerate(batch):
            has_image = item.image is not None and bool(item.questions)
            for number, question in enumerate(item.questions):
                segments = render(self.template, [(question.text, None)], image=has_image)
                after = [i for i, segment in enumerate(segments) if segment.kind == "image"]
                asked = segments[after[-1] + 1 :] if after else segments
                ids = [token for segment in asked for token in self.encode(segment.text)]
                prompt = "".join(segment.text for segment in segments)
                rows.append(_Row(group, number, question, prompt, ids, images if has_image else -1))
            images += has_image
        return rows

    def _opening_ids(self) -> list[int]:
        """The tokens before the image: the same for every question."""
        segments = render(self.template, [("", None)], image=True)
        before = [segment for segment in segments if segment.kind == "text"] if segments[0].kind == "text" else []
        return self.encode(before[0].text) if before else []

    def _continuations(self, row: _Row) -> list[list[int]]:
        return [self.encode(answer_text(self.template, text)) for text in row.question.continuations]

    def _in_order(self, batch: Sequence[ImageQuestions], rows: Iterable[_Row]) -> list[list[Generation]]:
        results: list[list[Generation]] = [[] for _ in batch]
        for row in rows:  # rows were made in the order of the questions
            results[row.group].append(self._generation(row))
        return results

    def _generation(self, row: _Row) -> Generation:
        if row.likelihoods:
            means = [likelihood.logprob / max(likelihood.n_tokens, 1) for likelihood in row.likelihoods]
            best = means.index(max(means))
            return Generation(
                text=row.question.continuations[best],
                prompt=row.prompt,
                n_tokens=row.likelihoods[best].n_tokens,
                stop="likelihood",
                likelihoods=tuple(row.likelihoods),
            )
        text = self.tokenizer.decode(row.answer, skip_special_tokens=True).strip()
        return Generation(text, row.prompt, len(row.answer), row.stop or "unknown")

    # =========================================================================
    # Reading
    # =========================================================================

    def _read_images(self, batch: Sequence[ImageQuestions]) -> State | None:
        """The states after each image that is asked about, in order; None if there is no image."""
        pixels = [item.image for item in batch if item.image is not None and item.questions]
        if not pixels:
            return None
        if self._opening is None and (opening := self._opening_ids()):
            *_, self._opening = self._prefill_ids([opening])
        read: State | None = None
        for start in range(0, len(pixels), self.limits.images):
            stacked = self._stack(pixels[start : start + self.limits.images])  # [i, ...]
            state = (self._read_few if len(stacked) <= _FEW else self._read)(stacked)
            if len(state) == len(pixels):
                return state
            if read is None:
                read = self.model.language_model.new_state(len(pixels))
            read.put(start, state)
        return read

    def _read(self, pixels: Tensor) -> State:
        """The states after images [i, ...] on the device."""
        return self.model.language_model.prefill(self.model.embed_images(pixels), self._opening)[1]

    def _embed_images(self, pixels: Sequence[Tensor]) -> Tensor:
        return self.model.embed_images(self._stack(pixels))

    def _stack(self, pixels: Sequence[Tensor]) -> Tensor:
        """The images that are about to be encoded, on the device; the host does not wait for a GPU."""
        self.images_encoded += len(pixels)
        stacked = torch.stack(list(pixels))
        return (stacked.pin_memory() if self.device.type == "cuda" else stacked).to(self.device, non_blocking=True)

    def _prefill_ids(
        self, ids: Sequence[Sequence[int]], state: State | None = None, sources: Sequence[int] | None = None
    ) -> tuple[Tensor, list[int], State]:
        """Read rows of tokens, each from the row of `state` that `sources` names (-1: from nothing).

        Returns the residual stream [m, d_model] of all tokens, the place in it where each row begins, and the rows'
        states.
        """
        lengths, longest = [len(row) for row in ids], max(len(row) for row in ids)
        if self.packs:
            tokens = to_device([[token for row in ids for token in row]], self.device)  # [1, m]
            starts = [0, *accumulate(lengths[:-1])]
        else:
            padded = [[*row, *[self.pad] * (longest - len(row))] for row in ids]
            tokens = to_device(padded, self.device)  # [b, l]
            starts = list(range(0, len(ids) * longest, longest))
        layout = Layout.of(lengths, None if state is None else sources, self.device, packed=self.packs)
        language_model = self.model.language_model
        x, after = language_model.prefill(language_model.embed(tokens), state, layout)
        return x.flatten(0, 1), starts, after

    def _logits(self, x: Tensor) -> Tensor:
        """[b, d_model] -> [b, vocabulary]"""
        return self.model.language_model.logits(x)[:, : self.vocabulary]

    # =========================================================================
    # Answering together
    # =========================================================================

    def _decode_all(self, rows: Sequence[_Row], prefixes: State | None) -> None:
        """Prefill the questions as room allows, and decode all rows that are under way one token at a time."""
        for row in rows:
            if row.question.max_new_tokens <= 0:
                row.stop = "length"
        asked = [row for row in rows if row.stop is None]
        if not asked:
            return
        waiting = self._micro_batches(asked, lambda row: len(row.ids))
        decoder = self._decoder_for(min(self.limits.rows, len(asked)))
        active: list[_Row] = []
        upcoming = next(waiting, None)
        while active or upcoming:
            if upcoming and len(active) + len(upcoming) <= self.limits.rows:
                last, state = self._ask(upcoming, prefixes)
                going = self._say(upcoming, decoder.next_tokens(last).tolist())
                if len(going) < len(upcoming):
                    state = state.select(to_device(going, self.device))
                decoder.add(len(active), state)
                active += [upcoming[place] for place in going]
                upcoming = next(waiting, None)
            else:
                going = self._say(active, decoder.step([row.answer[-1] for row in active]))
                active = [active[place] for place in decoder.close_ranks(len(active), going)]

    def _ask(self, rows: Sequence[_Row], prefixes: State | None) -> tuple[Tensor, State]:
        """Read the questions; the residual stream at the last token of each [b, d_model], and the states after it."""
        x, starts, state = self._prefill_ids([row.ids for row in rows], prefixes, [row.source for row in rows])
        ends = [start + len(row.ids) - 1 for start, row in zip(starts, rows, strict=True)]
        return x[to_device(ends, self.device)], state

    def _say(self, rows: Sequence[_Row], tokens: Sequence[int]) -> list[int]:
        """Give each row its next token; returns the places of the rows that go on."""
        going = []
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if token == self.eos:
                row.stop = "eos"
                continue
            row.answer.append(token)
            if len(row.answer) == row.question.max_new_tokens:
                row.stop = "length"
            else:
                going.append(place)
        return going

    def _decoder_for(self, n: int) -> Decoder:
        """Room for `n` rows, kept from call to call: large memory is slow to get."""
        if self._decoder is None or len(self._decoder) < n:
            self._decoder = None  # freed before the larger one is made
            self._decoder = Decoder(self.model.language_model, self.vocabulary, n)
        return self._decoder

    def _micro_batches(self, items: Iterable[_T], length: Callable[[_T], int]) -> Iterator[list[_T]]:
        """Items of similar length together, as many as the limits allow."""
        batch: list[_T] = []
        tokens = 0
        for item in sorted(items, key=length):
            # Sorted, an item is as long as the batch would be wide.
            tokens = tokens + length(item) if self.packs else (len(batch) + 1) * length(item)
            if batch and (len(batch) == self.limits.rows or tokens > self.limits.tokens):
                yield batch
                batch, tokens = [], length(item)
            batch.append(item)
        if batch:
            yield batch

    # =========================================================================
    # Ranking together
    # =========================================================================

    def _rank_all(self, rows: Sequence[_Row], prefixes: State | None) -> None:
        for batch in self._micro_batches(rows, lambda row: len(row.ids)):
            last, state = self._ask(batch, prefixes)
            options = [(i, ids) for i, row in enumerate(batch) for ids in self._continuations(row)]
            first = torch.tensor([ids[0] for _, ids in options])
            scores = self._logprobs(last, torch.tensor([i for i, _ in options]), first).tolist()
            lengths = {place: len(ids) - 1 for place, (_, ids) in enumerate(options) if len(ids) > 1}
            for places in self._micro_batches(lengths, lengths.__getitem__):
                rest = [options[place][1] for place in places]
                x, starts, _ = self._prefill_ids(
                    [ids[:-1] for ids in rest], state, [options[place][0] for place in places]
                )
                targets = [(place, start + t, token)
                           for place, start, ids in zip(places, starts, rest, strict=True)
                           for t, token in enumerate(ids[1:])]  # fmt: skip
                needed = x[torch.tensor([at for _, at, _ in targets], device=self.device)]  # [m, d_model]
                tokens = torch.tensor([token for *_, token in targets])
                found = self._logprobs(needed, torch.arange(len(tokens)), tokens).tolist()
                for (place, *_), logprob in zip(targets, found, strict=True):
                    scores[place] += logprob
            for (i, ids), score in zip(options, scores, strict=True):
                batch[i].likelihoods.append(Likelihood(score, len(ids)))

    def _logprobs(self, x: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """The log-probability of target j after residual stream x[rows[j]]: x [b, d_model] -> [m].

        Only the positions asked for go through the output head, a few at a time.
        """
        found = torch.empty(len(targets), device=self.device)
        rows, targets = rows.to(self.device), targets.to(self.device)
        for start in range(0, len(x), 256):
            logits = self._logits(x[start : start + 256])  # [<= 256, vocabulary]
            normaliser = logits.logsumexp(-1)
            here = ((rows >= start) & (rows < start + 256)).nonzero()[:, 0]
            local = rows[here] - start
            found[here] = logits[local, targets[here]] - normaliser[local]
        return found

    # =========================================================================
    # One at a time
    # =========================================================================

    def _read_plainly(self, row: _Row, image: Tensor | None, more: Sequence[int] = ()) -> tuple[Tensor, State]:
        """The whole conversation, and `more` tokens of an answer, in one prefill of one row."""
        embed = self.model.language_model.embed
        text = embed(torch.tensor([[*row.ids, *more]], device=self.device))  # [1, l, d_model]
        if image is not None:
            opening = embed(torch.tensor([self._opening_ids()], dtype=torch.long, device=self.device))
            text = torch.cat([opening, self._embed_images([image]), text], dim=1)
        return self.model.language_model.prefill(text)

    def _generate_plainly(self, row: _Row, image: Tensor | None) -> None:
        if row.question.max_new_tokens <= 0:
            row.stop = "length"
            return
        x, state = self._read_plainly(row, image)
        x = x[:, -1]
        while self._say([row], self._logits(x).argmax(-1).tolist()):
            x = self.model.language_model.step(torch.tensor(row.answer[-1:], device=self.device), state)

    def _rank_plainly(self, row: _Row, image: Tensor | None) -> None:
        for ids in self._continuations(row):
            x, _ = self._read_plainly(row, image, ids[:-1])
            targets = torch.tensor(ids)
            logprobs = self._logprobs(x[0, -len(ids) :], torch.arange(len(ids)), targets)
            row.likelihoods.append(Likelihood(float(logprobs.sum()), len(ids)))
