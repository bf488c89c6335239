"""From the training rows and a recipe to the published adapter folder.

Decides whether anything has to be done, refuses data that did not pass its gate, trains, in this process or by several
workers of Ray Train, and publishes in one step: until the new adapter is whole, the previous one stays.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

from po_assets.dag.compute import RAY_ON_LOOPBACK
from po_assets.dataset.publication import refusal
from po_assets.errors import UserError
from po_assets.model import (
    BaseModel,
    ChatTemplate,
    Precision,
    base_model_digest,
    choose_precision,
    decide_quantization,
    ensure_base_model,
    load_base_model,
    load_tokenizer,
    require_hardware,
)
from po_assets.product_owner.templates import BUILT_IN, Prompt
from po_assets.storage import (
    Layout,
    LockedError,
    Manifest,
    atomic_directory,
    digest_of,
    file_digest,
    is_disk_full,
    lock,
    published_directory,
    read_manifest,
    write_manifest,
)
from po_assets.storage.workers import available_cpus
from po_assets.text import Progress
from po_assets.training.adapter import (
    CARD,
    CONFIG,
    WEIGHTS,
    add_adapter,
    frozen_precision,
    render_card,
    trainable,
    write_adapter,
)
from po_assets.training.checkpoints import CheckpointStore, StepRecord
from po_assets.training.gradients import is_leader
from po_assets.training.handover import base_reference, write_handover
from po_assets.training.memory import memory_named
from po_assets.training.ray_workers import IN_RAY, connected, has_room, own_error, passed_on
from po_assets.training.rows import Prompts, TrainingRows, training_rows
from po_assets.training.settings import TrainingSettings
from po_assets.training.training import Trained, train, validation_sentence

if TYPE_CHECKING:
    from ray.util.queue import Queue

#: Version of everything that the trained weights depend on besides data and recipe; in their digest.
CODE_VERSION = "3"
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

    recipe: TrainingSettings
    precision: Precision
    base_folder: Path
    inputs: dict[str, str]
    prompts: Prompts

    @property
    def digest(self) -> str:
        """Digest of everything that the weights depend on."""
        settings = {**self.recipe.effective(), "precision": self.precision.dtype}
        if self.recipe.base_model.quantization == "auto":
            settings["quantization"] = decide_quantization(self.recipe.base_model)[0]
        parts = {"inputs": self.inputs, "recipe": settings, "code": CODE_VERSION}
        # The rows hold the user's turns; adapters made before there was another prompt stay valid.
        used = (self.prompts.own, *(self.prompts.consumers if self.recipe.prompt_mix else ()))
        return digest_of(parts | ({"prompts": [one.digest for one in used]} if used != (BUILT_IN,) else {}))


def make_student(
    layout: Layout,
    pairs: Sequence[tuple[str, str]],
    recipe: TrainingSettings,
    progress: Progress,
    prompts: Prompts = Prompts(),  # noqa: B008 - frozen
) -> Student:
    """Train on (prompt, response) `pairs`, the content of `layout.supervised`, unless that was done already.

    `prompts` are the one that the rows were written with, and others for the recipe's `prompt_mix`.

    Raises `UserError`, whose message names the reason and the way out; the adapter published before is untouched.
    """
    recipe = recipe.resolved()
    together = _make_together if recipe.num_workers > 1 else _make_here
    student = together(layout, pairs, recipe, progress, prompts)
    assert student is not None  # noqa: S101 - this process is the leader, or has the leader's student
    return student


def _make_here(
    layout: Layout, pairs: Sequence[tuple[str, str]], recipe: TrainingSettings, progress: Progress, prompts: Prompts
) -> Student | None:
    """This process's part of the work: all of it, or that of one worker, of whom one returns the student."""
    require_hardware(recipe.base_model)
    data_sha256 = file_digest(layout.supervised)
    if reason := refusal(layout.supervised_gate, data_sha256):
        raise UserError(reason)
    _refuse_other_prompt(layout, prompts.own)
    base_folder = ensure_base_model(recipe.base_model, layout)
    plan = _Plan(
        recipe,
        choose_precision(recipe.precision),
        base_folder,
        {"supervised_dataset": data_sha256, "base_model": base_model_digest(base_folder)},
        prompts,
    )
    with _training_lock(layout) if is_leader() else nullcontext():
        if student := _published(layout, plan):
            progress.say("Unchanged: the adapter was made from the same data, recipe and base model; nothing to train.")
            if is_leader():
                CheckpointStore(layout.checkpoints, plan.digest, progress.say).clear()
            return student
        return _train_and_publish(layout, pairs, plan, progress)


