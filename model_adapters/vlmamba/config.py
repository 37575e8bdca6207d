"""Everything that decides what a VL-Mamba computes, as typed, named fields; the paper's models as presets.

The paper leaves many points open. Each of them is a field here whose default is this project's reading; none is
guessed silently, and a checkpoint's `config.json` must state them all.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta

from vlmamba_eval.model_adapters.shared.configuration import read_json, shorten
from vlmamba_eval.model_adapters.shared.pixels import PreprocessingConfig
from vlmamba_eval.model_adapters.shared.template import TemplateConfig
from vlmamba_eval.strict_json import parse_json
from vlmamba_eval.types import ModelError

FORMAT = "vlmamba-1"
MODEL_TYPE = "vlmamba"
"""What transformers knows the model as: see `automodel`."""

# Keys that transformers puts into a config.json, or looks for there; they decide nothing here.
_OF_TRANSFORMERS = {"model_type", "architectures", "transformers_version", "dtype", "torch_dtype"}

# Far beyond every published model, and small enough that an absurd file can take neither memory nor time.
Width = Annotated[int, Meta(ge=1, le=2**16)]
Layers = Annotated[int, Meta(ge=1, le=1024)]
Few = Annotated[int, Meta(ge=1, le=1024)]
Pixels = Annotated[int, Meta(ge=1, le=4096)]
Tokens = Annotated[int, Meta(ge=1, le=2**24)]
TokenId = Annotated[int, Meta(ge=0, lt=2**24)]
Epsilon = Annotated[float, Meta(gt=0, le=1)]

# =============================================================================
# The parts
# =============================================================================


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The vision encoder, as transformers' `SiglipVisionModel` or `CLIPVisionModel` builds it.

    `feature_layer` indexes the hidden states as transformers lists them (0: embeddings, -1: the last layer's output);
    layers above it are neither stored nor run. The class token, if there is one, is dropped.
    """

    kind: Literal["siglip", "clip"]
    image_size: Pixels
    patch_size: Pixels
    hidden_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Few
    intermediate_size: Width
    layer_norm_eps: Epsilon
    hidden_act: Literal["gelu", "gelu_pytorch_tanh", "quick_gelu"]
    feature_layer: int = -2

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def image_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def layers_used(self) -> int:
        """How many encoder layers stand before the chosen hidden state."""
        index = self.feature_layer
        return index if index >= 0 else self.num_hidden_layers + 1 + index


@dataclass(frozen=True, slots=True)
class ConnectorConfig:
    """The multimodal connector (paper eq. 5 and 6, figures 2 and 3).

    The VSS runs at the language model's width in `vss_l2` and at the encoder's in `vss_mlp`, where the skip adds the
    encoder's features. `blocks`: one Mamba block for all scan directions ("one mamba layer"), or one for each.
    """

    kind: Literal["mlp", "vss_mlp", "vss_l2"]
    scan: Literal["bsm", "csm"] = "bsm"
    blocks: Literal["shared", "per_direction"] = "shared"
    merge: Literal["sum", "mean"] = "sum"
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: Epsilon = 1e-5
    d_state: Few = 16
    d_conv: Few = 4
    expand: Few = 2


