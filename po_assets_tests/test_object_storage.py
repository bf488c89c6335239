"""The whole graph on an S3 server: the same results as on disk; training that goes on on another node; the command line."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from upath import UPath

from po_assets import cli
from po_assets.automation.jobs import main_job
from po_assets.dag import read_frame, read_gate
from po_assets.definitions import defs
from po_assets.evaluation.gate import current_gate, gate_path, promote
from po_assets.storage import Layout, artifact_root, file_digest, local_copy, read_manifest
from po_assets_tests.model.tiny_model import make_tiny_model
from po_assets_tests.processes import started
from po_assets_tests.training import crash_driver
from po_assets_tests.training.tiny_training import make_artifacts

SAMPLES = Path(__file__).resolve().parents[1] / "artifacts"
TABLES = ("raw", "normalized", "ledger", "rejected", "supervised")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model whose tokens are bytes, so its context has to hold long rows."""
    return make_tiny_model(tmp_path_factory.mktemp("base") / "tiny", context=16384)


def land(root: UPath, rows: int = 6, cases: int = 3) -> Layout:
    """Some of the sample data and of the evaluation cases."""
    layout = Layout(root)
    for file in (*sorted((SAMPLES / "incoming").glob("*.jsonl")), SAMPLES / "evaluation" / "po_eval_cases.jsonl"):
        lines = file.read_text().splitlines()[: cases if "cases" in file.name else rows]
        target = root / file.relative_to(SAMPLES).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("\n".join([*lines, ""]))
    return layout


def materialize(layout: Layout, base: Path, home: Path) -> dict[str, str]:
    """Run the whole job; the data versions of its assets. The gate fails, since the model is random."""
    training = {"rank": 4, "epochs": 1.0, "learning_rate": 1e-2, "workers": 1, "checkpoint_seconds": 0.0}
    decoding = {"mode": "free", "max_new_tokens": 10, "free_cases": 0}
    settings = {
        "artifacts": {"root": str(layout.root)},
        "base_model": {"base_model": str(base), "max_length": 12000},
        "recipe": {**training, "precision": "float32"},
        "decoding": decoding,
    }
    run_config: dict[str, Any] = {
        "resources": {name: {"config": config} for name, config in settings.items()},
        "loggers": {"console": {}},
    }
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        result = defs.resolve_job_def(main_job.name).execute_in_process(
            run_config=run_config, instance=instance, raise_on_error=False
        )
    failed = {event.step_key for event in result.all_events if event.is_step_failure}
    assert failed == {"eval_report_gate"}
    return {
        event.asset_key.to_user_string(): event.materialization.tags["dagster/data_version"]
        for event in result.all_events
        if event.is_step_materialization
    }


def without_times(value: Any) -> Any:
    """A JSON document without what differs from run to run: when it was, and how long it took."""
    if isinstance(value, dict):
        timed = ("time", "seconds", "tokens_per_second")
        return {key: without_times(entry) for key, entry in value.items() if key not in timed}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def both(bucket: str, base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Layout, dict[str, str]]]:
    """The graph run on disk and on S3: where, and the data versions."""
    folder = tmp_path_factory.mktemp("disk")
    roots = {"disk": UPath(folder / "artifacts"), "s3": artifact_root(f"{bucket}/team/po")}
    layouts = {name: land(root) for name, root in roots.items()}
    return {name: (layout, materialize(layout, base, folder / name)) for name, layout in layouts.items()}


def test_tables_and_adapter_are_those_made_on_disk(both: dict[str, tuple[Layout, dict[str, str]]]) -> None:
    """Byte for byte; the adapter by the digest of its weights and settings."""
    (disk, versions), (s3, s3_versions) = both["disk"], both["s3"]
    for table in TABLES:
        assert file_digest(getattr(disk, table)) == file_digest(getattr(s3, table)), table
        manifests = [read_manifest(getattr(layout, table)) for layout in (disk, s3)]
        assert manifests[0] == manifests[1] is not None
    adapters = [read_manifest(layout.adapter) for layout in (disk, s3)]
    assert adapters[0].sha256 == adapters[1].sha256
    assert (
        adapters[0].extra["files"]["adapter_model.safetensors"]
        == adapters[1].extra["files"]["adapter_model.safetensors"]
    )
    timed = {"baseline_report", "eval_report"}  # their rows say how long an answer took
    assert {k: v for k, v in versions.items() if k not in timed} == {
        k: v for k, v in s3_versions.items() if k not in timed
    }
    assert set(versions) == set(s3_versions)


