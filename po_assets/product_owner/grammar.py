"""The grammar of an answer, in llguidance's Lark dialect: two fenced YAML blocks, keys in order, all bounded.

It carries the *format contract* of prompt and validator and nothing more; baseline and student get the same one. So a
list needs one item where the validator asks for no more (`recommended_actions`: two), although the metric pays for a
second: whether to write it is the model's own decision. What a grammar cannot see (whether the status is right, whether
an id fits what is said about it) stays with the scores. The metric pays well for form alone: with the grammar, lists of
nonsense from an untrained model score about 0.75, and the validator, which wants an id cited, passes none of them.

Every complete text of the grammar parses as YAML, because each value is a plain scalar on one line that starts with a
letter or digit, holds no `:`, `#` or backtick, and is not a number or date; the date is quoted, so that it stays text.
Teacher rows that write `- FR001: text` (a mapping, about 3 % of them) are the one habit that the grammar does not take
up.

How the grammar steers decoding is in `evaluation.generate`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from po_assets.product_owner.contract import ALIGNMENT_KEYS, MIN_ACTIONS, STATUSES
from po_assets.product_owner.documents import read_yaml

_VISION_ITEMS = ("target_users", "value_proposition", "key_capabilities", "non_goals", "success_metrics")
_REVIEW_ITEMS = ("summary", "recommended_actions")
_TEXTS = ("product_name", "product_summary", "narrative")
_LISTS = (*_VISION_ITEMS, *_REVIEW_ITEMS, *ALIGNMENT_KEYS)

_FIXED_TOKENS = 220
"""Keys, fences, date and status: 370 characters; 168 tokens with SmolLM2's tokenizer."""
_ITEM_TOKENS = 4
"""Indentation, dash and line break of a list item."""
_WORD_ROUNDING = 5


@dataclass(frozen=True)
class GrammarLimits:
    """Upper bounds of an answer by key: words of a text or of a list's items, items of a list. All may end earlier.

    Tokens are bounded too, because only that makes the longest answer certain: a token may be a single byte.
    """

    words: Mapping[str, int] = field(
        default_factory=lambda: dict.fromkeys(_LISTS, 40) | {"product_name": 6, "product_summary": 60, "narrative": 100}
    )
    items: Mapping[str, int] = field(
        default_factory=lambda: dict.fromkeys(_LISTS, 4) | dict.fromkeys(("aligned", "conflicts", "summary"), 30)
    )
    """`aligned` and `conflicts` have no more items than the case has requirements either, `summary` eight more: what is
    said of each requirement, and besides of the concept and each of its needs."""
    tokens_per_word: int = 2
    """English prose has 1.3, the longest reference 1.9. For a tokenizer of bytes it is 30."""

    def most_items(self, key: str, requirements: int) -> int:
        """The items that a list may have in a case with this many requirement ids."""
        besides = {"aligned": 0, "conflicts": 0, "summary": 8}
        return min(self.items[key], max(requirements, 1) + besides.get(key, self.items[key]))

    def longest_answer(self, requirements: int) -> int:
        """An upper bound of an answer's tokens, for a case with this many requirement ids."""
        texts = sum(self.tokens(key) for key in _TEXTS)
        lists = sum(self.most_items(key, requirements) * (self.tokens(key) + _ITEM_TOKENS) for key in _LISTS)
        return texts + lists + _FIXED_TOKENS

    def tokens(self, key: str) -> int:
        """The token bound of a text, or of an item of a list."""
        return self.words[key] * self.tokens_per_word


def limits_of(answers: Iterable[tuple[str, str]]) -> GrammarLimits:
    """Limits with room above what these answers (vision and review YAML) need: the references of the cases.

    Texts may be half as long again as the longest of their key, lists have one item more than the longest; but an
    answer that is far longer than the others does not lift a bound above twice what nine of ten need. Words are rounded
    up, so that a small change of one case leaves the grammar of the others, and with it their cached answers, as it is.
    Where no answer is given, or none has the key, the defaults hold.
    """
    words: dict[str, list[int]] = {}
    items: dict[str, list[int]] = {}
    for vision_yaml, review_yaml in answers:
        vision, review = read_yaml(vision_yaml).value, read_yaml(review_yaml).value
        alignment = review.get("requirements_alignment")
        for key, value in {**vision, **review, **(alignment if isinstance(alignment, dict) else {})}.items():
            texts = value if isinstance(value, list) else [value]
            if texts:
                words.setdefault(key, []).extend(len(str(text).split()) for text in texts)
            if isinstance(value, list):
                items.setdefault(key, []).append(len(value))
    default = GrammarLimits()
    room = {key: math.ceil(max(_bound(words[key], 1.5), 3) / _WORD_ROUNDING) * _WORD_ROUNDING for key in words}
    counts = {key: math.ceil(_bound(items[key], 1.0)) + 1 for key in items}
    if "recommended_actions" in counts:
        counts["recommended_actions"] = max(counts["recommended_actions"], MIN_ACTIONS + 1)
    # The student's summary holds its evidence (`training.evidence`), whatever the references sum up.
    counts.pop("summary", None)
    room["summary"] = max(room.get("summary", 0), default.words["summary"])
    return GrammarLimits(
        words={key: room.get(key, bound) for key, bound in default.words.items()},
        items={key: counts.get(key, bound) for key, bound in default.items.items()},
    )