@dataclass(frozen=True, slots=True)
class LanguageModelConfig:
    """A Mamba-1 language model with the names of state-spaces/mamba's `config.json`."""

    d_model: Width
    n_layer: Layers
    vocab_size: Tokens = 50277
    pad_vocab_size_multiple: Few = 8
    d_state: Few = 16
    d_conv: Few = 4
    expand: Few = 2
    norm_eps: Epsilon = 1e-5

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def dt_rank(self) -> int:
        return -(-self.d_model // 16)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding matrix."""
        multiple = self.pad_vocab_size_multiple
        return -(-self.vocab_size // multiple) * multiple


@dataclass(frozen=True, slots=True)
class Mamba2LanguageModelConfig(LanguageModelConfig):
    """A Mamba-2 language model with the names of state-spaces/mamba's `config.json` and `ssm_cfg`.

    `kind` tells it from a Mamba-1 in JSON. VL-Mamba's paper has no such model: this is an option of ours.
    """

    pad_vocab_size_multiple: Few = 16
    d_state: Few = 128
    kind: Literal["mamba2"] = "mamba2"
    headdim: Few = 64
    ngroups: Few = 1

    def __post_init__(self) -> None:
        heads = self.d_inner // self.headdim if self.headdim > 0 else 0
        if heads * self.headdim != self.d_inner or self.ngroups < 1 or heads % self.ngroups:
            raise ModelError(
                f"language_model: {self.d_inner} channels are no heads of headdim {self.headdim} in ngroups "
                f"{self.ngroups} of equal size"
            )


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """Which tokenizer, and the ids that the engine needs of it. No token is put in front of a text."""

    source: str = "EleutherAI/gpt-neox-20b"
    eos_token_id: TokenId = 0
    pad_token_id: TokenId = 1


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the parameters come from. `untrained` names the parts that were never trained."""

    untrained: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A whole VL-Mamba."""

    name: str
    vision: VisionConfig
    preprocessing: PreprocessingConfig
    connector: ConnectorConfig
    language_model: LanguageModelConfig
    template: TemplateConfig = field(default_factory=TemplateConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        vision = self.vision
        if vision.image_size < vision.patch_size or vision.hidden_size % vision.num_attention_heads:
            raise ModelError(
                f"vision: image_size {vision.image_size} must hold a patch of {vision.patch_size}, and hidden_size "
                f"{vision.hidden_size} must be a multiple of num_attention_heads {vision.num_attention_heads}"
            )
        if not 0 <= vision.layers_used <= vision.num_hidden_layers:
            raise ModelError(
                f"vision.feature_layer must lie between {-vision.num_hidden_layers - 1} and "
                f"{vision.num_hidden_layers}, found {vision.feature_layer}"
            )

    @property
    def scan_width(self) -> int | None:
        """Width of the connector's VSS; None without one."""
        widths = {"mlp": None, "vss_mlp": self.vision.hidden_size, "vss_l2": self.language_model.d_model}
        return widths[self.connector.kind]

    @property
    def architecture(self) -> dict[str, Any]:
        """What fixes the shapes and meaning of the parameters: equal for checkpoints that one model can load."""
        return {name: to_dict(self)[name] for name in ("vision", "connector", "language_model")}


# =============================================================================
# JSON
# =============================================================================

T = TypeVar("T")


def to_dict(config: ModelConfig) -> dict[str, Any]:
    """The configuration as plain data, ready for JSON."""
    return {"format": FORMAT, **parse_json(json.dumps(dataclasses.asdict(config)))}


def from_dict(data: Any, where: str) -> ModelConfig:
    """Read what `to_dict` wrote. Every field must be there and no other: `ModelError` names those that differ.

    `where` names the file in messages.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise ModelError(
            f'{where}: expected a VL-Mamba configuration with "format": "{FORMAT}", found {found!r}. '
            "Build a checkpoint with `vlmamba-eval assemble` or `vlmamba-train`."
        )
    return _read(
        ModelConfig, {key: value for key, value in data.items() if key not in {"format", *_OF_TRANSFORMERS}}, where, ""
    )


def load_config(folder: Path) -> ModelConfig:
    """The configuration of a checkpoint folder."""
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(f"{folder} is no checkpoint: config.json is missing")
    data = read_json(path)
    return from_dict(data, str(path))


def check_fields(config: Any, where: str) -> None:
    """`ModelError` unless every field of a configuration is of its type and within its bounds."""
    _read(type(config), dataclasses.asdict(config), where, "")


def _read(kind: type[T], data: Any, where: str, at: str) -> T:
    if not isinstance(data, dict):
        raise ModelError(f"{where}: {at or 'the file'} must be an object, found {shorten(data)}")
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    missing = sorted(set(names) - set(data))
    unknown = sorted(set(data) - set(names))
    if missing or unknown:
        parts = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"unknown: {', '.join(unknown)}"] * bool(unknown)
        raise ModelError(
            f"{where}: the fields of {at or 'the configuration'} differ from what is known; " + "; ".join(parts)
        )
    values = {name: _value(hints[name], data[name], where, f"{at}.{name}".lstrip(".")) for name in names}
    try:
        return kind(**values)
    except ModelError as error:  # fields that do not go together
        raise ModelError(f"{where}: {error}") from None


def _value(hint: Any, value: Any, where: str, at: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is LanguageModelConfig and isinstance(value, dict) and "kind" in value:
        hint = Mamba2LanguageModelConfig
    if origin is Annotated:
        value = _value(arguments[0], value, where, at)
        if (outside := _outside(value, arguments[1])) is not None:
            raise ModelError(f"{where}: {at} must be {outside}, found {shorten(value)}")
        return value
    if dataclasses.is_dataclass(hint):
        return _read(typing.cast(type, hint), value, where, at)
    if origin is Literal:
        if value in arguments:
            return value
        raise ModelError(f"{where}: {at} must be one of {', '.join(map(repr, arguments))}, found {shorten(value)}")
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            return tuple(_value(kind, item, where, at) for kind, item in zip(kinds, value, strict=True))
    elif origin is dict and isinstance(value, dict):
        return {_value(arguments[0], k, where, at): _value(arguments[1], v, where, at) for k, v in value.items()}
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and not isinstance(hint, types.GenericAlias) and type(value) is hint:
        return value
    raise ModelError(f"{where}: {at} must be {getattr(hint, '__name__', None) or hint}, found {shorten(value)}")


def _outside(value: float, bounds: Meta) -> str | None:
    """What a number should be, if it is not."""
    tests = (
        ("at least", bounds.ge, lambda bound: value >= bound),
        ("more than", bounds.gt, lambda bound: value > bound),
        ("at most", bounds.le, lambda bound: value <= bound),
        ("less than", bounds.lt, lambda bound: value < bound),
    )
    return next((f"{text} {bound:,}" for text, bound, holds in tests if bound is not None and not holds(bound)), None)


# =============================================================================
# Presets
# =============================================================================

# google/siglip-so400m-patch14-384: 27 x 27 = 729 tokens of width 1152.
SIGLIP = VisionConfig(
    kind="siglip",
    image_size=384,
    patch_size=14,
    hidden_size=1152,
    num_hidden_layers=27,
    num_attention_heads=16,
    intermediate_size=4304,
    layer_norm_eps=1e-6,
    hidden_act="gelu_pytorch_tanh",
)
# openai/clip-vit-large-patch14-336: 24 x 24 = 576 tokens of width 1024.
CLIP = VisionConfig(
    kind="clip",
    image_size=336,
    patch_size=14,
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    layer_norm_eps=1e-5,
    hidden_act="quick_gelu",
)
SIGLIP_PIXELS = PreprocessingConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CLIP_PIXELS = PreprocessingConfig(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))

# The sizes of state-spaces/mamba-*.
MAMBA = {
    "130m": LanguageModelConfig(d_model=768, n_layer=24),
    "370m": LanguageModelConfig(d_model=1024, n_layer=48),
    "790m": LanguageModelConfig(d_model=1536, n_layer=48),
    "1.4b": LanguageModelConfig(d_model=2048, n_layer=48),
    "2.8b": LanguageModelConfig(d_model=2560, n_layer=64),
    "mamba2-2.7b": Mamba2LanguageModelConfig(d_model=2560, n_layer=64),
}

HUB = {
    "siglip": "google/siglip-so400m-patch14-384",
    "clip": "openai/clip-vit-large-patch14-336",
    "1.4b": "state-spaces/mamba-1.4b",
    "2.8b": "state-spaces/mamba-2.8b",
    "2.8b-slimpj": "state-spaces/mamba-2.8b-slimpj",
    "mamba2-2.7b": "state-spaces/mamba2-2.7b",
}


def _preset(name: str, encoder: Literal["siglip", "clip"], size: str, connector: ConnectorConfig) -> ModelConfig:
    return ModelConfig(
        name=name,
        vision=SIGLIP if encoder == "siglip" else CLIP,
        preprocessing=SIGLIP_PIXELS if encoder == "siglip" else CLIP_PIXELS,
        connector=connector,
        language_model=MAMBA[size.removesuffix("-slimpj")],
        provenance=Provenance(sources={"vision": HUB[encoder], "language_model": HUB[size]}),
    )


_MLP = ConnectorConfig("mlp")
_VSS_MLP = ConnectorConfig("vss_mlp")
_VSS_L2 = ConnectorConfig("vss_l2")

# `provenance.sources` of a preset names the published parts that `assemble` takes by default.
PRESETS: dict[str, ModelConfig] = {
    preset.name: preset
    for preset in (
        _preset("vlmamba-2.8b", "siglip", "2.8b-slimpj", _VSS_L2),
        _preset("vlmamba-1.4b", "siglip", "1.4b", _VSS_L2),
        # Table 2: the language model, with CLIP and the MLP.
        _preset("vlmamba-1.4b-clip-mlp", "clip", "1.4b", _MLP),
        _preset("vlmamba-2.8b-pile-clip-mlp", "clip", "2.8b", _MLP),
        _preset("vlmamba-2.8b-clip-mlp", "clip", "2.8b-slimpj", _MLP),
        # Tables 3 and 4: the encoder, then the connector. The last row of both is vlmamba-2.8b.
        _preset("vlmamba-2.8b-mlp", "siglip", "2.8b-slimpj", _MLP),
        _preset("vlmamba-2.8b-vss-mlp", "siglip", "2.8b-slimpj", _VSS_MLP),
        # Table 5: the scan.
        _preset("vlmamba-2.8b-csm", "siglip", "2.8b-slimpj", replace(_VSS_L2, scan="csm")),
        # Not in the paper: a Mamba-2 in the place of the language model.
        _preset("vlmamba-mamba2-2.7b", "siglip", "mamba2-2.7b", _VSS_L2),
        # The same code at a size that runs anywhere; trained on the bundled kind of scenes.
        ModelConfig(
            name="vlmamba-tiny",
            vision=VisionConfig(
                kind="siglip",
                image_size=128,
                patch_size=16,
                hidden_size=192,
                num_hidden_layers=6,
                num_attention_heads=6,
                intermediate_size=512,
                layer_norm_eps=1e-6,
                hidden_act="gelu_pytorch_tanh",
                feature_layer=-1,
            ),
            preprocessing=SIGLIP_PIXELS,
            connector=_VSS_L2,
            language_model=LanguageModelConfig(d_model=192, n_layer=6, vocab_size=1024),
            tokenizer=TokenizerConfig(source="vlmamba-tiny"),
        ),
    )
}
