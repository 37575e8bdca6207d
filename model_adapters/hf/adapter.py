"""Any image-text-to-text model of transformers behind the harness's adapter protocol.

What is sent is what the checkpoint's chat template makes of one user turn, the image before the text, and what its
processor makes of that. An image is read once for all its questions if nothing before its end depends on the question,
and if the check at load finds the same logits; else every prompt goes to `generate` by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlmamba_eval.adapter import AdapterInfo
from vlmamba_eval.model_adapters.shared.device import choose
from vlmamba_eval.model_adapters.shared.hub_checkpoint import find_checkpoint
from vlmamba_eval.model_adapters.shared.prefix_adapter import (
    Conversations,
    PrefixAdapter,
    Unaskable,
    Unshareable,
    check_sharing,
    drawn_image,
)
from vlmamba_eval.model_adapters.shared.prefix_engine import Prefix, PrefixEngine
from vlmamba_eval.model_adapters.shared.pretrained import decode_greedily, end_tokens, load_model, output_head
from vlmamba_eval.types import ModelError, UsageError

from . import Options
from .processing import check_architecture, load_processor

# A question that no benchmark asks, to find where the text stands.
_MARK = "vlmambaquestionmark"
_ANSWER = "vlmambaanswermark"


def load(model: str, options: Options) -> PrefixAdapter:
    """The adapter for a repository of the hub, or a folder."""
    import transformers

    checkpoint = find_checkpoint(model)
    check_architecture(checkpoint)
    processor = load_processor(checkpoint)
    template = _template(processor, options.chat_template)
    talk = ProcessorConversations(processor, template, str(checkpoint.folder))
    device, dtype = choose(options.device, options.dtype)
    loaded = load_model(transformers.AutoModelForImageTextToText, checkpoint, device, dtype)
    return adapter_of(
        loaded, talk, name=checkpoint.name, weights=checkpoint.weights, template=template, sharing=options.sharing
    )


def adapter_of(
    model: Any, talk: ProcessorConversations, *, name: str, weights: str, template: str | None, sharing: bool
) -> PrefixAdapter:
    """A loaded model and its conversations as an adapter."""
    tokenizer = talk.processor.tokenizer
    eos = end_tokens(model, tokenizer)
    pad = next((token for token in (tokenizer.pad_token_id, *eos) if token is not None), 0)
    decode_greedily(model, eos, pad)
    # Rows of the head that no token has can't be said.
    vocabulary = min(output_head(model).weight.shape[0], max(tokenizer.get_vocab().values()) + 1)
    engine = PrefixEngine(model, eos=eos, vocabulary=vocabulary, pad=pad)
    dtype = str(model.dtype).removeprefix("torch.")
    shared = check_sharing(engine, talk, name, wanted=sharing)
    talk.keeps_pictures = not shared.on
    engine.images_encoded = 0
    rendered = talk.rendered("?", image=True)
    length = talk.whole(_Kept(None, drawn_image()), "?")["input_ids"].shape[1]
    info = AdapterInfo(
        name=name,
        weights=weights,
        device=model.device.type,
        dtype=dtype,
        image_tokens=length - len(talk.text_ids(rendered)) + 1,
        settings={
            "architecture": type(model).__name__,
            "chat_template": template or "none: the image, then the text",
            "processor": type(talk.processor).__name__,
            "image_processor": type(talk.processor.image_processor).__name__,
            "image_settings": talk.processor.image_processor.to_dict(),
            "vocabulary": vocabulary,
            "eos": eos,
            "decoding": "greedy",
            "attention": model.config.get_text_config()._attn_implementation,
            "kernels": engine.kernels.name,
            "sharing": shared.why,
        },
    )
    return PrefixAdapter(info, engine, talk, shared)


@dataclass(frozen=True, slots=True)
class _Kept:
    """An image: its prefix if that is shared, the picture itself if every prompt is made anew."""

    prefix: Prefix | None
    picture: Image.Image


class ProcessorConversations(Conversations):
    """One user turn through a chat template, and through the processor.

    The tokens behind an image are those of the text behind its mark, tokenised together with the mark; `prepare` finds
    out for every image whether the processor makes the same of them.
    """

    def __init__(self, processor: Any, template: str | None, where: str) -> None:
        self.processor = processor
        self.template = template
        self.where = where
        self.keeps_pictures = False
        self._own = threading.local()  # a tokenizer is not to be used by two threads at once
        self.image_mark: str = processor.image_token
        self.image_id: int = processor.tokenizer.convert_tokens_to_ids(self.image_mark)
        rendered = self.rendered(_MARK, image=True)
        if self.image_mark not in rendered or _MARK not in rendered:
            raise ModelError(
                f"{where}: its chat template makes no place for an image ({self.image_mark}) and a question out of one "
                f"user turn: {rendered!r:.300}"
            )
        self._image_first = rendered.index(self.image_mark) < rendered.index(_MARK)
        self._lead = self._answer_lead()

    def rendered(self, text: str, *, image: bool, answer: str | None = None) -> str:
        """The conversation as the template makes it, with the processor's mark for an image."""
        if self.template is None:
            return (self.image_mark if image else "") + text + (answer or "")
        content = ([{"type": "image"}] if image else []) + [{"type": "text", "text": text}]
        turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if answer is not None:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        # Reasoning in front of a short answer is nothing that the benchmarks ask for.
        switches = {"enable_thinking": False} if "enable_thinking" in self.template else {}
        return self.processor.apply_chat_template(
            turns, chat_template=self.template, tokenize=False, add_generation_prompt=answer is None, **switches
        )

    def _answer_lead(self) -> str:
        """What the template puts between a prompt's end and an answer: often nothing, for Vicuna a space."""
        prompt = self.rendered(_MARK, image=True)
        try:
            answered = self.rendered(_MARK, image=True, answer=_ANSWER)
        except Exception:  # noqa: BLE001 - a template may refuse a turn of the assistant, in any way
            return ""
        if not answered.startswith(prompt) or _ANSWER not in answered:
            return ""
        return answered[len(prompt) : answered.index(_ANSWER)]

    # =========================================================================
    # What the adapter asks
    # =========================================================================

    def prompt(self, text: str, *, image: bool) -> str:
        return self.rendered(text, image=image).replace(self.image_mark, "<image>", 1 if image else 0)

    def prepare(self, image: Image.Image) -> _Kept:
        picture = image.convert("RGB")
        return _Kept(None, picture) if self.keeps_pictures else _Kept(self._read(picture), picture)

    def prefix(self, prepared: Any) -> Prefix:
        if prepared.prefix is None:
            raise Unshareable("what the processor makes of an image depends on the question")
        return prepared.prefix

    def asked(self, text: str, *, image: bool) -> list[int]:
        rendered = self.rendered(text, image=image)
        if not image:
            return self.text_ids(rendered)
        ids = self._behind(rendered)
        if self.image_id in ids:
            raise Unaskable(f"the text of the question holds the mark of an image, {self.image_mark}")
        return ids

    def continuation(self, text: str, answer: str, *, image: bool) -> list[int]:
        rendered = self.rendered(text, image=image)
        encode = self._behind if image else self.text_ids
        asked, together = encode(rendered), encode(rendered + self._lead + answer)
        if together[: len(asked)] == asked and len(together) > len(asked):
            return together[len(asked) :]
        return self._tokens(self._lead + answer) or self._tokens(" ")

    def whole(self, prepared: Any | None, text: str) -> Mapping[str, Tensor]:
        rendered = self.rendered(text, image=prepared is not None)
        if prepared is None:
            return {"input_ids": torch.tensor([self.text_ids(rendered)])}
        return self._processed(rendered, prepared.picture)

    def decode(self, ids: Sequence[int]) -> str:
        return self.processor.tokenizer.decode(list(ids), skip_special_tokens=True)

    def text_ids(self, rendered: str) -> list[int]:
        """The tokens of a conversation without an image; not every processor takes a text alone."""
        return list(self._processor_here().tokenizer(rendered, **self._special_tokens(rendered)).input_ids)

    # =========================================================================
    # Through the processor
    # =========================================================================

    def _processed(self, rendered: str, picture: Image.Image) -> Mapping[str, Tensor]:
        processor = self._processor_here()
        made = processor(images=[picture], text=[rendered], return_tensors="pt", **self._special_tokens(rendered))
        return {name: value for name, value in made.items() if isinstance(value, Tensor) and name != "labels"}

    def _special_tokens(self, rendered: str) -> dict[str, Any]:
        """What keeps the tokenizer from writing `<s>` if the template has written it already."""
        begin = self.processor.tokenizer.bos_token
        return {"add_special_tokens": False} if begin is not None and rendered.startswith(begin) else {}

    def _processor_here(self) -> Any:
        if not hasattr(self._own, "processor"):
            self._own.processor = deepcopy(self.processor)
        return self._own.processor

    def _behind(self, rendered: str) -> list[int]:
        """The tokens behind the image's mark."""
        place = rendered.index(self.image_mark)
        ids = self._tokens(rendered[place:])
        if not ids or ids[0] != self.image_id:
            raise ValueError(f"the mark of an image, {self.image_mark}, is not one token")
        return ids[1:]

    def _tokens(self, text: str) -> list[int]:
        return list(self._processor_here().tokenizer(text, add_special_tokens=False).input_ids)

    def _read(self, picture: Image.Image) -> Prefix | None:
        """What is read of a picture for all its questions; None if that depends on the question."""
        if not self._image_first:
            return None
        rendered = self.rendered("?", image=True)
        made = self._processed(rendered, picture)
        ids = made["input_ids"]
        behind = self._behind(rendered)
        length = ids.shape[1] - len(behind)
        if not behind or ids[0, length:].tolist() != behind:
            return None
        inputs = {}
        for name, value in made.items():
            if name in ("input_ids", "attention_mask"):
                continue
            inputs[name] = value[:, :length] if value.shape == ids.shape else value
        return Prefix(ids[0, :length].tolist(), inputs)


def _template(processor: Any, given: str) -> str | None:
    """The template to use: a file's, the checkpoint's own, or none. Raises `UsageError` if there is none."""
    if given == "none":
        return None
    if given:
        try:
            return Path(given).read_text(encoding="utf-8")
        except OSError as error:
            reason = error.strerror
            raise UsageError(f"--model-option chat_template={given}: {reason}; expected a Jinja file.") from None
    own = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    if isinstance(own, dict):
        own = own.get("default")
    if not own:
        raise UsageError(
            "The checkpoint has no chat template. Give one with --model-option chat_template=FILE.jinja, or take the "
            "image and then the bare text with --model-option chat_template=none (PaliGemma, base models)."
        )
    return own
