"""`vlmamba-eval bench` at sizes that take seconds."""

from __future__ import annotations

import csv
import json
import math
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from vlmamba_eval.cli import cli
from vlmamba_eval.model_adapters.shared.bench import AboutImage, Asked, peak_memory, ratio, take_turns
from vlmamba_eval.model_adapters.vlmamba.bench import measure, report
from vlmamba_eval.model_adapters.vlmamba.bench.contestants import MODES, PEERS, contestants, spread
from vlmamba_eval.model_adapters.vlmamba.bench.full_suite import distinct, prepare, workload
from vlmamba_eval.model_adapters.vlmamba.bench.profiles import PROFILES, draw
from vlmamba_eval.model_adapters.vlmamba.bench.report import COLUMNS, Row
from vlmamba_eval.model_adapters.vlmamba.bench.subject import Subject, of_adapter, of_shape
from vlmamba_eval.model_adapters.vlmamba.config import LanguageModelConfig
from vlmamba_eval.types import UsageError

NANO = LanguageModelConfig(d_model=64, n_layer=4, vocab_size=512)


def quiet(line: str) -> None:
    """Progress is not what these tests are about."""


@pytest.fixture(scope="module")
def nano() -> Subject:
    return of_shape("nano", NANO, device="cpu", prefix_tokens=40, keep_parameters=True)


# =============================================================================
# Profiles
# =============================================================================


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_the_same_for_the_same_seed(name: str) -> None:
    assert draw(name, 20, seed=3) == draw(name, 20, seed=3)
    if name != "mme":
        assert draw(name, 20, seed=3) != draw(name, 20, seed=4)


def test_all_images_of_a_counted_profile_are_the_benchmarks_own_questions() -> None:
    gqa, pope = draw("gqa", 398, 0), draw("pope", 500, 0)
    assert sum(len(about.questions) for about in gqa) == 12_578
    assert sum(len(about.questions) for about in pope) == 8_910
    assert sum(about.distinct for about in pope) == 5_043  # equal questions come back in other splits
    assert {asked.tokens for about in pope for asked in about.questions} == {24, 25, 26}


def test_the_described_profile_has_the_published_mean() -> None:
    images = draw("vqav2", 4_000, 0)
    assert sum(len(about.questions) for about in images) / 4_000 == pytest.approx(214_354 / 40_504, rel=0.03)


def test_the_full_suite_asks_the_three_benchmarks_whole() -> None:
    images = workload(1.0, seed=0)
    assert len(images) == 2_085
    assert sum(len(about.questions) for about in images) == 23_862


# =============================================================================
# Subjects
# =============================================================================


def test_questions_have_the_lengths_of_the_profile(nano: Subject) -> None:
    images = draw("gqa", 3, 0)
    for about, item in zip(images, nano.batch(images), strict=True):
        found = [len(nano.asked_ids(question)) for question in item.questions]
        assert found[: about.distinct] == [asked.tokens for asked in about.questions[: about.distinct]]


def test_questions_have_the_lengths_of_the_profile_in_a_models_own_tokenizer() -> None:
    from vlmamba_eval.model_adapters.vlmamba import Options
    from vlmamba_eval.model_adapters.vlmamba.adapter import VLMambaAdapter, load

    adapter = load("vlmamba-tiny", Options(device="cpu", random_init=True))
    assert isinstance(adapter, VLMambaAdapter)
    subject = of_adapter(adapter)
    image = AboutImage(tuple(Asked(tokens, 2) for tokens in range(20, 42)), 22)
    (item,) = subject.batch([image])
    assert [len(subject.asked_ids(question)) for question in item.questions] == list(range(20, 42))


def test_repeated_questions_of_an_image_are_equal_texts(nano: Subject) -> None:
    (item,) = nano.batch([AboutImage((Asked(24, 2),) * 5, distinct=3)])
    assert len(set(item.questions)) == 3
    assert [len(once.questions) for once in distinct([item])] == [3]


# =============================================================================
# Contestants
# =============================================================================


