"""The training, top to bottom: rows in, trained LoRA matrices and a log out.

Loss is the cross-entropy of the answer and its end-of-sequence token, averaged over the tokens of an optimizer step.
AdamW on float32 matrices, gradient clipping, a plan of steps that is known in advance. The same rows, recipe and
processor give the same matrices to the last bit, also when the training is interrupted and resumed, and with any number
of rows side by side. On a GPU the same seeds draw the same rows and masks, but sums are rounded in an order that is not
fixed (atomic additions in attention's backward pass), so that two trainings agree to a few digits, unless the recipe
asks for `deterministic` algorithms: then the same card and versions give the same matrices. One worker's and several
(`num_workers`) agree to a few digits.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, cast

import psutil

from po_assets.errors import UserError
from po_assets.text import Progress, amount, duration
from po_assets.training.adapter import trainable
from po_assets.training.checkpoints import Checkpoint, CheckpointStore, StepRecord
from po_assets.training.gradients import DataParallelEngine, StepRow, is_leader, make_engine
from po_assets.training.memory import memory_named
from po_assets.training.rows import TokenizedRow, split_rows
from po_assets.training.settings import TrainingSettings

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


_MEASUREMENTS = 10
"""Of the validation loss in a training."""
_BEST = "best."
"""Before the name of a matrix in a checkpoint: as it was at the lowest validation loss."""
_FIRST = 0.75  # of the comparisons come before all rows; measured, docs/judgement.md
_SHORT = 2  # times as many of them make a step there, since they are so much shorter than rows


@dataclass(frozen=True)
class Trained:
    """What came out of a training besides the model's changed matrices."""

    log: list[StepRecord]
    engine: str
    """In words, how gradients were computed."""
    resumed_at: int
    """Finished steps that a checkpoint spared; 0 for a training from the start."""
    validation_rows: int
    """Rows that were not trained but measured."""
    published_step: int
    """The step after which the matrices are these: the last one, or with `keep_best` that of the lowest loss."""


