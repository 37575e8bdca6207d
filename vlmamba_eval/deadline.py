"""Giving up on what takes too long: a picture that decodes for a minute, a model that hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def within(seconds: float | None, function: Callable[..., T], *arguments: Any) -> T:
    """Call the function and wait at most so long. Raises `TimeoutError` after that, else whatever it raises.

    Python cannot stop a thread: what was given up runs on in the background until it ends, or the process does.
    """
    if seconds is None:
        return function(*arguments)
    outcome: list[T] = []
    raised: list[BaseException] = []

    def call() -> None:
        try:
            outcome.append(function(*arguments))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not outcome:
        raise TimeoutError(f"took longer than {seconds:g} seconds")
    return outcome[0]
