"""What is used up is said in words; the rate limits hold in any 60 seconds."""

import asyncio
import random
from typing import Any

import pytest

from po_assets.teacher.limits import Amount, Budget, RateLimiter
from po_assets.teacher.settings import BatchPlan


class Clock:
    """Time that passes only by sleeping; calling it tells the time in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:  # noqa: D102
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Let others run, and come back so much later."""
        self.now += seconds
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ({"max_rows": 3}, "max_rows 3 is reached"),
        ({"max_tokens": 1000}, "max_tokens 1,000: 900 are used and the next request may take 200"),
        ({"max_cost": 1.0}, "max_cost 1: 0.9500 is spent and the next request may cost 0.1000"),
        ({}, None),
    ],
)
def test_what_is_used_up_is_said_in_words(limit: dict[str, Any], said: str | None) -> None:
    """With the figures."""

    async def why() -> str | None:
        return await Budget(BatchPlan(**limit), Amount(3, 900, 0.95)).reserve(Amount(1, 200, 0.1))

    assert asyncio.run(why()) == said


def test_no_sixty_seconds_hold_more_than_the_rate_limits_allow() -> None:
    """Requests by number, tokens by what was reserved or, once known, taken."""

    async def batch() -> list[tuple[float, int]]:
        clock = Clock()
        limiter = RateLimiter(10, 2_000, clock, clock.sleep)
        draw, sent = random.Random(1), []
        for _ in range(120):
            counted = await limiter.acquire(400)
            counted.tokens = draw.randint(50, 400)
            sent.append((clock.now, counted.tokens))
            clock.now += draw.random() * 3
        return sent

    sent = asyncio.run(batch())
    for start, _ in sent:
        window = [tokens for at, tokens in sent if start <= at < start + 60]
        assert len(window) <= 10
        assert sum(window) <= 2_000
    assert len(sent) / ((sent[-1][0] - sent[0][0]) / 60) > 6  # and they are made use of
