"""A small training for tests: a tiny random model, a dozen short rows, an artifact root as `supervised_dataset` leaves it."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from upath import UPath

from po_assets.model import BaseModel, ChatTemplate, load_base_model, load_tokenizer
from po_assets.storage import Layout, Manifest, file_digest, write_manifest
from po_assets.text import Progress
from po_assets.training.adapter import add_adapter
from po_assets.training.rows import Prompts, TokenizedRow, tokenize_rows
from po_assets.training.settings import TrainingSettings
from po_assets.training.student import Student, make_student
from po_assets.training.training import Trained, train
from po_assets_tests.model.tiny_model import make_tiny_model

FULL_DISK = [
    OSError(errno.ENOSPC, "No space left on device"),
    # As safetensors says it, word for word, on a file system that is full.
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]
PAIRS = [(f"product {i}: {'a lamp ' * (i % 4 + 1)}", f"status aligned {'x' * (i % 5)} end") for i in range(12)]
# The rows that `OVERFITTING` holds out have answers that no other row teaches: their loss falls, and then it rises.
UNLIKE_PAIRS = [
    (prompt, f"status {'QZJV' * 12}" if i in {2, 5, 6} else answer) for i, (prompt, answer) in enumerate(PAIRS)
]
OVERFITTING = {"epochs": 5.0, "validation_share": 0.25, "keep_best": True}


def make_recipe(base: dict[str, Any] | None = None, **settings: Any) -> TrainingSettings:
    """A complete recipe; `base` are the base model's settings."""
    return TrainingSettings(base_model=BaseModel(**(base or {})), **settings).resolved()


def tiny_recipe(folder: Path, **settings: Any) -> TrainingSettings:
    """Settings with which 12 rows make 6 steps in well under a second."""
    defaults = {"rank": 4, "alpha": 8, "learning_rate": 1e-2, "epochs": 2.0, "gradient_accumulation": 4}
    base = {"base_model": str(folder), "max_length": settings.pop("max_length", 2048)}
    return make_recipe(base, **{"precision": "float32", **defaults, **settings})


def tiny_rows(folder: Path, pairs: list[tuple[str, str]] = PAIRS) -> list[TokenizedRow]:
    """The pairs as tokens."""
    return tokenize_rows(pairs, ChatTemplate(load_tokenizer(folder)), 2048)


def tiny_student(folder: Path, recipe: TrainingSettings) -> Any:
    """The tiny model with fresh LoRA matrices."""
    return add_adapter(load_base_model(folder, recipe.precision, device="cpu"), recipe, folder)


class Run(NamedTuple):
    """A training that is done: what came out, the model with its matrices, what was said and observed."""

    trained: Trained
    model: Any
    said: list[str]
    observed: list[dict[str, float]]

    @property
    def losses(self) -> list[float]:
        """Of each step."""
        return [record.loss for record in self.trained.log]


def run_training(folder: Path, checkpoints: Any = None, rows: list[TokenizedRow] | None = None, **settings: Any) -> Run:
    """Train the tiny model, on the rows of `PAIRS` unless others are given."""
    recipe = tiny_recipe(folder, **settings)
    model = tiny_student(folder, recipe)
    said: list[str] = []
    observed: list[dict[str, float]] = []
    progress = Progress(said.append, observed.append)
    trained = train(model, rows or tiny_rows(folder), recipe, progress, checkpoints=checkpoints)
    return Run(trained, model, said, observed)


def publish(
    layout: Layout, pairs: list[tuple[str, str]] = PAIRS, prompts: Prompts | None = None, **settings: Any
) -> tuple[Student, list[str]]:
    """The student made from the supervised dataset of `make_artifacts`, and what was said."""
    said: list[str] = []
    recipe = tiny_recipe(Path(str(layout.root)) / "tiny", **settings)
    return make_student(layout, pairs, recipe, Progress(said.append), prompts or Prompts()), said


def make_artifacts(root: Path) -> Layout:
    """An artifact root with a supervised dataset whose gate passed, and a tiny base model beside it."""
    layout = Layout(UPath(root))
    layout.supervised.parent.mkdir(parents=True)
    write_supervised(layout, PAIRS)
    make_tiny_model(root / "tiny")
    return layout


def write_supervised(layout: Layout, pairs: list[tuple[str, str]], *, passed: bool = True) -> None:
    """Write training rows with their manifest and the gate record that their checks would leave."""
    lines = [json.dumps({"prompt": prompt, "response": response}) + "\n" for prompt, response in pairs]
    layout.supervised.write_text("".join(lines))
    sha256 = file_digest(layout.supervised)
    outcomes = {"kept": len(pairs), "below_min_score": 3}
    write_manifest(layout.supervised, Manifest(sha256, len(pairs), extra={"outcomes": outcomes}))
    check = {"passed": passed, "severity": "ERROR", "summary": "2 of 12 rows are in a wrong form."}
    record = {"sha256": sha256, "passed": passed, "checks": {"schema": check}, "time": "2026-11-22T12:00:00"}
    layout.supervised_gate.write_text(json.dumps(record))