def train(
    model: PeftModel,
    rows: Sequence[TokenizedRow],
    recipe: TrainingSettings,
    progress: Progress,
    *,
    checkpoints: CheckpointStore | None = None,
    comparisons: Sequence[TokenizedRow] = (),
    documents: Sequence[TokenizedRow] = (),
) -> Trained:
    """Train the LoRA matrices of `model` in place, on `rows` in epochs and on the lessons, once each.

    Raises `UserError` when the loss is no longer finite, memory runs out, or no prompt is left to be held out.
    """
    import torch

    rows, held = split_rows(rows, recipe)
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=recipe.weight_decay, foreach=True
    )
    steps = plan_steps(len(rows), recipe, comparisons=len(comparisons), documents=len(documents))
    own, rows = len(rows), [*rows, *comparisons, *documents]
    log: list[StepRecord] = []
    best: dict[str, torch.Tensor] = {}
    resumed = checkpoints.latest() if checkpoints else None
    if resumed:
        _restore(resumed, parameters, optimizer)
        log, best = list(resumed.log), {k: v for k, v in resumed.tensors.items() if k.startswith(_BEST)}
    start = len(log)
    saved = time.monotonic()
    engine = make_engine(
        model,
        list(parameters.values()),
        fast=recipe.fast_path,
        workers=recipe.workers,
        pack_tokens=recipe.pack_tokens,
        checkpointing=recipe.gradient_checkpointing,
        longest=max(len(row.ids) for row in rows),
    )
    if recipe.num_workers > 1:
        engine = DataParallelEngine(engine, list(parameters.values()))
    made = f", {len(comparisons):,} comparisons and {len(documents):,} documents of lessons" if len(rows) > own else ""
    progress.say(
        f"Training on {_shown_rows(steps, own)}{made} in {amount(len(steps), 'step')} of "
        f"{amount(recipe.rows_per_step, 'row')} ({recipe.epochs:g} epochs"
        f"{', in which documents count as rows' if documents else ''}); {engine.description}."
        + (f" Held out for the validation loss: {amount(len(held), 'row')} of other prompts." if held else "")
    )
    with _algorithms(recipe), checkpoints or contextlib.nullcontext(), engine:
        for step in steps[start:]:
            began = time.monotonic()
            with memory_named(partial(_in_step, step, rows)):
                loss = engine.compute([StepRow(rows[i], dropout_seed(recipe.seed, step.number, i)) for i in step.rows])
                norm = torch.nn.utils.clip_grad_norm_(parameters.values(), recipe.max_grad_norm).item()
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise _diverged(
                        f"The loss of step {step.number + 1} is {loss} with gradient norm {norm}",
                        recipe,
                        untrained=step.number == 0 and not math.isfinite(loss),
                    )
                for group in optimizer.param_groups:
                    group["lr"] = step.learning_rate
                optimizer.step()
                engine.parameters_changed()
            log.append(_record(step, steps, rows, loss=loss, norm=norm, seconds=time.monotonic() - began))
            if held and _is_measured(log[-1]):
                with memory_named(lambda: "while the validation loss was measured"):
                    measured = engine.measure(held)
                if not math.isfinite(measured):
                    raise _diverged(f"The validation loss after step {step.number + 1} is {measured}", recipe)
                log[-1] = replace(log[-1], validation_loss=measured)
                if recipe.keep_best and best_record(log) is log[-1]:
                    best = {f"{_BEST}{name}": parameter.detach().clone() for name, parameter in parameters.items()}
            left = sum(len(rows[i].ids) for later in steps[step.number + 1 :] for i in later.rows)
            _report(progress, log, start, left)
            last = step.number + 1 == len(steps)
            if checkpoints and is_leader() and (last or time.monotonic() - saved >= recipe.checkpoint_seconds):
                # The last one must be there before anything is published; so must each, where every step's is wanted.
                beside = not last and recipe.checkpoint_seconds > 0
                checkpoints.save(Checkpoint(step.number + 1, _state(parameters, optimizer) | best, log), beside=beside)
                saved = time.monotonic()
    published = log[-1]
    if best and (lowest := best_record(log)):
        published = lowest
        _take_best(parameters, best, published, progress)
    return Trained(log, engine.description, start, len(held), published.step)


def _take_best(
    parameters: dict[str, torch.nn.Parameter], best: dict[str, torch.Tensor], published: StepRecord, progress: Progress
) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(best[f"{_BEST}{name}"])
    progress.say(
        f"The matrices after step {published.step} are published: their validation loss, "
        f"{published.validation_loss:.3f}, is the lowest."
    )


def best_record(log: Sequence[StepRecord]) -> StepRecord | None:
    """The step of the lowest validation loss, the first of several; None where none was measured."""
    measured = [record for record in log if record.validation_loss is not None]
    return min(measured, key=lambda record: cast("float", record.validation_loss), default=None)


def validation_sentence(log: Sequence[StepRecord], rows: int, published: int) -> str:
    """The validation loss in words, and which step's matrices were published; empty where none was measured."""
    lowest, last = best_record(log), log[-1]
    if lowest is None:
        return ""
    return (
        f"The validation loss on {amount(rows, 'row')} of prompts that were not trained was lowest after step "
        f"{lowest.step:,} ({lowest.validation_loss:.3f}) and ended at {last.validation_loss:.3f}; the adapter is that "
        f"of step {published:,}."
    )


def _is_measured(record: StepRecord) -> bool:
    """Whether the validation loss is due after this step: evenly spread, the last time at the end."""
    return record.step * _MEASUREMENTS // record.steps > (record.step - 1) * _MEASUREMENTS // record.steps


def _diverged(what: str, recipe: TrainingSettings, *, untrained: bool = False) -> UserError:
    if untrained:
        return UserError(
            f"{what}, before anything was learned: the base model's weights are damaged, or too large for the "
            "precision. Get them again, or set precision to float32; the previous adapter is still in place."
        )
    return UserError(
        f"{what}: the training diverged. Lower learning_rate (now {recipe.learning_rate:g}); the previous adapter is "
        "still in place."
    )


