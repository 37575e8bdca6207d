"""`vlmamba-train` end to end, on models that train in seconds."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from vlmamba_eval.model_adapters.vlmamba import checkpoint
from vlmamba_eval.model_adapters.vlmamba.adapter import VLMambaAdapter
from vlmamba_eval.model_adapters.vlmamba.model import empty_model, random_model
from vlmamba_eval.model_adapters.vlmamba.train import curve, timing, trainer
from vlmamba_eval.model_adapters.vlmamba.train.cli import use_one_gpu
from vlmamba_eval.model_adapters.vlmamba.train.data import turns_of
from vlmamba_eval.model_adapters.vlmamba.train.recipe import FOLDER, load_recipe
from vlmamba_eval.model_adapters.vlmamba.train.run import _begin, run_recipe
from vlmamba_eval.model_adapters.vlmamba.train.trainer import last_complete, train_stage
from vlmamba_eval.tasks.samples.training import example
from vlmamba_eval.types import DataError, EvalError, ImageQuestions, Question, UsageError

from .conftest import write_recipe

README = Path(__file__).parents[4] / "model_adapters" / "vlmamba" / "recipes" / "README.md"

ALL: dict[str, Any] = {"train": ["vision", "connector", "language_model"]}


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(before: Path, after: Path) -> set[str]:
    """The parts of which some parameter differs by a bit."""
    old, new = parameters(before), parameters(after)
    assert set(old) == set(new)
    return {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}


def test_stage_1_changes_the_connector_alone_and_stage_2_leaves_the_encoder(tmp_path: Path, data: Path):
    stages = [
        {"name": "0", **ALL, "steps": 1},
        {"name": "1", "train": ["connector"], "template": "plain"},
        {"name": "2", "train": ["connector", "language_model"], "gradient_checkpointing": True},
    ]
    recipe = load_recipe(str(write_recipe(tmp_path, stages)))
    out = tmp_path / "out"
    run_recipe(recipe, out, data=data, device="cpu")
    assert changed(out / "0", out / "1") == {"connector"}
    assert changed(out / "1", out / "2") == {"connector", "language_model"}
    names = {
        name for name, tensor in parameters(out / "1").items() if not torch.equal(tensor, parameters(out / "2")[name])
    }
    assert {name.rsplit(".", 1)[-1] for name in names} >= {"A_log", "D", "weight", "bias"}
    config = checkpoint.load_config(out / "2")
    assert config.provenance.untrained == ()
    assert config.template.name == "vicuna_v1", "evaluation's template, whatever a stage trained with"
    assert "stage 1" in config.provenance.sources


def test_a_stage_that_trains_nothing_yet_is_recorded_as_untrained(tmp_path: Path, data: Path):
    recipe = load_recipe(str(write_recipe(tmp_path, [{"name": "one", "train": ["connector"], "steps": 1}])))
    run_recipe(recipe, tmp_path / "out", data=data, device="cpu")
    assert checkpoint.load_config(tmp_path / "out/one").provenance.untrained == ("vision", "language_model")


def test_sixteen_examples_are_learnt_by_heart_and_evaluation_says_exactly_them(tmp_path: Path):
    """The loss falls under 0.05, and the adapter, which reads the folder like any other, then gives the 16 answers."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [example("by heart", number, turns=1, captions=0) for number in range(16)]
    for number, row in enumerate(rows):
        row.pop("image").save(data / f"{number}.png")
        row["image"] = f"{number}.png"
    (data / "talk.json").write_text(json.dumps(rows))
    stage = {"name": "heart", **ALL, "data": {"json": "talk.json"}, "batch_size": 16, "micro_batch_size": 16}
    stage |= {"steps": 100, "learning_rate": 7e-3, "warmup_ratio": 0.05, "save_every": 1000, "log_every": 10}
    folder = run_recipe(load_recipe(str(write_recipe(tmp_path, [stage]))), tmp_path / "out", data=data, device="cpu")
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < 0.05
    model, _, tokenizer = checkpoint.load(folder)
    adapter = VLMambaAdapter(model, tokenizer, weights=checkpoint.fingerprint(folder))
    for row in rows:
        question, answer = turns_of(row["conversations"])[0]
        image = adapter.prepare(Image.open(data / row["image"]))
        ((said,),) = adapter.generate([ImageQuestions(image, (Question(question, max_new_tokens=32),))])
        assert (said.text, said.stop) == (answer, "eos")


