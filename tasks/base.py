"""What a benchmark is: a declaration, and a few functions from annotation row to metric.

A new benchmark is one file with one subclass of `Task` and one line in `registry.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlmamba_eval.types import DataError, Generation, Graded, Metric, Sample, UsageError, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.data import Folder, Hub, Row
    from vlmamba_eval.stats import Sums

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ANSWER = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class TaskInfo:
    """A benchmark's declaration. `version` rises whenever its prompt, parsing or scoring changes."""

    name: str  # on the command line
    title: str  # in tables
    measures: str  # one line for `list tasks`
    split: str
    questions: int  # expected number of samples; other numbers are refused
    images: int | None  # expected number of distinct images; None: not published
    headline: str  # the metric that stands in the leaderboard
    max_new_tokens: int  # the protocol's limit
    paper: str
    scorer: str  # the official scorer, as a permalink at a commit
    version: int = 1
    folders: tuple[str, ...] = ()  # sub-folders of the data folder where the release, or LLaVA's layout, keeps it
    hub: str = ""  # data set on the hub, "" where it holds no equal list
    scored: Literal["here", "server", "judge"] = "here"  # where the labels are
    sha256: str = ""  # of all ids and prompts (`vlmamba_eval.dataset.fingerprint`), where a true copy was at hand
    sources: tuple[str, ...] = ()  # where the files come from, in words, for `prepare`


class Task(ABC):
    """One benchmark list with its protocol. Instances hold no state besides their declaration."""

    info: TaskInfo

    @abstractmethod
    def load(self, data: Folder) -> list[Sample]:
        """Read the samples from the official release layout or LLaVA's evaluation folder.

        Targets are None where only LLaVA's question file is there. Raises `DataError`.
        """

    def load_hub(self, hub: Hub) -> list[Sample]:
        """Read the samples from the hub's copy of the same list."""
        raise DataError(
            f"{self.info.name}: the hub holds no copy of this list. "
            "Give the folder with the official files: --data DIR (vlmamba-eval prepare says which)."
        )

    @abstractmethod
    def prompt(self, sample: Sample) -> str:
        """The benchmark's text, byte for byte as LLaVA-1.5 sends it, before any conversation template."""

    @abstractmethod
    def grade(self, sample: Sample, text: str) -> Verdict:
        """Read one answer as the official parser does and give the official credit. Called only where a target is."""

    def grade_all(self, answered: Sequence[tuple[Sample, str]]) -> list[Verdict]:
        """The verdicts of all answers of a run, in their order: what the harness calls to score.

        For scorers that need the whole list or are slow to start (captions: one tokeniser for all).
        """
        return [self.grade(sample, text) for sample, text in answered]

    def count(self, graded: Sequence[Graded]) -> Iterator[tuple[str, float]]:
        """Yield (column, amount) of one image's questions: whatever `metrics` needs, added up over images.

        The harness itself counts the questions of each group (`sums.n(group)`). The default yields each question's
        credit in each of its groups (`sums.credit(group)`); missing and failed answers are worth nothing.
        """
        for item in graded:
            if item.verdict is not None and item.verdict.credit:
                for group in ("all", *item.sample.groups):
                    yield f"credit|{group}", item.verdict.credit

    @abstractmethod
    def metrics(self, sums: Sums) -> Iterator[Metric]:
        """Every metric from the sums over images. Plain arithmetic: a column is an array over bootstrap replicates."""

    def stratum(self, sample: Sample) -> str:
        """The stratum within which the bootstrap draws images; one for the whole benchmark by default.

        For benchmarks whose composition is fixed by design (MME's categories).
        """
        return ""

    def continuations(self, sample: Sample) -> tuple[str, ...]:
        """The answers that likelihood scoring ranks; empty where the benchmark knows none."""
        return ()

    def likelihood_prompt(self, sample: Sample) -> str:
        """The text that ranked continuations follow: the usual prompt, unless it must not show the options (SEED)."""
        return self.prompt(sample)

    def choose(self, sample: Sample, generation: Generation) -> str:
        """The answer text that a ranking of `continuations` stands for: by default the best continuation itself."""
        return generation.text

    def join_key(self, prompt: str) -> str:
        """What identifies a question among those of equal `question_id`, from the prompt that an answer file saved."""
        return prompt.removeprefix("<image>\n").strip()

    def judge(
        self,
        samples: Sequence[Sample],
        answers: Mapping[str, str],
        cache: Path,
        url: str,
        model: str,
        judged: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, Verdict]:
        """Have a model grade the answers, where the benchmark wants that (`scored="judge"`). Raises `UsageError`.

        `judged(done, total)` is called after each judgement.
        """
        raise UsageError(f"{self.info.name} needs no judge: it is scored by rules.")

    def submit(self, samples: Sequence[Sample], answers: Mapping[str, str], folder: Path) -> list[Path]:
        """Write the file that the benchmark's server wants and read it back; the paths written.

        `answers` has one for each sample, by id, and `folder` exists. Raises `DataError`.
        """
        raise DataError(f"{self.info.name} has no submission file: it is scored locally.")


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
    """The choices as LLaVA writes them: `A. first`, `B. second`, one a line."""
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
