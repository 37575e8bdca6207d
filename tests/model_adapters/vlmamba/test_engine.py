"""The shared engine against the plain one, which answers every question by itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

from vlmamba_eval.model_adapters.vlmamba.adapter import VLMambaAdapter
from vlmamba_eval.model_adapters.vlmamba.config import ModelConfig, TemplateConfig
from vlmamba_eval.model_adapters.vlmamba.decoder import Decoder
from vlmamba_eval.model_adapters.vlmamba.engine import Engine, Limits
from vlmamba_eval.model_adapters.vlmamba.model import VLMamba
from vlmamba_eval.types import Generation, ImageQuestions, OutOfMemory, Question


class MakeAdapter(Protocol):
    def __call__(
        self,
        sharing: bool = True,
        limits: Limits | None = None,
        template: TemplateConfig | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> VLMambaAdapter: ...


SMALL = Limits(images=2, tokens=150, rows=5)
WORDS = ("is", "there", "a", "red", "blue", "circle", "left", "of", "the", "large", "square", "zebra", "42", "?", "\n")
OPTIONS = ("Yes", "No", "a red circle", "the large square at the left", "zebra")


def picture(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def text(seed: int, words: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(words))


def scores(results: Sequence[Sequence[Generation]]) -> list[tuple[float, int]]:
    return [(score.logprob, score.n_tokens) for group in results for answer in group for score in answer.likelihoods]


groups = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(0, 3)),
        st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 58), st.integers(1, 6)), max_size=40),
    ),
    max_size=4,
)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(drawn=groups, limits=st.sampled_from([None, SMALL]), packs=st.booleans())
def test_sharing_and_batching_change_no_token(
    adapter: MakeAdapter, drawn: list[tuple[int | None, list[tuple[int, int, int]]]], limits: Limits | None, packs: bool
) -> None:
    batch = [
        ImageQuestions(
            None if image is None else picture(image),
            tuple(Question(text(seed, words), limit) for seed, words, limit in questions),
        )
        for image, questions in drawn
    ]
    shared = adapter(True, limits)
    shared.engine.packs &= packs
    assert shared.generate(batch) == adapter(False).generate(batch)


def mixed_batch(continuations: bool = False) -> list[ImageQuestions]:
    rng = random.Random(1)

    def question(seed: int) -> Question:
        options = tuple(rng.sample(OPTIONS, rng.randint(1, 5))) if continuations else ()
        return Question(text(seed, rng.randint(0, 40)), rng.choice((1, 2, 9)), options)

    return [
        ImageQuestions(picture(i) if i % 3 else None, tuple(question(100 * i + j) for j in range(i))) for i in range(9)
    ]


def test_the_answers_of_these_tests_are_not_all_alike(adapter: MakeAdapter) -> None:
    """A model that always says one thing would make every equality here empty."""
    answers = [answer for group in adapter().generate(mixed_batch()) for answer in group]
    assert len({answer.text for answer in answers}) > len(answers) // 3
    asked = tuple(Question(text(i, 1 + i), 6) for i in range(12))
    by_picture = {
        tuple(answer.text for answer in adapter().generate([ImageQuestions(picture(i), asked)])[0]) for i in range(6)
    }
    assert len(by_picture) > 1  # the same questions about other pictures have other answers


def test_some_answers_end_and_some_are_cut(adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the most frequent token as end mark both stops occur, in the shared and the plain engine alike."""
    batch = mixed_batch()
    said: list[int] = []
    with monkeypatch.context() as patch:
        finish = Engine._generation
        patch.setattr(Engine, "_generation", lambda self, row: said.extend(row.answer[1:]) or finish(self, row))
        adapter().generate(batch)
    frequent = max(said, key=said.count)
    results = []
    for engine in (adapter().engine, adapter(True, SMALL).engine, adapter(False).engine):
        monkeypatch.setattr(engine, "eos", frequent)
        results.append(engine.generate(batch))
    assert results[0] == results[1] == results[2]
    stops = {answer.stop for group in results[0] for answer in group}
    assert stops == {"eos", "length"}
    for group, item in zip(results[0], batch, strict=True):
        for answer, question in zip(group, item.questions, strict=True):
            assert answer.n_tokens < question.max_new_tokens or answer.stop == "length"


def test_likelihoods_do_not_depend_on_sharing_or_batching(adapter: MakeAdapter) -> None:
    batch = mixed_batch(continuations=True)
    plain = adapter(False).rank(batch)
    padding = adapter()
    padding.engine.packs = False
    for shared in (adapter().rank(batch), adapter(True, SMALL).rank(batch), padding.rank(batch)):
        assert [[(a.text, a.prompt, a.stop) for a in group] for group in shared] == [
            [(a.text, a.prompt, a.stop) for a in group] for group in plain
        ]
        for (found, n), (expected, m) in zip(scores(shared), scores(plain), strict=True):
            assert n == m
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_best_continuation_has_the_greatest_mean_a_token(adapter: MakeAdapter) -> None:
    for group, item in zip(adapter().rank(mixed_batch(True)), mixed_batch(True), strict=True):
        for answer, question in zip(group, item.questions, strict=True):
            means = [score.logprob / score.n_tokens for score in answer.likelihoods]
            assert answer.text == question.continuations[means.index(max(means))]
            assert answer.stop == "likelihood"