def command(recipe: Path, out: Path, data: Path) -> list[str]:
    module = "vlmamba_eval.model_adapters.vlmamba.train.cli"
    return [sys.executable, "-m", module, str(recipe), "--out", str(out), "--data", str(data), "--device", "cpu"]


def test_a_killed_run_goes_on_and_ends_with_the_uninterrupted_weights(tmp_path: Path, data: Path):
    """SIGKILL after the second checkpoint; tolerance: none, on one CPU thread the weights are equal bit for bit."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    recipe = write_recipe(tmp_path, [{"name": "one", **ALL, "steps": 40, "save_every": 4, "patch_classes": {}}])
    run_recipe(load_recipe(str(recipe)), tmp_path / "whole", data=data, device="cpu")

    process = subprocess.Popen(command(recipe, tmp_path / "killed", data), env=environment, stdout=subprocess.PIPE)
    folder = tmp_path / "killed/one"
    deadline = time.monotonic() + 120
    while not (last_complete(folder / "training") or Path("-0")).name.endswith(("-8", "-12", "-16", "-20")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "config.json").exists(), "an unfinished stage is no checkpoint"

    said: list[str] = []
    run_recipe(load_recipe(str(recipe)), tmp_path / "killed", data=data, device="cpu", say=said.append)
    assert any(line.startswith("resuming from") for line in said)
    whole, resumed = parameters(tmp_path / "whole/one"), parameters(folder)
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
    logs = [(path / "log.jsonl").read_text().splitlines() for path in (tmp_path / "whole/one", folder)]
    curves = [[(json.loads(line)["step"], json.loads(line)["loss"]) for line in log] for log in logs]
    assert curves[0] == curves[1]
    assert not (folder / "training").exists()

    said.clear()
    run_recipe(load_recipe(str(recipe)), tmp_path / "killed", data=data, device="cpu", say=said.append)
    complete, to_measure = said
    assert complete == f"stage one is complete: {folder}"
    assert to_measure.startswith(f"To measure it: vlmamba-eval --model {folder} ")


def test_errors_of_the_command_say_what_to_do(tmp_path: Path, data: Path):
    recipe = write_recipe(tmp_path, [{"name": "one", **ALL}], start="checkpoint")
    with pytest.raises(UsageError, match="starts from a checkpoint: --start DIR"):
        run_recipe(load_recipe(str(recipe)), tmp_path / "out", data=data, device="cpu")
    recipe = write_recipe(tmp_path, [{"name": "one", **ALL, "batch_size": 5}])
    with pytest.raises(UsageError, match="batch_size 5 is no multiple of micro_batch_size 2"):
        run_recipe(load_recipe(str(recipe)), tmp_path / "out", data=data, device="cpu")
    recipe = write_recipe(tmp_path, [{"name": "one", **ALL}, {"name": "two", **ALL}])
    with pytest.raises(UsageError, match=r"stage two continues from .*one, which is not there"):
        run_recipe(load_recipe(str(recipe)), tmp_path / "out", data=data, only=("two",), device="cpu")
    with pytest.raises(UsageError, match="has no stage three, only one, two"):
        run_recipe(load_recipe(str(recipe)), tmp_path / "out", data=data, only=("three",), device="cpu")


def test_a_fresh_connector_is_put_between_known_parts(tmp_path: Path, data: Path):
    """As in the ablations: another connector, drawn from the recipe's seed, the encoder and language model kept."""
    out, one = tmp_path / "out", {"name": "one", "train": ["connector"], "steps": 1}
    before = run_recipe(load_recipe(str(write_recipe(tmp_path, [{**one, **ALL}]))), out / "a", data=data, device="cpu")
    path = write_recipe(tmp_path, [one], start="parts", connector={"kind": "mlp"})
    after = run_recipe(load_recipe(str(path)), out / "b", data=data, start=before, device="cpu")
    old, new = parameters(before), parameters(after)
    assert all(torch.equal(old[name], new[name]) for name in old if not name.startswith("connector"))
    assert {name for name in new if name.startswith("connector")} == {
        f"connector.mlp.{place}.{kind}" for place in (0, 2) for kind in ("weight", "bias")
    }
    plain = load_recipe(str(write_recipe(tmp_path, [one], start="checkpoint", connector={"kind": "mlp"})))
    with pytest.raises(UsageError, match="holds another model"):
        run_recipe(plain, out / "c", data=data, start=before, device="cpu")


