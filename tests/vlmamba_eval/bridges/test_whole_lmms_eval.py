"""A whole run of lmms-eval on two local tasks with a bundled model, beside our own evaluation of the same questions.

Needs lmms-eval and all that it imports: run it in an environment of its own, with `pip install 'vlmamba-eval[lmms]'`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlmamba_eval.dataset import Dataset, load_dataset
from vlmamba_eval.images import read_image
from vlmamba_eval.registry import get_task, load
from vlmamba_eval.run import evaluate, question
from vlmamba_eval.store import read_answers, read_verdicts
from vlmamba_eval.types import Scoring

pytestmark = pytest.mark.slow
pytest.importorskip("lmms_eval.evaluator", reason="lmms-eval is not installed", exc_type=ImportError)

ROOT = Path(__file__).parents[3]
QUESTIONS = 60
GENERATION = """
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
task: ours_generate
test_split: test
output_type: generate_until
doc_to_visual: !function seen.picture
doc_to_text: !function seen.text
doc_to_target: target
generation_kwargs: {{max_new_tokens: 128, until: ["\\n\\n"]}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: true}}
metadata: [{{version: 0.0}}]
"""
RANKING = """
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
task: ours_rank
test_split: test
output_type: multiple_choice
doc_to_visual: !function seen.picture
doc_to_text: !function seen.text
doc_to_choice: !function seen.choices
doc_to_target: target
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: [{{version: 0.0}}]
"""
SEEN = """
def picture(doc):
    return [doc["image"].convert("RGB")]


def text(doc):
    return doc["text"]


def choices(doc):
    return list(doc["choices"])
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """lmms-eval's results and samples of both tasks, and the folders of our own runs on the same questions."""
    here = tmp_path_factory.mktemp("lmms")
    pope = _with_wrong_labels(load_dataset(get_task("pope"), "samples", limit=QUESTIONS, seed=1))
    seed = load_dataset(get_task("seed"), "samples", limit=QUESTIONS, seed=1)
    tasks = here / "tasks"
    tasks.mkdir()
    (tasks / "seen.py").write_text(SEEN)
    _write(pope, "generate", here / "pope.parquet")
    _write(seed, "likelihood", here / "seed.parquet")
    (tasks / "ours_generate.yaml").write_text(GENERATION.format(data=here / "pope.parquet"))
    (tasks / "ours_rank.yaml").write_text(RANKING.format(data=here / "seed.parquet"))
    command = [sys.executable, "-m", "lmms_eval", "--model", "vlmamba"]
    command += ["--model_args", f"model=vlmamba-tiny,dtype=float32,journal={here / 'journal.jsonl'}"]
    command += ["--tasks", "ours_generate,ours_rank", "--include_path", str(tasks), "--batch_size", "1"]
    command += ["--device", "cpu", "--log_samples", "--output_path", str(here / "out")]
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(here / "home"),
        "WANDB_MODE": "disabled",
    }
    environment = {**os.environ, **offline, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    results = sorted((here / "out").rglob("*_results.json"))
    assert results, (done.stdout + done.stderr)[-4000:]  # its exit code is 0 also when it fails
    adapter = load("vlmamba-tiny", {"device": "cpu", "dtype": "float32"})
    [generated] = evaluate(adapter, [pope], here / "ours")
    [ranked] = evaluate(adapter, [seed], here / "ours", scoring="likelihood")
    return {
        "results": json.loads(results[-1].read_text())["results"],
        "samples": {
            name: [json.loads(line) for line in next((here / "out").rglob(f"*_samples_{name}.jsonl")).open()]
            for name in ("ours_generate", "ours_rank")
        },
        "pope": (pope, generated.folder),
        "seed": (seed, ranked.folder),
        "journal": here / "journal.jsonl",
    }


def _with_wrong_labels(dataset: Dataset) -> Dataset:
    """Every third label turned round: the bundled model answers its own scenes without a fault."""
    other = {"yes": "no", "no": "yes"}
    samples = [
        sample if i % 3 else replace(sample, target=other[str(sample.target)])
        for i, sample in enumerate(dataset.samples)
    ]
    return replace(dataset, samples=samples)


def _write(dataset: Dataset, scoring: Scoring, path: Path) -> None:
    """Our questions as lmms-eval's documents."""
    import datasets

    rows: dict[str, list[Any]] = {"id": [], "image": [], "text": [], "choices": [], "target": []}
    for sample in dataset.samples:
        asked = question(dataset, sample, scoring)
        assert sample.image is not None
        rows["id"].append(sample.id)
        rows["image"].append({"bytes": read_image(sample.image), "path": None})
        rows["text"].append(asked.text)
        rows["choices"].append(list(asked.continuations))
        rows["target"].append(sample.target if scoring == "generate" else "ABCD".index(str(sample.target)))
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "choices": datasets.Sequence(datasets.Value("string")),
            "target": datasets.Value("string" if scoring == "generate" else "int64"),
        }
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def test_generated_answers_and_their_score_are_our_own(both: dict[str, Any]) -> None:
    dataset, folder = both["pope"]
    answers = read_answers(folder)
    theirs = {row["doc_id"]: _text(row) for row in both["samples"]["ours_generate"]}
    ours = {i: _generation(answers[sample.id]).text for i, sample in enumerate(dataset.samples)}
    assert theirs == ours
    credits = [row["credit"] for row in read_verdicts(folder)]
    accuracy = sum(credits) / len(credits)
    assert 0.3 < accuracy < 1  # neither all right nor all wrong
    [found] = [value for name, value in both["results"]["ours_generate"].items() if name.startswith("exact_match,")]
    assert found == pytest.approx(accuracy)


def test_ranked_choices_and_their_score_are_our_own(both: dict[str, Any]) -> None:
    _, folder = both["seed"]
    credits = [row["credit"] for row in read_verdicts(folder)]
    accuracy = sum(credits) / len(credits)
    assert 0.1 < accuracy < 1
    [found] = [value for name, value in both["results"]["ours_rank"].items() if name.startswith("acc,")]
    assert found == pytest.approx(accuracy)


def test_every_answer_is_in_the_journal(both: dict[str, Any]) -> None:
    lines = both["journal"].read_text().splitlines()
    assert len(lines) >= len(both["pope"][0].samples)


def _text(row: dict[str, Any]) -> str:
    found = row["filtered_resps"]
    while isinstance(found, list):
        found = found[0]
    return found


def _generation(answer: Any) -> Any:
    assert answer.generation is not None
    return answer.generation
