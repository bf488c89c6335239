"""One question to the student: read from files, standard input or an editor; its answer validated and scored."""

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from po_assets.dataset.cases import EvalCase
from po_assets.errors import UserError
from po_assets.evaluation.answering import Answer
from po_assets.evaluation.scoring import ScoredAnswer, score_answer
from po_assets.product_owner import read_yaml, requirement_entries, split_prompt
from po_assets.serving.engine import ModelEngine, Sampling, load_engine
from po_assets.storage import Layout

_HEADER = """\
# Write the concept and the requirements (YAML), then save and close. Left empty or unchanged, nothing is asked.
# Requirements look like this:
#
#     functional_requirements:
#     - id: FR001
#       text: Residents open a locker with a code.
"""


class Documents(NamedTuple):
    """What the student is asked about."""

    concept: str = ""
    requirements_yaml: str = ""
    existing_vision_yaml: str = ""


def read_question(concept: str | None, requirements: str | None) -> Documents:
    """The documents in two files, of which `-` is standard input; where neither is named, both from there.

    Raises:
        UserError: a file cannot be read, or one of the two is missing.
    """
    if concept == requirements == "-":
        raise UserError("Only one of --concept and --requirements can be standard input; give the other as a file.")
    if concept and requirements:
        return Documents(read_text(concept), read_text(requirements))
    if concept or requirements or sys.stdin.isatty():
        raise UserError(
            "Give --concept FILE and --requirements FILE, or --edit, or both documents on standard input: CONCEPT: and "
            "the concept, then REQUIREMENTS: and the requirements."
        )
    return split_documents(read_text("-"))


def split_documents(text: str) -> Documents:
    """The documents in a text with the sections of a prompt. Raises `UserError` if one is missing."""
    parts = split_prompt(text)
    found = {"CONCEPT": parts.concept, "REQUIREMENTS": parts.requirements_yaml}
    if missing := [name for name, document in found.items() if not (document or "").strip()]:
        raise UserError(f"The question has no text under {' and '.join(f'{name}:' for name in missing)}.")
    return Documents(parts.concept or "", parts.requirements_yaml or "", parts.existing_vision_yaml or "")


def read_text(name: str) -> str:
    """The text of a file, `-` for standard input; `UserError` where it cannot be read."""
    place = "Standard input" if name == "-" else f"The file {name!r}"
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return content.decode("utf-8-sig").replace("\r\n", "\n")  # as Windows writes it
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{place} must be UTF-8 text: {error}.") from error


@contextlib.contextmanager
def edited(concept: str = "", requirements: str = "") -> Iterator[Documents]:
    """The documents as a person writes them in an editor; what was written is kept where the block raises.

    Raises:
        UserError: there is no editor, it failed, or the text was left empty or unchanged.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        raise UserError("--edit needs an editor: set VISUAL or EDITOR, for example EDITOR=nano.")
    before = f"{_HEADER}\nCONCEPT:\n{concept.strip()}\n\nREQUIREMENTS:\n{requirements.strip()}\n"
    with tempfile.NamedTemporaryFile("w", suffix="_question.txt", encoding="utf-8", delete=False) as file:
        file.write(before)
    path = Path(file.name)
    try:
        try:
            subprocess.run([*shlex.split(editor), str(path)], check=True)  # noqa: S603 - the user's own editor
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise UserError(f"The editor {editor!r} failed ({error}); nothing was asked.") from error
        text = read_text(str(path)).removeprefix(_HEADER)
        if text.strip() in ("", before.removeprefix(_HEADER).strip()):
            path.unlink()
            raise UserError("Nothing was asked: the question was left empty or unchanged.")  # noqa: TRY301
        yield split_documents(text)
    except UserError as error:
        raise UserError(f"{error} What you wrote is kept in {path}." if path.exists() else str(error)) from error
    path.unlink()


def ask(documents: Documents, layout: Layout, sampling: Sampling | None = None, **model: Any) -> ScoredAnswer:
    """The answer of the current student; or of an adapter, or of the base model (`model` as in `load_engine`).

    Raises:
        UserError: no answer could be right, as the concept is blank or the requirements say nothing readable; or there
            is no such model.
    """
    if not documents.concept.strip():
        raise UserError("The concept is blank; give a few sentences on the product.")
    if problem := read_yaml(documents.requirements_yaml).error:
        raise UserError(f"The requirements do not parse as YAML: {problem}.")
    if not requirement_entries(documents.requirements_yaml):
        raise UserError(
            "The requirements hold no entry with an id or a description under functional_requirements, "
            "non_functional_requirements or constraints, so that nothing could be reviewed."
        )
    return ask_engine(load_engine(layout, **model), documents, sampling)


def ask_engine(engine: ModelEngine, documents: Documents, sampling: Sampling | None = None) -> ScoredAnswer:
    """The answer of a loaded model, validated and scored as in the evaluation."""
    done = engine.generate(engine.prepare(engine.prompt.turns(*documents), sampling or Sampling()))
    case = EvalCase("", "", documents.concept, documents.requirements_yaml, "", "", status=None)
    answer = Answer("", done.text, done.finish_reason, done.completion_tokens, done.seconds)
    return score_answer(case, answer, model=engine.name, model_digest=engine.digest, decoding="")