def test_all_modes_and_peers_give_the_same_answers(nano: Subject) -> None:
    """Peers whose prompt held their padding token once answered something else."""
    batch = nano.batch(draw("uniform", 2, 0))
    entered = contestants(nano, batch, MODES, PEERS, part=5)
    answers = {contestant.name: contestant.answer() for contestant in entered}
    assert set(answers) == {*MODES, *PEERS}
    assert len(set(answers["shared"].values())) > 20, "answers that do not depend on the question prove nothing"
    for contestant in entered:
        assert list(answers[contestant.name]) == list(contestant.places)
        for place in contestant.places:
            assert answers[contestant.name][place] == answers["shared"][place], (contestant.name, place)


def test_the_part_that_a_slow_contestant_answers_is_spread_evenly() -> None:
    places = [(0, j) for j in range(18)]
    assert spread(places, None) == tuple(places)
    assert spread(places, 40) == tuple(places)
    assert [j for _, j in spread(places, 6)] == [1, 4, 7, 10, 13, 16]


# =============================================================================
# Measuring
# =============================================================================


def test_a_ratio_is_that_of_the_medians_with_the_spread_of_single_turns() -> None:
    found = ratio([10.0, 40.0, 20.0], [1.0, 2.0, 4.0])
    assert (found.of_medians, found.least, found.most) == (10.0, 5.0, 20.0)


def test_a_measurement_says_what_it_does_and_how_long_it_will_take() -> None:
    said: list[str] = []
    take_turns({"a": lambda: None, "b": lambda: None}, 2, "cpu", say=said.append)
    assert said[:2] == ["turn 1 of 2: a", "turn 1 of 2: b"]  # before each had a turn, nothing is known
    assert [line.split(",")[0] for line in said[2:]] == ["turn 2 of 2: b", "turn 2 of 2: a"]
    assert all(line.endswith(" s left") for line in said[2:])


def test_contestants_take_turns_and_another_one_is_first_each_time() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    times = take_turns(runs, 3, "cpu")
    assert "".join(order) == "abcbcacab"
    assert all(len(own.seconds) == 3 for own in times.values())


def test_each_turn_comes_after_its_own_warm_up_which_is_not_timed() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    warm_ups = {"b": lambda: (time.sleep(0.05), order.append("B"))}
    times = take_turns(runs, 2, "cpu", warm_ups)
    assert "".join(order) == "aBbBba"
    assert max(times["b"].seconds) < 0.05


def test_peak_memory_sees_what_a_block_takes_and_gives_back() -> None:
    with peak_memory("cpu") as peak:
        torch.ones(16 * 2**20).sum()  # 64 MiB
    if peak.used is not None:  # a sandbox may not let it be measured
        assert 60 * 2**20 < peak.used < 200 * 2**20
        pieces = [torch.ones(2**16) for _ in range(256)]  # 64 MiB that the C library keeps when it is freed
        del pieces
        with peak_memory("cpu") as again:
            pieces = [torch.ones(2**16) for _ in range(256)]
        assert again.used is not None
        assert 60 * 2**20 < again.used < 200 * 2**20


def test_the_table_of_a_profile_has_every_mode_and_its_spread(nano: Subject) -> None:
    rows = measure.answering(nano, "uniform", draw("uniform", 1, 0), MODES, ("transformers",), 2, 3, 0, quiet)
    assert [row.mode for row in rows] == [*MODES, "transformers"]
    for row in rows:
        assert row.repeats == 2
        assert row.seconds_min <= row.seconds <= row.seconds_max
        assert row.ratio_min <= row.ratio_max
        assert row.same_answers == row.compared == row.measured_questions
        assert row.ratio == pytest.approx(row.seconds / rows[0].seconds)
    assert [row.measured_questions for row in rows] == [18, 18, 3, 3]
    text = report.as_markdown(rows, {"processor": "one"}, "vlmamba-eval bench")
    assert "2 x 3 q." in text
    assert "extrapolated" in text


def test_reading_keeps_one_state_at_any_length_and_a_llama_keeps_more_and_more(
    nano: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "PIECE", 50)
    rows = measure.lengths(nano, (40, 80), 1, 0, quiet)
    kept = {(row.mode, row.prefix_tokens): row.kept_mib for row in rows}
    assert kept["whole", 40] == kept["whole", 80] == kept["pieces", 80]
    assert kept["llama", 80] == 2 * (kept["llama", 40] or math.nan)
    assert ("pieces", 40) not in kept


