"""Landed rows for tests, in every format, and a landing folder to put them into."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from upath import UPath

from po_assets.intake.lines import Line
from po_assets.product_owner import build_prompt, format_answer
from po_assets.storage import Layout
from po_assets_tests.product_owner.documents_text import REQUIREMENTS, REVIEW, VISION

CONCEPT = "A route planner for small delivery companies"


def documents(
    concept: str = CONCEPT, requirements: str = REQUIREMENTS, vision: str = VISION, review: str = REVIEW
) -> dict[str, str]:
    """The four texts of a row."""
    return {"concept": concept, "requirements": requirements, "vision": vision, "review": review}


def teacher_row(texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row in the teacher format; `more` replaces or adds keys."""
    given = documents(**(texts or {}))
    row = {
        "concept": given["concept"],
        "requirements_yaml": given["requirements"],
        "teacher_product_vision": given["vision"],
        "teacher_product_owner_review": given["review"],
        "score": 0.9,
        "metadata": {"model": "teacher-1"},
    }
    return row | more


def nested_row(texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row in the nested format."""
    given = documents(**(texts or {}))
    row = {
        "input": {
            "concept_id": "C-1",
            "concept": given["concept"],
            "requirements_yaml": given["requirements"],
            "tier": "medium",
            "metadata": {"region": "EU"},
        },
        "output": {"product_vision": given["vision"], "product_owner_review": given["review"]},
        "metadata": {"seconds": 3},
        "score": 0.9,
    }
    return row | more


def prompt_output_row(texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row in the prompt/output format with CONCEPT and REQUIREMENTS sections."""
    given = documents(**(texts or {}))
    row = {
        "concept_id": "C-2",
        "tier": "simple",
        "prompt": f"You are a Product Owner.\n\nCONCEPT:\n{given['concept']}\n\nREQUIREMENTS:\n{given['requirements']}\n"
        "Respond with two fenced YAML blocks: VISION and REVIEW.",
        "output": format_answer(given["vision"], given["review"]),
        "score": 0.9,
    }
    return row | more


def vision_prompt_row(texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row in the prompt/output format whose prompt shows the vision instead of a concept."""
    given = documents(**(texts or {}))
    prompt = (
        "You are a Product Owner. Review the requirements against the product vision.\n\n"
        f"```yaml VISION\n{given['vision']}```\n\n```yaml REQUIREMENTS\n{given['requirements']}```\n\n"
        "Respond with two fenced YAML blocks: VISION and REVIEW."
    )
    return prompt_output_row(texts) | {"prompt": prompt} | more


def pair_row(texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row in the pair format, as supervised_dataset writes it."""
    given = documents(**(texts or {}))
    return {
        "prompt": build_prompt(given["concept"], given["requirements"]),
        "response": format_answer(given["vision"], given["review"]),
    } | more


def chat_row(texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row in the chat format."""
    pair = pair_row(texts)
    return {
        "messages": [
            {"role": "system", "content": "You are a Product Owner."},
            {"role": "user", "content": pair["prompt"]},
            {"role": "assistant", "content": pair["response"]},
        ]
    } | more


BUILDERS: dict[str, Callable[..., dict[str, Any]]] = {
    "teacher": teacher_row,
    "nested": nested_row,
    "prompt/output": prompt_output_row,
    "pair": pair_row,
    "chat": chat_row,
}


def encode(row: Mapping[str, Any]) -> bytes:
    """A row as a JSON line, without newline."""
    return json.dumps(row, ensure_ascii=False).encode()


def line_of(data: bytes | Mapping[str, Any], number: int = 1, file: str = "a.jsonl") -> Line:
    """A landed line."""
    raw = data if isinstance(data, bytes) else encode(data)
    return Line(file, number, raw, len(raw))


def land(root: Path, **files: bytes | list[Mapping[str, Any]]) -> Layout:
    """A landing folder under `root` with one file per name, from rows or raw bytes."""
    incoming = root / "incoming"
    incoming.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else b"".join(encode(row) + b"\n" for row in content)
        (incoming / f"{name}.jsonl").write_bytes(data)
    return Layout(UPath(root))
