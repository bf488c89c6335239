"""The grammar of an answer, in llguidance's Lark dialect: two fenced YAML blocks, keys in order, all bounded.

It carries the *format contract* of prompt and validator and nothing more; baseline and student get the same one. So a list needs one item where the validator asks for no more (`recommended_actions`: two), although the metric pays
for a second: whether to write it is the model's own decision. What a grammar cannot see (whether the status is right,
whether an id fits what is said about it) stays with the scores.

Every complete text of the grammar parses as YAML, because each value is a plain scalar on one line that starts with a
letter or digit and holds no `:`, `#` or backtick; the date is quoted, so that it stays text. Teacher rows that write
`- FR001: text` (a mapping, about 3 % of them) are the one habit that the grammar does not take up.

How the grammar steers decoding is in `constraint`.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from po_assets.product_owner import STATUSES, read_yaml


@dataclass(frozen=True)
class GrammarLimits:
    """Upper bounds of an answer: characters of the values, items of the lists. Everything may end earlier.

    Tokens are bounded too (a third of the characters), because only that makes the longest answer certain: a token may
    be a single byte.
    """

    name: int = 80
    summary: int = 400
    item: int = 220
    narrative: int = 600
    vision_items: int = 4
    review_items: int = 4

    def longest_answer(self, requirements: int) -> int:
        """An upper bound of an answer's tokens, for a case with this many requirement ids."""
        vision_items, review_items = 5 * self.vision_items, 3 * self.review_items + 2 * max(requirements, 1)
        texts = _tokens(self.name) + _tokens(self.summary) + _tokens(self.narrative)
        items = (vision_items + review_items) * (_tokens(self.item) + _ITEM_TOKENS)
        return texts + items + _FIXED_TOKENS


_FIXED_TOKENS = 220
"""Keys, fences, date and status: 370 characters; 168 tokens with SmolLM2's tokenizer."""
MIN_ACTIONS = 2
"""As the validator asks."""
_ITEM_TOKENS = 4
"""Indentation, dash and line break of a list item."""
_ROUNDING = 20


def _tokens(characters: int) -> int:
    return characters // 3


def _round_up(characters: float) -> int:
    return max(math.ceil(characters / _ROUNDING), 2) * _ROUNDING


def limits_of(answers: Iterable[tuple[str, str]]) -> GrammarLimits:
    """Limits with room above the fullest of these answers (vision and review YAML): the references of the cases.

    One item more than the longest list, texts half as long again as the longest. They are rounded up, so that a small
    change of one case leaves the grammar of the others, and with it their cached answers, as it is.
    """
    longest = {"name": 0, "summary": 0, "item": 0, "narrative": 0, "vision_items": 0, "review_items": 0}

    def note(kind: str, value: int) -> None:
        longest[kind] = max(longest[kind], value)

    for vision_yaml, review_yaml in answers:
        vision, review = read_yaml(vision_yaml).value, read_yaml(review_yaml).value
        alignment = review.get("requirements_alignment")
        note("name", len(str(vision.get("product_name", ""))))
        note("summary", len(str(vision.get("product_summary", ""))))
        note("narrative", len(str(review.get("narrative", ""))))
        gaps = alignment.get("gaps") if isinstance(alignment, dict) else None
        for kind, lists in (
            ("vision_items", list(vision.values())),
            ("review_items", [review.get("summary"), review.get("recommended_actions"), gaps]),
        ):
            for items in lists:
                note(kind, len(items) if isinstance(items, list) else 0)
                note("item", max((len(str(item)) for item in items), default=0) if isinstance(items, list) else 0)
    return GrammarLimits(
        name=_round_up(1.5 * longest["name"]),
        summary=_round_up(1.5 * longest["summary"]),
        item=_round_up(1.5 * longest["item"]),
        narrative=_round_up(1.5 * longest["narrative"]),
        vision_items=max(longest["vision_items"], MIN_ACTIONS) + 1,
        review_items=max(longest["review_items"], MIN_ACTIONS) + 1,
    )


