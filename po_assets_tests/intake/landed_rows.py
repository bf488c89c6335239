"""Landed rows for tests, in every format, and a landing folder to put them into."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
from upath import UPath

from po_assets.dag import Artifacts, JsonlIOManager
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


def rows_of(texts: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """A row in each format, all of the same concept, requirements, vision and review, some of which may be given."""
    given = {"concept": CONCEPT, "requirements": REQUIREMENTS, "vision": VISION, "review": REVIEW} | dict(texts or {})
    concept, requirements, vision, review = given.values()
    prompt, answer = build_prompt(concept, requirements), format_answer(vision, review)
    system = {"role": "system", "content": "You are a Product Owner."}
    asked, answered = {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}
    opening, _, rest = prompt.partition("\n\n")
    body = {"id": "c-1", "choices": [{"index": 0, "message": answered, "finish_reason": "stop"}], "usage": {"n": 1}}
    return {
        "teacher": {
            "concept": concept,
            "requirements_yaml": requirements,
            "teacher_product_vision": vision,
            "teacher_product_owner_review": review,
            "score": 0.9,
            "metadata": {"model": "teacher-1"},
        },
        "nested": {
            "input": {
                "concept_id": "C-1",
                "concept": concept,
                "requirements_yaml": requirements,
                "tier": "medium",
                "metadata": {"region": "EU"},
            },
            "output": {"product_vision": vision, "product_owner_review": review},
            "metadata": {"seconds": 3},
            "score": 0.9,
        },
        "prompt/output": {
            "concept_id": "C-2",
            "tier": "simple",
            "prompt": f"You are a Product Owner.\n\nCONCEPT:\n{concept}\n\nREQUIREMENTS:\n{requirements}\n"
            "Respond with two fenced YAML blocks: VISION and REVIEW.",
            "output": answer,
            "score": 0.9,
        },
        "pair": {"prompt": prompt, "response": answer},
        "prompt/completion": {"prompt": [asked], "completion": [answered]},
        "preference": {"prompt": prompt, "chosen": answer, "rejected": "I do not know."},
        "chat": {"messages": [system, asked, answered]},
        "sharegpt": {"conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]},
        "alpaca": {"instruction": opening, "input": rest, "output": answer},
        "batch": {  # a line of a batch output file into which the request's body was put
            "id": "batch_req_1",
            "custom_id": "row-1",
            "body": {"model": "m", "messages": [system, asked]},
            "response": {"status_code": 200, "request_id": "r", "body": body},
            "error": None,
        },
    }


def row_in(format_name: str, texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row in one format; `more` replaces or adds keys."""
    return rows_of(texts)[format_name] | more


BUILDERS: dict[str, Callable[..., dict[str, Any]]] = {name: partial(row_in, name) for name in rows_of()}
teacher_row, nested_row, prompt_output_row = (BUILDERS[name] for name in ("teacher", "nested", "prompt/output"))
pair_row, completion_row, chat_row, batch_row = (
    BUILDERS[name] for name in ("pair", "prompt/completion", "chat", "batch")
)


def vision_prompt_row(texts: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row in the prompt/output format whose prompt shows the vision instead of a concept."""
    given = rows_of(texts)["teacher"]
    prompt = (
        "You are a Product Owner. Review the requirements against the product vision.\n\n"
        f"```yaml VISION\n{given['teacher_product_vision']}```\n\n"
        f"```yaml REQUIREMENTS\n{given['requirements_yaml']}```\n\n"
        "Respond with two fenced YAML blocks: VISION and REVIEW."
    )
    return prompt_output_row(texts) | {"prompt": prompt} | more


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
    table.publish()
    return summary


def materialize(
    layout: Layout, definitions: Sequence[Any], selection: Any, resources: Mapping[str, Any]
) -> dg.ExecuteInProcessResult:
    """Materialize these assets with their checks, or only what is selected, on the files of a root."""
    artifacts = Artifacts(root=str(layout.root))
    given = {"artifacts": artifacts, "io_manager": JsonlIOManager(artifacts=artifacts), **resources}
    return dg.materialize(definitions, selection=selection, resources=given, raise_on_error=False)


def judged(layout: Layout, check: str, **policy: Any) -> dg.AssetCheckResult:
    """What a check of the teacher rows says of the files as they stand, as its page shows it."""
    checks = raw_checks if check in raw_checks.names else normalized_checks
    verdict = checks.verdicts(TableEvidence(layout, IntakeSettings(**policy)), {check})[check]
    return to_check_result(check, checks.asset, verdict)
