"""What is measured while a stage learns: the loss of examples that nobody learns, and benchmarks by our own harness.

The held-out loss is the mean over all tokens of their answers, whatever the batches and the number of processes. For
benchmarks the parameters are copied into a model of its own, which answers as an evaluation of the finished checkpoint
would; the run is in `STAGE/eval/step-N` and can be looked at and compared like any other.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed
from torch import Tensor

from vlmamba_eval.model_adapters.shared.device import choose
from vlmamba_eval.model_adapters.vlmamba.adapter import VLMambaAdapter
from vlmamba_eval.model_adapters.vlmamba.config import ModelConfig
from vlmamba_eval.model_adapters.vlmamba.language_model import keeps_float32
from vlmamba_eval.model_adapters.vlmamba.model import empty_model
from vlmamba_eval.types import UsageError

from .data import Collator, Conversations, open_data
from .log import append, duration
from .recipe import Eval, Stage
from .trained import TrainedModel, whole_parameters

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import Trainer

    from vlmamba_eval.dataset import Dataset


@dataclass
class Measure:
    """All that a stage's `eval` asks for; called with the Trainer, in every process at once.

    `model_config` is that of the checkpoint, with the template that evaluation uses whatever the stage learns with.
    """

    eval: Eval
    model_config: ModelConfig
    tokenizer: Tokenizer
    examples: Conversations | None
    micro_batch_size: int
    collator: Collator
    folder: Path
    data: Path
    sharded: bool
    say: Callable[[str], None]
    _datasets: list[Dataset] | None = None
    _marks: set[str] = field(default_factory=set)

    @classmethod
    def of(
        cls,
        stage: Stage,
        model_config: ModelConfig,
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
        untrained = tuple(part for part in model_config.provenance.untrained if part not in stage.train)
        model_config = replace(model_config, provenance=replace(model_config.provenance, untrained=untrained))
        found = cls(
            eval=wanted, model_config=model_config, tokenizer=tokenizer, examples=examples, collator=collator,
            micro_batch_size=stage.micro_batch_size, folder=folder, data=data, sharded=sharded, say=say,
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
            marks = sorted(self._marks)
            line = {"step": step, **found, "marks": marks, "seconds": round(seconds, 2)}
            append(self.folder / "eval.jsonl", line)
            numbers = "  ".join(f"{name.removeprefix('eval_')} {value:.4g}" for name, value in found.items())
            words = f"  {' '.join(marks)}" if marks else ""
            self.say(f"step {step}  measured: {numbers}{words}  (took {duration(seconds)})")
        return found

    def _held_out(self, trainer: Trainer) -> float:
        """The mean cross-entropy of the answers' tokens; each process takes its share of the batches."""
        model, device = cast(torch.nn.Module, trainer.model_wrapped), trainer.args.device
        batches = list(self._batches())
        world, rank = trainer.args.world_size, trainer.args.process_index
        total = torch.zeros(2, dtype=torch.float64, device=device)
        training = model.training
        model.eval()
        # Without gradients a CPU's scan reads the parameters through NumPy, and such memory can't be freed by FSDP.
        with torch.set_grad_enabled(self.sharded and device.type == "cpu"):
            for round_ in range(-(-len(batches) // world)):
                place = round_ * world + rank
                # Shards are gathered by all processes together: one without a batch runs the last one for nothing.
                numbers = batches[min(place, len(batches) - 1)]
                examples = cast(Conversations, self.examples)
                batch: dict[str, Tensor] = self.collator([examples[number] for number in numbers])
                batch = {name: tensor.to(device) for name, tensor in batch.items() if name != "patch_labels"}
                with trainer.accelerator.autocast():
                    loss = model(**batch)["answers"].detach()
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

    def benchmark_data(self) -> list[Dataset]:
        """The benchmarks' samples, read once. Raises `UsageError` or `DataError` if something is missing."""
        if self._datasets is None:
            from vlmamba_eval.dataset import load_dataset
            from vlmamba_eval.registry import get_task

            where = self.eval.data if self.eval.data in ("samples", "hub") else str(self.data / self.eval.data)
            limit = self.eval.limit or None
            self._datasets = [
                load_dataset(get_task(name), where, limit=limit, allow_partial=True) for name in self.eval.benchmarks
            ]
        return self._datasets

    def _benchmarks(self, parameters: dict[str, Tensor], step: int, device: torch.device) -> dict[str, float]:
        """The headline metrics of every benchmark, from a run of our own harness."""
        from vlmamba_eval.run import evaluate

        adapter = _adapter(parameters, self.model_config, self.tokenizer, step, device)
        found: dict[str, float] = {}
        datasets = self.benchmark_data()
        for outcome in evaluate(adapter, datasets, self.folder / "eval" / f"step-{step}"):
            scores = outcome.scores
            self._marks |= set(scores.marks)
            for score in scores.scores:
                if score.headline and score.value is not None:
                    parts = (
                        scores.task,
                        *(p for p in (score.split, score.category) if p not in ("", "all")),
                        score.metric,
                    )
                    found[f"eval_{'_'.join(parts)}"] = score.value
        return found


def _adapter(
    parameters: dict[str, Tensor], config: ModelConfig, tokenizer: Tokenizer, step: int, device: torch.device
) -> VLMambaAdapter:
    """A model of its own with these parameters, in the precision that an evaluation takes on this device."""
    dtype = choose(device.type, "auto")[1]
    model = empty_model(config, dtype)
    digest = hashlib.sha256()
    converted: dict[str, Tensor] = {}
    for name in sorted(parameters):
        tensor = parameters[name].to(torch.float32 if keeps_float32(name) else dtype).contiguous()
        digest.update(name.encode())
        digest.update(cast(Any, tensor.view(torch.uint8).numpy()))
        # A copy if nothing was converted: training continues with the original.
        converted[name] = tensor.to(device, copy=tensor.data_ptr() == parameters[name].data_ptr())
    model.load_state_dict(converted, assign=True)
    model.config = replace(config, name=f"{config.name}-step-{step}")
    return VLMambaAdapter(model, tokenizer, weights=f"sha256:{digest.hexdigest()}")
