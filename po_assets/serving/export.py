"""The student for other runtimes: merged safetensors, GGUF files, an Ollama Modelfile, a vLLM command line.

The folder is whole or not there. How a GGUF file is laid out belongs to `gguf_file`, whether an exported form still
answers as the adapter does to `parity`.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from upath import UPath

from po_assets.dag import Verdict
from po_assets.dataset.cases import read_eval_cases
from po_assets.errors import UserError
from po_assets.model import BaseModel, base_model_digest, ensure_base_model, load_base_model, load_tokenizer
from po_assets.product_owner import build_prompt
from po_assets.serving.engine import base_spec, student_folder
from po_assets.serving.gguf_file import check_gguf, write_gguf
from po_assets.serving.parity import ask_adapter, ask_gguf, parity
from po_assets.storage import (
    Layout,
    atomic_directory,
    directory_digest,
    file_digest,
    is_disk_full,
    read_manifest,
)
from po_assets.training.student import adapter_problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Format = Literal["safetensors", "f16", "q8_0"]
FORMATS: tuple[Format, ...] = get_args(Format)
RECORD = "export.json"
MERGED = "merged"
MODELFILE = "Modelfile"
_BYTES = {"safetensors": 2.0, "f16": 2.0, "q8_0": 1.07}
"""Bytes a parameter."""
_ADAPTER_ONLY = {"adapter_config.json", "adapter_model.safetensors", "manifest.json", "README.md"}
_MARKS = ("\ue000S\ue001", "\ue000U\ue001", "\ue000A\ue001", "\ue000V\ue001")

Say = Callable[[str], object]


def export_student(
    layout: Layout,
    target: Path,
    *,
    adapter: Path | None = None,
    model: str | None = None,
    formats: Sequence[Format] = FORMATS,
    say: Say = lambda _text: None,
) -> Path:
    """Write the current student, or an adapter, to the folder `target`, which is replaced if it is an earlier export.

    Raises:
        UserError: there is no such student, it does not fit the base model, the disk is full, or the folder is in use
            for something else. Nothing half-written is left.
    """
    if target.exists() and not (target / RECORD).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{str(target)!r} exists and is not an earlier export. Name another folder or remove it first.")
    spec = base_spec(model)
    with student_folder(layout, adapter) as folder:
        base = ensure_base_model(spec, layout)
        if read_manifest(UPath(folder)) and (problem := adapter_problem(folder, base_model_digest(base))):
            raise UserError(f"The adapter cannot be exported: {problem}.")
        if set(formats) - {"safetensors"}:
            check_gguf(base)
        parameters = sum(file.stat().st_size for file in base.glob("*.safetensors")) / 2  # which have 16 bits
        needed = parameters * sum(_BYTES[kind] for kind in {*formats, "safetensors"})
        with _disk_full_is_an_error(target, needed), atomic_directory(target) as staging:
            merged = _merge(base, spec, folder, staging / MERGED)
            say(f"Merged {folder} into {spec.name}")
            _write_card(folder, merged)
            for quantization in ("f16", "q8_0"):
                if quantization in formats:
                    file = staging / f"student-{quantization}.gguf"
                    write_gguf(merged, file, quantization, f"{Path(spec.name).name} Product Owner student")
                    say(f"Wrote {file.name} ({file.stat().st_size / 1e6:,.0f} MB)")
            _write_instructions(staging, merged, formats)
            if "safetensors" not in formats:
                shutil.rmtree(merged)
            files = [file for file in sorted(staging.rglob("*")) if file.is_file()]
            record = {
                "base_model": spec.name,
                "base_model_digest": base_model_digest(base),
                "adapter_digest": directory_digest(UPath(folder)),
                "files": {file.relative_to(staging).as_posix(): file_digest(file) for file in files},
            }
            (staging / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    return target


def check_parity(
    layout: Layout, exported: Path, cases: int, *, adapter: Path | None = None, model: str | None = None
) -> Iterator[tuple[str, Verdict]]:
    """Each GGUF file of an export against the adapter, on the first so many evaluation cases.

    Raises:
        UserError: as `export_student`; the runtime of GGUF files is not installed, or the cases cannot be used.
    """
    asked = read_eval_cases(layout.eval_cases)[:cases]
    spec = base_spec(model)
    with student_folder(layout, adapter) as folder:
        ours = cache(ask_adapter(ensure_base_model(spec, layout), spec, folder))
        for file in sorted(exported.glob("*.gguf")):
            yield file.name, parity(asked, ours, ask_gguf(file))


def merge_adapter(base: Path, spec: BaseModel, adapter: Path) -> "PreTrainedModel":
    """The base model with the adapter in its weights, in bfloat16.

    Merged in float32 and rounded once. An adapter that was trained on 4-bit weights is merged into the whole ones.

    Raises:
        UserError: the folder holds no adapter for this base model.
    """
    import torch
    from peft import PeftModel

    model = load_base_model(base, "float32", device="cpu")
    try:
        student = PeftModel.from_pretrained(model, str(adapter))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if line and not line.endswith(":")), type(error).__name__)[:200]
        raise UserError(
            f"The adapter in {str(adapter)!r} does not fit the base model {spec.name!r} ({reason}). Name the base "
            "model that it was trained on with --base-model, or set PO_PROFILE."
        ) from error
    merged: PreTrainedModel = student.merge_and_unload().to(torch.bfloat16)
    return merged


def modelfile(tokenizer: Any, gguf: str, context: int) -> str:
    """Ollama's Modelfile for a GGUF file beside it: template, system text, stop tokens, greedy decoding.

    The template is read off the chat template by rendering a conversation with marks in it.

    Raises:
        UserError: the chat template takes no system text, or marks the end of turns in a way that is not known here.
    """
    system, user, answer, last = _MARKS
    end = str(tokenizer.eos_token)

    def rendered(*turns: tuple[str, str]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    whole = rendered(("system", system), ("user", user), ("assistant", answer), ("user", last))
    pieces = []
    for mark in _MARKS:
        piece, found, whole = whole.partition(mark)
        pieces.append(piece if found else end)
    before_system, after_system, after_user, after_answer = pieces
    if end not in after_system or end not in after_user or end not in after_answer:
        raise UserError(
            f"The chat template does not end each turn with {end!r}, so that no Ollama template can be made of it. "
            "Write the Modelfile by hand, or serve the GGUF file with llama.cpp, which reads the chat template itself."
        )
    close_system, open_user = _cut(after_system, end)
    close_answer, _ = _cut(after_answer, end)
    alone = rendered(("user", user)).partition(user)[0]
    default = alone.removeprefix(before_system).removesuffix(f"{close_system}{open_user}") if alone != open_user else ""
    template = (
        f"{{{{ if .System }}}}{before_system}{{{{ .System }}}}{close_system}{{{{ end }}}}"
        f"{open_user}{{{{ .Prompt }}}}{whole}{{{{ .Response }}}}{close_answer}"
    )
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{template}"""']
    lines += [f'SYSTEM """{default}"""'] if default else []
    lines += [f'PARAMETER stop "{token}"' for token in _stop_tokens(tokenizer)]
    return "\n".join([*lines, "PARAMETER temperature 0", f"PARAMETER num_ctx {context}"]) + "\n"


