"""Rows packed into one pass without padding: the same loss and gradients as row by row, and what a GPU has room for."""

import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from po_assets.model import packed as packing
from po_assets.training.adapter import add_adapter, trainable
from po_assets.training.gradients import PlainEngine, StepRow, make_engine, packed
from po_assets.training.memory import PACK_TOKENS, activation_bytes, free_bytes, plan_passes
from po_assets.training.rows import TokenizedRow
from po_assets_tests.training.test_fast_path import FAMILIES, SIZES, assert_gradients, random_rows, student_of
from po_assets_tests.training.tiny_training import make_recipe

GIB = 2**30
QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "num_hidden_layers": 28,
}


def some_rows() -> list[StepRow]:
    """Of the last, tokens count differently, and one not at all."""
    return random_rows((60, 20), (7, 3), (33, 32), (41, 36), weights=(0.5, 3.0, 0.0, 1.0, 2.0))


def by_the_model(student: Any, rows: list[StepRow]) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of one row after the other by transformers' own attention and PyTorch's loss."""
    total, loss = sum(item.row.weight for item in rows), 0.0
    for parameter in trainable(student).values():
        parameter.grad = None
    for item in rows:
        ids, weights = torch.tensor(item.row.ids), torch.tensor(item.row.token_weights)
        logits = student(input_ids=ids[None]).logits[0, :-1]
        part = (cross_entropy(logits, ids[1:], reduction="none") * weights[1:]).sum() / total
        part.backward()
        loss += part.item()
    return loss, [p.grad.clone() for p in trainable(student).values()]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_loss_and_gradients_equal_those_row_by_row(family: str, *, checkpointing: bool) -> None:
    """All rows in one pass, some in two, and each alone; activations kept or computed twice; float32."""
    student, rows = student_of(family), some_rows()
    before = student.get_base_model().config._attn_implementation
    expected_loss, expected = by_the_model(student, rows)
    for tokens in (1_000, 100, 1):
        parameters = list(trainable(student).values())
        engine = PlainEngine(student, parameters, "asked for", 60, pack_tokens=tokens, checkpointing=checkpointing)
        assert engine.compute(rows) == pytest.approx(expected_loss, rel=1e-6)
        assert_gradients(student, expected, 1e-5)
        assert engine.measure([item.row for item in rows]) == pytest.approx(expected_loss, rel=1e-6)
    assert student.get_base_model().config._attn_implementation == before


def test_other_models_go_row_by_row(tmp_path: Path) -> None:
    """A model whose attention or output layer is not known to fit is trained as its author wrote it."""
    torch.manual_seed(3)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=2, n_positions=128)).eval()
    student = add_adapter(model, make_recipe(rank=4, dropout=0.0), tmp_path)
    rows, parameters = some_rows(), list(trainable(student).values())
    expected_loss, expected = by_the_model(student.eval(), rows)
    engine = make_engine(student, parameters, pack_tokens=1_000)
    assert "one row a pass, since the model type 'gpt2' is none of llama" in engine.description
    assert engine.compute(rows) == pytest.approx(expected_loss, rel=1e-6)
    assert_gradients(student, expected, 1e-5)


def test_passes_hold_as_many_rows_as_fit() -> None:
    """First fit, longest first; every row once, and one that is too long alone."""
    rows = [StepRow(TokenizedRow((1,) * n, 1), n) for n in (40, 90, 60, 150, 30, 10)]
    passes = [[len(item.row.ids) for item in one] for one in packed(rows, 100)]
    assert passes == [[150], [90, 10], [60, 40], [30]]


@pytest.mark.parametrize("window", [None, 16])
def test_the_gpu_kernel_is_called_as_pytorch_wants_it(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    """Its own shape function accepts the arguments; it is causal, and knows shared heads; which needs no GPU."""
    monkeypatch.setattr(packing, "has_kernel", lambda _query: True)
    called: dict[str, Any] = {}
    kernel = packing.varlen_attn

    def watched(*arguments: Any, **options: Any) -> torch.Tensor:
        called.update(inspect.signature(kernel).bind(*arguments, **options).arguments)
        return kernel(*arguments, **options)

    monkeypatch.setattr(packing, "varlen_attn", watched)
    shape = {"dtype": torch.bfloat16, "device": "meta"}
    query, key = torch.empty(1, 8, 100, 64, **shape), torch.empty(1, 2, 100, 64, **shape)
    starts = torch.empty(4, dtype=torch.int32, device="meta")
    out, _ = packing.packed_attention(
        None, query, key, key, None, cu_seq_lens_q=starts, max_length_q=50, scaling=0.1, sliding_window=window
    )
    assert out.shape == (1, 100, 8, 64)
    assert (called["max_q"], called["max_k"], called["scale"], called["enable_gqa"]) == (50, 50, 0.1, True)
    assert called["window_size"] == (-1 if window is None else 15, 0)


@pytest.mark.parametrize(
    ("capability", "dtype", "head", "expected"),
    [
        ((9, 0), torch.bfloat16, 128, True),  # H100
        ((8, 6), torch.bfloat16, 64, True),  # A10
        ((9, 0), torch.float32, 128, False),
        ((7, 5), torch.bfloat16, 128, False),  # T4, asked for bfloat16
        ((9, 0), torch.bfloat16, 100, False),
        ((9, 0), torch.bfloat16, 512, False),
    ],
)
def test_what_the_kernel_would_refuse_goes_without_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, head: int, *, expected: bool
) -> None:
    """It would be in the middle of a step."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    query: Any = SimpleNamespace(is_cuda=True, dtype=dtype, device="cuda:0", shape=(1, 8, 100, head))
    assert packing.has_kernel(query) is expected


