"""Progress of a long step: share, rate and finish estimate, one living line on a terminal, plain lines elsewhere.

Progress is counted in finished tasks' bytes. Counting commit records works on every Beam runner, where live counters
work on few.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

_verbosity = 0


def set_verbosity(level: int) -> None:
    """-1 quiet, 0 a line per stage and progress, 1 more."""
    global _verbosity
    _verbosity = level


def say(line: str, level: int = 0) -> None:
    """A line for the person who waits, on standard error."""
    if _verbosity >= level:
        print(line, file=sys.stderr, flush=True)


def printable(text: object) -> str:
    r"""Text from the web or a file, harmless to a terminal: what does not print is escaped.

    >>> print(printable("a\x1b[31mb"))
    a\x1b[31mb
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def human_bytes(count: float) -> str:
    """
    >>> human_bytes(1536), human_bytes(2_500_000_000)
    ('1.5 kB', '2.5 GB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def human_seconds(seconds: float) -> str:
    """
    >>> human_seconds(5), human_seconds(125), human_seconds(7300)
    ('5 s', '2 min 05 s', '2 h 01 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"


class Progress:
    """Shows `done()` (bytes finished) against `total` while a `with` block runs."""

    def __init__(self, label: str, total: int, done: Callable[[], int], every: float = 0.0) -> None:
        self._label, self._total, self._done = label, max(total, 1), done
        self._terminal = sys.stderr.isatty()
        self._every = every or (0.5 if self._terminal else 15.0)
        self._stop = threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def line(self) -> str:
        elapsed = time.monotonic() - self._started
        done = min(self._done(), self._total)
        rate = done / max(elapsed, 1e-9)
        left = f", about {human_seconds((self._total - done) / rate)} left" if rate > 0 else ""
        return f"{self._label}: {100 * done / self._total:3.0f} %, {human_bytes(rate)}/s{left}"

    def _show(self) -> None:
        while not self._stop.wait(self._every):
            if self._terminal:
                print(f"\r\x1b[K{self.line()}", end="", file=sys.stderr, flush=True)
            else:
                say(self.line())

    def __enter__(self) -> Progress:
        if _verbosity >= 0:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._terminal and _verbosity >= 0:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
