"""Disks that are full or read-only and folders of other users, as they are: one sentence, and nothing half-written."""

import errno
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from upath import UPath

from po_assets import cli
from po_assets.dag import JsonlIOManager, user_errors_fail_the_step
from po_assets.dag.artifacts import Artifacts
from po_assets.evaluation.answers import _append_synced
from po_assets.intake.landing import snapshot
from po_assets.storage import Layout, atomic_directory, replace_file, stage_lines
from po_assets_tests.automation.live import dagster_dev
from po_assets_tests.automation.workplace import make_workplace

SMALL = 2_000_000

# The other user reads this project and its .venv, which a clone in /root keeps from it.
OTHER_USER = pytest.mark.skipif(
    os.geteuid() != 0
    or not all(path.stat().st_mode & stat.S_IXOTH for path in (Path(sys.prefix), *Path(sys.prefix).parents)),
    reason="only root can become another user, who must be able to read the .venv",
)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder of the test that other users come to; pytest's own are private, and every pytest makes them so anew."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def small_disk(open_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    folder = open_path / "disk"
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", "size=2m,mode=0755", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fill(folder: Path, writer: str) -> None:
    """Write more into it than the disk has, in ways that tell of it in errors of their own."""
    if writer == "copied folder":
        source = folder.parents[2] / "adapter"
        source.mkdir()
        (source / "weights").write_bytes(b"x" * 2 * SMALL)
        shutil.copytree(source, folder, dirs_exist_ok=True)
    elif writer == "tokenizer":
        from tokenizers import Tokenizer, models

        vocabulary = {f"a rather long word of number {number}": number for number in range(100_000)}
        Tokenizer(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary)))).save(str(folder / "tokenizer.json"))
    else:
        (folder / "weights").write_bytes(b"x" * 2 * SMALL)


@pytest.mark.parametrize("writer", ["table", "file", "folder", "copied folder", "tokenizer", "landed lines", "answers"])
def test_a_full_artifact_disk_is_one_sentence_and_the_old_artifact_stays(small_disk: Path, writer: str) -> None:
    """The system tells of a failed write without a path: the sentence has it, how much is free, and the way out."""
    target = UPath(small_disk / "distillation" / "thing")
    target.parent.mkdir()
    of_folders = ("folder", "copied folder", "tokenizer")
    if writer not in of_folders:
        target.write_text("old\n")
    landed = UPath(small_disk.parent / "rows.jsonl")
    landed.write_bytes(b"{}\n" * SMALL)
    before = files_below(small_disk)
    with pytest.raises(dg.Failure) as failed, user_errors_fail_the_step():
        if writer == "table":
            stage_lines(target, (b"x" * 1_000 for _ in range(3_000)))
        elif writer == "file":
            replace_file(target, b"x" * 2 * SMALL)
        elif writer == "landed lines":
            snapshot([landed], target)
        elif writer == "answers":
            _append_synced(Path(str(target)), b"x" * 2 * SMALL)
        else:
            with atomic_directory(target) as staging:
                fill(staging, writer)
    said = str(failed.value.description)
    assert said.startswith(f"The disk of '{target}' is full (")
    needed = re.search(r"\((\d\.\d) MB free, more than (\d\.\d) MB needed\)", said)
    assert needed, said
    if writer == "answers":
        assert needed[2] == "4.0"  # what was to be added, whatever the file holds already
    else:
        assert 1.0 <= float(needed[2]) <= 2.1  # what went onto the disk before it was full
    assert "Make room there, or set PO_ARTIFACTS_ROOT" in said
    assert files_below(small_disk) == before
    if writer not in of_folders:
        assert target.read_text() == "old\n"


def test_a_full_disk_under_the_kept_answers_says_what_the_next_answer_needs(small_disk: Path) -> None:
    """Not the size of all that are kept already; a cut line is taken away again, and the next answer finds its place."""
    kept = small_disk / "answers.jsonl"
    kept.write_bytes(b"old\n" * 100_000)
    (small_disk / "filler").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 500))
    before, line = kept.read_bytes(), b'{"asked": "it"}' * 400 + b"\n"
    with pytest.raises(dg.Failure) as failed, user_errors_fail_the_step():
        _append_synced(kept, line)
    assert " kB free, more than 6.0 kB needed). Make room there" in str(failed.value.description)
    assert kept.read_bytes() == before
    (small_disk / "filler").unlink()
    _append_synced(kept, line)
    assert kept.read_bytes() == before + line


