"""What comes of the gate's verdicts: the record, tied to the adapter's digest, and the promotion to `models/current`.

Whoever uses an adapter trusts the record, not the colour of the last run. What the gate asks for belongs to `checks`.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from upath import UPath

from po_assets.dag import GateRecord, gate_record, read_gate, write_gate
from po_assets.errors import UserError
from po_assets.evaluation.checks import Evidence, checks, criterion_verdict
from po_assets.evaluation.consumers import consumer_rows
from po_assets.evaluation.settings import SCORES
from po_assets.storage import (
    Layout,
    atomic_directory,
    is_local,
    lock,
    published_directory,
    read_manifest,
    replace_file,
)
from po_assets.text import markdown_table
from po_assets.training.adapter import write_gate_section

GATE_FILE = "gate.json"
_KEPT_VERSIONS = 3
"""Promoted adapters on disk, the current one among them, so that a switch can be taken back by hand."""

_KEPT_VERDICTS = 500
_LIMITS = (
    "What it cannot do: its status is no judgement to rely on unless `judges` passed; the metric behind the scores "
    "does not see whether a status is right. It was measured under the prompts named here and this decoding only."
)


def judge(
    found: Evidence, adapter_sha256: str, *, cases_sha256: str, decoding: str, contrast: str = "", prompt: str = ""
) -> GateRecord:
    """The gate's verdict on an adapter; `decoding`, `prompt` and what the contrast cases showed in words."""
    verdicts = checks.verdicts(found)
    failed = [name for name, one in verdicts.items() if not one.passed and one.severity == "ERROR"]
    context = {
        "baseline_digest": found.baseline[0].model_digest,
        "cases_sha256": cases_sha256,
        "decoding": decoding,
        "profile": found.profile.effective(),
        "sentence": _sentence(found, failed, [name for name in SCORES if not verdicts[name].passed]),
        "judgement": found.judgement.figures,
        "contrast": contrast,
        "prompt": prompt,
        "consumer_prompts": consumer_rows(found.student, found.consumers),
    }
    return gate_record(adapter_sha256, verdicts, context)


def _sentence(found: Evidence, failed: Sequence[str], missed: Sequence[str]) -> str:
    """Both halves of the verdict: the scores, and whether the student judges.

    `failed` are the criteria that block, `missed` the score thresholds, of which a profile may block on some only.
    """
    scores = [name for name in failed if name != "judges"]
    first = f"fails the gate ({', '.join(scores)})" if scores else "passes the score thresholds"
    of = "" if found.profile.name == "literal" else f" of the profile {found.profile.name}"
    but = "" if scores or not missed else f" but for {', '.join(missed)}, which only warn there"
    others = f"; {said}" if (said := found.about_others) else ""
    return f"The student {first}{of}{but}; {found.judgement.described}{others}."


def gate_path(layout: Layout) -> UPath:
    """Where the record of the last evaluation stands."""
    return layout.report_json.parent / "po_eval_gate.json"


def verdict_rows(record: GateRecord) -> list[dict[str, str]]:
    """The record as a narrow table: criterion, required, value, verdict (pass, FAIL, warning, or - where not asked)."""
    return [
        {"criterion": name, "required": check["required"], "value": check["value"], "verdict": criterion_verdict(check)}
        for name, check in record.checks.items()
    ]


def settle(layout: Layout, record: GateRecord, adapter: Path) -> str:
    """Keep the verdict (record, history, the cards of this adapter), promote if it passed; says what became of it.

    `adapter` is the folder of the evaluated copy. One at a time: what two runs promote takes its turn.
    """
    with lock(layout.current.parent / ".gate.lock", wait=True):
        write_gate(gate_path(layout), record)
        verdicts = [*_history(layout), record]
        replace_file(
            _history_path(layout),
            b"".join(json.dumps(asdict(one)).encode() + b"\n" for one in verdicts[-_KEPT_VERDICTS:]),
        )
        section = _card_section([one for one in verdicts if one.sha256 == record.sha256])
        write_gate_section(adapter, section)
        # One adapter, one card: not where another was published or promoted meanwhile.
        published = published_directory(layout.adapter)
        if (manifest := read_manifest(published)) and manifest.sha256 == record.sha256:
            write_gate_section(published, section)
        before = current_gate(layout)
        if before and before.sha256 == record.sha256:
            write_gate_section(published_directory(layout.current), section)
        if (version := _version(layout, record)).is_dir():  # also of one that was current before, and may be again
            write_gate_section(version, section)
        name, place = f"Adapter {record.sha256[:12]}", "/".join(layout.current.parts[-2:])
        if record.passed:
            promote(layout, record, adapter)
            if before and before.sha256 == record.sha256:
                return f"{name} stays {place}: it passed again, as on {before.time}."
            return f"{name} is now {place}."
        if before is None:
            return f"{name} is not promoted; no adapter is current yet."
        if before.sha256 != record.sha256:
            return (
                f"{name} is not promoted; adapter {before.sha256[:12]}, which passed on {before.time}, stays {place}."
            )
        return (
            f"{name} is {place} since an earlier gate (it passed last on {before.time}), and fails now "
            f"({', '.join(record.failed)}; profile {record.context['profile']['name']}). It stays in use until another "
            f"passes: train again, or point {place} to an earlier one in models/promoted."
        )


