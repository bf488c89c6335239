"""The gradient of one optimizer step: rows as tokens, and the engines that compute.

All engines give the gradient of the same loss, the mean cross-entropy over all trained tokens of the step's rows,
whatever the number of rows, batches or workers: the fast path on a CPU, the model's own forward pass, and several
workers that each compute their share. The tokens come from `po_assets.model.ChatTemplate`, as in evaluation.
"""

from __future__ import annotations

import contextlib
import ctypes
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from po_assets.errors import UserError
from po_assets.model import ChatTemplate
from po_assets.storage.workers import available_cpus

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from po_assets.model.cpu import FastPath

#: Label of a position that is not trained; the convention of PyTorch's cross-entropy.
NOT_TRAINED = -100


@dataclass(frozen=True)
class TokenizedRow:
    """One row: `ids` is the prompt, the answer and the end-of-sequence token."""

    ids: tuple[int, ...]
    prompt_length: int

    @property
    def labels(self) -> list[int]:
        """The token to be predicted *at* each position of `ids` (not shifted), `NOT_TRAINED` in the prompt."""
        return [NOT_TRAINED] * self.prompt_length + list(self.ids[self.prompt_length :])

    @property
    def trained(self) -> int:
        """Number of trained tokens: the answer's and the end-of-sequence token."""
        return len(self.ids) - self.prompt_length


def tokenize_rows(pairs: Iterable[tuple[str, str]], chat: ChatTemplate, max_length: int) -> list[TokenizedRow]:
    """Tokenize (prompt, response) pairs; nothing is cut.

    Raises `UserError` naming the rows that are empty or longer than `max_length` tokens, which the ledger of
    `supervised_dataset` should have set aside.
    """
    rows: list[TokenizedRow] = []
    problems: list[str] = []
    for number, (prompt, response) in enumerate(pairs, start=1):
        if not prompt.strip() or not response.strip():
            problems.append(f"row {number} has an empty {'prompt' if not prompt.strip() else 'response'}")
            continue
        prompt_ids, answer_ids = chat.prompt_ids(prompt), chat.answer_ids(response)
        row = TokenizedRow((*prompt_ids, *answer_ids), len(prompt_ids))
        if len(row.ids) > max_length:
            problems.append(f"row {number} has {len(row.ids):,} tokens, max_length is {max_length:,}")
        rows.append(row)
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise UserError(
            f"{len(problems)} training row(s) cannot be used: {shown}. Rows are never cut: materialize "
            "supervised_dataset with the same base model and max_length, which sets such rows aside in the ledger."
        )
    if not rows:
        raise UserError(
            "There are no training rows: supervised_dataset is empty. Land teacher rows and materialize it."
        )
    return rows


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to the longest; all tensors are (rows, longest)."""

    ids: torch.Tensor
    attention: torch.Tensor
    labels: torch.Tensor
    """As `TokenizedRow.labels`; padding is `NOT_TRAINED`."""


def collate(rows: Sequence[TokenizedRow], pad_id: int) -> Batch:
    """Pad rows to one batch.

    What is padding follows from the rows' lengths, never from the token: pad and end-of-sequence may be the same token,
    and masking by token would then untrain the end of every answer.
    """
    import torch

    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    attention = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), NOT_TRAINED)
    for i, row in enumerate(rows):
        length = len(row.ids)
        ids[i, :length] = torch.tensor(row.ids)
        attention[i, :length] = 1
        labels[i, :length] = torch.tensor(row.labels)
    return Batch(ids, attention, labels)


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

    def parameters_changed(self) -> None:  # noqa: B027 - most engines read the parameters anew every time
        """To be called after every optimizer step."""


def make_engine(
    model: PeftModel,
    parameters: Sequence[torch.nn.Parameter],
    *,
    fast: bool,
    workers: int,
    batch_size: int,
    pad_id: int,
) -> GradientEngine:
    """The fast engine where it applies and is wanted, else the plain one; its `description` says which and why."""
    from po_assets.model.cpu import fast_training

    path = fast_training(model) if fast else "the recipe switches it off"
    if isinstance(path, str):
        return PlainEngine(model, parameters, batch_size, pad_id, reason=path)
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
        self.description = f"fast path, {workers} row(s) side by side"

    def __enter__(self) -> Self:
        import torch

        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(self._workers)
        return self

    def __exit__(self, *exc: object) -> None:
        import torch

        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads_before)

    def compute(self, rows: Sequence[StepRow]) -> float:  # noqa: D102
        import torch

        tokens = sum(item.row.trained for item in rows)
        # Longest first, so that the workers finish together; ties keep their order.
        order = sorted(rows, key=lambda item: -len(item.row.ids))
        futures = deque(self._pool.submit(self._row, item) for item in order)
        loss, total = futures.popleft().result()
        while futures:  # each is dropped when it was added: a gradient is as large as the adapter
            row_loss, gradients = futures.popleft().result()
            loss += row_loss
            torch._foreach_add_(total, gradients)
        torch._foreach_div_(total, tokens)
        for parameter, gradient in zip(self._parameters, total, strict=True):
            parameter.grad = gradient
        if self._path.computed_twice(len(order[0].row.ids)):
            _give_back_memory()
        return loss / tokens

    def parameters_changed(self) -> None:  # noqa: D102
        self._path.refresh()

    def _row(self, item: StepRow) -> tuple[float, list[torch.Tensor]]:
        import torch

        loss = self._path.answer_loss(torch.tensor(item.row.ids), item.row.prompt_length, item.seed)
        return loss.item(), list(torch.autograd.grad(loss, self._parameters))


def _give_back_memory() -> None:
    """Return freed memory to the system: glibc keeps a heap for each thread, whose gaps only grow."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


