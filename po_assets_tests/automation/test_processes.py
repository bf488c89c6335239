"""One run at a time on an artifact root, runs whose process is gone, and the instance that `make ui` starts with."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test
from upath import UPath

from po_assets import cli
from po_assets.automation import run
from po_assets.automation.executors import LOCK, PROCESS_TAG, end_orphaned_runs, orphaned_runs, process_tag, root_of
from po_assets.automation.instance import opened_instance
from po_assets.errors import UserError
from po_assets.storage import lock
from po_assets_tests.automation.live import LOCATION
from po_assets_tests.automation.workplace import REPOSITORY, Workplace, make_workplace

RUN = """
import po_assets.definitions
from po_assets_tests.automation.tiny_location import defs
po_assets.definitions.defs = defs
from po_assets.cli import main
raise SystemExit(main(["run"]))
"""
"""`po-assets run` with a tiny model."""

ENDLESS_TRAINING = """
import time
from po_assets.training import training
def endless(*_args, **_options):
    print("computing", flush=True)
    time.sleep(600)
training.make_engine = endless
"""


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return make_workplace(tmp_path_factory.mktemp("place"))


def dead_process() -> str:
    """The tag of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    own = process_tag()[PROCESS_TAG].split("/")
    process.wait()
    return f"{own[0]}/{process.pid}/{time.time():.2f}"


def test_a_run_whose_process_is_gone_is_marked_failed(instance: dg.DagsterInstance) -> None:
    """Those of other machines, of living processes and without a tag are left alone."""
    started = dg.DagsterRunStatus.STARTED
    dead = create_run_for_test(instance, status=started, tags={PROCESS_TAG: dead_process()})
    create_run_for_test(instance, status=started, tags=process_tag())
    create_run_for_test(instance, status=started, tags={PROCESS_TAG: "another-machine/1/1.0"})
    create_run_for_test(instance, status=started)
    create_run_for_test(instance, status=dg.DagsterRunStatus.SUCCESS, tags={PROCESS_TAG: dead_process()})
    with dg.build_sensor_context(instance=instance) as context:
        tick = orphaned_runs(context)
    assert isinstance(tick, dg.SkipReason)
    assert tick.skip_message == f"Marked as failed, since their process is gone: {dead.run_id[:8]}"
    assert instance.get_run_by_id(dead.run_id).status == dg.DagsterRunStatus.FAILURE
    assert end_orphaned_runs(instance) == []


def test_a_number_that_another_process_has_now_is_no_sign_of_life(instance: dg.DagsterInstance) -> None:
    """Told by when the process started."""
    host, pid, started = process_tag()[PROCESS_TAG].split("/")
    start, seconds = started.split(":")
    tag = f"{host}/{pid}/{start}:{float(seconds) - 100:.2f}"
    run = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags={PROCESS_TAG: tag})
    assert end_orphaned_runs(instance) == [run.run_id]


def test_a_run_that_was_being_canceled_is_canceled(instance: dg.DagsterInstance) -> None:
    """Not failed: a person wanted it."""
    tags = {PROCESS_TAG: dead_process()}
    run = create_run_for_test(instance, status=dg.DagsterRunStatus.CANCELING, tags=tags)
    end_orphaned_runs(instance)
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.CANCELED


def test_the_root_is_the_runs_or_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the Launchpad's config, also where it names a variable."""
    monkeypatch.setenv("PO_ARTIFACTS_ROOT", "/default")
    monkeypatch.setenv("ELSEWHERE", "/elsewhere")
    assert root_of({}) == "/default"
    assert root_of({"resources": {"artifacts": {"config": {"root": "/own"}}}}) == "/own"
    assert root_of({"resources": {"artifacts": {"config": {"root": {"env": "ELSEWHERE"}}}}}) == "/elsewhere"


