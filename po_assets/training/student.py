"""From the training rows and a recipe to the published adapter folder; free of Dagster.

Decides whether anything has to be done, refuses data that did not pass its gate, trains, and publishes in one step:
until the new adapter is whole, the previous one stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from po_assets.dataset.gate import refusal
from po_assets.errors import UserError
from po_assets.model import (
    ChatFormat,
    Precision,
    base_model_digest,
    choose_precision,
    ensure_base_model,
    load_base_model,
    load_tokenizer,
    require_hardware,
)
from po_assets.storage import (
    Layout,
    Manifest,
    atomic_directory,
    digest_of,
    file_digest,
    is_disk_full,
    published_directory,
    read_manifest,
    write_manifest,
)
from po_assets.storage.lock import LockedError, lock
from po_assets.training.adapter import CONFIG, WEIGHTS, add_adapter, trainable, write_adapter
from po_assets.training.checkpoints import CheckpointStore
from po_assets.training.data_parallel import is_leader
from po_assets.training.model_card import CARD, CardFacts, render_card
from po_assets.training.progress import Progress, StepRecord
from po_assets.training.recipe import Recipe
from po_assets.training.rows import tokenize_rows
from po_assets.training.training import Trained, memory_named, train

#: Version of everything that the trained weights depend on besides data and recipe; in their digest.
CODE_VERSION = "1"
LOG = "training_log.jsonl"


@dataclass(frozen=True)
class Student:
    """The published adapter."""

    folder: str
    manifest: Manifest
    log: list[StepRecord]
    unchanged: bool
    """Whether nothing had to be trained."""


@dataclass(frozen=True)
class _Plan:
    """What a training is made from."""

    recipe: Recipe
    precision: Precision
    base_folder: Path
    inputs: dict[str, str]

    @property
    def digest(self) -> str:
        """Digest of everything that the weights depend on."""
        settings = {**self.recipe.numerics(), "precision": self.precision.dtype}
        return digest_of({"inputs": self.inputs, "recipe": settings, "code": CODE_VERSION})


def make_student(layout: Layout, pairs: Sequence[tuple[str, str]], recipe: Recipe, progress: Progress) -> Student:
    """Train on (prompt, response) `pairs`, the content of `layout.supervised`, unless that was done already.

    Raises `UserError`, `UserError`, `UserError`, `UserError` or `UserError`; each message names the
    reason and the way out, and the adapter published before is untouched.
    """
    if recipe.num_workers > 1:
        from po_assets.training.ray_train import make_student_together

        return make_student_together(layout, pairs, recipe, progress)
    student = make_student_here(layout, pairs, recipe, progress)
    assert student is not None  # noqa: S101 - the only worker is the leader
    return student


def make_student_here(
    layout: Layout, pairs: Sequence[tuple[str, str]], recipe: Recipe, progress: Progress
) -> Student | None:
    """This process's part of `make_student`: all of it, or that of one worker, of whom one returns the student."""
    require_hardware(recipe.model)
    data_sha256 = file_digest(layout.supervised)
    if reason := refusal(layout.supervised_gate, data_sha256):
        raise UserError(reason)
    base_folder = ensure_base_model(recipe.model, layout)
    plan = _Plan(
        recipe,
        choose_precision(recipe.precision),
        base_folder,
        {"supervised_dataset": data_sha256, "base_model": base_model_digest(base_folder)},
    )
    with _training_lock(layout, progress.say) if is_leader() else nullcontext():
        if student := _published(layout, plan):
            progress.say("Unchanged: the adapter was made from the same data, recipe and base model; nothing to train.")
            if is_leader():
                CheckpointStore(layout.checkpoints, plan.digest, progress.say).clear()
            return student
        return _train_and_publish(layout, pairs, plan, progress)


def adapter_problem(adapter: UPath | Path, base_digest: str = "") -> str | None:
    """Why an adapter's folder is not what its manifest says, or None.

    With `base_digest`, that of a base model's folder, also whether it was trained on this very model.
    """
    folder = published_directory(adapter)
    manifest = read_manifest(folder)
    if manifest is None:
        return f"there is no finished adapter in {str(adapter)!r} (no manifest.json)"
    for name, digest in manifest.extra.get("files", {}).items():
        path = folder / name
        if not path.exists():
            return f"the file {name} is missing from {str(adapter)!r}"
        if file_digest(path) != digest:
            return f"the file {name} in {str(adapter)!r} was changed or damaged since it was published"
    if base_digest and manifest.inputs.get("base_model") != base_digest:
        return f"the adapter in {str(adapter)!r} was trained on another base model ({manifest.extra.get('base_model')})"
    return None


