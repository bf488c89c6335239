"""The gradient of one optimizer step, by the fast path on a CPU or by the model's own forward pass.

Both give the gradient of the same loss: the mean cross-entropy over all trained tokens of the step's rows, whatever the
number of rows, batches or workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from po_assets.dag.compute import available_cores
from po_assets.training.rows import TrainingRow, collate

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


@dataclass(frozen=True)
class StepRow:
    """A row of a step with the seed of its dropout masks."""

    row: TrainingRow
    seed: int


class GradientEngine(Protocol):
    """Computes a step's gradient into `.grad` of the trained parameters."""

    description: str

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def compute(self, rows: Sequence[StepRow]) -> float:
        """Set the gradients and return the mean loss per trained token."""
        ...

    def parameters_changed(self) -> None:
        """To be called after every optimizer step."""
        ...


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
    from po_assets.model.cpu.path import why_not

    reason = why_not(model) if fast else "the recipe switches it off"
    if reason is None:
        return FastEngine(model, parameters, workers or available_cores())
    return PlainEngine(model, parameters, batch_size, pad_id, reason)


class FastEngine:
    """Rows side by side, each on one thread of its own.

    Small matrix products gain little from a second thread, and every one of the thousands of operations of a row would
    wait for it; a whole row per thread needs no waiting (measured: 1.15 times the tokens a second on 2 free cores, and
    over 10 times on cores that are shared with other work). The gradients are summed in the order of the rows, so that
    the result depends neither on the number of workers nor on which is done first.
    """

    def __init__(self, model: PeftModel, parameters: Sequence[torch.nn.Parameter], workers: int) -> None:
        from po_assets.model.cpu.path import FastPath

        self._path = FastPath(model)
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

    def compute(self, rows: Sequence[StepRow]) -> float:
        """Set the gradients and return the mean loss per trained token."""
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
        return loss / tokens

    def parameters_changed(self) -> None:
        """Round the new matrices to the compute type."""
        self._path.refresh()

    def _row(self, item: StepRow) -> tuple[float, list[torch.Tensor]]:
        import torch

        loss = self._path.answer_loss(torch.tensor(item.row.ids), item.row.prompt_length, item.seed)
        return loss.item(), list(torch.autograd.grad(loss, self._parameters))


class PlainEngine:
    """Padded batches through the model's own forward pass: on GPUs, and for models that the fast path does not know."""

    def __init__(
        self, model: PeftModel, parameters: Sequence[torch.nn.Parameter], batch_size: int, pad_id: int, reason: str
    ) -> None:
        self._model, self._parameters = model, list(parameters)
        self._batch_size, self._pad_id = batch_size, pad_id
        self.description = f"plain path ({reason}), {batch_size} row(s) a batch"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing to release."""

    def compute(self, rows: Sequence[StepRow]) -> float:
        """Set the gradients and return the mean loss per trained token."""
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

    def parameters_changed(self) -> None:
        """The model reads its parameters anew at every forward pass."""

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
