"""The model class that lmms-eval makes; see its `lmms_eval/api/model.py` (release 0.7.3) for the contract."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms  # type: ignore[import-not-found] - an extra
from PIL import Image

from vlmamba_eval.registry import load
from vlmamba_eval.types import EvalError, Failure, ImageQuestions, OutOfMemory, Question, UsageError

MAX_NEW_TOKENS = 128  # where a task of lmms-eval sets none
IMAGES_AT_ONCE = 16


class VLMambaForLmms(lmms):
    """Answers lmms-eval's requests. All requests of a run come in one call, so they can be grouped by image.

    `--model_args model=NAME_OR_FOLDER,weights=DIR,dtype=...,journal=FILE`. With a journal each answer is kept on the
    disk as it comes, and a second run asks only what is new: lmms-eval itself keeps nothing of a run that crashes.
    """

    is_simple = True

    def __init__(
        self,
        model: str = "vlmamba-tiny",
        weights: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        journal: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        # The engine makes its own batches; lmms-eval's sizes are accepted because it always passes them.
        options = {"device": device, "dtype": dtype} | ({"weights": weights} if weights else {})
        self.adapter = load(model, options)
        self.journal = Path(journal) if journal else None

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One answer for each request, in order. Arguments of the requests are never changed."""
        known = self._read_journal()
        keys: list[str] = []
        pending: dict[str, dict[str, Question]] = defaultdict(dict)  # image -> request key -> question
        images: dict[str, Image.Image | None] = {}
        for request in requests:
            context, options, visual, doc_id, task, split = request.args
            pictures = visual(self.task_dict[task][split][doc_id])
            if len(pictures) > 1:
                raise UsageError(f"{task}, document {doc_id}: {len(pictures)} images; VL-Mamba takes at most one.")
            image_key = _identity(pictures[0]) if pictures else ""
            question = Question(str(context), int(options.get("max_new_tokens") or MAX_NEW_TOKENS))
            key = _digest(self.adapter.info.weights, image_key, question.text, str(question.max_new_tokens))
            keys.append(key)
            if key not in known:
                images[image_key] = pictures[0] if pictures else None
                pending[image_key][key] = question
        groups = list(pending.items())
        for start in range(0, len(groups), IMAGES_AT_ONCE):
            self._answer(groups[start : start + IMAGES_AT_ONCE], images, known)
        return [_until(known[key], request.args[1]) for key, request in zip(keys, requests, strict=True)]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("vlmamba answers generate_until tasks alone")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("vlmamba answers one question at a time")

    def _answer(
        self,
        groups: Sequence[tuple[str, dict[str, Question]]],
        images: dict[str, Image.Image | None],
        known: dict[str, str],
    ) -> None:
        """Answer groups of questions and write them down; out of memory, by halves."""
        batch = []
        for image_key, questions in groups:
            picture = images[image_key]
            prepared = None if picture is None else self.adapter.prepare(picture.convert("RGB"))
            batch.append(ImageQuestions(prepared, tuple(questions.values())))
        try:
            answered = self.adapter.generate(batch)
        except OutOfMemory:
            if len(groups) == 1:
                raise
            middle = len(groups) // 2
            self._answer(groups[:middle], images, known)
            self._answer(groups[middle:], images, known)
            return
        new: dict[str, str] = {}
        for (_, questions), outcomes in zip(groups, answered, strict=True):
            for key, outcome in zip(questions, outcomes, strict=True):
                if isinstance(outcome, Failure):
                    raise EvalError(
                        f"{self.adapter.info.name} could not answer {questions[key].text!r}: {outcome.message}"
                    )
                new[key] = outcome.text
        known.update(new)
        if self.journal is not None:
            with self.journal.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"key": key, "text": text}) + "\n" for key, text in new.items())

    def _read_journal(self) -> dict[str, str]:
        if self.journal is None or not self.journal.exists():
            return {}
        rows = [json.loads(line) for line in self.journal.read_text(encoding="utf-8").splitlines() if line[-1:] == "}"]
        return {row["key"]: row["text"] for row in rows}


def _identity(image: Image.Image) -> str:
    return _digest(image.mode, str(image.size), image.tobytes())


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def _until(text: str, options: dict[str, Any]) -> str:
    """The answer up to the first of the task's stop strings."""
    stops = options.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop:
            text = text.split(stop, 1)[0]
    return text
