"""What the button "Materialize all" does, asked of a real webserver as the UI asks it, and what the Launchpad lists."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from po_assets_tests.automation.live import LOCATION, Server, dagster_dev
from po_assets_tests.automation.workplace import make_workplace

pytestmark = pytest.mark.slow

LAUNCH = """mutation($p: ExecutionParams!) {launchPipelineExecution(executionParams: $p){__typename
... on LaunchRunSuccess{run{runId}} ... on PythonError{message} ... on RunConfigValidationInvalid{errors{message}}}}"""
NODES = "{assetNodes{assetKey{path} isMaterializable hasMaterializePermission}}"
SCHEMA = """query($s: PipelineSelector!) {runConfigSchemaOrError(selector: $s, mode: "default"){
... on RunConfigSchema{rootDefaultYaml}}}"""
LOG = """query($id: ID!) {logsForRun(runId: $id){... on EventConnection{events{
... on MessageEvent{message stepKey level} ... on MaterializationEvent{assetKey{path}}}}}}"""
PLACE = {"repositoryName": "__repository__", "repositoryLocationName": LOCATION}


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`make ui`, with no key and no model of a teacher."""
    place = make_workplace(tmp_path_factory.mktemp("all"))
    with dagster_dev(place, OPENAI_API_KEY="", PO_TEACHER_MODEL="") as server:
        yield server


def test_it_asks_no_teacher_needs_no_key_and_says_so(ui: Server) -> None:
    """Everything else is made; the assets that people ask for by hand say that they were left out, and why."""
    names = [node["assetKey"]["path"] for node in ui.ask(NODES)["assetNodes"] if node["isMaterializable"]]
    selector = {**PLACE, "pipelineName": "__ASSET_JOB", "assetSelection": [{"path": path} for path in names]}
    parameters = {"selector": selector, "mode": "default", "runConfigData": {}}
    answer = ui.ask(LAUNCH, p=parameters)["launchPipelineExecution"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    own = answer["run"]["runId"]

    def ended() -> dict[str, Any] | None:  # the sensor's own run of the landed file may come before it
        run = next(run for run in ui.runs() if run["runId"] == own)
        return run if run["status"] in ("SUCCESS", "FAILURE", "CANCELED") else None

    run = ui.wait("the run to end", ended, 600)
    events = ui.ask(LOG, id=own)["logsForRun"]["events"]
    made = {event["assetKey"]["path"][-1] for event in events if event.get("assetKey")}
    said = [event["message"] for event in events if event["level"] in ("WARNING", "ERROR")]
    print(run, made, said)
    assert "teacher_batch" not in made
    assert any("No teacher was asked" in message for message in said), said
    assert {"raw_teacher", "supervised_dataset", "lora_adapter", "eval_report"} <= made, (run, said)


def test_a_job_lists_only_the_resources_that_it_uses(ui: Server) -> None:
    """A visitor of the Launchpad is shown no settings that do nothing."""

    def listed(job: str) -> set[str]:
        schema: Any = ui.ask(SCHEMA, s={**PLACE, "pipelineName": job})["runConfigSchemaOrError"]
        return set(yaml.safe_load(schema["rootDefaultYaml"])["resources"])

    assert listed("ask_teacher") == {"teacher_llm", "batch_plan"}
    assert listed("candidates_for_people") == {"curation", "selection"}
    assert not {"teacher_llm", "batch_plan", "curation"} & listed("product_owner_student")
