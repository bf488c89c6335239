"""The asset and its checks through Dagster: what people see when it goes well, and what each check says when it does not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import pytest
import torch
from safetensors.torch import load_file, save_file
from upath import UPath

from po_assets.dag import Artifacts, JsonlIOManager, Tracking
from po_assets.dataset.settings import PromptSettings
from po_assets.errors import UserError
from po_assets.model import BaseModel
from po_assets.storage import Layout, file_digest, read_manifest, write_manifest
from po_assets.training import checks
from po_assets.training.assets import lora_adapter
from po_assets.training.checks import label_faults, lora_adapter_checks
from po_assets.training.rows import TokenizedRow
from po_assets.training.settings import TrainingSettings
from po_assets_tests.training.tiny_training import make_artifacts, write_supervised


@dg.asset(io_manager_key="io_manager")
def supervised_dataset() -> None:
    """Only stands for the real one in the graph; its file is already there."""


def _run(
    layout: Layout, selection: dg.AssetSelection, settings: dict[str, Any], tracking: Tracking | None = None
) -> dg.ExecuteInProcessResult:
    artifacts = Artifacts(root=str(layout.root))
    base_model = BaseModel(base_model=str(layout.root / "tiny"))
    return dg.materialize(
        [supervised_dataset, lora_adapter, lora_adapter_checks],
        selection=selection,
        resources={
            "artifacts": artifacts,
            "io_manager": JsonlIOManager(artifacts=artifacts),
            "prompt": PromptSettings(),
            "recipe": TrainingSettings(base_model=base_model, precision="float32", **settings),
            "tracking": tracking or Tracking(),
        },
        raise_on_error=False,
    )


def materialize(layout: Layout, tracking: Tracking | None = None, **settings: Any) -> dg.ExecuteInProcessResult:
    recipe = {"rank": 4, "alpha": 8, "learning_rate": 1e-2, "epochs": 2.0, "gradient_accumulation": 4} | settings
    return _run(layout, dg.AssetSelection.assets(lora_adapter), recipe, tracking)


def run_checks(layout: Layout, **settings: Any) -> dict[str, dg.AssetCheckEvaluation]:
    """The checks alone, on the adapter as it stands."""
    result = _run(layout, dg.AssetSelection.checks_for_assets(lora_adapter), settings)
    return {e.check_name: e for e in result.get_asset_check_evaluations()}


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = result.get_step_failure_events()
    return str(event.step_failure_data.user_failure_data.description)


class Finished(NamedTuple):
    """A place with a trained adapter, to be copied and not changed, and the run that made it."""

    layout: Layout
    result: dg.ExecuteInProcessResult


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    layout = make_artifacts(tmp_path_factory.mktemp("finished") / "artifacts")
    return Finished(layout, materialize(layout))


@pytest.fixture
def trained(finished: Finished, tmp_path: Path) -> Layout:
    """A copy with the adapter and its base model."""
    shutil.copytree(str(finished.layout.root), tmp_path / "trained")
    return Layout(UPath(tmp_path / "trained"))


def test_a_materialization_shows_what_people_want_to_see(finished: Finished):
    """Loss curve, speed, rows, steps, parameters, precision and why; the digest is the data version; all checks pass."""
    layout, result = finished
    assert result.success
    (event,) = result.asset_materializations_for_node("lora_adapter")
    manifest = read_manifest(layout.adapter)
    assert manifest is not None
    assert event.tags is not None
    assert event.tags["dagster/data_version"] == manifest.sha256
    metadata = event.metadata
    assert str(metadata["loss_curve"].value).startswith("![Loss per trained token](data:image/png;base64,")
    assert next(iter(metadata)) == "trained"
    assert metadata["trained"].value == "6 steps on 12 of 12 rows"
    assert metadata["steps"].value == 6
    for name in ("training_seconds", "first_loss", "last_loss", "tokens_per_second", "peak_memory_gib"):
        assert metadata[name].value == round(metadata[name].value, 4), name
    assert metadata["trainable_parameters"].value == sum(
        tensor.numel() for tensor in load_file(str(layout.adapter / "adapter_model.safetensors")).values()
    )
    assert metadata["precision"].value == "float32 (as the recipe asks)"
    assert "fast path" in str(metadata["computation"].value)
    assert float(metadata["tokens_per_second"].value) > 0
    assert metadata["last_loss"].value < metadata["first_loss"].value
    evaluations = {e.check_name: e for e in result.get_asset_check_evaluations()}
    assert {name: e.passed for name, e in evaluations.items()} == {
        "loads": True,
        "changes_the_model": True,
        "training_is_sane": True,
    }


@pytest.mark.parametrize(
    ("recipe", "trained"),
    [
        ({"epochs": 0.5}, "2 steps on 6 of 12 rows"),
        ({"validation_share": 0.25, "epochs": 1.0}, "3 steps on 9 of 12 rows"),
    ],
)
def test_rows_that_the_adapter_did_not_see_are_not_counted(layout: Layout, recipe: dict[str, Any], trained: str):
    """Those after the last step, and those of the validation loss."""
    (event,) = materialize(layout, **recipe).asset_materializations_for_node("lora_adapter")
    assert event.metadata["trained"].value == trained


def test_numbers_are_observed_while_it_trains(finished: Finished):
    """Numeric observations, which the UI plots before the asset is finished."""
    events = [e for e in finished.result.all_events if e.event_type_value == "ASSET_OBSERVATION"]
    observed = events[0].asset_observation_data.asset_observation.metadata
    assert {"train/loss", "train/tokens_per_second", "train/step"} <= set(observed)
    assert all(isinstance(value.value, float) for value in observed.values())


def test_nothing_new_is_unchanged_with_the_same_data_version(finished: Finished):
    """A second materialization returns at once and leaves everything downstream fresh."""
    results = (finished.result, materialize(finished.layout))
    first, second = (result.asset_materializations_for_node("lora_adapter")[0] for result in results)
    assert first.metadata["unchanged"].value is False
    assert second.metadata["unchanged"].value is True
    assert first.tags["dagster/data_version"] == second.tags["dagster/data_version"]
    assert second.metadata["steps"].value == 6


def test_a_failed_gate_stops_training_with_the_reason(layout: Layout):
    """The run's page shows one sentence and the way out, and nothing is retried."""
    write_supervised(layout, [("a", "b")], passed=False)
    result = materialize(layout)
    assert not result.success
    assert "did not pass its gate. schema: 2 of 12 rows are in a wrong form." in failure(result)