def test_a_command_on_a_full_disk_says_the_sentence(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a step does: no traceback, exit status 1."""
    (small_disk / "filler").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 100_000))
    assert cli.main(["sample-data", "--root", str(small_disk)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"The disk of '{small_disk}/incoming/")
    assert said.count("\n") == 1


def test_a_reader_that_has_enough_ends_a_command_without_a_word() -> None:
    """`po-assets settings | head -1`."""
    command = shutil.which("po-assets", path=str(Path(sys.executable).parent))
    piped = f"{shlex.quote(str(command))} settings | head -1"
    done = subprocess.run(piped, shell=True, capture_output=True, text=True, check=False)
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")


def test_a_step_on_a_full_disk_fails_with_the_sentence_alone(small_disk: Path) -> None:
    """A real run: what the step says is the sentence; the table of the run before can still be read."""
    layout = Layout(UPath(small_disk))
    manager = JsonlIOManager(artifacts=Artifacts(root=str(small_disk)))
    lines = [b'{"a": 1}']

    @dg.asset(name="raw_teacher", io_manager_key="io_manager")
    @user_errors_fail_the_step()
    def table() -> object:
        return stage_lines(layout.raw, iter(lines))

    assert dg.materialize([table], resources={"io_manager": manager}).success
    before, old = files_below(small_disk), layout.raw.read_bytes()
    lines *= 300_000
    failed = dg.materialize([table], resources={"io_manager": manager}, raise_on_error=False)
    (event,) = failed.get_step_failure_events()
    error = event.step_failure_data.user_failure_data
    assert error is not None
    assert error.description is not None
    assert error.description.startswith(f"The disk of '{layout.raw}' is full (")
    assert (files_below(small_disk), layout.raw.read_bytes()) == (before, old)


def test_a_disk_that_can_only_be_read_is_one_sentence(small_disk: Path) -> None:
    """Remounted, as the kernel does after a fault of the disk."""
    _mount("-o", "remount,ro", str(small_disk))
    with pytest.raises(dg.Failure) as failed, user_errors_fail_the_step():
        replace_file(UPath(small_disk / "thing"), b"x")
    assert "is on a disk that can only be read. Mount it for writing, or set PO_ARTIFACTS_ROOT" in str(
        failed.value.description
    )


AS_NOBODY = """
import os, sys, dagster as dg
from upath import UPath
from po_assets.dag import user_errors_fail_the_step
from po_assets.storage import replace_file
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    with user_errors_fail_the_step():
        replace_file(UPath(sys.argv[1]) / "models" / "current", b"x")
except dg.Failure as failure:
    print(failure.description)
"""


@OTHER_USER
def test_a_folder_of_another_user_is_one_sentence_that_names_both(small_disk: Path) -> None:
    """Who may not write, and whose folder it is; wherever a `make run` before has left its history."""
    command = [sys.executable, "-W", "ignore", "-c", AS_NOBODY, str(small_disk)]
    environment = {key: value for key, value in os.environ.items() if key != "DAGSTER_HOME"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"'{small_disk}/models' is closed to user 65534 (Permission denied)" in done.stdout
    assert f"'{small_disk}' belongs to user 0. Get the right to it" in done.stdout
    assert files_below(small_disk) == []


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_history_that_cannot_be_kept_is_one_sentence(small_disk: Path, fault: str) -> None:
    """Before anything is computed: no traceback, exit status 1, nothing written to either folder."""
    root = small_disk.parent / "artifacts"
    if fault == "read-only":
        _mount("-o", "remount,ro", str(small_disk))
    environment = {**os.environ, "DAGSTER_HOME": str(small_disk), "PO_ARTIFACTS_ROOT": str(root)}
    command = shutil.which("po-assets", path=str(Path(sys.executable).parent))
    assert command
    done = subprocess.run([command, "run"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert f"DAGSTER_HOME {small_disk}" in said
    assert ("needs up to 50 MB. Make room" if fault == "full" else os.strerror(errno.EROFS)) in said
    assert files_below(small_disk) == []
    assert not root.exists()


BECOME_NOBODY = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)"


@OTHER_USER
@pytest.mark.parametrize("what", ["the folder", "its databases"])
def test_a_history_of_another_user_is_one_sentence(open_path: Path, what: str) -> None:
    """As after a run with sudo; asked of both commands, `ui` before it becomes Dagster's process."""
    home, root = open_path / "home", open_path / "artifacts"
    (home / "history").mkdir(parents=True)
    (home / "history" / "runs.db").touch()
    for path in (root, *([home, home / "history"] if what == "its databases" else [])):
        path.mkdir(exist_ok=True)
        os.chown(path, 65534, 65534)
    before = files_below(open_path)
    environment = {**os.environ, "DAGSTER_HOME": str(home), "PO_ARTIFACTS_ROOT": str(root), "HOME": str(root)}
    imports = "import sys, po_assets.cli, po_assets.automation.run, po_assets.definitions, po_assets.serving.server"
    for command in (["run"], ["ui", "--port", "0"]):
        code = f"{imports}; {BECOME_NOBODY}; sys.exit(po_assets.cli.main({command}))"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        said = done.stdout + done.stderr
        assert done.returncode == 1, said
        assert "Traceback" not in said
        closed = home if what == "the folder" else home / "history" / "runs.db"
        assert f"{closed}" in said
        assert f"'{closed}' belongs to user 0. Get the right to write there" in said
        assert "or set DAGSTER_HOME to a folder of your own" in said
        assert files_below(open_path) == before


def test_a_step_does_not_start_where_the_history_has_no_room_for_it(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails while Dagster can still write that down, instead of in the middle of Dagster's own writing."""
    (small_disk / "history").mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(small_disk))
    done = []

    @dg.asset
    @user_errors_fail_the_step()
    def step() -> None:
        done.append(True)

    (event,) = dg.materialize([step], raise_on_error=False).get_step_failure_events()
    error = event.step_failure_data.user_failure_data
    assert error is not None
    assert error.description == (
        f"DAGSTER_HOME {small_disk} has 2 MB of free disk, and Dagster's history needs up to 10 MB. Make room, or set "
        "DAGSTER_HOME to a folder of your own on another disk."
    )
    assert not done


FAILURES = """query($id: ID!) {logsForRun(runId: $id){... on EventConnection{events{
... on ExecutionStepFailureEvent{stepKey failureMetadata{description} error{message}}}}}}"""


@pytest.mark.slow
def test_a_history_disk_that_fills_while_the_ui_is_open_is_one_sentence(tmp_path: Path) -> None:
    """`dagster dev` goes on, and its page of the run says which path, how much is needed and what to do."""
    place = make_workplace(tmp_path / "place")
    settings = (place.home / "dagster.yaml").read_text()
    _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place.home))
    try:
        (place.home / "dagster.yaml").write_text(settings)
        with dagster_dev(place) as server:
            free = shutil.disk_usage(place.home).free
            (place.home / "filler").write_bytes(b"x" * (free - 8_000_000))
            run = server.launch("product_owner_student")
            server.wait(
                "the run to end", lambda: {r["runId"]: r["status"] for r in server.runs()}[run] == "FAILURE", 400
            )
            events = server.ask(FAILURES, id=run)["logsForRun"]["events"]
        said = [event["failureMetadata"]["description"] for event in events if event.get("failureMetadata")]
        assert said
        assert all(f"DAGSTER_HOME {place.home} has " in text for text in said), said
        assert all("needs up to 10 MB. Make room, or set DAGSTER_HOME" in text for text in said)
        assert not (place.root / "distillation").exists() or files_below(place.root / "distillation") == []
    finally:
        subprocess.run(["umount", "--lazy", str(place.home)], check=True)
