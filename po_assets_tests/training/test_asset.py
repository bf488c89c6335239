"""The asset and its checks through Dagster: what people see when it goes well, and what each check says when it does not."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from upath import UPath

from po_assets.dag import Artifacts, JsonlIOManager, Tracking
from po_assets.dataset.settings import PromptSettings
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


def materialize(
    layout: Layout, tracking: Tracking | None = None, *, selection: dg.AssetSelection | None = None, **settings: Any
) -> dg.ExecuteInProcessResult:
    """The adapter with its checks, or what else is selected."""
    artifacts = Artifacts(root=str(layout.root))
    base_model = BaseModel(base_model=str(layout.root / "tiny"))
    recipe = {"rank": 4, "alpha": 8, "learning_rate": 1e-2, "epochs": 2.0, "gradient_accumulation": 4} | settings
    return dg.materialize(
        [supervised_dataset, lora_adapter, lora_adapter_checks],
        selection=selection or dg.AssetSelection.assets(lora_adapter),
        resources={
            "artifacts": artifacts,
            "io_manager": JsonlIOManager(artifacts=artifacts),
            "prompt": PromptSettings(),
            "recipe": TrainingSettings(base_model=base_model, precision="float32", **recipe),
            "tracking": tracking or Tracking(),
        },
        raise_on_error=False,
    )


def run_checks(layout: Layout) -> dict[str, dg.AssetCheckEvaluation]:
    """The checks alone, on the adapter as it stands."""
    result = materialize(layout, selection=dg.AssetSelection.checks_for_assets(lora_adapter))
    return {e.check_name: e for e in result.get_asset_check_evaluations()}


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


@pytest.mark.parametrize(
    ("pairs", "passed", "said"),
    [
        ([("a", "b")], False, "did not pass its gate. schema: 2 of 12 rows are in a wrong form."),
        ([], True, "supervised_dataset is empty"),
    ],
    ids=["a failed gate", "an empty dataset"],
)
def test_data_that_cannot_be_trained_on_stops_the_run_with_the_reason(
    layout: Layout, pairs: list[tuple[str, str]], passed: bool, said: str
):
    """The run's page shows one sentence and the way out, and nothing is retried."""
    write_supervised(layout, pairs, passed=passed)
    (event,) = materialize(layout).get_step_failure_events()
    assert said in str(event.step_failure_data.user_failure_data.description)


def rewrite_weights(layout: Layout, change: Any, *, honest: bool = True) -> None:
    """Change the adapter's tensors; `honest` keeps the manifest's digests true."""
    path = Path(str(layout.adapter / "adapter_model.safetensors"))
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    manifest = read_manifest(layout.adapter)
    assert manifest is not None
    if honest:
        manifest.extra["files"][path.name] = file_digest(path)
        write_manifest(layout.adapter, manifest)


def without_adapter(layout: Layout) -> None:
    shutil.rmtree(str(layout.adapter))


def damaged(layout: Layout) -> None:
    rewrite_weights(layout, lambda tensors: {k: v + 1 for k, v in tensors.items()}, honest=False)


def reconfigured(layout: Layout) -> None:
    path = layout.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 2}))


def with_another_base(layout: Layout) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=259, **sizes)).save_pretrained(layout.root / "tiny")


def untrained(layout: Layout) -> None:
    """B matrices of zeros are a valid adapter that does nothing: the evaluation would measure the base model."""
    rewrite_weights(layout, lambda t: {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in t.items()})


def rewrite_losses(layout: Layout, losses: list[float]) -> None:
    path = layout.adapter / "training_log.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("\n".join(json.dumps(r | {"loss": loss}) for r, loss in zip(records, losses, strict=True)))


def with_rising_loss(layout: Layout) -> None:
    rewrite_losses(layout, [1.0, 1.1, 1.2, 1.2, 1.3, 1.4])


def with_broken_loss(layout: Layout) -> None:
    rewrite_losses(layout, [2.0, 1.0, math.nan, 0.9, 0.9, 0.8])


def with_other_rows(layout: Layout) -> None:
    """The check would otherwise judge rows that were never trained on."""
    write_supervised(layout, [("other", "rows")])


NO_CHANGE = "by 0.0000 nats per token (at least 0.001 wanted)"
RISING = "The loss did not fall: 1.000 in the first quarter, 1.400 in the last."
NOT_FINITE = "not finite in 1 of 6 steps, first in step 3"


@pytest.mark.parametrize(
    ("harm", "failing", "said"),
    [
        (without_adapter, ["loads"], ["no finished adapter", "**What to do:** Materialize lora_adapter again."]),
        (damaged, ["loads"], ["adapter_model.safetensors", "changed or damaged"]),
        (reconfigured, ["loads"], ["adapter_config.json", "changed or damaged"]),
        (with_another_base, ["loads", "changes_the_model"], ["does not load onto"]),
        (untrained, ["changes_the_model"], [NO_CHANGE, "untrained or not in effect"]),
        (with_rising_loss, ["training_is_sane"], [RISING, "Lower learning_rate"]),
        (with_broken_loss, ["training_is_sane"], [NOT_FINITE, "Lower learning_rate"]),
        (with_other_rows, ["training_is_sane"], ["supervised dataset changed since"]),
    ],
)
def test_what_is_wrong_fails_its_check_in_words(
    trained: Layout, harm: Callable[[Layout], None], failing: list[str], said: list[str]
):
    """Not in a stack trace, and with what to do."""
    harm(trained)
    found = run_checks(trained)
    assert found["loads"].passed is ("loads" not in failing)
    for name in failing:
        assert not found[name].passed
        assert [part for part in said if part not in str(found[name].description)] == []


def without_one(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.down_proj.lora_B" not in name}


def with_nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = min(tensors)
    return tensors | {name: torch.full_like(tensors[name], math.nan)}


@pytest.mark.parametrize(("change", "fault"), [(without_one, "missing"), (with_nan, "not finite")])
def test_loads_fails_on_missing_and_on_broken_matrices(trained: Layout, change: Any, fault: str):
    """PEFT would load both without an error; the table names the matrix."""
    rewrite_weights(trained, change)
    loads = run_checks(trained)["loads"]
    assert not loads.passed
    assert "matrices 1 is missing, left over or not finite" in str(loads.description)
    (record,) = loads.metadata["rows"].records
    assert record.data["fault"] == fault


def test_a_gpu_without_room_is_not_taken_for_a_wrong_adapter(trained: Layout, monkeypatch: pytest.MonkeyPatch):
    """It says nothing about the adapter, which another training would make again."""

    def no_room(*_arguments: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(checks, "load_base_model", no_room)
    loads = run_checks(trained)["loads"]
    assert not loads.passed
    assert "Memory ran out while the adapter was loaded" in str(loads.description)
    assert "the adapter stays in place" in str(loads.description)


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


EOS = 9
GOOD = TokenizedRow((1, 2, 3, 4, EOS), prompt_length=3)


def mislabelled(weights: list[float]) -> TokenizedRow:
    """`GOOD`, trained on the wrong tokens."""

    class Mislabelled(TokenizedRow):
        token_weights = weights

    return Mislabelled(GOOD.ids, GOOD.prompt_length)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (mislabelled([0, 0, 1, 1, 1]), "a prompt token is trained"),
        (mislabelled([0, 0, 0, 1, 0]), "an answer token is not trained"),
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
