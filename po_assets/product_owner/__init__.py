"""The Product Owner role, whole: its contract, documents, prompts, answer, metric and grammar.

Plain text in, plain values out. Nothing here knows Dagster, files, models or training, and the rest of the package
asks here instead of knowing the role itself. `contract` holds the constants and `grammar` what steers decoding; both
are imported from there.
"""

from po_assets.product_owner.answer import (
    ParsedAnswer,
    column_document,
    format_answer,
    in_order,
    parse_answer,
    validate_answer,
)
from po_assets.product_owner.blocks import strip_reasoning, without_outer_fence
from po_assets.product_owner.contract import STATUS_ALIASES, STATUSES
from po_assets.product_owner.documents import (
    RequirementEntry,
    canonical_status,
    cited_ids,
    read_alignment,
    read_status,
    read_yaml,
    requirement_entries,
    strip_fences,
    with_status,
    written_value,
)
from po_assets.product_owner.metric import METRIC_VERSION, ProductOwnerScore, score_product_owner
from po_assets.product_owner.prompt_parts import split_prompt
from po_assets.product_owner.prompts import (
    PROMPT_VERSION,
    PromptParts,
    build_prompt,
    teacher_messages,
)

__all__ = [
    "METRIC_VERSION",
    "PROMPT_VERSION",
    "STATUSES",
    "STATUS_ALIASES",
    "ParsedAnswer",
    "ProductOwnerScore",
    "PromptParts",
    "RequirementEntry",
    "build_prompt",
    "canonical_status",
    "cited_ids",
    "column_document",
    "format_answer",
    "in_order",
    "parse_answer",
    "read_alignment",
    "read_status",
    "read_yaml",
    "requirement_entries",
    "score_product_owner",
    "split_prompt",
    "strip_fences",
    "strip_reasoning",
    "teacher_messages",
    "validate_answer",
    "with_status",
    "without_outer_fence",
    "written_value",
]
