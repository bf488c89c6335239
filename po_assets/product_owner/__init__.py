"""The Product Owner role, whole: its contract, documents, prompts, answer, metric and grammar.

Plain text in, plain values out. Nothing here knows Dagster, files, models or training, and the rest of the package
asks here instead of knowing the role itself. What several stages ask for is named here; the rest is imported from its
module: `contract` holds the constants, `templates` the prompts as files, `grammar` what steers decoding.
"""

from po_assets.product_owner.answer import ParsedAnswer, format_answer, in_order, parse_answer, validate_answer
from po_assets.product_owner.contract import STATUSES
from po_assets.product_owner.documents import (
    RequirementEntry,
    cited_ids,
    read_alignment,
    read_status,
    read_yaml,
    requirement_entries,
    strip_fences,
)
from po_assets.product_owner.metric import METRIC_VERSION, score_product_owner
from po_assets.product_owner.prompt_parts import split_prompt
from po_assets.product_owner.prompts import PROMPT_VERSION, PromptParts, build_prompt
