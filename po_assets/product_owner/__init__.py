"""The Product Owner role, whole: its contract, documents, prompts, answer, metric and grammar.

Plain text in, plain values out. Nothing here knows Dagster, files, models or training, and the rest of the package
asks here instead of knowing the role itself. `contract` holds the constants and `grammar` what steers decoding; both
are imported from there.
"""

from po_assets.product_owner.answer import AnswerVerdict, ParsedAnswer, format_answer, parse_answer, validate_answer
from po_assets.product_owner.contract import STATUSES
from po_assets.product_owner.documents import (
    RequirementEntry,
    YamlReading,
    cited_ids,
    read_status,
    read_yaml,
    requirement_entries,
    strip_fences,
)
from po_assets.product_owner.metric import METRIC_VERSION, ProductOwnerScore, score_product_owner
from po_assets.product_owner.prompts import (
    PROMPT_VERSION,
    TEACHER_INSTRUCTIONS,
    TEACHER_PROMPT_VERSION,
    PromptParts,
    build_prompt,
    split_prompt,
    teacher_messages,
)

__all__ = [
    "METRIC_VERSION",
    "PROMPT_VERSION",
    "STATUSES",
    "TEACHER_INSTRUCTIONS",
    "TEACHER_PROMPT_VERSION",
    "AnswerVerdict",
    "ParsedAnswer",
    "ProductOwnerScore",
    "PromptParts",
    "RequirementEntry",
    "YamlReading",
    "build_prompt",
    "cited_ids",
    "format_answer",
    "parse_answer",
    "read_status",
    "read_yaml",
    "requirement_entries",
    "score_product_owner",
    "split_prompt",
    "strip_fences",
    "teacher_messages",
    "validate_answer",
]
