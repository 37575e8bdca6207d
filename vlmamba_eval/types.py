"""The vocabulary, on one page. Nothing else crosses the border between harness, tasks and model adapters.

The way of a question:

    annotation row --task.load--> Sample --task.prompt--> Question
        --plan--> ImageQuestions            all questions of one image, of all tasks of the run
        --adapter.generate--> Generation    text, tokens, stop reason, the prompt really sent
        --store--> Answer                   one line on disk; a failure is a typed value, never a text
        --task.grade--> Verdict             what the official parser read and the credit it gives
        --task.count, task.metrics--> Metric   from sums over images, so that every metric has an interval
        --stats--> Score                    one row of `scores.json`
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# =============================================================================
# Errors: what was expected, what was found, where, and what to do next
# =============================================================================


class EvalError(Exception):
    """An error that the user can act on. Its text is the whole message; no traceback is shown.

    What it quotes from a file may be pages long without a space: then a beginning of it has to do.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(re.sub(r"(\S{200})\S{200,}", r"\1...", str(message)))


class UsageError(EvalError):
    """The command or its options are wrong (exit code 2)."""


class DataError(EvalError):
    """An annotation, question, answer or image file is not what it should be."""


class StoreError(EvalError):
    """A run on disk is damaged, locked, or belongs to another configuration."""


class ModelError(EvalError):
    """A checkpoint is missing, incomplete or of another kind than its configuration says."""


class OutOfMemory(Exception):
    """Raised by an adapter whose device ran out of memory: the run halves the batch and tries again."""


# =============================================================================
# What is asked
# =============================================================================


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A picture that is not opened yet: plain data, so that a question can be handed to another process.

    `key` is its identity: questions with equal keys share one encoding. `where` names it in messages (a file, or a row
    of a data set). One of four sources holds the encoded picture: the file `path`, which must be below `folder`;
    `base64` text; a cell of a `hub` data set; a member of the zip or tar archive `path`. `images.read_image` reads it.
    """

    key: str
    where: str
    path: str = field(default="", compare=False)
    folder: str = field(default="", compare=False)
    member: str = field(default="", compare=False)
    base64: str = field(default="", compare=False, repr=False)
    hub: HubCell | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class HubCell:
    """A cell of a data set on the hub: one image, or with `place` one of a list of images."""

    dataset: str
    config: str | None
    split: str
    revision: str | None
    column: str
    row: int
    place: int | None = None


NOTHING: Mapping[str, Any] = {}
"""What most samples and verdicts have besides: shared by all, since a list may have half a million."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One question of a benchmark with its gold label.

    `id` is unique in its task. `external_id` is the `question_id` of LLaVA's question and answer files; it may
    repeat (MME, TextVQA, where the prompt tells the questions apart) and defaults to `id`. `target` is None if the
    labels are not public. `groups` are the names under which the question is also reported (`"popular"`,
    `"structural/query"`), besides `"all"`. `fields` holds what only the task itself reads about this one question; what
    belongs to the whole list is in `Loaded.extra`. `where` names file and row.
    """

    id: str
    image: ImageRef | None
    question: str
    target: str | tuple[str, ...] | None
    choices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    external_id: str = ""
    where: str = ""

    @property
    def answer_key(self) -> str:
        """The `question_id` under which answer files know this sample."""
        return self.external_id or self.id


@dataclass(frozen=True)
class Loaded:
    """What a task reads from annotation files: its samples, and what belongs to the whole list.

    `extra` is given back to `Task.count_image` and to the abilities that need the whole list (a corpus of captions, the
    gold answers of a group of questions, the ids of a larger list that a submission covers).
    """

    samples: list[Sample]
    extra: Any = None


@dataclass(frozen=True, slots=True)
class Question:
    """One text to put to the model about one image: the benchmark's text, before any conversation template.

    With `continuations` the model is not asked to generate: it scores each of them as its answer.
    """

    text: str
    max_new_tokens: int
    continuations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageQuestions:
    """All questions about one image; `image` is what the adapter's `prepare` returned, None for text only."""

    image: Any
    questions: tuple[Question, ...]


# =============================================================================
# What is answered
# =============================================================================

