"""The batch itself: payloads asked side by side, retried, reminded, counted; stopped where budget or teacher end.

It knows neither files nor Dagster: the journal keeps what happens, `run` puts a batch together.
"""

import asyncio
import contextlib
import datetime as dt
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from po_assets.teacher.journal import Done, Journal, Sent
from po_assets.teacher.limits import Amount, Budget, RateLimiter
from po_assets.teacher.outcomes import (
    REMINDER,
    Judged,
    Outcome,
    judge,
    next_kind,
)
from po_assets.teacher.payloads import Payload
from po_assets.teacher.progress import BatchProgress, Standing
from po_assets.teacher.prompt import messages_for
from po_assets.teacher.replies import Charge, Fault, Reply, Usage
from po_assets.teacher.settings import BatchSettings

LONGEST_WAIT_SECONDS = 60.0
LONGEST_ASKED_WAIT_SECONDS = 300.0
"""A server that asks to wait longer has a quota of hours or days: the batch ends and goes on when it is run again."""
FAILED_IN_A_ROW = 10
"""So many payloads without an answer, one after the other, are an outage."""
_BYTES_PER_TOKEN = 2
"""At least, in text of any language with the usual tokenizers; English has 4. What is reserved is an upper bound."""
_MESSAGE_TOKENS = 20
"""Around each message, by the chat template."""


class Asks(Protocol):
    """What a batch needs of a client."""

    async def ask(self, messages: list[dict[str, str]]) -> Reply:
        """Send one request; whatever happens to it is in the reply."""

    async def close(self) -> None:
        """Give its connections back."""


class Ended(StrEnum):
    """Why a batch ended."""

    FINISHED = "finished"
    BUDGET = "budget"
    OUTAGE = "outage"


@dataclass(frozen=True)
class Ending:
    """Why a batch ended, and the reason in words."""

    kind: Ended
    reason: str