def test_first_token_probabilities_are_those_of_generation(adapter: MakeAdapter) -> None:
    """The single token that generation says is the likeliest of all single tokens."""
    engine = adapter().engine
    [[said]] = engine.generate([ImageQuestions(picture(0), (Question("is it red", 1),))])
    candidates = tuple(dict.fromkeys([engine.tokenizer.decode([token]).strip() for token in range(300, 700)]))
    singles = tuple(word for word in candidates if word and len(engine.encode(" " + word)) == 1)
    [[ranked]] = engine.rank([ImageQuestions(picture(0), (Question("is it red", 1, singles),))])
    assert all(score.n_tokens == 1 for score in ranked.likelihoods)
    total = sum(2.718281828459045**score.logprob for score in ranked.likelihoods)
    assert 0 < total < 1
    if " " + said.text in {" " + word for word in singles}:
        assert ranked.text == said.text


def test_every_image_is_encoded_once_however_many_questions(adapter: MakeAdapter) -> None:
    shared, plain = adapter(), adapter(False)
    batch = [ImageQuestions(picture(i), tuple(Question(text(j, 5), 2) for j in range(7))) for i in range(5)]
    batch += [ImageQuestions(None, (Question("why", 2),)), ImageQuestions(picture(9), ())]
    before = shared.engine.images_encoded, plain.engine.images_encoded
    shared.generate(batch)
    plain.generate(batch)
    assert (shared.engine.images_encoded - before[0], plain.engine.images_encoded - before[1]) == (5, 35)


def test_the_answer_depends_on_image_and_text_alone(adapter: MakeAdapter) -> None:
    questions = tuple(Question(text(j, 3 * j), 5) for j in range(8))
    together = adapter().generate([ImageQuestions(picture(0), questions), ImageQuestions(picture(1), questions)])
    for image in (0, 1):
        backwards = adapter().generate([ImageQuestions(picture(image), questions[::-1])])[0][::-1]
        alone = [adapter().generate([ImageQuestions(picture(image), (q,))])[0][0] for q in questions]
        assert together[image] == backwards == alone


@pytest.mark.parametrize(
    "template",
    [
        TemplateConfig(image_first=True),
        TemplateConfig(name="cobra_zephyr", image_first=True),
        TemplateConfig(name="cobra_in_out"),
    ],
    ids=["vicuna, image first", "zephyr", "in out"],
)
def test_other_templates_share_as_well(adapter: MakeAdapter, template: TemplateConfig) -> None:
    batch = mixed_batch()
    assert adapter(True, None, template).generate(batch) == adapter(False, None, template).generate(batch)


def test_the_prompt_is_the_conversation_really_sent(adapter: MakeAdapter) -> None:
    batch = [
        ImageQuestions(picture(0), (Question("Is it red?", 1),)),
        ImageQuestions(None, (Question("Is it red?", 1),)),
    ]
    for shared in (True, False):
        with_image, without = adapter(shared).generate(batch)
        assert with_image[0].prompt.endswith("answers to the user's questions. USER: <image>\nIs it red? ASSISTANT:")
        assert without[0].prompt.endswith("answers to the user's questions. USER: Is it red? ASSISTANT:")


def test_rows_that_go_on_close_ranks(mild: Callable[[ModelConfig], VLMamba], micro: ModelConfig) -> None:
    language_model = mild(micro).language_model
    with torch.inference_mode():
        _, state = language_model.prefill(language_model.embed(torch.arange(42).view(6, 7)))
        for going in ([0, 1, 2, 3, 4, 5], [5], [], [1, 3, 4], [0, 5], [2, 3, 4, 5]):
            decoder = Decoder(language_model, 800, 6)
            decoder.add(0, state)
            order = decoder.close_ranks(6, going)
            assert sorted(order) == going
            for place, row in enumerate(order):
                assert torch.equal(decoder.pool.states[1][place], state.states[1][row])
                assert torch.equal(decoder.pool.tails[0][place], state.tails[0][row])


def test_nothing_to_do_is_done(adapter: MakeAdapter) -> None:
    assert adapter().generate([]) == []
    assert adapter().generate([ImageQuestions(picture(0), ())]) == [[]]
    assert adapter().rank([ImageQuestions(None, ())]) == [[]]


