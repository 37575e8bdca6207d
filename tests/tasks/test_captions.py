"""Captions: metrics from sums equal pycocoevalcap's own, every annotation format, and honest gaps without Java."""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from vlmamba_eval.dataset import read_folder, read_hub
from vlmamba_eval.folder import Folder
from vlmamba_eval.hub import Hub
from vlmamba_eval.images import read_image
from vlmamba_eval.sums import Sums
from vlmamba_eval.tasks import caption_metrics
from vlmamba_eval.tasks.captions import PROMPT, TASKS, Captions
from vlmamba_eval.types import DataError, EvalError, Loaded

pytest.importorskip("pycocoevalcap.cider.cider")

COCO, NOCAPS, FLICKR30K, TEXTCAPS = TASKS
Put = Callable[[str, Any], Path]
Scores = dict[tuple[str, str], float]
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="the official tokeniser needs Java")

WORDS = (
    "A man rides riding the small brown horse horses on beach, quickly; isn't it? dog's (two) dogs play—café 3.5 U.S."
)


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS.split(), k=rng.randint(3, 11))) + rng.choice([".", "", "!", "\n"])


def corpus(n: int = 12, seed: int = 0) -> tuple[dict[str, list[str]], dict[str, str]]:
    """References and captions by id; some captions are a reference, one is empty, one has odd characters."""
    rng = random.Random(seed)
    references = {str(i): [sentence(rng) for _ in range(rng.randint(1, 5))] for i in range(n)}
    captions = {key: rng.choice([sentence(rng), rng.choice(of)]) for key, of in references.items()}
    captions["3"], captions["4"] = "", "A dog\u2028on a\r\nbeach\x85 | ||| horse"
    return references, captions


def nocaps(put: Put, references: dict[str, list[str]], domains: dict[str, str] | None = None) -> Loaded:
    domains = domains or {}
    images = [{"id": int(key), **({"domain": domains[key]} if key in domains else {})} for key in references]
    annotations = [{"image_id": int(key), "caption": text} for key, of in references.items() for text in of]
    path = put("nocaps/nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})
    return read_folder(NOCAPS, path.parents[1])


def official(references: dict[str, list[str]], captions: dict[str, str], *, meteor: bool = False) -> dict[str, float]:
    """What pycocoevalcap's own classes give, in percent."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokeniser = PTBTokenizer()
    gts = tokeniser.tokenize({key: [{"caption": text} for text in of] for key, of in references.items()})
    res = tokeniser.tokenize({key: [{"caption": " ".join(text.split())}] for key, text in captions.items()})
    scores = {f"bleu_{i}": score for i, score in enumerate(Bleu(4).compute_score(gts, res, verbose=0)[0], 1)}
    scores |= {"cider": Cider().compute_score(gts, res)[0], "rouge_l": Rouge().compute_score(gts, res)[0]}
    if meteor:
        scores["meteor"] = Meteor().compute_score(gts, res)[0]
    return {name: 100 * float(score) for name, score in scores.items()}


@pytest.fixture
def no_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR's program takes many seconds to start."""
    monkeypatch.setattr(caption_metrics, "_meteor", lambda references, candidates: {key: {} for key in references})


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_metrics.shutil, "which", lambda name: None)


# =============================================================================
# Metrics
# =============================================================================


@needs_java
@pytest.mark.usefixtures("no_meteor")
def test_sums_over_pictures_give_pycocoevalcaps_numbers(put: Put, score: Callable[..., Scores]) -> None:
    references, captions = corpus()
    scores = score(NOCAPS, nocaps(put, references), captions)
    for name, value in official(references, captions).items():
        assert scores[name, "all"] == pytest.approx(value, rel=1e-9), name


def test_no_caption_metric_is_made_of_right_and_wrong_captions() -> None:
    """Else its interval would widen as if every caption were wrong: their credit is 0."""
    sums = Sums({}, np.zeros((1, 0)), ("near-domain",), NOCAPS.columns)
    assert {metric.upper for metric in NOCAPS.metrics(sums)} == {None}


