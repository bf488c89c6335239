"""Messages about failures to a webhook: one per run that failed, or in which an ERROR check did, in Slack's JSON.

Off unless `PO_NOTIFY_WEBHOOK_URL` is set. A message that cannot be delivered is said in the sensor's tick and tried
again at the next ones; it fails nothing else.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import dagster as dg

from po_assets.automation.outcome import FailedCheck, Outcome, outcome_of

URL_VARIABLE = "PO_NOTIFY_WEBHOOK_URL"
WARNINGS_VARIABLE = "PO_NOTIFY_WARNINGS"
UI_VARIABLE = "DAGSTER_WEBSERVER_URL"
TIMEOUT_SECONDS = 10
MAX_ATTEMPTS = 20
"""With a tick every 30 seconds a webhook may be out of reach for ten minutes before a message is given up."""

_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
_LISTED = 5
_RUNS_A_TICK = 20
_OVERLAP_SECONDS = 5.0
_REMEMBERED_RUNS = 100


@dataclass
class Position:
    """How far the sensor is: runs that ended before `start` (seconds) are no news, those in `done` are told of."""

    start: float
    done: list[str] = field(default_factory=list)
    """Ids of the runs that ended last; `latest` is when."""
    latest: float = 0.0
    attempts: int = 0
    """How often the next message was tried in vain."""

    @classmethod
    def from_cursor(cls, cursor: str | None) -> "Position":
        """The position that `to_cursor` wrote; without one, now: old failures are no news."""
        try:
            return cls(**json.loads(cursor or ""))
        except (ValueError, TypeError):
            return cls(time.time())

    def to_cursor(self) -> str:
        """The position as text."""
        return json.dumps(asdict(self))


class DeliveryError(Exception):
    """The webhook did not take a message; the text says why, without the URL, which is a secret."""


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"Posts a message to {URL_VARIABLE} for each run that failed or has a failed ERROR check "
    f"({WARNINGS_VARIABLE}=1: also for warnings). Does nothing when the variable is not set.",
)
def failure_messages(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Post what is new since the last tick; the tick says what was posted, or why not."""
    position = Position.from_cursor(context.cursor)
    url = os.environ.get(URL_VARIABLE)
    if not url:
        # Runs of today are no news on the day it is set.
        return _tick(Position(time.time()), f"{URL_VARIABLE} is not set: no messages are sent.")
    sent: list[str] = []
    given_up: list[str] = []
    for record in _finished_since(context.instance, position):
        run = record.dagster_run
        text = message(run, _outcome(context.instance, run), warnings=_wants_warnings())
        if text:
            try:
                post(url, text)
            except DeliveryError as error:
                position.attempts += 1
                if position.attempts < MAX_ATTEMPTS:
                    return _tick(position, f"The message about run {run.run_id[:8]} was not delivered: {error}. "
                                 f"Tried {position.attempts} of {MAX_ATTEMPTS} times.")  # fmt: skip
                given_up.append(f"Gave up the message about run {run.run_id[:8]}: {error}.")
                context.log.warning(given_up[-1])
            else:
                sent.append(run.run_id[:8])
        _advance(position, record)
    news = [*given_up, *([f"Posted about {', '.join(sent)}."] if sent else [])]
    return _tick(position, " ".join(news) or "No run failed since the last look.")


def message(run: dg.DagsterRun, outcome: Outcome, *, warnings: bool) -> str:
    """The text about a run, in Slack's markup; empty when there is nothing to tell."""
    failed = run.status == dg.DagsterRunStatus.FAILURE
    checks = [*outcome.errors, *(outcome.warnings if warnings else [])]
    if not failed and not checks:
        return ""
    lines = [f"{check.asset} / {check.name}{_word(check)}: {check.sentence}" for check in checks]
    lines += [f"{step.step}: {step.reason}" for step in outcome.steps]
    if failed and not lines:
        lines = ["It ended without a word of its steps: see the run's log."]
    more = len(lines) - _LISTED
    title = "failed" if failed else "finished with failed checks"
    listed = [f"• {_escaped(line)}" for line in lines[:_LISTED]] + ([f"• and {more} more"] if more > 0 else [])
    return "\n".join([f"*{_escaped(run.job_name)} {title}* ({_link(run.run_id)})", *listed])


def post(url: str, text: str) -> None:
    """Send one message, to this address and no other.

    Raises:
        DeliveryError: the webhook is not reached within `TIMEOUT_SECONDS`, or answers anything but success.
    """
    body = json.dumps({"text": text}).encode()
    try:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise DeliveryError(f"{URL_VARIABLE} is no http(s) address")
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - checked above
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        raise DeliveryError(f"the webhook answered {error.code} {error.reason}") from None
    except OSError as error:
        raise DeliveryError(f"the webhook is out of reach ({getattr(error, 'reason', error)})") from None
    # Their texts quote the address or what was answered.
    except (ValueError, http.client.InvalidURL):
        raise DeliveryError(f"{URL_VARIABLE} is no valid address") from None
    except http.client.HTTPException as error:
        raise DeliveryError(f"the webhook's answer is no HTTP ({type(error).__name__})") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer that is no success: followed, it would lose the message on its way, or leak it."""

    def redirect_request(self, *_arguments: object) -> None:
        """Follow none."""


def _finished_since(instance: dg.DagsterInstance, position: Position) -> Iterable[dg.RunRecord]:
    # Looked at again a little into the past: of runs that end together, one may be recorded later than another.
    after = max(position.start, position.latest - _OVERLAP_SECONDS)
    finished = dg.RunsFilter(statuses=_FINISHED, updated_after=datetime.fromtimestamp(after - 1, UTC))
    records = [
        record
        for record in instance.get_run_records(finished)
        if _ended(record) > after and record.dagster_run.run_id not in position.done
    ]
    return sorted(records, key=_ended)[:_RUNS_A_TICK]


def _ended(record: dg.RunRecord) -> float:
    return record.end_time or record.update_timestamp.timestamp()


def _advance(position: Position, record: dg.RunRecord) -> None:
    position.latest = max(position.latest, _ended(record))
    position.done = [*position.done, record.dagster_run.run_id][-_REMEMBERED_RUNS:]
    position.attempts = 0


def _outcome(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Outcome:
    types = {dg.DagsterEventType.ASSET_CHECK_EVALUATION, dg.DagsterEventType.STEP_FAILURE}
    entries = instance.all_logs(run.run_id, of_type=types)
    return outcome_of(entry.dagster_event for entry in entries if entry.dagster_event)


def _tick(position: Position, reason: str) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=reason, cursor=position.to_cursor())


def _wants_warnings() -> bool:
    return os.environ.get(WARNINGS_VARIABLE, "").lower() in ("1", "true", "yes", "on")


def _word(check: FailedCheck) -> str:
    return "" if check.severity == "ERROR" else " (warning)"


def _link(run_id: str) -> str:
    base = os.environ.get(UI_VARIABLE, "").rstrip("/")
    return f"<{base}/runs/{run_id}|run {run_id[:8]}>" if base else f"run {run_id[:8]}"


def _escaped(text: str) -> str:
    """Slack's three control characters, and no line break within a point."""
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())
