import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from po_assets.model import load_base_model
from po_assets.model.cpu import FastPath, fast_training
from po_assets.training.adapter import add_adapter, trainable
from po_assets.training.gradients import PlainEngine, StepRow, make_engine
from po_assets.training.rows import TokenizedRow
from po_assets_tests.training.tiny_training import make_recipe, tiny_recipe, tiny_rows, tiny_student

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "mistral with a window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16)),
}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def student_of(family: str, **settings: Any) -> Any:
    """A random model with a LoRA that is in effect."""
    torch.manual_seed(3)
    student = add_adapter(FAMILIES[family]().eval(), make_recipe(rank=4, dropout=0.0, **settings), Path("base"))
    randomize(student, std=0.1)
    return student


def randomize(student: Any, std: float) -> None:
    for name, parameter in trainable(student).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)


def random_rows(*lengths: tuple[int, int], weights: tuple[float, ...] = ()) -> list[StepRow]:
    """Rows of so many tokens in all and in the prompt; of the last, the answer's tokens have these weights."""
    rows = [TokenizedRow(tuple(torch.randint(0, 97, (n,)).tolist()), p) for n, p in lengths]
    return [StepRow(row, 1) for row in [*rows[:-1], replace(rows[-1], answer_weights=weights)]]


def assert_gradients(student: Any, expected: list[torch.Tensor], tolerance: float) -> None:
    for parameter, reference in zip(trainable(student).values(), expected, strict=True):
        assert (parameter.grad - reference).norm() <= tolerance * reference.norm()


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_loss_and_gradients_equal_those_of_the_model_itself(family: str, settings: dict[str, bool]):
    """In float32 the fast path and PEFT's forward pass agree in the loss and in every LoRA matrix's gradient."""
    student = student_of(family, **settings)
    assert isinstance(fast_training(student), FastPath)
    parameters = list(trainable(student).values())
    rows = random_rows((300, 120), (7, 3), (33, 32))
    expected_loss = PlainEngine(student, parameters, "reference", pack_tokens=310).compute(rows)
    expected = [p.grad.clone() for p in parameters]
    with make_engine(student, parameters, fast=True, workers=2) as engine:
        assert "fast path" in engine.description
        assert engine.compute(rows) == pytest.approx(expected_loss, rel=1e-5)
    # Against float64 either path is off by up to 5e-4: with large random matrices float32 has no more.
    assert_gradients(student, expected, 1e-3)


def computed(student: Any, rows: list[TokenizedRow], workers: int) -> list[torch.Tensor]:
    """The loss and the gradients of a step, each row with its own dropout."""
    parameters = list(trainable(student).values())
    with make_engine(student, parameters, fast=True, workers=workers) as engine:
        loss = engine.compute([StepRow(row, seed) for seed, row in enumerate(rows)])
    return [torch.tensor(loss, dtype=torch.float64), *(p.grad.clone() for p in parameters)]


def test_the_result_does_not_depend_on_the_number_of_workers(tiny: Path):
    """Gradients are summed in the order of the rows, to the same bits with one worker and with four."""
    student = tiny_student(tiny, tiny_recipe(tiny))
    one, four = (computed(student, tiny_rows(tiny), workers) for workers in (1, 4))
    assert all(map(torch.equal, one, four))


def test_layers_that_are_computed_twice_change_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    """Long rows keep fewer activations: the same loss and gradients to the last bit, with dropout, for less memory."""
    student = tiny_student(tiny, tiny_recipe(tiny, dropout=0.3))
    results = []
    for kept in (1 << 30, 0):
        monkeypatch.setattr("po_assets.model.cpu.training.KEPT_BYTES", kept)
        assert FastPath(student).computed_twice(100) == (0 if kept else 2)
        results.append(computed(student, tiny_rows(tiny), workers=2))
    assert all(map(torch.equal, *results))


def test_threads_are_given_back_after_training(tiny: Path):
    """Training takes one thread a row; what runs after it in the same process gets all of them again."""
    student = tiny_student(tiny, tiny_recipe(tiny))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with make_engine(student, list(trainable(student).values()), fast=True, workers=1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_dropout_is_drawn_from_the_seed(tiny: Path):
    """The same seed gives the same loss; without a seed there is no dropout."""
    student = tiny_student(tiny, tiny_recipe(tiny, dropout=0.5))
    randomize(student, std=1.0)
    path, row = FastPath(student), tiny_rows(tiny)[3]
    ids, weights = torch.tensor(row.ids), torch.tensor(row.token_weights)
    losses = [path.answer_loss(ids, weights, seed).item() for seed in (1, 1, 2, None, None)]
    assert losses[0] == losses[1] != losses[2]
    assert losses[3] == losses[4] != losses[0]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"target_modules": ["q_proj"]}, "not every linear layer carries a plain LoRA"),
        ({"target_modules": [*LINEARS, "lm_head"]}, "a layer outside the decoder layers carries a LoRA"),
    ],
)
def test_models_that_do_not_fit_are_trained_the_plain_way(
    tiny: Path, tmp_path: Path, settings: dict[str, object], reason: str
):
    """And the description says why."""
    untied = load_base_model(tiny, "float32", device="cpu")
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.clone())
    untied.save_pretrained(shutil.copytree(tiny, tmp_path / "untied"))
    student = tiny_student(tmp_path / "untied", tiny_recipe(tiny, **settings))
    engine = make_engine(student, list(trainable(student).values()), fast=True, workers=1)
    assert reason in engine.description
    with engine:
        assert engine.compute([StepRow(row, 1) for row in tiny_rows(tiny)]) > 0
