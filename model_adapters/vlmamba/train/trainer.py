"""One stage of training on transformers' Trainer.

The loss is the mean cross-entropy of the tokens of all answers in a micro-batch. Parts that don't learn stay as they
are, bit for bit. What a killed run needs to go on lies in `training/`, where a finished stage writes its checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from vlmamba_eval.model_adapters.vlmamba import checkpoint
from vlmamba_eval.model_adapters.vlmamba.config import ModelConfig, TemplateConfig
from vlmamba_eval.model_adapters.vlmamba.language_model import keeps_float32
from vlmamba_eval.model_adapters.vlmamba.model import VLMamba
from vlmamba_eval.model_adapters.vlmamba.scan import choose_backend
from vlmamba_eval.types import DataError, EvalError, UsageError

from .data import Collator, Conversations, StreamRows, open_rows
from .recipe import PARTS, Stage

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TrainedModel(nn.Module):
    """The model with its loss, and auxiliary heads on the encoder that no checkpoint keeps."""

    accepts_loss_kwargs = False  # a mean of the micro-batch, as the Trainer then expects

    def __init__(self, model: VLMamba, stage: Stage):
        super().__init__()
        self.model = model
        self.train_vision = "vision" in stage.train
        self.patch_weight = stage.patch_weight
        width = model.config.vision.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in stage.patch_classes.items()})
        for part in PARTS:
            getattr(model, part).requires_grad_(part in stage.train)
        model.language_model.gradient_checkpointing = stage.gradient_checkpointing

    def forward(
        self,
        ids: Tensor,
        image_at: Tensor,
        predict_at: Tensor,
        labels: Tensor,
        pixels: Tensor | None = None,
        patch_labels: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """A batch of `data.Collator` -> the loss, and its two parts where there are heads."""
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
        x, _ = self.model.language_model(embeds)  # [b, l, d_model]
        logits = self.model.language_model.logits(x.flatten(0, 1)[predict_at])  # [n, v]
        # The mean over the answers' tokens; 0 where a micro-batch has none (data.tokenise).
        loss = F.cross_entropy(logits, labels, reduction="sum") / max(1, len(labels))
        if not self.heads or patch_labels is None:
            return {"loss": loss, "answers": loss.detach()}
        patches = sum(
            F.cross_entropy(head(features).float().flatten(0, 1), patch_labels[name].flatten())
            for name, head in self.heads.items()
        )
        return {"loss": loss + self.patch_weight * patches, "answers": loss.detach()}


class StageTrainer(Trainer):
    """The Trainer with our rules for order and weight decay, and the loss of the answers alone in its log."""

    _answers: Tensor | float = 0.0
    _batches = 0
    _tokens = 0
    _predicted = 0  # tokens of answers since the start of this process

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        outputs = model(**inputs)
        self._answers, self._batches = self._answers + outputs["answers"], self._batches + 1
        self._tokens += inputs["ids"].numel()
        self._predicted += len(inputs["labels"])
        return outputs["loss"]

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        if "loss" in logs and self._batches:
            if not self._predicted:
                raise DataError(f"until step {self.state.global_step} no answer began within max_length: raise it")
            if not math.isfinite(logs["loss"]):
                raise EvalError(
                    f"the loss is {logs['loss']} at step {self.state.global_step}: lower learning_rate, or take "
                    f"float32, with --set and another --out. The checkpoints so far lie in {self.args.output_dir}."
                )
            logs["answers"] = float(self._answers) / self._batches
            logs["tokens"] = self._tokens * self.args.gradient_accumulation_steps / self._batches
            self._answers, self._batches, self._tokens = 0.0, 0, 0
        super().log(logs, *arguments, **options)

    def _get_train_sampler(self, *arguments: Any, **options: Any) -> Any:
        rows = getattr(self.train_dataset, "rows", None)
        if isinstance(rows, StreamRows) and self.train_dataset is not None:
            return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]
        return super()._get_train_sampler(*arguments, **options)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim > 1 and "embedding" not in name and not keeps_float32(name)
        ]


class _Log(TrainerCallback):
    """One line of JSON for each logged step, kept over a resumption up to the step that is resumed from.

    `seconds` count on from the last line that is kept; `scan` is the backend that trained.
    """

    def __init__(self, path: Path, scan: str, say: Callable[[str], None]):
        self.path, self.scan, self.say = path, scan, say
        self.began, self.first, self.before = time.monotonic(), 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began, self.first = time.monotonic(), state.global_step
        if not state.is_world_process_zero:
            return
        old = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        kept = [line for line in old if line.endswith("}") and json.loads(line)["step"] <= state.global_step]
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self.before = float(json.loads(kept[-1])["seconds"]) if kept else 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False  # the finished stage is written as a checkpoint of its own

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        line = {"step": state.global_step, "loss": round(float(logs["loss"]), 5), "answers": round(logs["answers"], 5)}
        line |= {"grad_norm": round(float(logs["grad_norm"]), 4), "learning_rate": float(logs["learning_rate"])}
        # A step's tokens on one device, image and padding counted in.
        seconds = self.before + time.monotonic() - self.began
        line |= {"tokens": round(logs["tokens"]), "seconds": round(seconds, 2), "scan": self.scan}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        rate = (state.global_step - self.first) / max(1e-9, time.monotonic() - self.began)
        losses = f"loss {line['loss']:.4f}  answers {line['answers']:.4f}"
        self.say(f"step {state.global_step}/{state.max_steps}  {losses}  {rate:.2f} steps/s")


def train_stage(
    model: VLMamba,
    tokenizer: Tokenizer,
    stage: Stage,
    folder: Path,
    data: Path,
    *,
    device: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Train a model in place. A run that was killed goes on from its last complete checkpoint in `folder/training`.

    Raises `DataError` that names file and row, `UsageError` where batch sizes don't fit the devices.
    """
    config = replace(model.config, template=TemplateConfig(stage.template, model.config.template.image_first))
    rows = open_rows(stage, data, patches=config.vision.grid[0] if stage.patch_classes else 0)
    examples = Conversations(rows, config, tokenizer, stage.max_length)
    arguments = _arguments(stage, folder / "training", device)
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
    trained = TrainedModel(model, stage)
    learning = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    say(f"stage {stage.name}: {len(examples)} examples, {steps} steps of {stage.batch_size}, {learning:,} parameters")
    scan = choose_backend(arguments.device, requires_grad=True)
    say(f"device {arguments.device}, scan {scan}")
    folder.mkdir(parents=True, exist_ok=True)
    last = last_complete(folder / "training")
    if last:
        _check_begun(folder / "training", stage)
        say(f"resuming from {last}")
    elif arguments.process_index == 0:
        _note_begun(folder / "training", stage)
    trainer = StageTrainer(
        model=trained,
        args=arguments,
        train_dataset=examples,
        data_collator=Collator(config.tokenizer.pad_token_id),
        callbacks=[_Log(folder / "log.jsonl", scan, say)],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except DataError as error:
        # From a worker process the error comes with its traceback, the message in the last line.
        raise DataError(str(error).strip().rsplit("DataError: ", 1)[-1]) from None
    if trainer.state.global_step < steps:
        raise EvalError(f"stage {stage.name}: training ended at step {trainer.state.global_step} of {steps}")


# What may be changed between a run and its resumption: it decides time and memory, not what is learnt.
_MAY_CHANGE = ("micro_batch_size", "workers", "save_every", "log_every", "gradient_checkpointing")


def _settings(stage: Stage) -> dict[str, Any]:
    data = json.loads(json.dumps(asdict(stage)))
    return {name: value for name, value in data.items() if name not in _MAY_CHANGE}


def _note_begun(folder: Path, stage: Stage) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").write_text(json.dumps(_settings(stage), indent=2) + "\n", encoding="utf-8")


def _check_begun(folder: Path, stage: Stage) -> None:
    """A resumed run goes on with its optimizer and schedule: with other settings it would be neither run."""
    path = folder / "stage.json"
    begun = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
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
            found.append((json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["global_step"], path))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(found)[1] if found else None


def _arguments(stage: Stage, folder: Path, device: str) -> TrainingArguments:
    on_gpu = device != "cpu" and torch.cuda.is_available()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(stage.workers, cpus)
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=stage.micro_batch_size,
        learning_rate=stage.learning_rate,
        lr_scheduler_type=stage.schedule,
        weight_decay=stage.weight_decay,
        adam_beta2=stage.adam_beta2,
        max_grad_norm=stage.max_grad_norm,
        bf16=stage.precision == "bf16",
        tf32=True if stage.precision == "tf32" and on_gpu else None,
        optim="adamw_torch_fused",
        logging_nan_inf_filter=False,  # it waits for the device after every step
        seed=stage.seed,
        data_seed=stage.seed,
        logging_steps=stage.log_every,
        save_strategy="steps",
        save_steps=stage.save_every,
        save_total_limit=2,
        use_cpu=device == "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        dataloader_drop_last=True,
        dataloader_pin_memory=on_gpu,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        dataloader_prefetch_factor=8 if workers else None,
    )


def save_model(folder: Path, model: VLMamba, config: ModelConfig, tokenizer: Tokenizer, dtype: torch.dtype) -> None:
    """Write the checkpoint folder that evaluation reads; parameters that must stay in float32 do."""
    parameters = {
        name: tensor.detach().to("cpu", torch.float32 if keeps_float32(name) else dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    checkpoint.save(folder, parameters, config, tokenizer)
