"""Asking through a provider's batch endpoint (OpenAI's files and batches): half the price, an answer within 24 hours.

To `batch` it is a client whose `ask` takes long: what is asked at about the same time is one round, one file at the
provider, one batch there. A round stands in the journal before it is handed over, and its batch bears the round's name:
whenever the process is killed, the next run finds the batch and collects it, and nothing is handed over twice.
"""

import asyncio
import contextlib
import datetime as dt
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import orjson

from po_assets.errors import UserError
from po_assets.teacher.batch import LONGEST_WAIT_SECONDS
from po_assets.teacher.client import AnswerError, Fault, Received, Reply, TeacherClient, answered
from po_assets.teacher.journal import Attempt, Journal
from po_assets.teacher.settings import TeacherLLM
from po_assets.text import Progress, amount

ENDPOINT: Final = "/v1/chat/completions"
WINDOW: Final = "24h"
ROUND = "po_assets_round"
"""The key in a batch's metadata that names its round."""
MOST_REQUESTS, MOST_BYTES = 50_000, 190_000_000
"""Of one file: OpenAI's limits, the second one (200 MB) with some air."""
_GATHER_SECONDS = 5.0
"""So long nothing more is asked: then a round is complete."""
_LISTED = 1_000
"""Newest batches of the account among which a round's is looked for."""
_ENDED = {"completed", "failed", "expired", "cancelled"}
_WITHOUT_ANSWER = {
    "expired": Fault("expired", f"the provider did not answer within {WINDOW}", again=True, free=True),
    "cancelled": Fault("cancelled", "the batch was cancelled before its turn came", free=True),
}
"""By a batch's status, and by the code of a request's error, which may begin with `batch_`."""


