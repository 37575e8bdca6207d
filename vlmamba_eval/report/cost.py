"""What answering took, from a run's telemetry: seconds, parameters, the memory of a state. It decides no score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmamba_eval.store import TELEMETRY
from vlmamba_eval.strict_json import parse_json


@dataclass(frozen=True)
class Cost:
    """Seconds of all sittings together; None if nothing was timed (imported answers)."""

    seconds: float | None
    parameters: int | None
    state_bytes: int | None
    where: str


def cost(runs: Iterable[Sequence[Mapping[str, Any]]]) -> Cost:
    """The cost of one model's runs. Tasks that were answered in one sitting share its time, which counts once."""
    spans: list[tuple[float, float]] = []
    known: dict[str, Any] = {}
    for events in runs:
        begun: float | None = None
        for event in events:
            known |= {name: event[name] for name in ("parameters", "state_bytes", "machine", "device") if name in event}
            if event.get("event") == "start":
                begun = event.get("time")
            elif event.get("event") == "end" and begun is not None:
                spans.append((float(begun), float(event["time"])))
                begun = None
    seconds, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        seconds += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    where = ", ".join(str(known[name]) for name in ("device", "machine") if name in known)
    return Cost(seconds if spans else None, known.get("parameters"), known.get("state_bytes"), where)


def read_telemetry(folder: Path) -> list[dict[str, Any]]:
    """A run's telemetry, event by event; lines that a crash tore are left out, and no file means no telemetry."""
    try:
        lines = (folder / TELEMETRY).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    events = []
    for line in lines:
        try:
            event = parse_json(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def millions(parameters: int | None) -> str:
    """A number of parameters, `2.78 B` or `3.4 M`."""
    if parameters is None:
        return "-"
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def size(n_bytes: int | None) -> str:
    """A number of bytes in MiB or KiB."""
    if n_bytes is None:
        return "-"
    return f"{n_bytes / 2**20:.1f} MiB" if n_bytes >= 2**20 else f"{n_bytes / 2**10:.0f} KiB"