def _refuse_other_prompt(layout: Layout, own: Prompt) -> None:
    manifest = read_manifest(layout.supervised)
    written = (manifest.extra.get("prompt") if manifest else None) or {"name": BUILT_IN.name, "digest": BUILT_IN.digest}
    if written["digest"] != own.digest:
        raise UserError(
            f"The training rows were written with the prompt {written['name']!r} ({written['digest'][:12]}), and the "
            f"one set now is {own.name!r} ({own.digest[:12]}). Materialize supervised_dataset with its checks, then "
            "lora_adapter; or set the template (resource prompt) back."
        )


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
    chat = ChatTemplate(load_tokenizer(plan.base_folder))
    chosen = training_rows(pairs, chat, recipe, plan.prompts)
    if chosen.described:
        progress.say(chosen.described)
    checkpoints = CheckpointStore(layout.checkpoints, plan.digest, progress.say)
    if is_leader():
        checkpoints.drop_leftovers()
    with memory_named(lambda: f"while {recipe.base_model.name} was loaded"):
        quantization, why = decide_quantization(recipe.base_model)
        base = load_base_model(plan.base_folder, plan.precision, quantization=quantization)
        model = add_adapter(base, recipe, plan.base_folder)
    held = frozen_precision(model, plan.precision.torch_dtype)
    progress.say(f"Base model {recipe.base_model.name} in {held}: {plan.precision.reason}; {why}.")
    trained = train(
        model,
        chosen.rows,
        recipe,
        progress,
        checkpoints=checkpoints,
        comparisons=chosen.comparisons,
        documents=chosen.documents,
    )
    if not is_leader():
        return None
    parameters = sum(parameter.numel() for parameter in trainable(model).values())
    try:
        with atomic_directory(layout.adapter) as staging:
            write_adapter(model, staging, base_reference(recipe.base_model)["name"])
            write_handover(
                staging,
                recipe.base_model,
                plan.base_folder,
                chat,
                longest_answer=max(row.trained for row in chosen.rows),
                prompt=plan.prompts.own,
            )
            manifest = _complete(staging, layout, plan, trained, chosen, parameters=parameters)
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise UserError(
            f"The disk is full: the adapter could not be written to {str(layout.adapter)!r}. Free some space (up to "
            f"{parameters * 4 / 1e6:,.1f} MB are needed) and materialize lora_adapter again; it goes on from the last "
            "checkpoint. The previous adapter is still in place."
        ) from error
    checkpoints.clear()
    return Student(str(published_directory(layout.adapter)), manifest, trained.log, unchanged=False)


