"""The bridge to lmms-eval keeps its contract: order, one encoding an image, unchanged arguments, a journal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image

from tests.toys import ToyAdapter
from vlmamba_eval.types import (
    EvalError,
    Generation,
    ImageQuestions,
    Likelihood,
    Question,
    StoreError,
    UsageError,
)


@pytest.fixture
def bridge(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The bridge's module on lmms-eval's base class, or on one of the same shape if lmms-eval is not installed."""
    try:
        import lmms_eval.api.model  # noqa: F401  # type: ignore[import-not-found]
    except ImportError:

        class Base:
            def __init__(self) -> None:
                self.task_dict: dict[str, Any] = {}
                self._rank, self._world_size = 0, 1

            rank = property(lambda self: self._rank)
            world_size = property(lambda self: self._world_size)

        for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.api.instance"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        result = lambda text: SimpleNamespace(text=text)  # noqa: E731 - a class of one field
        sys.modules["lmms_eval.api.instance"].GenerationResult = result  # type: ignore[attr-defined]
        sys.modules["lmms_eval.api.model"].lmms = Base  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "vlmamba_eval.bridges.lmms_eval", raising=False)
    import vlmamba_eval.bridges.lmms_eval as module

    monkeypatch.setattr(module, "load", lambda *_, **__: ToyAdapter())
    return module


def requests(n_images: int, n_questions: int) -> tuple[dict[str, Any], list[Any]]:
    documents = [Image.new("RGB", (4, 4), "red" if i % 2 else "blue") for i in range(n_images)]
    options = {"max_new_tokens": 8, "until": ["\n\n"]}
    made = [
        SimpleNamespace(args=(f"q{q}", options, lambda document: [document], i, "task", "test"))
        for q in range(n_questions)
        for i in range(n_images)
    ]
    return {"task": {"test": documents}}, made


def test_answers_come_in_order_and_equal_pictures_are_read_once(bridge: Any) -> None:
    model = bridge.VLMambaForLmms()
    model.task_dict, asked = requests(6, 3)
    options = dict(asked[0].args[1])
    assert model.generate_until(asked) == ["blue", "red"] * 9
    assert model.adapter.images_prepared == 2  # six documents show two pictures
    assert len(model.adapter.asked) == 6
    assert asked[0].args[1] == options


def test_a_journal_answers_a_second_run(bridge: Any, tmp_path: Path) -> None:
    first = bridge.VLMambaForLmms(journal=str(tmp_path / "journal.jsonl"))
    first.task_dict, asked = requests(4, 2)
    answers = first.generate_until(asked)
    second = bridge.VLMambaForLmms(journal=str(tmp_path / "journal.jsonl"))
    second.task_dict = first.task_dict
    assert second.generate_until(asked) == answers
    assert second.adapter.asked == []


