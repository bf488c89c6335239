"""Manifests: what an artifact is (sha256, rows) and what it was made from (inputs, config, code version).

A manifest stands beside its file as `<name>.manifest.json`, or inside its folder as `manifest.json`.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from upath import UPath

from po_assets.storage.files import published_directory, replace_file

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and what it was made from."""

    sha256: str
    rows: int | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    """Digest of each input, by name."""
    config: str = ""
    """Digest of the settings; Dagster's own staleness does not count them."""
    code_version: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def manifest_path(artifact: UPath | Path) -> UPath:
    """Where an artifact's manifest stands."""
    artifact = UPath(artifact)
    if artifact.suffix:
        return artifact.parent / f"{artifact.name}.manifest.json"
    return artifact / "manifest.json"


def read_manifest(artifact: UPath | Path) -> Manifest | None:
    """The artifact's manifest, or None where there is none or it cannot be read."""
    artifact = UPath(artifact)
    try:
        place = manifest_path(artifact if artifact.suffix else published_directory(artifact))
        return Manifest(**json.loads(place.read_text()))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def recorded_digest(artifact: UPath | Path) -> str:
    """The sha256 in the artifact's manifest; empty where there is none."""
    manifest = read_manifest(artifact)
    return manifest.sha256 if manifest else ""


def write_manifest(artifact: UPath | Path, manifest: Manifest) -> None:
    """Write the artifact's manifest in one step."""
    replace_file(manifest_path(artifact), json.dumps(asdict(manifest), indent=2, sort_keys=True).encode())


def digest_of(value: object) -> str:
    """sha256 (hex) of a value's canonical JSON: keys sorted, no white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_digest(path: UPath | Path) -> str:
    """sha256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with UPath(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def directory_digest(path: UPath | Path) -> str:
    """sha256 (hex) over the names and digests of all files in a folder but its manifest."""
    root = UPath(path)
    files = sorted(file for file in root.rglob("*") if file.is_file() and file.name != "manifest.json")
    return digest_of({str(file.path)[len(str(root.path)) :].lstrip("/"): file_digest(file) for file in files})
