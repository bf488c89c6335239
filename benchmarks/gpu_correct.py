"""What must hold on the GPU path before any speed counts; `benchmarks.gpu` runs it, in 16 and in 4 bits."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from po_assets.errors import UserError
from po_assets.model import BaseModel, load_base_model, require_hardware
from po_assets.model.chat import first_line
from po_assets.text import Progress
from po_assets.training.adapter import add_adapter, frozen_precision, trainable
from po_assets.training.checkpoints import Checkpoint, CheckpointStore
from po_assets.training.checks import MIN_DIVERGENCE, prediction_difference
from po_assets.training.gradients import PlainEngine, StepRow
from po_assets.training.rows import TokenizedRow
from po_assets.training.training import train

if TYPE_CHECKING:
    from benchmarks.gpu import Bench


class _Stopped(Exception):  # noqa: N818
    """As by a crash, after a checkpoint."""


class _Stops(CheckpointStore):
    def save(self, checkpoint: Checkpoint, *, beside: bool = False) -> None:
        super().save(checkpoint, beside=beside)
        if checkpoint.step == 3:
            raise _Stopped


def correct(bench: Bench, quantization: str) -> dict[str, Any]:
    """What must hold before any speed counts; `holds` by name."""
    import torch

    shape, layers = ("tiny", 2) if bench.tiny else ("0.5B", 4)
    holds: dict[str, bool] = {"refused_for_its_own_reason": _refusal(bench)}
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        base, rows = Path(folder, "base"), bench.rows[:12]
        bench.model(shape, num_hidden_layers=layers).save_pretrained(base)
        recipe = bench.recipe(
            rank=8, learning_rate=5e-3, epochs=2.0, dropout=0.0, gradient_accumulation=4, fast_path=False,
            pack_tokens=4_096,
        )  # fmt: skip

        def fresh() -> Any:
            kind: Any = quantization
            device = None if bench.device == "cuda" else "cpu"
            return add_adapter(load_base_model(base, "bfloat16", quantization=kind, device=device), recipe, base)

        def trained(model: Any, store: type[CheckpointStore] | None = None) -> list[float]:
            checkpoints = store(Path(folder, "checkpoints"), "this", said.append) if store else None
            made = train(model, rows, recipe, Progress(said.append), checkpoints=checkpoints)
            return [record.loss for record in made.log]

        model = fresh()
        said.append(frozen_precision(model, torch.bfloat16))  # raises where the log would not be true
        holds["weights_held_as_said"] = ("4 bits" in said[-1]) is (quantization == "nf4")
        losses = trained(model)
        holds["loss_falls"] = losses[-1] < losses[0] - 0.05
        differences = _packed_against_rows(model, rows[:4])
        holds["packed_as_row_by_row"] = differences["loss"] < 0.01 and differences["gradient"] < 0.05
        # Last, and the other on a model of its own: once asked, 4-bit layers on a CPU are not trained any more.
        holds["trained_is_noticed"] = prediction_difference(model.eval(), rows[0])["divergence"] > MIN_DIVERGENCE
        holds["untrained_is_noticed"] = prediction_difference(fresh().eval(), rows[0])["divergence"] < MIN_DIVERGENCE

        # Repeated to the last bit, where PyTorch can: then a resumed training is compared to the last bit, too.
        recipe = recipe.model_copy(update={"checkpoint_seconds": 0.0, "deterministic": True, "dropout": 0.05})
        try:
            losses = trained(fresh())
            holds["deterministic_repeats"] = losses == trained(fresh())
        except RuntimeError as error:  # an operation that has no such algorithm
            holds["deterministic_repeats"] = False
            said[0] += f"; {first_line(error)}"
            recipe = recipe.model_copy(update={"deterministic": False})
            losses = trained(fresh())
        try:
            trained(fresh(), _Stops)
        except _Stopped:
            resumed = trained(fresh(), CheckpointStore)
            worst = max(abs(a - b) / b for a, b in zip(resumed, losses, strict=True))
            holds["resumed_as_uninterrupted"] = worst < (1e-6 if recipe.deterministic else 0.05)
    return {"holds": holds, "losses": losses, "packed_differs_by": differences, "said": said[0]}


def _refusal(bench: Bench) -> bool:
    """Whether the profile for GPUs passes on a GPU, and elsewhere says why not rather than what is always said."""
    import torch

    try:
        require_hardware(BaseModel(profile="paper", quantization="none").resolved())
    except UserError as error:
        built = "built for CPUs only" if torch.version.cuda is None else "sees none on this machine"
        hidden = "CUDA_VISIBLE_DEVICES" in os.environ
        return bench.device == "cpu" and (built in str(error) or hidden)
    return bench.device == "cuda" or torch.cuda.is_available()


def _packed_against_rows(model: Any, rows: Sequence[TokenizedRow]) -> dict[str, float]:
    """Relative differences of loss and gradient between one pass and one pass a row by the model's own attention."""
    import torch

    parameters = list(trainable(model).values())

    def gradient() -> torch.Tensor:
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])

    engine = PlainEngine(model, parameters, "asked for", pack_tokens=100_000)
    one, packed = engine.compute([StepRow(row, 1) for row in rows]), gradient()
    other, alone = _row_by_row(model, rows), gradient()
    return {"loss": abs(one - other) / other, "gradient": float((packed - alone).norm() / alone.norm())}


def _row_by_row(model: Any, rows: Sequence[TokenizedRow]) -> float:
    """The mean loss by transformers' own attention and PyTorch's loss; its gradient goes into `.grad`."""
    import torch

    model.zero_grad()
    weight, loss = sum(row.weight for row in rows), 0.0
    for row in rows:
        ids = torch.tensor([row.ids], device=model.device)
        weights = torch.tensor(row.token_weights[1:], device=model.device)
        with torch.autocast(model.device.type, torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:], reduction="none")
        part = (losses * weights).sum() / weight
        part.backward()
        loss += part.item()
    return loss