def test_a_torn_journal_is_healed_and_only_what_was_lost_is_asked_again(bridge: Any, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = bridge.VLMambaForLmms(journal=str(path))
    first.task_dict, asked = requests(2, 3)
    answers = first.generate_until(asked)
    path.write_bytes(path.read_bytes()[:-7])
    second = bridge.VLMambaForLmms(journal=str(path))
    second.task_dict = first.task_dict
    assert second.generate_until(asked) == answers
    assert len(second.adapter.asked) == 1
    path.write_bytes(path.read_bytes().replace(b"red", b"rde", 1))
    with pytest.raises(StoreError, match="this answer is damaged"):
        second.generate_until(asked)


def test_a_journal_is_written_by_one_process_at_a_time_and_each_rank_has_its_own(bridge: Any, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    model = bridge.VLMambaForLmms(journal=str(path))
    model.task_dict, asked = requests(1, 1)
    with FileLock(f"{path}.lock"), pytest.raises(StoreError, match="is being written by another process"):
        model.generate_until(asked)
    model._world_size, model._rank = 2, 1
    model.generate_until(asked)
    assert (tmp_path / "journal-1.jsonl").exists()
    assert not path.exists() or not path.read_bytes()


def test_a_question_that_fails_is_no_wrong_answer_and_the_others_are_kept(
    bridge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    monkeypatch.setattr(bridge, "load", lambda *_: ToyAdapter(poison="q1"))
    first = bridge.VLMambaForLmms(journal=str(path))
    first.task_dict, asked = requests(2, 3)
    with pytest.raises(EvalError, match=r"could not answer 2 of 6 questions: ValueError: the toy can't stand"):
        first.generate_until(asked)
    monkeypatch.setattr(bridge, "load", lambda *_: ToyAdapter())
    second = bridge.VLMambaForLmms(journal=str(path))
    second.task_dict = first.task_dict
    assert second.generate_until(asked) == ["blue", "red"] * 3
    assert second.adapter.asked == ["q1", "q1"]


def test_a_batch_that_does_not_fit_the_memory_is_halved(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "load", lambda *_: ToyAdapter(memory=2))
    model = bridge.VLMambaForLmms()
    model.task_dict, asked = requests(2, 5)
    assert model.generate_until(asked) == ["blue", "red"] * 5


class Ranker(ToyAdapter):
    """Finds the colour of the picture likely, the longer text by its number of letters."""

    def rank(self, batch: Sequence[ImageQuestions]) -> list[list[Generation]]:
        names = {(255, 0, 0): "red", (0, 0, 255): "blue"}

        def one(pixel: Any, question: Question) -> Generation:
            scored = tuple(
                Likelihood(-0.5 * len(text) if text == names[pixel] else -1.5 * len(text), len(text))
                for text in question.continuations
            )
            best = max(range(len(scored)), key=lambda i: scored[i].logprob / scored[i].n_tokens)
            return Generation(question.continuations[best], question.text, 1, "likelihood", scored)

        return [[one(item.image, question) for question in item.questions] for item in batch]


def test_choices_are_ranked_together_and_the_loss_is_the_least_for_the_best(
    bridge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "load", lambda *_: Ranker())
    documents = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    asked = [
        SimpleNamespace(args=("Which?", text, lambda document: [document], i, "task", "test"))
        for i in range(2)
        for text in (" red", " blue", " red wine")
    ]
    model: Any = None
    for _ in range(2):  # the second time from the journal
        model = bridge.VLMambaForLmms(journal=str(tmp_path / "journal.jsonl"))
        model.task_dict = {"task": {"test": documents}}
        found = [one.text for one in model.loglikelihood(asked)]
        assert found == [
            (0.5, True), (1.5, False), (1.5, False),
            (1.5, False), (0.5, True), (1.5, False),
        ]  # fmt: skip
    assert model.adapter.images_prepared == 0


def test_a_continuation_may_be_told_by_the_document(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "load", lambda *_: Ranker())
    model = bridge.VLMambaForLmms()
    model.task_dict = {"task": {"test": [Image.new("RGB", (4, 4), "red")]}}
    args = ("Which?", lambda document: "red", lambda document: [document], 0, "task", "test")
    assert [one.text for one in model.loglikelihood([SimpleNamespace(args=args)])] == [(0.5, True)]


def test_a_model_that_cannot_rank_says_so(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mute:
        info = ToyAdapter().info

    monkeypatch.setattr(bridge, "load", lambda *_: Mute())
    with pytest.raises(UsageError, match="cannot score given answers"):
        bridge.VLMambaForLmms().loglikelihood([])


def test_rounds_follow_each_other_until_the_task_says_that_it_is_over(bridge: Any) -> None:
    model = bridge.VLMambaForLmms()
    documents = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    model.task_dict = {"task": {"test": documents}}

    def next_text(document: Any, previous_output: list[str], round_idx: int, previous_round_info: Any) -> Any:
        assert previous_round_info == (None if round_idx == 1 else round_idx - 1)
        over = round_idx == (2 if previous_output[0] == "red" else 3)
        return [document], f"round {round_idx}: {previous_output[-1]}?", over, previous_output, round_idx

    options = {"max_new_tokens": 8, "until": ["\n\n"]}
    asked = [
        SimpleNamespace(args=("first", options, lambda document: [document], next_text, i, "task", "test"))
        for i in range(2)
    ]
    assert model.generate_until_multi_round(asked) == [["red"] * 2, ["blue"] * 3]
    assert model.adapter.asked == ["first", "first", "round 1: red?", "round 1: blue?", "round 2: blue?"]


def test_options_of_the_family_are_passed_on(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(bridge, "load", lambda *args: given.append(args) or ToyAdapter())
    bridge.VLMambaForLmms(model="constant", word="no", device="cuda:0", batch_size=4)
    bridge.VLMambaForLmms(model="vlmamba-tiny", device="cpu", sharing=False)
    assert given == [("constant", {"word": "no"}), ("vlmamba-tiny", {"sharing": False, "device": "cpu"})]


def test_text_after_a_stop_string_is_cut_off(bridge: Any) -> None:
    assert bridge._until("yes\n\nbecause", {"until": ["\n\n"]}) == "yes"
    assert bridge._until("yes", {}) == "yes"


def test_several_images_in_one_request_are_refused(bridge: Any) -> None:
    model = bridge.VLMambaForLmms()
    picture = Image.new("RGB", (2, 2))
    model.task_dict = {"task": {"test": [None]}}
    request = SimpleNamespace(args=("q", {}, lambda _: [picture, picture], 0, "task", "test"))
    with pytest.raises(UsageError, match="2 images; toy-model is shown at most one"):
        model.generate_until([request])


def test_lmms_evals_own_registry_finds_the_model() -> None:
    registry = pytest.importorskip("lmms_eval.models.registry_v2")
    from vlmamba_eval.bridges import lmms_manifests

    [manifest] = lmms_manifests()
    assert isinstance(manifest, registry.ModelManifest)
    assert manifest.model_id == "vlmamba"
