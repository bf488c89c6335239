"""`make setup EXTRAS=cuda` where a PyTorch for CPUs is installed already. Python and pip of the .venv are stand-ins."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("before", "brings", "status", "said", "installs"),
    [
        ("cpu", "cuda", 0, "replacing it", 3),
        ("cpu", "cpu", 2, "error: The package index has PyTorch for CPUs only", 2),
        ("cuda", "cpu", 0, "", 1),
    ],
)
def test_a_pytorch_for_cpus_is_replaced_or_refused(  # noqa: PLR0917
    tmp_path: Path, before: str, brings: str, status: int, said: str, installs: int
) -> None:
    """It would be kept, and every run would then demand a GPU that is there."""
    built, log = tmp_path / "built", tmp_path / "log"
    built.write_text(before)
    for name, script in {
        "python": f'case "$2" in *torch.version.cuda*) grep -q cuda {built};; *) exit 3;; esac',
        "pip": f'echo "$*" >> {log}; case "$*" in *--force-reinstall*) printf {brings} > {built};; esac',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    command = ["make", "--old-file", ".venv/.runtime", "setup", "EXTRAS=fast,cuda", f"BIN={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr
    calls = log.read_text().splitlines()
    assert len(calls) == installs
    assert any("[fast,cuda]" in call for call in calls) is (status == 0)


def test_setup_without_cuda_looks_at_no_pytorch(tmp_path: Path) -> None:
    """Importing it takes seconds."""
    (tmp_path / "pip").write_text("#!/bin/sh\n")
    (tmp_path / "pip").chmod(0o755)
    command = ["make", "--old-file", ".venv/.runtime", "setup", "EXTRAS=fast", f"BIN={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True)  # there is no python beside pip
