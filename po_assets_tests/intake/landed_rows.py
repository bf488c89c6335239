"""Landed rows for tests, in every format, and a landing folder to put them into."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg
from upath import UPath

from po_assets.dag.verdict import to_check_result
from po_assets.intake.assets import IntakeSettings
from po_assets.intake.checks import TableEvidence, normalized_checks, raw_checks
from po_assets.intake.landing import list_landing, snapshot
from po_assets.intake.ledger import Summary, normalize_snapshot
from po_assets.intake.lines import Line
from po_assets.product_owner import build_prompt, format_answer
from po_assets.storage import Layout
from po_assets_tests.product_owner.documents_text import REQUIREMENTS, REVIEW, VISION

CONCEPT = "A route planner for small delivery companies"


def documents(texts: Mapping[str, str] | None) -> dict[str, str]:
    """The four texts of a row, some of which may be given."""
    return {"concept": CONCEPT, "requirements": REQUIREMENTS, "vision": VISION, "review": REVIEW} | dict(texts or {})


def teacher_row(texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row in the teacher format; `more` replaces or adds keys."""
    given = documents(texts)
    return {
        "concept": given["concept"],
        "requirements_yaml": given["requirements"],
        "teacher_product_vision": given["vision"],
        "teacher_product_owner_review": given["review"],
        "score": 0.9,
        "metadata": {"model": "teacher-1"},
    } | more


def nested_row(texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row in the nested format."""
    given = documents(texts)
    return {
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
    } | more


def prompt_output_row(texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row in the prompt/output format with CONCEPT and REQUIREMENTS sections."""
    given = documents(texts)
    return {
        "concept_id": "C-2",
        "tier": "simple",
        "prompt": f"You are a Product Owner.\n\nCONCEPT:\n{given['concept']}\n\nREQUIREMENTS:\n{given['requirements']}\n"
        "Respond with two fenced YAML blocks: VISION and REVIEW.",
        "output": format_answer(given["vision"], given["review"]),
        "score": 0.9,
    } | more


def vision_prompt_row(texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row in the prompt/output format whose prompt shows the vision instead of a concept."""
    given = documents(texts)
    prompt = (
        "You are a Product Owner. Review the requirements against the product vision.\n\n"
        f"```yaml VISION\n{given['vision']}```\n\n```yaml REQUIREMENTS\n{given['requirements']}```\n\n"
        "Respond with two fenced YAML blocks: VISION and REVIEW."
    )
    return prompt_output_row(texts) | {"prompt": prompt} | more


def pair_row(texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row in the pair format, as supervised_dataset writes it."""
    given = documents(texts)
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


def completion_row(texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row of the prompt/completion format, as a trainer's data set of conversations has it."""
    _, asked, answered = chat_row(texts)["messages"]
    return {"prompt": [asked], "completion": [answered]} | more


def preference_row(texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row with a chosen and a rejected answer."""
    pair = pair_row(texts)
    return {"prompt": pair["prompt"], "chosen": pair["response"], "rejected": "I do not know."} | more


def sharegpt_row(texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row in the ShareGPT format."""
    pair = pair_row(texts)
    turns = (("human", pair["prompt"]), ("gpt", pair["response"]))
    return {"conversations": [{"from": role, "value": text} for role, text in turns]} | more


def alpaca_row(texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row in the Alpaca format."""
    pair = pair_row(texts)
    opening, _, rest = pair["prompt"].partition("\n\n")
    return {"instruction": opening, "input": rest, "output": pair["response"]} | more


def batch_row(texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A line of a batch output file into which the request's body was put."""
    system, asked, answered = chat_row(texts)["messages"]
    body = {"id": "c-1", "choices": [{"index": 0, "message": answered, "finish_reason": "stop"}], "usage": {"n": 1}}
    return {
        "id": "batch_req_1",
        "custom_id": "row-1",
        "body": {"model": "m", "messages": [system, asked]},
        "response": {"status_code": 200, "request_id": "r", "body": body},
        "error": None,
    } | more


BUILDERS: dict[str, Callable[..., dict[str, Any]]] = {
    "teacher": teacher_row,
    "nested": nested_row,
    "prompt/output": prompt_output_row,
    "pair": pair_row,
    "prompt/completion": completion_row,
    "preference": preference_row,
    "chat": chat_row,
    "sharegpt": sharegpt_row,
    "alpaca": alpaca_row,
    "batch": batch_row,
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


def take_in(layout: Layout, workers: int | None = 1) -> Summary:
    """Snapshot, normalize and publish what has landed, as the graph does."""
    staged, sources = snapshot(list_landing(layout.incoming).files, layout.raw)
    staged.with_manifest(extra={"sources": [asdict(source) for source in sources]}).publish()
    table, summary = normalize_snapshot(layout, workers)
    table.with_manifest(inputs={"raw_teacher": staged.sha256}).publish()
    return summary


def judged(layout: Layout, check: str, **policy: Any) -> dg.AssetCheckResult:
    """What a check of the teacher rows says of the files as they stand, as its page shows it."""
    checks = raw_checks if check in raw_checks.names else normalized_checks
    verdict = checks.verdicts(TableEvidence(layout, IntakeSettings(**policy)), {check})[check]
    return to_check_result(check, checks.asset, verdict)
