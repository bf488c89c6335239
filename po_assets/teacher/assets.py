"""The asset `teacher_batch` and its checks. Thin: the work is in `run`, what an attempt came to in `outcomes`."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from upath import UPath

from po_assets.dag import (
    Artifacts,
    AssetChecks,
    Verdict,
    asked_for_alone,
    page_list,
    page_table,
    place,
    rounded,
    short,
    user_errors_fail_the_step,
)
from po_assets.intake.ledger import count_lines
from po_assets.product_owner import METRIC_VERSION
from po_assets.product_owner.prompts import TEACHER_PROMPT_VERSION
from po_assets.storage import Layout, digest_of, read_rows
from po_assets.teacher.batch import StopReason
from po_assets.teacher.journal import Attempt, Journal
from po_assets.teacher.outcomes import AttemptOutcome, outcome_table, totals
from po_assets.teacher.run import BatchReport, read_report, run_batch
from po_assets.teacher.settings import BatchPlan, TeacherLLM
from po_assets.text import Progress, amount, verb

_TOLERANCE = 1e-9
"""Of sums of money: the same figures added in another order."""


@dg.asset(
    group_name="teacher_llm",
    owners=["team:po-distillation"],
    kinds={"python", "openai", "jsonl"},
    code_version=f"2+prompt.{TEACHER_PROMPT_VERSION}+metric.{METRIC_VERSION}",
    output_required=False,
    description="New teacher rows: asks a teacher LLM about concepts with requirements, keeps every answer at once, "
    "validates and scores it, and lands what is accepted as one file in `incoming/`, where the sensor takes over.\n\n"
    "Stops cleanly at its budget, goes on where it was interrupted, and never pays for an answer twice. The **ledger "
    "of attempts** says what became of every request.",
)
def teacher_batch(
    context: dg.AssetExecutionContext, artifacts: Artifacts, teacher_llm: TeacherLLM, batch_plan: BatchPlan
) -> Iterator[dg.MaterializeResult[Any]]:
    """Ask, keep, score, land; nothing when other assets were selected too, as by "Materialize all": it costs money."""
    said = "No teacher was asked, since other assets were selected too. It costs money"
    if not asked_for_alone(context, said, "ask_teacher"):
        return
    with user_errors_fail_the_step():
        report = run_batch(teacher_llm, batch_plan, artifacts.layout, Progress(context.log.info, every_seconds=15.0))
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(digest_of([report.journal, report.landed_file, report.accepted, report.requests])),
        metadata=_metadata(report),
    )


def _metadata(report: BatchReport) -> dict[str, Any]:
    shown = ("payloads", "given_up", "requests", "tokens", "cost", "seconds", "rows_per_minute", "landed_rows")
    table = outcome_table([row for row in read_rows(UPath(report.ledger)) if row["in_batch"]])
    metadata: dict[str, Any] = {
        "model": f"{report.model} at {report.provider}",
        "ended": report.stop_detail,
        "dagster/row_count": report.accepted,
        "left_to_ask": report.open,
        "acceptance_rate": report.acceptance,
        "cost_without_a_bill": report.estimated_cost,
        "outcomes": page_list(
            f"**{row['outcome']}**, {row['reason']}: {amount(int(str(row['requests'])), 'request')} ({row['share']})"
            for row in table
        ),
        "examples": page_table(table),
        "landed_file": short(report.landed_file) or "none: there is no new accepted row",
        "ledger": place(report.ledger),
        "journal": place(report.journal),
        **{name: getattr(report, name) for name in shown},
    }
    if report.left_out:
        metadata["left_out"] = page_table(report.left_out)
    return rounded(metadata)


@dataclass(frozen=True)
class Evidence:
    """The last run's report, and what ledger, journal and landing folder hold."""

    report: BatchReport
    rows: list[dict[str, Any]]
    """The ledger's."""
    attempts: list[Attempt]
    incoming: UPath

    @property
    def batch(self) -> list[dict[str, Any]]:
        """The rows of the last batch; others of the same teacher stand in its ledger as well."""
        return [row for row in self.rows if row["in_batch"]]


checks = AssetChecks[Evidence]("teacher_batch")


def gather(layout: Layout) -> Evidence | Verdict:
    """What the checks look at, or the verdict of all of them where it is missing."""
    report = read_report(layout)
    if report is None:
        return Verdict(False, "No batch has been run yet.", next_step="Materialize teacher_batch.")
    for name in (report.ledger, report.journal):
        if not Path(name).exists():
            return Verdict(False, f"{name} is missing.", next_step="Materialize teacher_batch again.")
    with closing(Journal(Path(report.journal))) as journal:
        return Evidence(report, list(read_rows(UPath(report.ledger))), journal.attempts(), layout.incoming)


@checks.register(blocking=True)
def ledger_balances(found: Evidence) -> Verdict:
    """Every request of the journal has one outcome in the ledger; tokens, money, payloads and landed rows add up."""
    report, counts = found.report, Counter(row["outcome"] for row in found.batch)
    faults = [*_request_faults(found), *_sum_faults(report, found.batch)]
    numbers = {"requests": report.requests, "ledger_rows": len(found.rows), "disagreements": len(faults)}
    parts = " + ".join(f"{counts[name]:,} {name}" for name in AttemptOutcome if counts[name]) or "nothing"
    balanced = (
        f"{amount(report.requests, 'request')} = {parts}; {amount(report.payloads, 'payload')} = {report.accepted:,} "
        f"accepted + {report.given_up:,} given up + {report.open:,} open."
    )
    return Verdict(
        not faults,
        f"The ledger of attempts does not balance: {amount(len(faults), 'disagreement')} found."
        if faults
        else balanced,
        next_step=f"Materialize teacher_batch again, which writes the ledger anew from {report.journal}, and "
        "change neither by hand. Nothing is paid for twice by that.",
        rows=[{"fault": fault} for fault in faults],
        numbers=numbers | {name.value: counts[name] for name in AttemptOutcome},
    )


