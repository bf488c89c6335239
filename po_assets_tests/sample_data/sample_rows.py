"""Reading the committed sample data in one form, for tests."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from po_assets.product_owner import build_prompt, parse_answer, read_status, split_prompt

ARTIFACTS = Path(__file__).parents[2] / "artifacts"


class Row(NamedTuple):
    """A landed row in one form, whatever its format."""

    name: str
    concept: str
    requirements_yaml: str
    vision_yaml: str
    review_yaml: str
    score: float

    @property
    def status(self) -> str | None:
        """The review's status."""
        return read_status(self.review_yaml)

    @property
    def prompt(self) -> str:
        """The prompt that training builds from the row."""
        return build_prompt(self.concept, self.requirements_yaml)


def raw_rows(name: str) -> list[dict[str, Any]]:
    """The JSON objects of one committed file."""
    return [json.loads(line) for line in (ARTIFACTS / name).read_bytes().splitlines()]


def to_row(raw: dict[str, Any], name: str = "") -> Row:
    """One JSON object, of the named file, as a row."""
    if "prompt" in raw:
        asked, parsed = split_prompt(raw["prompt"]), parse_answer(raw["output"])
        answer = (parsed.vision_yaml, parsed.review_yaml)
        return Row(name, asked.concept, asked.requirements_yaml, *answer, raw["score"])
    asked, answered = raw.get("input", raw), raw.get("output", raw)
    prefix = "" if "output" in raw else "teacher_"
    answer = (answered[f"{prefix}product_vision"], answered[f"{prefix}product_owner_review"])
    return Row(name, asked["concept"], asked["requirements_yaml"], *answer, raw["score"])


def rows_of(*names: str) -> list[Row]:
    """The rows of committed files."""
    return [to_row(raw, name) for name in names for raw in raw_rows(name)]
