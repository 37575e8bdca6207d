"""What a stage of training runs: the model with its loss, the parts that learn, and its parameters gathered again."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmamba_eval.model_adapters.vlmamba.model import VLMamba
from vlmamba_eval.types import UsageError

from .recipe import PARTS, Lora, Stage


class TrainedModel(nn.Module):
    """The model with its loss, and auxiliary heads on the encoder that no checkpoint keeps."""

    accepts_loss_kwargs = True  # the Trainer then leaves it to `StageTrainer.compute_loss` to scale the loss

    def __init__(self, model: VLMamba, stage: Stage):
        super().__init__()
        self.model = model
        self.stage = stage
        self.train_vision = "vision" in stage.train
        width = model.config.vision.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in stage.patch_classes.items()})
        for part in PARTS:
            getattr(model, part).requires_grad_(part in stage.train)
        if stage.lora is not None:
            add_lora(model, stage.lora, stage.seed)
        model.language_model.gradient_checkpointing = stage.gradient_checkpointing

    def forward(
        self,
        ids: Tensor,
        image_at: Tensor,
        predict_at: Tensor,
        labels: Tensor,
        pixels: Tensor | None = None,
        patch_labels: dict[str, Tensor] | None = None,
        gaps: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """A batch of `data.Collator` -> the loss and its parts: `answers`, the mean over the answers' tokens, and
        `patches`, if there are heads, with its weight.
        """
        config = self.model.config
        embeds = self.model.language_model.embed(ids)  # [b, l, d_model]
        size = config.vision.image_size
        blank = pixels is None
        if pixels is None:
            # Every process of several must use all parameters in every step: an image that counts for nothing.
            pixels = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=ids.device)
        with torch.set_grad_enabled(self.train_vision and torch.is_grad_enabled()):
            features = self.model.vision(pixels)  # [i, t, c]
        images = self.model.connector(features, config.vision.grid)  # [i, t, d_model]
        if blank:
            embeds = embeds + 0 * images.sum()
        else:
            flat = embeds.flatten(0, 1)
            embeds = flat.index_copy(0, image_at, images.flatten(0, 1).to(flat.dtype)).view_as(embeds)
        x, _ = self.model.language_model(embeds, gaps=gaps)  # [b, l, d_model]
        logits = self.model.language_model.logits(x.flatten(0, 1)[predict_at])  # [n, v]
        # The mean over the answers' tokens; 0 if a micro-batch has none (data.tokenise).
        loss = F.cross_entropy(logits, labels, reduction="sum") / max(1, len(labels))
        if not self.heads or patch_labels is None:
            return {"loss": loss, "answers": loss}
        losses = [
            F.cross_entropy(head(features).float().flatten(0, 1), patch_labels[name].flatten())
            for name, head in self.heads.items()
        ]
        patches = self.stage.patch_weight * torch.stack(losses).sum()
        return {"loss": loss + patches, "answers": loss, "patches": patches}


def part_of(name: str) -> str:
    """The part that a parameter of `TrainedModel` belongs to; the auxiliary heads learn as the encoder does."""
    return name.removeprefix("model.").split(".")[0] if name.startswith("model.") else "vision"


# =============================================================================
# Low-rank updates
# =============================================================================


def add_lora(model: VLMamba, lora: Lora, seed: int) -> None:
    """Put updates beside the matrices of the language model, in place; only they learn in it."""
    if find_spec("peft") is None:
        raise UsageError("lora needs peft: pip install 'vlmamba-eval[lora]', or leave lora out of the stage")
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=[*lora.targets])  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the same start in every process
        inject_adapter_in_model(config, model.language_model)
    for name, parameter in model.language_model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def merged(parameters: dict[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """The parameters of the plain model: each matrix with its update added, W + (alpha / rank) B A."""
    found: dict[str, Tensor] = {}
    for name, tensor in parameters.items():
        stem, base, _ = name.partition(".base_layer.")
        if ".lora_" in name:
            continue
        if base:
            down, up = (parameters[f"{stem}.lora_{which}.default.weight"].float() for which in "AB")
            tensor = (tensor.float() + (lora.alpha / lora.rank) * (up @ down)).to(tensor.dtype)
        found[name.replace(".base_layer.", ".")] = tensor
    return found


def whole_parameters(trained: TrainedModel, sharded: bool) -> dict[str, Tensor]:
    """The parameters of the plain model, on the CPU: shards gathered, updates merged, heads left out.

    Every process must call it; with `sharded`, only the first gets them.
    """
    state: dict[str, Any]
    if sharded:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        state = get_model_state_dict(trained, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        # A tensor that does not divide evenly comes back as a view of the padded whole.
        state = {
            name: tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
            for name, tensor in state.items()
        }
    else:
        state = {name: tensor.detach().to("cpu") for name, tensor in trained.state_dict().items()}
    found = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    lora = trained.stage.lora
    return merged(found, lora) if lora is not None and found else found
