"""Runs `make_student` in a process that kills itself with SIGKILL at a chosen moment; for test_crash."""

import os
import signal
from pathlib import Path
from typing import Any

import peft  # noqa: F401  # loaded once by the fork server, so that each process starts at once
import torch
import transformers  # noqa: F401

from po_assets.storage import Layout, artifact_root, files
from po_assets.text import Progress
from po_assets.training import checkpoints, gradients, student
from po_assets_tests.training.tiny_training import OVERFITTING, PAIRS, UNLIKE_PAIRS, tiny_recipe


def die(*_args: Any, **_options: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def make(root: Path, moment: str = "", at: int = 1, artifacts: str = "", *, best: bool = False) -> None:
    """Train and publish (into `artifacts`, where that is not `root`); die at the `at`-th time that `moment` comes."""
    torch.set_num_threads(1)
    left = [at]

    def dying(function: Any, *, before: bool = True) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and before:
                die()
            result = function(*args, **options)
            if left[0] == 0:
                die()
            return result

        return wrapped

    match moment:
        case "during a step":
            gradients.FastEngine._row = dying(gradients.FastEngine._row)
        case "while a checkpoint is written" | "while one is written beside the training":
            checkpoints.write_manifest = dying(checkpoints.write_manifest)
        case "between the renames of a checkpoint":
            files._swap_directory = dying(files._swap_directory)
        case "between upload and pointer":
            files._point = dying(files._point)
        case "while the adapter is written":
            student.render_card = dying(student.render_card)
        case "before the adapter's manifest":
            student.write_manifest = dying(student.write_manifest)
        case "before the adapters change places":
            files._exchanged = dying(files._exchanged)
        case "after the adapters changed places":
            files._exchanged = dying(files._exchanged, before=False)
        case "after the adapter is published":
            checkpoints.CheckpointStore.clear = dying(checkpoints.CheckpointStore.clear)
    more: dict[str, Any] = OVERFITTING if best else {}
    waits = 1e-9 if "beside" in moment else 0.0
    recipe = tiny_recipe(root / "tiny", checkpoint_seconds=waits, dropout=0.1, **more)
    lines = (root / "log.txt").open("a", buffering=1)
    made = student.make_student(
        Layout(artifact_root(artifacts or str(root))),
        UNLIKE_PAIRS if best else PAIRS,
        recipe,
        Progress(lambda line: lines.write(line + "\n")),
    )
    lines.write(f"done, unchanged={made.unchanged}, resumed at {made.manifest.extra['resumed_at']}\n")