def read_log(layout: Layout) -> list[StepRecord]:
    """The training log of the published adapter."""
    lines = (published_directory(layout.adapter) / LOG).read_text().splitlines()
    return [StepRecord(**json.loads(line)) for line in lines]


def _published(layout: Layout, plan: _Plan) -> Student | None:
    manifest = read_manifest(layout.adapter)
    if manifest is None or manifest.config != plan.digest or adapter_problem(layout.adapter):
        return None
    return Student(str(published_directory(layout.adapter)), manifest, read_log(layout), unchanged=True)


def _train_and_publish(
    layout: Layout, pairs: Sequence[tuple[str, str]], plan: _Plan, progress: Progress
) -> Student | None:
    recipe = plan.recipe
    chat = ChatFormat(load_tokenizer(plan.base_folder))
    rows = tokenize_rows(pairs, chat, recipe.model.max_length)
    checkpoints = CheckpointStore(layout.checkpoints, plan.digest, progress.say)
    if is_leader():
        checkpoints.drop_leftovers()
    progress.say(f"Base model {recipe.model.name} in {plan.precision.dtype}: {plan.precision.reason}.")
    with memory_named(lambda: f"while {recipe.model.name} was loaded"):
        base = load_base_model(plan.base_folder, plan.precision, quantization=recipe.model.quantization)
        model = add_adapter(base, recipe, plan.base_folder)
    trained = train(model, rows, recipe, progress, checkpoints=checkpoints, pad_id=chat.eos_id)
    if not is_leader():
        return None
    parameters = sum(parameter.numel() for parameter in trainable(model).values())
    try:
        with atomic_directory(layout.adapter) as staging:
            write_adapter(model, staging)
            manifest = _complete(staging, layout, plan, trained, parameters=parameters, rows=len(rows))
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise UserError(
            f"The disk is full: the adapter could not be written to {str(layout.adapter)!r}. Free some space and "
            "materialize lora_adapter again; it goes on from the last checkpoint. The previous adapter is still "
            "in place."
        ) from error
    checkpoints.clear()
    return Student(str(published_directory(layout.adapter)), manifest, trained.log, unchanged=False)


def _complete(staging: Path, layout: Layout, plan: _Plan, trained: Trained, *, parameters: int, rows: int) -> Manifest:
    """Add log, card and manifest to the adapter's files."""
    log = trained.log
    files = {name: file_digest(staging / name) for name in (WEIGHTS, CONFIG)}
    supervised = read_manifest(layout.supervised)
    (staging / LOG).write_text("".join(json.dumps(asdict(record)) + "\n" for record in log))
    tail = log[-max(1, len(log) // 10) :]
    facts = CardFacts(
        base_folder=plan.base_folder,
        data_sha256=plan.inputs["supervised_dataset"],
        rows=rows,
        ledger=supervised.extra.get("outcomes", {}) if supervised else {},
        precision=f"{plan.precision.dtype} ({plan.precision.reason})",
        engine=trained.engine,
        steps=len(log),
        tokens=sum(record.tokens for record in log),
        seconds=sum(record.seconds for record in log),
        first_loss=log[0].loss,
        last_loss=sum(record.loss for record in tail) / len(tail),
        weights_sha256=files[WEIGHTS],
    )
    (staging / CARD).write_text(render_card(plan.recipe, facts), encoding="utf-8")
    extra: dict[str, Any] = {
        "files": files,
        "trainable_parameters": parameters,
        "resumed_at": trained.resumed_at,
        **{key: getattr(facts, key) for key in ("precision", "engine", "steps", "tokens", "seconds")},
        **{key: getattr(facts, key) for key in ("first_loss", "last_loss")},
        "base_model": plan.recipe.model.name,
        "base_folder": str(plan.base_folder),
    }
    # The base model's path in the configuration differs from machine to machine and says nothing about the student.
    settings = json.loads((staging / CONFIG).read_text()) | {"base_model_name_or_path": None}
    sha256 = digest_of({"weights": files[WEIGHTS], "settings": settings})
    manifest = Manifest(sha256, rows, plan.inputs, plan.digest, CODE_VERSION, extra)
    write_manifest(staging, manifest)
    return manifest


@contextmanager
def _training_lock(layout: Layout, say: Callable[[str], None]) -> Iterator[None]:
    """One training per artifact root at a time; the lock of a killed process is freed (at once on a file system)."""
    try:
        with lock(layout.adapter.parent / ".lora_adapter.lock"):
            yield
    except LockedError as error:
        raise UserError(
            f"Another run is training into {str(layout.adapter)!r} right now ({error}). Wait for it to end, then "
            "materialize lora_adapter again."
        ) from error
