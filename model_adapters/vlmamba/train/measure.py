"""What is measured while a stage learns: the loss of examples that nobody learns, and benchmarks by our own harness.

The held-out loss is the mean over all tokens of their answers, whatever the batches and the number of processes. For
benchmarks the parameters are copied into a model of its own, which answers as an evaluation of the finished checkpoint
would; the run lies in `STAGE/eval/step-N` and can be looked at and compared like any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.config import ModelConfig
from vlmamba_eval.types import UsageError

from .data import Collator, Conversations, open_data
from .log import append, duration
from .recipe import Eval, Stage
from .trained import TrainedModel, whole_parameters

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import Trainer


@dataclass
class Measure:
    """All that a stage's `eval` asks for; called with the Trainer, in every process at once."""

    eval: Eval
    config: ModelConfig
    tokenizer: Tokenizer
    examples: Conversations | None
    micro_batch_size: int
    collator: Collator
    folder: Path
    data: Path
    sharded: bool
    say: Callable[[str], None]

    @classmethod
    def of(
        cls,
        stage: Stage,
        config: ModelConfig,
        tokenizer: Tokenizer,
        collator: Collator,
        folder: Path,
        data: Path,
        sharded: bool,
        say: Callable[[str], None],
    ) -> Measure | None:
        """None for a stage that measures nothing. What it reads is checked before any training."""
        wanted = stage.eval
        if wanted is None:
            return None
        examples = None
        if wanted.held_out is not None:
            if wanted.held_out == stage.data:
                raise UsageError(f"stage {stage.name}: eval.held_out names the very data that the stage learns")
            rows = open_data(wanted.held_out, data, stage.seed, wanted.examples)
            examples = Conversations(rows, config, tokenizer, stage.max_length)
        found = cls(
            wanted, config, tokenizer, examples, stage.micro_batch_size, collator, folder, data, sharded, say
        )  # fmt: skip
        if wanted.tasks:
            found.benchmark_data()
        return found

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        """The numbers of this step, `eval_loss` and `eval_TASK_METRIC`, which are also logged and said."""
        began = time.monotonic()
        step, first = trainer.state.global_step, trainer.is_world_process_zero()
        found: dict[str, float] = {}
        if self.examples is not None:
            found["eval_loss"] = self._held_out(trainer)
        if self.eval.tasks:
            model = trainer.accelerator.unwrap_model(cast(torch.nn.Module, trainer.model))
            parameters = whole_parameters(cast(TrainedModel, model), self.sharded)
            if first:
                found |= self._benchmarks(parameters, step, trainer.args.device)
            del parameters
            if torch.distributed.is_initialized():
                torch.distributed.barrier()
        if first:
            seconds = time.monotonic() - began
            append(self.folder / "eval.jsonl", {"step": step, **found, "seconds": round(seconds, 2)})
            numbers = "  ".join(f"{name.removeprefix('eval_')} {value:.4g}" for name, value in found.items())
            self.say(f"step {step}  held out and benchmarks: {numbers}  (took {duration(seconds)})")
        return found

    def _held_out(self, trainer: Trainer) -> float:
        """The mean cross-entropy of the answers' tokens; each process takes its share of the batches."""
        model, device = cast(torch.nn.Module, trainer.model_wrapped), trainer.args.device
        batches = list(self._batches())
        world, rank = trainer.args.world_size, trainer.args.process_index
        total = torch.zeros(2, dtype=torch.float64, device=device)
        training = model.training
        model.eval()
        with torch.no_grad():
            for round_ in range(-(-len(batches) // world)):
                place = round_ * world + rank
                # Shards are gathered by all processes together: one without a batch runs the last one for nothing.
                numbers = batches[min(place, len(batches) - 1)]
                examples = cast(Conversations, self.examples)
                batch: dict[str, Tensor] = self.collator([examples[number] for number in numbers])
                batch = {name: tensor.to(device) for name, tensor in batch.items() if name != "patch_labels"}
                with trainer.compute_loss_context_manager():
                    loss = model(**batch)["answers"]
                if place < len(batches):
                    n = len(batch["labels"])
                    total += torch.stack([loss.double() * n, torch.tensor(n, dtype=torch.float64, device=device)])
        model.train(training)
        summed, n = cast(Tensor, trainer.accelerator.reduce(total)).tolist()
        return summed / n if n else float("nan")

    def _batches(self) -> Iterator[range]:
        assert self.examples is not None  # noqa: S101
        n = min(len(self.examples), self.eval.examples)
        for start in range(0, n, self.micro_batch_size):
            yield range(start, min(n, start + self.micro_batch_size))

    def benchmark_data(self) -> Any:
        """The tasks and where their data lie; `UsageError` or `DataError` if something is missing."""
        raise UsageError("eval.tasks: not there yet")

    def _benchmarks(self, parameters: dict[str, Tensor], step: int, device: torch.device) -> dict[str, float]:
        raise NotImplementedError
