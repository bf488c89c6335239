"""A whole run: open the journal, finish what a crash left, ask, write the ledger, land what was accepted, report.

Accepted answers land as one file in one step; the sensor takes it from there. The file is announced in the journal with
its bytes before it appears and confirmed after: what a crash leaves undone is done by the next run. No row lands twice.
Free of Dagster; `assets` shows what comes out.
"""

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
from upath import UPath

from po_assets.dataset.cases import read_eval_cases
from po_assets.errors import UserError
from po_assets.product_owner import METRIC_VERSION
from po_assets.product_owner.prompts import TEACHER_PROMPT_VERSION
from po_assets.storage import Layout, atomic_file, is_local, replace_file
from po_assets.teacher.batch import Batch, BatchState, Stop, StopReason
from po_assets.teacher.client import TeacherClient
from po_assets.teacher.hosted import HostedBatches, finish_rounds
from po_assets.teacher.journal import Journal, open_journal
from po_assets.teacher.outcomes import PayloadState, Scored, Totals, ledger_rows, score_attempt, settle, state_of
from po_assets.teacher.payloads import Payloads, choose, generate_payloads, read_payloads
from po_assets.teacher.settings import BatchPlan, TeacherLLM, check_ready
from po_assets.text import Progress

LEDGER_NAME = "ledger.jsonl"
SOURCE = "teacher_llm"
_SHOWN_LEFT_OUT = 20


@dataclass(frozen=True)
class BatchReport:
    """What a batch amounted to, earlier runs of it included unless said otherwise; money in the prices' currency."""

    model: str
    provider: str
    journal: str
    ledger: str
    stop_reason: str
    stop_detail: str
    payloads: int
    accepted: int
    given_up: int
    failed: int
    open: int
    left_out: list[dict[str, Any]]
    """Payloads not asked about: repetitions and evaluation cases."""
    requests: int
    answers: int
    tokens: int
    cost: float
    estimated_cost: float
    """The part of the cost that no bill says, counted as the most it can be."""
    new_rows: int
    """Accepted in this run, as are the next four."""
    new_requests: int
    seconds: float
    landed_file: str
    landed_rows: int
    max_rows: int | None
    max_tokens: int | None
    max_cost: float | None
    min_acceptance: float
    late_files: list[str] = field(default_factory=list)
    """Files that an earlier run announced and this one published."""

    @property
    def acceptance(self) -> float:
        """Share of the answers that were accepted; 0 without answers."""
        return self.accepted / self.answers if self.answers else 0.0

    @property
    def rows_per_minute(self) -> float:
        """Rows that this run got accepted, per minute."""
        return self.new_rows / self.seconds * 60 if self.seconds else 0.0


def report_path(layout: Layout) -> UPath:
    """Where the last run's report stands."""
    return layout.root / "teacher_llm" / "po_teacher_batch_report.json"


