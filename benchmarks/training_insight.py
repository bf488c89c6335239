"""Beside the table of `benchmarks.training`: is it the same training, and what does the time of ours go to?

    python -m benchmarks.training_insight curves     losses of ours and of TRL tuned over 12 optimizer steps, 7 minutes
    python -m benchmarks.training_insight profile    processor time of ours by kind of operation, one core, 1 minute

The curves are on the same rows in the same order; only the random numbers in the fresh LoRA matrices differ.
"""

import argparse
from collections.abc import Sequence
from itertools import islice

from benchmarks.machine import machine
from benchmarks.training import sample_pairs, sample_rows, sample_trainer, student
from po_assets.model import BaseModel
from po_assets.text import Progress
from po_assets.training.adapter import trainable
from po_assets.training.gradients import StepRow, make_engine
from po_assets.training.rows import TokenizedRow
from po_assets.training.settings import TrainingSettings
from po_assets.training.training import plan_steps, train

KINDS = {
    "matrix products": ("mm", "bmm", "addmm", "baddbmm", "linear"),
    "copies, conversions, concatenations": ("copy", "_to_copy", "cat", "contiguous", "clone", "fill", "zero"),
    "softmax, exponentials (attention, loss)": ("_softmax", "exp", "log", "_log_softmax", "logsumexp", "amax", "sum"),
    "products and sums by element": ("mul", "add", "sub", "div", "addcmul", "addcdiv", "neg", "pow", "rsqrt", "sqrt"),
    "activation, masks, dropout": ("silu", "sigmoid", "silu_backward", "where", "masked_fill", "bernoulli", "lt", "ge"),
}
"""Operators of PyTorch by what they are for; what is not named here is counted as everything else."""


def main() -> None:
    """Print one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["curves", "profile"])
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of the curves")
    arguments = parser.parse_args()
    print(machine())
    if arguments.what == "profile":
        print_profile()
    else:
        print_curves(arguments.steps)


def print_curves(steps: int) -> None:
    """One line per step."""
    print(f"{'step':>4} {'ours':>8} {'TRL tuned':>10}")
    for i, (ours, theirs) in enumerate(zip(our_losses(steps), trl_losses(steps), strict=True), start=1):
        print(f"{i:>4} {ours:>8.3f} {theirs:>10.3f}")


def our_losses(steps: int) -> list[float]:
    """Losses of the project's training at a constant rate."""
    recipe = _curve_recipe()
    rows = sample_rows(steps * recipe.rows_per_step)
    lines: list[str] = []
    return [record.loss for record in train(student(recipe, "bfloat16"), rows, recipe, Progress(lines.append)).log]


def trl_losses(steps: int) -> list[float]:
    """Losses of TRL tuned on the same rows in the same order, at the same rate."""
    recipe = _curve_recipe()
    landed = list(islice(sample_pairs(), steps * recipe.rows_per_step))
    pairs = [landed[i] for step in plan_steps(len(landed), recipe) for i in step.rows]
    trainer = sample_trainer(
        pairs, lambda: None, steps, batch=1, tuned=True, dropout=recipe.dropout, learning_rate=recipe.learning_rate,
        gradient_accumulation_steps=recipe.gradient_accumulation, train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _curve_recipe() -> TrainingSettings:
    """Without dropout and schedule, so that nothing but the arithmetic differs."""
    return TrainingSettings(
        base_model=BaseModel(),
        learning_rate=1e-3,
        dropout=0.0,
        epochs=1.0,
        scheduler="constant",
        warmup_ratio=0.0,
    ).resolved()


def print_profile() -> None:
    """Processor time of ours by kind of operation, over one optimizer step after one to warm up, on one core."""
    import torch
    from torch.profiler import ProfilerActivity, _ExperimentalConfig, profile

    recipe = TrainingSettings(base_model=BaseModel()).resolved()
    rows = sample_rows(2 * recipe.rows_per_step)
    model = student(recipe, "bfloat16")
    parameters = list(trainable(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    torch.set_num_threads(1)
    with make_engine(model, parameters, workers=1) as engine:

        def step(part: Sequence[TokenizedRow]) -> None:
            engine.compute([StepRow(row, 1) for row in part])
            optimizer.step()
            engine.parameters_changed()

        step(rows[: recipe.rows_per_step])
        # Rows are computed in threads of a pool, which a profile leaves out unless asked.
        everywhere = _ExperimentalConfig(profile_all_threads=True)
        with profile(activities=[ProfilerActivity.CPU], experimental_config=everywhere) as profiled:
            step(rows[recipe.rows_per_step :])
    shares: dict[str, float] = dict.fromkeys(KINDS, 0.0) | {"everything else": 0.0}
    for event in profiled.key_averages():
        name = event.key.removeprefix("aten::").rstrip("_")
        shares[next((kind for kind, names in KINDS.items() if name in names), "everything else")] += (
            event.self_cpu_time_total
        )
    total = sum(shares.values())
    for kind, microseconds in shares.items():
        print(f"{kind:<42} {microseconds / 1e6:>6.2f} s {microseconds / total:>6.0%}")


if __name__ == "__main__":
    main()
