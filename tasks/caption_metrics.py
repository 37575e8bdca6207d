"""CIDEr, BLEU, METEOR and ROUGE-L as amounts that add up over pictures; the measuring is pycocoevalcap's.

Official numbers use Stanford's PTB tokeniser and METEOR's own program, both in Java, both inside pycocoevalcap. Without
Java only `cider_plain` is computed: CIDEr over words split by one line of Python, under its own name.

Scorer  pycocoevalcap 1.2 (https://pypi.org/project/pycocoevalcap/1.2/), the Python 3 form of
        https://github.com/tylin/coco-caption
"""

from __future__ import annotations

import re
import shutil
import subprocess
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmamba_eval.types import EvalError

if TYPE_CHECKING:
    from vlmamba_eval.sums import Floats, Sums

Tokens = dict[str, list[str]]  # tokenised sentences, joined by spaces, by picture
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
ORDERS = (1, 2, 3, 4)  # of BLEU's n-grams
METEOR = 23  # statistics of a sentence
COLUMNS = (
    *("official", "plain", "cider", "cider_domain", "cider_plain", "rouge_l", "bleu length", "bleu closest"),
    *(f"bleu {which} {order}" for which in ("right", "given") for order in ORDERS),
    "meteor pictures",
    *(f"meteor {i:02}" for i in range(METEOR)),
)
"""What each picture adds to the sums."""
JAVA = ("java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8")


@dataclass
class Corpus:
    """All references of a list: the document frequencies of CIDEr come from them, whatever part of it a run asks.

    `domains` are parts of the list that are also measured alone, with their own frequencies (NoCaps). `blank` holds
    the amounts of pictures without a caption, once `amounts` was called.
    """

    references: dict[str, tuple[str, ...]] = field(default_factory=dict)
    domains: dict[str, str] = field(default_factory=dict)
    blank: dict[str, dict[str, float]] = field(default_factory=dict)

    def amounts(self, captions: Mapping[str, str]) -> dict[str, dict[str, float]]:
        """What each picture's caption adds to the sums; a picture without one counts as one with an empty caption."""
        try:
            import pycocoevalcap.cider.cider  # noqa: F401
        except ImportError:
            warnings.warn("No caption metric is computed: pip install 'vlmamba-eval[caption]'.", stacklevel=2)
            return {key: {} for key in captions}
        texts = {key: captions.get(key, "") for key in self.references}
        found: dict[str, dict[str, float]] = {key: {} for key in self.references}
        for key, score in _cider(*_split(self.references, texts, _plain)).items():
            found[key] |= {"cider_plain": score, "plain": 1.0}
        if shutil.which("java"):
            references, candidates = _split(self.references, texts, _ptb)
            _add(found, "cider", _cider(references, candidates))
            for domain in set(self.domains.values()):
                part = [key for key in references if self.domains.get(key) == domain]
                scores = _cider({key: references[key] for key in part}, {key: candidates[key] for key in part})
                _add(found, "cider_domain", scores)
            for statistics in (_bleu, _rouge):
                for key, amounts in statistics(references, candidates).items():
                    found[key] |= {**amounts, "official": 1.0}
            try:
                for key, amounts in _meteor(references, candidates).items():
                    found[key] |= {**amounts, "meteor pictures": 1.0}
            except EvalError as error:
                warnings.warn(f"METEOR is not computed, the other metrics are: {error}", stacklevel=2)
        else:
            warnings.warn(
                "CIDEr, BLEU, METEOR and ROUGE-L are not computed: their tokeniser needs Java (17 is fine). "
                "cider_plain is not comparable with published numbers.",
                stacklevel=2,
            )
        self.blank.update({key: found[key] for key in self.references if key not in captions})
        return {key: found[key] for key in captions}


# =============================================================================
# Amounts of a picture
# =============================================================================


def _cider(references: Tokens, candidates: Tokens) -> dict[str, float]:
    from pycocoevalcap.cider.cider import Cider

    scores = Cider().compute_score(references, candidates)[1]
    return {key: float(score) for key, score in zip(references, scores, strict=True)}


def _rouge(references: Tokens, candidates: Tokens) -> dict[str, dict[str, float]]:
    from pycocoevalcap.rouge.rouge import Rouge

    rouge = Rouge()
    return {key: {"rouge_l": rouge.calc_score(candidates[key], references[key])} for key in references}


def _bleu(references: Tokens, candidates: Tokens) -> dict[str, dict[str, float]]:
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    found: dict[str, dict[str, float]] = {}
    for key in references:
        counts = cook_test(candidates[key][0], cook_refs(references[key]), eff="closest")
        found[key] = {"bleu length": counts["testlen"], "bleu closest": counts["reflen"]}
        for order in ORDERS:
            found[key][f"bleu right {order}"] = counts["correct"][order - 1]
            found[key][f"bleu given {order}"] = counts["guess"][order - 1]
    return found


