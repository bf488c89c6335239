"""How a teacher is asked about a payload; the words stand in `product_owner.prompts`."""

from po_assets.product_owner.prompts import TEACHER_INSTRUCTIONS as INSTRUCTIONS
from po_assets.product_owner.prompts import TEACHER_PROMPT_VERSION, teacher_messages
from po_assets.teacher.payloads import Payload

__all__ = ["INSTRUCTIONS", "TEACHER_PROMPT_VERSION", "messages_for"]


def messages_for(payload: Payload, instructions: str = "", reminder: str = "") -> list[dict[str, str]]:
    """The conversation that asks about a payload; `reminder` says what was missing in the last answer."""
    return teacher_messages(payload.concept, payload.requirements_yaml, instructions, reminder)