def test_every_wrong_setting_is_named_in_one_failure(layout: Layout):
    """As many attempts as there are faults would be too many."""
    with pytest.raises(UserError) as raised:
        materialize(layout, rank=0, dropout=2.0, scheduler="cosin")
    for part in ("3 wrong settings", "rank is 0", "dropout is 2.0", "scheduler is 'cosin'"):
        assert part in str(raised.value)


def test_an_empty_dataset_is_refused(layout: Layout):
    """No rows, no student."""
    write_supervised(layout, [])
    assert "supervised_dataset is empty" in failure(materialize(layout))


def rewrite_weights(layout: Layout, change: Any, *, honest: bool = True) -> None:
    """Change the adapter's tensors; `honest` keeps the manifest's digests true."""
    path = Path(str(layout.adapter / "adapter_model.safetensors"))
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    manifest = read_manifest(layout.adapter)
    assert manifest is not None
    if honest:
        manifest.extra["files"][path.name] = file_digest(path)
        write_manifest(layout.adapter, manifest)


def test_loads_fails_without_an_adapter(layout: Layout):
    """The message says where there is none and what to do."""
    loads = run_checks(layout)["loads"]
    assert not loads.passed
    assert "no finished adapter" in str(loads.description)
    assert "**What to do:** Materialize lora_adapter again." in str(loads.description)


def test_loads_fails_on_a_damaged_file(trained: Layout):
    """Bytes that are not those of the manifest are not loaded at all."""
    rewrite_weights(trained, lambda tensors: {k: v + 1 for k, v in tensors.items()}, honest=False)
    loads = run_checks(trained)["loads"]
    assert not loads.passed
    assert "adapter_model.safetensors" in str(loads.description)
    assert "changed or damaged" in str(loads.description)


