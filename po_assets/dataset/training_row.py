"""A training row as the checks see it: the bare pair from the file, the place where it landed, its parts on demand.

The rules see rows, not normalized records: what a row is worth is found out again from its text, so that a fault of the
stages before cannot hide itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from po_assets.dag import Verdict
from po_assets.product_owner import ParsedAnswer, PromptParts, parse_answer, read_status, split_prompt


@dataclass(frozen=True)
class TrainingRow:
    """A training row as it stands in the file, with the place where it landed; its parts are read when asked for."""

    file: str
    line: int
    row: Mapping[str, Any]

    @property
    def prompt(self) -> str:
        """The prompt, empty when the row has none."""
        return _text(self.row.get("prompt"))

    @property
    def response(self) -> str:
        """The response, empty when the row has none."""
        return _text(self.row.get("response"))

    @cached_property
    def parts(self) -> PromptParts:
        """What the prompt holds."""
        return split_prompt(self.prompt)

    @cached_property
    def answer(self) -> ParsedAnswer:
        """What the response holds."""
        return parse_answer(self.response)

    @property
    def status(self) -> str | None:
        """The status that the response teaches."""
        return read_status(self.answer.review_yaml)

    def named(self, **facts: object) -> dict[str, object]:
        """The row's place with facts about it, for a table."""
        return {"file": self.file, "line": self.line, **facts}


class Rule(Protocol):
    """Sees every training row once, then gives its verdict."""

    def add(self, row: TrainingRow) -> None:
        """Look at one row."""

    def verdict(self) -> Verdict:
        """What was found."""


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
