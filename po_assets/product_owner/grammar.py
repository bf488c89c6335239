"""The grammar of an answer, in llguidance's Lark dialect: two fenced YAML blocks, keys in order, all bounded.

It carries the *format contract* of prompt and validator and nothing more; baseline and student get the same one. So a
list needs one item where the validator asks for no more (`recommended_actions`: two), although the metric pays for a
second: whether to write it is the model's own decision. What a grammar cannot see (whether the status is right, whether
an id fits what is said about it) stays with the scores. The metric pays well for form alone: with the grammar, lists of
nonsense from an untrained model score about 0.75, and the validator, which wants an id cited, passes none of them.

Every complete text of the grammar parses as YAML, because each value is a plain scalar on one line that starts with a
letter or digit, holds no `:`, `#` or backtick, and is no number or date; the date is quoted, so that it stays text.
Teacher rows that write `- FR001: text` (a mapping, about 3 % of them) are the one habit that the grammar does not take
up.

How the grammar steers decoding is in `constraint`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from po_assets.product_owner.contract import ALIGNMENT_KEYS, MIN_ACTIONS, STATUSES
from po_assets.product_owner.documents import read_yaml

BOUNDED_LISTS = (
    "target_users",
    "value_proposition",
    "key_capabilities",
    "non_goals",
    "success_metrics",
    "summary",
    "gaps",
    "recommended_actions",
)


@dataclass(frozen=True)
class GrammarLimits:
    """Upper bounds of an answer: words of the values, items of the lists. Everything may end earlier.

    Tokens are bounded too, because only that makes the longest answer certain: a token may be a single byte.
    """

    name: int = 6
    summary: int = 60
    item: int = 40
    narrative: int = 100
    items: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(BOUNDED_LISTS, 4))
    """By key of the list. `aligned` and `conflicts` are bounded by the case's requirements instead."""
    tokens_per_word: int = 2
    """English prose has 1.3, the longest reference 1.9. For a tokenizer of bytes it is 30."""

    def longest_answer(self, requirements: int) -> int:
        """An upper bound of an answer's tokens, for a case with this many requirement ids."""
        texts = self.tokens(self.name) + self.tokens(self.summary) + self.tokens(self.narrative)
        items = sum(self.items.values()) + 2 * max(requirements, 1)
        return texts + items * (self.tokens(self.item) + _ITEM_TOKENS) + _FIXED_TOKENS

    def tokens(self, words: int) -> int:
        """The token bound of a value with this many words."""
        return words * self.tokens_per_word


_FIXED_TOKENS = 220
"""Keys, fences, date and status: 370 characters; 168 tokens with SmolLM2's tokenizer."""
_ITEM_TOKENS = 4
"""Indentation, dash and line break of a list item."""
_WORD_ROUNDING = 5


def limits_of(answers: Iterable[tuple[str, str]]) -> GrammarLimits:
    """Limits with room above the fullest of these answers (vision and review YAML): the references of the cases.

    One item more than the longest list, texts half as long again as the longest. They are rounded up, so that a small
    change of one case leaves the grammar of the others, and with it their cached answers, as it is.
    """
    texts: dict[str, list[object]] = {"name": [], "summary": [], "narrative": [], "item": []}
    longest = dict.fromkeys(BOUNDED_LISTS, 0) | {"recommended_actions": MIN_ACTIONS}
    for vision_yaml, review_yaml in answers:
        vision, review = read_yaml(vision_yaml).value, read_yaml(review_yaml).value
        alignment = review.get("requirements_alignment")
        by_requirement = alignment if isinstance(alignment, dict) else {}
        texts["name"].append(vision.get("product_name"))
        texts["summary"].append(vision.get("product_summary"))
        texts["narrative"].append(review.get("narrative"))
        for key, items in {**vision, **review, **by_requirement}.items():
            if isinstance(items, list):
                texts["item"] += items
                longest[key] = max(longest.get(key, 0), len(items))
    words = {kind: max((len(str(text).split()) for text in values), default=0) for kind, values in texts.items()}
    return GrammarLimits(
        **{kind: _with_room(count) for kind, count in words.items()},
        items={key: longest[key] + 1 for key in BOUNDED_LISTS},
    )


def _with_room(words: int) -> int:
    return math.ceil(1.5 * max(words, 2) / _WORD_ROUNDING) * _WORD_ROUNDING


