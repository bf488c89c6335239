from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

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


LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def with_adapter(model, **settings):
    recipe = make_recipe(rank=4, dropout=0.0, **settings)
    student = add_adapter(model.eval().requires_grad_(False), recipe, Path("base"))
    for name, parameter in trainable(student).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return student


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_loss_and_gradients_equal_those_of_the_model_itself(family: str, settings: dict[str, bool]):
    """In float32 the fast path and PEFT's forward pass agree in the loss and in every LoRA matrix's gradient."""
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)) if family == "llama" else Qwen2ForCausalLM(Qwen2Config(**SIZES))
    student = with_adapter(model, **settings)
    assert isinstance(fast_training(student), FastPath)
    parameters = list(trainable(student).values())
    rows = [
        StepRow(TokenizedRow(tuple(torch.randint(0, 97, (n,)).tolist()), p), 1)
        for n, p in [(300, 120), (7, 3), (33, 32)]
    ]
    plain = PlainEngine(student, parameters, "reference", pack_tokens=310)
    expected_loss = plain.compute(rows)
    expected = [p.grad.clone() for p in parameters]
    with make_engine(student, parameters, fast=True, workers=2) as engine:
        assert "fast path" in engine.description
        loss = engine.compute(rows)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for parameter, reference in zip(parameters, expected, strict=True):
        # Against float64 either path is off by up to 5e-4: with large random matrices float32 has no more.
        assert (parameter.grad - reference).norm() < 1e-3 * reference.norm()


def test_the_result_does_not_depend_on_the_number_of_workers(tiny: Path):
    """Gradients are summed in the order of the rows, to the same bits with one worker and with four."""
    recipe = tiny_recipe(tiny)
    results = []
    for workers in (1, 4):
        student = tiny_student(tiny, recipe)
        parameters = list(trainable(student).values())
        rows = [StepRow(row, seed) for seed, row in enumerate(tiny_rows(tiny))]
        with make_engine(student, parameters, fast=True, workers=workers) as engine:
            results.append((engine.compute(rows), [p.grad.clone() for p in parameters]))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_layers_that_are_computed_twice_change_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    """Long rows keep fewer activations: the same loss and gradients to the last bit, with dropout, for less memory."""
    student = tiny_student(tiny, tiny_recipe(tiny, dropout=0.3))
    parameters = list(trainable(student).values())
    rows = [StepRow(row, seed) for seed, row in enumerate(tiny_rows(tiny))]
    results = []
    for kept in (1 << 30, 0):
        monkeypatch.setattr("po_assets.model.cpu.training.KEPT_BYTES", kept)
        assert FastPath(student).computed_twice(100) == (0 if kept else 2)
        with make_engine(student, parameters, fast=True, workers=2) as engine:
            results.append((engine.compute(rows), [p.grad.clone() for p in parameters]))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


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
    for name, parameter in trainable(student).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
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
def test_models_that_do_not_fit_are_trained_the_plain_way(tiny: Path, settings: dict[str, object], reason: str):
    """And the description says why."""
    student = tiny_student(tiny, tiny_recipe(tiny, **settings))
    engine = make_engine(student, list(trainable(student).values()), fast=True, workers=1)
    assert reason in engine.description
    with engine:
        assert engine.compute([StepRow(row, 1) for row in tiny_rows(tiny)]) > 0
