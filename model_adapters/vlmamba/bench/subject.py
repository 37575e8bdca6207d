"""What is measured: a whole VL-Mamba, or a Mamba language model of a published shape by itself.

A language model by itself reads, in place of an image, a prefix of tokens that stands for one. Engine, micro-batches
and decoding are the ones of the whole model; only encoder and connector are missing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlmamba_eval.model_adapters.shared.bench import AboutImage
from vlmamba_eval.model_adapters.shared.device import choose
from vlmamba_eval.model_adapters.shared.template import render
from vlmamba_eval.types import ImageQuestions, ModelError, Question

from ..adapter import VLMambaAdapter
from ..config import PRESETS, LanguageModelConfig, ModelConfig, TemplateConfig, TokenizerConfig
from ..engine import Engine, Limits
from ..language_model import LanguageModel, keeps_float32
from ..linear import onednn_works
from ..model import VLMamba
from ..scan import choose_backend

PREFIX_TOKENS = 600
"""Tokens that stand for an image if there is no encoder: between CLIP's 576 and SigLIP's 729."""

PAD = 2
"""A token that no text has. transformers' generate takes every token that equals its padding for padding."""


@dataclass(frozen=True)
class Subject:
    """A model ready for questions.

    `image(i)` makes the i-th image, as `generate` takes it; `image_tokens` is what one takes in the language model, and
    `opening` the tokens before it. `prefix_ids` are an image's tokens, if it is made of tokens.
    """

    name: str
    engine: Engine
    image: Callable[[int], Tensor]
    image_tokens: int
    opening: int
    dtype: str
    device: str
    prefix_ids: Callable[[int], list[int]] | None = None
    parameters: dict[str, Tensor] | None = None
    """Copies of the language model's parameters under their published names, if peers are to have them."""

    @property
    def backend(self) -> str:
        """What computes: the scan's backend, and the matrices' if it is not PyTorch's own."""
        return backend(torch.device(self.device), self.dtype)

    def batch(self, images: Sequence[AboutImage], seed: int = 0) -> list[ImageQuestions]:
        """The questions of a profile as texts of the given lengths, each image with its own."""
        writer = Writer(self.engine, random.Random(seed))
        batch = []
        for number, about in enumerate(images):
            texts = [writer.text(asked.tokens) for asked in about.questions[: about.distinct]]
            texts += [texts[i % about.distinct] for i in range(len(about.questions) - about.distinct)]
            asked = zip(texts, about.questions, strict=True)
            questions = tuple(Question(text, question.new_tokens) for text, question in asked)
            batch.append(ImageQuestions(self.image(number), questions))
        return batch

    def asked_ids(self, question: Question) -> list[int]:
        """The tokens of a question after its image."""
        return [token for text in _asked(self.engine, question.text) for token in self.engine.encode(text)]


def backend(device: torch.device, dtype: str) -> str:
    packed = device.type == "cpu" and dtype == "float32" and onednn_works()
    return choose_backend(device) + ("+onednn" if packed else "")


# =============================================================================
# A whole model
# =============================================================================


def of_adapter(adapter: VLMambaAdapter, seed: int = 0) -> Subject:
    """A loaded model, with images of random pixels."""
    engine = adapter.engine
    config = cast(VLMamba, engine.model).config
    size = config.vision.image_size

    def image(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)

    return Subject(
        name=config.name + (" (random weights)" if adapter.info.untrained else ""),
        engine=engine,
        image=image,
        image_tokens=config.vision.image_tokens,
        opening=_opening(engine),
        dtype=adapter.info.dtype,
        device=adapter.info.device,
    )


# =============================================================================
# A language model by itself
# =============================================================================


class LanguageModelAlone(nn.Module):
    """What the engine sees of a VL-Mamba, without encoder and connector: an image is its embeddings."""

    def __init__(self, config: ModelConfig, language_model: LanguageModel):
        super().__init__()
        self.config = config
        self.language_model = language_model

    def embed_images(self, embeddings: Tensor) -> Tensor:
        return embeddings