@needs_java
@pytest.mark.slow
def test_meteor_of_sums_is_the_number_of_its_own_program(put: Put, score: Callable[..., Scores]) -> None:
    references, captions = corpus(40, seed=1)
    scores = score(NOCAPS, nocaps(put, references), captions)
    for name, value in official(references, captions, meteor=True).items():
        assert scores[name, "all"] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize(
    "words", ["a dog", "a dog on the beach runs", "a dog runs on a beach and then it runs again there"]
)
def test_bleu_is_pycocoevalcaps_of_captions_that_are_too_short_and_too_long(words: str) -> None:
    from pycocoevalcap.bleu.bleu import Bleu

    references = {"1": ["a dog runs on the beach", "the dog runs along a wide beach"], "2": ["a cat"]}
    candidates = {"1": [words], "2": ["a cat sleeps"]}
    amounts = caption_metrics._bleu(references, candidates)
    names = list(amounts["1"])
    total = np.array([[sum(of[name] for of in amounts.values()) for name in names]])
    sums = Sums({(name, "all"): i for i, name in enumerate(names)}, total, (), names)
    official = Bleu(4).compute_score(references, candidates, verbose=0)[0]
    assert [float(caption_metrics.bleu(sums, order)[0]) for order in (1, 2, 3, 4)] == pytest.approx(official, rel=1e-12)


def sums_of(statistics: list[list[float]]) -> Sums:
    """METEOR's statistics of several pictures, one sum each."""
    index = {(f"meteor {i:02}", "all"): i for i in range(23)}
    return Sums(index, np.array(statistics), (), [name for name, _ in index])


def test_meteor_is_the_official_programs_arithmetic(golden: Callable[[str], list[dict[str, Any]]]) -> None:
    """Its score of every caption, and of all of them together from the sums."""
    for kind in ("caption", "statistics"):
        rows = [line for line in golden("meteor") if line["kind"] == kind]
        each = [[float(number) for number in row["reply"].split()] for row in rows]
        for numbers in each:
            if numbers[21:23] == numbers[:2] and numbers[20] == 1:
                numbers[20] = 0  # a caption that is its reference is not in pieces
        assert caption_metrics.meteor(sums_of(each)) == pytest.approx([row["score"] for row in rows], abs=1e-12)
        total = caption_metrics.meteor(sums_of([[sum(numbers) for numbers in zip(*each, strict=True)]]))
        assert total == pytest.approx([line["score"] for line in golden("meteor") if line["kind"] == f"all of {kind}"])


