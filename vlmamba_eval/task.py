"""The seam to benchmarks: a declaration, and a few functions from annotation row to metric.

A benchmark is one file with a subclass of `Task` and a tuple `TASKS`. Four functions are its own: `load`, `prompt`,
`grade` and `metrics`. What only some benchmarks can do is declared below as protocols; a task has such an ability
when it has the method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from vlmamba_eval.sources import Source
from vlmamba_eval.types import DataError, Generation, Graded, Loaded, Metric, Sample, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.folder import Folder
    from vlmamba_eval.hub import Hub
    from vlmamba_eval.rows import Row
    from vlmamba_eval.sums import Sums

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ANSWER = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCDEFGH"
SCORED = {"here": "here", "server": "by its server", "judge": "by a judge"}
"""`TaskInfo.scored` in words."""


@dataclass(frozen=True)
class TaskInfo:
    """A benchmark's declaration. `version` rises whenever its prompt, parsing or scoring changes."""

    name: str  # on the command line
    title: str  # in tables
    measures: str  # one line for `list tasks`
    split: str
    questions: int  # expected number of samples; other numbers are refused
    images: int | None  # expected number of distinct images; None: not published
    headline: str  # the metric shown in the leaderboard
    max_new_tokens: int  # the protocol's limit
    paper: str
    scorer: str  # the official scorer, as a permalink at a commit
    version: int = 1
    protocol: str = "llava-1.5"  # whose prompts and decoding these are
    folders: tuple[str, ...] = ()  # sub-folders of the data folder where the release, or LLaVA's layout, keeps it
    files: tuple[str, ...] = ()  # official annotation files: if one is there, `load` reads the release
    llava_file: str = ""  # LLaVA's question file, read by `load_llava` if no official file is there
    hub: str = ""  # data set on the hub, "" if it holds no equal list
    scored: Literal["here", "server", "judge"] = "here"  # where the labels are
    counts: Mapping[str, int] = field(default_factory=dict, hash=False)  # questions per group, if published
    ids: str = ""  # a regular expression that every id matches
    sha256: tuple[str, ...] = ()  # of the list (`vlmamba_eval.identity`), one per true copy that was at hand
    labels_sha256: tuple[str, ...] = ()  # the same with the gold labels
    extra: str = ""  # of this package, that scoring needs
    submission_extra: str = ""  # of this package, that `submit` needs
    programs: tuple[str, ...] = ()  # on the PATH, that scoring needs
    sources: tuple[Source, ...] = ()  # where the files come from, for `prepare`


class Task(ABC):
    """One benchmark list with its protocol. Instances hold no state besides their declaration.

    `columns` names everything that `count` and `count_image` yield. A column that is not declared is an error on both
    sides, so that a misspelt name can't become a silent zero.
    """

    info: TaskInfo
    columns: ClassVar[tuple[str, ...]] = ()
    data: str = ""  # the folder of a list that brings its own (`file:PATH`); "" for benchmarks, found below --data

    @abstractmethod
    def load(self, data: Folder) -> Loaded:
        """Read the samples from the official release. Raises `DataError`."""

    def load_llava(self, data: Folder, path: Path) -> Loaded:
        """Read the samples from LLaVA's question file, which has no labels: targets are None. Raises `DataError`."""
        raise DataError(f"{path}: {self.info.name} has no reader for LLaVA's question file.")

    def load_hub(self, hub: Hub) -> Loaded:
        """Read the samples from the hub's copy of the same list; called only if the declaration names one."""
        raise DataError(f"{self.info.name}: the hub's copy {self.info.hub} has no reader.")

    @abstractmethod
    def prompt(self, sample: Sample) -> str:
        """The benchmark's text, byte for byte as its protocol sends it, before any conversation template."""

    @abstractmethod
    def grade(self, sample: Sample, text: str) -> Verdict:
        """Read one answer as the official parser does and give the official credit. Only for samples with a target."""

    def count(self, item: Graded) -> Iterator[tuple[str, float]]:
        """Yield (column, amount) of one question: whatever `metrics` needs, added up over images.

        The harness adds each amount to "all" and to the question's groups, and itself counts questions
        (`sums.n(group)`) and credit (`sums.credit(group)`). Missing and failed answers have no verdict.
        """
        return iter(())

    def count_image(self, items: Sequence[Graded], extra: Any) -> Iterator[tuple[str, str, float]]:
        """Yield (column, group, amount) of one image's questions together; the group may be any text.

        For what one question can't tell by itself: pairs, passes, gold answers of a whole group. `extra` is what `load`
        gave for the whole list.
        """
        return iter(())

    @abstractmethod
    def metrics(self, sums: Sums) -> Iterator[Metric]:
        """Every metric from the sums over images. Plain arithmetic: a column is an array over bootstrap replicates."""

    def identity(self, sample: Sample) -> str:
        """What makes it this question in every copy of its list (`TaskInfo.sha256`)."""
        return " ".join((sample.id, sample.question, *sample.choices))

    def stratum(self, sample: Sample) -> str:
        """The stratum within which the bootstrap draws images; one for the whole benchmark by default.

        For benchmarks whose composition is fixed by design (MME's categories).
        """
        return ""

    def join_key(self, prompt: str) -> str:
        """What identifies a question among those of equal `question_id`, from the prompt that an answer file saved."""
        return prompt.removeprefix("<image>\n").strip()


