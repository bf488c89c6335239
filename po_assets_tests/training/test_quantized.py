"""The 4-bit path without a GPU, by the CPU backend of bitsandbytes: what it holds, that it trains, and that checks see it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from po_assets.errors import UserError
from po_assets.evaluation.answering import load_student
from po_assets.model import load_base_model
from po_assets.text import Progress
from po_assets.training.adapter import add_adapter, frozen_precision, trainable, write_adapter
from po_assets.training.checks import MIN_DIVERGENCE, prediction_difference
from po_assets.training.training import train
from po_assets_tests.model.tiny_model import make_tiny_model
from po_assets_tests.training.tiny_training import make_recipe, tiny_rows

pytest.importorskip("bitsandbytes", reason="the extra cuda is not installed: make setup EXTRAS=cuda")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As wide as a block of the 4-bit format, of which inference on a CPU needs whole ones."""
    return make_tiny_model(tmp_path_factory.mktemp("base") / "tiny", hidden=64)


def four_bit(folder: Path, precision: str = "bfloat16", **settings: Any) -> tuple[Any, Any]:
    recipe = make_recipe(
        {"base_model": str(folder), "quantization": "nf4"},
        **{"rank": 4, "alpha": 8, "learning_rate": 1e-2, "epochs": 2.0, "precision": precision, **settings},
    )
    base = load_base_model(folder, precision, quantization="nf4")
    return add_adapter(base, recipe, folder), recipe


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_the_weights_are_held_as_the_log_says(tiny: Path, precision: str):
    """Linears in 4 bits; embedding, head and norms in the precision of the run; the LoRA matrices in float32."""
    model, _ = four_bit(tiny, precision)
    assert frozen_precision(model, getattr(torch, precision)) == f"{precision} with 14 matrices in 4 bits"
    assert all(p.dtype == torch.float32 for p in trainable(model).values())
    other = torch.float32 if precision == "bfloat16" else torch.bfloat16
    with pytest.raises(TypeError, match="frozen weights are not"):
        frozen_precision(model, other)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_trains_under_autocast(tiny: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool):
    """The loss falls, also with activations computed twice; the computation is in bfloat16, as is said."""
    seen: set[torch.dtype] = set()
    model, recipe = four_bit(tiny, gradient_checkpointing=checkpointing, gradient_accumulation=4)
    model.get_base_model().model.layers[1].mlp.register_forward_hook(lambda _m, _i, output: seen.add(output.dtype))
    trained = train(model, tiny_rows(tiny), recipe, Progress(lambda _line: None))
    assert trained.log[-1].loss < trained.log[0].loss - 0.05
    assert "plain path" in trained.engine
    assert seen == {torch.bfloat16}


def test_an_untrained_adapter_is_noticed(tiny: Path, tmp_path: Path):
    """In the check's measure, and where the evaluation loads it beside its quantized base."""
    model, recipe = four_bit(tiny, gradient_accumulation=4)
    row = tiny_rows(tiny)[0]
    assert prediction_difference(model.eval(), row)["divergence"] < MIN_DIVERGENCE
    write_adapter(model, tmp_path / "untrained", "tiny")
    with pytest.raises(UserError, match="changes no weight"):
        load_student(tiny, recipe.base_model, tmp_path / "untrained")
    model, recipe = four_bit(tiny, gradient_accumulation=4)
    train(model, tiny_rows(tiny), recipe, Progress(lambda _line: None))
    assert prediction_difference(model.eval(), row)["divergence"] > MIN_DIVERGENCE
    write_adapter(model, tmp_path / "trained", "tiny")
    assert load_student(tiny, recipe.base_model, tmp_path / "trained").model is not None
