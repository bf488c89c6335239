"""What a batch must not exceed: the budget, counted with what is under way, and the teacher's rate limits."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from po_assets.teacher.settings import BatchPlan

_WINDOW_SECONDS = 60.0
"""Over which rates are limited."""


@dataclass(frozen=True)
class Amount:
    """Rows, tokens and money: spent, or reserved for a request under way."""

    rows: int = 0
    tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.rows + other.rows, self.tokens + other.tokens, self.cost + other.cost)

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(self.rows - other.rows, self.tokens - other.tokens, self.cost - other.cost)


class Budget:
    """Grants a request only when all that is spent, all under way at its most, and this one at its most fit.

    So the budget is never exceeded, and the last rows are asked for a few at a time: what requests under way turn out
    not to need is granted again. Only the server can break this, by charging more than the token limit it was given.
    """

    def __init__(self, plan: BatchPlan, spent: Amount) -> None:
        self._plan = plan
        self.spent, self.reserved = spent, Amount()
        self._under_way = 0
        self._changed = asyncio.Condition()

    async def reserve(self, most: Amount) -> str | None:
        """Set aside the most that a request may take; None, or in words what is used up for good."""
        async with self._changed:
            while exceeded := self._exceeded(most):
                if not self._under_way:
                    return exceeded
                await self._changed.wait()
            self.reserved += most
            self._under_way += 1
        return None

    async def settle(self, most: Amount, spent: Amount) -> None:
        """Give the reservation back and count what the request really took."""
        self.reserved -= most
        self._under_way -= 1
        self.spent += spent
        # Counted before anything is waited for: a worker may be cancelled here.
        async with self._changed:
            self._changed.notify_all()

    def _exceeded(self, most: Amount) -> str | None:
        plan, total = self._plan, self.spent + self.reserved + most
        if plan.max_rows is not None and total.rows > plan.max_rows:
            return f"max_rows {plan.max_rows:,} is reached"
        if plan.max_tokens is not None and total.tokens > plan.max_tokens:
            used = f"{self.spent.tokens:,} are used and the next request may take {most.tokens:,}"
            return f"max_tokens {plan.max_tokens:,}: {used}"
        if plan.max_cost is not None and total.cost > plan.max_cost:
            used = f"{self.spent.cost:.4f} is spent and the next request may cost {most.cost:.4f}"
            return f"max_cost {plan.max_cost:g}: {used}"
        return None


class RateLimiter:
    """Requests and tokens in any 60 seconds, first come first served; and pauses that the server asks for.

    A request counts with the most tokens it may take until it is known what it took, which is how providers count.
    """

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._requests, self._tokens = requests_per_minute, tokens_per_minute
        self._clock, self._sleep = clock, sleep
        self._window: deque[_Counted] = deque()
        self._held_until = 0.0
        self._turn = asyncio.Lock()

    async def acquire(self, tokens: int) -> "_Counted":
        """Wait until a request of at most so many tokens may be sent, and count it."""
        async with self._turn:
            while (wait := self._wait(tokens)) > 0:
                await self._sleep(wait)
            counted = _Counted(self._clock(), tokens)
            self._window.append(counted)
            return counted

    def hold(self, seconds: float) -> None:
        """Send nothing for so long: the server said so to one request and means all."""
        self._held_until = max(self._held_until, self._clock() + seconds)

    def _wait(self, tokens: int) -> float:
        now = self._clock()
        while self._window and self._window[0].at <= now - _WINDOW_SECONDS:
            self._window.popleft()
        wait = self._held_until - now
        if not self._window:  # a request larger than a whole minute's tokens goes alone
            return wait
        full = self._requests is not None and len(self._window) >= self._requests
        used = sum(counted.tokens for counted in self._window) if self._tokens is not None else 0
        if full or (self._tokens is not None and used + tokens > self._tokens):
            # As soon as the oldest leaves the window, or sooner when a request turns out smaller than reserved.
            wait = max(wait, min(self._window[0].at + _WINDOW_SECONDS - now, 1.0 if not full else _WINDOW_SECONDS))
        return wait


@dataclass
class _Counted:
    """A request in the window of the last minute; `tokens` is corrected when its answer is in."""

    at: float
    tokens: int
