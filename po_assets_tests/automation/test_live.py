"""The graph as people use it: `dagster dev` in processes of its own, files landing, runs launched by the sensor."""

import hashlib
import json
import os
import signal
from pathlib import Path

import dagster as dg
import pytest

from po_assets.automation.executors import PROCESS_TAG
from po_assets.automation.jobs import main_job
from po_assets.definitions import defs
from po_assets_tests.automation.live import Server, dagster_dev
from po_assets_tests.automation.webhook import Webhook, webhook
from po_assets_tests.automation.workplace import Workplace, good_row, make_workplace

BELOW = (
    "distillation/po_teacher_supervised.jsonl",
    "distillation/po_teacher_supervised.gate.json",
    "models/po_student_v2",
    "evaluation/po_student_answers.jsonl",
    "evaluation/po_eval_report.json",
    "evaluation/po_eval_gate.json",
)


def digests(root: Path) -> dict[str, str]:
    """What lies below the gate of normalized_teacher, with times: nothing of it may be touched when that fails."""
    files = [file for name in BELOW for file in [root / name, *(root / name).rglob("*")] if file.is_file()]
    assert len(files) > len(BELOW)
    return {str(file): f"{hashlib.sha256(file.read_bytes()).hexdigest()} {file.stat().st_mtime_ns}" for file in files}


def settled(server: Server, number: int) -> None:
    """So many runs and no more, also after the sensors and the retrying daemon had several looks."""
    newest = server.ticks("new_teacher_data")[0]["timestamp"]
    later = lambda: [t for t in server.ticks("new_teacher_data") if t["timestamp"] > newest]  # noqa: E731
    server.wait("two more ticks", lambda: len(later()) > 1, 60)
    assert len(server.runs()) == number


@pytest.mark.slow
def test_landing_a_file_runs_the_graph_and_a_bad_one_stops_at_its_check(tmp_path: Path) -> None:
    """Good rows: one run to the gate. Bad rows: one run to the check that names them. Corrected: one run to the gate."""
    place = make_workplace(tmp_path)
    with webhook() as hook:
        variables = {"PO_NOTIFY_WEBHOOK_URL": hook.url, "DAGSTER_WEBSERVER_URL": "http://ui.example"}
        with dagster_dev(place, **variables) as server:
            first_landing(server, hook)
            bad_landing(server, hook, place)
            corrected_landing(server, place)
            killed_run(server, place)
            before = [run["runId"] for run in server.runs()]
        with dagster_dev(place, **variables) as server:
            # The state survives a restart: the same runs, and the sensor knows the content.
            server.wait("a tick after the restart", lambda: server.ticks("new_teacher_data"), 60)
            assert [run["runId"] for run in server.runs()] == before


def first_landing(server: Server, hook: Webhook) -> None:
    """A random student fails the gate for the right reasons, and a failed gate is not tried again."""
    run = server.wait_for_run(1)
    assert (run["jobName"], run["status"]) == ("product_owner_student", "FAILURE")
    assert run["tags"]["dagster/sensor_name"] == "new_teacher_data"
    for asset in ("raw_teacher", "normalized_teacher", "supervised_dataset", "lora_adapter"):
        errors = [name for name, check in server.checks(asset).items() if check is None or check["severity"] == "ERROR"]
        assert errors
        assert all(server.checks(asset)[name]["success"] for name in errors), asset
    gate = server.checks("eval_report")
    failed = {name for name, check in gate.items() if not check["success"] and check["severity"] == "ERROR"}
    assert failed == {"case_count", "mean_score", "valid_answers"}
    assert gate["case_count"]["description"].startswith("3 cases were evaluated, 40 are wanted.")
    stale = server.stale()
    made = {key.to_user_string() for key in main_job.selection.resolve(defs.resolve_asset_graph())}
    assert {name: stale[name] for name in made} == dict.fromkeys(made, "FRESH")
    (text,) = server.wait("the message", lambda: hook.texts, 30)
    assert text.startswith("*product_owner_student failed* (<http://ui.example/runs/")
    assert "• eval_report / case_count: 3 cases were evaluated, 40 are wanted." in text
    settled(server, 1)


def bad_landing(server: Server, hook: Webhook, place: Workplace) -> None:
    """The run ends at rejected_share, with numbers, rows and what to do; nothing below is touched.

    Executed again from its failure, only the failed check runs again.
    """
    before = digests(place.root)
    place.land("bad", "no json at all", json.dumps({"some": "thing"}))
    run = server.wait_for_run(2)
    assert run["status"] == "FAILURE"
    check = server.checks("normalized_teacher")["rejected_share"]
    assert (check["success"], check["severity"]) == (False, "ERROR")
    assert "2 of 10 landed rows (20.0%) were rejected, at most 5.0% may be" in check["description"]
    assert "**What to do:**" in check["description"]
    assert "rows" in [entry["label"] for entry in check["metadataEntries"]]
    assert digests(place.root) == before
    server.wait("the message", lambda: len(hook.texts) == 2, 30)
    assert "• normalized_teacher / rejected_share: 2 of 10 landed rows" in hook.texts[1]
    settled(server, 2)
    server.reexecute_from_failure(run["runId"])
    again = server.wait_for_run(3)
    assert (again["status"], server.steps(again["runId"])) == ("FAILURE", {"normalized_teacher_checks"})
    assert digests(place.root) == before


def corrected_landing(server: Server, place: Workplace) -> None:
    """A new run, which goes all the way again."""
    place.land("bad", good_row("CrossPlan21"), good_row("CrossPlan22"))
    server.wait_for_run(4)
    assert server.checks("normalized_teacher")["rejected_share"]["success"]
    assert server.checks("supervised_dataset")["schema"]["description"].startswith("10 of 10 rows")
    assert server.checks("eval_report")["case_count"]["description"].startswith("3 cases")
    settled(server, 4)


def killed_run(server: Server, place: Workplace) -> None:
    """A run whose process dies is found dead, marked, and run again by the daemon, which ends at the gate."""
    place.land("more", good_row("CrossPlan31"))

    def process() -> str | None:
        runs = server.runs()
        if len(runs) < 5 or runs[4]["status"] != "STARTED":
            return None
        assert PROCESS_TAG not in runs[4]["tags"]  # nobody is to read it in the runs list
        with dg.DagsterInstance.from_config(str(place.home)) as instance:
            run = instance.get_run_by_id(runs[4]["runId"])
            return run.tags.get(PROCESS_TAG) if run else None

    os.kill(int(server.wait("the run's process", process, 60).split("/")[1]), signal.SIGKILL)
    killed = server.wait_for_run(5, 60)
    assert killed["status"] == "FAILURE"
    again = server.wait_for_run(6, 240)
    assert again["parentRunId"] == killed["runId"]
    assert server.checks("supervised_dataset")["schema"]["description"].startswith("11 of 11 rows")
