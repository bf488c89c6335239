"""The training, top to bottom: rows in, trained LoRA matrices and a log out.

Loss is the cross-entropy of the answer and its end-of-sequence token, averaged over the tokens of an optimizer step.
AdamW on float32 matrices, gradient clipping, a schedule that is known in advance. The same rows, recipe and machine
give the same matrices to the last bit, also when the training is interrupted and resumed, and with any number of
rows side by side. What several workers (`num_workers`) train together differs from one worker's by rounding alone.
"""

from __future__ import annotations

import contextlib
import errno
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from po_assets.errors import UserError
from po_assets.training.adapter import trainable
from po_assets.training.checkpoints import Checkpoint, CheckpointStore
from po_assets.training.data_parallel import DataParallelEngine, is_leader
from po_assets.training.gradients import StepRow, make_engine
from po_assets.training.progress import Progress, StepRecord, peak_memory_gib
from po_assets.training.recipe import Recipe
from po_assets.training.rows import TrainingRow
from po_assets.training.schedule import Step, dropout_seed, plan_steps

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


@dataclass(frozen=True)
class Trained:
    """What came out of a training besides the model's changed matrices."""

    log: list[StepRecord]
    engine: str
    """In words, how gradients were computed."""
    resumed_at: int
    """Finished steps that a checkpoint spared; 0 for a training from the start."""


def train(
    model: PeftModel,
    rows: Sequence[TrainingRow],
    recipe: Recipe,
    progress: Progress,
    *,
    checkpoints: CheckpointStore | None = None,
    pad_id: int = 0,
) -> Trained:
    """Train the LoRA matrices of `model` in place.

    Raises `UserError` when the loss is no longer finite or memory runs out.
    """
    import torch

    parameters = trainable(model)
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=recipe.weight_decay, foreach=True
    )
    steps = plan_steps(len(rows), recipe)
    log: list[StepRecord] = []
    resumed = checkpoints.latest() if checkpoints else None
    if resumed:
        _restore(resumed, parameters, optimizer)
        log = list(resumed.log)
    start = len(log)
    saved = time.monotonic()
    engine = make_engine(
        model,
        list(parameters.values()),
        fast=recipe.fast_path,
        workers=recipe.workers,
        batch_size=recipe.batch_size,
        pad_id=pad_id,
    )
    if recipe.num_workers > 1:
        engine = DataParallelEngine(engine, list(parameters.values()))
    progress.say(
        f"Training on {len(rows):,} rows in {len(steps):,} steps of {recipe.rows_per_step} rows "
        f"({recipe.epochs:g} epochs); {engine.description}."
    )
    with engine:
        for step in steps[start:]:
            began = time.monotonic()
            with memory_named(partial(_in_step, step, rows)):
                loss = engine.compute([StepRow(rows[i], dropout_seed(recipe.seed, step.number, i)) for i in step.rows])
                norm = torch.nn.utils.clip_grad_norm_(parameters.values(), recipe.max_grad_norm).item()
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise UserError(
                        f"The loss of step {step.number + 1} is {loss} with gradient norm {norm}: the training "
                        f"diverged. Lower learning_rate (now {recipe.learning_rate:g}); the previous adapter is still "
                        "in place."
                    )
                for group in optimizer.param_groups:
                    group["lr"] = step.learning_rate
                optimizer.step()
                engine.parameters_changed()
            log.append(_record(step, steps, rows, recipe, loss=loss, norm=norm, seconds=time.monotonic() - began))
            progress.step(log[-1], sum(len(rows[i].ids) for later in steps[step.number + 1 :] for i in later.rows))
            last = step.number + 1 == len(steps)
            if checkpoints and is_leader() and (last or time.monotonic() - saved >= recipe.checkpoint_seconds):
                checkpoints.save(Checkpoint(step.number + 1, _state(parameters, optimizer), log))
                saved = time.monotonic()
    return Trained(log, engine.description, start)


def _record(
    step: Step,
    steps: Sequence[Step],
    rows: Sequence[TrainingRow],
    recipe: Recipe,
    *,
    loss: float,
    norm: float,
    seconds: float,
) -> StepRecord:
    seen = min((step.number + 1) * recipe.rows_per_step, sum(len(s.rows) for s in steps))
    return StepRecord(
        step=step.number + 1,
        steps=len(steps),
        epoch=seen / len(rows),
        loss=loss,
        learning_rate=step.learning_rate,
        grad_norm=norm,
        tokens=sum(len(rows[i].ids) for i in step.rows),
        trained_tokens=sum(rows[i].trained for i in step.rows),
        seconds=seconds,
        memory_gib=peak_memory_gib(),
    )


def _state(parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Everything a step depends on besides the plan: the matrices and the optimizer's two moments and step counts."""
    state = {f"parameter.{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        state |= {f"optimizer.{key}.{name}": value for key, value in optimizer.state[parameter].items()}
    return state


def _restore(
    checkpoint: Checkpoint, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(checkpoint.tensors[f"parameter.{name}"])
            optimizer.state[parameter] = {
                key: checkpoint.tensors[f"optimizer.{key}.{name}"].to(parameter.device if key != "step" else "cpu")
                for key in ("step", "exp_avg", "exp_avg_sq")
            }


@contextlib.contextmanager
def memory_named(where: Callable[[], str]) -> Iterator[None]:
    """Turn whatever says that memory ran out in the block into one `UserError`; `where` says in what."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not _is_out_of_memory(error):
            raise
        raise UserError(
            f"Memory ran out {where()}. {_less_memory()} and run lora_adapter again: it resumes from the last "
            "checkpoint where only workers changed. The previous adapter is still in place."
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """PyTorch has no type of its own for it on the CPU, and the system says it in an OSError where files are mapped."""
    import torch

    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(text in str(error).lower() for text in ("can't allocate memory", "cannot allocate memory"))


def _in_step(step: Step, rows: Sequence[TrainingRow]) -> str:
    return f"in step {step.number + 1}, whose longest row has {max(len(rows[i].ids) for i in step.rows):,} tokens"


def _less_memory() -> str:
    import torch

    if torch.cuda.is_available():
        return "Switch gradient_checkpointing on, lower batch_size, or lower max_length"
    return "Set workers to 1, or lower max_length"
