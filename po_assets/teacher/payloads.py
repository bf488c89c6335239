"""What a teacher is asked about: concepts with requirements, read from a file or drawn by the project's generator.

How the question is worded belongs to `product_owner.prompts`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

from upath import UPath

from po_assets.dataset.cases import EvalCase
from po_assets.dataset.holdout import HoldOut
from po_assets.dataset.settings import SelectionSettings
from po_assets.errors import UserError, all_faults
from po_assets.intake.lines import Rejected, read_object
from po_assets.intake.normalization import input_digest
from po_assets.product_owner import read_yaml, requirement_entries
from po_assets.product_owner.contract import REQUIREMENT_SECTIONS
from po_assets.sample_data.domains import load_domains
from po_assets.sample_data.scenario import draw_case

_SHOWN_FAULTS = 20


@dataclass(frozen=True)
class Payload:
    """One concept with its requirements document."""

    concept: str
    requirements_yaml: str
    tier: str | None = None
    concept_id: str | None = None

    @cached_property
    def key(self) -> str:
        """Digest of what is asked; case, white space and YAML style do not change it."""
        return input_digest(self.concept, self.requirements_yaml)


def read_payloads(path: UPath) -> list[Payload]:
    """The payloads of a JSONL file.

    Raises:
        UserError: the file is missing or empty, or lines are faulty; every faulty line is named.
    """
    if not path.is_file():
        raise UserError(
            f"The payloads {str(path)!r} do not exist, or are no file. Give a JSONL file with concept and "
            "requirements_yaml per line, or leave `payloads` empty for the project's own generator."
        )
    found: list[Payload] = []
    faults: list[str] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = read_object(line)
                wrong = _faults(row)
            except Rejected as rejected:
                wrong = [rejected.detail]
            if wrong:
                faults += [f"line {number}: {fault}" for fault in wrong]
            else:
                found.append(Payload(row["concept"], row["requirements_yaml"], row.get("tier"), row.get("concept_id")))
    if faults or not found:
        said = f"The payloads {str(path)!r} cannot be used, and nothing was asked"
        raise all_faults(said, faults or ["it is empty"], most=_SHOWN_FAULTS)
    return found


def generate_payloads(count: int, seed: int) -> Iterator[Payload]:
    """`count` different concepts with requirements on training products; a longer list begins with a shorter one."""
    domains, number = load_domains("training"), 0
    seen: set[str] = set()
    while len(seen) < count:
        # Its own stream of draws: with the same seed, `generate_rows` makes other rows.
        scenario = draw_case(Random(f"teacher_batch/{seed}/{number}"), domains)  # noqa: S311 - no secrets
        number += 1
        name = f"GEN-{seed}-{number:05d}"
        payload = Payload(scenario.concept, scenario.requirements_yaml, scenario.tier, name)
        if payload.key not in seen:
            seen.add(payload.key)
            yield payload


def choose(payloads: Iterable[Payload], cases: list[EvalCase]) -> tuple[list[Payload], list[dict[str, object]]]:
    """The payloads without repetitions and without those that equal or resemble an evaluation case.

    Then what is left out: records with `payload` and `reason`.
    """
    # What is asked in vain would be held out later.
    hold_out = HoldOut(cases, SelectionSettings.model_fields["near_duplicate_threshold"].default)
    wanted: dict[str, Payload] = {}
    left_out: list[dict[str, object]] = []
    for number, payload in enumerate(payloads, start=1):
        name = payload.concept_id or f"payload {number}"
        if payload.key in wanted:
            left_out.append({"payload": name, "reason": "it asks the same as an earlier one"})
        elif overlap := hold_out.find(payload.concept, payload.requirements_yaml, payload.key):
            what = "equals" if overlap.same_input else f"resembles ({overlap.similarity:.2f})"
            left_out.append({"payload": name, "reason": f"it {what} evaluation case {overlap.case_id}"})
        else:
            wanted[payload.key] = payload
    return list(wanted.values()), left_out


def _faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with the record of a line."""
    faults = []
    for name in ("concept", "requirements_yaml"):
        value = row.get(name)
        if value is None:
            faults.append(f"{name} is missing")
        elif not isinstance(value, str) or not value.strip():
            faults.append(f"{name} must be a string that is not blank, got {value!r:.60}")
    optional = ("tier", "concept_id")
    faults += [
        f"{key} must be a string, got {row[key]!r:.60}" for key in optional if not isinstance(row.get(key), str | None)
    ]
    if faults:
        return faults
    if "\x00" in row["concept"]:
        faults.append("concept holds a NUL character, with which no row is taken in; remove it")
    if problem := read_yaml(row["requirements_yaml"]).error:
        faults.append(f"requirements_yaml does not parse: {problem}")
    elif not requirement_entries(row["requirements_yaml"]):
        *most, last = REQUIREMENT_SECTIONS
        faults.append(
            f"requirements_yaml holds no entry with an id or a description under {', '.join(most)} or {last}, so "
            "that no answer could be scored"
        )
    return faults
