"""How much of a device's rate of matrix products a training reaches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vlmamba_eval.model_adapters.vlmamba.connector import Connector, VisionSelectiveScan
from vlmamba_eval.model_adapters.vlmamba.model import VLMamba


def matrix_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of one large square product on this device, measured: the best of a few, in the precision of training."""
    on_gpu = device.type == "cuda"
    size = 8192 if on_gpu else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for _ in range(10 if on_gpu else 3):
            if on_gpu:
                torch.cuda.synchronize(device)
            began = time.perf_counter()
            torch.mm(a, b)
            if on_gpu:
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


class Work:
    """The matrix products of training steps, in FLOP.

    Counted are two for each weight and token in the forward pass, as many again for the gradient of what runs through,
    if anything before it learns, and for the weights' own gradient if they learn; and the attention of the
    encoder. The scan, the convolution, norms, and what gradient checkpointing computes twice are not: the share of the
    matrix rate says how near a training is to one that consists only of its products.
    """

    def __init__(self, model: VLMamba):
        vision, config = model.vision, model.config.vision
        self.image_tokens = config.image_tokens
        learns = {name: any(p.requires_grad for p in part.parameters()) for name, part in model.named_children()}
        passes = 3 if learns["vision"] else 1
        attention = 4 * config.image_tokens * config.hidden_size * config.layers_used
        self.image = passes * (2 * _matrices(vision) + attention)  # of one image token
        connector, first = _matrices(model.connector), _first(model.connector)
        for scan in (m for m in model.connector.modules() if isinstance(m, VisionSelectiveScan)):
            if len(scan.blocks) == 1:  # one block reads the tokens in every direction
                directions = 2 if scan.config.scan == "bsm" else 4
                connector += (directions - 1) * _matrices(scan)
        flows = learns["vision"] or learns["connector"]
        self.image += 2 * connector * (1 + flows + learns["connector"])
        if flows and not learns["vision"]:
            self.image -= 2 * first  # nobody asks for the gradient of what the encoder gave
        language = _matrices(model.language_model.backbone.layers)
        whole = sum(p.numel() for p in model.language_model.parameters() if p.requires_grad) >= language
        back = int(flows or learns["language_model"]) + int(whole)
        self.token = 2 * language * (1 + back)
        self.label = 2 * model.language_model.backbone.embedding.weight.numel() * (1 + back)

    def of(self, batch: Mapping[str, Any]) -> int:
        """FLOP of a micro-batch of `data.Collator`, padding included: it is computed too."""
        return int(
            self.token * batch["ids"].numel()
            + self.image * (batch["image_at"].numel() or self.image_tokens)
            + self.label * len(batch["labels"])
        )


def _first(connector: Connector) -> int:
    """Weights that the encoder's features are multiplied with, in every direction."""
    kind = connector.config.kind
    if kind == "vss_mlp":
        blocks = connector.vss.blocks
        directions = 2 if connector.config.scan == "bsm" else 4
        return directions * _matrices(blocks[0].get_submodule("in_proj"))
    return _matrices(connector.linear_in if kind == "vss_l2" else connector.mlp[0])


def _matrices(module: nn.Module) -> int:
    """Weights that every token is multiplied with: linear layers, and the step sizes' projections."""
    found = 0
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            found += layer.weight.numel()
    return found
