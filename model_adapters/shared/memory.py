"""One rule for every family: what counts as a lack of memory, and what the harness is told of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from vlmamba_eval.types import OutOfMemory


@contextmanager
def memory_errors(free: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn what is raised when memory is short into `OutOfMemory`, which the harness answers with smaller batches.

    `free` is called first: it lets go of what the caller holds and prepares for less.
    """
    try:
        yield
        return
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        short = isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
        if not short:
            raise
        message = str(error) or "no memory left"
    # Raised here, so that no traceback holds on to the tensors that filled the memory.
    free()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    raise OutOfMemory(message)
