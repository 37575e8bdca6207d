"""The bridge to lmms-eval keeps its contract: order, one encoding an image, unchanged arguments, a journal."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.toys import ToyAdapter


@pytest.fixture
def bridge(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The bridge's module on lmms-eval's base class, or on one of the same shape where lmms-eval is not installed."""
    try:
        import lmms_eval.api.model  # noqa: F401  # type: ignore[import-not-found]
    except ImportError:

        class Base:
            def __init__(self) -> None:
                self.task_dict: dict[str, Any] = {}

        for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
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


def test_text_after_a_stop_string_is_cut_off(bridge: Any) -> None:
    assert bridge._until("yes\n\nbecause", {"until": ["\n\n"]}) == "yes"
    assert bridge._until("yes", {}) == "yes"


def test_several_images_in_one_request_are_refused(bridge: Any) -> None:
    model = bridge.VLMambaForLmms()
    picture = Image.new("RGB", (2, 2))
    model.task_dict = {"task": {"test": [None]}}
    request = SimpleNamespace(args=("q", {}, lambda _: [picture, picture], 0, "task", "test"))
    with pytest.raises(Exception, match="2 images; VL-Mamba takes at most one"):
        model.generate_until([request])


def test_lmms_evals_own_registry_finds_the_model() -> None:
    registry = pytest.importorskip("lmms_eval.models.registry_v2")
    from vlmamba_eval.bridges import lmms_manifests

    [manifest] = lmms_manifests()
    assert isinstance(manifest, registry.ModelManifest)
    assert manifest.model_id == "vlmamba"