StopReason = Literal["eos", "length", "likelihood", "unknown"]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How a model scores one continuation: the sum of its tokens' natural log-probabilities, and their number."""

    logprob: float
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model returns for one question.

    `prompt` is the conversation as it was really sent, `<image>` standing for the image embeddings. `text` has
    special tokens removed and its ends stripped, as LLaVA's scripts do. `likelihoods` has one entry for each
    continuation of the question; it is empty for generated answers.
    """

    text: str
    prompt: str
    n_tokens: int
    stop: StopReason
    likelihoods: tuple[Likelihood, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a question has no answer.

    `data_error`: its image can't be read. `model_error`: the adapter raised, refused, or returned something that is not
    answer. `timeout`: it took longer than allowed. `foreign`: the saved answer is to another question.
    """

    kind: Literal["data_error", "model_error", "timeout", "foreign"]
    message: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of `answers.jsonl`: a generation or a failure, under its sample's id."""

    id: str
    generation: Generation | None
    failure: Failure | None = None


# =============================================================================
# What it is worth
# =============================================================================


@dataclass(frozen=True, slots=True)
class Verdict:
    """One graded answer.

    `parsed` is what the official parser read (None: nothing). `credit`, 0 to 1, is what the official scorer
    gives. `valid` is False if the text is not a recognisable answer, whatever the official parser makes of it: that is
    the count of unparsed answers in every table. `also` holds further amounts for `count`: the credit under other
    conventions, or counts that add up over a corpus (captions' n-grams).
    """

    parsed: str | None
    credit: float
    valid: bool = True
    also: Mapping[str, float] = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True)
class Graded:
    """A sample with its answer's verdict; None if the answer is missing or failed, which counts as wrong."""

    sample: Sample
    verdict: Verdict | None
    state: Literal["ok", "missing", "error"] = "ok"
    truncated: bool = False
    foreign: bool = False  # an error: its answer was to another question


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a task, or an array of them, one for each bootstrap replicate.

    `value` is on the published scale (percent, MME points); NaN if it is undefined. `over` names the group of
    samples behind it, whose n is shown in the table: by default `category`, else `split`, else all. `upper` is the
    largest possible value, if it is made of right and wrong answers, as their credit says: few of either widen its
    interval. None for others (CIDEr, BLEU, a distance). A `plain` metric is a count that has no interval.
    """

    name: str
    value: Any
    category: str = "all"
    split: str = ""
    over: str = ""
    headline: bool = False
    upper: float | None = 100.0
    plain: bool = False

    @property
    def group(self) -> str:
        """The group of samples whose counts belong to this metric."""
        return self.over or (self.category if self.category != "all" else self.split or "all")


@dataclass(frozen=True, slots=True)
class Score:
    """One row of a task's results: a metric with its interval and the counts behind it.

    `value`, `ci_low`, `ci_high` are None if they are undefined. With `few_images` so few of them carry the wrong (or
    the right) answers that the interval may be too narrow.
    """

    metric: str
    split: str
    category: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    n_images: int
    n_unparsed: int
    n_missing: int
    n_error: int
    n_truncated: int
    headline: bool
    plain: bool = False
    few_images: bool = False
    n_foreign: int = 0  # besides n_error


Scoring = Literal["generate", "likelihood", "cleaned"]
"""How answers came about; `cleaned` ones are generated, and what models leave around an answer was taken off."""


def by_scoring(name: str, scoring: Scoring) -> str:
    """A task's name, and how it was scored if that is not by generated answers: the two are never mixed."""
    return name if scoring == "generate" else f"{name} ({scoring})"


Mark = Literal["SAMPLES", "PARTIAL", "INCOMPLETE", "UNTRAINED", "UNSCORED"]

MEANING: dict[Mark, str] = {
    "SAMPLES": "the bundled samples, scenes drawn by this project: not comparable with any published number",
    "PARTIAL": "not the benchmark's whole list of questions",
    "INCOMPLETE": "some questions have no answer, a failed or a foreign (to another question) one; they count as wrong",
    "UNTRAINED": "random weights: the numbers only show that everything runs",
    "UNSCORED": "there are no gold labels here, or a judge must grade; the answers are kept",
}
"""What makes a number incomparable, in the order of tables. A mark is shown beside every number that it is about."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What `scores.json` holds: a pure function of a run's answers and the annotation files."""

    model: str
    task: str
    title: str
    split: str
    headline: str
    scoring: Scoring
    judge: str | None
    marks: tuple[Mark, ...]
    n: int
    n_missing: int
    n_error: int
    scores: tuple[Score, ...] = ()
    n_foreign: int = 0  # besides n_error


# =============================================================================
# What a run tells
# =============================================================================


class Progress:
    """What a run tells on its way; this one says nothing."""

    def start(self, images: int, questions: int, resumed: int) -> None:
        """Called once, with what is to be done and how many questions already have their answer."""

    def advance(self, images: int, questions: int, errors: int) -> None:
        """Called after each batch is on the disk, with what it added."""

    def note(self, message: str) -> None:
        """Something that the user should know."""
