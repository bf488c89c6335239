"""One of several workers of a tiny training, in a process of its own; for test_data_parallel."""

from pathlib import Path
from typing import Any

import peft  # noqa: F401  # loaded once by the fork server, so that each process starts at once
import torch
import transformers  # noqa: F401

from po_assets.text import Progress
from po_assets.training.adapter import trainable
from po_assets.training.training import train
from po_assets_tests.training.tiny_training import tiny_recipe, tiny_rows, tiny_student


def work(rank: int, workers: int, base: Path, out: Path, settings: dict[str, Any]) -> None:
    """Train as worker `rank`; what came out goes to a file, an error's text to another."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{out}/meeting", rank=rank, world_size=workers)
    recipe = tiny_recipe(base, num_workers=workers, workers=1, **{k: v for k, v in settings.items() if k != "rows"})
    rows = tiny_rows(base)
    if settings.get("rows") == "differ" and rank:
        rows = rows[::-1]
        recipe = tiny_recipe(base, num_workers=workers, workers=1, seed=7)
    model = tiny_student(base, recipe)
    try:
        trained = train(model, rows, recipe, Progress(lambda _line: None))
    except RuntimeError as error:
        (out / f"error-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        return
    matrices = {name: parameter.detach() for name, parameter in trainable(model).items()}
    losses = [(record.loss, record.grad_norm, record.validation_loss) for record in trained.log]
    torch.save({"log": losses, "matrices": matrices, "engine": trained.engine}, out / f"{rank}.pt")