def test_the_timing_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the script changes it
    path = write_recipe(tmp_path, [{"name": "one", **ALL}])
    options = ["--stage", "one", "--steps", "2", "--micro-batch-size", "1", "--words", "20"]
    done = CliRunner().invoke(timing.main, [str(path), *options, "--out", str(tmp_path / "found.json")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["tokens_per_second"] > 0
    assert found["counted_memory_gib"] == round(16 * found["parameters"] / 2**30, 2), "all parts learn"
    done = CliRunner().invoke(timing.main, [str(path), "--stage", "two"])
    assert done.exit_code == 2
    assert "has no stage two, only one" in done.output


def test_the_memory_counted_for_stage_2_is_that_of_the_model_and_stands_in_the_documentation():
    """At the full shape, on no device: weights, gradients and Adam's two moments in float32."""
    recipe = load_recipe("vlmamba-2.8b")
    model = empty_model(recipe.config)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert recipe.stages[1].train == ("connector", "language_model")
    counted = timing.counted_bytes(model, recipe.stages[1].train)
    learn, frozen = sizes["connector"] + sizes["language_model"], sizes["vision"]
    assert counted == {"weights": 4 * (learn + frozen), "gradients": 4 * learn, "adam_moments": 8 * learn}
    text = README.read_text()
    for parameters in (sizes["connector"], sizes["language_model"], learn, frozen):
        assert f"{parameters:,}" in text
    for size in (*counted.values(), sum(counted.values())):
        assert f"{size / 2**30:.2f} GiB" in text


def test_the_tables_of_the_documentation_are_those_of_the_study():
    """Nobody types a number: the recipes' README holds what the script makes of its own CSV."""
    folder = FOLDER / "ablations"
    spec = importlib.util.spec_from_file_location("study", folder / "study.py")
    assert spec is not None
    assert spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    rows = study.read(folder / "tiny.csv")
    runs = {(row["connector"], row["scan"]): set() for row in rows}
    for row in rows:
        runs[row["connector"], row["scan"]].add(row["seed"])
    assert runs == {
        (c, s): {"0", "1"} for c, s in (("mlp", ""), ("vss_mlp", "bsm"), ("vss_l2", "bsm"), ("vss_l2", "csm"))
    }
    assert study.table(rows) in README.read_text()


def test_the_curve_is_drawn_from_the_logs(tmp_path: Path):
    pytest.importorskip("matplotlib")
    log = tmp_path / "one.jsonl"
    log.write_text('{"step": 1, "answers": 2.0}\n{"step": 2, "answers": 1.0}\n')
    assert CliRunner().invoke(curve.main, [str(log), "--out", str(tmp_path / "curve.png")]).exit_code == 0
    assert (tmp_path / "curve.png").stat().st_size > 1000


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_stops_the_run_with_its_file_and_number(tmp_path: Path, data: Path, workers: int):
    (data / "images/blue.png").write_bytes(b"no picture")
    recipe = load_recipe(str(write_recipe(tmp_path, [{"name": "one", **ALL, "workers": workers}])))
    with pytest.raises(DataError, match=r"^\S*talk\.json, row \d+: expected an image at .*blue\.png, found"):
        run_recipe(recipe, tmp_path / "out", data=data, device="cpu")


def test_the_log_names_the_backend_that_trained(tmp_path: Path, data: Path):
    said: list[str] = []
    recipe = load_recipe(str(write_recipe(tmp_path, [{"name": "one", **ALL, "steps": 1}])))
    folder = run_recipe(recipe, tmp_path / "out", data=data, device="cpu", say=said.append)
    assert "device cpu, scan autograd" in said
    assert json.loads((folder / "log.jsonl").read_text())["scan"] == "autograd"


def test_master_weights_stay_float32_between_stages(tmp_path: Path, data: Path):
    """`save_dtype` rounds the last checkpoint alone; before that, what does not learn keeps all of its bits."""
    stages = [{"name": "0", **ALL, "steps": 1}, {"name": "1", "train": ["connector"], "steps": 1, "precision": "bf16"}]
    stages.append({"name": "2", "train": ["connector", "language_model"], "steps": 1})
    out = tmp_path / "out"
    run_recipe(load_recipe(str(write_recipe(tmp_path, stages, save_dtype="bfloat16"))), out, data=data, device="cpu")
    assert changed(out / "0", out / "1") == {"connector"}
    before, last = parameters(out / "1"), parameters(out / "2")
    assert {tensor.dtype for tensor in before.values()} == {torch.float32}
    assert last["language_model.backbone.embedding.weight"].dtype == torch.bfloat16
    for name, tensor in last.items():
        if name.startswith("vision."):
            assert torch.equal(tensor, before[name].to(tensor.dtype)), name


@pytest.mark.parametrize(("given", "left"), [(None, "0"), ("2,3", "2"), ("", ""), ("GPU-1a,GPU-2b", "GPU-1a")])
def test_a_process_without_a_launcher_sees_one_gpu(monkeypatch: pytest.MonkeyPatch, given: str | None, left: str):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given or "")
    if given is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    use_one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left


def test_a_process_that_sees_two_gpus_is_told_to_use_a_launcher(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trainer.TrainingArguments, "n_gpu", 2)
    with pytest.raises(UsageError, match="one process sees 2 GPUs: start one for each with torchrun"):
        run_recipe(
            load_recipe(str(write_recipe(tmp_path, [{"name": "one", **ALL}]))), tmp_path, data=data, device="cpu"
        )


def test_fewer_examples_than_a_micro_batch_are_refused(tmp_path: Path, data: Path):
    """The Trainer would train nothing and call it complete."""
    recipe = load_recipe(
        str(write_recipe(tmp_path, [{"name": "one", **ALL, "batch_size": 32, "micro_batch_size": 32}]))
    )
    with pytest.raises(DataError, match="16 examples do not fill one micro-batch of 32"):
        run_recipe(recipe, tmp_path / "out", data=data, device="cpu")
    assert not (tmp_path / "out/one/config.json").exists()


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, data: Path):
    stage = {"name": "one", **ALL, "learning_rate": 1e30, "max_grad_norm": 0, "steps": 9}
    with pytest.raises(EvalError, match=r"the loss is (nan|inf) at step \d: lower learning_rate"):
        run_recipe(load_recipe(str(write_recipe(tmp_path, [stage]))), tmp_path / "out", data=data, device="cpu")
    assert not (tmp_path / "out/one/config.json").exists()


