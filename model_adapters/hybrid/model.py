"""A language model of Mamba-2 and attention layers, with the methods of `vlmamba.language_model.LanguageModel`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlmamba_eval.model_adapters.vlmamba.scan import WHOLE, Layout

from .reading import Mixer, Now, Reading, Step
from .state import HybridState


class HybridModel(nn.Module):
    """What a family's language model has to say is in the abstract methods.

    The residual stream is float32 whatever the precision of the matrices, as in `LanguageModel`.
    """

    @property
    @abstractmethod
    def mixers(self) -> Sequence[Mixer]:
        """The Mamba blocks, in the order in which they run."""

    @property
    @abstractmethod
    def attends(self) -> bool:
        """Whether there are attention layers."""

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> embeddings [..., d_model]."""

    @abstractmethod
    def run(self, x: Tensor, now: Now) -> Tensor:
        """The layers: x [b, l, d_model] float32 -> the same."""

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """Residual stream [..., d_model] -> logits [..., vocabulary] in float32."""

    def new_state(self, n: int) -> HybridState:
        """The state of `n` rows that have read nothing yet, for models without attention layers."""
        device = next(self.parameters()).device
        return HybridState(
            tuple(torch.zeros(n, *mixer.tail_shape, dtype=mixer.dtype, device=device) for mixer in self.mixers),
            tuple(torch.zeros(n, *mixer.state_shape, device=device) for mixer in self.mixers),
        )

    def prefill(
        self,
        embeds: Tensor,
        state: HybridState | None = None,
        layout: Layout = WHOLE,
    ) -> tuple[Tensor, HybridState]:
        """Read `embeds` [b, l, d_model], continuing saved states if there are any; see `LanguageModel.prefill`."""
        now = Reading(embeds, state, layout)
        x = self.run(embeds.to(torch.float32), now)
        return x, now.after()

    forward = prefill

    @torch.no_grad()
    def step(self, ids: Tensor, state: HybridState) -> Tensor:
        """Read one token a row, ids [b]; `state` is brought up to date in place. The residual stream [b, d_model]."""
        now = Step(state)
        x = self.run(self.embed(ids)[:, None].to(torch.float32), now)
        now.close()
        return x[:, 0]
