"""Training and evaluation as a tracker sees them: a real MLflow server, one that is down, one of another kind, none."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from po_assets.dag import Tracking
from po_assets.dag.tracking import TRACKERS, Point
from po_assets.errors import UserError
from po_assets.storage import Layout
from po_assets.training.student import read_log
from po_assets_tests.automation.live import serving
from po_assets_tests.evaluation.test_assets import make_adapter, run
from po_assets_tests.model.tiny_model import make_tiny_model
from po_assets_tests.processes import free_port
from po_assets_tests.training.test_asset import materialize
from po_assets_tests.training.tiny_training import make_artifacts

NOTE = "Nothing more is sent to the tracker"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_artifacts(tmp_path / "artifacts")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server of this machine, with a database of its own."""
    import mlflow  # noqa: F401  # skipped where it is missing

    folder, url = tmp_path_factory.mktemp("mlflow"), f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    options = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    answered = partial(answers, f"{url}/health")
    with serving([*command, *options], folder / "log.txt", answered, cwd=folder, env=environment):
        yield url


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def runs(server: str) -> dict[str, Any]:
    """The runs on the server by asset."""
    from mlflow import MlflowClient

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("students")
    assert experiment
    found = client.search_runs([experiment.experiment_id])
    return {run.data.tags["po_assets.key"].partition("/")[0]: run for run in found}


@pytest.mark.slow
def test_an_mlflow_server_has_params_curve_and_results(server: str, layout: Layout) -> None:
    """Of a real training; unchanged, nothing more is sent."""
    from mlflow import MlflowClient

    tracking = Tracking(uri=server, experiment="students")
    assert materialize(layout, tracking, validation_share=0.25, epochs=3.0).success
    made, log = runs(server)["lora_adapter"], read_log(layout)
    assert made.info.status == "FINISHED"
    assert (made.data.params["rank"], made.data.params["validation_share"]) == ("4", "0.25")
    assert made.data.metrics["validation_loss"] == log[-1].validation_loss
    curve = MlflowClient(server).get_metric_history(made.info.run_id, "train/loss")
    assert {point.step: point.value for point in curve} == {record.step: record.loss for record in log}
    assert len(curve) == len(log)
    assert materialize(layout, tracking, validation_share=0.25, epochs=3.0).success
    assert len(runs(server)) == 1


@pytest.mark.slow
def test_an_mlflow_server_has_the_evaluation(server: str, tmp_path: Path, layout: Layout) -> None:
    """Baseline and student, each with its scores and what it was measured with."""
    base = make_tiny_model(tmp_path / "base", context=8192)
    make_adapter(base, Path(str(layout.adapter)))
    run(
        layout,
        base,
        "eval_cases",
        "baseline_report",
        "eval_report",
        tracking=Tracking(uri=server, experiment="students"),
    )
    found = runs(server)
    for name in ("baseline_report", "eval_report"):
        assert {"mean_score", "valid_share", "score_std"} <= set(found[name].data.metrics)
        assert found[name].data.params["mode"] == "free"
    assert found["eval_report"].data.params["lora_adapter"] == "a" * 64


@pytest.fixture
def notes(capfd: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """What steps said about their tracker, in the log."""
    return lambda: [line for text in capfd.readouterr() for line in text.splitlines() if NOTE in line]


class Recorder:
    """A tracker of another kind: it keeps what it gets."""

    made: list["Recorder"]
    fails_at = ""

    def __init__(self, *names: str) -> None:
        self.names, self.got, self.curve, self.ended = names, {}, [], None  # type: ignore[var-annotated]
        Recorder.made.append(self)

    def params(self, values: Mapping[str, str]) -> None:  # noqa: D102
        self.got |= values

    def metrics(self, points: Sequence[Point]) -> None:  # noqa: D102
        if self.fails_at == "metrics":
            raise ConnectionError("the line is cut")
        self.curve += points

    def end(self, *, finished: bool) -> None:  # noqa: D102
        self.ended = finished


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setitem(TRACKERS, "recorder", Recorder)
    monkeypatch.setattr(Recorder, "made", [], raising=False)
    return Recorder


def test_another_tracker_is_one_class(recorder: type[Recorder], layout: Layout) -> None:
    """With params before the first numbers, every step once, and what came out last."""
    assert materialize(layout, Tracking(uri="recorder://here", experiment="mine")).success
    (made,) = recorder.made
    assert made.names[:2] == ("recorder://here", "mine")
    assert made.names[2].startswith("lora_adapter ")
    assert made.got["learning_rate"] == "0.01"
    assert [step for step, _ in made.curve] == [1, 6, 2, 3, 4, 5, 0]
    assert made.curve[-1][1]["last_loss"] < made.curve[0][1]["train/loss"]
    assert made.ended is True


def test_a_failed_step_ends_its_run_as_failed(
    recorder: type[Recorder], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its first numbers."""

    def broken(_student: object) -> None:
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr("po_assets.training.assets._metadata", broken)
    assert not materialize(layout, Tracking(uri="recorder://here")).success
    (made,) = recorder.made
    assert made.ended is False


def test_a_tracker_that_breaks_costs_a_note(
    recorder: type[Recorder], layout: Layout, monkeypatch: pytest.MonkeyPatch, notes: Any
) -> None:
    """One, not one for each number."""
    monkeypatch.setattr(recorder, "fails_at", "metrics")
    assert materialize(layout, Tracking(uri="recorder://here")).success
    (note,) = notes()
    assert "here in this step: ConnectionError: the line is cut" in note


def test_a_server_that_is_down_costs_a_note(layout: Layout, notes: Any) -> None:
    """Or its client, which is not installed."""
    assert materialize(layout, Tracking(uri=f"http://127.0.0.1:{free_port()}")).success
    assert len(notes()) == 1


def test_a_missing_client_names_its_extra(layout: Layout, monkeypatch: pytest.MonkeyPatch, notes: Any) -> None:
    """And the training is as without it."""
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert materialize(layout, Tracking(uri="http://127.0.0.1:9")).success
    assert "make setup EXTRAS=mlflow" in notes()[0]


@pytest.mark.parametrize(
    ("uri", "told"),
    [("localhost:5000", "it must begin with http://"), ("http://me:secret@host", "MLFLOW_TRACKING_USERNAME")],
)
def test_a_wrong_address_is_refused(uri: str, told: str) -> None:
    """Before anything runs; a password is not repeated."""
    with pytest.raises(UserError, match=told) as raised:
        Tracking(uri=uri)
    assert "secret" not in str(raised.value)


def test_by_default_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable sets the default."""
    monkeypatch.delenv("PO_TRACKING_URI", raising=False)
    assert not Tracking().uri
    monkeypatch.setenv("PO_TRACKING_URI", "http://tracker:5000")
    assert Tracking().uri == "http://tracker:5000"
