"""The student to a Hub repository: an adapter or an export, with card, prompt and digests, in one commit or not at all.

What a folder holds belongs to `training` and `export`; whether it may go out is decided here, by the verdicts on it.
"""

import json
import os
from pathlib import Path
from textwrap import shorten

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import disable_progress_bars
from upath import UPath

from po_assets.dag import GateRecord, read_gate
from po_assets.errors import UserError, all_faults
from po_assets.evaluation.gate import GATE_FILE, gate_path
from po_assets.model.chat import first_line
from po_assets.serving.parity import RECORD, VERDICT
from po_assets.storage import Layout, file_digest, read_manifest
from po_assets.training.student import adapter_problem


def faults_of_adapter(layout: Layout, folder: Path) -> list[str]:
    """Why an adapter should not go out: changed files, a gate that failed or never judged it."""
    manifest = read_manifest(folder)
    if manifest is None:
        return [f"{str(folder)!r} has no manifest.json, so that nobody can tell which adapter it is."]
    faults = [f"{problem}." for problem in [adapter_problem(folder)] if problem]
    record = _verdict(UPath(folder) / GATE_FILE, manifest.sha256) or _verdict(gate_path(layout), manifest.sha256)
    return faults + _gate_faults(record, "eval_report", f"adapter {manifest.sha256[:12]}")


def faults_of_export(folder: Path) -> list[str]:
    """Why an export should not go out: changed files, its adapter's gate, its parity with the adapter."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return [f"{str(folder)!r} holds no export ({RECORD} is missing). Make one with `po-assets export`."]
    faults = [
        f"The file {name} was changed or damaged since it was exported."
        for name, digest in record["files"].items()
        if not (folder / name).is_file() or file_digest(folder / name) != digest
    ]
    gate = _verdict(UPath(folder) / GATE_FILE, record["adapter_digest"])
    parity = _verdict(UPath(folder) / VERDICT, file_digest(folder / RECORD))
    return [
        *faults,
        *_gate_faults(gate, "eval_report", f"adapter {record['adapter_digest'][:12]}"),
        *_gate_faults(parity, "exported_student", "this export"),
    ]


def _verdict(path: UPath, sha256: str) -> GateRecord | None:
    """The record, if it is about these very files."""
    record = read_gate(path)
    return record if record and record.sha256 == sha256 else None


def _gate_faults(record: GateRecord | None, asset: str, what: str) -> list[str]:
    if record is None:
        return [f"The checks of {asset} never judged {what}."]
    return [] if record.passed else [f"The checks of {asset} failed on {what}: {', '.join(record.failed)}."]


def push(folder: Path, repository: str, faults: list[str], *, force: bool = False, create: bool = False) -> str:
    """Upload a folder in one commit, in which what else is in the repository is removed; returns the commit's URL.

    The endpoint is that of the variable HF_ENDPOINT, the token that of HF_TOKEN or of `hf auth login`. `faults` say why
    it should not go out, `create` makes a private repository if it is not there.

    Raises:
        UserError: there are faults, or the Hub does not take it.
    """
    if faults and not force:
        raise all_faults(f"{folder} is not pushed (--force does it in spite of this)", faults)
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    hub, unchanged = HfApi(endpoint=endpoint), "Nothing was changed there"
    disable_progress_bars()  # one that breaks off leaves its line open, and the error would follow on it
    try:
        if create:
            hub.create_repo(repository, private=True, exist_ok=True)
        message = f"Product Owner student from {folder.name}" + (", pushed with --force" if faults else "")
        commit = hub.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, delete_patterns="*", ignore_patterns=".*"
        )
    except HFValidationError as error:
        raise UserError(f"{repository!r} is no name of a Hub repository; give it as owner/name.") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"The repository {repository!r} does not exist at {endpoint}, or the token may not see it. Make it there "
            "or with --create, or give a token that may write to it in HF_TOKEN."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        way_out = "Is the right name given, and does the token have its rights?"
        if status in (401, 403):
            way_out = "Give a token with the right to write in HF_TOKEN, or log in with `hf auth login`."
        elif status == 429 or status >= 500:
            way_out = "Try again later."
        said = f"HTTP {status}: {shorten(error.server_message or 'without a reason', 300)}"
        raise UserError(f"{endpoint} refused to take {repository!r} ({said}). {unchanged}. {way_out}") from error
    except Exception as error:  # which HTTP library the client uses, and what that raises, is the client's own matter
        reason = first_line(error.__cause__ or error)
        raise UserError(
            f"{endpoint} cannot be reached, or went away before all was there ({reason}). {unchanged}; push again."
        ) from error
    return str(commit.commit_url)
