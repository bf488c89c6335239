"""The budget grants only what surely fits; the rate limits hold in any 60 seconds."""

import asyncio
import random

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


def test_the_budget_is_never_exceeded_whatever_requests_turn_out_to_cost() -> None:
    """Many workers at once; the sum of what is spent and reserved stays within every limit, and little is left over."""

    async def batch(seed: int) -> Budget:
        draw = random.Random(seed)
        limits = BatchPlan(
            max_rows=draw.choice([None, 17]), max_tokens=draw.choice([None, 9_000]), max_cost=draw.choice([None, 2.0])
        )
        budget = Budget(limits, Amount())

        async def work() -> None:
            for _ in range(40):
                most = Amount(1, 500, 0.1)
                if await budget.reserve(most):
                    return
                total = budget.spent + budget.reserved
                for limit, value in (
                    (limits.max_rows, total.rows),
                    (limits.max_tokens, total.tokens),
                    (limits.max_cost, total.cost),
                ):
                    assert limit is None or value <= limit + 1e-9
                await asyncio.sleep(draw.random() / 1000)
                await budget.settle(most, Amount(draw.randint(0, 1), draw.randint(0, 500), draw.random() / 10))

        await asyncio.gather(*(work() for _ in range(8)))
        assert budget.reserved.rows == 0
        return budget

    for seed in range(12):
        asyncio.run(batch(seed))


def test_the_last_rows_are_asked_for_until_the_budget_is_full() -> None:
    """What a request under way turns out not to need is granted again, instead of ending the batch early."""

    async def batch() -> int:
        budget = Budget(BatchPlan(max_rows=5), Amount())
        most, asked = Amount(1, 0, 0), 0

        async def work() -> None:
            nonlocal asked
            while not await budget.reserve(most):
                asked += 1
                rows = int(asked % 3 == 0)
                await asyncio.sleep(0.001)
                await budget.settle(most, Amount(rows, 0, 0))

        await asyncio.gather(*(work() for _ in range(4)))
        return budget.spent.rows

    assert asyncio.run(batch()) == 5


def test_what_is_used_up_is_said_in_words() -> None:
    """With the figures."""

    async def why(limits: BatchPlan) -> str | None:
        return await Budget(limits, Amount(3, 900, 0.95)).reserve(Amount(1, 200, 0.1))

    assert asyncio.run(why(BatchPlan(max_rows=3))) == "max_rows 3 is reached"
    assert (
        asyncio.run(why(BatchPlan(max_tokens=1000)))
        == "max_tokens 1,000: 900 are used and the next request may take 200"
    )
    assert asyncio.run(why(BatchPlan(max_cost=1))) == "max_cost 1: 0.9500 is spent and the next request may cost 0.1000"
    assert asyncio.run(why(BatchPlan())) is None


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


def test_a_pause_that_the_server_asks_for_holds_for_all() -> None:
    """Also without rate limits of one's own."""

    async def batch() -> float:
        clock = Clock()
        limiter = RateLimiter(None, None, clock, clock.sleep)
        await limiter.acquire(1)
        limiter.hold(7)
        limiter.hold(3)  # a shorter one does not end it
        return (await limiter.acquire(1)).at - 1000.0

    assert asyncio.run(batch()) == 7.0