def without_one(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.down_proj.lora_B" not in name}


def with_nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = min(tensors)
    return tensors | {name: torch.full_like(tensors[name], float("nan"))}


@pytest.mark.parametrize(("change", "fault"), [(without_one, "missing"), (with_nan, "not finite")])
def test_loads_fails_on_missing_and_on_broken_matrices(trained: Layout, change: Any, fault: str):
    """PEFT would load both without an error; the table names the matrix."""
    rewrite_weights(trained, change)
    loads = run_checks(trained)["loads"]
    assert not loads.passed
    assert "matrices 1 is missing, left over or not finite" in str(loads.description)
    (record,) = loads.metadata["rows"].records
    assert record.data["fault"] == fault


def test_loads_fails_on_another_base_model(trained: Layout):
    """Shapes that do not fit are said in words, not in a stack trace."""
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(
        LlamaConfig(vocab_size=259, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(trained.root / "tiny")
    found = run_checks(trained)
    assert not found["loads"].passed
    assert "does not load onto" in str(found["loads"].description)
    assert not found["changes_the_model"].passed


def test_a_gpu_without_room_is_not_taken_for_a_wrong_adapter(trained: Layout, monkeypatch: pytest.MonkeyPatch):
    """It says nothing about the adapter, which another training would make again."""

    def no_room(*_arguments: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("po_assets.training.checks.load_base_model", no_room)
    loads = run_checks(trained)["loads"]
    assert not loads.passed
    assert "Memory ran out while the adapter was loaded" in str(loads.description)
    assert "the adapter stays in place" in str(loads.description)


def test_changes_the_model_fails_on_an_untrained_adapter(trained: Layout):
    """B matrices of zeros are a valid adapter that does nothing: the evaluation would measure the base model."""
    rewrite_weights(trained, lambda t: {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in t.items()})
    found = run_checks(trained)
    assert found["loads"].passed
    assert not found["changes_the_model"].passed
    assert "by 0.0000 nats per token (at least 0.001 wanted)" in str(found["changes_the_model"].description)
    assert "untrained or not in effect" in str(found["changes_the_model"].description)


def rewrite_losses(layout: Layout, losses: list[float]) -> None:
    path = layout.adapter / "training_log.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [json.dumps(record | {"loss": loss}) for record, loss in zip(records, losses, strict=True)]
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0, 1.1, 1.2, 1.2, 1.3, 1.4], "The loss did not fall: 1.000 in the first quarter, 1.400 in the last."),
        ([2.0, 1.0, float("nan"), 0.9, 0.9, 0.8], "not finite in 1 of 6 steps, first in step 3"),
    ],
)
def test_training_is_sane_fails_on_losses_that_are_not(trained: Layout, losses: list[float], expected: str):
    """A rising and a broken loss, with advice on the learning rate."""
    rewrite_losses(trained, losses)
    sane = run_checks(trained)["training_is_sane"]
    assert not sane.passed
    assert expected in str(sane.description)
    assert "Lower learning_rate" in str(sane.description)


def test_training_is_sane_shows_a_row_with_what_is_trained_marked(trained: Layout):
    """The prompt with its template is not trained; the answer with its end-of-sequence token is."""
    sane = run_checks(trained)["training_is_sane"]
    assert sane.passed
    assert "All 12 rows end in a trained end-of-sequence token" in str(sane.description)
    prompt, answer = (record.data for record in sane.metadata["rows"].records)
    assert (prompt["trained"], answer["trained"]) == ("no", "yes")
    assert str(prompt["text"]).endswith("<|im_start|>assistant\n")
    assert str(answer["text"]) == "status aligned  end<|im_end|>"
    assert "**Trained (" in str(sane.metadata["sample_row"].value)


def test_training_is_sane_fails_when_the_data_changed_afterwards(trained: Layout):
    """It would otherwise judge rows that were never trained on."""
    write_supervised(trained, [("other", "rows")])
    sane = run_checks(trained)["training_is_sane"]
    assert not sane.passed
    assert "supervised dataset changed since" in str(sane.description)


class Mislabelled(TokenizedRow):
    """A row that is trained on the wrong tokens."""

    def __init__(self, row: TokenizedRow, weights: list[float]) -> None:
        super().__init__(row.ids, row.prompt_length)
        object.__setattr__(self, "_weights", weights)

    @property
    def token_weights(self) -> list[float]:
        """The wrong ones."""
        return list(self._weights)


EOS = 9
GOOD = TokenizedRow((1, 2, 3, 4, EOS), prompt_length=3)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (Mislabelled(GOOD, [0, 0, 1, 1, 1]), "a prompt token is trained"),
        (Mislabelled(GOOD, [0, 0, 0, 1, 0]), "an answer token is not trained"),
        (TokenizedRow((1, 2, 3, 4, 5), 3), "it does not end in a trained end-of-sequence token"),
        (TokenizedRow((1, 2, 3), 3), "it does not end in a trained end-of-sequence token"),
        (TokenizedRow((1, 2, EOS, 4, EOS), 2), "an end-of-sequence token stands inside the answer"),
    ],
)
def test_rows_trained_on_the_wrong_tokens_are_found(row: TokenizedRow, reason: str):
    """Each way in which it can go wrong, named with the row's number."""
    long = TokenizedRow((1, 2, 3, 4, 5, 6, EOS), 3)
    assert label_faults([long, GOOD], EOS) == []
    assert label_faults([long, row], EOS) == [{"row": 2, "tokens": len(row.ids), "reason": reason}]


def test_weights_that_slip_by_a_row_are_found(monkeypatch: pytest.MonkeyPatch):
    """Rows stand one behind the other in a batch: a shifted border would train prompts and miss answers."""
    collate = checks.collate

    def shifted(rows: list[TokenizedRow]) -> Any:
        batch = collate(rows)
        return replace(batch, token_weights=batch.token_weights.roll(1, dims=1))

    monkeypatch.setattr(checks, "collate", shifted)
    long = TokenizedRow((1, 2, 3, 4, 5, 6, EOS), 3)
    reasons = [fault["reason"] for fault in label_faults([long, GOOD], EOS)]
    assert reasons == ["a prompt token is trained; an answer token is not trained"] * 2
