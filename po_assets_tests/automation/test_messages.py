"""How a run's failures are put in words: on the console of `make run`, and in messages to a real local server."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import dagster as dg
import pytest
from pydantic import Field

from po_assets.automation import notifications
from po_assets.automation.notifications import failure_messages
from po_assets.automation.run_summary import console, error_text, run_summary
from po_assets.dag import Settings
from po_assets_tests.automation.webhook import Webhook, webhook


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


def test_an_interrupted_step_says_that_it_goes_on() -> None:
    """Ctrl-C reaches a step as an error of Dagster's without a word."""
    error = SimpleNamespace(cls_name="DagsterExecutionInterruptedError", cause=None, message="")
    assert error_text(error).startswith("It was interrupted")
    assert error_text(error).endswith("Start it again: it goes on where it was.")


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


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    for name in ("PO_NOTIFY_WARNINGS", "DAGSTER_WEBSERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    with webhook() as hook:
        monkeypatch.setenv("PO_NOTIFY_WEBHOOK_URL", hook.url)
        yield hook


def tick(instance: dg.DagsterInstance, cursor: str | None) -> tuple[str, str]:
    """What the tick says, and its cursor."""
    with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
        result = failure_messages(context)
    assert isinstance(result, dg.SensorResult)
    assert result.skip_reason is not None
    assert result.cursor is not None
    return str(result.skip_reason.skip_message), result.cursor


def run(instance: dg.DagsterInstance, *results: dict[str, Any], blocking: bool = False, crash: str = "") -> str:
    """A run of an asset with checks of these results; returns its id."""

    @dg.asset
    def rows() -> None:
        if crash:
            raise dg.Failure(crash)

    @dg.multi_asset_check(
        specs=[dg.AssetCheckSpec(f"check_{i}", asset="rows", blocking=blocking) for i in range(len(results))]
    )
    def checks() -> Iterator[dg.AssetCheckResult]:
        for i, result in enumerate(results):
            yield dg.AssetCheckResult(asset_key="rows", check_name=f"check_{i}", **result)

    assets = [rows, checks] if results else [rows]
    return dg.materialize(assets, instance=instance, raise_on_error=False).run_id


def told(instance: dg.DagsterInstance, hook: Webhook, *results: dict[str, Any], crash: str = "") -> tuple[str, str]:
    """The id of a run between two ticks, and the message about it (empty when there is none)."""
    _, cursor = tick(instance, None)
    run_id = run(instance, *results, crash=crash)
    tick(instance, cursor)
    assert len(hook.texts) < 2
    return run_id, "".join(hook.texts)


FAILED = {"passed": False, "description": "3 of 10 rows <are> bad.\n\n**What to do:** mend them."}
WARNED = {"passed": False, "severity": dg.AssetCheckSeverity.WARN, "description": "1 row is odd."}


def test_a_failed_run_is_one_message(instance: dg.DagsterInstance, hook: Webhook) -> None:
    """Job, run, asset, check, sentence; warnings are left out, and the next tick says nothing again."""
    said, cursor = tick(instance, None)
    assert said == "No run failed since the last look."
    run_id = run(instance, FAILED, WARNED, blocking=True)
    said, cursor = tick(instance, cursor)
    assert said == f"Posted about {run_id[:8]}."
    (text,) = hook.texts
    title, *points = text.splitlines()
    assert title.endswith(f"failed* (run {run_id[:8]})")
    assert points == ["• rows / check_0: 3 of 10 rows &lt;are&gt; bad."]
    assert tick(instance, cursor)[0] == "No run failed since the last look."
    assert len(hook.texts) == 1


def test_a_failed_error_check_in_a_green_run_is_a_message(
    instance: dg.DagsterInstance, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster shows such a run as a success. The link goes to the run where the UI's address is known."""
    monkeypatch.setenv("DAGSTER_WEBSERVER_URL", "https://dagster.example/")
    run_id, text = told(instance, hook, FAILED)
    assert "finished with failed checks" in text.splitlines()[0]
    assert f"<https://dagster.example/runs/{run_id}|run {run_id[:8]}>" in text


@pytest.mark.parametrize(("setting", "line"), [("", ""), ("1", "• rows / check_0 (warning): 1 row is odd.")])
def test_warnings_are_told_only_when_asked_for(
    instance: dg.DagsterInstance, hook: Webhook, monkeypatch: pytest.MonkeyPatch, setting: str, line: str
) -> None:
    """`PO_NOTIFY_WARNINGS=1`."""
    monkeypatch.setenv("PO_NOTIFY_WARNINGS", setting)
    assert told(instance, hook, WARNED)[1].partition("\n")[2] == line


def test_a_step_that_fails_of_itself_is_told_with_its_reason(instance: dg.DagsterInstance, hook: Webhook) -> None:
    """The sentence of `dagster.Failure`; green runs in between are not mentioned."""
    _, cursor = tick(instance, None)
    run(instance)
    run(instance, crash="The landing folder does not exist.")
    tick(instance, cursor)
    (text,) = hook.texts
    assert text.splitlines()[1] == "• rows: The landing folder does not exist."


def test_a_hostile_reason_is_text_of_bounded_length(instance: dg.DagsterInstance, hook: Webhook) -> None:
    """Escape sequences and right-to-left marks are shown, markup is escaped, and a phone is not flooded."""
    crash = "\x1b[31m \u202egpj.exe <script> & {{ 7*7 }} <!channel>\n" + "x" * 100_000
    _, text = told(instance, hook, crash=crash)
    assert "\\x1b[31m U+202Egpj.exe &lt;script&gt; &amp; {{ 7*7 }} &lt;!channel&gt; xxx" in text
    assert len(text) < 1_500


def test_many_failures_are_shortened(instance: dg.DagsterInstance, hook: Webhook) -> None:
    """A message is to be read on a phone."""
    lines = told(instance, hook, *[FAILED] * 8)[1].splitlines()
    assert len(lines) == 7
    assert lines[-1] == "• and 3 more"


def test_a_refused_message_is_said_and_tried_again(instance: dg.DagsterInstance, hook: Webhook) -> None:
    """The tick names the reason and not the URL, which is a secret; nothing is lost or sent twice."""
    _, cursor = tick(instance, None)
    hook.status = 500
    first = run(instance, FAILED)
    second = run(instance, FAILED)
    said, cursor = tick(instance, cursor)
    assert said == (
        f"The message about run {first[:8]} was not delivered: the webhook answered 500 Internal Server Error. "
        "Tried 1 of 20 times."
    )
    assert "secret" not in said
    hook.status = 200
    said, cursor = tick(instance, cursor)
    assert said == f"Posted about {first[:8]}, {second[:8]}."
    assert len(hook.texts) == 2


def test_a_redirect_is_no_delivery_and_is_not_followed(instance: dg.DagsterInstance, hook: Webhook) -> None:
    """The message was for one address; followed, it would count as delivered without its text."""
    _, cursor = tick(instance, None)
    hook.location = hook.url.replace("secret", "other")
    run(instance, FAILED)
    for times, hook.status in enumerate((301, 302, 303, 307, 308), start=1):
        said, cursor = tick(instance, cursor)
        assert f"the webhook answered {hook.status} " in said
        assert f"Tried {times} of 20 times." in said
    assert hook.texts == []


def test_an_answer_that_is_no_http_is_tried_again(instance: dg.DagsterInstance, hook: Webhook) -> None:
    """Something else listens there; it may quote anything, so nothing of it is repeated."""
    _, cursor = tick(instance, None)
    hook.garbage = b"secret\r\n"
    run(instance, FAILED)
    said, _ = tick(instance, cursor)
    assert "the webhook's answer is not HTTP (RemoteProtocolError). Tried 1 of 20 times." in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:9/secret", "the webhook is out of reach"),
        ("file:///etc/passwd", "PO_NOTIFY_WEBHOOK_URL is not an http(s) address"),
        ("http://127.0.0.1:port/secret", "PO_NOTIFY_WEBHOOK_URL is not a valid address"),
        ("http://a..b/secret", "PO_NOTIFY_WEBHOOK_URL is not a valid address"),
        ("http://127.0.0.1:9/a secret", "the webhook is out of reach"),
        ("http://127.0.0.1:9/\n-secret", "PO_NOTIFY_WEBHOOK_URL is not a valid address"),
        ("http://", "PO_NOTIFY_WEBHOOK_URL is not an http(s) address"),
    ],
)
def test_a_webhook_that_cannot_be_reached_gives_up_in_the_end(
    instance: dg.DagsterInstance, hook: Webhook, monkeypatch: pytest.MonkeyPatch, url: str, expected: str
) -> None:
    """The last tick of so many says so, and no tick the secret in the address; later messages get their turn."""
    monkeypatch.setenv("PO_NOTIFY_WEBHOOK_URL", url)
    monkeypatch.setattr(notifications, "MAX_ATTEMPTS", 2)
    _, cursor = tick(instance, None)
    run_id = run(instance, FAILED)
    first, cursor = tick(instance, cursor)
    assert expected in first
    assert first.endswith("Tried 1 of 2 times.")
    last, cursor = tick(instance, cursor)
    assert last.startswith(f"Gave up the message about run {run_id[:8]}: {expected}")
    assert "secret" not in first + last
    assert tick(instance, cursor)[0] == "No run failed since the last look."


def test_without_a_webhook_nothing_is_sent_and_old_failures_are_no_news_later(
    instance: dg.DagsterInstance, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tick names the variable."""
    monkeypatch.delenv("PO_NOTIFY_WEBHOOK_URL")
    run(instance, FAILED)
    said, cursor = tick(instance, None)
    assert said == "PO_NOTIFY_WEBHOOK_URL is not set: no messages are sent."
    monkeypatch.setenv("PO_NOTIFY_WEBHOOK_URL", hook.url)
    assert tick(instance, cursor)[0] == "No run failed since the last look."
    assert hook.texts == []