def _bound(lengths: Sequence[int], room: float) -> float:
    """So many times the greatest length, at most twice the length that nine of ten stay within."""
    # What a few lists only hold (conflicts, say) is compared among these few.
    ordered = sorted(length for length in lengths if length) or [0]
    return min(room * ordered[-1], 2 * ordered[math.ceil(0.9 * len(ordered)) - 1])


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


def answer_grammar(
    requirement_ids: Sequence[str], limits: GrammarLimits | None = None, *, until_status: bool = False
) -> str:
    """The grammar for a case with these requirement ids; the review can name no other id.

    With `until_status` the answer ends with the line of the status.
    """
    limits = limits or GrammarLimits()
    # A word of the review is no id, or one that this very case has.
    known = "".join(f" | {json.dumps(identifier)}" for identifier in dict.fromkeys(requirement_ids))
    statuses = " | ".join(json.dumps(status) for status in STATUSES)
    counts = {key: f"{{1,{limits.most_items(key, len(requirement_ids))}}}" for key in _LISTS}
    vision_lists = {key: rf'"{key}:\n" {key}_item{counts[key]}' for key in _VISION_ITEMS}
    vision_lists["non_goals"] = rf'"non_goals:" ( " []\n" | "\n" non_goals_item{counts["non_goals"]} )'
    vision = [
        r'"```yaml VISION\nproduct_name: " product_name "\nproduct_summary: " product_summary "\n"',
        *vision_lists.values(),
        r'''"last_updated: '" DATE "'\n```"''',
    ]
    review = [
        rf'"```yaml REVIEW\nsummary:\n" summary_item{counts["summary"]} "status: " ( {statuses} ) "\n"',
        r'"requirements_alignment:\n"',
        *(rf'"  {key}:" ( " []\n" | "\n" {key}_item{counts[key]} )' for key in ALIGNMENT_KEYS),
        rf'"recommended_actions:\n" recommended_actions_item{{{MIN_ACTIONS},{limits.items["recommended_actions"]}}}',
        r'"narrative: " narrative "\n```"',
    ]
    if until_status:
        del review[1:]
    last = {key: words - 1 for key, words in limits.words.items()}  # words after the first
    terminals = {
        "product_name": rf"FIRST (BETWEEN WORD){{0,{last['product_name']}}} & ~/{_NO_TEXT}/",
        "product_summary": rf"FIRST (BETWEEN WORD){{4,{last['product_summary']}}} BETWEEN?",
        "narrative": rf"CITING (BETWEEN CITING){{4,{last['narrative']}}} BETWEEN?",
    }
    for key in _LISTS:
        if key in _VISION_ITEMS:
            terminals[key] = rf"WORD (BETWEEN WORD){{0,{last[key]}}} BETWEEN? & ~/{_NO_TEXT}|{_NUMBER_LIKE}/"
        else:
            terminals[key] = rf"CITING (BETWEEN CITING){{1,{last[key]}}} BETWEEN? & ~/{_NUMBER_LIKE}/"
    rules = [f"{key}[max_tokens={limits.tokens(key)}]: {key.upper()}" for key in terminals]
    rules += [rf'{key}_item: "{"  " if key in ALIGNMENT_KEYS else ""}- " {key} "\n"' for key in _LISTS]
    rules += [f"{key.upper()}: {pattern}" for key, pattern in terminals.items()]
    return rf"""
start: vision "\n\n" review
vision: {" ".join(vision)}
review: {" ".join(review)}

{chr(10).join(rules)}
FIRST: /[A-Za-z]/ WORD?
WORD: /{_WORD}/
CITING: (/{_WORD}/ & ~/{_ID_LIKE}/){known}
BETWEEN: /{_BETWEEN}/
DATE: {_DATE}
"""
