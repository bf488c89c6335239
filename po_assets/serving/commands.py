"""The commands `ask`, `serve`, `export` and `push`: their arguments, and what they print.

`options.spec` is the base model of the project's settings, which `cli` puts there.
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from po_assets.dag import Artifacts
from po_assets.errors import UserError
from po_assets.evaluation.scoring import ScoredAnswer
from po_assets.model import BaseModel
from po_assets.serving.ask import Documents, ask, edited, read_question, read_text
from po_assets.serving.engine import load_engine, promotions, student_folder
from po_assets.serving.export import DEFAULT_FORMS, FORMS, export_student
from po_assets.serving.parity import FEWEST_CASES, Exported, exported_checks, keep_verdict
from po_assets.storage import local_copy
from po_assets.text import amount, printable, say

_INVALID = 3


def add_ask(parser: argparse.ArgumentParser) -> None:
    """One question; the answer on standard output, what it is worth on standard error."""
    parser.description = (
        f"{parser.description} The student is models/current. The question comes from files, an editor, or standard "
        "input: `CONCEPT:` and the concept, then `REQUIREMENTS:` and the requirements as YAML. The answer goes to "
        f"standard output, its verdict to standard error. Exit status: 0 for a valid answer, {_INVALID} for an "
        "invalid one, 1 for an error."
    )
    parser.add_argument("--concept", metavar="FILE", help="text of the concept; - is standard input")
    parser.add_argument("--requirements", metavar="FILE", help="requirements as YAML; - is standard input")
    parser.add_argument("--edit", action="store_true", help="write the question in $VISUAL or $EDITOR")
    _add_model(parser)
    parser.set_defaults(handle=_ask)


def add_serve(parser: argparse.ArgumentParser) -> None:
    """An OpenAI-compatible server."""
    parser.description = (
        f"{parser.description} The student is models/current; one that is promoted meanwhile answers from the next "
        "request on. Paths: /v1/chat/completions, /v1/models, /health. Product Owner questions are answered within the "
        "grammar, greedily unless a request sets a temperature. The environment variable PO_SERVE_KEY sets a key that "
        "clients must send."
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; any but this machine's own needs PO_SERVE_KEY"
    )
    parser.add_argument("--port", type=int, default=8001, help="0 takes a free one (default: %(default)s)")
    _add_model(parser)
    parser.set_defaults(handle=_serve)


def add_export(parser: argparse.ArgumentParser) -> None:
    """The student for other runtimes."""
    parser.description = (
        f"{parser.description} The student is models/current. The folder holds merged safetensors (vLLM),"
        " GGUF files (llama.cpp), an Ollama Modelfile, and a README.md with the commands that serve them. With "
        "--parity each form answers evaluation cases, and is compared with the adapter; exit status "
        f"{_INVALID} if it is worse."
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="default: models/exported of the artifacts")
    _add_adapter(parser)
    parser.add_argument(
        "--format", nargs="+", choices=FORMS, default=DEFAULT_FORMS, help=f"default: {' '.join(DEFAULT_FORMS)}"
    )
    parser.add_argument("--parity", type=int, default=0, metavar="CASES", help="how many cases to compare on")
    parser.set_defaults(handle=_export)


def add_push(parser: argparse.ArgumentParser) -> None:
    """The student to a Hub repository."""
    parser.description = (
        f"{parser.description} The student is models/current, with card, prompt and digests; all in one commit, after "
        "which the repository holds nothing else. An adapter whose gate did not pass, or an export whose parity did "
        "not, is refused. HF_TOKEN holds the token, HF_ENDPOINT another address than https://huggingface.co."
    )
    parser.add_argument("repository", metavar="REPO_ID", help="owner/name")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--adapter", type=Path, metavar="PATH", help="folder of another LoRA adapter")
    what.add_argument(
        "--exported", nargs="?", const=True, metavar="FOLDER", help="the exported forms (default: models/exported)"
    )
    parser.add_argument("--create", action="store_true", help="make the repository, a private one, if it is missing")
    parser.add_argument("--force", action="store_true", help="push in spite of a failed or missing verdict")
    parser.set_defaults(handle=_push)


def _add_adapter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", type=Path, metavar="PATH", help="folder of another LoRA adapter")
    parser.add_argument("--base-model", metavar="NAME", help="folder or Hub id instead of the settings' base model")


def _add_model(parser: argparse.ArgumentParser) -> None:
    _add_adapter(parser)
    parser.add_argument("--base", action="store_true", help="the base model alone, to compare")
    parser.add_argument("--no-grammar", action="store_true", help="let the model alone keep to the answer's form")


def _spec(options: argparse.Namespace) -> BaseModel:
    spec: BaseModel = options.spec
    if options.base_model:  # a revision belongs to one model
        spec = BaseModel(**{**spec.values(), "base_model": options.base_model, "revision": None})
    return spec.resolved()


def _model(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "adapter": options.adapter,
        "base": options.base,
        "grammar": not options.no_grammar,
        "spec": _spec(options),
    }


def _ask(options: argparse.Namespace) -> int:
    given = (options.concept, options.requirements)
    asking: contextlib.AbstractContextManager[Documents]
    if options.edit:
        asking = edited(*(read_text(name) if name else "" for name in given))
    else:
        asking = contextlib.nullcontext(read_question(*given))
    with asking as documents:
        answer = ask(documents, Artifacts().layout, **_model(options))
    text = answer.text
    # Whoever reads it from a pipe or a file gets it as it is; on a terminal nothing in it acts.
    print(printable(text) if sys.stdout.isatty() else text)  # noqa: T201 - the command line speaks on standard output
    print(printable(described(answer)), file=sys.stderr)  # noqa: T201
    return 0 if answer.valid else _INVALID


def described(answer: ScoredAnswer) -> str:
    """An answer's verdict in a few lines."""
    valid = "valid" if answer.valid else f"not valid, {answer.invalid_reason}"
    took = f"{amount(answer.tokens, 'token')} in {answer.seconds:.1f} s"
    lines = [f"{answer.model}: {valid}; status {answer.status or 'not readable'}; score {answer.total:.3f}; {took}"]
    lines += [f"- {problem}" for problem in answer.problems]
    if answer.finish_reason == "length":
        lines.append("- the answer was cut at its token limit")
    if answer.unknown_ids:
        lines.append(f"- it cites ids that the requirements do not have: {', '.join(answer.unknown_ids)}")
    return "\n".join(lines)


