"""The gradient of one optimizer step: the engines that compute it.

All engines give the gradient of the same loss, the mean cross-entropy over all trained tokens of the step's rows, each
with its weight, whatever the number of rows, batches or workers: the fast path on a CPU, the model's own forward pass,
and several workers that each compute their share. The rows come from `rows`.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from po_assets.storage.workers import available_cpus
from po_assets.text import amount
from po_assets.training.memory import Passes, free_bytes, plan_passes
from po_assets.training.rows import TokenizedRow

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from po_assets.model.cpu import FastPath


@dataclass(frozen=True)
class Batch:
    """Rows one behind the other, without padding; the tensors are (1, tokens of all rows)."""

    ids: torch.Tensor
    positions: torch.Tensor
    """From 0 in each row."""
    token_weights: torch.Tensor
    """As `TokenizedRow.token_weights`: the first of each row is in its prompt, so that no row predicts the next's."""
    starts: torch.Tensor
    """Where each row begins, and the end: int32, (rows + 1,)."""


def collate(rows: Sequence[TokenizedRow]) -> Batch:
    """The rows as one sequence."""
    import torch

    lengths = [len(row.ids) for row in rows]
    return Batch(
        ids=torch.tensor([[token for row in rows for token in row.ids]]),
        positions=torch.tensor([[place for length in lengths for place in range(length)]]),
        token_weights=torch.tensor([[weight for row in rows for weight in row.token_weights]]),
        starts=torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32),
    )


def packed(rows: Sequence[StepRow], tokens: int) -> list[list[StepRow]]:
    """The rows in as few passes of at most so many tokens as first fit finds; a longer row goes alone."""
    passes: list[list[StepRow]] = []
    left: list[int] = []
    for item in sorted(rows, key=lambda item: -len(item.row.ids)):
        length = len(item.row.ids)
        place = next((i for i, room in enumerate(left) if length <= room), len(left))
        if place == len(left):
            passes.append([])
            left.append(tokens)
        passes[place].append(item)
        left[place] -= length
    return passes


@dataclass(frozen=True)
class StepRow:
    """A row of a step with the seed of its dropout masks."""

    row: TokenizedRow
    seed: int