def of_shape(
    name: str,
    shape: LanguageModelConfig,
    *,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    prefix_tokens: int = PREFIX_TOKENS,
    limits: Limits | None = None,
    keep_parameters: bool = False,
) -> Subject:
    """A language model of a shape with random weights, and a prefix of random tokens for each image.

    `keep_parameters` keeps a copy for `contestants.Transformers`.
    """
    where, precision = choose(device, dtype)
    # Every row of the embedding matrix is a token, so that peers choose among the same.
    shape = replace(shape, vocab_size=shape.padded_vocab_size)
    language_model = random_language_model(shape, seed, where, precision)
    parameters = None
    if keep_parameters:
        parameters = {key: tensor.detach().clone() for key, tensor in language_model.state_dict().items()}
    language_model.requires_grad_(False).eval()
    language_model.prepare_for_inference()
    config = replace(
        PRESETS["vlmamba-tiny"],
        name=name,
        language_model=shape,
        template=TemplateConfig("cobra_in_out", image_first=True),
        # Random weights have no end mark: with one that no token is, every answer has the length asked for.
        tokenizer=TokenizerConfig(source="numbered", eos_token_id=-1, pad_token_id=PAD),
    )
    alone = cast(VLMamba, LanguageModelAlone(config, language_model))
    engine = Engine(alone, numbered_tokenizer(shape.vocab_size), limits=limits)

    def prefix_ids(number: int) -> list[int]:
        rng = random.Random(seed * 1_000_003 + number)
        return [rng.randrange(PAD + 1, shape.vocab_size) for _ in range(prefix_tokens)]

    def image(number: int) -> Tensor:
        with torch.inference_mode():
            return language_model.embed(torch.tensor(prefix_ids(number), device=where))  # [t, d_model]

    return Subject(
        name=name,
        engine=engine,
        image=image,
        image_tokens=prefix_tokens,
        opening=_opening(engine),
        dtype=str(precision).removeprefix("torch."),
        device=str(where),
        prefix_ids=prefix_ids,
        parameters=parameters,
    )


def random_language_model(
    config: LanguageModelConfig, seed: int, device: torch.device, dtype: torch.dtype
) -> LanguageModel:
    """Random parameters, drawn on the device, for which answers vary.

    At Mamba's own start every block adds so little that the tied head repeats the last token. Stronger blocks, and
    nothing at a constant, make the next token depend on all that was read.
    """
    with torch.device("meta"):
        model = LanguageModel(config)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if keeps_float32(name) else dtype)
    model = model.to_empty(device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model.reset_parameters()
        strengthen(model)
    return model


@torch.no_grad()
def strengthen(model: LanguageModel) -> None:
    """Move a freshly drawn model away from its start; see `random_language_model`."""
    for name, parameter in model.named_parameters():
        if name.endswith(("A_log", "D", "norm.weight", "norm_f.weight", "conv1d.bias")):
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif name.endswith("out_proj.weight"):
            parameter.mul_(8)


def numbered_tokenizer(size: int) -> Any:
    """A tokenizer of `size` words `t3 t4 ...`, one token each; 0 and 1 are the template's marks, 2 is padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"In:": 0, "Out:": 1, "-": PAD} | {f"t{i}": i for i in range(PAD + 1, size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="-"))  # noqa: S106 - a word
    tokenizer.pre_tokenizer = cast(Any, pre_tokenizers.WhitespaceSplit())
    return tokenizer


# =============================================================================
# Texts of a given length
# =============================================================================


class Writer:
    """Writes questions of a given number of tokens, the template's end among them, in any tokenizer."""

    def __init__(self, engine: Engine, rng: random.Random):
        self.engine, self.rng = engine, rng
        self.base = self._count("")
        self.words = self._words()

    def text(self, tokens: int) -> str:
        """Random words; at least one, even if the template by itself is as long."""
        words = [self.rng.choice(self.words) for _ in range(max(1, tokens - self.base))]
        for _ in range(4):  # the first word follows no space and may be more than one token
            excess = self._count(" ".join(words)) - tokens
            if excess == 0 or (excess > 0 and len(words) == 1):
                return " ".join(words)
            words = words[: max(1, len(words) - excess)]
            words += [self.rng.choice(self.words) for _ in range(-excess)]
        raise ModelError(f"the tokenizer makes no text of {tokens} tokens; the last try was {' '.join(words)!r}")

    def _count(self, text: str) -> int:
        return sum(len(self.engine.encode(piece)) for piece in _asked(self.engine, text))

    def _words(self) -> list[str]:
        """Words that are one token after a space."""
        tokenizer = self.engine.tokenizer
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        words = []
        for _, token in vocabulary[:: max(1, len(vocabulary) // 2000)]:
            word = tokenizer.decode([token]).strip()
            if word.isalnum() and word.isascii() and self.engine.encode(f"the {word} {word}")[-2:] == [token, token]:
                words.append(word)
        if not words:
            raise ModelError("the tokenizer has no word that is one token: nothing to write questions with")
        return words


def _asked(engine: Engine, text: str) -> list[str]:
    """The pieces of the conversation after the image."""
    segments = render(engine.template, [(text, None)], image=True)
    place = next(i for i, segment in enumerate(segments) if segment.kind == "image")
    return [segment.text for segment in segments[place + 1 :]]


def _opening(engine: Engine) -> int:
    segments = render(engine.template, [("", None)], image=True)
    return len(engine.encode(segments[0].text)) if segments[0].kind == "text" else 0