def vllm_command(folder: str, context: int) -> str:
    """The command line that serves the merged folder with vLLM, with greedy decoding as in the evaluation."""
    return (
        f"vllm serve {folder} --served-model-name po-student --max-model-len {context} --generation-config vllm "
        "--override-generation-config '{\"temperature\": 0.0}'"
    )


def _cut(piece: str, end: str) -> tuple[str, str]:
    """What closes a turn (with the line break behind it), and what opens the next."""
    at = piece.index(end) + len(end)
    at += len(piece[at:]) - len(piece[at:].lstrip("\n"))
    return piece[:at], piece[at:]


def _stop_tokens(tokenizer: Any) -> list[str]:
    """The end of a turn, and where an answer would go on as another's turn."""
    return [str(token) for token in dict.fromkeys((tokenizer.eos_token, tokenizer.bos_token)) if token]


def _merge(base: Path, spec: BaseModel, adapter: Path, folder: Path) -> Path:
    """The merged model with tokenizer, chat template and generation settings, as transformers and vLLM read it."""
    from transformers.utils import logging as hf_logging

    folder.mkdir()
    hf_logging.disable_progress_bar()
    merge_adapter(base, spec, adapter).save_pretrained(folder, safe_serialization=True)
    load_tokenizer(base).save_pretrained(folder)
    if (base / "generation_config.json").exists():
        shutil.copy(base / "generation_config.json", folder)
    for file in adapter.iterdir():  # what travels with the adapter (its prompt) goes on with it
        if file.is_file() and file.name not in _ADAPTER_ONLY and not (folder / file.name).exists():
            shutil.copy(file, folder)
    return folder


def _write_card(adapter: Path, merged: Path) -> None:
    from huggingface_hub import ModelCard

    source = adapter / "README.md"
    card = ModelCard(source.read_text(encoding="utf-8") if source.exists() else "---\n---\n\n# Product Owner student\n")
    card.data.library_name = "transformers"
    card.data.tags = [tag for tag in card.data.tags or [] if tag not in ("lora", "peft")] or None
    note = "\n\n## This copy\n\nThe adapter is merged into the base model's weights (bfloat16).\n"
    (merged / "README.md").write_text(f"{str(card).rstrip()}{note}", encoding="utf-8")


def _write_instructions(staging: Path, merged: Path, formats: Sequence[Format]) -> None:
    config = json.loads((merged / "config.json").read_text())
    context = int(config["max_position_embeddings"])
    ggufs = [f"student-{kind}.gguf" for kind in ("q8_0", "f16") if kind in formats]
    parts = ["# The Product Owner student, exported\n"]
    if "safetensors" in formats:
        parts.append(f"`{MERGED}/`: safetensors (bfloat16), tokenizer, chat template, generation settings. vLLM:\n")
        parts.append(f"    {vllm_command(f'./{MERGED}', context)}\n")
    if ggufs:
        (staging / MODELFILE).write_text(modelfile(load_tokenizer(merged), ggufs[0], context), encoding="utf-8")
        parts.append(f"{', '.join(f'`{name}`' for name in ggufs)}: GGUF files. llama.cpp:\n")
        parts.append(f"    llama-server -m {ggufs[0]} --jinja --temp 0\n")
        parts.append(f"`{MODELFILE}`: for Ollama, with `{ggufs[0]}`:\n\n    ollama create po-student -f {MODELFILE}\n")
    prompt = build_prompt("{concept}", "{requirements}")
    parts.append(
        "The user's turn is this prompt, the one that the student was trained and evaluated with; another one gives "
        f"worse answers. Decode greedily.\n\n~~~\n{prompt}\n~~~\n"
    )
    (staging / "README.md").write_text("\n".join(parts), encoding="utf-8")


@contextlib.contextmanager
def _disk_full_is_an_error(target: Path, needed: float) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise UserError(
            f"The disk of {str(target.parent)!r} is full: the export needs about {needed / 1e9:.1f} GB. Free space, or "
            "name another folder with --to, or fewer formats with --format. Nothing was left of this export."
        ) from error
