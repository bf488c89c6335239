from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from upath import UPath

from po_assets.errors import UserError
from po_assets.model import load_base_model
from po_assets.storage import Layout, file_digest, read_manifest
from po_assets.text import Progress
from po_assets.training import student
from po_assets.training.adapter import write_gate_section
from po_assets.training.student import Student, adapter_problem, make_student
from po_assets_tests.model.tiny_model import make_tiny_model
from po_assets_tests.training.tiny_training import (
    FULL_DISK,
    PAIRS,
    make_artifacts,
    make_recipe,
    publish,
    tiny_recipe,
    write_supervised,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Student]:
    """A place with a published adapter, to be left as it is."""
    layout = make_artifacts(tmp_path_factory.mktemp("finished") / "artifacts")
    return layout, publish(layout)[0]


def test_the_published_adapter_is_whole_and_loads_with_peft(finished: tuple[Layout, Student]):
    """Weights, configuration, log, card, and a manifest of what it was made of; PEFT applies it to the base model."""
    layout, made = finished
    names = {path.name for path in layout.adapter.iterdir()}
    assert names == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "training_log.jsonl",
        "README.md",
        "manifest.json",
        *("prompt.jinja", "prompt.json", "generation_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    assert read_manifest(layout.adapter) == made.manifest
    assert made.manifest.rows == len(PAIRS)
    assert made.manifest.inputs["supervised_dataset"] == file_digest(layout.supervised)
    assert made.manifest.extra["files"] == {
        name: file_digest(layout.adapter / name)
        for name in names - {"training_log.jsonl", "README.md", "manifest.json"}
    }
    base = load_base_model(Path(str(layout.root)) / "tiny", "float32", device="cpu")
    ids = torch.arange(3, 20).unsqueeze(0)
    before = base(ids).logits
    loaded = PeftModel.from_pretrained(base, str(layout.adapter))
    assert not torch.allclose(loaded(ids).logits, before, atol=1e-3)
    assert len((layout.adapter / "training_log.jsonl").read_text().splitlines()) == len(made.log) == 6
    assert adapter_problem(layout.adapter) is None


def test_unchanged_data_and_recipe_train_nothing(layout: Layout):
    """Said in the log; the folder is not touched, and its digest is the same."""
    first, _ = publish(layout)
    stamp = (layout.adapter / "adapter_model.safetensors").stat().st_mtime_ns
    again, said = publish(layout, workers=3)
    assert said == ["Unchanged: the adapter was made from the same data, recipe and base model; nothing to train."]
    assert again == replace(first, unchanged=True)
    assert (layout.adapter / "adapter_model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("change", ["data", "recipe", "base model", "damaged adapter"])
def test_whatever_changes_the_student_trains_again(layout: Layout, change: str):
    """Data, recipe, base model; and an adapter whose files are not those of its manifest."""
    first, _ = publish(layout)
    settings = {"seed": 1} if change == "recipe" else {}
    pairs = PAIRS
    match change:
        case "data":
            pairs = [*PAIRS, ("one more", "row")]
            write_supervised(layout, pairs)
        case "base model":
            make_tiny_model(Path(str(layout.root)) / "tiny", seed=5)
        case "damaged adapter":
            (layout.adapter / "adapter_model.safetensors").write_bytes(b"damaged")
    again, _ = publish(layout, pairs, **settings)
    assert not again.unchanged
    assert (again.manifest.sha256 == first.manifest.sha256) == (change == "damaged adapter")
    assert adapter_problem(layout.adapter) is None


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda layout: layout.supervised_gate.unlink(), "no gate record"),
        (lambda layout: write_supervised(layout, PAIRS, passed=False), "did not pass its gate. schema: 2 of 12 rows"),
        (lambda layout: layout.supervised.write_text(layout.supervised.read_text() + "{}\n"), "for other data"),
        (lambda _layout: None, "max_length is 64"),
    ],
    ids=["no gate record", "a gate that did not pass", "a record for other bytes", "rows that do not fit"],
)
def test_data_that_cannot_be_trained_on_is_refused_before_training(layout: Layout, harm: Any, reason: str):
    """However someone asks for it; nothing is cut."""
    harm(layout)
    with pytest.raises(UserError, match=reason):
        publish(layout, max_length=64)
    assert not layout.adapter.exists()


