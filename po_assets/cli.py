"""Distil a large teacher LLM into a small Product Owner student: every command of the project.

A command is one row of `COMMANDS`: the function that fills in its parser, and its line of help. Only the module of the
command that was given is imported, so that `--help` answers at once. The function adds arguments and sets the default
`handle`, which takes the parsed options and returns the exit status:

    def add_review(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--root")
        parser.set_defaults(handle=land)

A `UserError`, or a disk that is full or closed, becomes a line on standard error here and nowhere else; the exit status
is then 1, or the default `error_status` that the parser was given. A command with actions returns their parsers.
"""

import argparse
import importlib
import importlib.metadata
import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from po_assets.errors import UserError
from po_assets.text import printable, say

COMMANDS = {
    "run": ("po_assets.automation.run:add_run", "materialize the whole graph with its checks, then print the gate"),
    "ui": ("po_assets.automation.run:add_ui", "open the Dagster UI on the same instance"),
    "init": ("po_assets.automation.run:add_init", "make a project folder for your own rows, cases and settings"),
    "settings": ("po_assets.cli:add_settings", "print every setting, its default and its meaning, as markdown"),
    "base-model": ("po_assets.cli:add_base_model", "bring the profile's base model onto this machine ahead of a run"),
    "rescore": (
        "po_assets.evaluation.evaluate:add_rescore",
        "score answers made elsewhere, with the same metric and gate",
    ),
    "rejected": ("po_assets.review.rejected:add_rejected", "correct rejected lines and land them again"),
    "review": ("po_assets.review.review_file:add_review", "land answers that people corrected in the review file"),
    "ask": ("po_assets.serving.commands:add_ask", "ask the student about one product"),
    "export": (
        "po_assets.serving.commands:add_export",
        "write the student for other runtimes: safetensors, GGUF, Ollama, vLLM",
    ),
    "push": ("po_assets.serving.commands:add_push", "upload the student to a Hugging Face Hub repository"),
    "serve": ("po_assets.serving.commands:add_serve", "serve the student to OpenAI-compatible clients"),
    "ui-ray": ("po_assets.automation.ray:add_ui_ray", "Ray on this machine, and the Dagster UI on it"),
    "sample-data": ("po_assets.cli:add_sample_data", "write the committed sample data anew"),
}
ON_PROJECT = {"ask", "export", "push", "rejected", "rescore", "review", "serve"}
"""Those that work on the artifacts and settings of a project."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `po-assets`; returns the exit status."""
    _prepare_environment()
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="po-assets", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"po-assets {importlib.metadata.version('po-assets')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    options = argparse.Namespace(error_status=1, location=_code_location)
    try:
        for name, (where, line) in COMMANDS.items():
            command = commands.add_parser(name, help=line, description=f"{line[0].upper()}{line[1:]}.")
            if name in given[:1]:
                module, _, function = where.partition(":")
                actions = getattr(importlib.import_module(module), function)(command)
                if name in ON_PROJECT:
                    from po_assets.automation.run import add_project

                    for one in actions or [command]:
                        add_project(one)
        parser.parse_args(given, options)
        return int(options.handle(options))
    except UserError as error:
        print(printable(str(error)), file=sys.stderr)  # noqa: T201
        return int(options.error_status)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)  # noqa: T201
        return 130  # as shells say it
    except BrokenPipeError:  # whoever read what is printed has enough of it, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if (sentence := _storage_fault(error)) is None:
            raise
        print(printable(sentence), file=sys.stderr)  # noqa: T201
        return int(options.error_status)


def _storage_fault(error: Exception) -> str | None:
    """What a person does about a disk, a right or an object store that refused; None for any other error."""
    from po_assets.storage import disk_fault

    # In a step of a run an error of the store keeps its traceback, and is tried again.
    if type(error).__module__.startswith("botocore.") and (store := os.environ.get("PO_ARTIFACTS_ROOT")):
        return f"The object store {store} refused: {error}. Mind the name in PO_ARTIFACTS_ROOT and the AWS_* variables."
    return disk_fault(error)


def _prepare_environment() -> None:
    """Set what libraries look at when they are imported; let every letter be printed, by its number if need be."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Dagster warns of previews and betas that the project uses on purpose, transformers of its own old names.
    warnings.filterwarnings("ignore", module="dagster")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The page docs/settings.md."""
    parser.set_defaults(handle=_settings)


def _settings(options: argparse.Namespace) -> int:
    from po_assets.automation.project import settings_page

    say(settings_page(options.location().SETTINGS))
    return 0


def _code_location() -> ModuleType:
    """What `options.location` is, for modules below it.

    Loaded when the environment is as the command wants it: PO_SETTINGS, PO_GPUS, PO_NUM_WORKERS, PO_EXECUTOR.
    """
    from po_assets import definitions

    return definitions


def add_base_model(parser: argparse.ArgumentParser) -> None:
    """For images and shared volumes."""
    parser.description = (
        f"{parser.description} PO_PROFILE chooses the profile. With PO_ARTIFACTS_ROOT in an object store the embedded "
        "model goes to the user's cache."
    )
    parser.set_defaults(handle=_base_model)


def _base_model(_options: argparse.Namespace) -> int:
    from po_assets.dag import Artifacts
    from po_assets.model import BaseModel, ensure_base_model

    say(str(ensure_base_model(BaseModel().resolved(), Artifacts().layout)))
    return 0


def add_sample_data(parser: argparse.ArgumentParser) -> None:
    """For whoever changes the generator."""
    parser.add_argument("--root", type=Path, default=Path("artifacts"), help="artifacts root (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="seed of all draws (default: the one of the committed files)")
    parser.set_defaults(handle=_sample_data)


def _sample_data(options: argparse.Namespace) -> int:
    from po_assets.sample_data.records import SEED, write_sample_data

    seed = SEED if options.seed is None else options.seed
    for path, rows in write_sample_data(options.root, seed).items():
        say(f"{path}: {rows} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
