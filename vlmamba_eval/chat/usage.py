"""What a client used, for the telemetry: it decides no answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from vlmamba_eval.chat.server import Reply
from vlmamba_eval.chat.wire import count, get, reasoned
from vlmamba_eval.types import Failure

MOST_NAMES = 8  # a server that renames itself with each answer must not fill the memory


@dataclass
class Usage:
    """Counters; changed on the loop's thread alone."""

    requests: int = 0
    retries: int = 0
    rate_limited: int = 0
    longest_wait_s: float = 0.0
    answered: int = 0
    failed: int = 0
    cut_at_the_limit: int = 0
    reasoned: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cost_reported: float = 0.0  # in the currency of a server that reports `usage.cost`
    bytes_sent: int = 0
    served_by: set[str] = field(default_factory=set)

    def outcome(self, outcome: Reply | Failure) -> None:
        """Count a request that is done."""
        self.failed += isinstance(outcome, Failure)
        self.answered += isinstance(outcome, Reply)
        self.cut_at_the_limit += isinstance(outcome, Reply) and outcome.stop == "length"

    def completion(self, completion: dict[str, Any]) -> None:
        """Count what a completion says about itself."""
        usage = get(completion, "usage", dict)
        self.prompt_tokens += count(usage, "prompt_tokens")
        self.completion_tokens += count(usage, "completion_tokens")
        self.cached_prompt_tokens += count(get(usage, "prompt_tokens_details", dict), "cached_tokens")
        self.reasoning_tokens += count(get(usage, "completion_tokens_details", dict), "reasoning_tokens")
        self.reasoned += reasoned(completion)
        cost = usage.get("cost") if usage else None
        if isinstance(cost, int | float) and 0 <= cost < 1e6:
            self.cost_reported += cost
        for name in ("model", "system_fingerprint"):
            self.name(name, get(completion, name, str))

    def name(self, what: str, value: str | None) -> None:
        """Note what the server calls itself."""
        if value and len(self.served_by) < MOST_NAMES:
            self.served_by.add(f"{what} {value[:80]}")

    def report(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self) | {
            "longest_wait_s": round(self.longest_wait_s, 3),
            "cost_reported": round(self.cost_reported, 6),
            "served_by": sorted(self.served_by),
        }
