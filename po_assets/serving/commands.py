"""The commands `ask`, `serve` and `export`: their arguments, and what they print."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from po_assets.dag import Artifacts
from po_assets.errors import UserError
from po_assets.serving.ask import StudentAnswer, ask
from po_assets.serving.engine import load_engine
from po_assets.serving.export import FORMATS, check_parity, export_student
from po_assets.text import amount, say

_INVALID = 3


def add_ask(parser: argparse.ArgumentParser) -> None:
    """One question; the answer on standard output, what it is worth on standard error."""
    parser.description = (
        f"{parser.description} The student is models/current. Its answer goes to standard output, "
        f"its verdict to standard error. Exit status: 0 for a valid answer, {_INVALID} for an invalid one, 1 for an "
        "error."
    )
    parser.add_argument("--concept", required=True, metavar="FILE", help="text of the concept; - is standard input")
    parser.add_argument(
        "--requirements", required=True, metavar="FILE", help="requirements as YAML; - is standard input"
    )
    _add_model(parser)
    parser.set_defaults(handle=_ask)


def add_serve(parser: argparse.ArgumentParser) -> None:
    """An OpenAI-compatible server."""
    parser.description = (
        f"{parser.description} The student is models/current, as it is now. Paths: /v1/chat/completions, "
        "/v1/models, /health. Product Owner questions are answered within the grammar, greedily unless a request "
        "sets a temperature. The environment variable PO_SERVE_KEY sets a key that clients must send."
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
        "--parity each GGUF file answers evaluation cases, and is compared with the adapter; exit status "
        f"{_INVALID} if it is worse."
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="default: models/exported of the artifacts")
    parser.add_argument("--adapter", type=Path, metavar="PATH", help="folder of another LoRA adapter")
    parser.add_argument("--base-model", metavar="NAME", help="folder or Hub id instead of the profile's base model")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=FORMATS, help="default: all of them")
    parser.add_argument("--parity", type=int, default=0, metavar="CASES", help="how many cases to compare on")
    parser.set_defaults(handle=_export)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", type=Path, metavar="PATH", help="folder of another LoRA adapter")
    parser.add_argument("--base", action="store_true", help="the base model alone, to compare")
    parser.add_argument("--base-model", metavar="NAME", help="folder or Hub id instead of the profile's base model")
    parser.add_argument("--no-grammar", action="store_true", help="let the model alone keep to the answer's form")


def _model(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "adapter": options.adapter,
        "base": options.base,
        "grammar": not options.no_grammar,
        "model": options.base_model,
    }


def _ask(options: argparse.Namespace) -> int:
    if options.concept == options.requirements == "-":
        raise UserError("Only one of --concept and --requirements can be standard input; give the other as a file.")
    answer = ask(_read(options.concept), _read(options.requirements), Artifacts().layout, **_model(options))
    print(answer.text)  # noqa: T201 - the command line speaks on standard output
    print(described(answer), file=sys.stderr)  # noqa: T201
    return 0 if answer.valid else _INVALID


def described(answer: StudentAnswer) -> str:
    """An answer's verdict in a few lines."""
    score, done = answer.score, answer.generated
    valid = "valid" if answer.valid else f"not valid, {answer.invalid_reason}"
    took = f"{amount(done.completion_tokens, 'token')} in {done.seconds:.1f} s"
    lines = [f"{answer.model}: {valid}; status {answer.status or 'not readable'}; score {score.total:.3f}; {took}"]
    lines += [f"- {problem}" for problem in score.problems]
    if done.finish_reason == "length":
        lines.append("- the answer was cut at its token limit")
    if answer.unknown_ids:
        lines.append(f"- it cites ids that the requirements do not have: {', '.join(answer.unknown_ids)}")
    return "\n".join(lines)


def _read(name: str) -> str:
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return content.decode()
    except OSError as error:
        raise UserError(f"The file {name!r} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"The file {name!r} must be UTF-8 text: {error}.") from error


def _export(options: argparse.Namespace) -> int:
    layout = Artifacts().layout
    target = options.to or Path(str(layout.base_models)).parent / "exported"
    student: dict[str, Any] = {"adapter": options.adapter, "model": options.base_model}
    export_student(layout, target, formats=options.format, say=say, **student)
    say(f"Exported to {target}; {target / 'README.md'} says how to serve it.")
    passed = True
    for name, verdict in check_parity(layout, target, options.parity, **student) if options.parity else ():
        passed = passed and verdict.passed
        say(f"{name}: {verdict.summary}" + ("" if verdict.passed else f" {verdict.next_step}"))
        for row in () if verdict.passed else verdict.rows:
            say(f"\n{row['case']}\n--- adapter\n{row['adapter']}\n--- exported\n{row['exported']}")
    return 0 if passed else _INVALID


def _serve(options: argparse.Namespace) -> int:
    from po_assets.serving.server import KEY_VARIABLE, is_loopback, listen, serve

    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key and not is_loopback(options.host):
        raise UserError(
            f"--host {options.host} lets other machines ask: set {KEY_VARIABLE} to a key that they must send, or stay "
            "on 127.0.0.1."
        )

    with listen(options.host, options.port) as listening:
        serve(load_engine(Artifacts().layout, **_model(options)), listening, key=key, say=say)
    return 0