def _complete(
    staging: Path, layout: Layout, plan: _Plan, trained: Trained, chosen: TrainingRows, *, parameters: int
) -> Manifest:
    """Add log, card and manifest to the adapter's files."""
    log, rows, own = trained.log, len(chosen.rows), plan.prompts.own
    files = {path.name: file_digest(path) for path in sorted(staging.iterdir())}
    (staging / LOG).write_text("".join(json.dumps(asdict(record)) + "\n" for record in log))
    tail = log[-max(1, len(log) // 10) :]
    extra: dict[str, Any] = {
        "files": files,
        "trainable_parameters": parameters,
        # Of less than an epoch some rows are not seen; those of the validation loss never are.
        "rows_used": round(min(1.0, log[-1].epoch) * (rows - trained.validation_rows)),
        "resumed_at": trained.resumed_at,
        "precision": f"{plan.precision.dtype} ({plan.precision.reason})",
        "engine": trained.engine,
        "steps": len(log),
        "tokens": sum(record.tokens for record in log),
        "seconds": sum(record.seconds for record in log),
        "first_loss": log[0].loss,
        "last_loss": sum(record.loss for record in tail) / len(tail),
        "base_model": plan.recipe.base_model.name,
        "prompt": {"name": own.name, "digest": own.digest},
        "prompt_mix": chosen.described,
    }
    if trained.validation_rows:
        extra |= {
            "validation_rows": trained.validation_rows,
            "validation_loss": log[trained.published_step - 1].validation_loss,
            "published_step": trained.published_step,
        }
    # The base model's name says nothing about the student that its digest among the inputs does not.
    settings = json.loads((staging / CONFIG).read_text()) | {"base_model_name_or_path": None}
    sha256 = digest_of({"weights": files[WEIGHTS], "settings": settings})
    manifest = Manifest(sha256, rows, plan.inputs, plan.digest, CODE_VERSION, extra)
    supervised = read_manifest(layout.supervised)
    outcomes = supervised.extra.get("outcomes", {}) if supervised else {}
    validation = validation_sentence(log, trained.validation_rows, trained.published_step)
    (staging / CARD).write_text(render_card(plan.recipe, manifest, outcomes, validation), encoding="utf-8")
    write_manifest(staging, manifest)
    return manifest


@contextmanager
def _training_lock(layout: Layout) -> Iterator[None]:
    """One training per artifact root at a time; the lock of a killed process is freed (at once on a file system)."""
    try:
        with lock(layout.adapter.parent / ".lora_adapter.lock"):
            yield
    except LockedError as error:
        raise UserError(
            f"Another run is training into {str(layout.adapter)!r} right now ({error}). Wait for it to end, then "
            "materialize lora_adapter again."
        ) from error


# Several workers for one adapter. One worker needs no Ray.


@dataclass(frozen=True)
class _Work:
    """What every worker is sent."""

    layout: Layout
    pairs: Sequence[tuple[str, str]]
    recipe: dict[str, Any]  # settings are Dagster resources, which cannot be pickled
    model: dict[str, Any]
    said: Queue
    prompts: Prompts


def _make_together(
    layout: Layout, pairs: Sequence[tuple[str, str]], recipe: TrainingSettings, progress: Progress, prompts: Prompts
) -> Student | None:
    """The work done by `recipe.num_workers` workers of Ray Train, on this machine or a Ray cluster.

    A lost worker ends all of them; trained again, they go on from the last checkpoint. Raises `UserError` where Ray is
    missing or has too little for the workers.
    """
    try:
        os.environ.update({} if IN_RAY in os.environ else RAY_ON_LOOPBACK)  # Ray reads it when it is imported
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError
        from ray.util.queue import Queue
    except ImportError as error:
        raise UserError(
            f"num_workers is {recipe.num_workers}, and more than one worker needs Ray, which is not installed: "
            "make setup EXTRAS=ray, or set num_workers to 1."
        ) from error
    with connected(recipe.num_workers), tempfile.TemporaryDirectory(prefix="ray-train-") as folder:
        if not (on_gpus := has_room(recipe.num_workers)):
            require_hardware(recipe.base_model)
        ensure_base_model(recipe.base_model, layout)  # once, before every worker does
        said = Queue(actor_options={"num_cpus": 0})
        trainer = TorchTrainer(
            _work,
            train_loop_config={
                "work": _Work(
                    layout, pairs, recipe.values() | {"base_model": None}, recipe.base_model.values(), said, prompts
                )
            },
            scaling_config=ScalingConfig(num_workers=recipe.num_workers, use_gpu=on_gpus),
            run_config=RunConfig(
                name="lora_adapter",
                storage_path=folder,
                # Ray shows all GPUs to workers that asked for none.
                worker_runtime_env={} if on_gpus else {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}},
            ),
        )
        progress.say(f"Starting {recipe.num_workers} workers with Ray Train, each on {'a GPU' if on_gpus else 'CPUs'}.")
        with passed_on(said, progress):
            try:
                student: Student = trainer.fit().return_value
            except TrainingFailedError as error:
                raise own_error(error) or error from None
    return student


def _work(config: dict[str, Any]) -> Student | None:
    """A worker's part, in a process of its own."""
    import ray.train

    work: _Work = config["work"]
    context = ray.train.get_context()
    cores = max(1, available_cpus() // context.get_local_world_size())
    progress = Progress(lambda _line: None)
    if context.get_world_rank() == 0:
        progress = Progress(work.said.put, work.said.put)
    settings = work.recipe | {"workers": work.recipe["workers"] or cores, "base_model": BaseModel(**work.model)}
    return _make_here(work.layout, work.pairs, TrainingSettings(**settings), progress, work.prompts)