def test_meteors_program_is_asked_what_pycocoevalcap_asks_it(
    golden: Callable[[str], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pycocoevalcap.meteor import meteor as theirs

    monkeypatch.setattr(theirs.subprocess, "Popen", mock.MagicMock())
    wanted = theirs.Meteor().meteor_cmd
    rows = [line for line in golden("meteor") if line["kind"] == "caption"]

    def java(*arguments: str, lines: list[str]) -> list[str]:
        assert sorted(["java", *(argument.rpartition("/")[2] for argument in arguments)]) == sorted(wanted)
        assert Path(arguments[arguments.index("-jar") + 1]).is_file()
        assert lines == [row["line"] for row in rows]
        return [row["reply"] for row in rows]

    monkeypatch.setattr(caption_metrics, "_java", java)
    found = caption_metrics._meteor(
        {str(i): row["references"] for i, row in enumerate(rows)},
        {str(i): [row["caption"]] for i, row in enumerate(rows)},
    )
    assert list(found) == [str(i) for i in range(len(rows))]
    statistics = [[amounts[f"meteor {i:02}"] for i in range(23)] for amounts in found.values()]
    assert caption_metrics.meteor(sums_of(statistics)) == pytest.approx([row["score"] for row in rows], abs=1e-12)


def test_the_tokenisers_program_is_asked_what_pycocoevalcap_asks_it_one_sentence_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pycocoevalcap.tokenizer import ptbtokenizer as theirs

    popen = mock.MagicMock()
    popen.return_value.communicate.return_value = (b"a dog .\n", b"")
    monkeypatch.setattr(theirs.subprocess, "Popen", popen)
    theirs.PTBTokenizer().tokenize({"1": [{"caption": "A dog."}]})
    wanted = popen.call_args.args[0][:-1]  # the last one is a file, for which we have the standard input

    def java(*arguments: str, lines: list[str]) -> list[str]:
        assert ["java", *(argument.rpartition("/")[2] for argument in arguments)] == wanted
        assert Path(arguments[arguments.index("-cp") + 1]).is_file()
        assert lines == ["A dog !? on a beach", "", "x"]
        return ["a dog !? on a , beach . ", "", "x"]

    monkeypatch.setattr(caption_metrics, "_java", java)
    assert caption_metrics._ptb(["A dog\u2028!? on\r\na\x85 beach ", "\n", "x"]) == ["a dog !? on a beach", "", "x"]


def test_if_meteors_program_fails_the_other_metrics_stand(
    put: Put, score: Callable[..., Scores], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(references: object, candidates: object) -> None:
        raise EvalError("no memory")

    references = {str(i): [f"thing{i} stands here"] for i in range(3)}
    monkeypatch.setattr(caption_metrics.shutil, "which", lambda name: "/usr/bin/java")
    monkeypatch.setattr(caption_metrics, "_ptb", caption_metrics._plain)
    monkeypatch.setattr(caption_metrics, "_meteor", fail)
    with pytest.warns(UserWarning, match="METEOR is not computed, the other metrics are: no memory") as caught:
        scores = score(NOCAPS, nocaps(put, references), {key: of[0] for key, of in references.items()})
    assert Path(caught[0].filename).name == "captions.py"  # not the line that warns
    assert math.isnan(scores["meteor", "all"])
    assert scores["rouge_l", "all"] == pytest.approx(100)


@needs_java
@pytest.mark.usefixtures("no_meteor")
def test_a_missing_caption_counts_as_an_empty_one(put: Put, score: Callable[..., Scores]) -> None:
    references, captions = corpus()
    answered = {key: text for key, text in captions.items() if int(key) < 8}
    scores = score(NOCAPS, nocaps(put, references), answered)
    empty = official(references, {key: answered.get(key, "") for key in references})
    for name, value in empty.items():
        assert scores[name, "all"] == pytest.approx(value, rel=1e-9), name


@needs_java
@pytest.mark.usefixtures("no_meteor")
def test_each_domain_of_nocaps_is_measured_alone(put: Put, score: Callable[..., Scores]) -> None:
    references, captions = corpus()
    domains = {key: ("in-domain", "out-domain")[int(key) % 2] for key in references}
    scores = score(NOCAPS, nocaps(put, references, domains), captions)
    for domain in ("in-domain", "out-domain"):
        part = [key for key in references if domains[key] == domain]
        alone = official({key: references[key] for key in part}, {key: captions[key] for key in part})
        assert scores["cider", domain] == pytest.approx(alone["cider"], rel=1e-9)


@needs_java
@pytest.mark.usefixtures("no_meteor")
def test_a_part_of_the_list_keeps_the_whole_lists_document_frequencies(put: Put, score: Callable[..., Scores]) -> None:
    """So a limited run's CIDEr is the mean of the same pictures' values in the whole run."""
    references, captions = corpus(5)
    samples = nocaps(put, references)
    one = [score(NOCAPS, [s], {s.id: captions[s.id]}, samples.extra)["cider", "all"] for s in samples.samples]
    assert sum(one) / len(one) == pytest.approx(score(NOCAPS, samples, captions)["cider", "all"])


@needs_java
@pytest.mark.usefixtures("no_meteor")
def test_degenerate_models_get_their_closed_form_scores(put: Put, score: Callable[..., Scores]) -> None:
    references = {str(i): [f"thing{i} number{i} stands here{i}"] for i in range(4)}
    samples = nocaps(put, references)
    gold = score(NOCAPS, samples, {key: of[0] for key, of in references.items()})
    assert gold["cider", "all"] == pytest.approx(1000)
    assert [gold[f"bleu_{i}", "all"] for i in (1, 2, 3, 4)] == pytest.approx([100] * 4)
    assert gold["rouge_l", "all"] == pytest.approx(100)
    empty = score(NOCAPS, samples, dict.fromkeys(references, ""))
    assert [empty[name, "all"] for name in ("cider", "bleu_1", "bleu_4", "rouge_l")] == pytest.approx([0] * 4, abs=1e-6)


@needs_java
@pytest.mark.usefixtures("no_meteor")
def test_the_order_of_pictures_changes_nothing(put: Put, score: Callable[..., Scores]) -> None:
    references, captions = corpus()
    samples = nocaps(put, references)
    before = score(NOCAPS, samples, captions)
    random.Random(1).shuffle(samples.samples)
    assert score(NOCAPS, samples, dict(reversed(captions.items()))) == pytest.approx(before, nan_ok=True)


@pytest.mark.usefixtures("no_java")
def test_without_java_the_official_numbers_are_not_computed(put: Put, score: Callable[..., Scores]) -> None:
    """CIDEr over plainly split words stands under its own name, and never as the headline."""
    references, captions = corpus()
    with pytest.warns(UserWarning, match="CIDEr, BLEU, METEOR and ROUGE-L are not computed") as caught:
        scores = score(NOCAPS, nocaps(put, references), captions)
    assert Path(caught[0].filename).name == "captions.py"  # not the line that warns
    assert scores.pop(("cider_plain", "all")) > 0
    assert all(math.isnan(value) for value in scores.values())
    assert {name for name, _ in scores} == {"cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l"}


def test_without_the_extra_nothing_is_computed_and_the_answers_stay(
    put: Put, score: Callable[..., Scores], monkeypatch: pytest.MonkeyPatch
) -> None:
    references, captions = corpus()
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.warns(UserWarning, match=r"pip install 'vlmamba-eval\[caption\]'") as caught:
        scores = score(NOCAPS, nocaps(put, references), captions)
    assert Path(caught[0].filename).name == "captions.py"  # not the line that warns
    assert all(math.isnan(value) for value in scores.values())


@pytest.mark.usefixtures("no_java")
def test_plain_words_are_letters_digits_and_inner_apostrophes() -> None:
    assert caption_metrics._plain(["A dog's 2nd (red) T-shirt, isn't it? _Café_ 'x'"]) == [
        "a dog's 2nd red t shirt isn't it café x"
    ]


@pytest.mark.parametrize(
    ("does", "found"),
    [
        ("echo one; echo broken >&2; exit 3", "gave 1 lines for 2 sentences and ended with 3: broken"),
        ("echo one; echo two; exit 3", "gave 2 lines for 2 sentences and ended with 3"),
        ("echo one", "gave 1 lines for 2 sentences and ended with 0"),
        ("cat; echo three", "gave 3 lines for 2 sentences and ended with 0"),
        ("cat; printf three", "gave 2 lines for 2 sentences and ended with 0"),
        ("for i in $(seq 99); do echo w$i >&2; done; exit 1", r"ended with 1: w1 .* w59 w60\nThe answers are kept"),
    ],
)
def test_a_program_that_fails_is_an_error_not_a_score(monkeypatch: pytest.MonkeyPatch, does: str, found: str) -> None:
    monkeypatch.setattr(caption_metrics, "JAVA", ("sh", "-c", does, "java"))
    with pytest.raises(EvalError, match=found):
        caption_metrics._java(lines=["a", "b"])


def test_a_program_gets_a_line_per_sentence_and_gives_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_metrics, "JAVA", ("sh", "-c", "sed s/$/!/", "java"))
    assert caption_metrics._java(lines=["a dog", "", "café"]) == ["a dog!", "!", "café!"]
    assert caption_metrics._java(lines=[]) == []
    monkeypatch.setattr(caption_metrics, "JAVA", ("sh", "-c", "printf '\\377\\n'", "java"))
    assert caption_metrics._java(lines=["a"]) == ["\ufffd"]


def test_programs_read_and_write_utf_8_whatever_the_locale_says() -> None:
    program, *settings = caption_metrics.JAVA
    assert program == "java"
    assert settings == ["-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8"]


def test_without_any_caption_nothing_is_computed(put: Put, score: Callable[..., Scores]) -> None:
    loaded = nocaps(put, {"1": ["a dog"]})
    assert all(math.isnan(value) for value in score(NOCAPS, loaded, {}).values())
    assert [NOCAPS.grade(loaded.samples[0], text).valid for text in ("a dog", " \n", "")] == [True, False, False]


# =============================================================================
# Formats
# =============================================================================


def karpathy(split: str = "test", **changes: Any) -> dict[str, Any]:
    row = {"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "split": split, "cocoid": 391895}
    return {**row, "imgid": 0, "sentences": [{"raw": "A man. "}, {"raw": "A moped."}], **changes}


def test_karpathys_files_give_their_test_pictures(put: Put) -> None:
    rows = [karpathy("restval", cocoid=1), karpathy("val", cocoid=2), karpathy()]
    path = put("coco_caption/dataset_coco.json", {"images": rows, "dataset": "coco"})
    put("coco_caption/val2014/COCO_val2014_000000391895.jpg", b"picture")
    (s,) = read_folder(COCO, path.parents[1]).samples
    assert (s.id, s.target, COCO.prompt(s)) == ("391895", ("A man. ", "A moped."), PROMPT)
    assert s.image is not None
    assert read_image(s.image) == b"picture"
    put("flickr30k/dataset_flickr30k.json", {"images": [karpathy(filename="36979.jpg")]})
    (s,) = read_folder(FLICKR30K, path.parents[1]).samples
    assert s.image is not None
    assert (s.id, Path(s.image.key).parts[-3:]) == ("0", ("flickr30k", "flickr30k-images", "36979.jpg"))


def test_cocos_own_format_needs_no_file_names(put: Put) -> None:
    content = {"images": [{"id": 391895}], "annotations": [{"image_id": 391895, "caption": "A man.", "id": 1}]}
    path = put("coco_caption/coco_karpathy_test_gt.json", content)
    (s,) = read_folder(COCO, path.parents[1]).samples
    assert s.image is not None
    assert s.image.key.endswith("val2014/COCO_val2014_000000391895.jpg")


def test_textcaps_repeats_a_picture_for_each_caption(put: Put) -> None:
    row = {"image_id": "0054c91397f2fe05", "caption_str": "a", "reference_strs": ["a", "b"]}
    path = put("textcaps/TextCaps_0.1_val.json", {"data": [row, {**row, "reference_strs": ["b", "a"]}]})
    folder = Folder(path.parents[1], TEXTCAPS.info.folders)
    (s,) = read_folder(TEXTCAPS, folder.root).samples
    assert (s.id, s.target) == ("0054c91397f2fe05", ("a", "b"))
    put("textcaps/TextCaps_0.1_val.json", {"data": [row, {**row, "reference_strs": ["c"]}]})
    with pytest.raises(DataError, match=r"data\[1\]: picture 0054c91397f2fe05 has other captions in an earlier row"):
        read_folder(TEXTCAPS, folder.root)


@pytest.mark.parametrize(
    ("task", "split", "column"), [(NOCAPS, "validation", "annotations_captions"), (TEXTCAPS, "val", "caption_str")]
)
def test_the_hubs_rows_load(hub: Callable[..., Hub], task: Captions, split: str, column: str) -> None:
    (s,) = read_hub(task, hub({(task.info.hub, None, split): [{"image_id": 7, column: ["a", "b"]}]})).samples
    assert (s.id, s.target) == ("7", ("a", "b"))
    with pytest.raises(DataError, match="the hub holds no copy of this list"):
        read_hub(COCO, hub({}))


def test_the_bundled_samples_load_and_their_pictures_open(samples_folder: Path) -> None:
    samples = read_folder(COCO, samples_folder).samples
    assert {len(s.target or ()) for s in samples} == {5}
    assert all(s.image and read_image(s.image).startswith(b"\xff\xd8") for s in samples)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [], "annotations": [{"image_id": 1, "caption": "a"}]}, r"annotations\[0\]: image 1 is not among"),
        ({"images": [{"id": 1}], "annotations": []}, r"images\[0\]: picture 1 has no reference captions"),
        ({"images": [{"id": 1, "domain": "far"}], "annotations": []}, "field 'domain' should be one of 'in-domain'"),
        ({"images": [{"id": "x"}], "annotations": []}, "field 'id' should be a whole number, found 'x'"),
        ({"images": [{"id": 1, "file_name": "../a"}], "annotations": []}, "leaves the image folder"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1}]}, "field 'caption' is missing"),
        ({"questions": []}, "field 'images' is missing"),
        (b'{"images": "\xe9"}', r"captions\.json:1: not UTF-8"),
    ],
)
def test_bad_files_are_refused(put: Put, content: Any, message: str) -> None:
    path = put("nocaps/nocaps_val_4500_captions.json", content)
    with pytest.raises(DataError, match=message):
        read_folder(NOCAPS, path.parents[1])


def test_missing_and_wrong_karpathy_files_are_named(put: Put, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="COCO's captions of Karpathy's test split not found"):
        read_folder(COCO, tmp_path)
    put("coco_caption/dataset_coco.json", json.loads('{"images": [{"filename": "a.jpg"}]}'))
    with pytest.raises(DataError, match="field 'split' is missing"):
        read_folder(COCO, tmp_path)
    put("coco_caption/dataset_coco.json", {"images": [karpathy(sentences=["A man."])]})
    with pytest.raises(DataError, match=r"sentences\[0\]: expected an object"):
        read_folder(COCO, tmp_path)