def _export(options: argparse.Namespace) -> int:
    if options.parity != 0 and options.parity < FEWEST_CASES:
        raise UserError(f"--parity is {options.parity}; give {FEWEST_CASES} cases or more, or 0 for no comparison.")
    layout, spec = Artifacts().layout, _spec(options)
    target = options.to or layout.exported
    export_student(layout, target, adapter=options.adapter, spec=spec, forms=options.format, say=say)
    say(f"Exported to {target}; {target / 'README.md'} says how to serve it.")
    if not options.parity:
        return 0
    found = Exported(layout, target, spec, options.parity, options.adapter)
    verdicts = exported_checks.verdicts(found)
    keep_verdict(found, verdicts)
    verdict = verdicts["export_parity"]
    say(verdict.summary + ("" if verdict.passed else f" {verdict.next_step}"))
    for row in () if verdict.passed else verdict.rows:
        say(f"\n{row['form']}, {row['case']}\n--- adapter\n{row['adapter']}\n--- exported\n{row['exported']}")
    return 0 if verdict.passed else _INVALID


def _push(options: argparse.Namespace) -> int:
    from po_assets.serving.push import faults_of_adapter, faults_of_export, push

    layout = Artifacts().layout
    with contextlib.ExitStack() as copies:
        if options.exported:
            place = layout.exported if options.exported is True else Path(options.exported)
            folder = copies.enter_context(local_copy(place))
            faults = faults_of_export(folder)
        else:
            folder = copies.enter_context(student_folder(layout, options.adapter))
            faults = faults_of_adapter(layout, folder)
        url = push(folder, options.repository, faults, force=options.force, create=options.create)
        names = ", ".join(sorted(file.name for file in folder.iterdir() if not file.name.startswith(".")))
    say(f"Pushed {folder} to {options.repository}: {names}.\n{url}")
    return 0


def _serve(options: argparse.Namespace) -> int:
    from po_assets.serving.server import KEY_VARIABLE, is_loopback, listen, serve

    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key and not is_loopback(options.host):
        raise UserError(
            f"--host {options.host} lets other machines ask: set {KEY_VARIABLE} to a key that they must send, or stay "
            "on 127.0.0.1."
        )

    layout, model = Artifacts().layout, _model(options)
    with listen(options.host, options.port) as listening:
        engine = load_engine(layout, **model)
        another = promotions(layout, engine.digest)
        newer = None if options.adapter or options.base else lambda: load_engine(layout, **model) if another() else None
        with contextlib.suppress(KeyboardInterrupt):  # how it is ended
            serve(engine, listening, key=key, say=say, newer=newer)
    return 0
