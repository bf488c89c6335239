"""Checkpoints of a training: whole or absent, and used only by the training they belong to.

A checkpoint is a folder `step-000120` with the trained matrices, the optimizer's state, the log so far, and a manifest
with the sha256 of each file and the digest of data and recipe. It is published in one step. Nothing in it is pickled,
so that reading one never runs code. They lie under the artifact root, also when that is an object store: a run that is
retried on another node goes on from them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from upath import UPath

from po_assets.storage import (
    Manifest,
    atomic_directory,
    digest_of,
    file_digest,
    is_disk_full,
    is_local,
    published_directory,
    read_manifest,
    write_manifest,
)

if TYPE_CHECKING:
    import torch

_TENSORS = "state.safetensors"
_LOG = "log.json"
_PREFIX = "step-"
KEPT = 2  # the newest one, and the one before it in case the disk damages the newest


@dataclass(frozen=True)
class StepRecord:
    """One line of `training_log.jsonl`."""

    step: int
    """From 1."""
    steps: int
    epoch: float
    """Passes over the data after this step."""
    loss: float
    """Mean cross-entropy per trained token of the step's rows, before the step, in nats."""
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    tokens: int
    """Real tokens, prompt and answer, of the step's rows."""
    trained_tokens: int
    seconds: float
    memory_gib: float
    """Highest use of GPU memory, or of main memory where there is no GPU, so far."""
    validation_loss: float | None = None
    """Mean cross-entropy per answer token of the rows held out, after the step, in nats; None where not measured."""

    @property
    def numbers(self) -> dict[str, float]:
        """What is plotted, by name."""
        left_out = ("steps", "seconds")
        return {f"train/{k}": float(v) for k, v in asdict(self).items() if v is not None and k not in left_out}


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` finished steps."""

    step: int
    tensors: Mapping[str, torch.Tensor]
    log: list[StepRecord]


class CheckpointStore:
    """The checkpoints below one folder, seen by one training (`run_digest`: its data, recipe, base model and code)."""

    def __init__(self, folder: UPath | Path, run_digest: str, report: Callable[[str], None]) -> None:
        """`report` is told which checkpoint is used and why others are not."""
        self._folder, self._digest, self._report = UPath(folder), run_digest, report
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        """Nothing is being written any more when this returns: whoever trains next may tidy up."""
        if self._writing:
            wait([self._writing])
            if kind is None:
                self._writing.result()

    def save(self, checkpoint: Checkpoint, *, beside: bool = False) -> None:
        """Write a checkpoint, then drop this training's old ones.

        `beside`: a copy of it, in a thread, unless the one before is still being written. What stopped that one is
        raised here. A full disk costs the checkpoint, not the training: it is reported, and training goes on.
        """
        if self._writing:
            if beside and not self._writing.done():
                return
            self._writing.result()
        if not beside:
            self._write(checkpoint)
            return
        copy = {name: tensor.detach().to("cpu", copy=True) for name, tensor in checkpoint.tensors.items()}
        self._writing = self._writer.submit(self._write, replace(checkpoint, tensors=copy, log=list(checkpoint.log)))

    def _write(self, checkpoint: Checkpoint) -> None:
        from safetensors.torch import save_file

        target = self._folder / f"{_PREFIX}{checkpoint.step:06d}"
        try:
            with atomic_directory(target) as staging:
                save_file({k: v.contiguous() for k, v in checkpoint.tensors.items()}, staging / _TENSORS)
                (staging / _LOG).write_text(json.dumps([asdict(record) for record in checkpoint.log]))
                files = {name: file_digest(staging / name) for name in (_TENSORS, _LOG)}
                extra = {"step": checkpoint.step, "files": files}
                write_manifest(staging, Manifest(digest_of(files), inputs={"training": self._digest}, extra=extra))
        except Exception as error:
            if not is_disk_full(error):
                raise
            self._report(
                f"The disk is full: no checkpoint of step {checkpoint.step} in {str(self._folder)!r}. Training goes on "
                "without it; free some space, or a crash costs the steps since the last checkpoint."
            )
            return
        for path in self._mine()[:-KEPT]:
            _remove(path)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint of this training; every other one that is found is reported."""
        for path in reversed(self._steps()):
            problem = self._problem(path)
            if problem is None:
                self._report(f"Resuming after step {_step(path)} from the checkpoint {path.name}.")
                return self._read(path)
            self._report(f"Not used: checkpoint {path.name}, since {problem}.")
        return None

    def clear(self) -> None:
        """Remove all checkpoints and what interrupted writes left: the training they served is published."""
        for path in self._contents():
            _remove(path)

    def drop_leftovers(self) -> None:
        """Remove half-written folders of a killed run. Only for the holder of the training lock."""
        for path in self._contents():
            if not path.name.startswith(_PREFIX):
                self._report(f"Removed {path.name}, which an interrupted run left half-written.")
                _remove(path)

    def _contents(self) -> list[UPath]:
        return list(self._folder.iterdir()) if self._folder.exists() else []

    def _steps(self) -> list[UPath]:
        return sorted((p for p in self._contents() if p.name.startswith(_PREFIX)), key=lambda p: p.name)

    def _mine(self) -> list[UPath]:
        manifests = [(path, read_manifest(path)) for path in self._steps()]
        return [path for path, manifest in manifests if manifest and manifest.inputs.get("training") == self._digest]

    def _problem(self, path: UPath) -> str | None:
        path = published_directory(path)
        manifest = read_manifest(path)
        if manifest is None:
            return "its manifest is missing or damaged"
        if manifest.inputs.get("training") != self._digest:
            return "it belongs to other data or another recipe"
        for name, digest in manifest.extra.get("files", {}).items():
            if not (path / name).exists():
                return f"its file {name} is missing"
            if file_digest(path / name) != digest:
                return f"its file {name} is damaged"
        return None

    def _read(self, path: UPath) -> Checkpoint:
        from safetensors.torch import load

        folder = published_directory(path)
        log: list[dict[str, Any]] = json.loads((folder / _LOG).read_text())
        return Checkpoint(_step(path), load((folder / _TENSORS).read_bytes()), [StepRecord(**record) for record in log])


def _step(path: UPath) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _remove(path: UPath) -> None:
    if not path.is_dir():
        path.unlink(missing_ok=True)
    elif is_local(path):
        shutil.rmtree(path.path, ignore_errors=True)
    else:
        path.rmdir(recursive=True)