def _meteor(references: Tokens, candidates: Tokens) -> dict[str, dict[str, float]]:
    from pycocoevalcap.meteor import meteor

    jar = Path(str(meteor.__file__)).parent / meteor.METEOR_JAR
    lines = [
        " ||| ".join(("SCORE", *references[key], candidates[key][0].replace("|||", "").replace("  ", " ")))
        for key in references
    ]
    replies = _java("-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm", lines=lines)
    found: dict[str, dict[str, float]] = {}
    for key, reply in zip(references, replies, strict=True):
        numbers = [float(number) for number in reply.split()]
        if numbers[21:23] == numbers[0:2] and numbers[20] == 1:
            numbers[20] = 0  # METEOR adds no chunk for a caption that is its reference
        found[key] = {f"meteor {i:02}": number for i, number in enumerate(numbers)}
    return found


def _add(found: dict[str, dict[str, float]], name: str, amounts: Mapping[str, float]) -> None:
    for key, amount in amounts.items():
        found[key][name] = amount


# =============================================================================
# Words
# =============================================================================


def _split(
    references: Mapping[str, Sequence[str]], texts: Mapping[str, str], tokenise: Callable[[list[str]], list[str]]
) -> tuple[Tokens, Tokens]:
    """References and captions as tokens, each in one call of the tokeniser, as pycocoevalcap does.

    Stanford's tokeniser looks past the end of a line: an abbreviation there keeps its period or not by what follows. In
    one call for both, a model's caption could change a reference.
    """
    done = iter(tokenise([sentence for key in texts for sentence in references[key]]))
    reference_tokens = {key: [next(done) for _ in references[key]] for key in texts}
    return reference_tokens, {key: [line] for key, line in zip(texts, tokenise(list(texts.values())), strict=True)}


def _plain(sentences: list[str]) -> list[str]:
    """Lower case; runs of letters and digits, with an apostrophe inside; everything else separates."""
    return [" ".join(WORD.findall(sentence.lower())) for sentence in sentences]


def _ptb(sentences: list[str]) -> list[str]:
    """pycocoevalcap's way, without its file inside the installed package: lower case, its punctuation left out."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(str(ptbtokenizer.__file__)).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    lines = [" ".join(sentence.split()) for sentence in sentences]  # one line each, whatever the text holds
    program = "edu.stanford.nlp.process.PTBTokenizer"
    done = _java("-cp", str(jar), program, "-preserveLines", "-lowerCase", lines=lines)
    return [" ".join(w for w in line.rstrip().split(" ") if w not in ptbtokenizer.PUNCTUATIONS) for line in done]


def _beginning(text: str) -> str:
    """The first lines of what a program said: there the cause is named."""
    return " ".join(text.split()[:60])


def _java(*arguments: str, lines: list[str]) -> list[str]:
    """One line of output for each line of input."""
    text = "".join(f"{line}\n" for line in lines)
    command = [*JAVA, *arguments]  # all of it ours; the sentences go in as its input
    done = subprocess.run(  # noqa: S603
        command, input=text, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    *replies, rest = done.stdout.split("\n")
    if done.returncode or len(replies) != len(lines) or rest:
        raise EvalError(
            f"{' '.join(command)} gave {len(replies):,} lines for {len(lines):,} sentences and ended with "
            f"{done.returncode}: {_beginning(done.stderr)}\nThe answers are kept; scoring can be tried again."
        )
    return replies


# =============================================================================
# Metrics of sums
# =============================================================================


def bleu(sums: Sums, order: int) -> Floats:
    """Corpus BLEU up to n-grams of `order`, 0 to 1, as in pycocoevalcap's bleu_scorer.py (option "closest")."""
    import numpy as np

    small, tiny = 1e-9, 1e-15
    product: Any = 1.0
    for k in ORDERS[:order]:
        product = product * (sums(f"bleu right {k}") + tiny) / (sums(f"bleu given {k}") + small)
    length = (sums("bleu length") + tiny) / (sums("bleu closest") + small)
    return product ** (1 / order) * np.exp(np.minimum(0, 1 - 1 / length))


def meteor(sums: Sums) -> Floats:
    """METEOR 1.5 of the summed statistics, 0 to 1, with its parameters for English ranking.

    Denkowski and Lavie 2014, Meteor Universal, section 2. The statistics in their order: words of caption and of
    reference; function words of each; content words of each and function words of each that match exactly, by stem, by
    synonym, by paraphrase; chunks (0 for a caption that is its reference); matched words of each.
    """
    import numpy as np

    alpha, beta, gamma, delta = 0.85, 0.2, 0.6, 0.75
    s = [sums(f"meteor {i:02}") for i in range(METEOR)]
    words, function, chunks, matched = s[0:2], s[2:4], s[20], s[21:23]
    share = []
    for side in (0, 1):
        weighted = np.zeros_like(chunks)
        for stage, weight in enumerate((1.0, 0.6, 0.8, 0.6)):
            weighted += weight * (delta * s[4 + 4 * stage + side] + (1 - delta) * s[6 + 4 * stage + side])
        share.append(sums.ratio(weighted, delta * (words[side] - function[side]) + (1 - delta) * function[side]))
    precision, recall = np.nan_to_num(share[0]), np.nan_to_num(share[1])
    mean = np.nan_to_num(sums.ratio(precision * recall, alpha * precision + (1 - alpha) * recall))
    fragmentation = np.nan_to_num(sums.ratio(chunks, (matched[0] + matched[1]) / 2))
    return mean * (1 - gamma * fragmentation**beta)
