"""Vision transformers that published models read their images with: SigLIP, CLIP, DINOv2 with registers, EVA-02.

One module for the four, without the libraries that they come from, whose import takes longer than a first answer. What
they share is a patch embedding, learned positions, and blocks of norm, attention, norm, MLP. They differ in this:

                class token  registers  positions of     norm before  layer scale  rotary  norms inside  MLP
    siglip      -            -          patches          -            -            -       -             fc1, act, fc2
    clip        yes          -          class, patches   yes          -            -       -             fc1, act, fc2
    dinov2_reg  yes          yes        patches          -            yes          -       -             fc1, act, fc2
    eva02       yes          -          class, patches   -            -            yes     yes           SwiGLU

Parameters carry the names of transformers' SigLIP and CLIP; `from_published` reads the files of transformers and timm.
Equations: transformers 5.24 (models/siglip, clip, dinov2_with_registers), timm 1.0 (models/eva.py; layers/
pos_embed_sincos.py for the rotation); tests/model_adapters/shared/test_vision_tower.py compares with both.

Glossary: i images; t tokens (p patches, class token and registers in front); c width; a heads of d numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmamba_eval.types import ModelError

from .device import without_memory

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}
"""The activations by the names that configurations give them."""


@dataclass(frozen=True, slots=True)
class TowerConfig:
    """A tower as far as it is run: `layers` blocks, then the final norm if `final_norm`.

    `registers` is for dinov2_reg alone, `rotary_grid` for eva02 alone: the side of the grid that its rotation was
    trained on, to which the coordinates of any other grid are scaled.
    """

    kind: Literal["siglip", "clip", "dinov2_reg", "eva02"]
    image_size: int
    patch_size: int
    hidden_size: int
    layers: int
    num_attention_heads: int
    intermediate_size: int
    layer_norm_eps: float
    hidden_act: str
    final_norm: bool = False
    registers: int = 0
    rotary_grid: int = 0

    @property
    def side(self) -> int:
        """Patches in a row, and rows."""
        return self.image_size // self.patch_size

    @property
    def leading(self) -> int:
        """Tokens in front of the patches."""
        return (self.kind != "siglip") + self.registers

    @property
    def positions(self) -> int:
        """Rows of the position embedding."""
        return self.side**2 + (self.kind in ("clip", "eva02"))


class _Embeddings(nn.Module):
    def __init__(self, config: TowerConfig):
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        if config.kind != "siglip":
            self.class_embedding = nn.Parameter(torch.zeros(width))
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(config.registers, width))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=config.kind != "clip")
        self.position_embedding = nn.Embedding(config.positions, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """[i, 3, h, w] -> [i, t, c]"""
        kind, positions = self.config.kind, self.position_embedding.weight
        x = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype)).flatten(2)  # [i, c, p]
        # Sums keep their terms' order in memory: laid out here, or every layer would copy.
        x = x.transpose(1, 2).contiguous()  # [i, p, c]
        if kind == "siglip":
            return x + positions
        leading = self.class_embedding.expand(len(x), 1, -1)  # [i, 1, c]
        if kind == "dinov2_reg":
            registers = self.register_tokens.expand(len(x), -1, -1)  # [i, r, c]
            return torch.cat([leading, registers, x + positions], dim=1)
        return torch.cat([leading, x], dim=1) + positions


class _Attention(nn.Module):
    def __init__(self, config: TowerConfig):
        super().__init__()
        width, eva = config.hidden_size, config.kind == "eva02"
        self.heads = config.num_attention_heads
        self.q_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(3))
        self.k_proj = nn.Linear(width, width, bias=not eva)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps) if eva else nn.Identity()

    def forward(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """[i, t, c] -> [i, t, c]"""
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # [i, a, t, d]
        if rotation is not None:
            q, k = _rotate(q, rotation), _rotate(k, rotation)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [i, t, c]
        return self.out_proj(self.norm(x))


class _MLP(nn.Module):
    def __init__(self, config: TowerConfig):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.act = ACTIVATIONS[config.hidden_act]
        self.gated = config.kind == "eva02"
        if self.gated:
            self.fc1_g, self.fc1_x = nn.Linear(width, inner), nn.Linear(width, inner)
            self.norm = nn.LayerNorm(inner, config.layer_norm_eps)
        else:
            self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            return self.fc2(self.norm(self.act(self.fc1_g(x)) * self.fc1_x(x)))
        return self.fc2(self.act(self.fc1(x)))


class _Layer(nn.Module):
    def __init__(self, config: TowerConfig):
        super().__init__()
        width = config.hidden_size
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(width, config.layer_norm_eps) for _ in range(2))
        self.self_attn, self.mlp = _Attention(config), _MLP(config)
        self.scaled = config.kind == "dinov2_reg"
        if self.scaled:
            self.layer_scale1, self.layer_scale2 = (nn.Parameter(torch.ones(width)) for _ in range(2))

    def forward(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        y = self.self_attn(self.layer_norm1(x), rotation)
        x = x + (y * self.layer_scale1 if self.scaled else y)
        y = self.mlp(self.layer_norm2(x))
        return x + (y * self.layer_scale2 if self.scaled else y)


class _Encoder(nn.Module):
    """The level that transformers' parameter names have."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.layers = nn.ModuleList([_Layer(config) for _ in range(config.layers)])


