"""The batch itself: payloads asked side by side, retried, reminded, counted; stopped where budget or teacher end.

It knows neither files nor Dagster: the journal keeps what happens, `run` puts a batch together.
"""

import asyncio
import datetime as dt
import math
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from po_assets.product_owner.prompts import teacher_messages
from po_assets.teacher.client import Fault, Reply, TeacherClient, Usage
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
_BYTES_PER_TOKEN = 2
"""At least, in text of any language with the usual tokenizers; English has 4. What is reserved is an upper bound."""
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


@dataclass(frozen=True)
class BatchState:
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


class Batch:
    """One run over payloads; `histories` holds all attempts for each, those of earlier runs first."""

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
        for attempt in journal.attempts():
            if attempt.key in self.histories:
                self.histories[attempt.key].append(score_attempt(attempt, plan.min_score))
        self.histories = {key: settle(history) for key, history in self.histories.items()}
        attempts = [scored for history in self.histories.values() for scored in history]
        self._budget = Budget(plan, sum(map(self._amount, attempts), Amount()))
        self._hosted = llm.delivery == "batch"
        pace = (None, None) if self._hosted else (llm.requests_per_minute, llm.tokens_per_minute)
        self._limiter = RateLimiter(*pace)
        self._settled = 0
        self._failed_in_a_row = 0
        self._stop: Stop | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._in_request: set[asyncio.Task[None] | None] = set()
        self._began, self._first = progress.clock(), self.state

    @property
    def state(self) -> BatchState:
        """Where the batch stands."""
        attempts = [scored for history in self.histories.values() for scored in history]
        answers = sum(scored.answered for scored in attempts)
        return BatchState(len(self._payloads), self._settled, len(attempts), answers, self._budget.spent)

    def all_histories(self) -> dict[str, list[Scored]]:
        """All attempts in the journal by payload, those of this batch first and in its order."""
        known = {scored.attempt.id: scored for history in self.histories.values() for scored in history}
        histories: dict[str, list[Scored]] = {key: [] for key in self.histories}
        for attempt in self.journal.attempts():
            # A request that was under way when the run was ended has no outcome here, but it was sent.
            scored = known.get(attempt.id) or score_attempt(attempt, self.plan.min_score)
            histories.setdefault(attempt.key, []).append(replace(scored, attempt=attempt))
        return {key: settle(history) for key, history in histories.items()}

    async def run(self) -> Stop:
        """Ask about every payload that is not settled, until all are or something stops the batch.

        Raises:
            UserError: an answer could not be kept; everything stops at once.
        """
        pending = [payload for payload in self._payloads if self._next(payload) is not None]
        self._settled = len(self._payloads) - len(pending)
        self._began, self._first = self._progress.clock(), self.state
        queue = iter(pending)

        async def work() -> None:
            for payload in queue:
                if self._stop:
                    return
                await self._settle(payload)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(len(pending) if self._hosted else min(self.llm.concurrency, len(pending))):
                    self._workers.append(group.create_task(work()))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        self._report(last=True)
        return self._stop or Stop(StopReason.FINISHED, "every payload was asked about")

    async def _settle(self, payload: Payload) -> None:
        """Ask about one payload until it is settled, fails, or the batch stops."""
        while self._stop is None and (kind := self._next(payload)) is not None:
            scored = await self._ask(payload, kind)
            if scored is None:
                return
            if not scored.answered:
                self._count_failure(scored)
                break
            self._failed_in_a_row = 0
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
        reminder = self._missing(payload) if kind == REMINDER else ""
        messages = teacher_messages(payload.concept, payload.requirements_yaml, self.llm.instructions, reminder)
        prompt = sum(len(m["content"].encode()) // _BYTES_PER_TOKEN + _MESSAGE_TOKENS for m in messages)
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
                    sent_at=_now(),
                    max_output_tokens=completion,
                    reserved_prompt=prompt,
                    reserved_completion=completion,
                    hosted=self._hosted,
                )
                scored, fault = await self._exchange(attempt, messages)
            finally:
                self._in_request.discard(task)
            spent = self._amount(scored)
            counted.tokens = spent.tokens
        finally:
            await self._budget.settle(most, spent)
        if fault and fault.stops:
            self._halt(StopReason.OUTAGE, f"{fault.reason}: {fault.detail}")
        return scored, fault

    async def _exchange(self, attempt: Attempt, messages: list[dict[str, str]]) -> tuple[Scored, Fault | None]:
        """Note the request, send it, keep what comes, score it."""
        await self.journal.keep(attempt)
        started = time.monotonic()
        reply = await self._client.ask(messages, attempt.id)
        attempt = answered(attempt, reply, time.monotonic() - started)
        await self.journal.keep(attempt)
        scored = score_attempt(attempt, self.plan.min_score)
        self.histories[attempt.key].append(scored)
        return scored, reply.fault

    def _next(self, payload: Payload) -> str | None:
        return next_kind(self.histories[payload.key], self.plan.tries, self.llm.max_output_tokens)

    def _missing(self, payload: Payload) -> str:
        """What was missing in the payload's last answer."""
        return next(scored.detail for scored in reversed(self.histories[payload.key]) if scored.answered)

    def _amount(self, scored: Scored) -> Amount:
        prompt, completion = scored.attempt.tokens
        cost = self.llm.cost(prompt, completion, hosted=scored.attempt.hosted)
        return Amount(int(scored.accepted), prompt + completion, cost)

    def _count_failure(self, scored: Scored) -> None:
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= FAILED_IN_A_ROW:
            why = f"the last because of: {scored.reason} ({scored.detail})"
            self._halt(StopReason.OUTAGE, f"{FAILED_IN_A_ROW} payloads in a row brought no answer, {why}")

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
        state, spent = self.state, self._budget.spent
        seconds = max(self._progress.clock() - self._began, 1e-9)
        left = 0.0 if last else self._seconds_left(state, seconds)
        rows = (spent.rows - self._first.spent.rows) / seconds * 60
        self._progress.say(
            f"{state.settled:,} of {state.payloads:,} payloads settled, {spent.rows:,} rows accepted "
            f"({state.acceptance:.0%} of {state.answers:,} answers), {state.requests - state.answers:,} requests "
            f"without an answer, {spent.tokens:,} tokens, cost {spent.cost:.4f}, {rows:.1f} rows a minute"
            + ("" if last else f", {duration(left)} left")
        )
        numbers = {
            "batch/accepted": float(spent.rows),
            "batch/requests": float(state.requests),
            "batch/acceptance_rate": state.acceptance,
            "batch/tokens": float(spent.tokens),
            "batch/cost": spent.cost,
            "batch/rows_per_minute": rows,
        }
        self._progress.observe(numbers | ({"batch/seconds_left": left} if math.isfinite(left) else {}))

    def _seconds_left(self, state: BatchState, seconds: float) -> float:
        """Until the payloads or, at this run's rates, a limit of the budget is used up, whichever comes first."""
        plan, spent, first = self.plan, state.spent, self._first
        ways: list[tuple[float | None, float, float]] = [
            (state.payloads, state.settled, first.settled),
            (plan.max_rows, spent.rows, first.spent.rows),
            (plan.max_tokens, spent.tokens, first.spent.tokens),
            (plan.max_cost, spent.cost, first.spent.cost),
        ]
        return min(
            max(end - now, 0) * seconds / (now - before) if now > before else math.inf
            for end, now, before in ways
            if end is not None
        )


def answered(attempt: Attempt, reply: Reply, seconds: float) -> Attempt:
    """The attempt with what came back."""
    fault, usage, estimated = reply.fault, reply.usage, False
    if usage is None and fault and fault.free:
        usage = Usage(0, 0)
    elif usage is None:
        written = len((reply.text + reply.refusal).encode("utf-8", "replace")) // _BYTES_PER_TOKEN + 1
        completion = attempt.reserved_completion if fault else min(written, attempt.reserved_completion)
        usage, estimated = Usage(attempt.reserved_prompt, completion), True
    return replace(
        attempt,
        answered_at=_now(),
        seconds=round(seconds, 3),
        text=_storable(reply.text),
        finish_reason=_storable(reply.finish_reason),
        refusal=_storable(reply.refusal),
        model=_storable(reply.model),
        fault=fault.reason if fault else "",
        detail=_storable(fault.detail) if fault else "",
        cut=bool(fault and fault.cut),
        prompt_tokens=usage.prompt,
        completion_tokens=usage.completion,
        estimated=estimated,
    )


def _storable(text: str) -> str:
    """The text without lone surrogates, which no UTF-8 file can hold; pairs that a stream split are put together."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