def test_no_token_is_generated_where_none_is_allowed(adapter: MakeAdapter) -> None:
    for shared in (True, False):
        [[none, one]] = adapter(shared).generate([ImageQuestions(None, (Question("a", 0), Question("a", 1)))])
        assert (none.text, none.n_tokens, none.stop) == ("", 0, "length")
        assert one.n_tokens == 1


def test_inputs_are_never_changed(adapter: MakeAdapter) -> None:
    image = picture(0)
    batch = [ImageQuestions(image, (Question("is it red", 3),))]
    adapter().generate(batch)
    assert torch.equal(image, picture(0))
    assert batch == [ImageQuestions(image, (Question("is it red", 3),))]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_device_without_memory_is_reported_and_the_engine_goes_on(
    adapter: MakeAdapter, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = mixed_batch()
    expected = adapter(True, SMALL).generate(batch)
    engine = adapter(True, SMALL).engine
    places: list[tuple[type, str]] = [(Engine, "_stack"), (Engine, "_prefill_ids"), (Decoder, "step")]
    for owner, method in places:
        for nth in (0, 2):
            calls = iter(range(10**6))
            original = getattr(owner, method)

            def failing(self: object, *args: object, calls=calls, nth=nth, original=original) -> object:
                if next(calls) == nth:
                    raise error
                return original(self, *args)

            with monkeypatch.context() as patch:
                patch.setattr(owner, method, failing)
                with pytest.raises(OutOfMemory):
                    engine.generate(batch)
            assert engine.generate(batch) == expected


def test_where_memory_is_short_less_is_done_at_once_from_then_on(
    adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget is found by trying: no later batch runs into the same wall."""
    engine = adapter(True, Limits(images=8, tokens=512, rows=40)).engine
    read = Engine._prefill_ids
    sizes: list[int] = []

    def short_of_memory(self: Engine, ids: Sequence[Sequence[int]], *more: object) -> object:
        sizes.append(len(ids))
        if len(ids) > 10:
            raise MemoryError
        return read(self, ids, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "_prefill_ids", short_of_memory)
    batch = [ImageQuestions(None, tuple(Question(text(j, 3), 2) for j in range(40)))]
    with pytest.raises(OutOfMemory):
        engine.generate(batch)
    assert engine.limits == Limits(images=4, tokens=256, rows=20)
    sizes.clear()
    assert engine.generate(batch) == adapter(False).generate(batch)
    assert 1 < max(sizes) <= 10


def test_other_errors_stay_what_they_are(adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Engine, "_prefill_ids", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        adapter().generate([ImageQuestions(None, (Question("a", 1),))])


def test_padding_rows_of_the_vocabulary_are_never_said(
    mild: Callable[[ModelConfig], VLMamba], micro: ModelConfig, tokenizer: Tokenizer
) -> None:
    model = mild(micro)
    with torch.no_grad():
        model.language_model.backbone.embedding.weight[tokenizer.get_vocab_size() :] *= 100
    made = VLMambaAdapter(model, tokenizer, weights="random:0")
    [[answer]] = made.generate([ImageQuestions(None, (Question("is it red", 8),))])
    assert answer.n_tokens == 8
    assert answer.text


def test_an_image_of_any_shape_is_prepared(adapter: MakeAdapter) -> None:
    for size in ((1, 1), (300, 20)):
        assert adapter().prepare(Image.new("RGB", size)).shape == (3, 32, 32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_shares_as_well(adapter: MakeAdapter, dtype: torch.dtype) -> None:
    shared, plain = (adapter(sharing, device="cuda", dtype=dtype).generate(mixed_batch()) for sharing in (True, False))
    answers = [(a, b) for x, y in zip(shared, plain, strict=True) for a, b in zip(x, y, strict=True)]
    different = sum(a != b for a, b in answers)
    assert different <= (0 if dtype == torch.float32 else len(answers) // 5)


@pytest.mark.gpu
def test_a_captured_step_says_what_the_step_says(mild: Callable[[ModelConfig], VLMamba], micro: ModelConfig) -> None:
    language_model = mild(micro).to("cuda").language_model
    language_model.prepare_for_inference()
    with torch.inference_mode():
        ids = torch.arange(35, device="cuda").view(5, 7)
        _, state = language_model.prefill(language_model.embed(ids))
        said = []
        for graphs in (True, False):
            decoder = Decoder(language_model, 800, 9, graphs=graphs)
            decoder.add(0, state)
            tokens, history = [1, 2, 3, 4, 5], []
            for going in ([0, 1, 2, 3, 4],) * 4 + ([0, 2, 4],) + ([0, 1, 2],) * 5:
                tokens = decoder.step(tokens)
                history.append(tokens)
                tokens = [tokens[place] for place in decoder.close_ranks(len(tokens), going)]
            said.append(history)
            assert bool(decoder._step._graphs) == graphs
        assert said[0] == said[1]
