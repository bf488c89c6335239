"""The Product Owner domain: its documents, the one prompt, the answer's form, the validator and the metric.

Everything here is plain text in, plain values out. Nothing here knows Dagster, files, models or training.
"""

from po_assets.product_owner.answer import (
    AnswerVerdict,
    ParsedAnswer,
    format_answer,
    parse_answer,
    validate_answer,
)
from po_assets.product_owner.documents import (
    STATUSES,
    RequirementEntry,
    YamlReading,
    cited_ids,
    read_status,
    read_yaml,
    requirement_entries,
    strip_fences,
)
from po_assets.product_owner.metric import METRIC_VERSION, ProductOwnerScore, score_product_owner
from po_assets.product_owner.prompt import PROMPT_VERSION, PromptParts, build_prompt, split_prompt

__all__ = [
    "METRIC_VERSION",
    "PROMPT_VERSION",
    "STATUSES",
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
    "validate_answer",
]