# =============================================================================
# Abilities that only some benchmarks have
# =============================================================================


@runtime_checkable
class Ranks(Protocol):
    """Its questions have choices whose likelihoods can be compared (`--scoring likelihood`)."""

    def continuations(self, sample: Sample) -> tuple[str, ...]:
        """The answers that are ranked."""
        ...


@runtime_checkable
class RanksItsOwnWay(Ranks, Protocol):
    """A benchmark that shows a ranked question differently, or reads a ranking as something else than the best text."""

    def likelihood_prompt(self, sample: Sample) -> str:
        """The text that the continuations follow, if the usual prompt must not be used (SEED shows no options)."""
        ...

    def choose(self, sample: Sample, generation: Generation) -> str:
        """The answer text that a ranking means."""
        ...


@runtime_checkable
class GradesLists(Protocol):
    """Its scorer needs the whole list of answers, or is slow to start (captions: one tokeniser for all)."""

    def grade_all(self, answered: Sequence[tuple[Sample, str]], extra: Any) -> list[Verdict]:
        """The verdicts of all answers of a run, in their order."""
        ...


@runtime_checkable
class Submits(Protocol):
    """A server, or an official script, wants a file of answers."""

    def submit(self, samples: Sequence[Sample], answers: Mapping[str, str], folder: Path, extra: Any) -> list[Path]:
        """Write the file and read it back; the paths written.

        `answers` has one for each sample, by id, and `folder` exists. Raises `DataError`.
        """
        ...


@runtime_checkable
class KnownElsewhere(Protocol):
    """Other programs know its questions by further ids, which may repeat: then the saved prompt decides."""

    def aliases(self, sample: Sample) -> tuple[str, ...]:
        """The further ids of one sample."""
        ...


@runtime_checkable
class MadeOfLists(Protocol):
    """It is several lists that are answered one by one elsewhere, each with ids of its own."""

    def place_in_list(self, sample: Sample) -> tuple[str, str]:
        """The list's name, which is what the sample's id begins with (`name/...`), and the id within the list."""
        ...


Message = Mapping[str, str]
"""One turn of a conversation with a judge: {"role": ..., "content": ...}."""


@runtime_checkable
class Judged(Protocol):
    """A model grades its answers (`scored="judge"`): what is put to the judge, and how its reply is read."""

    def judge_messages(self, sample: Sample, answer: str) -> list[Message]:
        """The conversation that asks for one grade. Raises `DataError` without an official answer to compare with."""
        ...

    def read_judgement(self, reply: str) -> float | None:
        """The credit, 0 to 1, that a reply gives; None if it gives none."""
        ...


def accuracy_metrics(sums: Sums, headline: str = "accuracy", **fixed: Any) -> Iterator[Metric]:
    """Mean credit in percent over all questions (the headline) and over each group."""
    for group in ("all", *sums.groups):
        value = 100 * sums.ratio(sums.credit(group), sums.n(group))
        yield Metric(headline, value, category=group, headline=group == "all", **fixed)


def llava_question(row: Row) -> str:
    """The question of a row of LLaVA's question file: `text` without its last line, which asks for a short answer."""
    text = row.text("text")
    question = text.removesuffix(f"\n{SHORT_ANSWER}")
    if question == text:
        row.fail(
            f"field 'text' should end with the line {SHORT_ANSWER!r}, as LLaVA's question files do; found {text!r}."
        )
    return question


def lettered(choices: Sequence[str]) -> str:
    """The choices as LLaVA writes them: `A. first`, `B. second`, one per line."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def write_submission(path: Path, content: str) -> Path:
    """Write a submission file and read it back. What UTF-8 can't hold (a lone surrogate) becomes a question mark.

    Raises `DataError`.
    """
    encoded = content.encode(errors="replace")
    path.write_bytes(encoded)
    if path.read_bytes() != encoded:
        raise DataError(f"{path} does not read back as it was written. Is the disk full?")
    return path
