"""A whole run: open the journal, finish what a crash left, ask, write the ledger, land what was accepted.

Free of Dagster; `assets` shows what comes out.
"""

import asyncio
import contextlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

from upath import UPath

from po_assets.dataset.cases import read_eval_cases
from po_assets.errors import UserError
from po_assets.storage import Layout
from po_assets.storage.atomic import is_local
from po_assets.teacher.batch import Asks, Batch, Ended, Ending
from po_assets.teacher.client import TeacherClient
from po_assets.teacher.journal import Journal, Landing, open_journal
from po_assets.teacher.landing import finish_landings, land
from po_assets.teacher.ledger import ledger_rows, totals_of, write_ledger
from po_assets.teacher.outcomes import Judged, Outcome, State, judge, state_of
from po_assets.teacher.payloads import Payloads, choose, generate_payloads, read_payloads
from po_assets.teacher.progress import BatchProgress
from po_assets.teacher.prompt import TEACHER_PROMPT_VERSION
from po_assets.teacher.report import BatchReport, report_path, write_report
from po_assets.teacher.settings import BatchPlan, BatchSettings, api_key, folder_name

LEDGER_NAME = "ledger.jsonl"


class OutageError(Exception):
    """The teacher could not be asked to the end; what was answered is kept and nothing has landed."""


def run_batch(
    settings: BatchSettings,
    plan: BatchPlan,
    layout: Layout,
    progress: BatchProgress,
    client: Asks | None = None,
) -> BatchReport:
    """Ask about the plan's payloads and land what is accepted.

    Raises:
        UserError, UserError: nothing was asked.
        UserError: another run uses the journal, or it cannot be written.
        OutageError: the teacher could not be asked to the end.
    """
    working = working_folder(plan, layout)
    payloads = _payloads(plan, layout)
    for left_out in payloads.left_out[:20]:
        progress.say(f"{left_out['payload']} is left out: {left_out['reason']}")
    with open_journal(working / folder_name(settings.endpoint, TEACHER_PROMPT_VERSION)) as journal:
        for fault in journal.contents.faults:
            progress.say(f"journal {journal.path}: {fault}")
        finished = finish_landings(journal, layout.incoming, settings.endpoint)
        for late in finished:
            progress.say(f"{late.file}, announced by an earlier run, is landed now")
        client = client or TeacherClient(settings.endpoint, api_key(settings.endpoint))
        batch = Batch(settings, payloads.wanted, journal, client, progress)
        before = batch.standing

        def account(ending: Ending, landing: Landing | None = None) -> BatchReport:
            report = replace(
                _account(settings, payloads, journal, batch, ending),
                rows_before=before.spent.rows,
                seconds=round(progress.seconds, 3),
                landed_file=landing.file if landing else "",
                landed_rows=len(landing.ids) if landing else 0,
                unfinished_landings=[one.file for one in finished],
            )
            report = replace(report, requests_this_run=report.requests - before.requests)
            write_report(report_path(layout), report)
            return report

        landing: Landing | None = None
        try:
            ending = asyncio.run(_ask(batch, client))
            if ending.kind != Ended.OUTAGE:
                landing = land(journal, layout.incoming, _accepted(journal, settings, batch), settings.endpoint)
        except BaseException:
            # Terminated, or the disk is full: whatever was paid stands in the ledger all the same, if it can.
            with contextlib.suppress(OSError):
                account(Ending(Ended.OUTAGE, "the run did not come to its end"))
            raise
        report = account(ending, landing)
    if ending.kind == Ended.OUTAGE:
        raise OutageError(_outage(ending, report))
    return report


