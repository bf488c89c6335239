"""The review file: candidates as YAML that a person reads and edits, written and read back.

YAML and not JSON lines, because answers are documents of many lines: in block scalars they stand as they are, without a
single escape. What the edited file leads to belongs to `corrections`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from upath import UPath

from po_assets.errors import UserError
from po_assets.review.candidates import Candidate
from po_assets.storage import atomic_file

_HEADER = """\
# Answers to look at, the worst first; `why` says what caught the eye.
#
# Correct `vision` and `review` where they are wrong. Where they are right, write `verdict: right`: the answer stays
# what it is and is not shown again. Leave everything else as it is; an entry that you delete, or leave unchanged
# without a verdict, stays what it is and comes back next time. Then
#
#     python -m po_assets.review land
#
# checks all entries before it takes any.
#   teacher_row      lands in incoming/ as a new row that replaces the old one; the row ledger says by which line.
#   evaluation_case  changes the reference answer (and `status`) in evaluation/po_eval_cases.jsonl. It is never trained
#                    on. `student_answer` is only there to compare with.
"""
RIGHT = "right"
"""The verdict on an answer that needs no correction."""
_PARTS = ("concept", "requirements", "vision", "review")


@dataclass(frozen=True)
class Edited:
    """An entry of the review file as it stands now."""

    kind: str
    identifier: str
    verdict: str
    """`RIGHT`, or empty."""
    status: str
    """The field of a case; empty where there is none."""
    concept: str
    requirements_yaml: str
    vision_yaml: str
    review_yaml: str


def write_review_file(path: UPath, candidates: Sequence[Candidate]) -> None:
    """Write the file in one step."""
    entries = [_entry(candidate) for candidate in candidates]
    texts = [
        yaml.dump([entry], Dumper=_BlockDumper, sort_keys=False, allow_unicode=True, width=110) for entry in entries
    ]
    body = "\n".join(texts) or "[]\n"
    with atomic_file(path) as file:
        file.write(f"{_HEADER}\n{body}".encode("utf-8", "backslashreplace"))


def read_review_file(path: UPath) -> list[Edited]:
    """The entries as they stand.

    Raises:
        UserError: there is no such file, it is no YAML, or entries lack a part.
    """
    if not path.exists():
        raise UserError(f"There is no review file {str(path)!r}. Materialize review_candidates first.")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} is no YAML any more: {error}. Mind the indentation of the blocks.") from error
    if not isinstance(entries, list):
        raise UserError(f"{str(path)!r} holds no list of entries any more; each starts with `- candidate:`.")
    faults = [fault for number, entry in enumerate(entries, start=1) for fault in _faults(number, entry)]
    if faults:
        raise UserError(f"{str(path)!r} has {len(faults)} fault(s): {'; '.join(faults)}.")
    return [
        Edited(
            kind=entry["candidate"],
            identifier=str(entry["id"]),
            verdict=_word(entry.get("verdict")),
            status=_word(entry.get("status")),
            **{name: entry[part] for name, part in zip(_NAMES, _PARTS, strict=True)},
        )
        for entry in entries
    ]


def plain(text: str) -> str:
    """A text without the white space at the ends of its lines, which block scalars do not keep."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


_NAMES = ("concept", "requirements_yaml", "vision_yaml", "review_yaml")


def _word(value: object) -> str:
    return "" if value is None else str(value).strip().lower()


def _entry(candidate: Candidate) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "candidate": candidate.kind,
        "id": candidate.identifier,
        "from": candidate.place,
        "why": list(candidate.why),
        "verdict": "",
        "concept": plain(candidate.concept),
        "requirements": plain(candidate.requirements_yaml) + "\n",
    }
    if candidate.kind == "evaluation_case":
        entry["status"] = candidate.status
    entry |= {"vision": plain(candidate.vision_yaml) + "\n", "review": plain(candidate.review_yaml) + "\n"}
    if candidate.student_answer:
        entry["student_answer"] = plain(candidate.student_answer) + "\n"
    return entry


def _faults(number: int, entry: object) -> list[str]:
    if not isinstance(entry, dict):
        return [f"entry {number} is no mapping"]
    name = f"entry {number} ({entry.get('id', 'no id')})"
    faults = [f"{name} has no {part} that is text" for part in _PARTS if not isinstance(entry.get(part), str)]
    if entry.get("candidate") not in ("teacher_row", "evaluation_case"):
        faults.append(f"{name} is a candidate of kind {entry.get('candidate')!r}")
    if (verdict := _word(entry.get("verdict"))) not in ("", RIGHT):
        faults.append(f"{name} has the verdict {verdict!r}: write {RIGHT!r}, or leave it empty and correct the answer")
    if not entry.get("id"):
        faults.append(f"{name} has no id")
    return faults


class _BlockDumper(yaml.SafeDumper):
    """Texts of several lines as block scalars."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_BlockDumper.add_representer(str, _represent_text)
