"""Words for people: numbers with their nouns, durations, and progress lines at a bearable rate."""

import math
import time
from collections.abc import Callable


def amount(number: int, noun: str) -> str:
    """A number with its noun: `1 row`, `1,234 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def verb(number: int, singular: str, plural: str) -> str:
    """The verb that goes with a number."""
    return singular if number == 1 else plural


def duration(seconds: float) -> str:
    """Seconds for people: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    if not math.isfinite(seconds):
        return "unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Progress:
    """Log lines and live numbers of long work, throttled. No progress bars: in a log they are noise."""

    def __init__(
        self,
        say: Callable[[str], None],
        observe: Callable[[dict[str, float]], None] | None = None,
        *,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`say` gets log lines, `observe` numbers to plot; the work asks `due` before it reports."""
        self.say = say
        self.clock = clock
        self._observe = observe
        self._every = every_seconds
        self._last = -math.inf

    def due(self, *, last: bool = False) -> bool:
        """Whether it is time for a report: the first, one every `every_seconds`, and the last."""
        now = self.clock()
        if not last and now - self._last < self._every:
            return False
        self._last = now
        return True

    def observe(self, numbers: dict[str, float]) -> None:
        """Pass numbers to plot through."""
        if self._observe:
            self._observe(numbers)