@checks.register(severity="WARN")
def acceptance_rate(found: Evidence) -> Verdict:
    """Enough of the answers were accepted (min_acceptance)."""
    report, table = found.report, outcome_table(found.batch)
    numbers = {"acceptance_rate": report.acceptance, "answers": report.answers, "accepted": report.accepted}
    if not report.answers:
        fine = report.payloads == 0 or report.stop_reason == StopReason.BUDGET
        reason = f"{table[0]['reason']} ({table[0]['example']})" if table else report.stop_detail
        next_step = "The check's table has all reasons."
        return Verdict(fine, f"No answer came: {reason}.", next_step=next_step, rows=table, numbers=numbers)
    said = f"{report.accepted:,} of {amount(report.answers, 'answer')} ({report.acceptance:.1%}) were accepted"
    if report.acceptance >= report.min_acceptance:
        return Verdict(True, f"{said}.", numbers=numbers)
    return Verdict(
        False,
        f"{said}, at least {report.min_acceptance:.0%} should be.",
        next_step="The check's table says why the others were not. When blocks are missing or the validator fails, the "
        "model does not keep to the form: set `instructions`, or ask a larger model. When answers are cut, raise "
        "max_output_tokens: only they are asked again.",
        rows=table,
        numbers=numbers,
    )


@checks.register(blocking=True)
def within_budget(found: Evidence) -> Verdict:
    """Rows, tokens and money stayed within the budget; says what is left and how the batch ended."""
    report = found.report
    used = {"rows": report.accepted, "tokens": report.tokens, "cost": report.cost}
    limits = {name: limit for name in used if (limit := getattr(report, f"max_{name}")) is not None}
    left = {f"{name}_left": limit - used[name] for name, limit in limits.items()}
    over = [
        {"limit": f"max_{name}", "is": limit, "used": used[name]}
        for name, limit in limits.items()
        if used[name] > limit + _TOLERANCE
    ]
    said = "; ".join(f"{used[name]:,g} of {limit:,g} {name}" for name, limit in limits.items())
    return Verdict(
        not over,
        f"The budget was exceeded: {', '.join(str(row['limit']) for row in over)}."
        if over
        else f"The batch ended: {report.stop_detail}. Used: {said or 'no limit is set'}; "
        f"{amount(report.open, 'payload')} {verb(report.open, 'is', 'are')} left to ask.",
        next_step="Either the limit is lower than in an earlier run of this batch, or the server charges more "
        "tokens than max_output_tokens allows (some do for thinking): see the ledger's largest rows, and set "
        "token_limit_parameter or extra_body so that it keeps to the limit.",
        rows=over,
        numbers={**used, "estimated_cost": report.estimated_cost, **left},
    )


@checks.step
def teacher_batch_checks(artifacts: Artifacts) -> Evidence | Verdict:
    """Look at the last run's report, ledger, journal and landed files."""
    return gather(artifacts.layout)


def _request_faults(found: Evidence) -> list[str]:
    """Where ledger, journal and landed files do not say the same."""
    rows = found.rows
    kept = Counter((one.id, *one.tokens, one.landed_in) for one in found.attempts)
    listed = Counter((row["request"], row["prompt_tokens"], row["completion_tokens"], row["landed_in"]) for row in rows)
    accepted = Counter(row["payload"] for row in rows if row["outcome"] == AttemptOutcome.ACCEPTED)
    faults = [f"request {name} of the journal is not in the ledger as it is there" for name, *_ in kept - listed]
    faults += [f"request {name} of the ledger is not in the journal as it is there" for name, *_ in listed - kept]
    faults += [f"payload {key} was accepted {count} times" for key, count in accepted.items() if count > 1]
    ends = {row["request"]: row["outcome"] for row in rows if row["outcome"] not in set(AttemptOutcome)}
    faults += [f"request {name} ends as {outcome!r}" for name, outcome in ends.items()]
    for name, count in Counter(one.landed_in for one in found.attempts if one.landed_in).items():
        path = found.incoming / name  # people may move a file away once it is taken in
        if path.exists() and (lines := count_lines(path)) != count:
            faults.append(f"{name}: {lines} lines in incoming/, {count} in the journal")
    return faults


def _sum_faults(report: BatchReport, rows: list[dict[str, Any]]) -> list[str]:
    """Where the report is not the sum of the batch's rows."""
    added, accepted = totals(rows), sum(row["outcome"] == AttemptOutcome.ACCEPTED for row in rows)
    pairs: tuple[tuple[str, float, float], ...] = (
        ("requests of the batch", report.requests, added["requests"]),
        ("accepted payloads", report.accepted, accepted),
        ("tokens", report.tokens, added["tokens"]),
        ("payloads over all states", report.payloads, report.accepted + report.given_up + report.open),
        ("cost", report.cost, added["cost"]),
    )
    return [
        f"{what}: the report says {said:,}, adding up gives {sum_:,}"
        for what, said, sum_ in pairs
        if abs(said - sum_) > _TOLERANCE
    ]
