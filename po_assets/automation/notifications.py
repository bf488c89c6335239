"""Messages about failures to a webhook: one per run that failed, or in which an ERROR check did, in Slack's JSON.

Off unless `PO_NOTIFY_WEBHOOK_URL` is set. A message that cannot be delivered is said in the sensor's tick and tried
again at the next ones; it fails nothing else. (Dagster's own `run_status_sensor` moves on after an error, and so would
lose the message; it also watches one status, and a run with a failed check is a success to Dagster.)
"""

import json
import os
from typing import Any

import dagster as dg
import httpx

from po_assets.automation.run_summary import EVENT_TYPES, RunSummary, run_summary

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