class PlainEngine(GradientEngine):
    """Padded batches through the model's own forward pass: on GPUs, and for models that the fast path does not know."""

    def __init__(
        self, model: PeftModel, parameters: Sequence[torch.nn.Parameter], batch_size: int, pad_id: int, reason: str
    ) -> None:
        self._model, self._parameters = model, list(parameters)
        self._batch_size, self._pad_id = batch_size, pad_id
        self.description = f"plain path ({reason}), {batch_size} row(s) a batch"

    def compute(self, rows: Sequence[StepRow]) -> float:  # noqa: D102
        tokens = sum(item.row.trained for item in rows)
        for parameter in self._parameters:
            parameter.grad = None
        # Rows of like length share a batch, so that hardly anything is padded.
        order = sorted(rows, key=lambda item: -len(item.row.ids))
        batches = [order[i : i + self._batch_size] for i in range(0, len(order), self._batch_size)]
        loss = 0.0
        for batch in batches:
            part = self._loss(batch) / tokens
            part.backward()
            loss += part.item()
        return loss

    def _loss(self, items: Sequence[StepRow]) -> torch.Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        device = self._parameters[0].device
        torch.manual_seed(items[0].seed)  # also seeds CUDA
        batch = collate([item.row for item in items], self._pad_id)
        # Only positions that predict an answer token of some row need logits.
        first = min(item.row.prompt_length for item in items) - 1
        targets = batch.labels[:, first + 1 :].to(device)
        kept = torch.arange(first, batch.ids.shape[1] - 1, device=device)
        compute_type: Any = getattr(self._model.get_base_model(), "dtype", torch.float32)
        with torch.autocast(device.type, torch.bfloat16, enabled=compute_type == torch.bfloat16):
            logits = self._model(
                input_ids=batch.ids.to(device),
                attention_mask=batch.attention.to(device),
                use_cache=False,
                logits_to_keep=kept,
            ).logits
        return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")


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

        mine = self._share(rows)
        weight = sum(item.row.trained for item in mine) / sum(item.row.trained for item in rows)
        loss = self._inner.compute(mine) if mine else self._nothing()
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

    def parameters_changed(self) -> None:  # noqa: D102
        self._inner.parameters_changed()

    def _share(self, rows: Sequence[StepRow]) -> list[StepRow]:
        """This worker's rows: dealt out by length, so that the workers finish together."""
        return sorted(rows, key=lambda item: -len(item.row.ids))[self._rank :: self._workers]

    def _nothing(self) -> float:
        """The last step may have fewer rows than there are workers."""
        import torch

        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter)
        return 0.0
