"""A small random checkpoint in the layout of the published mmMamba folders, and its mathematics written out once more.

The second is the definition (arXiv 2502.13145; the modelling code beside the published weights) in float64, token by
token, for one row, without any of the project's code.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

ADDED = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
TEXTS = [
    "Is there a red square in the image?\nAnswer the question using a single word or phrase.",
    "yes no two three colour of the circle on the left, what is it? system user assistant",
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。",
]


def configuration(kinds: list[str], vocab_size: int, embedding_layers: int = 2) -> dict[str, Any]:
    """Two heads of keys for four of queries, 2 x 2 embeddings a tile."""
    shared = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
    return {
        "architectures": "mmMambaChatModel",
        "model_type": "mmMamba_chat",
        "template": "internlm2-chat",
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "use_thumbnail": True,
        "force_image_size": 28,
        "embedding_config": {
            **shared,
            "model_type": "mmMamba_embedding",
            "num_hidden_layers": embedding_layers,
            "layers_block_type": kinds[:embedding_layers],
            "image_size": 28,
            "patch_size": 7,
            "use_pixel_shuffle_proj": True,
            "pixel_shuffle_loc": "pre",
            "special_token_maps": {},
            "use_ls": False,
            "img_context_token_id": vocab_size - 1,
            "llm_vocab_size": vocab_size,
        },
        "llm_config": {
            **shared,
            "model_type": "mmMamba",
            "num_hidden_layers": len(kinds) - embedding_layers,
            "layers_block_type": kinds[embedding_layers:],
            "vocab_size": vocab_size,
        },
    }


def parameters(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors by their published names, with nothing at its initial constant."""
    e = config["embedding_config"]
    d, heads, kv, mlp = e["hidden_size"], e["num_attention_heads"], e["num_key_value_heads"], e["intermediate_size"]
    w, vocab, patches = d // heads, e["llm_vocab_size"], (e["image_size"] // e["patch_size"]) ** 2
    g = torch.Generator().manual_seed(seed)

    def matrix(*shape: int, gain: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=g) * gain * math.prod(shape[1:]) ** -0.5

    def around(value: float, *shape: int) -> Tensor:
        return value + 0.2 * torch.randn(*shape, generator=g)

    found = {
        "embedding_model.vision_embeddings.patch_embedding.weight": matrix(d, 3, e["patch_size"], e["patch_size"]),
        "embedding_model.vision_embeddings.patch_embedding.bias": around(0, d),
        "embedding_model.vision_embeddings.position_embedding": around(0, 1, patches + 1, d),
        "embedding_model.vision_embeddings.class_embedding": around(0, 1, 1, d),
        "embedding_model.llm_text_embeddings.weight": torch.randn(vocab, d, generator=g),
        "embedding_model.pixel_shuffle_proj.0.weight": matrix(d, 4 * d),
        "embedding_model.pixel_shuffle_proj.0.bias": around(0, d),
        "embedding_model.pixel_shuffle_proj.2.weight": matrix(d, d, gain=3),
        "embedding_model.pixel_shuffle_proj.2.bias": around(0, d),
        "language_model.model.tok_embeddings.weight": torch.randn(vocab, d, generator=g),
        "language_model.model.norm.weight": around(1, d),
        "language_model.output.weight": matrix(vocab, d, gain=3),
    }
    kinds = e["layers_block_type"] + config["llm_config"]["layers_block_type"]
    for i, kind in enumerate(kinds):
        first = len(e["layers_block_type"])
        at = f"embedding_model.encoder.{i}." if i < first else f"language_model.model.layers.{i - first}."
        found |= {
            at + "attention_norm.weight": around(1, d),
            at + "ffn_norm.weight": around(1, d),
            at + "feed_forward.w1.weight": matrix(mlp, d, gain=2),
            at + "feed_forward.w3.weight": matrix(mlp, d, gain=2),
            at + "feed_forward.w2.weight": matrix(d, mlp, gain=2),
        }
        if kind == "mamba2":
            conv = d + 2 * kv * w
            found |= {
                at + "attention.wvkqgdt.weight": matrix(conv + d + heads, d, gain=2),
                at + "attention.conv1d.weight": around(0.5, conv, 1, 2),
                at + "attention.conv1d.bias": around(0, conv),
                at + "attention.A_log_bias": around(0, heads),
                at + "attention.dt_bias": around(-1, heads),
                at + "attention.g_norm_swish_gate.weight": around(1, w),
                at + "attention.o_proj.weight": matrix(d, d, gain=2),
            }
        else:
            found |= {
                at + "attention.wqkv.weight": matrix((heads + 2 * kv) * w, d, gain=2),
                at + "attention.wo.weight": matrix(d, d, gain=2),
            }
    return found