# Left out of values: line breaks of YAML 1.1 (also NEL, LS, PS), control characters, and what starts a mapping, a
# comment or a fence (`:`, `#`, backtick). Letters and marks are those of Western European prose.
_WORD = r"[A-Za-z0-9_À-ÖØ-öø-ÿ]{1,24}"
_BETWEEN = r"[ !\"$-\/;-@\[-\^{-~–—‘’“”…€]{1,4}"
# A word of this form is what `cited_ids` takes for a requirement id.
_ID_LIKE = r"(([Nn]?[Ff][Rr])|[Rr][Ee][Qq]|[Cc]([Oo][Nn])?)[0-9]{2,}"
# These words of letters only are booleans and null in YAML 1.1.
_NO_TEXT = "true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF|null|Null|NULL|y|Y|n|N"
# What starts with a digit and has nothing but these may be a number or a date in YAML 1.1, or one that does not parse.
_NUMBER_LIKE = r"[0-9][-+.0-9A-Fa-f_x]*"
# Every day that a month has; the 29th of February is left out, since most years do not have it.
_DATE = (
    r"/20[0-9]{2}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    r"|02-(0[1-9]|1[0-9]|2[0-8]))/"
)


def answer_grammar(requirement_ids: Sequence[str], limits: GrammarLimits | None = None) -> str:
    """The grammar for a case with these requirement ids; the review can name no other id."""
    limits = limits or GrammarLimits()
    # A word of the review is no id, or one that this very case has.
    known = "".join(f" | {json.dumps(identifier)}" for identifier in dict.fromkeys(requirement_ids))
    statuses = " | ".join(json.dumps(status) for status in STATUSES)
    most = max(len(requirement_ids), 1)
    counts = {key: f"{{1,{count}}}" for key, count in limits.items.items()}
    counts |= dict.fromkeys(("aligned", "conflicts"), f"{{1,{most}}}")
    vision_lists = [
        rf'"{key}:\n" vision_item{counts[key]}' for key in ("target_users", "value_proposition", "key_capabilities")
    ]
    vision = [
        r'"```yaml VISION\nproduct_name: " name "\nproduct_summary: " summary "\n"',
        *vision_lists,
        rf'"non_goals:" ( " []\n" | "\n" vision_item{counts["non_goals"]} )',
        rf'"success_metrics:\n" vision_item{counts["success_metrics"]}',
        r'''"last_updated: '" DATE "'\n```"''',
    ]
    review = [
        rf'"```yaml REVIEW\nstatus: " ( {statuses} ) "\nsummary:\n" review_item{counts["summary"]}',
        r'"requirements_alignment:\n"',
        *(rf'"  {key}:" ( " []\n" | "\n" nested_item{counts[key]} )' for key in ALIGNMENT_KEYS),
        rf'"recommended_actions:\n" review_item{{{MIN_ACTIONS},{limits.items["recommended_actions"]}}}',
        r'"narrative: " narrative "\n```"',
    ]
    return rf"""
start: vision "\n\n" review
vision: {" ".join(vision)}
review: {" ".join(review)}

vision_item: "- " free_text "\n"
review_item: "- " cited_text "\n"
nested_item: "  - " cited_text "\n"

name[max_tokens={limits.tokens(limits.name)}]: NAME
summary[max_tokens={limits.tokens(limits.summary)}]: SUMMARY
free_text[max_tokens={limits.tokens(limits.item)}]: FREE_TEXT
cited_text[max_tokens={limits.tokens(limits.item)}]: CITED_TEXT
narrative[max_tokens={limits.tokens(limits.narrative)}]: NARRATIVE

NAME: FIRST (BETWEEN WORD){{0,{limits.name - 1}}} & ~/{_NO_TEXT}/
SUMMARY: FIRST (BETWEEN WORD){{4,{limits.summary - 1}}} BETWEEN?
FREE_TEXT: WORD (BETWEEN WORD){{0,{limits.item - 1}}} BETWEEN? & ~/{_NO_TEXT}|{_NUMBER_LIKE}/
CITED_TEXT: CITING (BETWEEN CITING){{1,{limits.item - 1}}} BETWEEN? & ~/{_NUMBER_LIKE}/
NARRATIVE: CITING (BETWEEN CITING){{4,{limits.narrative - 1}}} BETWEEN?
FIRST: /[A-Za-z]/ WORD?
WORD: /{_WORD}/
CITING: (/{_WORD}/ & ~/{_ID_LIKE}/){known}
BETWEEN: /{_BETWEEN}/
DATE: {_DATE}
"""
