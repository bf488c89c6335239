"""What `make` installs, by hash: the lock, the script that reads it, and EXTRAS=cuda where a PyTorch for CPUs is.

pip and the .venv's python are stand-ins where nothing is to be installed.
"""

import functools
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
PINS = {
    found[1]: (found[2], set(line.rpartition("# ")[2].split()))
    for line in LOCK
    if (found := re.match(r"(.+?)==(\S+)", line))
}


def test_every_line_of_the_lock_is_one_version_with_digests_and_sets() -> None:
    """In the form that deploy/install.sh reads; a package without a digest would be anybody's."""
    names = [line.partition("==")[0] for line in LOCK]
    assert len(names) == len(set(names)) > 200
    for line in LOCK:
        assert re.fullmatch(r"[a-z0-9-]+==\S+( ; .*?)?( --hash=sha256:[0-9a-f]{64})+ #( [a-z0-9]+)+", line), line[:80]


@pytest.mark.parametrize("group", ["run", *PROJECT["optional-dependencies"]])
def test_the_lock_holds_what_a_set_needs_and_what_that_needs(group: str) -> None:
    """Walked through the packages that are installed here; pip is told to look for no dependency itself."""
    wanted = [*PROJECT["dependencies"], *(PROJECT["optional-dependencies"][group] if group != "run" else [])]
    # A PyTorch for CUDA brings NVIDIA's libraries, which deploy/install.sh adds by itself.
    built_for = {"cuda"} if torch.version.cuda else set()
    for name, requirement in needed(Requirement(text) for text in wanted):
        version, sets = PINS[name]
        assert requirement.specifier.contains(version, prereleases=True), requirement
        assert sets & {"run", group, *built_for}, name


def needed(wanted: Iterator[Requirement]) -> Iterator[tuple[str, Requirement]]:
    """Requirements and theirs, as far as they hold on this machine; those of what is not installed are not known."""
    open_ones, seen = [*wanted], set()
    while open_ones:
        requirement = open_ones.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if name == "po-assets":
            open_ones += [Requirement(text) for extra in extras for text in PROJECT["optional-dependencies"][extra]]
        elif str(requirement) not in seen:
            seen.add(str(requirement))
            yield name, requirement
            for found in requires(name):
                if found.marker is None or any(found.marker.evaluate({"extra": extra}) for extra in {*extras, ""}):
                    open_ones.append(found)


