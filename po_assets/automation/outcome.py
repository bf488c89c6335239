"""What a run came to, in words: the checks that failed with their sentences, and the steps that failed with theirs.

Read from the run's events, whoever asks: the command line, and the messages of `notifications`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import dagster as dg


@dataclass(frozen=True)
class FailedCheck:
    """A check that did not pass."""

    asset: str
    name: str
    severity: str
    """ERROR or WARN."""
    description: str
    """Its verdict (markdown): the sentence first, then what to do."""

    @property
    def plain(self) -> str:
        """The description on one line, without markup."""
        return " ".join(self.description.replace("**", "").split())

    @property
    def sentence(self) -> str:
        """What failed, with numbers; without the table's caption and the next step."""
        return " ".join(self.description.split("\n\n")[0].split())


@dataclass(frozen=True)
class FailedStep:
    """A step that failed of itself, not by a check's verdict."""

    step: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """A run's failures; what passed is not listed."""

    checks: list[FailedCheck]
    steps: list[FailedStep]

    @property
    def errors(self) -> list[FailedCheck]:
        """The failed checks of severity ERROR."""
        return [check for check in self.checks if check.severity == "ERROR"]

    @property
    def warnings(self) -> list[FailedCheck]:
        """The others."""
        return [check for check in self.checks if check.severity != "ERROR"]


def outcome_of(events: Iterable[dg.DagsterEvent]) -> Outcome:
    """Read a run's events."""
    checks: list[FailedCheck] = []
    steps: list[FailedStep] = []
    for event in events:
        if event.event_type_value == "ASSET_CHECK_EVALUATION":
            evaluation = event.asset_check_evaluation_data
            if not evaluation.passed:
                checks.append(
                    FailedCheck(
                        evaluation.asset_key.to_user_string(),
                        evaluation.check_name,
                        evaluation.severity.value,
                        evaluation.description or "It gives no description.",
                    )
                )
        elif event.event_type_value == "STEP_FAILURE" and not _is_failed_check(event):
            steps.append(FailedStep(event.step_key or "", _reason(event)))
    return Outcome(checks, steps)


def _is_failed_check(event: dg.DagsterEvent) -> bool:
    return "DagsterAssetCheckFailedError" in _error_text(event)


def _reason(event: dg.DagsterEvent) -> str:
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return data.user_failure_data.description
    return _error_text(event)


def _error_text(event: dg.DagsterEvent) -> str:
    error = event.step_failure_data.error
    if error is None:
        return "no reason was recorded"
    innermost = error.cause or error
    return innermost.message.strip()
