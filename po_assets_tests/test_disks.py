"""Disks that are full or read-only and folders of other users, as they are: one sentence, and nothing half-written."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from upath import UPath

from po_assets.dag import JsonlIOManager, user_errors_fail_the_step
from po_assets.dag.artifacts import Artifacts
from po_assets.storage import Layout, atomic_directory, replace_file, stage_lines

SMALL = 2_000_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    folder = tmp_path / "disk"
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


@pytest.mark.parametrize("writer", ["table", "file", "folder"])
def test_a_full_artifact_disk_is_one_sentence_and_the_old_artifact_stays(small_disk: Path, writer: str) -> None:
    """The system tells of a failed write without a path: the sentence has it, how much is free, and the way out."""
    target = UPath(small_disk / "distillation" / "thing")
    target.parent.mkdir()
    if writer != "folder":
        target.write_text("old")
    before = files_below(small_disk)
    with pytest.raises(dg.Failure) as failed, user_errors_fail_the_step():
        if writer == "table":
            stage_lines(target, (b"x" * 1_000 for _ in range(3_000)))
        elif writer == "file":
            replace_file(target, b"x" * 2 * SMALL)
        else:
            with atomic_directory(target) as staging:
                (staging / "weights").write_bytes(b"x" * 2 * SMALL)
    said = str(failed.value.description)
    assert said.startswith(f"The disk of '{target}' is full (")
    assert "MB free" in said
    assert "Make room there, or set PO_ARTIFACTS_ROOT" in said
    assert files_below(small_disk) == before
    assert writer == "folder" or target.read_text() == "old"


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_another_user_is_one_sentence_that_names_both(small_disk: Path) -> None:
    """Who may not write, and whose folder it is."""
    for folder in small_disk.parents:
        if stat.S_IMODE(folder.stat().st_mode) == 0o700:  # pytest's own folders are private
            folder.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AS_NOBODY, str(small_disk)], capture_output=True, text=True, check=True
    )
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