class Tower(nn.Module):
    """Any of the four towers. What stands above the last layer that is read does not exist here."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.tower_config = config
        self.embeddings = _Embeddings(config)
        if config.kind == "clip":
            self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.encoder = _Encoder(config)
        if config.final_norm:
            self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [i, 3, h, w] -> features of the patches [i, p, c], row by row."""
        config = self.tower_config
        x = self.embeddings(pixels)  # [i, t, c]
        if config.kind == "clip":
            x = self.pre_layrnorm(x)
        rotation = _rotation(config, x.device) if config.kind == "eva02" else None
        for layer in self.encoder.layers:
            x = layer(x, rotation)
        if config.final_norm:
            x = self.post_layernorm(x)
        return x[:, config.leading :]  # [i, p, c]

    forward = features

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random weights: matrices by fan-in, biases zero, norms and scales one."""
        # By name, so that a seed means the same whatever order the layers are made in.
        for name, parameter in sorted(self.named_parameters()):
            if ("norm" in name and name.endswith("weight")) or "layer_scale" in name:
                nn.init.ones_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "embeddings." in name and "patch" not in name:
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)


def _rotation(config: TowerConfig, device: torch.device) -> Tensor:
    """EVA-02's angles of each patch, float32 [p, d / 2]: a quarter of a head's numbers turn with the row, then the
    column, in units of the grid that was trained on."""
    bands = config.hidden_size // config.num_attention_heads // 4
    frequencies = 1 / 10000 ** (torch.arange(bands, device=device, dtype=torch.float32) / bands)  # [d / 4]
    at = torch.arange(config.side, device=device, dtype=torch.float32) / config.side * config.rotary_grid
    rows, columns = torch.meshgrid(at, at, indexing="ij")
    return torch.cat([rows.reshape(-1, 1) * frequencies, columns.reshape(-1, 1) * frequencies], dim=-1)


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of neighbours of the patches' [i, a, t, d] by its angle; leading tokens stay as they are."""
    still, turning = x.split([x.shape[2] - len(angles), len(angles)], dim=2)
    even, odd = turning.float().unflatten(-1, (-1, 2)).unbind(-1)  # 2 x [i, a, p, d / 2]
    sin, cos = angles.sin(), angles.cos()
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([still, turned.to(x.dtype)], dim=2)


# =============================================================================
# Published files
# =============================================================================

# In front of the names of a tower inside a larger model, of transformers, open_clip, or a wrapper.
_PREFIXES = ("module.", "model.", "vision_model.", "visual.", "trunk.", "vision_tower.", "dinov2_with_registers.")

