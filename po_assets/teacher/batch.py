"""The batch itself: payloads asked side by side, retried, reminded, counted; stopped where budget or teacher end.

It knows neither files nor Dagster: the journal keeps what happens, `run` puts a batch together.
"""

import asyncio
import math
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from po_assets.product_owner.prompts import teacher_messages
from po_assets.teacher.client import BYTES_PER_TOKEN, Fault, TeacherClient, answered, timestamp
from po_assets.teacher.journal import Attempt, Journal
from po_assets.teacher.limits import Amount, Budget, RateLimiter
from po_assets.teacher.outcomes import REMINDER, Scored, next_kind, score_attempt, settle
from po_assets.teacher.payloads import Payload
from po_assets.teacher.settings import BatchPlan, TeacherLLM
from po_assets.text import Progress, duration

LONGEST_WAIT_SECONDS = 60.0
LONGEST_ASKED_WAIT_SECONDS = 300.0
"""A server that asks to wait longer has a quota of hours or days: the batch ends and goes on when it is run again."""
FAILED_IN_A_ROW = 10
"""So many payloads without an answer, one after the other, are an outage."""
_MESSAGE_TOKENS = 20
"""Around each message, by the chat template."""


class StopReason(StrEnum):
    """Why a batch stopped."""

    FINISHED = "finished"
    BUDGET = "budget"
    OUTAGE = "outage"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Stop:
    """Why a batch stopped, and the same in words."""

    reason: StopReason
    detail: str


