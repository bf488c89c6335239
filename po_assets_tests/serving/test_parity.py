"""Exported forms are asked by the runtimes that serve them: a healthy one passes, each kind of damage is found."""

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from upath import UPath

from po_assets import cli
from po_assets.dag import Artifacts, Verdict, read_gate
from po_assets.dataset.cases import read_eval_cases
from po_assets.errors import UserError
from po_assets.model import BaseModel, base_model_digest
from po_assets.product_owner import format_answer
from po_assets.serving.assets import ExportSettings, exported_student, exported_student_checks
from po_assets.serving.gguf_file import write_gguf
from po_assets.serving.parity import Exported, Said, ask_gguf, exported_checks, parity
from po_assets.storage import Layout, Manifest, file_digest, write_manifest
from po_assets_tests.model.tiny_model import CHAT_TEMPLATE, edit_json, random_adapter
from po_assets_tests.sample_data.sample_rows import ARTIFACTS

SAMPLE = UPath(ARTIFACTS / "evaluation" / "po_eval_cases.jsonl")
CASES = read_eval_cases(SAMPLE)[:5]
GOOD = format_answer(CASES[0].reference_vision_yaml or "", CASES[0].reference_review_yaml or "")


def make_parrot(folder: Path) -> None:
    """A tiny Llama that was taught one good answer, which it gives to whatever is asked; its stop token is no usual one."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|im_start|>", "<|stop|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([*(case.prompt for case in CASES), *[GOOD] * 3], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=special[0], eos_token=special[1], pad_token=special[1]
    )
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|im_end|>", special[1])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=bpe.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0)
    answer = [*tokenizer(GOOD, add_special_tokens=False)["input_ids"], 1]
    for step in range(140):
        turn = [{"role": "user", "content": CASES[step % len(CASES)].prompt}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        loss = model(torch.tensor([prompt + answer]), labels=torch.tensor([[-100] * len(prompt) + answer])).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 5e-3 * max(0.05, 1 - step / 140)
    assert loss.item() < 0.05, "the tiny model did not learn its answer"
    with torch.no_grad():  # the same function, with outliers as large models have them: 8 bits hold those, 4 do not
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[::2] *= 16
            layer.mlp.down_proj.weight[:, ::2] /= 16
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_adapter(base: Path, folder: Path) -> None:
    """One that changes next to nothing."""
    random_adapter(base, folder, ["up_proj"], strength=1e-4)
    files = {name: file_digest(folder / name) for name in ("adapter_model.safetensors", "adapter_config.json")}
    inputs = {"base_model": base_model_digest(base)}
    write_manifest(folder, Manifest(sha256="a" * 64, inputs=inputs, extra={"files": files}))


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, BaseModel]:
    """A current student, five cases, and its base model."""
    import torch

    root = tmp_path_factory.mktemp("root")
    layout, base = Layout(UPath(root)), root / "base"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is faster on one
    try:
        make_parrot(base)
    finally:
        torch.set_num_threads(threads)
    make_adapter(base, Path(str(layout.current)))
    (root / "evaluation").mkdir()
    lines = SAMPLE.read_text().splitlines(keepends=True)[: len(CASES)]
    (root / "evaluation" / "po_eval_cases.jsonl").write_text("".join(lines))
    return layout, BaseModel(profile="embedded", base_model=str(base))


@dg.asset(name="eval_report")
def evaluated() -> None:
    """Stands for the real one."""


def materialize(student: tuple[Layout, BaseModel], *forms: str) -> Any:
    layout, spec = student
    return dg.materialize(
        [evaluated, exported_student, exported_student_checks],
        resources={
            "artifacts": Artifacts(root=str(layout.root)),
            "base_model": spec,
            "export": ExportSettings(forms=list(forms), cases=len(CASES)),
        },
        raise_on_error=False,
    )


@pytest.fixture(scope="module")
def exported(student: tuple[Layout, BaseModel]) -> tuple[Exported, Any]:
    """What a run of the job writes, and its result."""
    pytest.importorskip("xllamacpp", reason="needs the extra export")
    result = materialize(student, "safetensors", "f16", "q8_0")
    layout, spec = student
    return Exported(layout, layout.exported, spec.resolved(), len(CASES)), result


def damaged(exported: tuple[Exported, Any], folder: Path, form: Any = "f16", **settings: Any) -> Verdict:
    """The verdict on an export whose only form was written from changed tokenizer files."""
    found, _ = exported
    merged = shutil.copytree(str(found.folder / "merged"), folder / "changed")
    for name, value in settings.items():
        if name == "chat_template":
            (merged / "chat_template.jinja").write_text(value)
        else:
            edit_json(merged / "tokenizer_config.json", **{name: value})
    write_gguf(merged, folder / f"student-{form}.gguf", form, "damaged")
    shutil.rmtree(merged)
    shutil.copy(str(found.folder / "export.json"), folder)
    return exported_checks.verdicts(replace(found, folder=folder))["export_parity"]


@pytest.mark.slow
def test_healthy_forms_pass_by_the_runtimes_that_serve_them(exported: tuple[Exported, Any]) -> None:
    """llama.cpp and transformers; the verdict stands beside the forms, tied to their digests."""
    found, result = exported
    (check,) = result.get_asset_check_evaluations()
    assert check.passed, check.description
    assert result.success
    for form in ("student-f16.gguf", "student-q8_0.gguf", "merged"):
        assert f"{form}: against the adapter on 5 cases, its mean score differs by" in check.description
    record = read_gate(found.folder / "parity.json")
    assert (record.passed, record.sha256) == (True, file_digest(found.folder / "export.json"))
    rows = [row.data for row in check.metadata["rows"].value.records]
    assert {row["form"] for row in rows} == {"student-f16.gguf", "student-q8_0.gguf", "merged"}
    assert all(row["adapter_score"] > 0.5 and row["adapter_ends"] for row in rows)


@pytest.mark.slow
def test_a_wrong_chat_template_fails(exported: tuple[Exported, Any], tmp_path: Path) -> None:
    """Even though this student gives the same answer to whatever it reads."""
    verdict = damaged(
        exported, tmp_path, chat_template=CHAT_TEMPLATE.replace("<|im_end|>", " ").replace("user", "human")
    )
    assert not verdict.passed
    assert "it reads 5 of 5 prompts otherwise" in verdict.summary
    assert "chat template" in verdict.next_step


@pytest.mark.slow
def test_a_lost_stop_token_fails(exported: tuple[Exported, Any], tmp_path: Path) -> None:
    """The answers run on."""
    verdict = damaged(exported, tmp_path, eos_token="<|im_start|>", pad_token="<|im_start|>")
    assert not verdict.passed
    assert "it does not end 100% of its answers that should end" in verdict.summary
    row = verdict.rows[0]
    assert (row["adapter_ends"], row["exported_ends"]) == (True, False)
    assert row["adapter"]
    assert row["exported"]


@pytest.mark.slow
def test_damage_by_4_bits_fails(exported: tuple[Exported, Any], tmp_path: Path) -> None:
    """Answer stands beside answer, with what each is worth."""
    verdict = damaged(exported, tmp_path, "q4_0")
    assert not verdict.passed
    assert "its mean score is 0." in verdict.summary
    assert "serve q8_0 or f16" in verdict.next_step
    assert verdict.rows[0]["adapter_score"] > verdict.rows[0]["exported_score"]


def said(change: Any = str, *, finished: bool = True, ids: Any = (1, 2)) -> list[Said]:
    answers = [format_answer(case.reference_vision_yaml or "", case.reference_review_yaml or "") for case in CASES]
    return [Said(change(answer), finished, list(ids)) for answer in answers]


@pytest.mark.parametrize(
    ("exported", "fault"),
    [
        (said(lambda text: text.replace("narrative:", "comment:")), "its mean score is 0."),
        (said(finished=False), "it does not end 100% of its answers that should end"),
        (said(ids=(1, 3)), "it reads 5 of 5 prompts otherwise"),
    ],
)
def test_damage_is_found_and_shown_answer_beside_answer(exported: list[Said], fault: str) -> None:
    """Worse answers, a lost stop token, another template."""
    verdict = parity(CASES, said(), exported)
    assert not verdict.passed
    assert fault in verdict.summary
    assert {"case", "adapter", "exported", "adapter_score", "exported_score"} <= set(verdict.rows[0])


def test_other_words_of_the_same_worth_pass() -> None:
    """Rounding leads greedy answers apart; what counts is what they are worth. One of five that runs on may be chance."""
    other = said(lambda text: text.replace("product_summary: ", "product_summary: So, "))
    verdict = parity(CASES, said(), [replace(other[0], finished=False), *other[1:]])
    assert verdict.passed, verdict.summary
    assert "0 of the answers are the same" in verdict.summary


def test_what_cannot_be_judged_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No export, one of another adapter, or the runtime is missing: then the extra is named."""
    from po_assets.serving import parity as module

    layout = Layout(UPath(tmp_path))
    found = Exported(layout, layout.exported, BaseModel().resolved(), 5)

    def summary() -> str:
        verdict = exported_checks.verdicts(found)["export_parity"]
        assert not verdict.passed
        return verdict.summary

    current = Path(str(layout.current))
    current.mkdir(parents=True)
    (current / "adapter_config.json").write_text("{}")
    write_manifest(current, Manifest(sha256="a" * 64))
    assert "holds no export (export.json is missing). Materialize exported_student." in summary()
    Path(str(layout.exported)).mkdir()
    (layout.exported / "export.json").write_text(json.dumps({"adapter_digest": "b" * 64}))
    assert "They were made of the adapter bbbbbbbbbbbb, and this is aaaaaaaaaaaa. Export it anew." in summary()
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(UserError, match=r"needs the extra `export`: make setup EXTRAS=export"):
        module.ask_gguf(tmp_path / "x.gguf", [])


@pytest.mark.parametrize("cases", ["-1", "4"])
def test_so_few_cases_that_chance_decides_are_refused(cases: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is exported."""
    assert cli.main(["export", "--parity", cases]) == 1
    assert f"--parity is {cases}; give 5 cases or more" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs the extra `export`")
def test_a_file_that_llama_cpp_cannot_load_is_one_sentence(tmp_path: Path) -> None:
    """Whatever makes it so."""
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"llama.cpp cannot load x.gguf \(.*serve the safetensors form instead"):
        ask_gguf(tmp_path / "x.gguf", [])


def test_settings_of_the_export_are_refused_with_what_is_known() -> None:
    """Forms by name."""
    with pytest.raises(UserError, match=r"forms names 'q2_k'; known are safetensors, f16, q8_0, q4_0"):
        ExportSettings(forms=["q2_k"])
