"""The student for other runtimes: merged safetensors, GGUF files, an Ollama Modelfile, a vLLM command line.

The folder is whole or not there. How a GGUF file is laid out belongs to `gguf_file`, whether an exported form still
answers as the adapter does to `parity`.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from jinja2 import Template
from upath import UPath

from po_assets.errors import UserError
from po_assets.evaluation.answering import merged
from po_assets.evaluation.gate import GATE_FILE
from po_assets.model import BaseModel, base_model_digest, ensure_base_model, load_base_model, load_tokenizer
from po_assets.serving.engine import adapter_digest, student_folder
from po_assets.serving.gguf_file import Quantization, check_gguf, write_gguf
from po_assets.serving.parity import MERGED, RECORD
from po_assets.storage import (
    Layout,
    atomic_directory,
    file_digest,
    is_disk_full,
    published_directory,
    read_manifest,
)
from po_assets.text import fenced
from po_assets.training.handover import RECORD as PROMPT_RECORD
from po_assets.training.handover import TEMPLATE, travelled_prompt
from po_assets.training.student import adapter_problem

Form = Literal["safetensors", "f16", "q8_0", "q4_0"]
FORMS: tuple[Form, ...] = get_args(Form)
DEFAULT_FORMS: tuple[Form, ...] = ("safetensors", "f16", "q8_0")
"""Without q4_0, which a small model does not survive unharmed."""
MODELFILE = "Modelfile"
_BYTES = {"safetensors": 2.0, "f16": 2.0, "q8_0": 1.07, "q4_0": 0.57}
"""Bytes a parameter."""
_ADAPTER_ONLY = {"adapter_config.json", "adapter_model.safetensors", "manifest.json", "README.md"}
_MARKS = ("\ue000S\ue001", "\ue000U\ue001", "\ue000A\ue001", "\ue000V\ue001")

Say = Callable[[str], object]


def export_student(
    layout: Layout,
    target: UPath | Path,
    *,
    adapter: Path | None = None,
    spec: BaseModel | None = None,
    forms: Sequence[Form] = DEFAULT_FORMS,
    say: Say = lambda _text: None,
) -> dict[str, Any]:
    """Write the current student, or an adapter, to the folder `target`, which is replaced if it is an earlier export.

    Returns the record that stands there as `export.json`: `base_model`, `adapter_digest`, the sha256 of all `files`.

    Raises:
        UserError: there is no such student, it does not fit the base model, the disk is full, or the folder is in use
            for something else. Nothing half-written is left.
    """
    there = published_directory(target)
    if there.exists() and not (there / RECORD).is_file() and not (there.is_dir() and not any(there.iterdir())):
        raise UserError(f"{str(target)!r} exists and is not an earlier export. Name another folder or remove it first.")
    spec = (spec or BaseModel()).resolved()
    with student_folder(layout, adapter) as folder:
        base = ensure_base_model(spec, layout)
        digest = base_model_digest(base)
        if read_manifest(UPath(folder)) and (problem := adapter_problem(folder, digest)):
            raise UserError(f"The adapter cannot be exported: {problem}.")
        ggufs: list[Quantization] = [form for form in get_args(Quantization) if form in forms]
        if ggufs:
            check_gguf(base)
        parameters = sum(file.stat().st_size for file in base.glob("*.safetensors")) / 2  # which have 16 bits
        needed = parameters * sum(_BYTES[form] for form in {*forms, "safetensors"})
        try:
            with atomic_directory(target) as staging:
                whole = _merge(base, spec, folder, staging / MERGED)
                say(f"Merged {folder} into {spec.name}")
                for form in ggufs:
                    file = staging / f"student-{form}.gguf"
                    write_gguf(whole, file, form, f"{Path(spec.name).name} Product Owner student")
                    say(f"Wrote {file.name} ({file.stat().st_size / 1e6:,.0f} MB)")
                _write_instructions(folder, staging, whole, forms)
                if "safetensors" not in forms:
                    shutil.rmtree(whole)
                written = [file for file in sorted(staging.rglob("*")) if file.is_file()]
                record = {
                    "base_model": spec.name,
                    "base_model_digest": digest,
                    "adapter_digest": adapter_digest(folder),
                    "files": {file.relative_to(staging).as_posix(): file_digest(file) for file in written},
                }
                (staging / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        except Exception as error:
            if not is_disk_full(error):
                raise
            raise UserError(
                f"The disk of {str(target.parent)!r} is full: the export needs about {needed / 1e9:.1f} GB. Free "
                "space, or name another folder with --to, or fewer formats with --format. Nothing was left of this "
                "export."
            ) from error
    return record


def merge_adapter(base: Path, spec: BaseModel, adapter: Path) -> Any:
    """The base model (transformers) with the adapter in its weights, in bfloat16.

    Merged layer by layer in float32, each rounded once. An adapter that was trained on 4-bit weights is
    merged into the whole ones.

    Raises:
        UserError: the folder holds no adapter for this base model.
    """
    from peft import PeftModel

    try:
        return merged(PeftModel.from_pretrained(load_base_model(base, "bfloat16", device="cpu"), str(adapter)))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if line and not line.endswith(":")), type(error).__name__)[:200]
        raise UserError(
            f"The adapter in {str(adapter)!r} does not fit the base model {spec.name!r} ({reason}). Name the base "
            "model that it was trained on with --base-model, or set PO_PROFILE."
        ) from error


def modelfile(tokenizer: Any, gguf: str, context: int, system_text: str = "") -> str:
    """Ollama's Modelfile for a GGUF file beside it: template, system text, stop tokens, greedy decoding.

    The system text is the prompt's; where it has none, the chat template's own.

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
    if any('"""' in text for text in (template, system_text, default)):
        raise UserError(
            'A Modelfile cannot hold \'"""\', which stands in the chat template or in the system text of the prompt. '
            "Take it out there, or export without a GGUF format."
        )
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{template}"""']
    lines += [f'SYSTEM """{system_text or default}"""'] if system_text or default else []
    # The end of a turn, and where an answer would go on as another's turn.
    stops = dict.fromkeys(filter(None, (tokenizer.eos_token, tokenizer.bos_token)))
    lines += [f'PARAMETER stop "{token}"' for token in stops]
    return "\n".join([*lines, "PARAMETER temperature 0", f"PARAMETER num_ctx {context}"]) + "\n"


def _cut(piece: str, end: str) -> tuple[str, str]:
    """What closes a turn (with the line break behind it), and what opens the next."""
    at = piece.index(end) + len(end)
    at += len(piece[at:]) - len(piece[at:].lstrip("\n"))
    return piece[:at], piece[at:]


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


def _card(adapter: Path, note: str) -> str:
    """The adapter's model card for its merged copies, with a note at the end."""
    from huggingface_hub import ModelCard

    source = adapter / "README.md"
    card = ModelCard(source.read_text(encoding="utf-8") if source.exists() else "---\n---\n\n# Product Owner student\n")
    card.data.library_name = "transformers"
    card.data.tags = [tag for tag in card.data.tags or [] if tag not in ("lora", "peft")] or None
    note = f"The adapter is merged into the base model's weights (bfloat16).\n\n{note}"
    return f"{str(card).rstrip()}\n\n## This copy\n\n{note.rstrip()}\n"


