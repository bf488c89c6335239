"""What a run came to, in words: on the console while it is under way, and in messages about failures to a webhook.

Dagster keeps every event in its log, where the UI shows them; a person who waits for `make run`, or reads a message
about it on a phone, wants the sentences.

Messages are one per run that failed, or in which an ERROR check did, in Slack's JSON; off unless
`PO_NOTIFY_WEBHOOK_URL` is set. One that cannot be delivered is said in the sensor's tick and tried again at the next
ones; it fails nothing else. (Dagster's own `run_status_sensor` moves on after an error, and so would lose the message;
it also watches one status, and a run with a failed check is a success to Dagster.)
"""

import json
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import dagster as dg
import httpx

from po_assets.dag.pages import unescaped
from po_assets.text import printable

URL_VARIABLE = "PO_NOTIFY_WEBHOOK_URL"
WARNINGS_VARIABLE = "PO_NOTIFY_WARNINGS"
UI_VARIABLE = "DAGSTER_WEBSERVER_URL"
TIMEOUT_SECONDS = 10
MAX_ATTEMPTS = 20
"""With a tick every 30 seconds a webhook may be out of reach for ten minutes before a message is given up."""

_FINISHED = {kind.value: kind for kind in (dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_SUCCESS)}
_LISTED = 5
_CHARACTERS = 1_000
"""Of a point."""
_RUNS_A_TICK = 20
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


class DeliveryError(Exception):
    """The webhook did not take a message; the text says why, without the URL, which is a secret."""


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"Posts a message to {URL_VARIABLE} for each run that failed or has a failed ERROR check "
    f"({WARNINGS_VARIABLE}=1: also for warnings). Does nothing when the variable is not set.",
)
def failure_messages(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Post what is new since the last tick; the tick says what was posted, or why not.

    The cursor holds, for each kind of event that ends a run, where the next one is read, and how often the next message
    was tried in vain.
    """
    instance, url = context.instance, os.environ.get(URL_VARIABLE)
    if not url:
        # Runs of today are no news on the day it is set.
        return _tick(_now(instance), f"{URL_VARIABLE} is not set: no messages are sent.")
    position = _position(context)
    sent: list[str] = []
    news: list[str] = []
    for kind, event_type in _FINISHED.items():
        for _ in range(_RUNS_A_TICK):
            page = instance.fetch_run_status_changes(event_type, 1, cursor=position[kind], ascending=True)
            if not page.records:
                break
            run = instance.get_run_by_id(page.records[0].run_id)
            text = message(run, _summary(instance, run)) if run else ""
            if run and text:
                name = run.run_id[:8]
                try:
                    post(url, text)
                    sent.append(name)
                except DeliveryError as error:
                    tried = position["attempts"] = position["attempts"] + 1
                    if tried < MAX_ATTEMPTS:
                        return _tick(
                            position,
                            f"The message about run {name} was not delivered: {error}. "
                            f"Tried {tried} of {MAX_ATTEMPTS} times.",
                        )
                    news.append(f"Gave up the message about run {name}: {error}.")
                    context.log.warning(news[-1])
            position |= {kind: page.cursor, "attempts": 0}
    news += [f"Posted about {', '.join(sent)}."] if sent else []
    return _tick(position, " ".join(news) or "No run failed since the last look.")


def message(run: dg.DagsterRun, summary: RunSummary) -> str:
    """The text about a run, in Slack's markup; empty when there is nothing to tell."""
    failed = run.status == dg.DagsterRunStatus.FAILURE
    wants_warnings = os.environ.get(WARNINGS_VARIABLE, "").lower() in ("1", "true", "yes", "on")
    lines = [f"{check.asset} / {check.name}: {check.sentence}" for check in summary.errors]
    if wants_warnings:
        lines += [f"{check.asset} / {check.name} (warning): {check.sentence}" for check in summary.warnings]
    if not failed and not lines:
        return ""
    lines += [f"{step}: {reason}" for step, reason in summary.steps]
    lines += [summary.refusal] if summary.refusal else []
    lines = lines or ["It ended without a word of its steps: see the run's log."]
    more = len(lines) - _LISTED
    title = "failed" if failed else "finished with failed checks"
    listed = [f"• {_escaped(line)}" for line in lines[:_LISTED]] + ([f"• and {more} more"] if more > 0 else [])
    return "\n".join([f"*{_escaped(run.job_name)} {title}* ({_link(run.run_id)})", *listed])


def post(url: str, text: str) -> None:
    """Send one message, to this address and no other: a redirect counts as a failure.

    Raises:
        DeliveryError: the webhook is not reached within `TIMEOUT_SECONDS`, or answers anything but success.
    """
    try:
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(url, content=json.dumps({"text": text}), headers=headers, timeout=TIMEOUT_SECONDS)
    # The texts of the first three quote the address or what was answered.
    except (httpx.InvalidURL, ValueError):
        raise DeliveryError(f"{URL_VARIABLE} is not a valid address") from None
    except httpx.UnsupportedProtocol:
        raise DeliveryError(f"{URL_VARIABLE} is not an http(s) address") from None
    except httpx.ProtocolError as error:
        raise DeliveryError(f"the webhook's answer is not HTTP ({type(error).__name__})") from None
    except httpx.HTTPError as error:
        raise DeliveryError(f"the webhook is out of reach ({error})") from None
    if not answer.is_success:
        raise DeliveryError(f"the webhook answered {answer.status_code} {answer.reason_phrase}")


def _position(context: dg.SensorEvaluationContext) -> dict[str, Any]:
    """The cursor as it was left; without one, now: old failures are no news."""
    try:
        position = json.loads(context.cursor or "")
        return {**{kind: position[kind] for kind in _FINISHED}, "attempts": int(position["attempts"])}
    except (ValueError, TypeError, KeyError):
        return _now(context.instance)


def _now(instance: dg.DagsterInstance) -> dict[str, Any]:
    latest = {kind: instance.fetch_run_status_changes(event_type, 1) for kind, event_type in _FINISHED.items()}
    return {kind: page.cursor for kind, page in latest.items()} | {"attempts": 0}


def _summary(instance: dg.DagsterInstance, run: dg.DagsterRun) -> RunSummary:
    entries = instance.all_logs(run.run_id, of_type=EVENT_TYPES)
    return run_summary(entry.dagster_event for entry in entries if entry.dagster_event)


def _tick(position: dict[str, Any], reason: str) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=reason, cursor=json.dumps(position))


def _link(run_id: str) -> str:
    base = os.environ.get(UI_VARIABLE, "").rstrip("/")
    return f"<{base}/runs/{run_id}|run {run_id[:8]}>" if base else f"run {run_id[:8]}"


def _escaped(text: str) -> str:
    """Slack's three control characters, no line break within a point, and no more than a phone shows."""
    text = " ".join(text.split())
    text = text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 1]}…"
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
