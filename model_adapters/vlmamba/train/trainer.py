"""One stage of training on transformers' Trainer.

The loss is the mean cross-entropy of the tokens of all answers of a step. Parts that don't learn stay as they
are, bit for bit. What a killed run needs to continue is in `training/`, where a finished stage writes its checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from vlmamba_eval.model_adapters.vlmamba import checkpoint
from vlmamba_eval.model_adapters.vlmamba.config import ModelConfig, TemplateConfig
from vlmamba_eval.model_adapters.vlmamba.language_model import keeps_float32
from vlmamba_eval.model_adapters.vlmamba.model import VLMamba
from vlmamba_eval.model_adapters.vlmamba.scan import choose_backend
from vlmamba_eval.strict_json import parse_json
from vlmamba_eval.types import DataError, EvalError, ModelError, UsageError

from .data import Collator, Conversations, Order, open_rows
from .log import Log
from .measure import Measure
from .recipe import Stage, Tracker
from .speed import Work, matrix_rate
from .trained import TrainedModel, part_of, whole_parameters

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Other processes wait while the first one measures benchmarks or writes a checkpoint.
_PATIENCE = 4 * 3600


class StageTrainer(Trainer):
    """The Trainer with our rules for order, rates and weight decay, and more numbers in its log."""

    def __init__(self, stage: Stage, order: Order, work: Work, rate: float, measure: Measure | None, **options: Any):
        self.stage, self.order, self.work, self.rate, self.measure = stage, order, work, rate, measure
        self._counts: Tensor | None = None  # see `compute_loss`
        self._flop = 0
        self._predicted = 0  # tokens of answers since the start of this process
        self._since = time.monotonic()
        self._measured = -1
        super().__init__(**options)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.fsdp_plugin_args is None:
            return
        from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
        from torch.distributed.fsdp import MixedPrecisionPolicy

        state: Any = self.accelerator.state
        if not self.is_fsdp_enabled:  # accelerate turns FSDP on for accelerators alone; PyTorch has it on CPUs as well
            plugin: Any = FullyShardedDataParallelPlugin
            state.fsdp_plugin = plugin(**self.args.fsdp_plugin_args)
            state.distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True
        # Shards are gathered as they are, and autocast decides what a product is computed in, as on one device: A_log,
        # D and the step sizes' bias must not be rounded.
        state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The micro-batches of a step, and how many tokens of answers there are in the whole step, on all devices."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.tensor(float(sum(len(batch["labels"]) for batch in batches)), device=device)
        return batches, self.accelerator.reduce(count)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """A micro-batch's part in the mean over all tokens of the step's answers.

        So it makes no difference how a step is cut into micro-batches, and how many devices share them.
        """
        with self.accelerator.autocast():  # which accelerate puts around whole models, but not around sharded ones
            outputs = model(**inputs)
        tokens, n = inputs["tokens"], len(inputs["labels"])
        world, cut = self.args.world_size, self.args.gradient_accumulation_steps
        # The Trainer's gradients are sums over micro-batches and means over devices.
        loss = outputs["answers"] * n * world / options["num_items_in_batch"].clamp(min=1)
        if "patches" in outputs:
            loss = loss + outputs["patches"] / cut
        # Read when a line is logged: the answers' loss and their tokens, places, true tokens, micro-batches.
        known = torch.tensor([n, inputs["ids"].numel(), 1], dtype=torch.float64, device=tokens.device)
        summed = (outputs["answers"].detach() * n).double()
        counts = torch.cat([torch.stack([summed, tokens.double()]), known])
        self._counts = counts if self._counts is None else self._counts + counts
        self._flop += self.work.of(inputs)
        return loss

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        if "loss" in logs and self._counts is not None:
            totals = torch.cat([self._counts, self._counts.new_tensor([float(self._flop)])])
            answers, tokens, predicted, places, batches, flop = cast(Tensor, self.accelerator.reduce(totals)).tolist()
            self._predicted += int(predicted)
            if not self._predicted and self.state.global_step >= self.args.logging_steps:
                raise DataError(f"until step {self.state.global_step} no answer began within max_length: raise it")
            if not math.isfinite(logs["loss"]):
                raise EvalError(
                    f"the loss is {logs['loss']} at step {self.state.global_step}: lower learning_rate, or take "
                    f"float32, with --set and another --out. The checkpoints so far are in {self.args.output_dir}."
                )
            seconds = max(1e-9, time.monotonic() - self._since)
            logs["answers"] = answers / max(1.0, predicted)
            logs["tokens"] = places * self.args.gradient_accumulation_steps / batches
            logs["padding"] = 1 - tokens / places
            logs["tokens_per_second"] = tokens / seconds
            logs["seconds_per_step"] = seconds * self.args.gradient_accumulation_steps * self.args.world_size / batches
            logs["matrix_share"] = flop / seconds / (self.rate * self.args.world_size)
            logs |= self._rates(logs["learning_rate"])
            self._counts, self._flop, self._since = None, 0, time.monotonic()
        super().log(logs, *arguments, **options)

    def _rates(self, first: float) -> dict[str, float]:
        """The learning rates of the parts that have their own, from the one of the first group of parameters."""
        own = self.stage.learning_rates
        highest = own.get(cast(Any, self._groups[0][0]), self.stage.learning_rate)
        return {f"learning_rate_{part}": first * rate / highest for part, rate in own.items() if highest}

    def _get_train_sampler(self, *arguments: Any, **options: Any) -> Any:
        return self.order

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """What the stage's `eval` asks for. The time that it takes counts for no rate."""
        if self.measure is None or self._measured == self.state.global_step:
            return {}  # the end of an epoch asks again
        self._measured = self.state.global_step
        began = time.monotonic()
        found = self.measure(self)
        self._since += time.monotonic() - began
        if found:
            self.log(found)
        return found

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One group for each learning rate, with and without weight decay."""
        model = cast(nn.Module, self.model if model is None else model)
        decay = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((part_of(name), name in decay), []).append(parameter)
        own = self.stage.learning_rates
        self._groups = sorted(groups, key=lambda group: (group[0] in own, group))
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, cast(Any, model))
        options.pop("lr", None)
        self.optimizer = kind(
            [
                {
                    "params": groups[part, decays],
                    "lr": own.get(part, self.stage.learning_rate),  # type: ignore[call-overload]
                    "weight_decay": self.args.weight_decay if decays else 0.0,
                }
                for part, decays in self._groups
            ],
            **options,
        )
        return self.optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim > 1 and "embedding" not in name and not keeps_float32(name)
        ]


class _WhenToMeasure(TrainerCallback):
    def __init__(self, every: int):
        self.every = every

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_evaluate = state.global_step % self.every == 0 or state.global_step >= state.max_steps


def train_stage(
    model: VLMamba,
    tokenizer: Tokenizer,
    stage: Stage,
    folder: Path,
    data: Path,
    *,
    device: str = "auto",
    report_to: tuple[Tracker, ...] = (),
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Tensor]:
    """Train a model; its parameters at the end, on the CPU, in the first process (empty in the others).

    The given model is used up. A run that was killed resumes from its last complete checkpoint in `folder/training`.
    Raises `DataError` that names file and row, `UsageError` if batch sizes don't fit the devices.
    """
    on_gpu = find_device(device) == "cuda"
    if stage.optimizer == "adamw_8bit" and not on_gpu:
        raise UsageError(f"stage {stage.name}: optimizer adamw_8bit runs only on GPUs: take adamw on a CPU")
    config = replace(model.config, template=TemplateConfig(stage.template, model.config.template.image_first))
    rows = open_rows(stage, data, patches=config.vision.grid[0] if stage.patch_classes else 0)
    examples = Conversations(rows, config, tokenizer, stage.max_length)
    sharded = stage.shard and "LOCAL_RANK" in os.environ
    precision = precision_of(stage, on_gpu)
    arguments = _arguments(stage, folder / "training", on_gpu, precision, model if sharded else None, report_to)
    if arguments.n_gpu > 1:
        raise UsageError(
            f"one process sees {arguments.n_gpu} GPUs: start one for each with torchrun, or set CUDA_VISIBLE_DEVICES"
        )
    world = arguments.world_size
    if stage.batch_size % (stage.micro_batch_size * world):
        raise UsageError(
            f"stage {stage.name}: batch_size {stage.batch_size} is no multiple of micro_batch_size "
            f"{stage.micro_batch_size} on {world} devices: change one of them with --set"
        )
    if len(examples) < stage.micro_batch_size * world:
        raise DataError(
            f"stage {stage.name}: {len(examples)} examples do not fill one micro-batch of {stage.micro_batch_size} on "
            f"each of {world} devices: name more data, or lower micro_batch_size with --set"
        )
    arguments.gradient_accumulation_steps = stage.batch_size // (stage.micro_batch_size * world)
    steps = stage.steps or math.ceil(stage.epochs * len(examples) / stage.batch_size)
    arguments.warmup_steps = math.ceil(stage.warmup_ratio * steps)
    arguments.max_steps = steps
    gap = config.language_model.d_conv - 1 if stage.packing else 0
    collator = Collator(config.tokenizer.pad_token_id, gap, stage.max_length)
    measure = Measure.of(stage, model.config, config, tokenizer, collator, folder, data, sharded, say)
    trained = TrainedModel(model, stage)
    learning = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    say(f"stage {stage.name}: {len(examples)} examples, {steps} steps of {stage.batch_size}, {learning:,} parameters")
    scan = choose_backend(arguments.device, requires_grad=True)
    rate = matrix_rate(arguments.device, precision)
    how = f", {world} processes{', sharded' if sharded else ''}" if world > 1 or sharded else ""
    say(f"device {arguments.device}, scan {scan}")
    say(f"precision {precision}{how}; one device multiplies matrices at {rate / 1e12:.3g} TFLOP/s")
    if precision == "bf16" and not on_gpu:
        say("bf16 is slow on a CPU: precision: auto takes float32 there")
    folder.mkdir(parents=True, exist_ok=True)
    last = last_complete(folder / "training")
    if last:
        _check_begun(folder / "training", stage, sharded)
        say(f"resuming from {last}")
    elif arguments.process_index == 0:
        _note_begun(folder / "training", stage, sharded)
    callbacks: list[TrainerCallback] = [Log(folder / "log.jsonl", scan, say)]
    if stage.eval is not None:
        callbacks.append(_WhenToMeasure(stage.eval.every))
    with _tracker_folder(folder, report_to):
        trainer = StageTrainer(
            stage,
            Order(rows, steps, stage.batch_size, stage.seed, stage.group_by_length),
            Work(model),
            rate,
            measure,
            model=trained,
            args=arguments,
            train_dataset=examples,
            data_collator=collator,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        except DataError as error:
            # From a worker process the error comes with its traceback, the message in the last line.
            raise DataError(str(error).strip().rsplit("DataError: ", 1)[-1]) from None
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"stage {stage.name}: the device's memory does not hold {stage.micro_batch_size} examples at a time: "
                f"--set {stage.name}.micro_batch_size={max(1, stage.micro_batch_size // 2)} takes half (the batch "
                f"stays as large), {stage.name}.gradient_checkpointing=true and {stage.name}.shard=true less. {error}"
            ) from None
    if trainer.state.global_step < steps:
        raise EvalError(f"stage {stage.name}: training ended at step {trainer.state.global_step} of {steps}")
    return whole_parameters(cast(TrainedModel, trainer.accelerator.unwrap_model(trainer.model)), sharded)


# =============================================================================
# Where and how
# =============================================================================


def find_device(device: str) -> str:
    """`cpu` or `cuda`, for `auto` what there is."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no CUDA device here; leave it out, or --device cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def precision_of(stage: Stage, on_gpu: bool) -> str:
    """What products are computed in: `auto` is bf16 on a GPU that has it, float32 anywhere else."""
    if stage.precision != "auto":
        return stage.precision
    return "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "float32"