@contextlib.contextmanager
def _algorithms(recipe: TrainingSettings) -> Iterator[None]:
    """PyTorch's deterministic algorithms where the recipe asks for them; it raises where there is none."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may sum in another order
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _record(
    step: Step,
    steps: Sequence[Step],
    rows: Sequence[TokenizedRow],
    *,
    loss: float,
    norm: float,
    seconds: float,
) -> StepRecord:
    return StepRecord(
        step=step.number + 1,
        steps=len(steps),
        epoch=step.epoch,
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
    measured = "" if record.validation_loss is None else f", validation loss {record.validation_loss:.3f}"
    if not progress.due(last=bool(measured) or record.step == record.steps):
        return
    seconds = sum(r.seconds for r in own)
    speed = sum(r.tokens for r in own) / seconds if seconds > 0 else math.nan
    progress.say(
        f"step {record.step}/{record.steps}, epoch {record.epoch:.2f}, loss {record.loss:.3f}{measured}, "
        f"{speed:,.0f} tokens/s, {duration(tokens_left / speed)} left, {record.memory_gib:.1f} GiB"
    )
    progress.observe(record.numbers | {"train/tokens_per_second": speed})


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

    # Copies lie in memory as PyTorch allocates it, as in a training that was not interrupted: what was read from a file
    # lies where it happens to, and kernels may round by where a tensor begins.
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(checkpoint.tensors[f"parameter.{name}"])
            optimizer.state[parameter] = {
                key: checkpoint.tensors[f"optimizer.{key}.{name}"].to(
                    parameter.device if key != "step" else "cpu", copy=True
                )
                for key in ("step", "exp_avg", "exp_avg_sq")
            }


# The plan: which rows make which step, with which learning rate; all of it known before training starts.


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    number: int
    """From 0."""
    epoch: float
    """Passes over the rows that are complete when it ends."""
    rows: tuple[int, ...]
    """Indices of its rows, in seeded order."""
    learning_rate: float


def _shown_rows(steps: Sequence[Step], own: int) -> str:
    """How many of the `own` rows the steps show; documents of lessons take the place of the others."""
    shown = len({row for step in steps for row in step.rows if row < own})
    return amount(own, "row") if shown == own else f"{shown:,} of {amount(own, 'row')}"


def plan_steps(row_count: int, recipe: TrainingSettings, *, comparisons: int = 0, documents: int = 0) -> list[Step]:
    """All steps of a training on `row_count` rows, whose indices are followed by those of comparisons and documents.

    Every epoch passes over all rows in its own seeded order; a fractional epoch stops part way. A document takes the
    place of a row. Most comparisons come first, as the shortest lesson, in steps of their own; the rest and the
    documents, each once, stand among the rows. Steps are filled across the border of epochs.
    """
    wanted = max(1, round(recipe.epochs * row_count) - documents)
    order: list[int] = []
    epoch = 0
    while len(order) < wanted:
        rows = list(range(row_count))
        random.Random(f"{recipe.seed}:{epoch}").shuffle(rows)  # noqa: S311
        order += rows
        epoch += 1
    order = order[:wanted]
    first = round(comparisons * _FIRST)
    if comparisons or documents:
        order += range(row_count + first, row_count + comparisons + documents)
        random.Random(f"{recipe.seed}:among").shuffle(order)  # noqa: S311
    size = recipe.rows_per_step
    short = range(row_count, row_count + first)
    batches = [tuple(short[i : i + _SHORT * size]) for i in range(0, first, _SHORT * size)]
    batches += [tuple(order[i : i + size]) for i in range(0, len(order), size)]
    passed = itertools.accumulate(sum(index < row_count for index in batch) for batch in batches)
    return [
        Step(number=i, epoch=done / row_count, rows=batch, learning_rate=learning_rate(i, len(batches), recipe))
        for i, (batch, done) in enumerate(zip(batches, passed, strict=True))
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


def _in_step(step: Step, rows: Sequence[TokenizedRow]) -> str:
    return f"in step {step.number + 1}, whose longest row has {max(len(rows[i].ids) for i in step.rows):,} tokens"
