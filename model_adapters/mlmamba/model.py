"""ML-Mamba as one module.

    towers      DINOv2 and SigLIP side by side, as in Cobra      [i, t, c]
    mlp         Linear, GELU                                     [i, t, d_model]
    two blocks  x + mixer(x), then x + SwiGLU(norm(x)); a norm after them
    projector   one of Cobra's, on features of width d_model

A block's mixer is a Mamba-2 that scans the patches in both directions. Input and output matrices and the gated norm
serve both; convolution, step bias, A and D are each direction's own; the two outputs are averaged.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmamba_eval.model_adapters.cobra.model import PIXELS, CobraConfig, Projector
from vlmamba_eval.model_adapters.shared.pixels import normalise
from vlmamba_eval.model_adapters.shared.vision_tower import Tower
from vlmamba_eval.model_adapters.vlmamba.config import MAMBA, LanguageModelConfig, Mamba2LanguageModelConfig
from vlmamba_eval.model_adapters.vlmamba.language_model import LanguageModel
from vlmamba_eval.model_adapters.vlmamba.linear import pack_all
from vlmamba_eval.model_adapters.vlmamba.mamba2 import Mamba2Mixer
from vlmamba_eval.model_adapters.vlmamba.scan import causal_conv
from vlmamba_eval.model_adapters.vlmamba.ssd import state_space_dual

# By the ids of config.json: state-spaces/mamba2-*.
LANGUAGE_MODELS: dict[str, LanguageModelConfig] = {
    "mamba2-2.7b": MAMBA["mamba2-2.7b"],
    "mamba2-1.3b": Mamba2LanguageModelConfig(d_model=2048, n_layer=48),
    "mamba2-780m": Mamba2LanguageModelConfig(d_model=1536, n_layer=48),
    "mamba2-370m": Mamba2LanguageModelConfig(d_model=1024, n_layer=48),
    "mamba2-130m": Mamba2LanguageModelConfig(d_model=768, n_layer=24),
}
_BLOCKS = 2


class BidirectionalMixer(Mamba2Mixer):
    """A Mamba-2 block over a whole sequence, forwards and backwards; parameters that end in `_b` are backwards'."""

    def __init__(self, d_model: int, d_state: int, d_conv: int, expand: int, headdim: int, ngroups: int):
        super().__init__(d_model, d_state, d_conv, expand, headdim, ngroups)
        conv = self.conv1d.in_channels
        self.conv1d_b = nn.Conv1d(conv, conv, d_conv, groups=conv, padding=d_conv - 1)
        self.dt_bias_b, self.A_log_b, self.D_b = (nn.Parameter(torch.empty(self.nheads)) for _ in range(3))

    def both(self, u: Tensor) -> Tensor:
        """u [i, t, d_model] -> the same."""
        z, xBC, dt = self._split(u)
        forwards = self._scanned(z, xBC, dt, self.conv1d, self.dt_bias, self.A_log, self.D)
        z, xBC, dt = z.flip(1), xBC.flip(1), dt.flip(1)
        backwards = self._scanned(z, xBC, dt, self.conv1d_b, self.dt_bias_b, self.A_log_b, self.D_b).flip(1)
        return self.out_proj(((forwards + backwards) / 2).to(self.dtype))

    def _scanned(
        self, z: Tensor, xBC: Tensor, dt: Tensor, conv: nn.Conv1d, dt_bias: Tensor, A_log: Tensor, D: Tensor
    ) -> Tensor:
        """One direction, normed and gated, [i, t, d] in float32."""
        xBC, _ = causal_conv(xBC, conv.weight[:, 0], conv.bias)
        x, dt, _, B, C = self._heads(xBC, dt)
        y, _ = state_space_dual(x, dt, -torch.exp(A_log.float()), B, C, D, dt_bias=dt_bias)
        return self.norm(y.flatten(-2), z)


class SwiGLU(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.w1: nn.Module = nn.Linear(width, width)
        self.w2: nn.Module = nn.Linear(width, width)
        self.w3: nn.Module = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class BidirectionalBlock(nn.Module):
    def __init__(self, config: Mamba2LanguageModelConfig):
        super().__init__()
        c = config
        self.mixer = BidirectionalMixer(c.d_model, c.d_state, c.d_conv, c.expand, c.headdim, c.ngroups)
        self.mlp = SwiGLU(c.d_model)
        self.norm = nn.LayerNorm(c.d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer.both(x)  # without a norm before it
        return x + self.mlp(self.norm(x))


class BidirectionalMamba(nn.Module):
    """[i, t, d_model] -> the same. Its shape is that of the language model."""

    def __init__(self, config: Mamba2LanguageModelConfig):
        super().__init__()
        self.layers = nn.ModuleList([BidirectionalBlock(config) for _ in range(_BLOCKS)])
        self.norm_f = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm_f(x)


class MLMamba(nn.Module):
    """`towers.*`, `mlp.*`, `bidirectional_mamba.*`, `projector.projector.*`, `language_model.backbone.*`."""

    def __init__(self, config: CobraConfig):
        super().__init__()
        self.config = config
        language_model = cast(Mamba2LanguageModelConfig, config.language_model)
        self.towers = nn.ModuleDict({name: Tower(tower) for name, tower in config.towers.items()})
        self.mlp = nn.Sequential(nn.Linear(config.features, language_model.d_model), nn.GELU())
        self.bidirectional_mamba = BidirectionalMamba(language_model)
        self.projector = Projector(config.projector, language_model.d_model, language_model.d_model)
        self.language_model = LanguageModel(language_model)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [i, 3, h, w] -> embeddings [i, t, d_model]."""
        features = [
            cast(Tower, self.towers[name]).features(normalise(pixels, PIXELS[name])) for name in self.config.towers
        ]
        return self.projector(self.bidirectional_mamba(self.mlp(torch.cat(features, dim=-1))))

    def prepare_for_inference(self) -> None:
        """Pack the matrices for this machine. The model can be neither trained nor saved afterwards."""
        self.requires_grad_(False)
        self.eval()
        pack_all(self)