def write(folder: Path, kinds: list[str], **changes: Any) -> dict[str, Any]:
    """The folder: config.json, two shards with an index, tokenizer.model, tokenizer_config.json. Returns the config."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(TEXTS * 4), model_writer=pieces, vocab_size=140, hard_vocab_limit=False,
        character_coverage=1.0, add_dummy_prefix=False, remove_extra_whitespaces=False, byte_fallback=False,
        user_defined_symbols=["\n"], minloglevel=2, normalization_rule_name="identity",
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(pieces.getvalue())
    known = sentencepiece.SentencePieceProcessor(model_proto=pieces.getvalue()).vocab_size()  # pyright: ignore
    added = {str(known + i): {"content": token, "special": True} for i, token in enumerate(ADDED)}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}), encoding="utf-8")
    config = configuration(kinds, known + len(ADDED))
    for path, value in changes.items():
        target, *rest = path.split("__")
        if rest:
            config[target][rest[0]] = value
        else:
            config[target] = value
    tensors = parameters(config)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return config


# =============================================================================
# The definition
# =============================================================================


def rms(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def mamba2(u: Tensor, p: dict[str, Tensor], heads: int, kv: int) -> Tensor:
    """u [l, d] of one row -> [l, d], token by token."""
    d = u.shape[1]
    w = d // heads
    line = u @ p["wvkqgdt.weight"].T
    vkq, g, dt = line[:, : 2 * kv * w + d], line[:, 2 * kv * w + d : -heads], line[:, -heads:]
    before = torch.cat([torch.zeros_like(vkq[:1]), vkq[:-1]])
    vkq = F.silu(before * p["conv1d.weight"][:, 0, 0] + vkq * p["conv1d.weight"][:, 0, 1] + p["conv1d.bias"])
    state, outputs = torch.zeros(heads, w, w, dtype=u.dtype), []
    for t in range(len(u)):
        heads_out = []
        for h in range(heads):
            pair = h // (heads // kv)
            v = vkq[t, pair * w : (pair + 1) * w]
            k = vkq[t, (kv + pair) * w : (kv + pair + 1) * w]
            q = vkq[t, 2 * kv * w + h * w : 2 * kv * w + (h + 1) * w]
            step = torch.log1p(torch.exp(dt[t, h] + p["dt_bias"][h]))
            state[h] = torch.exp(-torch.exp(p["A_log_bias"][h]) * step) * state[h] + step * torch.outer(v, k)
            y = rms(state[h] @ q, p["g_norm_swish_gate.weight"])
            heads_out.append(y * F.silu(g[t, h * w : (h + 1) * w]))
        outputs.append(torch.cat(heads_out))
    return torch.stack(outputs) @ p["o_proj.weight"].T


def attention(u: Tensor, p: dict[str, Tensor], heads: int, kv: int, theta: float) -> Tensor:
    d = u.shape[1]
    w, group = d // heads, heads // kv
    line = (u @ p["wqkv.weight"].T).view(len(u), kv, group + 2, w)

    def turned(x: Tensor) -> Tensor:
        """x [l, w]: channel i and i + w / 2 are a pair."""
        out = x.clone()
        for t in range(len(x)):
            for i in range(w // 2):
                angle = t * theta ** (-2 * i / w)
                a, b = x[t, i], x[t, i + w // 2]
                out[t, i], out[t, i + w // 2] = (
                    a * math.cos(angle) - b * math.sin(angle),
                    b * math.cos(angle) + a * math.sin(angle),
                )
        return out

    mask = torch.full((len(u), len(u)), -torch.inf, dtype=u.dtype).triu(1)
    outputs = []
    for h in range(heads):
        pair, member = h // group, h % group
        q, k, v = turned(line[:, pair, member]), turned(line[:, pair, group]), line[:, pair, group + 1]
        outputs.append(torch.softmax(q @ k.T / math.sqrt(w) + mask, -1) @ v)
    return torch.cat(outputs, 1) @ p["wo.weight"].T


def embed_tile(tile: Tensor, tensors: dict[str, Tensor], patch: int) -> Tensor:
    """uint8 [3, size, size] -> [tile tokens, d]: patches, positions, 2 x 2 patches as one, projection."""
    p = {n.removeprefix("embedding_model."): t.double() for n, t in tensors.items()}
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)[:, None, None]
    x = (tile.double() / 255 - mean) / std
    side = tile.shape[1] // patch
    weight, bias = p["vision_embeddings.patch_embedding.weight"], p["vision_embeddings.patch_embedding.bias"]
    position = p["vision_embeddings.position_embedding"][0, 1:]

    def at(row: int, column: int) -> Tensor:
        piece = x[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        return (weight * piece).sum((1, 2, 3)) + bias + position[row * side + column]

    tokens = []
    for row in range(0, side, 2):
        for column in range(0, side, 2):
            four = torch.cat([at(row, column), at(row, column + 1), at(row + 1, column), at(row + 1, column + 1)])
            hidden = four @ p["pixel_shuffle_proj.0.weight"].T + p["pixel_shuffle_proj.0.bias"]
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
            tokens.append(hidden @ p["pixel_shuffle_proj.2.weight"].T + p["pixel_shuffle_proj.2.bias"])
    return torch.stack(tokens)


def logits(embeds: Tensor, tensors: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    """The logits [l, vocabulary] of one row of embeddings [l, d], from its first token on."""
    e = config["embedding_config"]
    heads, kv = e["num_attention_heads"], e["num_key_value_heads"]
    kinds = e["layers_block_type"] + config["llm_config"]["layers_block_type"]
    first = len(e["layers_block_type"])
    p = {n: t.double() for n, t in tensors.items()}
    x = embeds.double()
    for i, kind in enumerate(kinds):
        at = f"embedding_model.encoder.{i}." if i < first else f"language_model.model.layers.{i - first}."
        mixer = {n.removeprefix(at + "attention."): t for n, t in p.items() if n.startswith(at + "attention.")}
        u = rms(x, p[at + "attention_norm.weight"])
        x = x + (mamba2(u, mixer, heads, kv) if kind == "mamba2" else attention(u, mixer, heads, kv, e["rope_theta"]))
        u = rms(x, p[at + "ffn_norm.weight"])
        gate = F.silu(u @ p[at + "feed_forward.w1.weight"].T) * (u @ p[at + "feed_forward.w3.weight"].T)
        x = x + gate @ p[at + "feed_forward.w2.weight"].T
    return rms(x, p["language_model.model.norm.weight"]) @ p["language_model.output.weight"].T