def test_a_llama_of_about_equal_size_stands_beside_every_published_shape() -> None:
    from transformers import LlamaForCausalLM

    from vlmamba_eval.model_adapters.vlmamba.config import MAMBA
    from vlmamba_eval.model_adapters.vlmamba.language_model import LanguageModel

    for name, shape in MAMBA.items():
        with torch.device("meta"):
            ours = sum(p.numel() for p in LanguageModel(shape).parameters())
            theirs = sum(p.numel() for p in LlamaForCausalLM(measure.llama_like(shape, 64)).parameters())
        assert 0.9 < theirs / ours < 1.1, name


# =============================================================================
# The command
# =============================================================================


def test_one_command_writes_a_table_a_csv_of_the_documented_columns_and_a_figure(tmp_path: Path) -> None:
    arguments = (
        "bench --model vlmamba-tiny --random-init --device cpu --profile vqav2 --repeats 2 --modes shared,unshared"
    )
    found = CliRunner().invoke(cli, [*arguments.split(), "--out", str(tmp_path)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    paths = {path.suffix: path for path in tmp_path.iterdir()}
    with paths[".csv"].open(encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == list(COLUMNS)
    assert [row["mode"] for row in rows] == ["shared", "unshared"]
    assert all(float(row["seconds"]) > 0 and row["repeats"] == "2" for row in rows)
    assert "processor:" in paths[".md"].read_text(encoding="utf-8")
    assert str(paths[".csv"].resolve()) in found.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--peers transformer", "There are: transformers"),
        ("--shape 130m --model vlmamba-tiny", "either a whole model"),
        ("--shape 131m", "There are: 130m"),
        ("--model vlmamba-tiny --peers transformers", "--shape in place of --model"),
        ("--model vlmamba-tiny --profile lengths", "--shape in place of --model"),
        ("--shape 130m --modes quick", "There are: shared"),
        ("--shape 130m --lengths many", "numbers of tokens"),
    ],
)
def test_options_that_do_not_go_together_say_what_does(arguments: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        CliRunner().invoke(cli, ["bench", *arguments.split()], catch_exceptions=False)


def test_figures_are_drawn_for_every_kind_of_profile(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    row = Row("uniform", "m", "shared", "cpu", "cpu", "float32", 1, 18, 600, 30.0, 4.0, 2, 18, 1.0, 0.9, 1.1, 1, 1, 1)
    for profile in ("uniform", "images", "lengths"):
        from dataclasses import replace

        path = tmp_path / f"{profile}.png"
        rows = [replace(row, profile=profile, prefix_tokens=n, kept_mib=1.0) for n in (512, 1024)]
        assert report.draw(rows, {"processor": "one"}, path)
        assert path.stat().st_size > 5_000


@pytest.mark.slow
def test_the_full_suite_runs_on_a_cpu_at_a_small_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.model_adapters.vlmamba.scan.authors import Kernel
    from vlmamba_eval.model_adapters.vlmamba.bench import full_suite
    from vlmamba_eval.model_adapters.vlmamba.scan import mamba_ssm

    for module in (full_suite, mamba_ssm):  # as if the authors' package were installed
        monkeypatch.setattr(module, "selective_scan_fn", Kernel)
    arguments = "--model vlmamba-tiny --dtype bfloat16 --fraction 0.004 --unshared 16 --compare 2 --repeats 1"
    monkeypatch.setattr("sys.argv", ["full_suite", *arguments.split(), "--out", str(tmp_path)])
    full_suite.main()
    results = json.loads((tmp_path / "full_suite.json").read_text(encoding="utf-8"))
    assert results["all questions, each asked: questions answered"] == results["questions"]
    assert results["compare: bfloat16, shared and unshared: answers that differ"] < 0.2
    for who in ("eager", "mamba_ssm", "mamba-ssm's kernel alone, from zero"):
        assert results[f"scan of 2 rows of 8 tokens, {who}, ms"] > 0


def test_the_full_suites_model_never_ends_an_answer_early() -> None:
    subject = prepare("vlmamba-tiny", "cpu", "float32", 0)
    assert subject.engine.eos == -1