class _Again(Exception):  # noqa: N818 - no error, a request to stamina
    def __init__(self, judged: Judged, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.judged, self.fault = judged, fault


class _Stopped(Exception):  # noqa: N818
    """The batch ends: nothing more is asked."""


class Batch:
    """One run over payloads; `histories` holds all attempts for each, those of earlier runs first."""

    def __init__(
        self,
        settings: BatchSettings,
        payloads: Sequence[Payload],
        journal: Journal,
        client: Asks,
        progress: BatchProgress,
    ) -> None:
        self._settings, self._payloads, self._journal = settings, payloads, journal
        self._client, self._progress = client, progress
        self.histories: dict[str, list[Judged]] = {
            payload.key: [
                judge(attempt, settings.min_score) for attempt in journal.contents.by_key.get(payload.key, [])
            ]
            for payload in payloads
        }
        spent = sum((self._amount(judged) for history in self.histories.values() for judged in history), Amount())
        self._budget = Budget(settings.limits, spent)
        self._limiter = RateLimiter(settings.pace.requests_per_minute, settings.pace.tokens_per_minute)
        self._requests = sum(map(len, self.histories.values()))
        self._answers = sum(judged.answered for history in self.histories.values() for judged in history)
        self._settled = 0
        self._failed_in_a_row = 0
        self._ending: Ending | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._in_request: set[asyncio.Task[None] | None] = set()

    @property
    def standing(self) -> Standing:
        """Where the batch stands."""
        return Standing(len(self._payloads), self._settled, self._requests, self._answers, self._budget.spent)

    async def run(self) -> Ending:
        """Ask about every payload that is not settled, until all are or something ends the batch.

        Raises:
            UserError: an answer could not be kept; everything stops at once.
        """
        pending = [payload for payload in self._payloads if self._next(payload) is not None]
        self._settled = len(self._payloads) - len(pending)
        self._progress.begin(self.standing, self._settings.limits)
        queue = iter(pending)

        async def work() -> None:
            for payload in queue:
                if self._ending:
                    return
                await self._settle(payload)

        try:
            async with _unlogged_retries(), asyncio.TaskGroup() as group:
                for _ in range(min(self._settings.pace.concurrency, len(pending))):
                    self._workers.append(group.create_task(work()))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        self._progress.report(self.standing, last=True)
        return self._ending or Ending(Ended.FINISHED, "every payload was asked about")

    async def _settle(self, payload: Payload) -> None:
        """Ask about one payload until it is settled, fails, or the batch ends."""
        while self._ending is None and (kind := self._next(payload)) is not None:
            try:
                judged = await self._ask(payload, kind)
            except _Stopped:
                return
            if not judged.answered:
                self._count_failure(judged)
                break
            self._failed_in_a_row = 0
        if self._ending is None:
            self._settled += 1
            self._progress.report(self.standing)

    async def _ask(self, payload: Payload, kind: str) -> Judged:
        """One question, sent again while that may help."""
        import stamina

        pace = self._settings.pace
        retrying = stamina.retry_context(
            on=self._wait_before_again,
            attempts=pace.retries + 1,
            timeout=None,
            wait_initial=pace.retry_wait_seconds,
            wait_max=LONGEST_WAIT_SECONDS,
            wait_jitter=pace.retry_wait_seconds,
        )
        judged: Judged | None = None
        try:
            async for attempt in retrying:
                with attempt:
                    judged, fault = await self._request(payload, kind)
                    if fault and fault.again and self._ending is None:
                        raise _Again(judged, fault)  # noqa: TRY301 - what stamina retries on
        except _Again as given_up:
            return given_up.judged
        if judged is None:
            raise _Stopped
        return judged

    def _wait_before_again(self, error: Exception) -> bool | float:
        """Stamina's question whether to retry: the server's own wait, the usual back-off, or not at all."""
        if not isinstance(error, _Again) or self._ending:
            return False
        wait = error.fault.wait
        if not wait:
            return True
        if wait > LONGEST_ASKED_WAIT_SECONDS:
            self._end(Ended.OUTAGE, f"the teacher asks to wait {wait:,.0f} s ({error.fault.detail})")
            return False
        self._limiter.hold(wait)
        return wait

    async def _request(self, payload: Payload, kind: str) -> tuple[Judged, Fault | None]:
        """One request within budget and rate limits, from its reservation to its outcome."""
        reminder = self._missing(payload) if kind == REMINDER else ""
        messages = messages_for(payload, self._settings.endpoint.instructions, reminder)
        prompt = sum(len(m["content"].encode()) // _BYTES_PER_TOKEN + _MESSAGE_TOKENS for m in messages)
        completion = self._settings.endpoint.max_output_tokens
        most = Amount(1, prompt + completion, self._settings.prices.cost(prompt, completion))
        if used_up := await self._budget.reserve(most):
            self._end(Ended.BUDGET, used_up)
            raise _Stopped
        spent = Amount()
        try:
            counted = await self._limiter.acquire(most.tokens)
            task = asyncio.current_task()
            self._in_request.add(task)  # from here to its outcome it is not cancelled
            try:
                sent = Sent(
                    id=uuid.uuid4().hex,
                    key=payload.key,
                    kind=kind,
                    payload=payload,
                    at=_now(),
                    max_output_tokens=completion,
                    reserved_prompt=prompt,
                    reserved_completion=completion,
                )
                judged, fault = await self._exchange(sent, messages)
            finally:
                self._in_request.discard(task)
            spent = self._amount(judged)
            counted.tokens = spent.tokens
        finally:
            await self._budget.settle(most, spent)
        if fault and fault.stops:
            self._end(Ended.OUTAGE, f"{fault.reason}: {fault.detail}")
        return judged, fault

    async def _exchange(self, sent: Sent, messages: list[dict[str, str]]) -> tuple[Judged, Fault | None]:
        """Note the request, send it, keep what comes, judge it."""
        await self._journal.sent(sent)
        started = time.monotonic()
        reply = await self._client.ask(messages)
        attempt = await self._journal.done(_done(sent, reply, time.monotonic() - started))
        judged = judge(attempt, self._settings.min_score)
        self.histories[sent.key].append(judged)
        self._requests += 1
        self._answers += judged.answered
        return judged, reply.fault

    def _next(self, payload: Payload) -> str | None:
        endpoint = self._settings.endpoint
        return next_kind(self.histories[payload.key], self._settings.tries, endpoint.max_output_tokens)

    def _missing(self, payload: Payload) -> str:
        """What was missing in the payload's last answer."""
        return next(judged.detail for judged in reversed(self.histories[payload.key]) if judged.answered)

    def _amount(self, judged: Judged) -> Amount:
        prompt, completion = judged.attempt.tokens
        rows = int(judged.outcome == Outcome.ACCEPTED)
        return Amount(rows, prompt + completion, self._settings.prices.cost(prompt, completion))

    def _count_failure(self, judged: Judged) -> None:
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= FAILED_IN_A_ROW:
            self._end(
                Ended.OUTAGE,
                f"{FAILED_IN_A_ROW} payloads in a row brought no answer, the last because of: {judged.reason} "
                f"({judged.detail})",
            )

    def _end(self, kind: Ended, reason: str) -> None:
        """Ask nothing more: requests under way come to their end, whoever waits for something stops waiting."""
        if self._ending:
            return
        self._ending = Ending(kind, reason)
        for worker in self._workers:
            if worker not in self._in_request and worker is not asyncio.current_task():
                worker.cancel()


@contextlib.asynccontextmanager
async def _unlogged_retries() -> AsyncIterator[None]:
    """Stamina prints a line for each retry of each request; here every one has its row in the ledger."""
    from stamina.instrumentation import get_on_retry_hooks, set_on_retry_hooks

    hooks = get_on_retry_hooks()
    set_on_retry_hooks([])
    try:
        yield
    finally:
        set_on_retry_hooks(hooks)


def _done(sent: Sent, reply: Reply, seconds: float) -> Done:
    fault = reply.fault
    usage, estimated = reply.usage, False
    if usage is None and fault and fault.charge == Charge.NOTHING:
        usage = Usage(0, 0)
    elif usage is None:
        written = len((reply.text + reply.refusal).encode("utf-8", "replace")) // _BYTES_PER_TOKEN + 1
        completion = sent.reserved_completion if fault else min(written, sent.reserved_completion)
        usage, estimated = Usage(sent.reserved_prompt, completion), True
    return Done(
        id=sent.id,
        at=_now(),
        seconds=round(seconds, 3),
        text=_storable(reply.text),
        finish_reason=reply.finish_reason,
        refusal=_storable(reply.refusal),
        model=_storable(reply.model),
        reason=fault.reason if fault else "",
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
