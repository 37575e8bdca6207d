"""LLaVA behind the harness's adapter protocol, with the bytes and pixels of LLaVA's own evaluation.

    prompt   the template's pieces, tokenised apart, `<s>` once: haotian-liu/LLaVA@c121f04:llava/mm_utils.py:185
    pixels   LLaVA-1.5: padded to a square with the mean colour, then CLIP's 336; LLaVA-1.6: transformers' tiles
    model    transformers' classes; hidden state -2 of the tower without its class token
    answer   greedy, among the tokens that the language model was trained with (not `<image>` and the padding rows)

The processor of the converted checkpoints neither pads nor has the system sentence: it is not used for LLaVA-1.5.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlmamba_eval.adapter import AdapterInfo
from vlmamba_eval.model_adapters.shared.configuration import reason
from vlmamba_eval.model_adapters.shared.device import choose
from vlmamba_eval.model_adapters.shared.hub_checkpoint import HubCheckpoint, find_checkpoint
from vlmamba_eval.model_adapters.shared.pixels import PreprocessingConfig, normalisation_table, prepare
from vlmamba_eval.model_adapters.shared.prefix_adapter import Conversations, PrefixAdapter, Unaskable, check_sharing
from vlmamba_eval.model_adapters.shared.prefix_engine import Prefix, PrefixEngine
from vlmamba_eval.model_adapters.shared.pretrained import decode_greedily, end_tokens, load_model
from vlmamba_eval.model_adapters.shared.template import TemplateConfig, answer_text, render
from vlmamba_eval.types import ModelError

from . import Options

IDS = {"llava-1.5-7b": "llava-hf/llava-1.5-7b-hf", "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf"}

# OpenAI's CLIP: what LLaVA's tower was trained with.
CLIP = PreprocessingConfig(
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711), fit="pad"
)

# The first and last tokens of the pieces around the image, with Vicuna's tokenizer.
_VICUNA_BEFORE = (35, (1,), (3148, 1001, 29901, 29871))
_VICUNA_AFTER = ((29871, 13), (319, 1799, 9047, 13566, 29901))

# Original checkpoints hold no vision tower and no transformers layout; these are the same parameters, converted.
_TWINS = {
    "llava-v1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-v1.5-13b": "llava-hf/llava-1.5-13b-hf",
    "llava-v1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava-v1.6-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
    "llava-v1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava-v1.6-34b": "llava-hf/llava-v1.6-34b-hf",
}


def load(model: str, options: Options) -> PrefixAdapter:
    """The adapter for `llava-1.5-7b`, a repository of the hub, or a folder."""
    _refuse_original_id(model)
    checkpoint = find_checkpoint(IDS.get(model, model))
    template = template_of(checkpoint)
    dtype_name = options.dtype
    device, dtype = choose(options.device, dtype_name)
    if dtype_name == "auto" and device.type == "cuda":
        dtype = torch.float16
    import transformers

    kind = {"llava": "LlavaForConditionalGeneration", "llava_next": "LlavaNextForConditionalGeneration"}
    processor = None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True)
        if checkpoint.config["model_type"] == "llava_next":
            processor = transformers.AutoProcessor.from_pretrained(
                checkpoint.folder, local_files_only=True, backend="pil"
            )
    except Exception as error:  # damaged files make it fail in any way
        said = f"its tokenizer or processor cannot be made: {reason(error):.300}"
        raise ModelError(f"{checkpoint.folder}: {said}") from error
    loaded = load_model(getattr(transformers, kind[checkpoint.config["model_type"]]), checkpoint, device, dtype)
    return adapter_of(
        loaded,
        tokenizer,
        template=template,
        processor=processor,
        name=model if model in IDS else checkpoint.name,
        weights=checkpoint.weights,
        sharing=options.sharing,
    )


def adapter_of(
    model: Any,
    tokenizer: Any,
    *,
    template: TemplateConfig,
    name: str,
    weights: str,
    processor: Any = None,
    sharing: bool = True,
    untrained: bool = False,
) -> PrefixAdapter:
    """A loaded LLaVA and its tokenizer as an adapter; LLaVA-1.6 needs its processor as well."""
    eos = end_tokens(model, tokenizer)
    pad = next((token for token in (tokenizer.pad_token_id, *eos) if token is not None), 0)
    decode_greedily(model, eos, pad)
    # Rows that LLaVA's converters appended, `<image>` first, are nothing that the model could say.
    rows = model.config.get_text_config().vocab_size
    vocabulary = min(rows, model.config.image_token_id, len(tokenizer))
    if any(token >= vocabulary for token in eos):
        raise ModelError(f"{name}: the end mark {eos} is not below the {vocabulary} tokens that can be said")
    talk: LlavaConversations
    if processor is None:
        size = model.config.vision_config.image_size
        talk = Llava15(tokenizer, template, model.config.image_token_id, size, _image_tokens(model.config))
        pixels: dict[str, Any] = {"preprocessing": asdict(CLIP) | {"size": size}}
    else:
        talk = Llava16(tokenizer, template, model.config.image_token_id, processor)
        pixels = {"preprocessing": f"{type(processor.image_processor).__name__} of transformers"}
    check_tokens(talk, name)
    engine = PrefixEngine(model, eos=eos, vocabulary=vocabulary, pad=pad, finish=talk.finish)
    dtype = str(model.dtype).removeprefix("torch.")
    shared = check_sharing(engine, talk, name, wanted=sharing)
    engine.images_encoded = 0
    info = AdapterInfo(
        name=name,
        weights=weights,
        device=model.device.type,
        dtype=dtype,
        image_tokens=_image_tokens(model.config),
        untrained=untrained,
        settings={
            "template": template.name,
            **pixels,
            "vision_feature_layer": model.config.vision_feature_layer,
            "vision_feature_select_strategy": model.config.vision_feature_select_strategy,
            "vocabulary": vocabulary,
            "eos": eos,
            "decoding": "greedy",
            "attention": model.config.get_text_config()._attn_implementation,
            "kernels": engine.kernels.name,
            "sharing": shared.why,
        },
    )
    return PrefixAdapter(info, engine, talk, shared)


# =============================================================================
# What is said
# =============================================================================


class LlavaConversations(Conversations):
    """A template's pieces, each tokenised on its own."""

    def __init__(self, tokenizer: Any, template: TemplateConfig, image_token: int) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.image_token = image_token
        before, *_ = render(template, [("", None)], image=True)
        self.opening = self._encode(before.text, first=True)

    def prompt(self, text: str, *, image: bool) -> str:
        return "".join(segment.text for segment in render(self.template, [(text, None)], image=image))

    def asked(self, text: str, *, image: bool) -> list[int]:
        [ids] = self.all_asked([text], image=image)
        if isinstance(ids, Unaskable):
            raise ids
        return ids

    def all_asked(self, texts: Sequence[str], *, image: bool) -> list[list[int] | Unaskable]:
        # Together: a text at a time takes three times as long, a sixth of what the answers take on a GPU.
        found = self._encode_all([self._behind(text, image=image) for text in texts], first=not image)
        mark = Unaskable("the text of the question holds the mark of an image, <image>")
        return [mark if self.image_token in ids else ids for ids in found]

    def continuation(self, text: str, answer: str, *, image: bool) -> list[int]:
        # As in training, where the answer stood behind the prompt in one text: " A" becomes the one token that
        # means a word's beginning.
        before = self._behind(text, image=image)
        asked = self._encode(before, first=not image)
        said = answer_text(self.template, answer)
        together = self._encode(before + said, first=not image)
        return (
            together[len(asked) :]
            if together[: len(asked)] == asked and len(together) > len(asked)
            else (self._encode(said, first=False) or [self.tokenizer.unk_token_id or 0])
        )

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def finish(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What is done to the inputs on the device."""
        return inputs

    def whole(self, prepared: Any | None, text: str) -> Mapping[str, Tensor]:
        behind = self.asked(text, image=prepared is not None)
        if prepared is None:
            return {"input_ids": torch.tensor([behind])}
        prefix = self.prefix(prepared)
        return {"input_ids": torch.tensor([[*prefix.ids, *behind]]), **prefix.inputs}

    def _behind(self, text: str, *, image: bool) -> str:
        """What stands behind the image, or everything if there is none."""
        segments = render(self.template, [(text, None)], image=image)
        return "".join(segment.text for segment in segments[2 if image else 0 :])

    def _encode(self, text: str, *, first: bool) -> list[int]:
        return self._encode_all([text], first=first)[0]

    def _encode_all(self, texts: Sequence[str], *, first: bool) -> list[list[int]]:
        """Tokens of pieces; `<s>` stands before the first one of a conversation alone."""
        if not texts:
            return []
        begin = self.tokenizer.bos_token_id
        found = []
        for ids in self.tokenizer(list(texts), return_attention_mask=False).input_ids:
            bare = list(ids[1:] if begin is not None and ids[:1] == [begin] else ids)
            found.append([begin, *bare] if first and begin is not None else bare)
        return found


class Llava15(LlavaConversations):
    """LLaVA-1.5: one square picture, always as many tokens; kept as bytes, normalised on the device."""

    def __init__(self, tokenizer: Any, template: TemplateConfig, image_token: int, size: int, tokens: int) -> None:
        super().__init__(tokenizer, template, image_token)
        self.size = size
        self.tokens = tokens
        self._table = normalisation_table(CLIP)

    def prepare(self, image: Image.Image) -> Tensor:
        return prepare(image, self.size, CLIP)  # uint8 [3, size, size]

    def prefix(self, prepared: Any) -> Prefix:
        return Prefix([*self.opening, *[self.image_token] * self.tokens], {"pixel_values": prepared[None]})

    def finish(self, inputs: dict[str, Any]) -> dict[str, Any]:
        pixels = inputs.get("pixel_values")
        if pixels is None:
            return inputs
        self._table = self._table.to(pixels.device)
        channels = torch.arange(3, device=pixels.device)[:, None, None]
        return inputs | {"pixel_values": self._table[channels, pixels.long()]}  # [i, 3, size, size]


class Llava16(LlavaConversations):
    """LLaVA-1.6: tiles of the picture and the whole of it, as transformers' processor makes them."""

    def __init__(self, tokenizer: Any, template: TemplateConfig, image_token: int, processor: Any) -> None:
        super().__init__(tokenizer, template, image_token)
        self._processors = threading.local()  # a tokenizer is not to be used by two threads at once
        self._processor = processor

    def prepare(self, image: Image.Image) -> dict[str, Any]:
        if not hasattr(self._processors, "own"):
            self._processors.own = deepcopy(self._processor)
        processor = self._processors.own
        made = processor(images=[image.convert("RGB")], text=[processor.image_token], return_tensors="pt")
        tokens = int((made["input_ids"] == self.image_token).sum())
        return {"tokens": tokens, "pixel_values": made["pixel_values"], "image_sizes": made["image_sizes"]}

    def prefix(self, prepared: Any) -> Prefix:
        inputs = {name: prepared[name] for name in ("pixel_values", "image_sizes")}
        return Prefix([*self.opening, *[self.image_token] * prepared["tokens"]], inputs)


# =============================================================================
# What is checked
# =============================================================================


def template_of(checkpoint: HubCheckpoint) -> TemplateConfig:
    """The conversation that a checkpoint was trained with. Raises `ModelError` for what is no LLaVA-1.5 or 1.6."""
    config = checkpoint.config
    if "mm_vision_tower" in config:
        twin = _TWINS.get(checkpoint.name)
        raise ModelError(
            f"{checkpoint.folder} is in LLaVA's original format, without its vision tower. Take the same parameters in "
            f"transformers' format: --model llava:{twin or 'llava-hf/NAME-hf'}"
        )
    kind = config.get("model_type")
    if kind not in ("llava", "llava_next"):
        raise ModelError(f"{checkpoint.folder}: expected the model_type llava or llava_next, found {kind!r}")
    layer, strategy = config.get("vision_feature_layer", -2), config.get("vision_feature_select_strategy", "default")
    tower = config.get("vision_config", {}).get("model_type", "clip_vision_model")
    if layer != -2 or strategy != "default" or tower != "clip_vision_model":
        raise ModelError(
            f"{checkpoint.folder}: LLaVA takes hidden state -2 of a CLIP tower without the class token (`default`), "
            f"found layer {layer}, {strategy!r}, {tower}. Its own processor may know better: --model hf:..."
        )
    language = config.get("text_config", {}).get("model_type", "llama")
    if language == "llama" and config.get("text_config", {}).get("vocab_size", 32064) <= 32064:
        return TemplateConfig("llava_v1")
    if language == "mistral" and kind == "llava_next":
        return TemplateConfig("llava_mistral")
    raise ModelError(
        f"{checkpoint.folder}: LLaVA's templates known here are for Vicuna and Mistral, found a {language} language "
        f"model; its own chat template may know better: --model hf:..."
    )


def check_tokens(talk: LlavaConversations, name: str) -> None:
    """Raises `ModelError` unless the pieces have the tokens that LLaVA was trained with."""
    begin = talk.tokenizer.bos_token_id
    after = talk.asked("What?", image=True)
    if begin is not None and (talk.opening.count(begin) > 1 or begin in after):
        raise ModelError(f"{name}: the tokenizer puts its first token into the middle of a conversation")
    if talk.template.name == "llava_v1" and talk.tokenizer.convert_ids_to_tokens(29871) == "▁":  # Vicuna's
        length, first, last = _VICUNA_BEFORE
        opening = tuple(talk.opening)
        if len(opening) != length or opening[:1] != first or opening[-len(last) :] != last:
            raise ModelError(
                f"{name}: before the image LLaVA had {length} tokens, {first[0]} ... {last}; this tokenizer makes "
                f"{len(opening)}: {opening}. Its `legacy` setting must be true."
            )
        first, last = _VICUNA_AFTER
        if tuple(after[: len(first)]) != first or tuple(after[-len(last) :]) != last:
            raise ModelError(
                f"{name}: a question begins with {first} and ends with {last}; this tokenizer makes {after}. "
                "Its `legacy` setting must be true."
            )


def _image_tokens(config: Any) -> int:
    return (config.vision_config.image_size // config.vision_config.patch_size) ** 2


def _refuse_original_id(model: str) -> None:
    owner, _, name = model.partition("/")
    if owner == "liuhaotian":
        raise ModelError(
            f"{model} is in LLaVA's original format, without its vision tower. Take the same parameters in "
            f"transformers' format: --model llava:{_TWINS.get(name, 'llava-hf/NAME-hf')}"
        )
