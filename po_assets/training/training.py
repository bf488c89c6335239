"""The training, top to bottom: rows in, trained LoRA matrices and a log out.

Loss is the cross-entropy of the answer and its end-of-sequence token, averaged over the tokens of an optimizer step.
AdamW on float32 matrices, gradient clipping, a plan of steps that is known in advance. The same rows, recipe and
processor give the same matrices to the last bit, also when the training is interrupted and resumed, and with any number
of rows side by side. On a GPU the same seeds draw the same rows and masks, but sums are rounded in an order that is not
fixed (atomic additions), so that two trainings agree to a few digits; so do one worker's and several (`num_workers`).
"""

from __future__ import annotations

import contextlib
import errno
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import psutil

from po_assets.errors import UserError
from po_assets.text import Progress, duration
from po_assets.training.adapter import trainable
from po_assets.training.checkpoints import Checkpoint, CheckpointStore, StepRecord
from po_assets.training.gradients import DataParallelEngine, StepRow, TokenizedRow, is_leader, make_engine
from po_assets.training.settings import TrainingSettings

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
    rows: Sequence[TokenizedRow],
    recipe: TrainingSettings,
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
            left = sum(len(rows[i].ids) for later in steps[step.number + 1 :] for i in later.rows)
            _report(progress, log, start, left)
            last = step.number + 1 == len(steps)
            if checkpoints and is_leader() and (last or time.monotonic() - saved >= recipe.checkpoint_seconds):
                checkpoints.save(Checkpoint(step.number + 1, _state(parameters, optimizer), log))
                saved = time.monotonic()
    return Trained(log, engine.description, start)


def _record(
    step: Step,
    steps: Sequence[Step],
    rows: Sequence[TokenizedRow],
    recipe: TrainingSettings,
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


def _report(progress: Progress, log: Sequence[StepRecord], start: int, tokens_left: int) -> None:
    """A log line and numbers to plot of the newest step, when they are due."""
    record, own = log[-1], log[start:]
    if not progress.due(last=record.step == record.steps):
        return
    seconds = sum(r.seconds for r in own)
    speed = sum(r.tokens for r in own) / seconds if seconds > 0 else math.nan
    progress.say(
        f"step {record.step}/{record.steps}, epoch {record.epoch:.2f}, loss {record.loss:.3f}, "
        f"{speed:,.0f} tokens/s, {duration(tokens_left / speed)} left, {record.memory_gib:.1f} GiB"
    )
    numbers = {key: float(value) for key, value in asdict(record).items() if key not in ("steps", "seconds")}
    progress.observe({f"train/{key}": value for key, value in numbers.items()} | {"train/tokens_per_second": speed})


def peak_memory_gib() -> float:
    """Highest use of GPU memory by this process, or of main memory without a GPU, in GiB."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 2**30)
    return float(psutil.Process().memory_info().rss / 2**30)


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


# The plan: which rows make which step, with which learning rate; all of it known before training starts.


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    number: int
    """From 0."""
    epoch: int
    """Epoch of its first row, from 0."""
    rows: tuple[int, ...]
    """Indices of its rows, in seeded order."""
    learning_rate: float


def plan_steps(row_count: int, recipe: TrainingSettings) -> list[Step]:
    """All steps of a training on `row_count` rows.

    Every epoch passes over all rows in its own seeded order; a fractional epoch stops part way. Steps are filled across
    the border of epochs, so that only the last one can be smaller.
    """
    wanted = max(1, round(recipe.epochs * row_count))
    order: list[int] = []
    epoch = 0
    while len(order) < wanted:
        rows = list(range(row_count))
        random.Random(f"{recipe.seed}:{epoch}").shuffle(rows)  # noqa: S311  # reproducible, not secret
        order += rows
        epoch += 1
    order = order[:wanted]
    size = recipe.rows_per_step
    count = math.ceil(wanted / size)
    return [
        Step(
            number=i,
            epoch=i * size // row_count,
            rows=tuple(order[i * size : (i + 1) * size]),
            learning_rate=learning_rate(i, count, recipe),
        )
        for i in range(count)
    ]


def learning_rate(step: int, steps: int, recipe: TrainingSettings) -> float:
    """Linear warm-up over ceil(warmup_ratio * steps) steps, then the recipe's scheduler down to 0.

    As `get_cosine_schedule_with_warmup` of transformers, except that the first step already learns
    ((step + 1) / warm-up): with few steps, one of learning rate 0 is a wasted one.
    """
    warmup = math.ceil(recipe.warmup_ratio * steps)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    match recipe.scheduler:
        case "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            factor = 1 - progress
        case _:
            factor = 1.0
    return recipe.learning_rate * factor


def dropout_seed(seed: int, step: int, row: int) -> int:
    """Seed of a row's dropout masks: the same for a resumed run and for any number of workers."""
    return random.Random(f"{seed}:{step}:{row}").getrandbits(63)  # noqa: S311


# Memory that runs out.


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


def _in_step(step: Step, rows: Sequence[TokenizedRow]) -> str:
    return f"in step {step.number + 1}, whose longest row has {max(len(rows[i].ids) for i in step.rows):,} tokens"


def _less_memory() -> str:
    import torch

    if torch.cuda.is_available():
        return "Switch gradient_checkpointing on, lower batch_size, or lower max_length"
    return "Set workers to 1, or lower max_length"