@functools.cache
def requires(name: str) -> list[Requirement]:
    """What a package needs; nothing is known of one that is not installed."""
    try:
        return [Requirement(text) for text in importlib.metadata.requires(name) or []]
    except importlib.metadata.PackageNotFoundError:
        return []


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with deploy/install.sh, a virtual environment without packages, and an index of a package and its own."""
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "deploy" / "install.sh", tmp_path / "deploy")
    (tmp_path / "index").mkdir()
    for name, needs in (("torch", "Requires-Dist: torch_libraries\n"), ("torch_libraries", "")):
        with zipfile.ZipFile(tmp_path / "index" / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            info = f"{name}-1.0.dist-info"
            wheel.writestr(f"{name}_stand_in.py", "")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    (tmp_path / "requirements.lock").write_text(f"# Made\ntorch==1.0 --hash=sha256:{'0' * 64} # run fast\n")
    (tmp_path / "python").write_text(
        f'#!/bin/sh\ntest "$1" != -c || exit 1  # no PyTorch for CUDA\nexec {sys.executable} "$@" --target {tmp_path}/site\n'
    )
    (tmp_path / "python").chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("name", ["docs/scale.md", "deploy/ray/README.md"])
def test_extras_are_installed_by_make_setup(name: str) -> None:
    """As people are told to: by hash; and never the package by its name, which is on no registry."""
    text = (ROOT / name).read_text()
    (extras,) = re.findall(r"^ +make setup EXTRAS=(\S+)$", text, re.MULTILINE)
    assert "s3" in extras.split(",")  # both texts use s3://
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert "po-assets[" not in text


def make(*words: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`make` as if the package were installed; without its own lines about folders, also inside another make."""
    command = ["make", "--no-print-directory", "--old-file", ".venv/.runtime", *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def install(place: Path, *sets: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(place / "index"), **variables}
    command = ["sh", place / "deploy" / "install.sh", place / "python", *sets]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_file_with_another_digest_is_refused_with_a_sentence_and_can_be_trusted(place: Path) -> None:
    """By the real pip: nothing is installed, until the person says that the package is to be another."""
    done = install(place, "fast")
    assert done.returncode == 1
    assert "torch==1.0" in done.stderr
    assert "error: The package index has another file of the package named above than requirements.lock" in done.stderr
    assert "run this again with TRUST=torch" in done.stderr
    assert not (place / "site").exists()
    assert install(place, "fast", TRUST="torch").returncode == 0
    assert (place / "site" / "torch_stand_in.py").exists()
    # Another build of it may need libraries that the lock does not have.
    assert (place / "site" / "torch_libraries_stand_in.py").exists()


def test_a_misspelt_trust_and_an_index_out_of_reach_are_said(place: Path) -> None:
    """Neither is left to pip's own words."""
    misspelt = install(place, "fast", TRUST="torhc")
    assert misspelt.returncode == 1
    assert "error: TRUST names 'torhc'" in misspelt.stderr
    nowhere = {
        "PIP_NO_INDEX": "0",
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_FIND_LINKS": "",
        "PIP_INDEX_URL": "http://127.0.0.1:9",
        "PIP_RETRIES": "1",
    }
    away = install(place, "fast", **nowhere)
    assert away.returncode == 1
    assert "error: The package index cannot be reached, so nothing was installed." in away.stderr


def test_the_locked_file_is_installed(place: Path) -> None:
    """And nothing that the lock does not have; a set that nobody knows is said to be none."""
    (wheel,) = (place / "index").glob("torch-*")
    lock = place / "requirements.lock"
    lock.write_text(lock.read_text().replace("0" * 64, hashlib.sha256(wheel.read_bytes()).hexdigest()))
    unknown = install(place, "run", "fsat")
    assert unknown.returncode == 1
    assert "error: There is no extra or package 'fsat'" in unknown.stderr
    assert install(place, "run").returncode == 0
    assert (place / "site" / "torch_stand_in.py").exists()
    assert not (place / "site" / "torch_libraries_stand_in.py").exists()


@pytest.mark.parametrize(
    ("before", "brings", "status", "said", "installs"),
    [
        ("cpu", "cuda", 0, "replacing it", ["torch==", "bitsandbytes=="]),
        ("cpu", "cpu", 2, "error: The package index has PyTorch for CPUs only", ["torch=="]),
        ("cuda", "cpu", 0, "", ["bitsandbytes=="]),
    ],
)
def test_a_pytorch_for_cpus_is_replaced_or_refused(  # noqa: PLR0917
    tmp_path: Path, before: str, brings: str, status: int, said: str, installs: list[str]
) -> None:
    """It would be kept, and every run would then demand a GPU that is there."""
    built, log = tmp_path / "built", tmp_path / "log"
    built.write_text(before)
    log.touch()
    script = f"""#!/bin/sh
case "$*" in
  *torch.version.cuda*) grep -q cuda {built}; exit;;
  *importlib.metadata*) exit 1;;
esac
for last; do :; done
cat "$last" >> {log}
test -z "$PIP_FORCE_REINSTALL" || printf {brings} > {built}
"""
    (tmp_path / "python").write_text(script)
    (tmp_path / "python").chmod(0o755)
    done = make("setup", "EXTRAS=fast,cuda", f"BIN={tmp_path}")
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr
    for name in ("torch==", "bitsandbytes=="):
        assert (name in log.read_text()) is (name in installs), log.read_text()


def test_setup_without_cuda_looks_at_no_pytorch(tmp_path: Path) -> None:
    """Importing it takes seconds."""
    (tmp_path / "python").write_text('#!/bin/sh\ncase "$*" in *torch.version*) exit 9;; *importlib*) exit 1;; esac\n')
    (tmp_path / "python").chmod(0o755)
    done = make("setup", "EXTRAS=fast", f"BIN={tmp_path}")
    assert done.returncode == 0, done.stderr


def test_the_ui_starts_under_a_path_with_spaces_quotes_and_other_letters(tmp_path: Path) -> None:
    """An ordinary user's clone; programs of the .venv are stand-ins."""
    clone = tmp_path / 'María\'s "own" clone'
    (clone / ".venv" / "bin").mkdir(parents=True)
    for file in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / file, clone)
    for name in ("python", "po-assets"):
        (clone / ".venv" / "bin" / name).write_text('#!/bin/sh\necho "$0 $*|$DAGSTER_HOME"\n')
        (clone / ".venv" / "bin" / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    for target, home in (("ui", "local"), ("ui-ray", "ray")):
        done = make("--old-file", ".venv/.ray", target, cwd=clone, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f".venv/bin/po-assets {target}|{clone}/deploy/{home}"
