import errno
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from po_assets.errors import UserError
from po_assets.model import load_base_model
from po_assets.storage import Layout
from po_assets.text import Progress
from po_assets.training import gradients
from po_assets.training.adapter import write_adapter
from po_assets.training.training import dropout_seed, plan_steps, train
from po_assets_tests.training.tiny_training import (
    make_recipe,
    publish,
    run_training,
    tiny_recipe,
    tiny_rows,
    tiny_student,
)

PINNED = [5.5432, 5.5127, 5.4821, 5.4339, 5.4128, 5.4091]


def test_the_first_losses_are_pinned(tiny: Path):
    """A change of tokenization, order, masks, initialization or optimizer shows here."""
    assert run_training(tiny).losses == pytest.approx(PINNED, abs=2e-4)


def test_the_plain_path_learns_the_same(tiny: Path):
    """Without dropout both engines take the same steps, however the rows are packed."""
    fast = run_training(tiny, dropout=0.0).losses
    for tokens in (1, 150, 10_000):
        plain = run_training(tiny, dropout=0.0, fast_path=False, pack_tokens=tokens)
        assert plain.losses == pytest.approx(fast, rel=1e-4)


@pytest.mark.parametrize("fast", [True, False])
def test_the_same_inputs_give_the_same_bytes(tiny: Path, tmp_path: Path, fast: bool):
    """Weights and configuration of two trainings are equal files, with different numbers of workers."""
    for name, workers in (("one", 1), ("two", 3)):
        write_adapter(run_training(tiny, fast_path=fast, workers=workers).model, tmp_path / name, "tiny")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_another_seed_gives_another_student(tiny: Path):
    """The seed reaches the matrices and the order."""
    assert run_training(tiny).losses != run_training(tiny, seed=7).losses


def test_only_the_lora_matrices_are_trained(tiny: Path):
    """The base model's weights are what they were, bit for bit; the matrices are float32."""
    before = dict(tiny_student(tiny, tiny_recipe(tiny)).named_parameters())
    for name, parameter in run_training(tiny).model.named_parameters():
        assert ("lora_" in name) is parameter.requires_grad
        assert torch.equal(parameter, before[name]) is not parameter.requires_grad
        assert parameter.dtype == torch.float32


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"use_rslora": True}, {"gradient_checkpointing": True, "fast_path": False}]
)
def test_variants_of_the_recipe_train(tiny: Path, settings: dict[str, bool]):
    """The loss falls with each switch."""
    losses = run_training(tiny, epochs=4.0, **settings).losses
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        (["q_proj", "nonexist"], r"target_modules \['nonexist'\] match no linear layer.*'q_proj'"),
        (
            ["q_proj", "lm_head"],
            r"target_modules \['lm_head'\] share their weights with another layer.* leave them out",
        ),
        (["embed_tokens"], r"\['model.embed_tokens'\] share their weights"),
        (["nonsense"], r"\['nonsense'\] do not fit the base model.*all-linear"),
    ],
    ids=["one of several, over which PEFT passes", "the tied output layer", "the tied embedding", "all"],
)
def test_target_modules_that_are_not_there_or_cannot_be_merged_are_refused(tiny: Path, modules: list[str], said: str):
    """With the names that were asked for: the student would train less than its recipe says, or be merged wrongly."""
    with pytest.raises(UserError, match=said):
        tiny_student(tiny, tiny_recipe(tiny, target_modules=modules))


def test_a_diverging_training_stops_with_advice(tiny: Path):
    """NaN is not trained on, and not published."""
    with pytest.raises(UserError, match=r"diverged.*Lower learning_rate \(now 1\)"):
        run_training(tiny, learning_rate=1.0, alpha=2**127)


def test_a_base_model_that_computes_no_number_is_not_called_a_divergence(tiny: Path, tmp_path: Path):
    """No learning rate helps it."""
    base = load_base_model(tiny, "float32", device="cpu")
    torch.nn.init.constant_(base.model.layers[0].self_attn.q_proj.weight, math.nan)
    base.save_pretrained(shutil.copytree(tiny, tmp_path / "damaged"))
    with pytest.raises(UserError, match=r"loss of step 1 is nan.*, before anything was learned: the base model's"):
        run_training(tmp_path / "damaged")


