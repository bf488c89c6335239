"""The student for other runtimes: what is written is what the adapter is, and the runtime itself proves it."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from po_assets.errors import UserError
from po_assets.evaluation.answering import load_student
from po_assets.model import BaseModel, load_base_model, load_tokenizer
from po_assets.model.sources import find_embedded_gguf
from po_assets.serving import export
from po_assets.serving.export import export_student, modelfile
from po_assets.serving.gguf_file import check_gguf, write_gguf
from po_assets.serving.parity import ask_gguf, ask_model
from po_assets.storage import Layout
from po_assets_tests.model.tiny_model import edit_json, make_tiny_model, random_adapter

TEXTS = ("Say hello.", "List three fruits, please!", "requirements:\n- id: FR001\n  text: naïve 123")
PROMPTS = [[{"role": "user", "content": text}] for text in TEXTS]


def make_base(folder: Path, hidden: int = 32) -> Path:
    """A tiny Llama whose tokenizer has one merge: without any, llama.cpp takes no tokenizer."""
    make_tiny_model(folder, hidden=hidden)
    path = folder / "tokenizer.json"
    description = json.loads(path.read_text())
    vocabulary = description["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    vocabulary["Ġt"] = vocabulary.pop(last)
    description["model"]["merges"] = [["Ġ", "t"]]
    path.write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return random_adapter(base, tmp_path_factory.mktemp("adapter"), ["q_proj", "k_proj", "up_proj"])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, base: Path, adapter: Path) -> Path:
    root = tmp_path_factory.mktemp("root")
    export_student(Layout(UPath(root)), root / "out", adapter=adapter, spec=BaseModel(base_model=str(base)))
    return root / "out"


def test_all_forms_are_there_with_their_digests_and_instructions(exported: Path) -> None:
    """And nothing else in the folder around it."""
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert names >= {"student-f16.gguf", "student-q8_0.gguf", "Modelfile", "README.md", "merged/README.md"}
    assert names >= {f"merged/{name}" for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja")}
    record = json.loads((exported / "export.json").read_text())
    assert set(record["files"]) == names - {"export.json"}
    read_me = (exported / "README.md").read_text()
    for part in ("vllm serve ./merged", "ollama create", "llama-server", "You are a Product Owner."):
        assert part in read_me
    assert [path.name for path in exported.parent.iterdir()] == ["out"]


def test_merged_weights_give_the_adapters_logits(exported: Path, base: Path, adapter: Path) -> None:
    """To the rounding to 16 bits."""
    import torch
    from peft import PeftModel

    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        with_adapter = PeftModel.from_pretrained(load_base_model(base, "float32", device="cpu"), str(adapter))(
            ids
        ).logits
        merged = load_base_model(exported / "merged", "float32", device="cpu")(ids).logits
        alone = load_base_model(base, "float32", device="cpu")(ids).logits
    assert (with_adapter - merged).abs().max() < 0.02 * (with_adapter - alone).abs().max()


def test_the_runtime_answers_as_the_adapter_does(exported: Path, base: Path, adapter: Path) -> None:
    """llama.cpp with the f16 file: the same text, token by token, of a model that rounding would soon lead astray."""
    pytest.importorskip("xllamacpp", reason="needs the extra export")
    student = load_student(base, BaseModel(base_model=str(base)).resolved(), adapter)
    ours = [said for turns in PROMPTS for said in ask_model(student, [turns], max_tokens=8)]
    assert ask_gguf(exported / "student-f16.gguf", PROMPTS, max_tokens=8) == ours
    assert all(said.text for said in ask_gguf(exported / "student-q8_0.gguf", PROMPTS, max_tokens=8))


@pytest.mark.slow
def test_the_embedded_student_answers_the_same_as_gguf(tmp_path: Path) -> None:
    """The real tokenizer and weights; its tokens, merges and settings are those of the file that it came from."""
    from gguf import GGUFReader

    pytest.importorskip("xllamacpp", reason="needs the extra export")
    layout = Layout(UPath(tmp_path))
    spec = BaseModel(profile="embedded").resolved()
    folder = export.ensure_base_model(spec, layout)
    adapter = random_adapter(folder, tmp_path / "adapter", ["q_proj", "k_proj", "up_proj"], strength=0.002)
    out = tmp_path / "out"
    export_student(layout, out, adapter=adapter, forms=["f16"])
    original, written = GGUFReader(find_embedded_gguf()), GGUFReader(out / "student-f16.gguf")
    for key, field in original.fields.items():
        # transformers reads no splitting of digits off a GGUF file, and the student is trained with what it reads.
        if key.startswith(("tokenizer.", "llama.")) and key not in ("tokenizer.chat_template", "tokenizer.ggml.pre"):
            assert written.fields[key].contents() == field.contents(), key
    texts = ("Say hello in one sentence.", "What is the capital of France?")
    asked = [[{"role": "user", "content": text}] for text in texts]
    student = load_student(folder, spec, adapter)
    ours = [said for turns in asked for said in ask_model(student, [turns], max_tokens=12)]
    assert ask_gguf(out / "student-f16.gguf", asked, max_tokens=12) == ours


def test_the_modelfile_follows_the_chat_template(base: Path) -> None:
    """With the template's own system text where it has one; one that does not mark the ends of turns is refused."""
    tokenizer = load_tokenizer(base)
    text = modelfile(tokenizer, "student.gguf", 2048)
    assert (
        'TEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user\n'
        '{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"""'
    ) in text
    assert "SYSTEM" not in text
    assert text.startswith("FROM ./student.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "PARAMETER num_ctx 2048" in text

    assert 'SYSTEM """Guard it."""' in modelfile(tokenizer, "student.gguf", 2048, "Guard it.")

    default = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    tokenizer.chat_template = default + tokenizer.chat_template
    assert 'SYSTEM """Be kind"""' in modelfile(tokenizer, "student.gguf", 2048)

    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"
    )
    with pytest.raises(UserError, match=r"does not end each turn with '<\|im_end\|>'"):
        modelfile(tokenizer, "student.gguf", 2048)