def read_report(layout: Layout) -> BatchReport | None:
    """The last run's report, or None where there is none or it cannot be read."""
    try:
        return BatchReport(**orjson.loads(report_path(layout).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def run_batch(
    llm: TeacherLLM, plan: BatchPlan, layout: Layout, progress: Progress, client: TeacherClient | None = None
) -> BatchReport:
    """Ask about the plan's payloads and land what is accepted.

    Raises:
        UserError: settings or payloads cannot be used, another run uses the journal, or it cannot be written; or the
            teacher could not be asked to the end: what was answered is kept then, and nothing has landed.
    """
    check_ready(llm, plan)
    working, payloads = working_folder(plan, layout), _payloads(plan, layout)
    for left_out in payloads.left_out[:_SHOWN_LEFT_OUT]:
        progress.say(f"{left_out['payload']} is left out: {left_out['reason']}")
    with open_journal(working / llm.folder_name(TEACHER_PROMPT_VERSION)) as journal:
        asyncio.run(finish_rounds(llm, journal, progress, cancel=plan.cancel))
        if client is None:
            client = HostedBatches(llm, journal, progress) if llm.delivery == "batch" else TeacherClient(llm)
        return _Run(llm, plan, layout, progress, journal, payloads, client).run()


def working_folder(plan: BatchPlan, layout: Layout) -> Path:
    """The local folder of the journals.

    Raises:
        UserError: the artifacts are in an object store, which cannot hold a journal, and no folder is given.
    """
    if plan.working_folder:
        return Path(plan.working_folder).expanduser()
    if is_local(layout.root):
        return Path(str(layout.root)) / "teacher_llm"
    raise UserError(
        f"The artifacts are in {str(layout.root)!r}, where nothing can be appended to a file: set working_folder of "
        "the resource `batch_plan` to a local folder that outlives the run, for the journal with the paid answers."
    )


def landing_row(scored: Scored, llm: TeacherLLM) -> dict[str, Any]:
    """An accepted answer in the format `teacher`, with where it comes from."""
    attempt, answer = scored.attempt, scored.answer
    if answer is None:
        raise ValueError(f"attempt {attempt.id} has no answer that could land")
    named = {"concept_id": attempt.concept_id, "tier": attempt.tier}
    return {
        **{name: value for name, value in named.items() if value is not None},
        "concept": attempt.concept,
        "requirements_yaml": attempt.requirements_yaml,
        "teacher_product_vision": answer.vision_yaml,
        "teacher_product_owner_review": answer.review_yaml,
        "score": scored.score,
        "metadata": {
            "source": SOURCE,
            "model": llm.model,
            "served_as": attempt.model[:200],  # as the server says, which may be anything
            "provider": llm.host,
            "answered_at": attempt.answered_at,
            "input_digest": attempt.key,
            "answer_digest": hashlib.sha256(attempt.text.encode("utf-8", "replace")).hexdigest(),
            "request": attempt.id,
            "prompt_tokens": attempt.prompt_tokens,
            "completion_tokens": attempt.completion_tokens,
            "prompt_version": TEACHER_PROMPT_VERSION,
            "metric_version": METRIC_VERSION,
        },
    }


@dataclass
class _Run:
    """The parts of one run while its journal is open."""

    llm: TeacherLLM
    plan: BatchPlan
    layout: Layout
    progress: Progress
    journal: Journal
    payloads: Payloads
    client: TeacherClient

    def run(self) -> BatchReport:
        late = self._publish()
        for name in late:
            self.progress.say(f"{name}, announced by an earlier run, is landed now")
        batch = Batch(self.llm, self.plan, self.payloads.wanted, self.journal, self.client, self.progress)
        before, began = batch.state, self.progress.clock()

        def account(stop: Stop, landed: tuple[str, int] = ("", 0)) -> BatchReport:
            return self._account(batch, before, stop, landed, late, self.progress.clock() - began)

        try:
            stop = asyncio.run(self._ask(batch))
            landed = self._land(batch) if stop.reason != StopReason.OUTAGE else ("", 0)
        except BaseException:
            # Terminated, or the disk is full: whatever was paid stands in the ledger all the same, if it can.
            with contextlib.suppress(OSError, UserError):
                account(Stop(StopReason.OUTAGE, "the run did not come to its end"))
            raise
        report = account(stop, landed)
        if stop.reason == StopReason.OUTAGE:
            way_out = f", or set max_rows to {report.accepted} to land what there is" if report.accepted else ""
            raise UserError(
                f"The batch ended before its time: {stop.detail}. {report.accepted:,} of {report.payloads:,} payloads "
                f"have an accepted answer, kept in {report.journal}; nothing has landed. Materialize teacher_batch "
                f"again to go on from there{way_out}."
            )
        return report

    async def _ask(self, batch: Batch) -> Stop:
        try:
            if self.plan.cancel:
                return Stop(StopReason.CANCELLED, "nothing was asked, since `cancel` is set")
            return await batch.run()
        finally:
            await self.client.close()

    def _land(self, batch: Batch) -> tuple[str, int]:
        """Land the accepted answers of the journal that have not landed, as one file: its name and rows."""
        attempts = self._histories(batch)
        landed = {scored.attempt.key for history in attempts.values() for scored in history if scored.attempt.landed_in}
        # One row a payload: this batch's in its order, then what earlier batches left behind.
        fresh = {
            key: next(scored for scored in history if scored.accepted)
            for key, history in attempts.items()
            if key not in landed and any(scored.accepted for scored in history)
        }
        if not fresh:
            return "", 0
        content = b"".join(orjson.dumps(landing_row(scored, self.llm)) + b"\n" for scored in fresh.values())
        name = f"teacher_batch-{self.llm.slug}-{hashlib.sha256(content).hexdigest()[:12]}.jsonl"
        self.journal.announce(name, content, [scored.attempt.id for scored in fresh.values()])
        self._publish()
        return name, len(fresh)

    def _publish(self) -> list[str]:
        """Write the announced files that are not known to be in their place."""
        unpublished = self.journal.unpublished()
        for name, content in unpublished.items():
            target = self.layout.incoming / name
            if not (target.exists() and target.read_bytes() == content):
                replace_file(target, content)
            self.journal.published(name)
        return list(unpublished)

    def _histories(self, batch: Batch) -> dict[str, list[Scored]]:
        """All attempts in the journal by payload, those of this batch first and in its order."""
        known = {scored.attempt.id: scored for history in batch.histories.values() for scored in history}
        histories: dict[str, list[Scored]] = {key: [] for key in batch.histories}
        for attempt in self.journal.attempts():
            # A request that was under way when the run was ended has no outcome in the batch, but it was sent.
            scored = known.get(attempt.id) or score_attempt(attempt, self.plan.min_score)
            histories.setdefault(attempt.key, []).append(replace(scored, attempt=attempt))
        return {key: settle(history) for key, history in histories.items()}

    def _account(  # noqa: PLR0917
        self,
        batch: Batch,
        before: BatchState,
        stop: Stop,
        landed: tuple[str, int],
        late: list[str],
        seconds: float,
    ) -> BatchReport:
        """Write the ledger, sum it up, write the report."""
        llm, plan, keys, histories = self.llm, self.plan, set(batch.histories), self._histories(batch)
        rows = list(ledger_rows(histories.values(), keys, llm))
        ledger = self.journal.path.parent / LEDGER_NAME
        write_ledger(ledger, rows)
        totals = Totals.over(rows)
        states = Counter(state_of(histories[key], plan.tries, llm.max_output_tokens) for key in keys)
        report = BatchReport(
            model=llm.model,
            provider=llm.host,
            journal=str(self.journal.path),
            ledger=str(ledger),
            stop_reason=stop.reason.value,
            stop_detail=stop.detail,
            payloads=len(keys),
            **{state.value: states[state] for state in PayloadState},
            left_out=self.payloads.left_out,
            requests=totals.requests,
            answers=sum(scored.answered for key in keys for scored in histories[key]),
            tokens=totals.tokens,
            cost=totals.cost,
            estimated_cost=totals.estimated_cost,
            new_rows=states[PayloadState.ACCEPTED] - before.spent.rows,
            new_requests=totals.requests - before.requests,
            seconds=round(seconds, 3),
            landed_file=landed[0],
            landed_rows=landed[1],
            late_files=late,
            **plan.model_dump(include={"max_rows", "max_tokens", "max_cost", "min_acceptance"}),
        )
        replace_file(report_path(self.layout), orjson.dumps(asdict(report), option=orjson.OPT_INDENT_2))
        return report


def write_ledger(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace the ledger in one step."""
    with atomic_file(path) as file:
        for row in rows:
            file.write(orjson.dumps(row) + b"\n")


def _payloads(plan: BatchPlan, layout: Layout) -> Payloads:
    """What to ask about, without what is held out of training later."""
    wanted = read_payloads(UPath(plan.payloads)) if plan.payloads else generate_payloads(plan.generate, plan.seed)
    try:
        cases = read_eval_cases(layout.eval_cases)
    except UserError as error:
        raise UserError(f"Nothing was asked, because evaluation cases must not be taught. {error}") from error
    return choose(wanted, cases)