def fails(error: Exception) -> Any:
    """A function that does nothing but that."""

    def failing(*_args: object, **_options: object) -> None:
        raise error

    return failing


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        RuntimeError("CUDA error: out of memory"),  # memory that is taken beside PyTorch's allocator
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_says_what_to_do(tiny: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    """The message names the longest row and a setting that needs less."""
    monkeypatch.setattr(gradients.FastEngine, "compute", fails(error))
    with pytest.raises(UserError, match=r"Memory ran out in step 1.* \d\d+ tokens.*Set workers to 1.*previous adapter"):
        run_training(tiny)


def test_out_of_memory_in_the_optimizer_says_it_too(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    """It makes its moments in the first step."""
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    monkeypatch.setattr(torch.optim.AdamW, "step", fails(error))
    with pytest.raises(UserError, match="Memory ran out in step 1"):
        run_training(tiny)


def test_out_of_memory_where_the_model_is_loaded_says_it_too(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    """Files are mapped there, and the system tells of it in an OSError."""
    error = OSError(errno.ENOMEM, "Cannot allocate memory")
    monkeypatch.setattr("po_assets.training.student.load_base_model", fails(error))
    with pytest.raises(UserError, match=r"Memory ran out while .*tiny was loaded.*previous adapter"):
        publish(layout)


def test_other_errors_are_not_taken_for_memory(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    """A fault in the code keeps its own traceback."""
    monkeypatch.setattr(gradients.FastEngine, "compute", fails(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run_training(tiny)


def test_lessons_take_the_place_of_rows_and_the_first_line_says_of_how_many(tiny: Path):
    """24 rows would be shown, two passes over 12; 18 documents leave room for six of them."""
    lines: list[str] = []
    recipe, rows = tiny_recipe(tiny), tiny_rows(tiny)
    train(tiny_student(tiny, recipe), rows, recipe, Progress(lines.append), documents=[*rows, *rows[:6]])
    told = "Training on 6 of 12 rows, 0 comparisons and 18 documents of lessons in 6 steps of 4 rows (2 epochs, in which documents count as rows)"
    assert lines[0].startswith(told)
    assert "epoch 0.50" in lines[-1]


def test_progress_is_told_in_throttled_lines_and_numbers(tiny: Path):
    """Step, loss, speed, time left and memory; the last step always; nothing between two lines that are too close."""
    lines: list[str] = []
    numbers: list[dict[str, float]] = []
    times = iter([0.0, 4.0, 12.0, 13.0, 14.0, 15.0])
    recipe = tiny_recipe(tiny)
    progress = Progress(lines.append, numbers.append, every_seconds=10, clock=lambda: next(times))
    train(tiny_student(tiny, recipe), tiny_rows(tiny), recipe, progress)
    assert lines[0].startswith("Training on 12 rows in 6 steps of 4 rows (2 epochs); fast path")
    steps = [line.split(",")[0] for line in lines[1:]]
    assert steps == ["step 1/6", "step 3/6", "step 6/6"]
    for part in ("epoch 2.00", "loss ", "tokens/s", "0 s left", "GiB"):
        assert part in lines[-1]
    assert len(numbers) == 3
    assert all(math.isfinite(value) for value in numbers[0].values())
    assert {"train/loss", "train/tokens_per_second", "train/learning_rate", "train/memory_gib"} <= set(numbers[0])


@pytest.mark.parametrize(
    ("rows", "epochs", "size"), [(10, 1.0, 4), (10, 2.5, 4), (7, 0.5, 3), (3, 4.0, 8), (1, 1.0, 1)]
)
def test_every_row_is_trained_as_often_as_the_epochs_say(rows: int, epochs: float, size: int):
    """No row is dropped at the border of a step or an epoch."""
    steps = plan_steps(rows, make_recipe(epochs=epochs, gradient_accumulation=size))
    counts = Counter(row for step in steps for row in step.rows)
    assert sum(counts.values()) == round(epochs * rows)
    assert set(counts.values()) <= {int(epochs), int(epochs) + 1}
    assert all(len(step.rows) == size for step in steps[:-1])
    assert [step.number for step in steps] == list(range(len(steps)))


def test_a_document_takes_the_place_of_a_row_and_comparisons_come_first():
    """Each lesson is trained once; the epochs say how many rows are shown in all. Comparisons are short: more a step."""
    steps = plan_steps(20, make_recipe(epochs=1.5, gradient_accumulation=1), comparisons=8, documents=12)
    order = [row for step in steps for row in step.rows]
    assert sum(row < 20 for row in order) == 18
    assert sorted(row for row in order if row >= 20) == list(range(20, 40))
    assert [step.rows for step in steps[:3]] == [(20, 21), (22, 23), (24, 25)]
    assert {len(step.rows) for step in steps[3:]} == {1}
    assert [step.number for step in steps] == list(range(len(steps)))
    assert steps[-1].epoch == pytest.approx(18 / 20)


def test_the_order_follows_the_seed():
    """The same seed gives the same order, another seed and another epoch another one."""
    one, same, other = (plan_steps(20, make_recipe(epochs=2.0, seed=seed)) for seed in (1, 1, 2))
    assert one == same != other
    flat = [row for step in one for row in step.rows]
    assert flat[:20] != flat[20:] != list(range(20))


@pytest.mark.parametrize(("scheduler", "middle"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_learning_rate_warms_up_and_falls(scheduler: str, middle: float):
    """Up within the warm-up share, never 0 in a step, then down as the scheduler says."""
    settings = {"scheduler": scheduler, "epochs": 1.0, "learning_rate": 1.0, "warmup_ratio": 0.1}
    rates = [step.learning_rate for step in plan_steps(110, make_recipe(**settings, gradient_accumulation=1))]
    assert rates[:11] == sorted(rates[:11])
    assert rates[0] > 0
    assert rates[11] == 1.0
    assert rates[11 + 49] == pytest.approx(middle, abs=0.02)
    assert 0 < rates[-1] <= middle * 2
    assert rates[11:] == sorted(rates[11:], reverse=True)


def test_dropout_seeds_differ_by_step_and_row():
    """And do not depend on anything else, so that a resumed run draws the same masks."""
    assert dropout_seed(1, 2, 3) == dropout_seed(1, 2, 3)
    assert len({dropout_seed(*key) for key in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]}) == 4