def test_an_earlier_export_is_replaced_and_anything_else_is_not(tmp_path: Path, base: Path, adapter: Path) -> None:
    """Nobody loses a folder to a misspelt --to."""
    layout, target = Layout(UPath(tmp_path)), tmp_path / "out"
    for _ in range(2):
        export_student(layout, target, adapter=adapter, spec=BaseModel(base_model=str(base)), forms=["q8_0"])
    assert sorted(path.name for path in target.iterdir()) == [
        "Modelfile",
        "README.md",
        "export.json",
        "student-q8_0.gguf",
    ]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="exists and is not an earlier export"):
        export_student(layout, mine, adapter=adapter, spec=BaseModel(base_model=str(base)))
    assert (mine / "thesis.txt").read_text() == "years"


def test_a_wrong_adapter_or_base_is_one_sentence(tmp_path: Path, base: Path, adapter: Path) -> None:
    """And nothing is written."""
    layout, target = Layout(UPath(tmp_path / "root")), tmp_path / "root" / "out"
    with pytest.raises(UserError, match=r"does not fit the base model .*size mismatch.*--base-model"):
        export_student(
            layout, target, adapter=adapter, spec=BaseModel(base_model=str(make_base(tmp_path / "wide", 64)))
        )
    odd = shutil.copytree(base, tmp_path / "odd")
    edit_json(odd / "config.json", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(UserError, match=r"No GGUF file can be written of a model of type 'llama' with .*'yarn'"):
        check_gguf(odd)
    assert not target.exists()


@pytest.mark.parametrize("step", ["write_gguf", "_write_instructions"])
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, base: Path, adapter: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier export stays; the sentence says how much is needed."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    layout, target = Layout(UPath(tmp_path)), tmp_path / "out"
    export_student(layout, target, adapter=adapter, spec=BaseModel(base_model=str(base)), forms=["safetensors"])
    before = (target / "export.json").read_bytes()
    monkeypatch.setattr(export, step, full)
    with pytest.raises(UserError, match=r"The disk of .* is full: the export needs about .* GB\. Free space"):
        export_student(layout, target, adapter=adapter, spec=BaseModel(base_model=str(base)))
    assert (target / "export.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_head_of_its_own_and_short_rows_are_written_too(tmp_path: Path) -> None:
    """Not tied to the embeddings; rows that are no whole blocks stay in 16 bits."""
    from gguf import GGUFReader
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = make_base(tmp_path / "base")
    config = LlamaConfig.from_pretrained(folder)
    config.tie_word_embeddings, config.intermediate_size = False, 40
    LlamaForCausalLM(config).save_pretrained(folder)
    write_gguf(folder, tmp_path / "x.gguf", "q8_0", "x")
    write_gguf(folder, tmp_path / "y.gguf", "q4_0", "y")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "x.gguf").tensors}
    assert kinds["output.weight"] == kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert (kinds["blk.0.ffn_down.weight"], kinds["output_norm.weight"]) == ("F16", "F32")
    small = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "y.gguf").tensors}
    assert (small["blk.0.ffn_up.weight"], small["output.weight"], small["token_embd.weight"]) == (
        "Q4_0",
        "Q8_0",
        "Q8_0",
    )