class HostedBatches(TeacherClient):
    """A teacher that is asked by the batch. To be used, and closed, within one event loop."""

    def __init__(self, llm: TeacherLLM, journal: Journal, progress: Progress) -> None:
        super().__init__(llm)
        self._journal, self._progress = journal, progress
        self._waiting: dict[str, tuple[bytes, asyncio.Future[Reply]]] = {}
        self._bytes = 0
        """Of what is waiting."""
        self._timer: asyncio.TimerHandle | None = None
        self._rounds: set[asyncio.Task[None]] = set()

    async def ask(self, messages: list[dict[str, str]], name: str = "") -> Reply:
        """Ask in the next batch, under this name.

        Raises:
            UserError: the provider could not be reached for long; the round stays in the journal.
        """
        loop = asyncio.get_running_loop()
        body = {"model": self._llm.model, "messages": messages, **self._options(), **self._llm.extra_body}
        line = {"custom_id": name, "method": "POST", "url": ENDPOINT, "body": body}
        answer: asyncio.Future[Reply] = loop.create_future()
        content = orjson.dumps(line) + b"\n"
        self._waiting[name] = content, answer
        self._bytes += len(content)
        if self._timer:
            self._timer.cancel()
        if len(self._waiting) >= MOST_REQUESTS or self._bytes > MOST_BYTES:
            self._hand_over()  # at once: all that ask in this turn of the loop would still be added
        else:
            self._timer = loop.call_later(min(_GATHER_SECONDS, 10 * self._llm.batch_poll_seconds), self._hand_over)
        return await answer

    def _hand_over(self) -> None:
        waiting, self._waiting, self._bytes = self._waiting, {}, 0
        task = asyncio.get_running_loop().create_task(self._round(waiting))
        self._rounds.add(task)  # the loop itself keeps no task alive
        task.add_done_callback(self._rounds.discard)

    async def _round(self, waiting: dict[str, tuple[bytes, "asyncio.Future[Reply]"]]) -> None:
        name, content = uuid.uuid4().hex, b"".join(line for line, _ in waiting.values())
        try:
            await self._journal.keep_round(name, content)
            replies = await self.answers(name, content, set(waiting))
        except Exception as error:  # noqa: BLE001 - it belongs to those who asked
            for _, answer in waiting.values():
                if not answer.done():
                    answer.set_exception(error)
            return
        for one, (_, answer) in waiting.items():
            if not answer.done():
                answer.set_result(replies[one])

    async def answers(
        self, name: str, content: bytes, wanted: set[str], batch: str | None = None, *, known: bool = False
    ) -> dict[str, Reply]:
        """What became of a round's wanted requests, handed over first if it has no `batch` yet.

        `known`: an earlier run may have handed it over. Raises `UserError` as `ask` does.
        """
        if batch is None:
            taken = await self._submit(name, content, known=known)
            if isinstance(taken, Fault):
                return dict.fromkeys(wanted, Reply(fault=taken))
            batch = taken
            await self._journal.keep_round(name, content, batch)
            self._progress.say(f"{amount(len(wanted), 'request')} handed to {self._llm.host} as batch {batch}")
        return await self._collect(batch, wanted)

    async def cancel(self, name: str, batch: str | None) -> bool:
        """Have a round's batch ended; False where it has none. What is answered by then can be collected."""
        import openai

        async def end() -> bool:
            if not (found := batch or await self._find(name)):
                return False
            with contextlib.suppress(openai.BadRequestError, openai.ConflictError):  # it has ended by itself
                await self._client.batches.cancel(found)
            return True

        return bool(await self._call(end))

    async def _submit(self, name: str, content: bytes, *, known: bool) -> str | Fault:
        """The provider's name for the batch, or why it takes no such batch, now or later."""
        import openai

        tried = known

        async def submit() -> str | Fault:
            nonlocal tried
            if tried and (found := await self._find(name)):
                return found
            try:
                file = await self._client.files.create(file=(f"{name}.jsonl", content), purpose="batch")
                tried = True  # from here on an error does not say that there is no batch
                made = await self._client.batches.create(
                    input_file_id=file.id, endpoint=ENDPOINT, completion_window=WINDOW, metadata={ROUND: name}
                )
            except openai.APIStatusError as error:
                if (fault := self.fault_of(error)).again:
                    raise
                return fault
            return str(made.id)

        taken: str | Fault = await self._call(submit)
        return taken

    async def _find(self, name: str) -> str | None:
        count = 0
        async for batch in self._client.batches.list(limit=100):
            if (batch.metadata or {}).get(ROUND) == name:
                return str(batch.id)
            if (count := count + 1) >= _LISTED:
                break
        return None

    async def _collect(self, batch: str, wanted: set[str]) -> dict[str, Reply]:
        """Wait until the batch has ended; every wanted request gets a reply."""

        async def look() -> Any:
            return await self._call(lambda: self._client.batches.retrieve(batch), known=False)

        found = await look()
        while found is not None and found.status not in _ENDED:
            if self._progress.due():
                counts = found.request_counts
                done = f", {counts.completed + counts.failed:,} of {counts.total:,} done" if counts else ""
                self._progress.say(f"batch {batch}: {found.status}{done}")
            await asyncio.sleep(self._llm.batch_poll_seconds)
            found = await look()
        if found is None:
            fault = Fault("lost by the provider", f"batch {batch} is unknown there", again=True)
            return dict.fromkeys(wanted, Reply(fault=fault))
        replies: dict[str, Reply] = {}
        for file in filter(None, (found.output_file_id, found.error_file_id)):
            read = partial(self._client.files.content, file)
            content = await self._call(read, known=False)
            for line in content.content.splitlines() if content else ():
                self._read(line, replies)
        fault = _WITHOUT_ANSWER.get(found.status) or Fault(
            "lost by the provider", f"batch {batch} ended without a line for it", again=True
        )
        if found.status == "failed":
            said = "; ".join(str(error.message) for error in (found.errors and found.errors.data) or [])
            fault = self._fault("batch refused", said or "without a reason", stops=True, free=True)
        return {name: replies.get(name) or Reply(fault=fault) for name in wanted}

    def _read(self, line: bytes, replies: dict[str, Reply]) -> None:
        """Take a line of an output or error file in; what is no such line is passed over."""
        try:
            record = orjson.loads(line)
            name, response, error = record["custom_id"], record.get("response") or {}, record.get("error") or {}
            replies.setdefault(name, self._reply(response.get("status_code"), response.get("body"), error))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return

    def _reply(self, status: Any, body: Any, error: dict[str, Any]) -> Reply:
        if known := _WITHOUT_ANSWER.get(str(error.get("code")).removeprefix("batch_")):
            return Reply(fault=known)
        if isinstance(status, int) and status != 200:
            said = body.get("error") if isinstance(body, dict) else None
            said = said if isinstance(said, dict) else {"message": body}
            return Reply(fault=self._refused_by_status(status, said.get("code"), said.get("message")))
        received = Received()
        try:
            received.take(body or {"error": error})
        except AnswerError as failed:
            return Reply(fault=self.fault_of(failed))
        return received.reply(self._redacted)

    async def _call(self, send: Callable[[], Awaitable[Any]], *, known: bool = True) -> Any:
        """Send, again where that may help; raises `UserError` where it does not.

        Without `known`, None where the provider knows of no such thing (any more).
        """
        import openai

        for again in range(self._llm.retries + 1):
            try:
                return await send()
            except Exception as error:  # noqa: BLE001 - as with live requests
                if not known and isinstance(error, openai.NotFoundError):
                    return None
                fault = self.fault_of(error)
            if not fault.again:
                break
            await asyncio.sleep(fault.wait or min(self._llm.retry_wait_seconds * 2**again, LONGEST_WAIT_SECONDS))
        raise UserError(
            f"The batch endpoint of {self._llm.host} cannot be asked ({fault.reason}: {fault.detail}). What it was "
            "handed is not lost: mend that and materialize teacher_batch again, which goes on from there."
        )


async def finish_rounds(llm: TeacherLLM, journal: Journal, progress: Progress, *, cancel: bool = False) -> None:
    """Collect what an earlier run left with the provider, or was about to hand over; with `cancel` end it first.

    Raises:
        UserError: the provider could not be reached for long, or refuses to show what it has.
    """
    open_ones = {attempt.id: attempt for attempt in journal.attempts() if attempt.hosted and not attempt.answered_at}
    if not open_ones:
        return
    client = HostedBatches(llm, journal, progress)
    try:
        for name, content, batch in journal.rounds():
            wanted = {orjson.loads(line)["custom_id"] for line in content.splitlines()} & set(open_ones)
            if not wanted:
                continue
            progress.say(f"{amount(len(wanted), 'request')} of an earlier run: batch {batch or 'not known yet'}")
            if cancel and not await client.cancel(name, batch):
                continue
            for one, reply in (await client.answers(name, content, wanted, batch, known=True)).items():
                await _keep(journal, open_ones.pop(one), reply)
        unsent = Reply(fault=Fault("never sent", "the process ended before it was handed over", free=True))
        for attempt in open_ones.values():
            await _keep(journal, attempt, unsent)
    finally:
        await client.close()


async def _keep(journal: Journal, attempt: Attempt, reply: Reply) -> None:
    seconds = (dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(attempt.sent_at)).total_seconds()
    await journal.keep(answered(attempt, reply, seconds))
