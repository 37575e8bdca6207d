"""What every adapter must do, whatever model is behind it: each family's tests run these on an adapter of its own.

class TestContract(AdapterContract):
    @pytest.fixture
    def adapter(self) -> Adapter: ...
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from PIL import Image

from vlmamba_eval.adapter import Adapter, AdapterInfo, RanksContinuations
from vlmamba_eval.generate import checked
from vlmamba_eval.manifest import canonical_json
from vlmamba_eval.types import Failure, Generation, ImageQuestions, Question

ODD = ("", " ", "\n\n", "é ü 中文 🙂", "\u202eright to left", "<image>", "</s>", "<|endoftext|>", "\ud800", "a" * 300)
"""Texts that no benchmark asks, and that some data set holds."""


class AdapterContract:
    """Order, isolation, empty batches, text alone, duplicates, unreadable texts."""

    @pytest.fixture
    def adapter(self) -> Adapter:
        raise NotImplementedError("a fixture that gives the adapter to test")

    @staticmethod
    def texts(adapter: Adapter, batch: list[ImageQuestions]) -> list[list[str]]:
        """What the adapter says, each answer checked as the harness does."""
        found = checked(adapter.generate(batch), batch, lambda message: None)
        return [[one.text if isinstance(one, Generation) else f"FAILED: {one.message}" for one in row] for row in found]

    @staticmethod
    def batch(adapter: Adapter) -> list[ImageQuestions]:
        """Three pictures with one to three questions."""
        shown = (((40, 20), "red"), ((9, 30), "blue"), ((8, 8), "black"))
        pictures = [Image.new("RGB", size, colour) for size, colour in shown]
        questions = ("Is it red?", "What is it?\nAnswer in one word.", "Why?")
        return [
            ImageQuestions(adapter.prepare(picture), tuple(Question(text, 4) for text in questions[: i + 1]))
            for i, picture in enumerate(pictures)
        ]

    def test_it_says_what_decides_its_answers(self, adapter: Adapter) -> None:
        info = adapter.info
        assert isinstance(info, AdapterInfo)
        assert info.name
        assert info.weights
        assert info.image_tokens >= 0
        assert canonical_json(info)  # a manifest can hold it

    def test_every_question_has_its_answer_in_its_place(self, adapter: Adapter) -> None:
        batch = self.batch(adapter)
        found = self.texts(adapter, batch)
        assert [len(row) for row in found] == [1, 2, 3]
        assert self.texts(adapter, batch[::-1]) == found[::-1]

    def test_an_answer_does_not_depend_on_the_other_questions(self, adapter: Adapter) -> None:
        batch = self.batch(adapter)
        together = self.texts(adapter, batch)
        alone = [
            [self.texts(adapter, [ImageQuestions(item.image, (question,))])[0][0] for question in item.questions]
            for item in batch
        ]
        assert alone == together

    def test_an_empty_batch_and_an_image_without_questions_are_no_error(self, adapter: Adapter) -> None:
        assert self.texts(adapter, []) == []
        [first, *_] = self.batch(adapter)
        assert self.texts(adapter, [ImageQuestions(first.image, ())]) == [[]]

    def test_a_text_alone_is_answered(self, adapter: Adapter) -> None:
        assert len(self.texts(adapter, [ImageQuestions(None, (Question("Is it?", 3),))])[0]) == 1

    def test_equal_questions_get_equal_answers(self, adapter: Adapter) -> None:
        [item, *_] = self.batch(adapter)
        question = Question("Is it red?", 4)
        [row] = self.texts(adapter, [ImageQuestions(item.image, (question, question, question))])
        assert len(set(row)) == 1

    def test_nothing_that_is_given_is_changed(self, adapter: Adapter) -> None:
        batch = self.batch(adapter)
        before: Any = copy.deepcopy(batch)
        first = self.texts(adapter, batch)
        assert self.texts(adapter, before) == first == self.texts(adapter, batch)

    def test_a_text_that_nobody_should_ask_harms_no_other_question(self, adapter: Adapter) -> None:
        """It is answered, fails alone, or raises, which the harness turns into its failure."""
        [item, *_] = self.batch(adapter)
        usual = self.texts(adapter, [ImageQuestions(item.image, (Question("Is it red?", 4),))])[0][0]
        for text in ODD:
            asked = ImageQuestions(item.image, (Question(text, 2),))
            try:
                [[outcome]] = checked(adapter.generate([asked]), [asked], lambda message: None)
            except Exception as error:  # noqa: BLE001 - any exception is allowed here
                outcome = Failure("model_error", str(error))
            assert isinstance(outcome, Generation | Failure)
        assert self.texts(adapter, [ImageQuestions(item.image, (Question("Is it red?", 4),))])[0][0] == usual

    def test_ranking_scores_each_continuation(self, adapter: Adapter) -> None:
        if not isinstance(adapter, RanksContinuations):
            pytest.skip("this adapter does not rank")
        [item, *_] = self.batch(adapter)
        asked = ImageQuestions(item.image, (Question("Is it?", 1, ("Yes", "No", "Perhaps")),))
        [[outcome]] = checked(adapter.rank([asked]), [asked], lambda message: None)
        assert isinstance(outcome, Generation)
        assert outcome.stop == "likelihood"
        assert outcome.text in ("Yes", "No", "Perhaps")
        assert all(one.logprob <= 0 and one.n_tokens >= 1 for one in outcome.likelihoods)
