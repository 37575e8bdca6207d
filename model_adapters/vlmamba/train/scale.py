"""Training on 1, 2, ... GPUs of one host, measured in one call: tokens per second, share of the matrix rate, memory.

    python -m vlmamba_eval.model_adapters.vlmamba.train.scale --gpus 1,2 --minutes 9 --out DIR

Every run trains the same steps of a stage of a recipe with random weights, in processes of its own, so that the loss
curves must agree; with random weights a loss means nothing else. `DIR/scale.json` and `DIR/scale.md` are written again
after every step: a call that is cut off has lost nothing. Runs go from what matters most to what may be left out:

    shard-N            FSDP on N devices (a single one has nothing to shard), for each N
    copies-N           whole copies on the largest number of devices (DistributedDataParallel)
    no-recompute       without gradient checkpointing, on one device
    padded, packed     conversations of very different lengths, padded and packed, on one device
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from vlmamba_eval.strict_json import parse_json

_STREAM = "made-up"


@click.command()
@click.option("--recipe", default="vlmamba-2.8b", show_default=True)
@click.option("--stage", default="instruction", show_default=True)
@click.option("--gpus", default="1,2", show_default=True, help="Numbers of devices, each a run.")
@click.option("--steps", default=12, show_default=True)
@click.option("--batch-size", default=16, show_default=True, help="Examples of a step, over all devices.")
@click.option("--micro-batch-size", default=8, show_default=True)
@click.option("--words", default=250, show_default=True, help="Words of a conversation, beside the image's tokens.")
@click.option("--minutes", default=9.0, show_default=True, help="No run begins that would end later.")
@click.option("--only", default="", help="Runs by name, separated by commas; all by default.")
@click.option("--device", type=click.Choice(["auto", "cpu"]), default="auto", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    recipe: str,
    stage: str,
    gpus: str,
    steps: int,
    batch_size: int,
    micro_batch_size: int,
    words: int,
    minutes: float,
    only: str,
    device: str,
    out: Path,
) -> None:
    """Measure a stage of a recipe on several numbers of devices."""
    counts = [int(count) for count in gpus.split(",")]
    most = max(counts)
    asked: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "micro_batch_size": micro_batch_size}
    runs = {f"shard-{n}": (n, {**asked, "shard": n > 1}) for n in counts}
    if most > 1:
        runs[f"copies-{most}"] = (most, {**asked, "shard": False})
    small = {**asked, "micro_batch_size": max(1, micro_batch_size // 2), "batch_size": max(1, batch_size // 2)}
    runs["no-recompute"] = (1, {**small, "gradient_checkpointing": False})
    runs["recompute"] = (1, {**small, "gradient_checkpointing": True})
    runs["padded"] = (1, {**asked, "spread": True})
    runs["packed"] = (1, {**asked, "spread": True, "packing": True})
    wanted = [name for name in only.split(",") if name] or list(runs)
    if unknown := sorted(set(wanted) - set(runs)):
        raise click.UsageError(f"there is no run {', '.join(unknown)}, only {', '.join(runs)}")
    ends = time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"recipe": recipe, "stage": stage, "words": words, "runs": {}}
    longest = 0.0
    for name in wanted:
        began = time.monotonic()
        if began + longest > ends:
            found["runs"][name] = {"left_out": "no time was left"}
            continue
        n, settings = runs[name]
        plan = {"recipe": recipe, "stage": stage, "words": words, "device": device, "seconds_left": ends - began}
        found["runs"][name] = {"devices": n, **settings}
        _watch(n, {**plan, **settings}, found["runs"][name], lambda: _write(out, found))
        longest = max(longest, time.monotonic() - began)
        _write(out, found)
    click.echo((out / "scale.md").read_text(encoding="utf-8"))


def _watch(n: int, plan: dict[str, Any], result: dict[str, Any], write: Any) -> None:
    """Run `n` processes and take over what they write, as they write it; they are ended when no time is left."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"] if n > 1 else []
        module = "vlmamba_eval.model_adapters.vlmamba.train.scale_run"
        command = [sys.executable, *launcher, "-m", module, str(folder), json.dumps(plan)]
        threads = str(max(1, (os.cpu_count() or 1) // (4 * n)))
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our own module
                command, stdout=output, stderr=subprocess.STDOUT, env={"OMP_NUM_THREADS": threads, **os.environ}
            )
            seen = -1
            while True:
                ended = process.poll() is not None
                lines = _lines(folder / "run" / "log.jsonl")
                if len(lines) != seen or ended:
                    seen = len(lines)
                    result |= _numbers(lines, folder)
                    result["wall_s"] = round(time.monotonic() - began, 1)
                    write()
                if ended:
                    break
                if time.monotonic() - began > plan["seconds_left"]:
                    process.terminate()
                    process.wait()
                    result["cut_off"] = "no time was left"
                    break
                time.sleep(0.5)
        if process.returncode and "cut_off" not in result:
            said = (folder / "output").read_text(encoding="utf-8", errors="replace").splitlines()
            errors = [line for line in said if "Error" in line]
            result["failed"] = "\n".join([*errors[:5], "...", *said[-30:]])[-4000:]


def _numbers(lines: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The losses of all steps, and rates over the steps after the first third, which compile kernels."""
    peak = folder / "peak.json"
    found: dict[str, Any] = parse_json(peak.read_text(encoding="utf-8"), constants=True) if peak.is_file() else {}
    found["losses"] = [line["loss"] for line in lines]
    settled = lines[max(1, len(lines) // 3) :]
    if settled:
        for name in ("tokens_per_second", "matrix_share", "padding", "seconds_per_step"):
            values = sorted(line[name] for line in settled)
            found[name] = values[len(values) // 2]
            found[f"{name}_range"] = [values[0], values[-1]]
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that is being written."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [parse_json(line, constants=True) for line in text[: text.rfind("\n") + 1].splitlines()]


def _write(out: Path, found: dict[str, Any]) -> None:
    for name, text in (("scale.json", json.dumps(found, indent=1) + "\n"), ("scale.md", _table(found))):
        temporary = out / f".{name}"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, out / name)


def _table(found: dict[str, Any]) -> str:
    runs: dict[str, dict[str, Any]] = found["runs"]
    first = next((run for run in runs.values() if run.get("losses")), {})
    card, versions = first.get("card", "?"), first.get("versions", "")
    lines = [
        f"Stage `{found['stage']}` of `{found['recipe']}`, random weights, {card}; {versions}. Medians, in brackets "
        "the smallest and the largest of the steps after the first third. The last column: the largest difference of "
        "a step's loss from the first run of the same steps.",
        "",
        "| run | devices | examples per step | micro-batch | s per step | tokens/s | share of the matrix rate | "
        "padding | peak GiB per device | loss differs by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        if "tokens_per_second" not in run:
            why = run.get("left_out") or run.get("cut_off") or ("failed" if "failed" in run else "under way")
            lines.append(f"| {name} | {run.get('devices', '')} | | | {why} | | | | | |")
            continue
        step, tokens, share = (
            f"{run[key] * scale:{form}} ({' to '.join(f'{end * scale:{form}}' for end in run[key + '_range'])})"
            for key, scale, form in (
                ("seconds_per_step", 1, ".2f"), ("tokens_per_second", 1, ",.0f"), ("matrix_share", 100, ".0f")
            )
        )  # fmt: skip
        same = next(
            other for other in runs.values()
            if other.get("losses") and _what_is_learnt(other) == _what_is_learnt(run)
        )  # fmt: skip
        differs = "-"
        if same is not run:
            pairs = zip(same["losses"], run["losses"], strict=False)
            differs = f"{max(abs(a - b) for a, b in pairs):.1e} of {run['losses'][0]:.2f}"
        peak = f"{run['peak_gib']:.1f}" if run.get("peak_gib") is not None else ""
        lines.append(
            f"| {name} | {run['devices']} | {run['batch_size']} | {run['micro_batch_size']} | {step} | {tokens} | "
            f"{share} % | {100 * run['padding']:.0f} % | {peak} | {differs} |"
        )
    return "\n".join(lines) + "\n"


def _what_is_learnt(run: dict[str, Any]) -> tuple[Any, ...]:
    return run.get("steps"), run.get("batch_size"), run.get("spread", False)


if __name__ == "__main__":
    main()
