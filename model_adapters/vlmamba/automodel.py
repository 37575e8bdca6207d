"""A checkpoint folder in transformers, without remote code: importing this module registers the model.

    import vlmamba_eval.model_adapters.vlmamba.automodel
    from transformers import AutoModelForImageTextToText
    model = AutoModelForImageTextToText.from_pretrained("FOLDER")

`model.answer(image, question)` then answers as `vlmamba-eval` would. `AutoConfig` and `AutoModel` know it too, and
`AutoTokenizer` reads the folder's tokenizer.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from vlmamba_eval.model_adapters.shared.pixels import prepare
from vlmamba_eval.model_adapters.shared.template import render
from vlmamba_eval.types import ModelError, UsageError

from . import checkpoint
from .config import FORMAT, MODEL_TYPE, ModelConfig, from_dict, to_dict
from .language_model import FLOAT32_PARAMETERS
from .model import VLMamba

_FIELDS = ("format", *(field.name for field in dataclasses.fields(ModelConfig)))


class VLMambaConfig(PreTrainedConfig):
    """A checkpoint's `config.json` as transformers wants it: the fields of `config.ModelConfig` as attributes."""

    model_type = MODEL_TYPE

    def model_config(self) -> ModelConfig:
        """Typed and checked. Raises `ModelError`."""
        known = {name: getattr(self, name) for name in _FIELDS if hasattr(self, name)}
        return from_dict(known, getattr(self, "name_or_path", "") or "the configuration")

    @classmethod
    def of(cls, config: ModelConfig) -> VLMambaConfig:
        """From the project's own configuration."""
        return cls(**{**to_dict(config), "format": FORMAT})


class VLMambaForConditionalGeneration(PreTrainedModel):
    """A VL-Mamba as a model of transformers. Parameters have the names that they have in the folder."""

    config_class = VLMambaConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _no_split_modules = {"Block"}  # noqa: RUF012 - as the base class declares it
    _keep_in_fp32_modules_strict = {name.strip(".") for name in FLOAT32_PARAMETERS}  # noqa: RUF012

    def __init__(self, config: VLMambaConfig):
        super().__init__(config)
        model = VLMamba(config.model_config())
        self.vision, self.connector, self.language_model = model.vision, model.connector, model.language_model
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing is drawn: a folder holds every parameter."""

    @property
    def model_config(self) -> ModelConfig:
        return cast(VLMambaConfig, self.config).model_config()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.backbone.embedding

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None) -> Tensor:
        """Ids [b, l] with -1 where an image's embeddings stand, uint8 pixels [i, 3, h, w] -> [b, l, d_model]."""
        embeds = self.language_model.embed(input_ids.clamp(min=0))
        places = (input_ids.flatten() < 0).nonzero()[:, 0]
        if pixel_values is None or not len(pixel_values):
            if len(places):
                raise UsageError("input_ids has places for images (-1), but there are no pixel_values")
            return embeds
        config = self.model_config
        if len(places) != len(pixel_values) * config.vision.image_tokens:
            raise UsageError(
                f"{len(pixel_values)} images take {len(pixel_values) * config.vision.image_tokens} places (-1) in "
                f"input_ids, found {len(places)}"
            )
        images = self.connector(self.vision(pixel_values), config.vision.grid)  # [i, t, d_model]
        flat = embeds.flatten(0, 1)
        return flat.index_copy(0, places, images.flatten(0, 1).to(flat.dtype)).view_as(embeds)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> CausalLMOutput | tuple[Tensor, ...]:
        """Logits [b, l, v] of rows padded on the right, and with `labels` [b, l] (-100: none) the mean loss.

        `input_ids` holds -1 where an image's embeddings stand; `inputs` makes them, and `pixel_values`, from an image
        and a question.
        """
        x, _state = self.language_model(self.embed(input_ids, pixel_values))
        logits = self.language_model.logits(x)  # [b, l, v]
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return CausalLMOutput(loss=cast(Any, loss), logits=cast(Any, logits))

    def inputs(self, question: str, image: Image.Image | None = None) -> dict[str, Tensor]:
        """`input_ids` [1, l] and `pixel_values` of a question in the model's own template."""
        config, device = self.model_config, self.device
        ids: list[int] = []
        for segment in render(config.template, [(question, None)], image=image is not None):
            if segment.kind == "image":
                ids += [-1] * config.vision.image_tokens
            else:
                ids += self._tokenizer().encode(segment.text, add_special_tokens=False).ids
        found = {"input_ids": torch.tensor([ids], device=device)}
        if image is not None:
            found["pixel_values"] = prepare(image, config.vision.image_size, config.preprocessing)[None].to(device)
        return found

    @torch.no_grad()
    def answer(self, image: Image.Image | None, question: str, max_new_tokens: int = 128) -> str:
        """The likeliest answer, token by token, without special tokens and blanks at its ends.

        One question at a time; for many questions of many images take `vlmamba-eval`, which reads an image once.
        """
        config, tokenizer = self.model_config, self._tokenizer()
        given = self.inputs(question, image)
        x, state = self.language_model.prefill(self.embed(given["input_ids"], given.get("pixel_values")))
        x, said = x[:, -1], list[int]()
        for _ in range(max_new_tokens):
            token = self.language_model.logits(x)[:, : tokenizer.get_vocab_size()].argmax(-1)
            if int(token) == config.tokenizer.eos_token_id:
                break
            said.append(int(token))
            x = self.language_model.step(token, state)
        return tokenizer.decode(said, skip_special_tokens=True).strip()

    def _tokenizer(self) -> Any:
        if not hasattr(self, "_loaded_tokenizer"):
            from huggingface_hub import hf_hub_download

            name = self.config.name_or_path or ""
            path = Path(name) / "tokenizer.json"
            if not path.is_file():
                if not name or Path(name).exists():
                    raise ModelError(f"{path}: expected the tokenizer of the folder that the model was loaded from")
                path = Path(hf_hub_download(name, "tokenizer.json"))
            self._loaded_tokenizer = checkpoint.load_tokenizer(path, self.model_config)
        return self._loaded_tokenizer


def register() -> None:
    """Make the classes known to transformers; doing it again changes nothing."""
    AutoConfig.register(MODEL_TYPE, VLMambaConfig, exist_ok=True)
    for auto in (AutoModel, AutoModelForImageTextToText):
        auto.register(VLMambaConfig, VLMambaForConditionalGeneration, exist_ok=True)


register()