def test_answers_and_report_are_those_made_on_disk(both: dict[str, tuple[Layout, dict[str, str]]]) -> None:
    """Up to times."""
    (disk, _), (s3, _) = both["disk"], both["s3"]
    for table in ("baseline_answers", "student_answers"):
        frames = [read_frame(getattr(layout, table)).drop(columns="seconds") for layout in (disk, s3)]
        assert frames[0].to_json() == frames[1].to_json()
    for document in ("baseline_report", "report_json"):
        texts = [without_times(json.loads(getattr(layout, document).read_text())) for layout in (disk, s3)]
        assert texts[0] == texts[1]
    assert "The gate failed" in s3.report_html.read_text()


def test_nothing_is_left_beside_the_artifacts(both: dict[str, tuple[Layout, dict[str, str]]]) -> None:
    """No staging objects, no write check, no checkpoints; the base model stays on the machine."""
    s3, _ = both["s3"]
    names = [path[len(s3.root.path) :].strip("/") for path in s3.root.fs.find(s3.root.path)]
    assert [name for name in names if ".staging" in name or ".write" in name or "checkpoints" in name] == []
    assert [name for name in names if name.startswith("models/") and "po_student_v2" not in name] == []


def test_a_passed_gate_switches_current_in_one_step(both: dict[str, tuple[Layout, dict[str, str]]]) -> None:
    """`models/current` on S3 is the adapter of the record, with the record in it."""
    s3, _ = both["s3"]
    record = read_gate(gate_path(s3))
    passed = replace(record, passed=True)
    assert current_gate(s3) is None
    with local_copy(s3.adapter) as adapter:
        promote(s3, passed, adapter)
    assert current_gate(s3).sha256 == record.sha256
    with local_copy(s3.current) as copy, local_copy(s3.adapter) as adapter:
        assert "The gate **failed**" in (adapter / "README.md").read_text()
        weights = [folder / "adapter_model.safetensors" for folder in (copy, adapter)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


class Node:
    """A machine with a tiny base model and supervised rows, which trains into an S3 prefix in processes of its own."""

    def __init__(self, folder: Path, bucket: str) -> None:
        self.folder, self.root = folder, f"{bucket}/trained"
        self.local = make_artifacts(folder)

    def layout(self, name: str) -> Layout:
        """The prefix of that name, with the supervised rows in it."""
        layout = Layout(artifact_root(f"{self.root}/{name}"))
        if not layout.supervised.exists():
            layout.root.fs.put(f"{self.local.supervised.parent}/", f"{layout.supervised.parent}/", recursive=True)
        return layout

    def train(self, name: str, moment: str = "", at: int = 1) -> int | None:
        """The exit code of a training, which may die at a moment."""
        root = str(self.layout(name).root)
        process = started(crash_driver.make, self.folder, moment, at, root)
        process.join(120)
        return process.exitcode

    def weights(self, name: str) -> bytes:
        """Those of the published adapter."""
        with local_copy(self.layout(name).adapter) as adapter:
            return (adapter / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def node(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Node:
    """With an uninterrupted training in `expected`."""
    node = Node(tmp_path_factory.mktemp("node"), bucket)
    assert node.train("expected") == 0
    return node


@pytest.mark.parametrize(
    ("moment", "at", "resumed"),
    [("during a step", 10, 2), ("between upload and pointer", 3, 2), ("between upload and pointer", 7, 6)],
)
def test_training_that_lost_its_node_goes_on_from_the_checkpoint_on_s3(
    node: Node, moment: str, at: int, resumed: int
) -> None:
    """SIGKILL, then another process: the adapter is that of an uninterrupted training, and was never half there."""
    name, log = f"{moment} {at}".replace(" ", "-"), node.folder / "log.txt"
    assert node.train(name, moment, at) == -signal.SIGKILL
    assert read_manifest(node.layout(name).adapter) is None
    log.unlink()
    assert node.train(name) == 0
    assert f"resumed at {resumed}\n" in log.read_text()
    assert node.weights(name) == node.weights("expected")


@pytest.mark.parametrize("root", ["s3://no-such-bucket/x", "foo://x"])
def test_a_root_that_cannot_be_used_is_one_sentence(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], root: str
) -> None:
    """Of `po-assets run`, before any work."""
    shutil.copy(SAMPLES.parent / "deploy" / "local" / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("PO_ARTIFACTS_ROOT", root)
    assert cli.main(["run"]) == 1
    said = capsys.readouterr().err
    assert "cannot be" in said
    assert len(said.splitlines()) == 1