@contextlib.contextmanager
def _tracker_folder(folder: Path, report_to: tuple[Tracker, ...]) -> Any:
    """TensorBoard's files are beside the log, not in `training/`, which a finished stage deletes."""
    name = "TENSORBOARD_LOGGING_DIR"
    if "tensorboard" not in report_to or name in os.environ:
        yield
        return
    os.environ[name] = str(folder / "tensorboard")
    try:
        yield
    finally:
        del os.environ[name]


# What may be changed between a run and its resumption: it decides time and memory, not what is learnt.
_MAY_CHANGE = {
    *("micro_batch_size", "workers", "save_every", "log_every", "gradient_checkpointing", "packing", "shard", "eval")
}


def _settings(stage: Stage) -> dict[str, Any]:
    data = parse_json(msgspec.json.encode(stage))
    return {name: value for name, value in data.items() if name not in _MAY_CHANGE}


def _note_begun(folder: Path, stage: Stage, sharded: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**_settings(stage), "sharded": sharded}
    (folder / "stage.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _check_begun(folder: Path, stage: Stage, sharded: bool) -> None:
    """A resumed run keeps its optimizer and schedule: with other settings it would be neither run.

    The number of processes may be another one; whether they share the parameters may not: the files differ.
    """
    path = folder / "stage.json"
    begun = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if begun.get("sharded", sharded) != sharded:
        how = (
            "sharded: continue with `torchrun --nproc_per_node N -m vlmamba_eval.model_adapters.vlmamba.train.cli`, N "
            "being any number, 1 as well, and shard: true"
            if begun["sharded"]
            else "without shards: continue without a launcher, or with shard: false"
        )
        raise UsageError(f"{folder} was begun {how}; or name another --out.")
    changed = [
        f"{name} {begun[name]!r} (now {value!r})"
        for name, value in _settings(stage).items()
        if begun.get(name, value) != value
    ]
    if changed:
        raise UsageError(
            f"{folder} was begun with {', '.join(changed)}. Go on with the settings that it was begun with, or name "
            f"another --out."
        )


def last_complete(folder: Path) -> Path | None:
    """The newest checkpoint of the Trainer that was written to its end: `trainer_state.json` is its last file."""
    found = []
    for path in folder.glob("checkpoint-*"):
        try:
            state = parse_json((path / "trainer_state.json").read_text(encoding="utf-8"), constants=True)
            found.append((state["global_step"], path))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(found)[1] if found else None


def _arguments(
    stage: Stage, folder: Path, on_gpu: bool, precision: str, sharded: VLMamba | None, report_to: tuple[Tracker, ...]
) -> TrainingArguments:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(stage.workers, cpus)
    return TrainingArguments(
        output_dir=str(folder),
        run_name=f"{folder.parent.parent.name}/{stage.name}",
        per_device_train_batch_size=stage.micro_batch_size,
        learning_rate=stage.learning_rate,
        lr_scheduler_type=stage.schedule,
        weight_decay=stage.weight_decay,
        adam_beta2=stage.adam_beta2,
        max_grad_norm=stage.max_grad_norm,
        bf16=precision == "bf16",
        tf32=True if precision == "tf32" and on_gpu else None,
        optim="adamw_bnb_8bit" if stage.optimizer == "adamw_8bit" else "adamw_torch_fused",
        logging_nan_inf_filter=False,  # it waits for the device after every step
        logging_first_step=True,  # how long it will take
        seed=stage.seed,
        data_seed=stage.seed,
        logging_steps=stage.log_every,
        save_strategy="steps",
        save_steps=stage.save_every,
        save_total_limit=2,
        use_cpu=not on_gpu,
        ddp_timeout=_PATIENCE,
        ddp_find_unused_parameters=bool(stage.patch_classes),  # heads have no part in a batch without images
        fsdp=sharded is not None,  # type: ignore[arg-type]
        fsdp_config=_sharding(sharded) if sharded is not None else None,
        # Gradients are shared out after every micro-batch: whole ones, kept until the last, would fill the memory.
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}} if sharded is not None else None,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=list(report_to) or "none",
        disable_tqdm=True,
        dataloader_drop_last=True,
        dataloader_pin_memory=on_gpu,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        dataloader_prefetch_factor=8 if workers else None,
    )


def _sharding(model: VLMamba) -> dict[str, Any]:
    """FSDP: every block is gathered when its turn comes, in the forward pass and again in the backward pass."""
    layers = [model.language_model.backbone.layers, model.vision.encoder.layers]
    return {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": sorted({type(layer).__name__ for stack in layers for layer in stack}),
        "reshard_after_forward": True,
        "state_dict_type": "SHARDED_STATE_DICT",
    }


def save_model(
    folder: Path, parameters: dict[str, Tensor], config: ModelConfig, tokenizer: Tokenizer, dtype: torch.dtype
) -> None:
    """Write the checkpoint folder that evaluation reads; parameters that must stay in float32 do."""
    converted = {
        name: tensor.to(torch.float32 if keeps_float32(name) else dtype).contiguous()
        for name, tensor in parameters.items()
    }
    checkpoint.save(folder, converted, config, tokenizer)
