"""What `vlmamba-eval bench` does with its options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlmamba_eval.types import UsageError

PROFILES = ("uniform", "gqa", "pope", "vqav2", "mme", "lengths", "images")

LENGTHS = {"cpu": (512, 1024, 2048, 4096), "cuda": (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)}

# Questions that a slow contestant (a peer, or ours one by one) answers in each repeat.
_PART = {"cpu": 6, "cuda": 16}


def bench(
    *,
    model: str | None,
    shape: str | None,
    weights: Path | None,
    random_init: bool,
    device: str,
    dtype: str,
    profile: str,
    modes: Sequence[str],
    peers: Sequence[str] | None,
    repeats: int,
    images: int | None,
    lengths: Sequence[int],
    seed: int,
    out: Path,
    command: str,
    say: Callable[[str], None],
) -> list[Path]:
    """Measure, print the table, and write the files; returns their paths. `vlmamba-eval bench --help` has the options.

    Without model and shape, the smallest published shape is measured. `peers` None: transformers, if it can answer.

    Raises:
        UsageError: options that do not go together, or names that are not known.
    """
    from vlmamba_eval.model_adapters.shared.bench import machine

    from . import measure, report
    from .contestants import MODES, PEERS
    from .profiles import draw

    if model is None and shape is None:
        shape = "130m"
    if peers is None:
        peers = ("transformers",) if shape is not None and profile not in ("lengths", "images") else ()
    _check(model, shape, weights, profile, modes, peers)
    for given, known in ((modes, MODES), (peers, PEERS)):
        for name in given:
            if name not in known:
                raise UsageError(f"{name!r} is not known here. There are: {', '.join(known)}.")
    say("drawing or loading the model")
    subject = _subject(model, shape, weights, random_init, device, dtype, seed, bool(peers))
    kind = subject.device.partition(":")[0]
    about = machine(subject.device)
    if profile == "lengths":
        rows = measure.lengths(subject, lengths or LENGTHS[kind], repeats, seed, say)
    elif profile == "images":
        rows = measure.per_image(subject, measure.QUESTIONS_PER_IMAGE, modes, repeats, seed, say)
    else:
        # Several images, as an evaluation has them: as many as the engine reads at once.
        drawn = draw(profile, images or subject.engine.limits.images, seed)
        rows = measure.answering(subject, profile, drawn, modes, peers, repeats, _PART[kind], seed, say)
    report.show(rows, about)
    name = f"{profile}-{_file_name(subject.name)}-{kind}"
    paths = report.write(out, name, rows, about, command)
    if not any(path.suffix == ".png" for path in paths):
        say("No figure: it needs matplotlib, pip install 'vlmamba-eval[bench]'.")
    return paths


def _check(
    model: str | None,
    shape: str | None,
    weights: Path | None,
    profile: str,
    modes: Sequence[str],
    peers: Sequence[str],
) -> None:
    if model is not None and shape is not None:
        raise UsageError("Measure either a whole model (--model) or a language model by itself (--shape).")
    if shape is not None and weights is not None:
        raise UsageError("--shape has random weights; a checkpoint belongs to --model.")
    if model is not None and (peers or profile == "lengths"):
        raise UsageError(
            "transformers has no VL-Mamba to compare with: --peers and the profile `lengths` measure a language "
            "model by itself. Take --shape in place of --model."
        )
    if peers and profile == "images":
        raise UsageError("The profile `images` compares only our modes; leave out --peers.")
    if not modes:
        raise UsageError("--modes names none.")


def _subject(
    model: str | None,
    shape: str | None,
    weights: Path | None,
    random_init: bool,
    device: str,
    dtype: str,
    seed: int,
    peers: bool,
) -> Any:
    from vlmamba_eval.registry import load

    from ..adapter import VLMambaAdapter
    from ..config import MAMBA
    from .subject import of_adapter, of_shape

    if shape is not None:
        if shape not in MAMBA:
            raise UsageError(f"Unknown shape {shape!r}. There are: {', '.join(MAMBA)}.")
        return of_shape(f"mamba-{shape}", MAMBA[shape], device=device, dtype=dtype, seed=seed, keep_parameters=peers)
    assert model is not None  # noqa: S101 - one of the two is given
    options = {"device": device, "dtype": dtype, "random_init": random_init, "seed": seed}
    adapter = load(model, options | ({"weights": str(weights)} if weights else {}))
    if not isinstance(adapter, VLMambaAdapter):
        raise UsageError(f"{model} is not a VL-Mamba; the bench measures its engine's modes.")
    return of_adapter(adapter, seed)


def _file_name(name: str) -> str:
    return "".join(char if char.isalnum() or char in ".-" else "-" for char in name).strip("-")