def test_a_micro_batch_without_an_answer_within_max_length_teaches_nothing(tmp_path: Path, data: Path):
    """As in LLaVA an overlong question stays in; the loss is 0 there, not 0 / 0. With such rows alone the run ends."""
    rows = json.loads((data / "talk.json").read_text())
    long = {"conversations": [{"from": "human", "value": "why " * 600}, {"from": "gpt", "value": "So."}]}
    (data / "talk.json").write_text(json.dumps([*rows[:12], long, long, long, long]))
    stage = {"name": "one", **ALL, "max_length": 128, "micro_batch_size": 1, "log_every": 6}
    folder = run_recipe(load_recipe(str(write_recipe(tmp_path, [stage]))), tmp_path / "out", data=data, device="cpu")
    assert 0 < json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["loss"] < 10
    assert all(tensor.isfinite().all() for tensor in parameters(folder).values())
    (data / "talk.json").write_text(json.dumps([long] * 16))
    with pytest.raises(DataError, match="until step 6 no answer began within max_length"):
        run_recipe(load_recipe(str(write_recipe(tmp_path, [stage]))), tmp_path / "none", data=data, device="cpu")


def test_a_run_is_resumed_with_the_settings_that_it_was_begun_with(tmp_path: Path, data: Path):
    """Time and memory may be decided anew; what is learnt may not."""

    def run(*overrides: str, steps: int) -> None:
        recipe = load_recipe(str(write_recipe(tmp_path, [{"name": "one", **ALL, "steps": 4}])), overrides)
        (stage,) = recipe.stages
        model, tokenizer = random_model(recipe.config, 0), begun[1]
        stop = iter(range(steps))

        def say(line: str) -> None:
            if line.startswith("step") and next(stop, None) is None:
                raise KeyboardInterrupt

        train_stage(model, tokenizer, stage, tmp_path / "out/one", data, device="cpu", say=say)

    first = load_recipe(str(write_recipe(tmp_path, [{"name": "one", **ALL, "steps": 4}])))
    begun = _begin(first, None, data)
    with pytest.raises(KeyboardInterrupt):
        run(steps=2)
    with pytest.raises(
        UsageError, match=r"was begun with learning_rate 0\.001 \(now 0\.002\), seed 0 \(now 3\)\. Go on"
    ):
        run("one.learning_rate=0.002", "one.seed=3", steps=9)
    run("one.micro_batch_size=4", "one.save_every=1", steps=9)
    log = [json.loads(line) for line in (tmp_path / "out/one/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    seconds = [line["seconds"] for line in log]
    assert seconds == sorted(seconds), "they count on"


@pytest.mark.slow
def test_two_processes_train_the_model_that_one_trains(tmp_path: Path, data: Path):
    """Micro-batches are shared out instead of accumulated; the weights agree to rounding."""
    recipe = write_recipe(tmp_path, [{"name": "one", **ALL}, {"name": "two", "train": ["connector"]}])
    run_recipe(load_recipe(str(recipe)), tmp_path / "alone", data=data, device="cpu")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = command(recipe, tmp_path / "both", data)[2:]
    done = subprocess.run([*launch, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stage two is complete") == 1
    alone, both = parameters(tmp_path / "alone/two"), parameters(tmp_path / "both/two")
    for name, tensor in alone.items():
        assert torch.allclose(tensor, both[name], rtol=0, atol=1e-5), name


def test_auxiliary_heads_teach_the_encoder_and_are_not_kept(tmp_path: Path):
    stream = {"stream": "vlmamba_eval.tasks.samples.training:example", "seed": "heads", "options": {"turns": 1}}
    classes = {"shape": 7, "color": 9}
    stage = {"name": "0", **ALL, "data": stream, "patch_classes": classes, "patch_weight": 1.0, "steps": 2}
    recipe = load_recipe(str(write_recipe(tmp_path, [stage])))
    folder = run_recipe(recipe, tmp_path / "out", device="cpu")
    checkpoint.load(folder)
    first = json.loads((folder / "log.jsonl").read_text().splitlines()[0])
    assert first["loss"] > first["answers"] > 0
