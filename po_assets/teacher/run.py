"""A whole run: open the journal, finish what a crash left, ask, write the ledger, land what was accepted, report.

Accepted answers land as one file in one step; the sensor takes it from there. The file is announced in the journal with
its bytes before it appears and confirmed after: what a crash leaves undone is done by the next run. No row lands twice.
Free of Dagster; `assets` shows what comes out.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from upath import UPath

from po_assets.dataset.cases import read_eval_cases
from po_assets.errors import UserError
from po_assets.product_owner import METRIC_VERSION
from po_assets.product_owner.prompts import TEACHER_PROMPT_VERSION
from po_assets.storage import Layout, is_local, replace_file
from po_assets.teacher.batch import Batch, Stop, StopReason
from po_assets.teacher.client import TeacherClient
from po_assets.teacher.hosted import HostedBatches, finish_rounds
from po_assets.teacher.journal import Journal, open_journal
from po_assets.teacher.outcomes import Scored, ledger_rows, next_kind, totals
from po_assets.teacher.payloads import Payload, choose, generate_payloads, read_payloads
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
    """Answered as often as they may be, and no answer was good enough."""
    open: int
    """Left to ask: no answer came, or the budget or something else stopped the batch before."""
    left_out: list[dict[str, object]]
    """Payloads not asked about: repetitions and evaluation cases."""
    requests: int
    answers: int
    tokens: int
    cost: float
    estimated_cost: float
    """The part of the cost that no bill says, counted as the most it can be."""
    seconds: float
    """Of this run alone, as are the next three."""
    rows_per_minute: float
    landed_file: str
    landed_rows: int
    max_rows: int | None
    max_tokens: int | None
    max_cost: float | None
    min_acceptance: float

    @property
    def acceptance(self) -> float:
        """Share of the answers that were accepted; 0 without answers."""
        return self.accepted / self.answers if self.answers else 0.0


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
    working, (payloads, left_out) = working_folder(plan, layout), _payloads(plan, layout)
    for one in left_out[:_SHOWN_LEFT_OUT]:
        progress.say(f"{one['payload']} is left out: {one['reason']}")
    with open_journal(working / llm.folder_name(TEACHER_PROMPT_VERSION)) as journal:
        asyncio.run(finish_rounds(llm, journal, progress, cancel=plan.cancel))
        for name in _publish(journal, layout):
            progress.say(f"{name}, announced by an earlier run, is landed now")
        if client is None:
            client = HostedBatches(llm, journal, progress) if llm.delivery == "batch" else TeacherClient(llm)
        batch = Batch(llm, plan, payloads, journal, client, progress)
        try:
            stop = asyncio.run(batch.run())
            landed = _land(batch, layout) if stop.reason != StopReason.OUTAGE else ("", 0)
        except BaseException:
            # Terminated, or the disk is full: whatever was paid stands in the ledger all the same, if it can.
            with contextlib.suppress(OSError, UserError):
                _account(batch, layout, Stop(StopReason.OUTAGE, "the run did not come to its end"), left_out)
            raise
        report = _account(batch, layout, stop, left_out, landed)
    if stop.reason == StopReason.OUTAGE:
        way_out = f", or set max_rows to {report.accepted} to land what there is" if report.accepted else ""
        raise UserError(
            f"The batch ended before its time: {stop.detail}. {report.accepted:,} of {report.payloads:,} payloads "
            f"have an accepted answer, kept in {report.journal}; nothing has landed. Materialize teacher_batch "
            f"again to go on from there{way_out}."
        )
    return report


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


def _land(batch: Batch, layout: Layout) -> tuple[str, int]:
    """Land the accepted answers of the journal that have not landed, as one file: its name and rows."""
    histories = batch.all_histories()
    landed = {scored.attempt.key for history in histories.values() for scored in history if scored.attempt.landed_in}
    # One row a payload: this batch's in its order, then what earlier batches left behind.
    accepted = [scored for history in histories.values() for scored in history if scored.accepted]
    fresh = [scored for scored in accepted if scored.attempt.key not in landed]
    if not fresh:
        return "", 0
    content = b"".join(orjson.dumps(landing_row(scored, batch.llm)) + b"\n" for scored in fresh)
    name = f"teacher_batch-{batch.llm.slug}-{hashlib.sha256(content).hexdigest()[:12]}.jsonl"
    batch.journal.announce(name, content, [scored.attempt.id for scored in fresh])
    _publish(batch.journal, layout)
    return name, len(fresh)


def _publish(journal: Journal, layout: Layout) -> list[str]:
    """Write the announced files that are not known to be in their place."""
    unpublished = journal.unpublished()
    for name, content in unpublished.items():
        target = layout.incoming / name
        if not (target.exists() and target.read_bytes() == content):
            replace_file(target, content)
        journal.published(name)
    return list(unpublished)


def _account(
    batch: Batch, layout: Layout, stop: Stop, left_out: list[dict[str, object]], landed: tuple[str, int] = ("", 0)
) -> BatchReport:
    """Write the ledger, sum it up, write the report."""
    llm, plan, keys, histories = batch.llm, batch.plan, set(batch.histories), batch.all_histories()
    rows = list(ledger_rows(histories.values(), keys, llm))
    ledger = batch.journal.path.parent / LEDGER_NAME
    write_ledger(ledger, rows)
    accepted = sum(scored.accepted for key in keys for scored in histories[key])
    settled = sum(next_kind(histories[key], plan.tries, llm.max_output_tokens) is None for key in keys)
    report = BatchReport(
        model=llm.model,
        provider=llm.host,
        journal=str(batch.journal.path),
        ledger=str(ledger),
        stop_reason=stop.reason.value,
        stop_detail=stop.detail,
        payloads=len(keys),
        accepted=accepted,
        given_up=settled - accepted,
        open=len(keys) - settled,
        answers=sum(scored.answered for key in keys for scored in histories[key]),
        **totals([row for row in rows if row["in_batch"]]),
        **plan.model_dump(include={"max_rows", "max_tokens", "max_cost", "min_acceptance"}),
        left_out=left_out,
        seconds=round(batch.seconds, 3),
        rows_per_minute=batch.rows_per_minute,
        landed_file=landed[0],
        landed_rows=landed[1],
    )
    replace_file(report_path(layout), orjson.dumps(asdict(report), option=orjson.OPT_INDENT_2))
    return report


def write_ledger(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace the ledger in one step."""
    replace_file(path, b"".join(orjson.dumps(row) + b"\n" for row in rows))


def _payloads(plan: BatchPlan, layout: Layout) -> tuple[list[Payload], list[dict[str, object]]]:
    """What to ask about, and what is left out because it would be held out of training later."""
    wanted = read_payloads(UPath(plan.payloads)) if plan.payloads else generate_payloads(plan.generate, plan.seed)
    try:
        cases = read_eval_cases(layout.eval_cases)
    except UserError as error:
        raise UserError(f"Nothing was asked, because evaluation cases must not be taught. {error}") from error
    return choose(wanted, cases)