def test_the_kernel_of_an_older_pytorch_is_not_told_of_shared_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """It shares them unasked, and has no argument for it; the machines that are lent have such a PyTorch."""

    def varlen_2_11(query: torch.Tensor, *_rest: Any, scale: Any, window_size: Any) -> torch.Tensor:
        return query

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_2_11)
    try:
        older = importlib.reload(packing)
        monkeypatch.setattr(older, "has_kernel", lambda _query: True)
        query, key = torch.zeros(1, 8, 10, 64), torch.zeros(1, 2, 10, 64)
        starts = torch.tensor([0, 10], dtype=torch.int32)
        out, _ = older.packed_attention(None, query, key, key, None, cu_seq_lens_q=starts, max_length_q=10)
        assert out.shape == (1, 10, 8, 64)
    finally:
        monkeypatch.undo()
        importlib.reload(packing)


class OnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    is_cuda = True


def test_without_the_kernel_a_gpu_gets_each_head_its_own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """With shared heads, PyTorch would keep the scores of every pair of tokens; the result is the same."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 12, 16) for heads in (6, 2, 2))
    expected = packing._one_row(q, k, v, None, None)
    seen: list[tuple[int, bool]] = []
    real = packing.functional.scaled_dot_product_attention

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append((k.shape[1], options["enable_gqa"]))
        return real(q, k, v, **options)

    monkeypatch.setattr(packing.functional, "scaled_dot_product_attention", watched)
    found = packing._one_row(q.as_subclass(OnGpu), k, v, None, None)
    assert seen == [(6, False)]
    assert torch.allclose(found.as_subclass(torch.Tensor), expected, atol=1e-6)


def shape_of(dtype: torch.dtype = torch.bfloat16) -> Any:
    lora = [torch.empty(40_000_000, device="meta", requires_grad=True)]
    return SimpleNamespace(config=SimpleNamespace(**QWEN_7B), parameters=lambda: lora, dtype=dtype)


@pytest.mark.parametrize(
    ("free", "longest", "tokens", "recompute"),
    [
        (120 * GIB, 1_500, PACK_TOKENS, False),
        (60 * GIB, 1_500, 6_514, False),  # smaller passes rather than everything twice
        (18 * GIB, 1_500, 1_915, False),
        (8 * GIB, 1_500, PACK_TOKENS, True),  # the longest row alone would not fit
    ],
)
def test_activations_are_computed_twice_only_where_memory_asks_for_it(
    free: int, longest: int, tokens: int, *, recompute: bool
) -> None:
    """For the shape of Qwen2.5-7B; the decision stands in the description."""
    plan = plan_passes(shape_of(), longest, pack_tokens=None, checkpointing=None, free=free)
    assert (plan.tokens, plan.recompute) == (pytest.approx(tokens, rel=0.02), recompute)
    assert f"activations are {'computed twice' if recompute else 'kept'}" in plan.described
    asked = plan_passes(shape_of(), longest, pack_tokens=700, checkpointing=not recompute, free=free)
    assert (asked.tokens, asked.recompute) == (700, not recompute)


def test_in_float32_half_as_many_tokens_fit() -> None:
    """As on a T4, which has no bfloat16."""
    options: dict[str, Any] = {"pack_tokens": None, "checkpointing": False, "free": 60 * GIB}
    sixteen, float32 = (plan_passes(shape_of(d), 1_500, **options) for d in (torch.bfloat16, torch.float32))
    assert float32.tokens == pytest.approx(sixteen.tokens / 2, abs=1)


def test_a_plan_is_made_from_the_weights_and_the_step_s_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """PO_GPUS=0.5 puts two steps on one GPU; what a resumed training holds besides weights does not change its passes."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(total_memory=80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 40 * GIB)
    model = torch.nn.Linear(GIB // 2, 15, bias=False, dtype=torch.bfloat16, device="meta")
    for gpus, free in (("", 65), ("1", 65), ("0.5", 25)):
        monkeypatch.setenv("PO_GPUS", gpus)
        assert free_bytes(model, torch.device("cuda:0")) == free * GIB


def test_the_estimate_is_that_of_what_autograd_keeps() -> None:
    """Counted on a layer with LoRA and dropout under autocast, as a GPU computes it."""
    sizes = SIZES | {"hidden_size": 64, "intermediate_size": 192}
    kept: list[int] = []
    for layers in (2, 4):
        torch.manual_seed(0)
        config = LlamaConfig(**sizes | {"num_hidden_layers": layers})
        student = add_adapter(LlamaForCausalLM(config).bfloat16(), make_recipe(rank=4, dropout=0.1), Path("base"))
        frozen = {p.untyped_storage().data_ptr() for p in student.parameters()}
        seen: dict[int, int] = {}

        def keep(tensor: torch.Tensor, frozen: set[int] = frozen, seen: dict[int, int] = seen) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in frozen:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        engine = PlainEngine(student, list(trainable(student).values()), "asked for", 256, pack_tokens=1)
        row = StepRow(TokenizedRow(tuple(torch.randint(0, 97, (256,)).tolist()), 200), 1)
        with engine._attention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = engine._loss([row])
        kept.append(sum(seen.values()))
        del loss
    measured = (kept[1] - kept[0]) / 2 / 256
    masks = 3 * (6 * config.hidden_size + config.intermediate_size)  # a CPU keeps them in float32, a GPU as bytes
    assert activation_bytes(config)[0] + masks == pytest.approx(measured, rel=0.05)
