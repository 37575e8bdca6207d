"""VL-Mamba (arXiv 2403.13600): a vision encoder, a connector with a 2D selective scan, and a Mamba-1 language model.

config           every choice that decides the model, named; presets of the paper; JSON
vision           SigLIP and CLIP towers
connector        MLP, VSS-MLP, VSS-L2 with the bidirectional and the cross scan
language_model   Mamba-1 with a state that can be saved, forked and continued
mamba2           the Mamba-2 block, for the language model in its place
linear           matrix products on a CPU
tokenizer        texts to ids
scan             the selective scan and the causal convolution, by backend
ssd              Mamba-2's scan, by backend
model            the three parts as one module
making           models made without memory, then filled or drawn
checkpoint       a model as a folder
assemble         a checkpoint from published parts
engine           an image is read once: prefix states forked to all questions
decoder          rows of many images take their steps together
engine_adapter   the engine behind the harness's protocol, also for families that are built alike
adapter          a VL-Mamba there
commands         `vlmamba-eval assemble` and `vlmamba-eval bench`
tiny             the checkpoint that comes with the project
train, recipes   training, and its settings
bench            speed: what is measured, beside which peers
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from vlmamba_eval.registry import Family, registry
from vlmamba_eval.types import UsageError


@dataclass(frozen=True)
class Options:
    """The options of a VL-Mamba."""

    weights: Annotated[str | None, Meta(description="checkpoint folder, for a model that comes without weights")] = None
    device: Annotated[str, Meta(description="cpu, cuda, cuda:N, or auto: cuda if there is one")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(description="precision of the weights; auto: float32 on a CPU, bfloat16 on CUDA"),
    ] = "auto"
    random_init: Annotated[bool, Meta(description="random weights, for timing: tables say UNTRAINED")] = False
    seed: Annotated[int, Meta(description="seed of random_init")] = 0
    sharing: Annotated[bool, Meta(description="read an image once for all its questions")] = True


def _recognises(config: Mapping[str, Any]) -> bool:
    return str(config.get("format", "")).startswith("vlmamba-")


_BUNDLED = "vlmamba-tiny"


def _check(model: str, options: Options) -> None:
    """A named model without weights is told at once what can be had instead."""
    if model in FAMILY.models and model != _BUNDLED and not options.weights and not options.random_init:
        raise UsageError(no_weights(model))


def no_weights(model: str) -> str:
    """What to do about a model that nobody has published: build it, time it, or take another Mamba that is public."""
    others = [family for family in registry().families.values() if family.name not in (FAMILY.name, "constant")]
    ours = {
        f"assemble {model} --out DIR": "a checkpoint from published parts; the connector is fresh and untrained",
        "vlmamba-train vlmamba-2.8b --start DIR --data DIR --out DIR": "train it; or vlmamba-1.4b, or a recipe file",
        f"--model {model} --weights DIR --tasks gqa,pope,mme": "evaluate a checkpoint of your own",
        f"--model {model} --random-init --tasks gqa,pope,mme": "random weights, for timing alone",
        f"--model {_BUNDLED} --tasks gqa,pope,mme --data samples": "the bundled model, on drawn scenes",
    }
    lines = [f"{model} has no weights to load: no public VL-Mamba weights exist.", "What you can do:"]
    for command, text in ours.items():
        lines += [f"  {command if command.startswith('vlmamba-') else f'vlmamba-eval {command}'}", f"      {text}"]
    lines.append("Public models that run here now, with weights and questions from the hub:")
    lines += [f"  vlmamba-eval --model {name} --tasks gqa --data hub" for family in others for name in family.models]
    return "\n".join(lines)


FAMILY = Family(
    name="vlmamba",
    summary="a VL-Mamba checkpoint folder",
    load="vlmamba_eval.model_adapters.vlmamba.adapter:load",
    options=Options,
    takes="DIR",
    check=_check,
    recognises=_recognises,
    models={
        "vlmamba-tiny": "a few million parameters, bundled; reads drawn scenes only",
        "vlmamba-2.8b": "the paper's final model: SigLIP, VSS-L2 with BSM, Mamba-2.8B-SlimPajama",
        "vlmamba-1.4b": "the same with Mamba-1.4B",
        "vlmamba-1.4b-clip-mlp": "paper, table 2: CLIP, MLP, Mamba-1.4B",
        "vlmamba-2.8b-pile-clip-mlp": "paper, table 2: CLIP, MLP, Mamba-2.8B trained on the Pile",
        "vlmamba-2.8b-clip-mlp": "paper, tables 2 and 3: CLIP, MLP, Mamba-2.8B-SlimPajama",
        "vlmamba-2.8b-mlp": "paper, tables 3 and 4: SigLIP, MLP, Mamba-2.8B-SlimPajama",
        "vlmamba-2.8b-vss-mlp": "paper, table 4: SigLIP, VSS-MLP with BSM, Mamba-2.8B-SlimPajama",
        "vlmamba-2.8b-csm": "paper, table 5: SigLIP, VSS-L2 with CSM, Mamba-2.8B-SlimPajama",
        "vlmamba-mamba2-2.7b": "not in the paper: SigLIP, VSS-L2 with BSM, Mamba-2 2.7B",
    },
)
