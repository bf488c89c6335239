"""Why a landed line cannot be used: the short reasons that outcomes are counted by, and the exception that carries one.

The outcomes themselves, and the file they are written to, belong to `ledger`.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Short reasons of a rejection; the sentence with line, value and way out is its detail."""

    BLANK_LINE = "blank line"
    LINE_TOO_LONG = "line too long"
    NOT_UTF8 = "not UTF-8"
    NOT_JSON = "not JSON"
    NOT_AN_OBJECT = "not a JSON object"
    NESTED_TOO_DEEP = "nested too deep"
    DUPLICATE_KEY = "duplicate JSON key"
    UNKNOWN_FORMAT = "unknown format"
    MISSING_PART = "missing part"
    BAD_SCORE = "unusable score"
    BAD_YAML = "YAML does not parse"
    SCHEMA = "schema"
    UNEXPECTED = "unexpected error"


class Rejected(Exception):  # noqa: N818  it is a finding about a row, not an error of the program
    """A landed line that cannot be used; `detail` says in a sentence what stands where and what is expected."""

    def __init__(self, reason: Reason, detail: str, *, format_name: str | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.format_name = format_name
