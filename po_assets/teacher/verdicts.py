"""The rules of teacher_batch: what each looks at, and what it says. Free of Dagster; `checks` runs these."""

from collections import Counter
from pathlib import Path

from upath import UPath

from po_assets.dag import Verdict
from po_assets.intake.ledger import count_lines
from po_assets.teacher.journal import Contents, read_journal
from po_assets.teacher.ledger import Totals, read_ledger, totals_of
from po_assets.teacher.outcomes import Outcome
from po_assets.teacher.report import BatchReport
from po_assets.text import amount, verb

_KNOWN = {outcome.value for outcome in Outcome}
_TOLERANCE = 1e-9
"""Of sums of money: the same figures added in another order."""


def no_report() -> Verdict:
    """There is nothing to check yet."""
    return Verdict(False, "No batch has been run yet.", next_step="Materialize teacher_batch.")


def ledger_balances(report: BatchReport, incoming: UPath) -> Verdict:
    """Every request of the journal has one outcome in the ledger, and tokens, money, payloads and rows add up."""
    try:
        rows = list(read_ledger(report.ledger))
        contents = read_journal(Path(report.journal))
    except FileNotFoundError as error:
        return Verdict(False, f"{error.filename} is missing.", next_step="Materialize teacher_batch again.")
    totals = totals_of(rows)
    faults = [
        *_request_faults(rows, contents),
        *_sum_faults(report, totals),
        *_landing_faults(rows, contents, incoming),
    ]
    numbers = {"requests": report.requests, "ledger_rows": len(rows), "disagreements": len(faults)}
    numbers |= {outcome.value: totals.of(outcome) for outcome in Outcome}
    if faults:
        return Verdict(
            False,
            f"The ledger of attempts does not balance: {amount(len(faults), 'disagreement')} found.",
            next_step=f"Materialize teacher_batch again, which writes the ledger anew from {report.journal}, and "
            "change neither by hand. Nothing is paid for twice by that.",
            rows=[{"fault": fault} for fault in faults],
            numbers=numbers,
        )
    parts = " + ".join(f"{count:,} {name}" for name in Outcome if (count := totals.of(name))) or "nothing"
    return Verdict(
        True,
        f"{amount(report.requests, 'request')} = {parts}; {amount(report.payloads, 'payload')} = {report.accepted:,} "
        f"accepted + {report.given_up:,} given up + {report.failed:,} failed + {report.open:,} open.",
        numbers=numbers,
    )


def acceptance_rate(report: BatchReport, totals: Totals) -> Verdict:
    """Enough of the answers were accepted; a warning, since what was accepted is good."""
    numbers = {"acceptance_rate": report.acceptance, "answers": report.answers, "accepted": report.accepted}
    if not report.answers:
        return Verdict(
            report.payloads == 0 or report.ended == "budget",
            f"No answer came: {report.reason}.",
            next_step="See the reasons in the table.",
            rows=totals.table(),
            numbers=numbers,
            severity="WARN",
        )
    said = f"{report.accepted:,} of {amount(report.answers, 'answer')} ({report.acceptance:.1%}) were accepted"
    if report.acceptance >= report.min_acceptance:
        return Verdict(True, f"{said}.", numbers=numbers, severity="WARN")
    return Verdict(
        False,
        f"{said}, at least {report.min_acceptance:.0%} should be.",
        next_step="The table says why the others were not. When blocks are missing or the validator fails, the model "
        "does not keep to the form: set `instructions`, or ask a larger model. When answers are cut, raise "
        "max_output_tokens: only they are asked again.",
        rows=totals.table(),
        numbers=numbers,
        severity="WARN",
    )


def within_budget(report: BatchReport) -> Verdict:
    """No limit was exceeded; says what is left and how the batch ended."""
    used = (
        ("rows", report.accepted, report.max_rows),
        ("tokens", report.tokens, report.max_tokens),
        ("cost", report.cost, report.max_cost),
    )
    numbers: dict[str, float] = {name: value for name, value, _ in used}
    numbers["estimated_cost"] = report.estimated_cost
    numbers |= {f"{name}_left": limit - value for name, value, limit in used if limit is not None}
    over = [
        {"limit": f"max_{name}", "is": limit, "used": value}
        for name, value, limit in used
        if limit is not None and value > limit + _TOLERANCE
    ]
    if over:
        return Verdict(
            False,
            f"The budget was exceeded: {', '.join(str(row['limit']) for row in over)}.",
            next_step="Either the limit is lower than in an earlier run of this batch, or the server charges more "
            "tokens than max_output_tokens allows (some do for thinking): see the ledger's largest rows, and set "
            "token_limit_parameter or extra_body so that it keeps to the limit.",
            rows=over,
            numbers=numbers,
        )
    limits = "; ".join(f"{value:,g} of {limit:,g} {name}" for name, value, limit in used if limit is not None)
    waiting = report.open + report.failed
    return Verdict(
        True,
        f"The batch ended: {report.reason}. Used: {limits or 'no limit is set'}; {amount(waiting, 'payload')} "
        f"{verb(waiting, 'is', 'are')} left to ask.",
        numbers=numbers,
    )


def _request_faults(rows: list[dict[str, object]], contents: Contents) -> list[str]:
    listed = Counter(str(row["request"]) for row in rows)
    faults = [f"request {name} has {count} rows in the ledger" for name, count in listed.items() if count > 1]
    faults += [f"request {name} of the journal is not in the ledger" for name in contents.attempts.keys() - listed]
    faults += [f"request {name} of the ledger is not in the journal" for name in listed.keys() - contents.attempts]
    faults += [f"request {row['request']} ends as {row['outcome']!r}" for row in rows if row["outcome"] not in _KNOWN]
    for row in rows:
        attempt = contents.attempts.get(str(row["request"]))
        if attempt and (row["prompt_tokens"], row["completion_tokens"]) != attempt.tokens:
            faults.append(f"request {row['request']} has other tokens in the ledger than in the journal")
    accepted = Counter(str(row["payload"]) for row in rows if row["outcome"] == Outcome.ACCEPTED)
    faults += [f"payload {key} was accepted {count} times" for key, count in accepted.items() if count > 1]
    return faults


def _sum_faults(report: BatchReport, totals: Totals) -> list[str]:
    states = report.accepted + report.given_up + report.failed + report.open
    pairs = (
        ("requests of the batch", report.requests, totals.outcomes.total()),
        ("accepted payloads", report.accepted, totals.of(Outcome.ACCEPTED)),
        ("tokens", report.tokens, totals.tokens),
        ("payloads over all states", report.payloads, states),
    )
    faults = [
        f"{what}: the report says {said:,}, counting gives {found:,}" for what, said, found in pairs if said != found
    ]
    if abs(report.cost - totals.cost) > _TOLERANCE:
        faults.append(f"cost: the report says {report.cost:.6f}, adding up gives {totals.cost:.6f}")
    return faults


def _landing_faults(rows: list[dict[str, object]], contents: Contents, incoming: UPath) -> list[str]:
    by_file = Counter(str(row["landed_in"]) for row in rows if row["landed_in"])
    faults = []
    for name, landing in contents.landings.items():
        if by_file[name] != len(landing.ids):
            faults.append(f"{name}: {by_file[name]} rows in the ledger, {len(landing.ids)} in the journal")
        path = incoming / name  # people may move a file away once it is taken in
        if path.exists() and (lines := count_lines(path)) != len(landing.ids):
            faults.append(f"{name}: {lines} lines in incoming/, {len(landing.ids)} in the journal")
    return faults
