"""What every part of the project agrees on about the role: keys, statuses, limits and thresholds, each stated once.

Only constants. How the documents are read belongs to `documents`, what makes an answer well-formed to `answer`, what
makes it good to `metric`, whose points are its own.
"""

VISION, REVIEW = "VISION", "REVIEW"
"""The labels of an answer's fenced blocks."""
CONCEPT, EXISTING_VISION, REQUIREMENTS = "CONCEPT", "EXISTING_VISION", "REQUIREMENTS"
"""The names of a prompt's sections; the second may be missing."""

VISION_LISTS = ("target_users", "value_proposition", "key_capabilities", "success_metrics")
"""Lists of the vision that must name something; `non_goals` may be empty."""
VISION_KEYS = (
    "product_name",
    "product_summary",
    "target_users",
    "value_proposition",
    "key_capabilities",
    "non_goals",
    "success_metrics",
    "last_updated",
)
NEEDED_VISION_KEYS = ("product_name", "product_summary")
"""Keys of the vision that the validator insists on; of the review it wants all."""

REVIEW_KEYS = ("status", "summary", "requirements_alignment", "recommended_actions", "narrative")
REVIEW_ORDER = ("summary", "status", "requirements_alignment", "recommended_actions", "narrative")
"""The order in which the student writes them: what a verdict rests on before the verdict. YAML and metric know none."""
ALIGNMENT_KEYS = ("aligned", "gaps", "conflicts")
"""The lists in the review's `requirements_alignment`."""

REQUIREMENT_SECTIONS = ("functional_requirements", "non_functional_requirements", "constraints")

STATUSES = ("aligned", "needs_adjustment", "conflicts")
"""What a review may say about the requirements, from agreement to contradiction."""
STATUS_ALIASES = {"misaligned": "conflicts"}
"""What others say instead: the agent that the student is trained for."""

MIN_ACTIONS = 2
"""`recommended_actions` that the validator asks for."""
MAX_NARRATIVE_WORDS = 120

MIN_SCORE = 0.82
"""The metric's score that an answer needs to be trained on, and that the student's answers need on average."""

# The gate, where a team sets nothing else.
GATE_CASES = 40
GATE_MEAN_SCORE = MIN_SCORE
GATE_SCORE_STD = 0.10
GATE_DELTA = -0.03
"""Student's mean less the baseline's."""
GATE_VALID_SHARE = 0.90
"""Answers that the validator accepts."""
GATE_WORST_SCORE = 0.70
