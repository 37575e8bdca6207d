"""How VQAv2 and TextVQA compare short answers: two normalisations, and soft accuracy over ten annotators.

Paper    Antol et al. 2015, VQA: Visual Question Answering, arXiv 1505.00468
Scorers  VQAv2: https://github.com/GT-Vision-Lab/VQA/blob/a013f0043c1e/PythonEvaluationTools/vqaEvaluation/vqaEval.py
         TextVQA: https://github.com/haotian-liu/LLaVA/blob/c121f0432da2/llava/eval/m4c_evaluator.py (class
         EvalAIAnswerProcessor; LLaVA also sends its VQAv2 answers through it before submission)

The two normalisations share their last two steps and nothing else: "it's" stays "it's" in VQAv2 and becomes "it 's" in
TextVQA. The official code has quirks that decide scores; they are kept and named where they stand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from vlmamba_eval.task import Task, accuracy_metrics
from vlmamba_eval.types import Graded, Metric

if TYPE_CHECKING:
    from vlmamba_eval.rows import Row
    from vlmamba_eval.sums import Sums

ANNOTATORS = 10
ARTICLES = ("a", "an", "the")
NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(number)
    for number, word in enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 1)
}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

# Every form of these words in which exactly one apostrophe is missing is mended. "she'd", "we'd", "he'll" and others
# are not in the official table; "somebody'd" loses its apostrophe there; its entries with a capital I never apply.
_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
CONTRACTIONS = {"somebody'd": "somebodyd"} | {
    word[: place.start()] + word[place.end() :]: word
    for word in _APOSTROPHES.split()
    for place in re.finditer("'", word)
}

# =============================================================================
# Normalisation
# =============================================================================


@lru_cache(maxsize=2**16)
def evalai(text: str) -> str:
    """TextVQA's normalisation, also LLaVA's for submitted VQAv2 answers (`EvalAIAnswerProcessor.__call__`)."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return words(without_punctuation(one_line(text)))


@lru_cache(maxsize=2**16)
def vqa(text: str) -> str:
    """VQAv2's normalisation of one answer (`processPunctuation`, then `processDigitArticle`)."""
    return words(without_punctuation(one_line(text)))


def one_line(text: str) -> str:
    """Line ends and tabs become spaces; the ends are stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def without_punctuation(text: str) -> str:
    """Each mark vanishes if it touches a space anywhere, or if any two digits have a comma between them;
    elsewhere it becomes a space. At most 32 periods vanish, those before a digit never.

    (The official pattern for periods has a typing error and its `re.UNICODE` stands in the place of a count, 32.)
    """
    if text.isalnum():  # nothing to do, as for most answers
        return text
    every = re.search(r"\d,\d", text) is not None
    result = text
    for mark in PUNCTUATION:
        if mark in text:
            result = result.replace(mark, "" if every or f"{mark} " in text or f" {mark}" in text else " ")
    return re.sub(r"\.(?!\d)", "", result, count=32)


def words(text: str, contractions: Mapping[str, str] = CONTRACTIONS) -> str:
    """Lower-cased words with digits for number words, without articles, with mended apostrophes."""
    found = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(contractions.get(word, word) for word in found if word not in ARTICLES)


# =============================================================================
# Soft accuracy
# =============================================================================

# By the number of annotators that agree with the answer. Official: each of the ten is left out in turn and the answer
# is worth min(1, agreeing others / 3); the mean of the ten is 0, 0.3, 0.6, 0.9, 1, 1, ...
LEAVE_ONE_OUT = tuple(
    (n * min(1, (n - 1) / 3) + (ANNOTATORS - n) * min(1, n / 3)) / ANNOTATORS for n in range(ANNOTATORS + 1)
)
MIN_THREE = {credit: min(1, n / 3) for n, credit in enumerate(LEAVE_ONE_OUT)}  # the simplified convention, min(n/3, 1)


def ten_answers(row: Row, answers: Sequence[str]) -> tuple[str, ...]:
    """The annotators' answers, on one line each. Raises `DataError` if they are not ten."""
    if len(answers) != ANNOTATORS:
        row.fail(f"expected {ANNOTATORS} answers, found {len(answers)}.")
    return tuple(sys.intern(one_line(answer)) for answer in answers)


class SoftAccuracyTask(Task):
    """A benchmark of soft accuracy: the official leave-one-out as headline, min(n/3, 1) beside it."""

    columns = ("min3",)

    def count(self, item: Graded) -> Iterator[tuple[str, float]]:
        if item.verdict:
            yield "min3", MIN_THREE[item.verdict.credit]

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        yield from accuracy_metrics(sums)
        yield Metric("accuracy_min3", 100 * sums.ratio(sums("min3"), sums.n()))
