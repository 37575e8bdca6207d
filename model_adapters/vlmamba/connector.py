"""The multimodal connector: from patch features to embeddings of the language model (paper eq. 5 and 6, figure 2).

    mlp      V_out = MLP(V_img)
    vss_mlp  V_out = MLP(Norm(VSS(V_img) + V_img))
    vss_l2   V' = Linear(V_img);  V_out = Linear(Norm(VSS(GELU(V')) + V'))        the skip is taken before the GELU

MLP is Linear, GELU, Linear, as in LLaVA's `mlp2x_gelu`. Nothing changes the number of tokens.

Glossary: i images; t tokens of an image, h rows by w columns of patches; c width of the features; q scan directions.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ConnectorConfig
from .language_model import MambaMixer, RMSNorm


def scan_orders(scan: Literal["bsm", "csm"], h: int, w: int) -> Tensor:
    """In which order each direction reads an h x w grid: patch indices (row * w + column), int64 [q, h * w].

    `bsm`: row by row from the top left, and the reverse. `csm`: these two, then column by column from the top left,
    and its reverse. Every row or column starts on the same side (paper figure 3).
    """
    rows = torch.arange(h * w)
    columns = rows.view(h, w).T.reshape(-1)
    forward = [rows] if scan == "bsm" else [rows, columns]
    return torch.stack([order for start in forward for order in (start, start.flip(0))])


@cache
def _orders(scan: Literal["bsm", "csm"], h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`scan_orders` on a device, and the place of each patch in each order: both int64 [q, h * w].

    Kept, since a copy each time would have the host wait for the device.
    """
    with torch.inference_mode(False):  # made once, for training as well
        orders = scan_orders(scan, h, w)
        return orders.to(device), orders.argsort(dim=1).to(device)


class VisionSelectiveScan(nn.Module):
    """VSS: scan the patches in several directions, run a Mamba block over each, put them back in place and merge."""

    def __init__(self, width: int, config: ConnectorConfig):
        super().__init__()
        self.config = config
        directions = 2 if config.scan == "bsm" else 4
        self.blocks = nn.ModuleList(
            [
                MambaMixer(width, config.d_state, config.d_conv, config.expand)
                for _ in range(1 if config.blocks == "shared" else directions)
            ]
        )

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[i, t, c] -> [i, t, c]; `grid` is (h, w) with h * w = t."""
        orders, places = _orders(self.config.scan, *grid, x.device)  # 2 x [q, t]
        images, tokens, width = x.shape
        sequences = x[:, orders].transpose(0, 1)  # [q, i, t, c]
        if len(self.blocks) == 1:
            y = self.blocks[0](sequences.reshape(-1, tokens, width))[0].view(-1, images, tokens, width)
        else:
            y = torch.stack(
                [block(sequence)[0] for block, sequence in zip(self.blocks, sequences, strict=True)]
            )  # [q, i, t, c]
        merged = y.gather(2, places[:, None, :, None].expand_as(y)).sum(0)  # [i, t, c]
        return merged / len(orders) if self.config.merge == "mean" else merged


class Connector(nn.Module):
    """Any of the three connectors."""

    def __init__(self, features: int, d_model: int, config: ConnectorConfig):
        super().__init__()
        self.config = config
        if config.kind == "vss_l2":
            self.linear_in = nn.Linear(features, d_model)
            self.vss = VisionSelectiveScan(d_model, config)
            self.norm = _norm(d_model, config)
            self.linear_out = nn.Linear(d_model, d_model)
            return
        if config.kind == "vss_mlp":
            self.vss = VisionSelectiveScan(features, config)
            self.norm = _norm(features, config)
        self.mlp = nn.Sequential(nn.Linear(features, d_model), nn.GELU(), nn.Linear(d_model, d_model))

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch features [i, t, c] of a grid (h, w) -> embeddings [i, t, d_model]."""
        if self.config.kind == "mlp":
            return self.mlp(x)
        if self.config.kind == "vss_mlp":
            return self.mlp(self.norm(self.vss(x, grid) + x).to(x.dtype))
        x = self.linear_in(x)  # [i, t, d_model]
        return self.linear_out(self.norm(self.vss(F.gelu(x), grid) + x).to(x.dtype))

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm | RMSNorm):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, MambaMixer):
                module.reset_parameters()


def _norm(width: int, config: ConnectorConfig) -> nn.Module:
    return nn.LayerNorm(width, config.norm_eps) if config.norm == "layernorm" else RMSNorm(width, config.norm_eps)
