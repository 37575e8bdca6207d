"""The command line's `assemble` and `bench`: what is done with a VL-Mamba besides evaluating it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from vlmamba_eval.nearest import did_you_mean
from vlmamba_eval.options import names, say
from vlmamba_eval.types import UsageError


@click.command(short_help="Build a checkpoint folder from published parts.")
@click.argument("model", metavar="NAME")
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="The checkpoint to write.")
@click.option("--vision", metavar="ID|DIR", help="A SigLIP or CLIP of transformers. Default: the model's own.")
@click.option(
    "--language-model",
    metavar="ID|DIR",
    help="A Mamba-1 in either naming. Default: the model's own (state-spaces/...).",
)
@click.option(
    "--connector",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A safetensors file. Default: a fresh connector, recorded as untrained.",
)
@click.option("--tokenizer", metavar="ID|DIR|FILE", help="Default: the model's own (EleutherAI/gpt-neox-20b).")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of a fresh connector.")
def assemble(
    model: str,
    out: Path,
    vision: str | None,
    language_model: str | None,
    connector: Path | None,
    tokenizer: str | None,
    seed: int,
) -> None:
    """Build the checkpoint folder of model NAME from published parts: vision encoder, Mamba language model, connector.

    A fresh connector must be trained before its numbers mean anything (see `vlmamba-train --help`).
    """
    from .assemble import assemble as build
    from .config import PRESETS

    if model not in PRESETS:
        hint = did_you_mean(model, PRESETS, f"Models that can be assembled: {', '.join(PRESETS)}.")
        raise UsageError(f"Unknown model {model!r}. {hint}")
    build(
        PRESETS[model],
        out,
        vision=vision,
        language_model=language_model,
        connector=connector,
        tokenizer=tokenizer,
        seed=seed,
        say=say,
    )
    click.echo(out.resolve())


@click.command(short_help="Measure the speed of this machine.")
@click.option(
    "--family",
    type=click.Choice(["vlmamba", "llava"]),
    default="vlmamba",
    show_default=True,
    help="llava: a whole evaluation beside transformers, at LLaVA-1.5-7B's shape or of the checkpoint --model, on the "
    "profiles gqa, pope and mme. --modes, --peers and --lengths are for vlmamba.",
)
@click.option("--model", metavar="NAME|PATH", help="A whole model by name, or a checkpoint folder.")
@click.option(
    "--shape",
    metavar="130m|370m|790m|1.4b|2.8b",
    help="Only a Mamba language model, with random weights. Default: 130m.",
)
@click.option(
    "--weights", metavar="DIR", type=click.Path(path_type=Path), help="The checkpoint folder for a named model."
)
@click.option("--random-init", is_flag=True, help="Random weights for --model; a --shape always has them.")
@click.option("--device", metavar="cpu|cuda", default="auto", show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Precision of the weights. auto: float32 on cpu, bfloat16 on cuda.",
)
@click.option(
    "--profile",
    type=click.Choice(["uniform", "gqa", "pope", "vqav2", "mme", "lengths", "images"]),
    help="What is asked: 18 questions of 20 to 40 tokens about an image (the default), a benchmark's questions, texts "
    "of growing length, or more and more questions about an image.",
)
@click.option(
    "--modes",
    metavar="A,B,C",
    default="shared,unshared",
    show_default=True,
    help="Ours: shared, unshared (micro-batches that read the image for every question), one-by-one. Ratios are to "
    "the first.",
)
@click.option(
    "--peers",
    metavar="A,B|none",
    help="For a --shape: transformers (a question at a time; the default), transformers-batched. Slow ones answer a "
    "part of the questions, and the table says so.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Turns of every mode.")
@click.option(
    "--images", type=click.IntRange(min=1), help="Images of a profile. Default: 4 on cpu, on cuda 32, of a LLaVA 256."
)
@click.option("--lengths", metavar="A,B,C", default="", help="Tokens. Default: 512 to 4096 on cpu, to 65536 on cuda.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), default=Path("results/bench"), show_default=True)
def bench(family: str, modes: str, peers: str | None, lengths: str, profile: str | None, **options: Any) -> None:
    """Measure the speed of this machine: the engine's modes and transformers, in turns within one process.

    Prints a table of times and ratios with their spread, and writes it as CSV, Markdown and, if matplotlib is
    installed (the extra `bench`), a figure.
    """
    command = "vlmamba-eval " + " ".join(sys.argv[1:])
    if family == "llava":
        paths = _bench_llava(profile, command, **options)
    else:
        from .bench.command import bench as measure

        try:
            tokens = [int(length) for length in names(lengths)]
        except ValueError:
            raise UsageError(f"--lengths {lengths}: expected numbers of tokens, separated by commas.") from None
        entered = None if peers is None else [name for name in names(peers) if name != "none"]
        options |= {"profile": profile or "uniform", "lengths": tokens}
        paths = measure(modes=names(modes), peers=entered, command=command, say=say, **options)
    for path in paths:
        click.echo(path.resolve())


def _bench_llava(
    profile: str | None, command: str, shape: str | None, weights: Path | None, random_init: bool, **options: Any
) -> list[Path]:
    from vlmamba_eval.model_adapters.llava.bench import bench as measure

    if shape is not None or weights is not None or random_init:
        raise UsageError("--shape, --weights and --random-init are for --family vlmamba; a LLaVA is given as --model.")
    return measure(profiles=[profile] if profile else [], command=command, say=say, **options)
