"""One training on several workers: each computes the gradient of its share of a step's rows, the sum is everybody's.

Knows PyTorch's process group and nothing of what started the workers, which is `ray_train`'s subject. Every worker does
the same steps on the same plan and holds the same matrices all the time; only the leader speaks, saves and publishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from po_assets.training.gradients import GradientEngine, StepRow

if TYPE_CHECKING:
    import torch


class OutOfStepError(RuntimeError):
    """The workers are not at the same step of the same training."""


def is_leader() -> bool:
    """Whether this process is the only worker, or the one of rank 0."""
    import torch.distributed as group

    return not (group.is_available() and group.is_initialized()) or group.get_rank() == 0


class DataParallelEngine:
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

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, value, trace)

    def compute(self, rows: Sequence[StepRow]) -> float:
        """Set the gradients and return the mean loss per trained token, both over all workers' rows."""
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

    def parameters_changed(self) -> None:
        """Every worker changes its own copy, and all in the same way."""
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