def _history_path(layout: Layout) -> UPath:
    return layout.report_json.parent / "po_eval_gate_history.jsonl"


def _history(layout: Layout) -> list[GateRecord]:
    """The records of earlier evaluations, the oldest first; what another version wrote is left out."""
    path = _history_path(layout)
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            record = GateRecord(**json.loads(line))
            _earlier(record)  # one that the card cannot tell of is another version's
            records.append(record)
    return records


def _card_section(verdicts: Sequence[GateRecord]) -> str:
    """The last verdict of an adapter for its card, in markdown, with those before it."""
    last = verdicts[-1]
    verdict = "passed" if last.passed else "failed"
    profile = f"profile {last.context['profile']['name']}"
    promoted = "" if last.passed else " By this verdict the adapter is not to be promoted."
    lines = [
        f"The gate **{verdict}** on {last.time} ({profile}). {last.context['sentence']}{promoted}",
        "",
        markdown_table(("criterion", "required", "value", "verdict"), (row.values() for row in verdict_rows(last))),
        "",
        *(text for text in (last.context.get("judgement"), last.context.get("contrast")) if text),
        "",
    ]
    if rows := last.context.get("consumer_prompts"):
        title = "Under other prompts than the own one, on a share of the cases:"
        lines += [title, "", markdown_table(rows[0], (row.values() for row in rows)), ""]
    lines.append(_LIMITS)
    if len(verdicts) > 1:
        lines += ["", "Earlier verdicts on this adapter:", ""]
        lines += map(_earlier, reversed(verdicts[:-1]))
    return "\n".join(lines)


def _earlier(one: GateRecord) -> str:
    """An earlier verdict as a line of the card."""
    verdict = "passed" if one.passed else "failed"
    return f"- {one.time}, profile {one.context['profile']['name']}: {verdict}. {one.context['sentence']}"


def promote(layout: Layout, record: GateRecord, adapter: Path) -> None:
    """Make the evaluated adapter, whose folder is `adapter`, the current one.

    It is copied, since the next training replaces its folder. On a file system `current` is a symbolic link that is
    replaced in one step. In an object store it is a folder of its own, whose pointer to the newest version is.

    Raises:
        UserError: the record's gate did not pass.
    """
    if not record.passed:
        raise UserError(f"The gate of adapter {record.sha256[:12]} did not pass, it is not promoted.")
    if not is_local(layout.current):
        _copy(adapter, layout.current, record)
        return
    current = Path(str(layout.current)).absolute()
    version = Path(str(_version(layout, record))).absolute()
    versions = version.parent
    _copy(adapter, UPath(version), record)
    if current.is_dir() and not current.is_symlink():  # made by hand, or by an object store's sync: kept, not lost
        current.rename(versions / f"replaced-{uuid.uuid4().hex[:8]}")
    link = current.parent / f".staging-current-{uuid.uuid4().hex[:8]}"
    link.symlink_to(version.relative_to(current.parent))
    link.replace(current)
    _prune(versions, keep=version)


def current_gate(layout: Layout) -> GateRecord | None:
    """The record by which the current adapter was promoted, None where none is current."""
    try:
        return read_gate(published_directory(layout.current) / GATE_FILE)
    except NotADirectoryError:
        return None


def _version(layout: Layout, record: GateRecord) -> UPath:
    """Where a file system keeps the promoted copy of the record's adapter."""
    return layout.current.parent / "promoted" / record.sha256[:16]


def _copy(adapter: Path, target: UPath, record: GateRecord) -> None:
    with atomic_directory(target) as staging:
        shutil.copytree(adapter, staging, dirs_exist_ok=True)
        write_gate(UPath(staging / GATE_FILE), record)


def _prune(versions: Path, keep: Path) -> None:
    others = [folder for folder in versions.iterdir() if folder != keep and not folder.name.startswith(".")]
    newest_first = sorted(others, key=os.path.getmtime, reverse=True)
    for folder in newest_first[_KEPT_VERSIONS - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)
