"""The README.md of a trained checkpoint: what it is, what it was trained on, how to load it, what was measured.

With it the folder can be uploaded as it is (`hf upload NAME FOLDER`), and transformers loads it from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmamba_eval import __version__
from vlmamba_eval.model_adapters.vlmamba.config import Mamba2LanguageModelConfig, ModelConfig
from vlmamba_eval.strict_json import parse_json

from .recipe import Data, Recipe, Stage


def write_card(folder: Path, recipe: Recipe, stage: Stage, config: ModelConfig) -> None:
    """Write `README.md` into the folder of a finished stage."""
    log, measured = _lines(folder / "log.jsonl"), _lines(folder / "eval.jsonl")
    provenance = config.provenance
    parts = {part: source for part, source in provenance.sources.items() if not part.startswith("stage ")}
    stages = {name: text for name, text in provenance.sources.items() if name.startswith("stage ")}
    header = ["library_name: transformers", "pipeline_tag: image-text-to-text", "tags: [vlmamba, mamba, llava]"]
    bases = [source for source in parts.values() if source.count("/") == 1 and " " not in source]
    header += ["base_model:", *(f"- {base}" for base in dict.fromkeys(bases))] if bases else []
    vision, language_model = config.vision, config.language_model
    kind = 2 if isinstance(language_model, Mamba2LanguageModelConfig) else 1
    connector = config.connector.kind + (f", scan {config.connector.scan}" if config.connector.kind != "mlp" else "")
    lines = [
        "---",
        *header,
        "---",
        "",
        f"# {config.name}",
        "",
        f"A model of the kind of VL-Mamba (arXiv 2403.13600), trained with vlmamba-eval {__version__} by the recipe "
        f"`{recipe.name}`. The paper's authors published no weights: this is not their model, and their numbers are "
        "not its numbers.",
        "",
        "| | |",
        "|---|---|",
        f"| encoder | {vision.kind}, {vision.image_size} px, {vision.image_tokens} tokens per image |",
        f"| connector | {connector} |",
        f"| language model | Mamba-{kind}, {language_model.n_layer} layers of width {language_model.d_model} |",
        f"| template | {config.template.name} |",
        *(f"| {part}, began as | {source} |" for part, source in parts.items()),
        *(f"| {name} | {text} |" for name, text in stages.items()),
        f"| last stage | {', '.join(stage.train)} on {_said(stage.data)}; batches of {stage.batch_size}, learning rate "
        f"{stage.learning_rate:g}{_lora(stage)} |",
    ]
    if log:
        lines += [f"| loss at step {log[-1]['step']} | {log[-1]['loss']:.4g} |"]
    if provenance.untrained:
        lines += ["", f"**Never trained: {', '.join(provenance.untrained)}.** Its answers mean nothing."]
    if measured:
        lines += ["", *_measured(measured)]
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "import vlmamba_eval.model_adapters.vlmamba.automodel  # pip install vlmamba-eval",
        "from transformers import AutoModelForImageTextToText",
        'model = AutoModelForImageTextToText.from_pretrained("THIS_FOLDER_OR_ITS_NAME")',
        "```",
        "",
        '`model.answer(PIL.Image.open("picture.jpg"), "What is this?")` answers one question. To measure it:',
        "",
        "    vlmamba-eval --model THIS_FOLDER --tasks gqa,pope,mme --data DIR",
        "",
        "## License",
        "",
        "None is stated here. Those of the parts and of the training data apply; fill it in before you publish this.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [parse_json(line, constants=True) for line in path.read_text(encoding="utf-8").splitlines()]


def _said(data: Data) -> str:
    return f"`{data.json}`" if data.json else f"the stream `{data.stream}`"


def _lora(stage: Stage) -> str:
    return f", low-rank updates of width {stage.lora.rank}" if stage.lora else ""


def _measured(lines: list[dict[str, Any]]) -> list[str]:
    """A table of what was found at each step, with everything that makes it incomparable."""
    marks = " ".join(lines[-1].get("marks", ()))
    names = [name for name in lines[-1] if name.startswith("eval_")]
    titles = ["held-out loss" if name == "eval_loss" else name.removeprefix("eval_") for name in names]
    rows = [["step", *titles], ["---"] * (1 + len(names))]
    # A resumed stage may have measured something else before.
    rows += [[f"{line['step']:,}", *(f"{line[n]:.4g}" if n in line else "" for n in names)] for line in lines]
    said = f", **{marks}**: not comparable with published numbers" if marks else ""
    return [f"Measured during training{said}:", "", *(f"| {' | '.join(row)} |" for row in rows)]