class GradientEngine(ABC):
    """Computes a step's gradient into `.grad` of the trained parameters; a context while training lasts."""

    description: str
    """In words, how."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:  # noqa: B027
        """Release what the training held."""

    @abstractmethod
    def compute(self, rows: Sequence[StepRow]) -> float:
        """Set the gradients and return the mean loss per trained token."""

    @abstractmethod
    def measure(self, rows: Sequence[TokenizedRow]) -> float:
        """The mean loss per answer token of the rows, without dropout; no gradient is touched."""

    def parameters_changed(self) -> None:  # noqa: B027 - most engines read the parameters anew every time
        """To be called after every optimizer step."""


def make_engine(
    model: PeftModel,
    parameters: Sequence[torch.nn.Parameter],
    *,
    fast: bool = True,
    workers: int = 0,
    pack_tokens: int | None = None,
    checkpointing: bool | None = None,
    longest: int = 0,
) -> GradientEngine:
    """The fast engine where it applies and is wanted, else the plain one; its `description` says which and why.

    Where `pack_tokens` or `checkpointing` are open, the GPU's memory and the `longest` row (tokens) decide.
    """
    from po_assets.model.cpu import fast_training

    path = fast_training(model) if fast else "the recipe switches it off"
    if isinstance(path, str):
        return PlainEngine(model, parameters, path, longest, pack_tokens=pack_tokens, checkpointing=checkpointing)
    return FastEngine(path, parameters, workers or available_cpus())


class FastEngine(GradientEngine):
    """Rows side by side, each on one thread of its own.

    Small matrix products gain little from a second thread, and every one of the thousands of operations of a row would
    wait for it; a whole row per thread needs no waiting (measured: 1.15 times the tokens a second on 2 free cores, and
    over 10 times on cores that are shared with other work). The gradients are summed in the order of the rows, so that
    the result depends neither on the number of workers nor on which is done first.
    """

    def __init__(self, path: FastPath, parameters: Sequence[torch.nn.Parameter], workers: int) -> None:
        self._path = path
        self._parameters = list(parameters)
        self._workers = workers
        self.description = f"fast path, {amount(workers, 'row')} side by side"

    def __enter__(self) -> Self:
        import torch

        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        # PyTorch would tell a new thread only at its first parallel loop; what comes before has all cores.
        self._pool = ThreadPoolExecutor(self._workers, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(self, *exc: object) -> None:
        import torch

        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads_before)
        _give_back_memory()

    def compute(self, rows: Sequence[StepRow]) -> float:  # noqa: D102
        import torch

        weight = sum(item.row.weight for item in rows)
        # Longest first, so that the workers finish together; ties keep their order.
        order = sorted(rows, key=lambda item: -len(item.row.ids))
        futures = deque(self._pool.submit(self._row, item) for item in order)
        loss, total = futures.popleft().result()
        while futures:  # each is dropped when it was added: a gradient is as large as the adapter
            row_loss, gradients = futures.popleft().result()
            loss += row_loss
            torch._foreach_add_(total, gradients)
        torch._foreach_div_(total, weight)
        for parameter, gradient in zip(self._parameters, total, strict=True):
            parameter.grad = gradient
        if self._path.computed_twice(len(order[0].row.ids)):
            _give_back_memory()
        return loss / weight

    def measure(self, rows: Sequence[TokenizedRow]) -> float:  # noqa: D102
        order = sorted(rows, key=lambda row: -len(row.ids))
        return sum(self._pool.map(self._loss, order)) / sum(row.weight for row in rows)

    def parameters_changed(self) -> None:  # noqa: D102
        self._path.refresh()

    def _loss(self, row: TokenizedRow) -> float:
        import torch

        with torch.no_grad():  # each thread has its own switch
            return float(self._path.answer_loss(torch.tensor(row.ids), torch.tensor(row.token_weights), None))

    def _row(self, item: StepRow) -> tuple[float, list[torch.Tensor]]:
        import torch

        row = item.row
        loss = self._path.answer_loss(torch.tensor(row.ids), torch.tensor(row.token_weights), item.seed)
        return loss.item(), list(torch.autograd.grad(loss, self._parameters))


def _give_back_memory() -> None:
    """Return freed memory to the system: glibc keeps a heap for each thread, whose gaps only grow."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


class PlainEngine(GradientEngine):
    """The model's own layers: on GPUs, and for models that the fast path does not know.

    Rows are packed into one pass one behind the other where the model is one of those that `model.packed` knows, and
    the loss is taken in slices of the vocabulary's logits; else each row goes alone.
    """

    def __init__(
        self,
        model: PeftModel,
        parameters: Sequence[torch.nn.Parameter],
        reason: str,
        longest: int = 0,
        *,
        pack_tokens: int | None = None,
        checkpointing: bool | None = None,
    ) -> None:
        from po_assets.model.packed import packing_problem

        self._model, self._parameters = model, list(parameters)
        self._inner: Any = model.get_base_model()
        self._device = self._parameters[0].device
        problem = packing_problem(self._inner)
        self._packs = problem is None
        if problem:
            plan = Passes(1, bool(checkpointing), f"one row a pass, since {problem}")
        else:
            free = free_bytes(self._inner, self._device)
            plan = plan_passes(self._inner, longest, pack_tokens=pack_tokens, checkpointing=checkpointing, free=free)
        self._tokens = plan.tokens
        if plan.recompute:
            self._inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self._inner.enable_input_require_grads()
        self.description = f"plain path ({reason}), {plan.described}"

    def compute(self, rows: Sequence[StepRow]) -> float:  # noqa: D102
        weight = sum(item.row.weight for item in rows)
        for parameter in self._parameters:
            parameter.grad = None
        loss = 0.0
        with self._attention():
            for items in packed(rows, self._tokens):
                part = self._loss(items) / weight
                part.backward()
                loss += part.item()
        return loss

    def measure(self, rows: Sequence[TokenizedRow]) -> float:  # noqa: D102
        import torch

        self._model.eval()
        with torch.no_grad(), self._attention():
            passes = packed([StepRow(row, 0) for row in rows], self._tokens)
            loss = sum(float(self._loss(items)) for items in passes) / sum(row.weight for row in rows)
        self._model.train()
        return loss

    def _attention(self) -> contextlib.AbstractContextManager[None]:
        from po_assets.model.packed import packed_rows

        return packed_rows(self._inner) if self._packs else contextlib.nullcontext()

    def _loss(self, items: Sequence[StepRow]) -> torch.Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        from po_assets.model.cpu import linear_cross_entropy

        torch.manual_seed(items[0].seed)  # also seeds CUDA
        batch = collate([item.row for item in items])
        # Only what predicts a trained token needs logits.
        predicting = batch.token_weights[0, 1:].nonzero()[:, 0]
        ids, kept = batch.ids.to(self._device), predicting.to(self._device)
        targets, weights = ids[0, kept + 1], batch.token_weights[0, predicting + 1].to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._inner.dtype == torch.bfloat16):
            if not self._packs:
                logits = self._model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits[0]
                return (cross_entropy(logits.float(), targets, reduction="none") * weights).sum()
            starts = batch.starts.to(self._device)
            hidden = self._inner.model(
                input_ids=ids,
                position_ids=batch.positions.to(self._device),
                use_cache=False,
                cu_seq_lens_q=starts,
                cu_seq_lens_k=starts,
                max_length_q=max(len(item.row.ids) for item in items),
                max_length_k=max(len(item.row.ids) for item in items),
            ).last_hidden_state[0]
        head = self._inner.get_output_embeddings().weight
        return linear_cross_entropy(hidden[kept].to(head.dtype), head, targets, weights)


