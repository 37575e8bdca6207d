from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract import AdapterContract
from vlmamba_eval.adapter import Adapter
from vlmamba_eval.dataset import load_dataset
from vlmamba_eval.model_adapters.constant import Constant
from vlmamba_eval.registry import get_task, load
from vlmamba_eval.run import evaluate
from vlmamba_eval.types import UsageError


class TestContract(AdapterContract):
    @pytest.fixture
    def adapter(self) -> Adapter:
        return Constant("yes")


def test_the_word_is_chosen_by_name_or_by_option() -> None:
    assert load("constant:no").info.name == "constant-no"
    assert load("constant", {"word": "B"}).info.name == "constant-B"
    assert load("constant").info.name == "constant-yes"
    with pytest.raises(UsageError, match=r"no option 'wrod'\. Did you mean: word"):
        load("constant", {"wrod": "no"})


def test_a_model_that_always_says_yes_gets_its_closed_form_scores(tmp_path: Path) -> None:
    """POPE asks as often for a yes as for a no: accuracy 50, recall 100, F1 two thirds."""
    [outcome] = evaluate(Constant("yes"), [load_dataset(get_task("pope"), "samples")], tmp_path)
    values = {(score.metric, score.split): score.value for score in outcome.scores.scores}
    assert values["pooled_accuracy", "all"] == 50.0
    assert values["recall", "random"] == 100.0
    assert values["yes_ratio", "random"] == 100.0
    assert values["pooled_f1", "all"] == pytest.approx(200 / 3)
