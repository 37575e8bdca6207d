"""Pythia-VL: Mamba-VL's eyes before transformers' GPT-NeoX; the keys and values of an image serve all its questions.

Questions are asked one after another, each behind its own copy of the image's cache.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import DynamicCache, GPTNeoXConfig, GPTNeoXForCausalLM, GPTNeoXModel

from vlmamba_eval.adapter import AdapterInfo
from vlmamba_eval.model_adapters.mambavl.vision import Vision
from vlmamba_eval.model_adapters.shared.memory import memory_errors
from vlmamba_eval.model_adapters.shared.template import TemplateConfig, answer_text, render
from vlmamba_eval.model_adapters.shared.vision_tower import TowerConfig
from vlmamba_eval.types import Generation, ImageQuestions, Likelihood, Question, StopReason

if TYPE_CHECKING:
    from tokenizers import Tokenizer


# transformers renamed the argument within its fifth version.
_CACHE = "cache" if "cache" in inspect.signature(GPTNeoXModel.forward).parameters else "past_key_values"


class PythiaVL(nn.Module):
    """`vision.*`, and the language model by its own names (`gpt_neox.*`, `embed_out.weight`)."""

    def __init__(self, tower: TowerConfig, config: GPTNeoXConfig):
        super().__init__()
        self.vision = Vision(tower, config.hidden_size)
        self.language_model: Any = GPTNeoXForCausalLM(config)

    def embed_image(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [3, h, w] -> embeddings [1, t, width]."""
        return self.vision(pixels[None], self.language_model.get_input_embeddings())


class PythiaVLAdapter:
    """Answers questions with a Pythia-VL; `vlmamba_eval.adapter` documents the protocol.

    `images_encoded` counts how many images were read. `sharing=False` reads the image anew for each question.
    """

    def __init__(
        self,
        model: PythiaVL,
        tokenizer: Tokenizer,
        template: TemplateConfig,
        info: AdapterInfo,
        prepare: Callable[[Image.Image], Tensor],
        *,
        eos: int,
        sharing: bool = True,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self.info = info
        self.eos = eos
        self.sharing = sharing
        self.images_encoded = 0
        self._prepare = prepare
        self._device = next(model.parameters()).device
        self._vocabulary = min(model.language_model.config.vocab_size, tokenizer.get_vocab_size())

    def prepare(self, image: Image.Image) -> Tensor:
        """A decoded image -> uint8 [3, h, w] as the encoder wants it. Thread-safe."""
        return self._prepare(image)

    def generate(self, batch: Sequence[ImageQuestions]) -> list[list[Generation]]:
        """Answer every question of every image greedily, in order."""
        return self._each(batch, self._generated)

    def rank(self, batch: Sequence[ImageQuestions]) -> list[list[Generation]]:
        """Score every continuation of every question, in order."""
        return self._each(batch, self._ranked)

    def _each(
        self, batch: Sequence[ImageQuestions], answer: Callable[[Question, str, Tensor, DynamicCache], Generation]
    ) -> list[list[Generation]]:
        results: list[list[Generation]] = []
        with torch.inference_mode(), memory_errors():
            for item in batch:
                read: DynamicCache | None = None
                answers = []
                for question in item.questions:
                    if read is None or not self.sharing:
                        read = self._read(item.image)
                    prompt, ids = self._asked(question.text, image=item.image is not None)
                    cache = copy.deepcopy(read)
                    answers.append(answer(question, prompt, self._forward(ids, cache)[-1], cache))
                results.append(answers)
        return results

    def _read(self, image: Tensor | None) -> DynamicCache:
        """The keys and values of an image, or of nothing."""
        cache = DynamicCache(config=self.model.language_model.config)
        if image is not None:
            self.images_encoded += 1
            embeds = self.model.embed_image(image.to(self._device))
            self.model.language_model.gpt_neox(inputs_embeds=embeds, use_cache=True, **{_CACHE: cache})
        return cache

    def _asked(self, text: str, *, image: bool) -> tuple[str, list[int]]:
        """The conversation as it is sent, and the tokens behind the image."""
        segments = render(self.template, [(text, None)], image=image)
        ids = [token for segment in segments if segment.kind == "text" for token in self._encode(segment.text)]
        return "".join(segment.text for segment in segments), ids

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _forward(self, ids: Sequence[int], cache: DynamicCache) -> Tensor:
        """Read tokens behind the cache, which grows by them: logits [l, vocabulary]."""
        tokens = torch.tensor([list(ids)], device=self._device)
        logits = self.model.language_model(input_ids=tokens, use_cache=True, **{_CACHE: cache}).logits
        return logits[0, :, : self._vocabulary].float()

    def _generated(self, question: Question, prompt: str, logits: Tensor, cache: DynamicCache) -> Generation:
        said: list[int] = []
        stop: StopReason = "length"
        while len(said) < question.max_new_tokens:
            token = int(logits.argmax())
            if token == self.eos:
                stop = "eos"
                break
            said.append(token)
            if len(said) < question.max_new_tokens:
                logits = self._forward([token], cache)[-1]
        return Generation(self.tokenizer.decode(said, skip_special_tokens=True).strip(), prompt, len(said), stop)

    def _ranked(self, question: Question, prompt: str, logits: Tensor, cache: DynamicCache) -> Generation:
        if not question.continuations:
            raise ValueError(f"nothing to rank: the question {question.text!r} has no continuations")
        likelihoods = []
        for text in question.continuations:
            ids = self._encode(answer_text(self.template, text))
            rows = logits[None]
            if len(ids) > 1:
                rows = torch.cat([rows, self._forward(ids[:-1], copy.deepcopy(cache))])  # [l, vocabulary]
            logprobs = rows.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]
            likelihoods.append(Likelihood(float(logprobs.sum()), len(ids)))
        means = [likelihood.logprob / likelihood.n_tokens for likelihood in likelihoods]
        best = means.index(max(means))
        chosen = question.continuations[best]
        return Generation(chosen, prompt, likelihoods[best].n_tokens, "likelihood", tuple(likelihoods))
