"""The checks of teacher_batch, in one step. What they look at, and what they say, belongs to `verdicts`."""

from collections.abc import Iterator

import dagster as dg

from po_assets.dag import Artifacts, Verdict, to_check_result
from po_assets.storage import Layout
from po_assets.teacher.assets import teacher_batch
from po_assets.teacher.ledger import read_ledger, totals_of
from po_assets.teacher.report import read_report, report_path
from po_assets.teacher.verdicts import acceptance_rate, ledger_balances, no_report, within_budget

_SPECS = [
    dg.AssetCheckSpec(
        "ledger_balances",
        asset=teacher_batch,
        blocking=True,
        description="Every request has one outcome, and tokens, money, payloads and landed rows add up, by counting "
        "journal, ledger and landed files.",
    ),
    dg.AssetCheckSpec(
        "acceptance_rate",
        asset=teacher_batch,
        description="Enough of the answers were accepted (min_acceptance).",
    ),
    dg.AssetCheckSpec(
        "within_budget",
        asset=teacher_batch,
        blocking=True,
        description="Rows, tokens and money stayed within the budget; says what is left.",
    ),
]


@dg.multi_asset_check(name="teacher_batch_checks", specs=_SPECS, can_subset=True)
def teacher_batch_checks(context: dg.AssetCheckExecutionContext, artifacts: Artifacts) -> Iterator[dg.AssetCheckResult]:
    """Run the selected checks on the last run's report, ledger and journal."""
    wanted = {key.name for key in context.selected_asset_check_keys}
    for name, verdict in batch_verdicts(artifacts.layout).items():
        if name in wanted:
            yield to_check_result(name, "teacher_batch", verdict)


def batch_verdicts(layout: Layout) -> dict[str, Verdict]:
    """The verdict of every check of teacher_batch."""
    report = read_report(report_path(layout))
    if report is None:
        return {spec.name: no_report() for spec in _SPECS}
    balances = ledger_balances(report, layout.incoming)
    try:
        totals = totals_of(read_ledger(report.ledger))
    except FileNotFoundError:
        return {spec.name: balances for spec in _SPECS}
    return {
        "ledger_balances": balances,
        "acceptance_rate": acceptance_rate(report, totals),
        "within_budget": within_budget(report),
    }