# From the names of timm, and transformers' older and newer ones of DINOv2, to ours; each is tried in turn.
_RENAMED = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"^(?:blocks|encoder\.layer)\.", "encoder.layers."),
        (r"^(?:patch_embed\.proj|embeddings\.patch_embeddings\.projection)\.", "embeddings.patch_embedding."),
        (r"^(?:pos_embed|embeddings\.position_embeddings)$", "embeddings.position_embedding.weight"),
        (r"^(?:embeddings\.)?cls_token$", "embeddings.class_embedding"),
        (r"^reg_token$", "embeddings.register_tokens"),
        (r"^(?:layer)?norm\.", "post_layernorm."),
        (r"\.norm([12])\.", r".layer_norm\1."),
        (r"\.(?:ls([12])\.gamma|layer_scale([12])\.lambda1)$", r".layer_scale\1\2"),
        (r"\.attention\.attention\.([qkv])(?:uery|ey|alue)\.", r".self_attn.\1_proj."),
        (r"\.(?:attention|attn)\.", ".self_attn."),
        (r"\.self_attn\.(?:output\.dense|o_proj|proj)\.", ".self_attn.out_proj."),
    )
)


def name_of_published(name: str) -> str:
    """Our name of a tower's tensor in a file of transformers or timm; what is no part of a tower keeps another name."""
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    for pattern, ours in _RENAMED:
        name = pattern.sub(ours, name)
    return name


def from_published(config: TowerConfig, tensors: Iterable[tuple[str, Tensor]], where: str) -> dict[str, Tensor]:
    """The parameters of `Tower(config)` out of a published file's.

    Fused projections are split; DINOv2's positions, of which transformers' files give the class token one, are folded
    and resampled to the grid (bicubic, antialiased) as timm and transformers do. What a tower does not use (higher
    layers, heads, text towers) is left out. Raises `ModelError` for names that are missing and shapes that differ.
    """
    with without_memory():
        expected = {name: tuple(p.shape) for name, p in Tower(config).state_dict().items()}
    found: dict[str, Tensor] = {}
    for published, tensor in tensors:
        name = name_of_published(published)
        if ".qkv." in name:
            parts = tensor.chunk(3)
            found |= {name.replace("qkv", f"{part}_proj"): piece for part, piece in zip("qkv", parts, strict=False)}
        elif name.startswith("embeddings.") and "patch" not in name:
            found[name] = tensor.squeeze()  # timm and transformers keep leading dimensions of 1
        else:
            found[name] = tensor
    if config.kind == "dinov2_reg":
        _fold_positions(found, config)
    found = {name: tensor for name, tensor in found.items() if name in expected}
    missing = sorted(set(expected) - set(found))
    wrong = [
        f"{name}: expected {list(expected[name])}, found {list(tensor.shape)}"
        for name, tensor in found.items()
        if tuple(tensor.shape) != expected[name]
    ]
    if missing or wrong:
        more = ", ..." if len(missing) > 4 else ""
        problems = [f"{len(missing)} missing: {', '.join(missing[:4])}{more}"] if missing else []
        problems += [f"{len(wrong)} of another shape: {'; '.join(wrong[:4])}"] if wrong else []
        raise ModelError(
            f"{where}: expected the parameters of a {config.kind} vision tower ({config.layers} layers of width "
            f"{config.hidden_size}) by the names of transformers or timm; {'; '.join(problems)}"
        )
    return found


def _fold_positions(found: dict[str, Tensor], config: TowerConfig) -> None:
    """Give the class token its position, if it has one, and the patches those of this grid."""
    name = "embeddings.position_embedding.weight"
    positions, token = found.get(name), found.get("embeddings.class_embedding")
    if positions is None or token is None or positions.dim() != 2:
        return
    if math.isqrt(len(positions)) ** 2 != len(positions):  # a square of patches, and the class token
        found["embeddings.class_embedding"] = (token.float() + positions[0].float()).to(token.dtype)
        positions = positions[1:]
    old = math.isqrt(len(positions))
    if old != config.side and old**2 == len(positions):
        grid = positions.float().T.reshape(1, -1, old, old)
        grid = F.interpolate(grid, size=(config.side, config.side), mode="bicubic", antialias=True)
        positions = grid.flatten(2)[0].T.to(positions.dtype).contiguous()
    found[name] = positions