def _write_instructions(adapter: Path, staging: Path, whole: Path, forms: Sequence[Form]) -> None:
    """The cards, the Modelfile, and what travels with the adapter: its prompt, and the verdict of its gate."""
    prompt = travelled_prompt(adapter)
    context = int(json.loads((whole / "config.json").read_text())["max_position_embeddings"])
    ggufs = [f"student-{form}.gguf" for form in ("q8_0", "f16", "q4_0") if form in forms]
    if "safetensors" in forms:
        (whole / "README.md").write_text(_card(adapter, ""), encoding="utf-8")
    if ggufs:
        written = modelfile(load_tokenizer(whole), ggufs[0], context, prompt.system)
        (staging / MODELFILE).write_text(written, encoding="utf-8")
    note = Template(files(__package__).joinpath("export.md.j2").read_text(encoding="utf-8"), trim_blocks=True).render(
        merged="safetensors" in forms,
        ggufs=ggufs,
        context=context,
        asked=fenced(prompt.user("{concept}", "{requirements}")),
        system=fenced(prompt.system) if prompt.system else "",
    )
    (staging / "README.md").write_text(_card(adapter, note), encoding="utf-8")
    for name in (TEMPLATE, PROMPT_RECORD, GATE_FILE):
        if (adapter / name).is_file():
            shutil.copy(adapter / name, staging)
