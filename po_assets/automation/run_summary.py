"""What a run came to, in words, and how it speaks on the console while it is under way.

Dagster keeps every event in its log, where the UI shows them; a person who waits for `make run`, or reads a message
about it on a phone, wants the sentences.
"""

import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from po_assets.dag.pages import unescaped
from po_assets.text import printable

_STEP_WIDTH = 20


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
        return " ".join(unescaped(printable(self.description)).split())

    @property
    def sentence(self) -> str:
        """What failed, with numbers; without the table's caption and the next step."""
        return " ".join(unescaped(printable(self.description)).split("\n\n")[0].split())


@dataclass(frozen=True)
class RunSummary:
    """A run's failures; what passed is not listed."""

    errors: list[FailedCheck]
    """The failed checks of severity ERROR."""
    warnings: list[FailedCheck]
    """The other failed checks."""
    steps: list[tuple[str, str]]
    """Steps that failed of themselves, not by a check's verdict: key and reason."""
    refusal: str = ""
    """Why the run ended before its first step (wrong settings, say); empty when it began."""


EVENT_TYPES = {
    dg.DagsterEventType.ASSET_CHECK_EVALUATION,
    dg.DagsterEventType.STEP_START,
    dg.DagsterEventType.STEP_FAILURE,
    dg.DagsterEventType.RUN_FAILURE,
}
"""The events that a summary is made of."""


def run_summary(events: Iterable[dg.DagsterEvent]) -> RunSummary:
    """Read a run's events."""
    failed: list[FailedCheck] = []
    steps: list[tuple[str, str]] = []
    refusal, began = "", False
    for event in events:
        if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            if not (found := event.asset_check_evaluation_data).passed:
                description = found.description or "It gives no description."
                asset = found.asset_key.to_user_string()
                failed.append(FailedCheck(asset, found.check_name, found.severity.value, description))
        elif event.event_type == dg.DagsterEventType.STEP_START:
            began = True
        elif event.event_type == dg.DagsterEventType.STEP_FAILURE:
            data = event.step_failure_data
            reason = (data.user_failure_data and data.user_failure_data.description) or error_text(data.error)
            if "DagsterAssetCheckFailedError" not in error_text(data.error):
                steps.append((event.step_key or "", printable(reason)))
        elif event.event_type == dg.DagsterEventType.RUN_FAILURE:
            refusal = error_text(event.job_failure_data.error)
    errors = [check for check in failed if check.severity == "ERROR"]
    warnings = [check for check in failed if check.severity != "ERROR"]
    return RunSummary(errors, warnings, steps, "" if began else refusal)


def error_text(error: Any) -> str:
    """The sentences of an error as Dagster records it: of the `UserError` in its chain, else of the innermost cause."""
    if error is None:
        return "no reason was recorded"
    while error.cause and error.cls_name != "UserError":
        error = error.cause
    if error.cls_name == DagsterExecutionInterruptedError.__name__:
        return "It was interrupted (Ctrl-C, or a signal to end). Start it again: it goes on where it was."
    return printable(str(error.message)).strip().removeprefix("po_assets.errors.UserError: ")


class _ShortFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", {})
        step = (meta.get("step_key") or "").split(".")[0]
        message = meta.get("orig_message") or record.getMessage()
        level = "" if record.levelno < logging.WARNING else f"{record.levelname}: "
        if check := _failed_check(record):
            message = f"the check {check.check_name} FAILED: {unescaped(check.description or '').partition(chr(10))[0]}"
        return printable(f"{self.formatTime(record, '%H:%M:%S')}  {step:<{_STEP_WIDTH}}  {level}{message}")


class _PeopleOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Keep what code says with `context.log`, and checks that fail: the run may go on for minutes with what it can.

        Events of the engine carry a `dagster_event`; for every step after a failed one it also logs an error that ends
        in "Not executing.", which hides the one that matters.
        """
        meta = getattr(record, "dagster_meta", {})
        if _failed_check(record):
            return True
        said = record.levelno >= logging.INFO and meta.get("dagster_event") is None
        return said and not str(meta.get("orig_message")).endswith("Not executing.")


def _failed_check(record: logging.LogRecord) -> dg.AssetCheckEvaluation | None:
    """The evaluation that the record is about, if it is one that failed with severity ERROR."""
    event = getattr(record, "dagster_meta", {}).get("dagster_event")
    if event is None or event.event_type_value != "ASSET_CHECK_EVALUATION":
        return None
    check: dg.AssetCheckEvaluation = event.asset_check_evaluation_data
    return check if not check.passed and check.severity == dg.AssetCheckSeverity.ERROR else None


@dg.logger(config_schema=None, description="Short progress lines: time, step, message.")
def console(_context: dg.InitLoggerContext) -> logging.Logger:
    """A logger for people who watch a run in a terminal."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_ShortFormatter())
    handler.addFilter(_PeopleOnly())
    # Not a registered one: each run adds its handler to a logger of its own.
    logger = logging.Logger("po_assets", level=logging.DEBUG)  # noqa: LOG001
    logger.addHandler(handler)
    return logger
