"""mmMamba's layers.

Eight layers of the published `embedding_model` and twenty-four of its `language_model` run one after another over image
and text alike, all of them causal: here they are one stack. Each is norm, mixer, residual, norm, SwiGLU, residual.

The Mamba-2 mixer has the heads of the attention that it was distilled from: v is x, k is B and q is C of `ssd`; keys
and values are shared by groups of heads; there is no skip D; the output is normed head by head, then gated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmamba_eval.model_adapters.hybrid.checkpoint import Facts
from vlmamba_eval.model_adapters.hybrid.model import HybridModel
from vlmamba_eval.model_adapters.hybrid.reading import Mixer, Now, Rope
from vlmamba_eval.model_adapters.vlmamba.language_model import RMSNorm
from vlmamba_eval.model_adapters.vlmamba.linear import pack, pack_all
from vlmamba_eval.model_adapters.vlmamba.scan import WHOLE, Layout, causal_conv, causal_conv_step
from vlmamba_eval.model_adapters.vlmamba.ssd import state_space_dual, state_space_dual_step
from vlmamba_eval.model_adapters.vlmamba.ssd.gated_norm import gated_norm

from .tiles import normalisation_table

# The published files hold convolutions of this width, and norms of heads with this epsilon.
_D_CONV = 2
_HEAD_NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class MMMambaConfig:
    """What decides the shape of an mmMamba. `layers` are the kinds of all layers, the embedding's first."""

    hidden_size: int
    heads: int
    kv_heads: int
    intermediate_size: int
    embedding_layers: int
    layers: tuple[Literal["mamba2", "mha"], ...]
    vocab_size: int
    image_size: int
    patch_size: int
    norm_eps: float
    rope_theta: float
    image_token: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    @property
    def tile_tokens(self) -> int:
        """Embeddings of one tile: four patches each."""
        return (self.image_size // self.patch_size // 2) ** 2


def config_of_published(data: dict[str, object], where: str) -> MMMambaConfig:
    """Read a published `config.json`; `ModelError` names everything that is not as this code expects it."""
    facts = Facts(data, where)
    facts.expect("model_type", "mmMamba_chat")
    facts.expect("template", "internlm2-chat")
    facts.expect("downsample_ratio", 0.5, default=0.5)
    facts.expect("ps_version", "v2")
    facts.expect("use_thumbnail", True)
    facts.expect("normalize_encoder_output", False, default=False)
    embedding, llm = facts.part("embedding_config"), facts.part("llm_config")
    embedding.expect("pixel_shuffle_loc", "pre", default="pre")
    embedding.expect("use_pixel_shuffle_proj", True)
    embedding.expect("downsample_ratio", 0.5, default=0.5)
    embedding.expect("special_token_maps", {}, default={})
    embedding.expect("use_ls", False, default=False)
    embedding.expect("num_channels", 3, default=3)
    for part in (embedding, llm):
        part.expect("hidden_act", "silu", default="silu")
    keys = ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    sizes = [embedding.size(key) for key in keys]
    for key, size in zip(keys, sizes, strict=True):
        llm.expect(key, size)
    for key in ("rms_norm_eps", "rope_theta"):
        llm.expect(key, embedding.get(key, (int, float)))
    kinds: list[str] = []
    for part in (embedding, llm):
        blocks = part.get("layers_block_type", list)
        part.expect("num_hidden_layers", len(blocks))
        kinds += blocks
    vocab_size = llm.size("vocab_size", 2**24)
    embedding.expect("llm_vocab_size", vocab_size, default=vocab_size)
    image_size = embedding.size("image_size", 2**14)
    facts.expect("force_image_size", image_size, None)
    facts.check("an mmMamba")
    unknown = [kind for kind in kinds if kind not in ("mamba2", "mha")]
    if unknown:
        facts.expect("layers_block_type", "mamba2", "mha", default=unknown[0])
        facts.check("an mmMamba")
    return MMMambaConfig(
        *sizes,
        embedding_layers=len(embedding.get("layers_block_type", list)),
        layers=cast("tuple[Literal['mamba2', 'mha'], ...]", tuple(kinds)),
        vocab_size=vocab_size,
        image_size=image_size,
        patch_size=embedding.size("patch_size", 2**14),
        norm_eps=float(embedding.get("rms_norm_eps", (int, float))),
        rope_theta=float(embedding.get("rope_theta", (int, float))),
        image_token=embedding.get("img_context_token_id", int),
    )


class MMMambaMixer(nn.Module):
    """The Mamba-2 mixer, with the methods of `vlmamba.mamba2.Mamba2Mixer`."""

    def __init__(self, config: MMMambaConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        width, kv = config.hidden_size, config.kv_heads * config.head_dim
        self.wvkqgdt: nn.Module = nn.Linear(config.hidden_size, 2 * kv + 2 * width + config.heads, bias=False)
        self.conv1d = nn.Conv1d(2 * kv + width, 2 * kv + width, _D_CONV, groups=2 * kv + width, padding=_D_CONV - 1)
        self.A_log_bias = nn.Parameter(torch.empty(config.heads))
        self.dt_bias = nn.Parameter(torch.empty(config.heads))
        self.g_norm_swish_gate = RMSNorm(config.head_dim, _HEAD_NORM_EPS)
        self.o_proj: nn.Module = nn.Linear(width, config.hidden_size, bias=False)

    @property
    def tail_shape(self) -> tuple[int, int]:
        return _D_CONV - 1, self.conv1d.in_channels

    @property
    def state_shape(self) -> tuple[int, int, int]:
        return self.heads, self.head_dim, self.head_dim

    @property
    def dtype(self) -> torch.dtype:
        return self.conv1d.weight.dtype

    def prepare_for_inference(self) -> None:
        self.wvkqgdt, self.o_proj = pack(self.wvkqgdt), pack(self.o_proj)

    def forward(
        self,
        u: Tensor,
        tail: Tensor | None = None,
        state: Tensor | None = None,
        layout: Layout = WHOLE,
    ) -> tuple[Tensor, Tensor, Tensor]:
        vkq, g, dt = self._split(u)
        vkq, tail = causal_conv(vkq, self.conv1d.weight[:, 0], self.conv1d.bias, tail=tail, layout=layout)
        v, k, q = self._heads(vkq)
        y, state = state_space_dual(
            v, dt, self._decay(), k, q, dt_bias=self.dt_bias, state=state, layout=layout
        )  # [b, l, heads, head_dim]
        return self._finish(y, g), tail, state

    def step(self, u: Tensor, tail: Tensor, state: Tensor) -> Tensor:
        vkq, g, dt = self._split(u[:, None])
        vkq, _ = causal_conv_step(vkq, self.conv1d.weight[:, 0], self.conv1d.bias, tail=tail, out=tail)
        v, k, q = self._heads(vkq)
        y, _ = state_space_dual_step(v, dt, self._decay(), k, q, dt_bias=self.dt_bias, state=state, out=state)
        return self._finish(y, g)[:, 0]

    def _decay(self) -> Tensor:
        return -torch.exp(self.A_log_bias.float())

    def _split(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        width = self.heads * self.head_dim
        vkq, g, dt = self.wvkqgdt(u).split([self.conv1d.in_channels, width, self.heads], dim=-1)
        return vkq, g, dt

    def _heads(self, vkq: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """v, k, q [b, l, heads, head_dim]; each head of keys and values serves a group of heads."""
        v, k, q = vkq.unflatten(-1, (-1, self.head_dim)).split([self.kv_heads, self.kv_heads, self.heads], dim=2)
        v, k = (t.repeat_interleave(self.heads // self.kv_heads, dim=2) for t in (v, k))
        return v, k, q

    def _finish(self, y: Tensor, g: Tensor) -> Tensor:
        norm = self.g_norm_swish_gate
        y = gated_norm(y.flatten(-2), g, norm.weight, norm.eps, gate_first=False, dtype=self.dtype, width=self.head_dim)
        return self.o_proj(y)  # [b, l, hidden]


class MMMambaAttention(nn.Module):
    """Attention with shared keys and values; the matrix holds queries, key and value of each head of keys in turn."""

    def __init__(self, config: MMMambaConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        width = (config.heads + 2 * config.kv_heads) * config.head_dim
        self.wqkv: nn.Module = nn.Linear(config.hidden_size, width, bias=False)
        self.wo: nn.Module = nn.Linear(config.heads * config.head_dim, config.hidden_size, bias=False)
        self.rope = Rope(config.head_dim, config.rope_theta)

    def forward(self, u: Tensor, now: Now) -> Tensor:
        """u [b, l, hidden] -> the same."""
        qkv = self.wqkv(u).unflatten(-1, (self.kv_heads, -1, self.head_dim))  # [b, l, kv heads, group + 2, w]
        q, k, v = qkv[..., :-2, :].flatten(2, 3), qkv[..., -2, :], qkv[..., -1, :]
        return self.wo(now.attend(q, k, v, self.rope, self.head_dim**-0.5))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: MMMambaConfig):
        super().__init__()
        self.w1: nn.Module = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3: nn.Module = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2: nn.Module = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self, config: MMMambaConfig, kind: str):
        super().__init__()
        self.attention: MMMambaMixer | MMMambaAttention
        self.attention = MMMambaMixer(config) if kind == "mamba2" else MMMambaAttention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, now: Now) -> Tensor:
        """The residual stream [b, l, hidden] in float32."""
        dtype = self.attention_norm.weight.dtype
        u = self.attention_norm(x).to(dtype)
        if isinstance(self.attention, MMMambaMixer):
            x = x + now.mix(self.attention, u)
        else:
            x = x + self.attention(u, now)
        return x + self.feed_forward(self.ffn_norm(x).to(dtype))


class MMMambaLanguageModel(HybridModel):
    """All layers, with the text's embeddings before and the output matrix behind them."""

    def __init__(self, config: MMMambaConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config, kind) for kind in config.layers])
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.output: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._attends = "mha" in config.layers

    @property
    def mixers(self) -> Sequence[Mixer]:
        layers = cast("list[Layer]", list(self.layers))
        return [layer.attention for layer in layers if isinstance(layer.attention, MMMambaMixer)]

    @property
    def attends(self) -> bool:
        return self._attends

    def embed(self, ids: Tensor) -> Tensor:
        return self.embedding(ids)

    def run(self, x: Tensor, now: Now) -> Tensor:
        for layer in self.layers:
            x = layer(x, now)
        return x

    def logits(self, x: Tensor) -> Tensor:
        return self.output(self.norm(x).to(self.embedding.weight.dtype)).float()


class VisionEmbeddings(nn.Module):
    """Patches, their positions, four neighbouring patches as one embedding, and a projection."""

    def __init__(self, config: MMMambaConfig):
        super().__init__()
        self.side = config.image_size // config.patch_size
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        # The first is the class token's, which mmMamba does not use.
        self.position_embedding = nn.Parameter(torch.empty(1, self.side**2 + 1, config.hidden_size))
        self.proj = nn.Sequential(
            nn.Linear(4 * config.hidden_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )

    def forward(self, tiles: Tensor) -> Tensor:
        """uint8 [n, 3, size, size] -> [n, tile_tokens, hidden]."""
        table = normalisation_table().to(tiles.device, self.position_embedding.dtype)  # [3, 256]
        pixels = table[torch.arange(3, device=tiles.device)[:, None, None], tiles.long()]
        x = self.patch_embedding(pixels).flatten(2).mT + self.position_embedding[:, 1:]  # [n, patches, hidden]
        half = self.side // 2
        x = x.unflatten(1, (half, 2, half, 2))  # rows, row of the four, columns, column of the four
        # An embedding holds its four patches row by row.
        return self.proj(x.transpose(2, 3).flatten(3).flatten(1, 2))


class MMMamba(nn.Module):
    def __init__(self, config: MMMambaConfig):
        super().__init__()
        self.config = config
        self.vision = VisionEmbeddings(config)
        self.language_model = MMMambaLanguageModel(config)

    def embed_images(self, images: Sequence[Tensor]) -> list[Tensor]:
        """The tiles of each image, uint8 [n, 3, size, size] -> its embeddings [n tile_tokens, hidden]."""
        device = self.language_model.embedding.weight.device
        tiles = torch.cat(list(images)).to(device, non_blocking=True)
        found = torch.cat([self.vision(part) for part in tiles.split(32)])  # [all tiles, tile_tokens, hidden]
        return [part.flatten(0, 1) for part in found.split([len(image) for image in images])]

    def prepare_for_inference(self) -> None:
        """Pack the matrices for this machine. The model can be neither trained nor saved afterwards."""
        self.requires_grad_(False)
        self.eval()
        pack_all(self)


def keeps_float32(name: str) -> bool:
    """Whether a parameter of this name stays in float32 in a model of lower precision."""
    return name.endswith((".A_log_bias", ".dt_bias"))


def name_of_published(config: MMMambaConfig, name: str) -> str | None:
    """The parameter of `MMMamba` that a published tensor belongs to; None for those that no answer depends on."""
    if name in ("embedding_model.vision_embeddings.class_embedding", "language_model.model.tok_embeddings.weight"):
        return None
    if match := re.fullmatch(r"embedding_model\.encoder\.(\d+)\.(.+)", name):
        return f"language_model.layers.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"language_model\.model\.layers\.(\d+)\.(.+)", name):
        return f"language_model.layers.{int(match[1]) + config.embedding_layers}.{match[2]}"
    for published, ours in (
        ("embedding_model.vision_embeddings.", "vision."),
        ("embedding_model.pixel_shuffle_proj.", "vision.proj."),
        ("embedding_model.llm_text_embeddings.", "language_model.embedding."),
        ("language_model.model.norm.", "language_model.norm."),
        ("language_model.output.", "language_model.output."),
    ):
        if name.startswith(published):
            return ours + name.removeprefix(published)
    return name
