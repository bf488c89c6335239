"""What a batch says while it runs: throttled log lines, and numbers that the UI plots."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from po_assets.teacher.limits import Amount
from po_assets.teacher.settings import Limits
from po_assets.text import duration


@dataclass(frozen=True)
class Standing:
    """Where a batch stands, earlier runs of it included."""

    payloads: int
    settled: int
    """Payloads that will not be asked about again in this run."""
    requests: int
    answers: int
    """Requests that brought a whole answer, good or bad."""
    spent: Amount
    """Its `rows` are the accepted ones."""

    @property
    def acceptance(self) -> float:
        """Share of the answers that were accepted, 0 to 1; 0 before the first."""
        return self.spent.rows / self.answers if self.answers else 0.0


class BatchProgress:
    """Says where a batch stands, at most every `every_seconds`, and at its end."""

    def __init__(
        self,
        say: Callable[[str], None],
        observe: Callable[[dict[str, float]], None] | None = None,
        *,
        every_seconds: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.say = say
        self._observe, self._every, self._clock = observe, every_seconds, clock
        self._limits = Limits()
        self._started = self._last = clock()
        self._first = Standing(0, 0, 0, 0, Amount())

    def begin(self, standing: Standing, limits: Limits) -> None:
        """Remember where the run starts, so that its own speed tells the time left."""
        self._first, self._limits = standing, limits
        self._started = self._last = self._clock()

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._started

    def report(self, standing: Standing, *, last: bool = False) -> None:
        """Say where the batch stands, when it is time."""
        now = self._clock()
        if not last and now - self._last < self._every:
            return
        self._last = now
        seconds = max(now - self._started, 1e-9)
        left = 0.0 if last else self.seconds_left(standing)
        rows = (standing.spent.rows - self._first.spent.rows) / seconds * 60
        self.say(
            f"{standing.settled:,} of {standing.payloads:,} payloads settled, {standing.spent.rows:,} rows accepted "
            f"({standing.acceptance:.0%} of {standing.answers:,} answers), "
            f"{standing.requests - standing.answers:,} requests without an answer, {standing.spent.tokens:,} tokens, "
            f"cost {standing.spent.cost:.4f}, {rows:.1f} rows a minute" + ("" if last else f", {duration(left)} left")
        )
        if self._observe:
            numbers = {
                "batch/accepted": float(standing.spent.rows),
                "batch/requests": float(standing.requests),
                "batch/acceptance_rate": standing.acceptance,
                "batch/tokens": float(standing.spent.tokens),
                "batch/cost": standing.spent.cost,
                "batch/rows_per_minute": rows,
            }
            if math.isfinite(left):
                numbers["batch/seconds_left"] = left
            self._observe(numbers)

    def seconds_left(self, standing: Standing) -> float:
        """Until the payloads or, at this run's rates, a limit of the budget is used up, whichever comes first."""
        seconds, first, limits = self.seconds, self._first, self._limits
        ways = [(standing.payloads, standing.settled, first.settled)]
        for limit, now, before in (
            (limits.rows, standing.spent.rows, first.spent.rows),
            (limits.tokens, standing.spent.tokens, first.spent.tokens),
            (limits.cost, standing.spent.cost, first.spent.cost),
        ):
            if limit is not None:
                ways.append((limit, now, before))  # type: ignore[arg-type]  # money is no whole number
        return min(
            (max(end - now, 0) * seconds / (now - before) if now > before else math.inf) for end, now, before in ways
        )