def test_the_paper_profile_is_refused_without_a_gpu_before_any_work(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    """No download, no digest, no lock: the refusal comes first."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(student, "ensure_base_model", lambda *_: pytest.fail("work was done"))
    monkeypatch.setattr(student, "file_digest", lambda *_: pytest.fail("work was done"))
    with pytest.raises(UserError, match="'paper' needs a CUDA GPU"):
        make_student(layout, PAIRS, make_recipe({"profile": "paper"}), Progress(print))


@pytest.mark.parametrize("error", FULL_DISK)
def test_a_full_disk_leaves_the_previous_adapter(layout: Layout, monkeypatch: pytest.MonkeyPatch, error: Exception):
    """The message says what to do; when there is space again, the last checkpoint spares the training."""
    first, _ = publish(layout)

    def full(*_args: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(student, "write_adapter", full)
        with pytest.raises(UserError, match=r"disk is full.*Free some space.*previous adapter is still in place"):
            publish(layout, seed=1)
    assert read_manifest(layout.adapter) == first.manifest
    assert adapter_problem(layout.adapter) is None
    again, _ = publish(layout, seed=1)
    assert again.manifest.extra["resumed_at"] == again.manifest.extra["steps"] == 6


def test_two_trainings_at_once_do_not_mix(layout: Layout):
    """The second one is told to wait."""
    with student._training_lock(layout), pytest.raises(UserError, match="Another run is training"):
        publish(layout)
    assert publish(layout)[0].log


def test_the_card_tells_what_the_adapter_is(finished: tuple[Layout, Student]):
    """Base model, data digest, ledger counts, recipe, hardware and time, in the form that the Hub reads."""
    layout, made = finished
    card = ModelCard.load(str(layout.adapter / "README.md"))
    assert card.data.library_name == "peft"
    assert "lora" in card.data.tags
    for fact in (
        made.manifest.inputs["supervised_dataset"],
        "| below_min_score | 3 |",
        "| learning_rate | 0.01 |",
        "12 teacher rows",
        "6 steps",
        "float32",
        "cores of",
        "Not evaluated yet",
    ):
        assert fact in card.text


def test_the_gates_verdict_enters_the_card(layout: Layout):
    """A later verdict replaces the earlier one; the adapter's digest stays what it was."""
    made, _ = publish(layout)
    write_gate_section(layout.adapter, "an earlier one")
    write_gate_section(layout.adapter, "The gate **passed**.")
    text = (layout.adapter / "README.md").read_text()
    assert text.count("The gate **passed**.") == 1
    assert "an earlier one" not in text
    assert "Not evaluated yet" not in text
    assert read_manifest(layout.adapter) == made.manifest
    assert adapter_problem(layout.adapter) is None


def test_a_reader_sees_the_old_adapter_until_the_new_one_is_whole(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    """While the new one is being written, the old one is complete in its place."""
    first, _ = publish(layout)
    seen: list[object] = []
    atomic_directory = student.atomic_directory

    @contextmanager
    def watched(path: Any) -> Iterator[Path]:
        with atomic_directory(path) as staging:
            yield staging
            seen.append((read_manifest(layout.adapter), adapter_problem(layout.adapter)))

    monkeypatch.setattr(student, "atomic_directory", watched)
    second, _ = publish(layout, seed=3)
    assert seen == [(first.manifest, None)]
    assert read_manifest(layout.adapter) == second.manifest


def test_an_object_store_holds_the_adapter_as_well(layout: Layout):
    """The same weights as on disk, with manifest and card, unchanged the second time."""
    local, _ = publish(layout)
    remote = Layout(UPath("memory://po-test-student"))
    for name in ("supervised", "supervised_gate"):
        getattr(remote, name).parent.mkdir(parents=True, exist_ok=True)
        getattr(remote, name).write_bytes(getattr(layout, name).read_bytes())
    recipe = tiny_recipe(Path(str(layout.root)) / "tiny")
    made = make_student(remote, PAIRS, recipe, Progress(lambda _: None))
    assert made.manifest.sha256 == local.manifest.sha256
    assert adapter_problem(remote.adapter) is None
    assert make_student(remote, PAIRS, recipe, Progress(lambda _: None)).unchanged
