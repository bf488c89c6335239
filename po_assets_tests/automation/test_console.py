"""What a person who waits for `make run` sees of a run, and how a run's failures are put in words."""

from collections.abc import Iterator

import dagster as dg
import pytest

from po_assets.automation.console import console
from po_assets.automation.outcome import outcome_of


@dg.asset
def rows(context: dg.AssetExecutionContext) -> None:
    context.log.debug("not for people")
    context.log.info("8 rows")


@dg.multi_asset_check(specs=[dg.AssetCheckSpec(name, asset=rows, blocking=name == "bad") for name in ("bad", "odd")])
def checks() -> Iterator[dg.AssetCheckResult]:
    yield dg.AssetCheckResult(check_name="bad", passed=False, description="3 of 8 rows are bad.\n\n**What to do:** x.")
    warn = dg.AssetCheckSeverity.WARN
    yield dg.AssetCheckResult(check_name="odd", passed=False, severity=warn, description="1 row is odd.")


@dg.asset(deps=[rows])
def below() -> None:
    """Never made."""


@dg.asset
def broken() -> None:
    raise dg.Failure("The disk is full.", allow_retries=False)


@pytest.fixture
def result() -> dg.ExecuteInProcessResult:
    defs = dg.Definitions(assets=[rows, below, broken], asset_checks=[checks], loggers={"console": console})
    job = defs.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(run_config={"loggers": {"console": {}}}, raise_on_error=False)


def test_steps_speak_and_a_failed_check_is_told_at_once(
    capfd: pytest.CaptureFixture[str], result: dg.ExecuteInProcessResult
) -> None:
    """One line each; Dagster's own events, debugging and steps that were not executed are left out."""
    lines = [line[10:] for line in capfd.readouterr().out.splitlines() if line[2:3] == ":"]
    assert [" ".join(line.split()) for line in lines] == [
        "rows 8 rows",
        "checks the check bad FAILED: 3 of 8 rows are bad.",
    ]
    assert not result.success


def test_an_outcome_tells_verdicts_from_accidents(result: dg.ExecuteInProcessResult) -> None:
    """A failed check is not told again as a failed step; a sentence is a check's first paragraph."""
    outcome = outcome_of(result.all_events)
    assert [(check.asset, check.name, check.sentence) for check in outcome.errors] == [
        ("rows", "bad", "3 of 8 rows are bad.")
    ]
    assert outcome.errors[0].plain == "3 of 8 rows are bad. What to do: x."
    assert [check.name for check in outcome.warnings] == ["odd"]
    assert [(step.step, step.reason) for step in outcome.steps] == [("broken", "The disk is full.")]