def start(place: Workplace, *command: str, **variables: str) -> subprocess.Popen[str]:
    """A process in the workplace."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *command],
        cwd=REPOSITORY,
        env=place.environment(**variables),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def read_until(process: subprocess.Popen[str], text: str, seconds: float = 90) -> str:
    """What a process prints up to a line with this text; it is killed when that does not come in time."""
    deadline = threading.Timer(seconds, process.kill)
    deadline.start()
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if text in line:
            deadline.cancel()
            return said
    raise AssertionError(f"waited for {text!r} in:\n{said}")


MATERIALIZE = ("-m", "dagster", "asset", "materialize", "--select", "raw_teacher", "-m", LOCATION)


@pytest.mark.slow
def test_a_run_waits_for_another_on_the_same_artifacts(place: Workplace) -> None:
    """As the UI's runs do: it says so in its log, goes on when the root is free, and removes what killed ones left.

    Another one that waits is ended with SIGTERM: at once, not when the run before has ended.
    """
    left = place.root / "models" / ".staging-po_student_v2-1a2b"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    with lock(UPath(place.root / LOCK)):
        run = start(place, *MATERIALIZE)
        said = read_until(run, "Waiting until it ends")
        assert f"Another run writes to {place.root} right now" in said
        ended = start(place, *MATERIALIZE)  # now that the history is there: two at once would both make it
        read_until(ended, "Waiting until it ends")
        ended.terminate()
        ended.communicate(timeout=30)
        assert ended.returncode != 0
        assert run.poll() is None
        assert not (place.root / "distillation").exists()
    rest, _ = run.communicate(timeout=60)
    assert run.returncode == 0, rest
    assert (place.root / "distillation" / "po_teacher_dataset.jsonl").exists()
    assert f"Removed {left}, which a killed process had left" in said + rest
    assert not left.exists()


def test_a_waiting_run_can_be_ended(place: Workplace) -> None:
    """With Ctrl-C: at once, not when the other run has ended."""
    with lock(UPath(place.root / LOCK)):
        run = start(place, *MATERIALIZE)
        read_until(run, "Waiting until it ends")
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=30)
        assert run.returncode != 0


@pytest.mark.slow
def test_runs_that_were_ended_leave_nothing_that_blocks_the_next(place: Workplace) -> None:
    """`make run` killed, then stopped with Ctrl-C in its training: the next is not refused, and none counts as running.

    As long as one is only held (SIGSTOP), nobody calls it dead, and another is refused in a sentence.
    """
    first = start(place, "-c", ENDLESS_TRAINING + RUN)
    read_until(first, "computing", 300)
    first.send_signal(signal.SIGSTOP)
    with dg.DagsterInstance.from_config(str(place.home)) as instance:
        assert end_orphaned_runs(instance) == []
    other = start(place, "-c", RUN)
    said, _ = other.communicate(timeout=120)
    assert (other.returncode, len(said.splitlines())) == (1, 1)
    assert said.startswith(f"Another run writes to {place.root} right now")
    first.send_signal(signal.SIGCONT)
    first.kill()
    first.communicate(timeout=60)
    gone = "its process is gone; it is marked as failed"
    second = start(place, "-c", ENDLESS_TRAINING + RUN)
    assert gone in read_until(second, "computing", 300)
    second.send_signal(signal.SIGINT)
    said, _ = second.communicate(timeout=60)
    assert "computing" not in said  # the step asks for retries where it has a process of its own
    third = start(place, "-c", RUN)
    said = read_until(third, "UI, with every check, its table and pictures", 300)
    third.wait(30)
    assert gone not in said
    assert "Gate" in said
    with dg.DagsterInstance.from_config(str(place.home)) as instance:
        statuses = {record.dagster_run.status for record in instance.get_run_records()}
        limits = instance.event_log_storage.get_concurrency_info("gpu")
    assert statuses <= {dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.SUCCESS}
    assert limits.active_slot_count == 0


def test_the_instance_is_set_up_as_it_says(place: Workplace) -> None:
    """`deploy/local/dagster.yaml`: quiet, one run and one GPU step at a time, dead runs found, failed gates not retried."""
    with dg.DagsterInstance.from_config(str(place.home)) as instance:
        assert not instance.telemetry_enabled
        assert not instance.nux_enabled
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_start_timeout_seconds == 300
        pools = instance.get_concurrency_config().pool_config
        assert (pools.default_pool_limit, pools.pool_granularity.value) == (1, "op")
        assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 1
        assert instance.run_retries_enabled
        assert instance.run_retries_max_retries == 1
        assert not instance.run_retries_retry_on_asset_or_op_failure
        assert instance.get_settings("run_monitoring")["free_slots_after_run_end_seconds"] == 15


@pytest.mark.parametrize(
    ("home", "expected"),
    [
        ("relative/home", "DAGSTER_HOME is 'relative/home'; it has to be an absolute path"),
        ("", "DAGSTER_HOME is not set"),
    ],
)
def test_an_instance_that_cannot_be_found_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: str, expected: str
) -> None:
    """Also where the package is installed without the repository."""
    monkeypatch.setattr(run, "REPOSITORY", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", home)
    monkeypatch.setenv("PO_ARTIFACTS_ROOT", str(tmp_path))
    assert cli.main(["run"]) == 1
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("{env: NOT_SET}", 'the environment variable "NOT_SET" which is not set'),
        ("postgresql+psycopg2://dagster:secret@127.0.0.1:1/dagster", "127.0.0.1"),
    ],
)
def test_an_instance_whose_database_cannot_be_had_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, expected: str
) -> None:
    """A variable that its dagster.yaml names and a server that is not there; without the password."""
    pytest.importorskip("dagster_postgres")
    (tmp_path / "dagster.yaml").write_text(f"storage: {{postgres: {{postgres_url: {url}}}}}")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with pytest.raises(UserError) as refused, opened_instance():
        pass
    said = str(refused.value)
    assert said.startswith(f"Dagster's instance in {tmp_path} cannot be opened (")
    assert expected in said
    assert "secret" not in said
