"""What a training says while it runs: one record per step, log lines and live numbers at a bearable rate.

No progress bars: in a log they are noise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from po_assets.text import duration


@dataclass(frozen=True)
class StepRecord:
    """One line of `training_log.jsonl`."""

    step: int
    """From 1."""
    steps: int
    epoch: float
    """Passes over the data after this step."""
    loss: float
    """Mean cross-entropy per trained token of the step's rows, before the step, in nats."""
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    tokens: int
    """Real tokens, prompt and answer, of the step's rows."""
    trained_tokens: int
    seconds: float
    memory_gib: float
    """Highest use of GPU memory, or of main memory where there is no GPU, so far."""


class Progress:
    """Turns step records into log lines and live numbers."""

    def __init__(
        self,
        say: Callable[[str], None],
        observe: Callable[[dict[str, float]], None] | None = None,
        *,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`say` gets log lines, `observe` numbers to plot; each at most every `every_seconds`, and at both ends."""
        self._say, self._observe = say, observe
        self._every, self._clock = every_seconds, clock
        self._last = -math.inf
        self._seconds = 0.0
        self._tokens = 0

    def say(self, text: str) -> None:
        """Pass a line through."""
        self._say(text)

    def observe(self, numbers: dict[str, float]) -> None:
        """Pass numbers to plot through."""
        if self._observe:
            self._observe(numbers)

    def step(self, record: StepRecord, tokens_left: int) -> None:
        """Report a finished step; `tokens_left` are the tokens of the steps still to come."""
        self._seconds += record.seconds
        self._tokens += record.tokens
        now = self._clock()
        if now - self._last < self._every and record.step != record.steps:
            return
        self._last = now
        speed = self._tokens / self._seconds if self._seconds > 0 else math.nan
        self._say(
            f"step {record.step}/{record.steps}, epoch {record.epoch:.2f}, loss {record.loss:.3f}, "
            f"{speed:,.0f} tokens/s, {duration(tokens_left / speed)} left, {record.memory_gib:.1f} GiB"
        )
        numbers = {key: float(value) for key, value in asdict(record).items() if key not in ("steps", "seconds")}
        self.observe({f"train/{key}": value for key, value in numbers.items()} | {"train/tokens_per_second": speed})


def peak_memory_gib() -> float:
    """Highest use of GPU memory by this process, or of main memory without a GPU, in GiB."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 2**30)
    import psutil

    return float(psutil.Process().memory_info().rss / 2**30)