class OutOfStepError(RuntimeError):
    """The workers are not at the same step of the same training."""


def is_leader() -> bool:
    """Whether this process is the only worker, or the one of rank 0."""
    import torch.distributed as group

    return not (group.is_available() and group.is_initialized()) or group.get_rank() == 0


class DataParallelEngine(GradientEngine):
    """A step's gradient, computed together: the same as one worker's up to the rounding of a sum's order.

    With `dropout` and batches of several rows it is another draw of the same masks, since those are seeded per batch.
    """

    def __init__(self, inner: GradientEngine, parameters: Sequence[torch.nn.Parameter]) -> None:
        """The engine that computes this worker's share; PyTorch's process group must be up."""
        import torch.distributed as group

        self._inner, self._parameters = inner, list(parameters)
        self._rank, self._workers = group.get_rank(), group.get_world_size()
        self.description = f"{inner.description}, on each of {self._workers} workers ({group.get_backend()})"

    def __enter__(self) -> Self:
        import torch.distributed as group

        self._inner.__enter__()
        group.barrier()  # nobody publishes, and so removes checkpoints, before all have read theirs
        return self

    def __exit__(self, *exc: object) -> None:
        self._inner.__exit__(*exc)

    def compute(self, rows: Sequence[StepRow]) -> float:  # noqa: D102
        import torch
        import torch.distributed as group

        # Dealt out by length, so that the workers finish together.
        mine = sorted(rows, key=lambda item: -len(item.row.ids))[self._rank :: self._workers]
        weight = sum(item.row.weight for item in mine) / sum(item.row.weight for item in rows)
        if mine:
            loss = self._inner.compute(mine)
        else:  # the last step may have fewer rows than there are workers
            loss = 0.0
            for parameter in self._parameters:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        # Everything in one message. The last number is the same for all who are at this step, small enough to be exact.
        step = float(sum(item.seed for item in rows) % 4096)
        numbers = torch.tensor([loss * weight, step], device=gradients[0].device)
        message = torch.cat([*(gradient.reshape(-1) * weight for gradient in gradients), numbers])
        group.all_reduce(message)
        if message[-1].item() != step * self._workers:
            raise OutOfStepError("The workers are not at the same step: they read different checkpoints or rows.")
        sizes = [gradient.numel() for gradient in gradients]
        for parameter, total in zip(self._parameters, message[:-2].split(sizes), strict=True):
            parameter.grad = total.view_as(parameter)
        return float(message[-2])

    def measure(self, rows: Sequence[TokenizedRow]) -> float:  # noqa: D102
        import torch
        import torch.distributed as group

        mine = rows[self._rank :: self._workers]
        weight = sum(row.weight for row in mine) / sum(row.weight for row in rows)
        message = torch.tensor([self._inner.measure(mine) * weight if mine else 0.0], device=self._parameters[0].device)
        group.all_reduce(message)
        return float(message)

    def parameters_changed(self) -> None:  # noqa: D102
        self._inner.parameters_changed()
