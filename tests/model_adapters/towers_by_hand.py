"""timm's names, and EVA-02 in float64 by its equations, for tests of what reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmamba_eval.model_adapters.shared.vision_tower import TowerConfig


def timm_like(kind: str, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of one of our towers by timm's names: projections fused, DINOv2's as `blocks.0.ls1.gamma`."""
    named: dict[str, Tensor] = {}
    for name, tensor in parameters.items():
        name = name.replace("encoder.layers.", "blocks.").replace("layer_norm", "norm")
        name = name.replace("self_attn.out_proj", "attn.proj").replace("self_attn", "attn")
        if "layer_scale" in name:
            name = name.replace("layer_scale", "ls") + ".gamma"
        name = {
            "embeddings.class_embedding": "cls_token",
            "embeddings.register_tokens": "reg_token",
            "embeddings.position_embedding.weight": "pos_embed",
            "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
            "embeddings.patch_embedding.bias": "patch_embed.proj.bias",
        }.get(name, name.replace("post_layernorm", "norm"))
        if name in ("cls_token", "reg_token", "pos_embed"):
            tensor = tensor.reshape(1, -1, tensor.shape[-1])
        named[name] = tensor
    if kind != "eva02":
        for name in [name for name in named if "attn.q_proj" in name]:
            parts = [named.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            named[name.replace("q_proj", "qkv")] = torch.cat(parts)
    return named


def eva02_by_hand(p: dict[str, Tensor], x: Tensor, config: TowerConfig) -> Tensor:
    """EVA-02 patch by patch and head by head, in float64, from its equations (timm: models/eva.py)."""

    def norm(y: Tensor, name: str) -> Tensor:
        centred = y - y.mean(-1, keepdim=True)
        return (
            centred / (y.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt() * p[name + ".weight"] + p[name + ".bias"]
        )

    def linear(y: Tensor, name: str) -> Tensor:
        return y @ p[name + ".weight"].T + p.get(name + ".bias", torch.zeros(1, dtype=y.dtype))

    side, patch, width = config.side, config.patch_size, config.hidden_size
    head = width // config.num_attention_heads
    tokens = [p["cls_token"][0, 0] + p["pos_embed"][0, 0]]
    for row in range(side):
        for column in range(side):
            cut = x[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            embedded = (p["patch_embed.proj.weight"] * cut).sum((1, 2, 3)) + p["patch_embed.proj.bias"]
            tokens.append(embedded + p["pos_embed"][0, 1 + row * side + column])
    y = torch.stack(tokens)

    def rotated(z: Tensor, token: int) -> Tensor:
        if token == 0:
            return z
        row, column = divmod(token - 1, side)
        out = z.clone()
        for pair in range(head // 2):
            which, band = divmod(pair, head // 4)
            at = (row, column)[which] * config.rotary_grid / side
            angle = torch.tensor(at / 10000 ** (band / (head // 4)), dtype=z.dtype)
            a, b = z[2 * pair], z[2 * pair + 1]
            out[2 * pair] = a * angle.cos() - b * angle.sin()
            out[2 * pair + 1] = b * angle.cos() + a * angle.sin()
        return out

    for layer in range(config.layers):
        at = f"blocks.{layer}."
        z = norm(y, at + "norm1")
        q, k, v = (linear(z, f"{at}attn.{part}_proj") for part in "qkv")
        heads = []
        for start in range(0, width, head):
            here = slice(start, start + head)
            turned_q = torch.stack([rotated(q[t, here], t) for t in range(len(y))])
            turned_k = torch.stack([rotated(k[t, here], t) for t in range(len(y))])
            heads.append((turned_q @ turned_k.T / head**0.5).softmax(-1) @ v[:, here])
        y = y + linear(norm(torch.cat(heads, -1), at + "attn.norm"), at + "attn.proj")
        z = norm(y, at + "norm2")
        gate = linear(z, at + "mlp.fc1_g")
        y = y + linear(norm(gate * gate.sigmoid() * linear(z, at + "mlp.fc1_x"), at + "mlp.norm"), at + "mlp.fc2")
    return norm(y, "norm")[1:]