def working_folder(plan: BatchPlan, layout: Layout) -> Path:
    """The local folder of the journals.

    Raises:
        UserError: the artifacts are in an object store, which cannot append, and no folder is given.
    """
    if plan.working_folder:
        return Path(plan.working_folder).expanduser()
    if is_local(layout.root):
        return Path(str(layout.root)) / "teacher_llm"
    raise UserError(
        f"The artifacts are in {str(layout.root)!r}, where nothing can be appended to a file: set working_folder of "
        "the resource `batch_plan` to a local folder that outlives the run, for the journal with the paid answers."
    )


async def _ask(batch: Batch, client: Asks) -> Ending:
    try:
        return await batch.run()
    finally:
        await client.close()


def _payloads(plan: BatchPlan, layout: Layout) -> Payloads:
    """What to ask about, without what is held out of training later."""
    wanted = read_payloads(UPath(plan.payloads)) if plan.payloads else generate_payloads(plan.generate, plan.seed)
    try:
        cases = read_eval_cases(layout.eval_cases)
    except UserError as error:
        raise UserError(f"Nothing was asked, because evaluation cases must not be taught. {error}") from error
    return choose(wanted, cases)


def _histories(journal: Journal, settings: BatchSettings, batch: Batch) -> dict[str, list[Judged]]:
    """All attempts in the journal by payload, those of this batch first and in its order."""
    others = {
        key: [judge(attempt, settings.min_score) for attempt in attempts]
        for key, attempts in journal.contents.by_key.items()
        if key not in batch.histories
    }
    # A request that was under way when the run was ended has no outcome in the batch, but it was sent.
    mine = {
        key: [
            *history,
            *(
                judge(attempt, settings.min_score)
                for attempt in journal.contents.by_key.get(key, [])
                if attempt.sent.id not in {judged.attempt.sent.id for judged in history}
            ),
        ]
        for key, history in batch.histories.items()
    }
    return mine | others


def _accepted(journal: Journal, settings: BatchSettings, batch: Batch) -> list[Judged]:
    """The accepted answers of the journal: this batch's in its order, then what earlier batches left behind."""
    histories = _histories(journal, settings, batch)
    return [judged for history in histories.values() for judged in history if judged.outcome == Outcome.ACCEPTED]


def _account(
    settings: BatchSettings, payloads: Payloads, journal: Journal, batch: Batch, ending: Ending
) -> BatchReport:
    """Write the ledger and sum it up."""
    histories = _histories(journal, settings, batch)
    keys = set(batch.histories)
    rows = list(ledger_rows(histories.values(), keys, settings.prices, journal.contents))
    ledger = journal.path.parent / LEDGER_NAME
    write_ledger(ledger, rows)
    totals = totals_of(rows)
    limit = settings.endpoint.max_output_tokens
    states = Counter(state_of(histories[key], settings.tries, limit) for key in keys)
    return BatchReport(
        model=settings.endpoint.model,
        provider=settings.endpoint.host,
        journal=str(journal.path),
        ledger=str(ledger),
        ended=ending.kind.value,
        reason=ending.reason,
        payloads=len(keys),
        accepted=states[State.ACCEPTED],
        given_up=states[State.GIVEN_UP],
        failed=states[State.FAILED],
        open=states[State.OPEN],
        left_out=payloads.left_out,
        requests=totals.outcomes.total(),
        answers=sum(judged.answered for key in keys for judged in histories[key]),
        tokens=totals.tokens,
        cost=totals.cost,
        estimated_cost=totals.estimated_cost,
        journal_faults=journal.contents.faults,
        max_rows=settings.limits.rows,
        max_tokens=settings.limits.tokens,
        max_cost=settings.limits.cost,
        min_acceptance=settings.min_acceptance,
    )


def _outage(ending: Ending, report: BatchReport) -> str:
    landing = f", or set max_rows to {report.accepted} to land what there is" if report.accepted else ""
    return (
        f"The batch ended before its time: {ending.reason}. {report.accepted:,} of {report.payloads:,} payloads have "
        f"an accepted answer, kept in {report.journal}; nothing has landed. Materialize teacher_batch again to go on "
        f"from there{landing}."
    )