class Batch:
    """One run over payloads."""

    def __init__(  # noqa: PLR0917
        self,
        llm: TeacherLLM,
        plan: BatchPlan,
        payloads: Sequence[Payload],
        journal: Journal,
        client: TeacherClient,
        progress: Progress,
    ) -> None:
        self.llm, self.plan, self.journal = llm, plan, journal
        self._payloads, self._client, self._progress = payloads, client, progress
        self.histories: dict[str, list[Scored]] = {payload.key: [] for payload in payloads}
        """The attempts for each payload, those of earlier runs first."""
        self.histories = {key: history for key, history in self.all_histories().items() if key in self.histories}
        self._budget = Budget(plan, sum(map(self._amount, self.attempts), Amount()))
        self._hosted = llm.delivery == "batch"
        pace = (None, None) if self._hosted else (llm.requests_per_minute, llm.tokens_per_minute)
        self._limiter = RateLimiter(*pace)
        self._pending = [payload for payload in payloads if self._next(payload) is not None]
        self._settled = len(payloads) - len(self._pending)
        self._failed_in_a_row = 0
        self._stop: Stop | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._in_request: set[asyncio.Task[None] | None] = set()
        self._began, self._first = progress.clock(), self._used

    def all_histories(self) -> dict[str, list[Scored]]:
        """All attempts in the journal by payload, those of this batch first and in its order."""
        known = {scored.attempt.id: scored for scored in self.attempts}
        histories: dict[str, list[Scored]] = {key: [] for key in self.histories}
        for attempt in self.journal.attempts():
            # A request that was under way when the run was ended has no outcome here, but it was sent.
            scored = known.get(attempt.id) or score_attempt(attempt, self.plan.min_score)
            histories.setdefault(attempt.key, []).append(replace(scored, attempt=attempt))
        return {key: settle(history) for key, history in histories.items()}

    @property
    def attempts(self) -> list[Scored]:
        """What was asked about the batch's payloads, earlier runs included."""
        return [scored for history in self.histories.values() for scored in history]

    @property
    def seconds(self) -> float:
        """Of this run."""
        return max(self._progress.clock() - self._began, 1e-3)

    @property
    def rows_per_minute(self) -> float:
        """Of this run, accepted ones."""
        return (self._budget.spent.rows - self._first[1]) / self.seconds * 60

    @property
    def _used(self) -> tuple[float, ...]:
        """Payloads that will not be asked about again in this run, rows, tokens and money."""
        spent = self._budget.spent
        return self._settled, spent.rows, spent.tokens, spent.cost

    async def run(self) -> Stop:
        """Ask about every payload that is not settled, until all are or something stops the batch; close the client.

        Raises:
            UserError: an answer could not be kept; everything stops at once.
        """
        queue = iter(self._pending)

        async def work() -> None:
            for payload in queue:
                if self._stop:
                    return
                await self._settle(payload)

        try:
            if self.plan.cancel:
                return Stop(StopReason.CANCELLED, "nothing was asked, since `cancel` is set")
            async with asyncio.TaskGroup() as group:
                most = len(self._pending)
                for _ in range(most if self._hosted else min(self.llm.concurrency, most)):
                    self._workers.append(group.create_task(work()))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            await self._client.close()
        self._report(last=True)
        return self._stop or Stop(StopReason.FINISHED, "every payload was asked about")

    async def _settle(self, payload: Payload) -> None:
        """Ask about one payload until it is settled, fails, or the batch stops."""
        while self._stop is None and (kind := self._next(payload)) is not None:
            scored = await self._ask(payload, kind)
            if scored is None:
                return
            if scored.answered:
                self._failed_in_a_row = 0
                continue
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= FAILED_IN_A_ROW:
                why = f"the last because of: {scored.reason} ({scored.detail})"
                self._halt(StopReason.OUTAGE, f"{FAILED_IN_A_ROW} payloads in a row brought no answer, {why}")
            break
        if self._stop is None:
            self._settled += 1
            self._report()

    async def _ask(self, payload: Payload, kind: str) -> Scored | None:
        """One question, sent again while that may help; None when the budget allows no request."""
        first_wait = self.llm.retry_wait_seconds
        for again in range(self.llm.retries + 1):
            scored, fault = await self._request(payload, kind)
            if fault is None or not fault.again or self._stop or again == self.llm.retries:
                break
            wait = min(first_wait * 2**again, LONGEST_WAIT_SECONDS) + random.uniform(0, first_wait)  # noqa: S311
            if fault.wait and fault.wait > LONGEST_ASKED_WAIT_SECONDS:
                self._halt(StopReason.OUTAGE, f"the teacher asks to wait {fault.wait:,.0f} s ({fault.detail})")
                break
            if fault.wait:
                wait = fault.wait
                self._limiter.hold(wait)
            await asyncio.sleep(wait)
        return scored

    async def _request(self, payload: Payload, kind: str) -> tuple[Scored | None, Fault | None]:
        """One request within budget and rate limits, from its reservation to its outcome."""
        history = self.histories[payload.key]
        missing = next((scored.detail for scored in reversed(history) if scored.answered), "")
        reminder = missing if kind == REMINDER else ""
        messages = teacher_messages(payload.concept, payload.requirements_yaml, self.llm.instructions, reminder)
        prompt = sum(len(m["content"].encode()) // BYTES_PER_TOKEN + _MESSAGE_TOKENS for m in messages)
        completion = self.llm.max_output_tokens
        most = Amount(1, prompt + completion, self.llm.cost(prompt, completion, hosted=self._hosted))
        if used_up := await self._budget.reserve(most):
            self._halt(StopReason.BUDGET, used_up)
            return None, None
        spent = Amount()
        try:
            counted = await self._limiter.acquire(most.tokens)
            task = asyncio.current_task()
            self._in_request.add(task)  # from here to its outcome it is not cancelled
            try:
                attempt = Attempt(
                    id=uuid.uuid4().hex,
                    key=payload.key,
                    kind=kind,
                    **asdict(payload),
                    sent_at=timestamp(),
                    max_output_tokens=completion,
                    prompt_tokens=prompt,
                    completion_tokens=completion,
                    hosted=self._hosted,
                )
                await self.journal.keep(attempt)
                started = time.monotonic()
                reply = await self._client.ask(messages, attempt.id)
                attempt = answered(attempt, reply, time.monotonic() - started)
                await self.journal.keep(attempt)
                scored = score_attempt(attempt, self.plan.min_score)
                history.append(scored)
            finally:
                self._in_request.discard(task)
            spent = self._amount(scored)
            counted.tokens = spent.tokens
        finally:
            await self._budget.settle(most, spent)
        if reply.fault and reply.fault.stops:
            self._halt(StopReason.OUTAGE, f"{reply.fault.reason}: {reply.fault.detail}")
        return scored, reply.fault

    def _next(self, payload: Payload) -> str | None:
        return next_kind(self.histories[payload.key], self.plan.tries, self.llm.max_output_tokens)

    def _amount(self, scored: Scored) -> Amount:
        cost = self.llm.cost(*scored.attempt.tokens, hosted=scored.attempt.hosted)
        return Amount(int(scored.accepted), sum(scored.attempt.tokens), cost)

    def _halt(self, reason: StopReason, detail: str) -> None:
        """Ask nothing more: requests under way come to their end, whoever waits for something stops waiting."""
        if self._stop:
            return
        self._stop = Stop(reason, detail)
        for worker in self._workers:
            if worker not in self._in_request and worker is not asyncio.current_task():
                worker.cancel()

    def _report(self, *, last: bool = False) -> None:
        """Say where the batch stands, when it is time."""
        if not self._progress.due(last=last):
            return
        attempts, spent = self.attempts, self._budget.spent
        answers = sum(scored.answered for scored in attempts)
        acceptance = spent.rows / answers if answers else 0.0
        left = "" if last else f", {duration(self._seconds_left())} left"
        self._progress.say(
            f"{self._settled:,} of {len(self._payloads):,} payloads settled, {spent.rows:,} rows accepted "
            f"({acceptance:.0%} of {answers:,} answers), {len(attempts) - answers:,} requests "
            f"without an answer, {spent.tokens:,} tokens, cost {spent.cost:.4f}, "
            f"{self.rows_per_minute:.1f} rows a minute{left}"
        )

    def _seconds_left(self) -> float:
        """Until the payloads or, at this run's rates, a limit of the budget is used up, whichever comes first."""
        ends = (len(self._payloads), self.plan.max_rows, self.plan.max_tokens, self.plan.max_cost)
        return min(
            max(end - now, 0) * self.seconds / (now - before) if now > before else math.inf
            for end, now, before in zip(ends, self._used, self._first, strict=True)
            if end is not None
        )