# Not in values: line breaks of YAML 1.1 (also NEL, LS, PS), control characters, and what starts a mapping, a comment or
# a fence. The second half are the letters and marks of Western European prose.
_CHARACTER = r"[ !\"$-9;-_a-~À-ÖØ-öø-ÿ–—‘’“”…€]"
# Of these letters-only words YAML 1.1 makes booleans and null.
_NO_TEXT = "true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF|null|Null|NULL|y|Y|n|N"
_ANY_ID = r"(?s:.*)(FR|NFR|REQ|CON|C|fr|nfr|req|con)[0-9]{2}(?s:.*)"


# Every day that a month has; the 29th of February is left out, since most years do not have it.
_DATE = (
    r"/20[0-9]{2}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    r"|02-(0[1-9]|1[0-9]|2[0-8]))/"
)


def answer_grammar(requirement_ids: Sequence[str], limits: GrammarLimits | None = None) -> str:
    """The grammar for a case with these requirement ids; the review can name no other id."""
    limits = limits or GrammarLimits()
    ids = " | ".join(json.dumps(identifier) for identifier in dict.fromkeys(requirement_ids))
    statuses = " | ".join(json.dumps(status) for status in STATUSES)
    most = max(len(requirement_ids), 1)
    some, any_aligned = f"nested_item{{1,{limits.review_items}}}", f"nested_item{{1,{most}}}"
    vision = " ".join(
        [
            r'"```yaml VISION\nproduct_name: " name "\nproduct_summary: " summary "\n"',
            r'"target_users:\n" vision_items "value_proposition:\n" vision_items "key_capabilities:\n" vision_items',
            r'"non_goals:" ( " []\n" | "\n" vision_items ) "success_metrics:\n" vision_items',
            r'''"last_updated: '" DATE "'\n```"''',
        ]
    )
    review = " ".join(
        [
            rf'"```yaml REVIEW\nstatus: " ( {statuses} ) "\nsummary:\n" review_item{{1,{limits.review_items}}}',
            rf'"requirements_alignment:\n  aligned:" ( " []\n" | "\n" {any_aligned} )',
            rf'"  gaps:" ( " []\n" | "\n" {some} ) "  conflicts:" ( " []\n" | "\n" {any_aligned} )',
            rf'"recommended_actions:\n" review_item{{{MIN_ACTIONS},{limits.review_items}}}',
            r'"narrative: " narrative "\n```"',
        ]
    )
    return rf"""
start: vision "\n\n" review
vision: {vision}
review: {review}

vision_items: vision_item{{1,{limits.vision_items}}}
vision_item: "- " free_text "\n"
review_item: "- " cited_text "\n"
nested_item: "  - " cited_text "\n"

name[max_tokens={_tokens(limits.name)}]: NAME
summary[max_tokens={_tokens(limits.summary)}]: SUMMARY
free_text[max_tokens={_tokens(limits.item)}]: FREE_TEXT
cited_text[max_tokens={_tokens(limits.item)}]: CITED_TEXT
narrative[max_tokens={_tokens(limits.narrative)}]: NARRATIVE

NAME: /[A-Za-z]{_CHARACTER}{{2,{limits.name}}}/ & ~/{_NO_TEXT}/
SUMMARY: /[A-Za-z]{_CHARACTER}{{19,{limits.summary}}}/
FREE_TEXT: /[A-Za-z0-9]{_CHARACTER}{{7,{limits.item}}}/
CITED_TEXT: CITING & /[A-Za-z0-9]{_CHARACTER}{{7,{limits.item}}}/
NARRATIVE: CITING & /[A-Za-z]{_CHARACTER}{{19,{limits.narrative}}}/
CITING: {_citing(ids)}
DATE: {_DATE}
"""


def _citing(ids: str) -> str:
    """Text in which what looks like a requirement id is one of these, and stands by itself."""
    if not ids:
        return f"/{_CHARACTER}*/ & ~/{_ANY_ID}/"
    edge = "[^A-Za-z0-9_]"
    return rf"""BEFORE ( KNOWN_ID BETWEEN )* KNOWN_ID AFTER | PLAIN
KNOWN_ID: {ids}
PLAIN: /{_CHARACTER}*/ & ~/{_ANY_ID}/
BEFORE: /({_CHARACTER}*{edge})?/ & ~/{_ANY_ID}/
BETWEEN: /{edge}({_CHARACTER}*{edge})?/ & ~/{_ANY_ID}/
AFTER: /({edge}{_CHARACTER}*)?/ & ~/{_ANY_ID}/"""
