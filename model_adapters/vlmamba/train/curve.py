"""The loss curve of a training as a picture.

python -m vlmamba_eval.model_adapters.vlmamba.train.curve LOG... --out FILE.png
"""

from __future__ import annotations

from pathlib import Path

import click

from vlmamba_eval.strict_json import parse_json


@click.command()
@click.argument("logs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="PNG, SVG or PDF.")
def main(logs: tuple[Path, ...], out: Path) -> None:
    """Draw the answers' loss of stages that followed each other, from the log that each of them wrote."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise click.ClickException("drawing needs matplotlib: pip install matplotlib") from None

    axes = (figure := Figure(figsize=(7, 3.5), layout="constrained")).subplots()
    before = 0
    for path in logs:
        lines = [parse_json(line, constants=True) for line in path.read_text(encoding="utf-8").splitlines()]
        axes.plot([before + line["step"] for line in lines], [line["answers"] for line in lines], label=path.stem)
        before += lines[-1]["step"]
    axes.set(xlabel="step", ylabel="cross-entropy of the answers", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=120, metadata={"Software": None} if out.suffix == ".png" else None)
    click.echo(out)


if __name__ == "__main__":
    main()
