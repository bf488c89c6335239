"""What a person who waits for `make run` sees of a run, and how a run's failures are put in words."""

from collections.abc import Iterator
from typing import ClassVar

import dagster as dg
import pytest
from pydantic import Field

from po_assets.automation.run_summary import console, run_summary
from po_assets.dag import Settings


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


def test_a_summary_tells_verdicts_from_accidents(result: dg.ExecuteInProcessResult) -> None:
    """A failed check is not told again as a failed step; a sentence is a check's first paragraph."""
    summary = run_summary(result.all_events)
    assert [(check.asset, check.name, check.sentence) for check in summary.errors] == [
        ("rows", "bad", "3 of 8 rows are bad.")
    ]
    assert summary.errors[0].plain == "3 of 8 rows are bad. What to do: x."
    assert [check.name for check in summary.warnings] == ["odd"]
    assert summary.steps == [("broken", "The disk is full.")]
    assert summary.refusal == ""


def test_a_run_that_was_refused_for_its_settings_says_all_faults() -> None:
    """Resources are made before the first step, so that no step fails: the sentences are those of the settings."""

    class Limits(Settings):
        noun: ClassVar[str] = "the limits"
        least: int = Field(1, ge=0)
        most: int = Field(1, ge=0)

    @dg.asset
    def limited(limits: Limits) -> None:
        """Never made."""

    defs = dg.Definitions(assets=[limited], resources={"limits": Limits.configure_at_launch()})
    config = {"resources": {"limits": {"config": {"least": -1, "most": -2}}}}
    job = defs.resolve_implicit_global_asset_job_def()
    summary = run_summary(job.execute_in_process(run_config=config, raise_on_error=False).all_events)
    faults = ["- least is -1; it must be at least 0.", "- most is -2; it must be at least 0."]
    assert summary.refusal.splitlines() == ["The limits: 2 wrong settings:", *faults]
    assert summary.steps == []
