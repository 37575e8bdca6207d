"""What a run has to do with the process it is in: signals end it cleanly, and a lost terminal costs no result."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import IO, Any, NoReturn


class Stopped(BaseException):
    """A signal ended the run. Not a KeyboardInterrupt, which click would turn into an `Abort`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells count."""
        return 128 + self.number


def stop_cleanly() -> None:
    """Have Ctrl-C, SIGTERM and SIGHUP raise `Stopped` once; a second one ends the process at once, without a word."""
    stopping = False

    def on_signal(number: int, frame: object) -> NoReturn:
        nonlocal stopping
        if stopping:
            os._exit(128 + number)
        stopping = True
        raise Stopped(number)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup; a shell's background job
            signal.signal(number, on_signal)


class _Lasting:
    """A stream that is written to as long as that works. A reader that went away, or a full disk, costs no result.

    `failure` is why it could not be written, unless it was closed or its reader went away, as `head` does.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Send what is still buffered, and all that follows, nowhere: the interpreter flushes once more at its end."""
        if isinstance(error, OSError) and error.errno not in (errno.EPIPE, errno.EBADF):
            self.failure = self.failure or error
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            self._stream = open(os.devnull, "w")  # noqa: SIM115 - it stands for a stream that lasts as long as the process


def make_streams_last() -> None:
    """Replace standard output and error by streams that never fail; those that were closed (`>&-`) by none."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w")  # noqa: SIM115 - as above
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that can't show a dagger is not a failure
        setattr(sys, name, _Lasting(stream))


def output_failure() -> str:
    """Why standard output could not be written, in the system's words; "" if all of it was."""
    sys.stdout.flush()
    failure = getattr(sys.stdout, "failure", None)
    return (failure.strerror or type(failure).__name__) if isinstance(failure, OSError) else ""
