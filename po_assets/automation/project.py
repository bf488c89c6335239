"""A project folder of one's own: its rows, cases and settings, where its artifacts and Dagster's history lie.

    FOLDER/
      incoming/*.jsonl     rows of the teacher
      cases/*.jsonl        evaluation cases
      settings.yaml        what differs from the defaults
      dagster/             DAGSTER_HOME
      distillation/ …      what the graph makes

`po-assets init` makes such a folder, which is its own artifact root. Any other folder with *.jsonl files will do as
well: its files are linked into FOLDER/artifacts. Settings are read from a file that the variable PO_SETTINGS names, so
that command line, UI, sensor and schedule have the same.
"""

import json
import os
import shutil
import textwrap
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from upath import UPath

from po_assets.dag import Settings
from po_assets.dataset.cases import SUFFIXES, case_lines, read_cases
from po_assets.errors import UserError, all_faults
from po_assets.model import BaseModel
from po_assets.model.settings import Profile
from po_assets.storage import Layout, artifact_root, file_digest, is_local, replace_file
from po_assets.storage.layout import HOME_VARIABLE, ROOT_VARIABLE
from po_assets.storage.strict_yaml import read_strict_yaml
from po_assets.text import join, say, shown

SETTINGS_VARIABLE = "PO_SETTINGS"
REPOSITORY = Path(__file__).resolve().parents[2]
_NAMED = 5
_TYPES = {bool: "true or false", int: "whole number", float: "number", str: "text", list: "list", dict: "mapping"}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥"}
_TEMPLATES = (Path(__file__).with_name("dagster.yaml"), REPOSITORY / "deploy" / "local" / "dagster.yaml")
"""Of the installed package, and of the repository."""


def read_settings(
    path: str | None, kinds: Mapping[str, type[Settings]], *, partly: bool = False
) -> dict[str, dict[str, Any]]:
    """The settings of each resource that a YAML file gives, with resource names as keys.

    Args:
        path: of the file; None or empty for defaults only.
        kinds: the known resources.
        partly: there are others, which do not matter here.

    Raises:
        UserError: the file cannot be read, or it names unknown resources or settings, or wrong values; all at once.
    """
    given: dict[str, dict[str, Any]] = {name: {} for name in kinds}
    if not path:
        return given
    try:
        document = read_strict_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The settings {path} cannot be read: {error}.") from error
    document = {} if document is None else document
    if not isinstance(document, dict):
        raise UserError(f"The settings {path} must be a mapping of resources, such as `selection:`, got {document!r}.")
    faults: list[str] = []
    for name, said in document.items():
        values = {} if said is None else said
        if name not in kinds:
            close = get_close_matches(str(name), kinds, n=1)
            if partly and not close:
                continue
            known = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(kinds)}."
            faults.append(f"{name!r} is not a resource with settings; {known}")
        elif not isinstance(values, dict):
            faults.append(f"{name} must be a mapping of settings, got {values!r}.")
        else:
            # An empty value is one that was left at its default, unless null means something there.
            fields = kinds[name].model_fields
            given[name] = {
                str(key): value
                for key, value in values.items()
                if value is not None or key not in fields or fields[key].default is not None
            }
    for name, values in given.items():
        try:
            _made(kinds, name, values, given)
        except UserError as error:
            faults.append(str(error).replace("\n", "\n  "))
    if faults:
        raise all_faults(f"The settings {path} have faults", faults)
    return given


def _made(
    kinds: Mapping[str, type[Settings]], name: str, values: Mapping[str, Any], given: Mapping[str, dict[str, Any]]
) -> Settings | None:
    """The settings of one resource, which shows their faults; None where those of another it needs are faulty."""
    needed = {key: kinds[key] for key in kinds[name].model_fields if key in kinds and key != name}
    try:
        others = {key: kind(**given[key]) for key, kind in needed.items()}
    except UserError:
        return None  # told there
    return kinds[name](**values, **others)


def settings_template(kinds: Mapping[str, type[Settings]]) -> str:
    """A settings file in which everything is a comment: each resource, each setting, its default and what it does."""
    lines = [
        "# Settings of this project. Remove the `# ` before a resource's name and before the settings that you change;",
        "# the others keep their defaults, also when these change in a later version.",
    ]
    for name, kind in kinds.items():
        lines += ["", *_wrapped(_purpose(kind), "# # "), f"# {name}:"]
        for key, field in kind.model_fields.items():
            if key in kinds and key != name:
                continue  # another resource
            lines += [*_wrapped(field.description or "", "#   # "), f"#   {key}: {_default(field)}"]
    return "\n".join([*lines, ""])


def settings_page(kinds: Mapping[str, type[Settings]]) -> str:
    """Every setting as a page of markdown, docs/settings.md: a table for each resource."""
    lines = [
        "# Settings",
        "",
        "Written by `po-assets settings`. Settings stand in the Launchpad under *resources*, or in a YAML file",
        "(`settings.yaml` of a project folder, `--config`, or what `PO_SETTINGS` names), resource by resource:",
        "",
        *("```yaml", "selection:", "  min_score: 0.9", "```", ""),
        "Wrong names and values are refused before the first step: all those of a file at once, in the Launchpad",
        "those of one resource. *Remade*: whether what was made with another value is out of date (rows, adapter,",
        "answers, or a verdict); where it says no, at most a check or a part of a report changes.",
    ]
    for name, kind in kinds.items():
        profiles = _by_profile(name, kind)
        lines += ["", f"## {name}", "", _purpose(kind), ""]
        lines += ["| name | value | default | bounds | meaning | remade |", "| --- | --- | --- | --- | --- | --- |"]
        for key, field in kind.model_fields.items():
            if key in kinds and key != name:
                continue  # another resource
            values = {profile: filled[key] for profile, filled in profiles.items()} if field.default is None else {}
            default = ", ".join(f"{_code(value)} ({profile})" for profile, value in values.items() if value is not None)
            bounds = ", ".join(
                f"{sign} {getattr(bound, attribute):,}"
                for bound in field.metadata
                for attribute, sign in _SIGNS.items()
                if hasattr(bound, attribute)
            )
            remade = "no" if key in kind.without_effect else "yes"
            cells = (
                f"`{key}`",
                _type(field.annotation),
                default or _code(_value(field)),
                bounds,
                field.description or "",
                remade,
            )
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _purpose(kind: type[Settings]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def _by_profile(name: str, kind: type[Settings]) -> dict[str, dict[str, Any]]:
    """What is left open, filled with the defaults of each profile; empty for settings that no profile changes."""
    resolved = getattr(kind, "resolved", None)
    chosen = {profile: BaseModel(profile=profile) for profile in get_args(Profile)} if resolved else {}
    return {
        profile: resolved(model if name == "base_model" else kind(base_model=model)).values()
        for profile, model in chosen.items()
        if resolved
    }


def _type(annotation: Any) -> str:
    kind, parts = get_origin(annotation) or annotation, get_args(annotation)
    if kind is Literal:
        return ", ".join(map(_code, parts))
    if parts and type(None) in parts:
        return f"{_type(next(part for part in parts if part is not type(None)))}, or empty"
    return _TYPES[kind]


def _code(value: Any) -> str:
    return "empty" if value is None or value == "" else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _default(field: FieldInfo) -> str:
    return json.dumps(_value(field))


def _value(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True, validated_data={})


def _wrapped(text: str, prefix: str) -> list[str]:
    return textwrap.wrap(text, 118, initial_indent=prefix, subsequent_indent=prefix)


def make_project(folder: Path, kinds: Mapping[str, type[Settings]]) -> list[Path]:
    """Make a project folder; what is there already stays. Returns what was made.

    Raises:
        UserError: the folder cannot be written to.
    """
    made: list[Path] = []
    try:
        for path in (folder / "incoming", folder / "cases"):
            if not path.is_dir():
                path.mkdir(parents=True)
                made.append(path)
        made += _make_home(folder / "dagster")
        if not (folder / "settings.yaml").exists():
            replace_file(folder / "settings.yaml", settings_template(kinds).encode())
            made.append(folder / "settings.yaml")
    except OSError as error:
        raise UserError(
            f"The project {folder} cannot be made: {error.strerror or error} ({error.filename})."
        ) from error
    return made


def _make_home(home: Path) -> list[Path]:
    """A folder for Dagster's history with the settings of `make ui`; returns what was made."""
    settings = home / "dagster.yaml"
    if settings.exists():
        return []
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(next(path for path in _TEMPLATES if path.is_file()), settings)
    return [settings]


def open_project(folder: Path, settings: Path | None) -> None:
    """Point this process's environment to the folder, and put its rows and cases where the graph reads them.

    `PO_ARTIFACTS_ROOT` and `DAGSTER_HOME` win where they are set.

    Raises:
        UserError: the folder holds no rows or no cases.
    """
    layout = enter_project(folder, settings)
    folder = folder.resolve()
    is_project = _is_project(folder)
    top, landed, own = (_files(place) for place in (folder, folder / "incoming", folder / "cases"))
    rows = [path for path in top if path.suffix.lower() == ".jsonl" and not _holds_cases(path)]
    rows += [path for path in landed if path.suffix.lower() == ".jsonl"]
    named = [path for path in top if _holds_cases(path)] + own
    cases = [path for path in named if path.suffix.lower() in SUFFIXES]
    others = join([shown(path.relative_to(folder)) for path in named if path not in cases])
    faults = []
    if not rows and not any(layout.incoming.glob("*.jsonl")):  # as corrections that replaced all others
        faults.append(f"There are no rows: put *.jsonl files into {folder / 'incoming' if is_project else folder}.")
    if not cases:
        faults.append(
            f"There are no evaluation cases: put them into {folder / 'cases'}, or into a file beside the rows whose "
            "name contains 'cases' (.jsonl or .yaml)." + (f" Not read, by the name: {others}." if others else "")
        )
    if faults:
        raise all_faults(f"The folder {folder} cannot be run", faults)
    if others:
        say(f"Not read as cases, which are .jsonl or .yaml by their names: {others}.")
    home = folder / "dagster" if is_project else folder / "artifacts" / "dagster"
    if not os.environ.get(HOME_VARIABLE):
        _make_home(home)
        os.environ[HOME_VARIABLE] = str(home)
    _place_rows(layout, rows)
    _place_cases(layout, cases)


def enter_project(folder: Path, settings: Path | None) -> Layout:
    """Point this process to the folder's artifacts and settings; `PO_ARTIFACTS_ROOT` wins where it is set.

    Raises:
        UserError: there is no such folder.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file; --data wants the folder that it is in, {folder.resolve().parent}.")
    if not folder.is_dir():
        raise UserError(f"The folder {folder} does not exist. `po-assets init {folder}` makes one.")
    folder = folder.resolve()
    if not os.environ.get(ROOT_VARIABLE):
        os.environ[ROOT_VARIABLE] = str(folder if _is_project(folder) else folder / "artifacts")
    own = folder / "settings.yaml"
    if settings or own.is_file():
        os.environ[SETTINGS_VARIABLE] = str((settings or own).resolve())
    return Layout(artifact_root(os.environ[ROOT_VARIABLE]))


def _is_project(folder: Path) -> bool:
    return (folder / "incoming").is_dir()


def _files(folder: Path) -> list[Path]:
    """What is in it, folders and hidden files apart."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in there if not path.is_dir() and not path.name.startswith(".")]


def _holds_cases(path: Path) -> bool:
    return "cases" in path.stem.lower()


def _place_rows(layout: Layout, rows: list[Path]) -> None:
    """Link the files into the landing folder (an object store gets copies); links to files that are gone go too.

    Links of another folder stay: that `PO_ARTIFACTS_ROOT` gathers them may be meant, and is said.
    """
    if not is_local(layout.root):
        for path in rows:
            (layout.incoming / path.name).write_bytes(path.read_bytes())
        return
    incoming = Path(str(layout.incoming))
    incoming.mkdir(parents=True, exist_ok=True)
    for link in incoming.iterdir():
        if link.is_symlink() and not link.exists():
            link.unlink()
    for path in rows:
        place = incoming / path.name
        if path.parent.samefile(incoming):
            continue  # it is there, maybe as a link of the user's own
        if place.is_symlink():
            place.unlink()
        elif place.exists():
            if not place.samefile(path):
                raise UserError(
                    f"{path} cannot be landed: there is another file of this name in {incoming}. Rename it."
                )
            continue
        place.symlink_to(path)
    wanted = {incoming / path.name for path in rows}
    if others := [path for path in sorted(incoming.iterdir()) if path.is_symlink() and path not in wanted]:
        more = [f"{len(others) - _NAMED:,} more"] if len(others) > _NAMED else []
        names = join([shown(path.readlink(), limit=4096) for path in others[:_NAMED]] + more)
        say(f"Rows of other folders are linked in {incoming}, and are used as well: {names}. Remove what is not meant.")


def _place_cases(layout: Layout, cases: list[Path]) -> None:
    """Link the file to where the graph reads it, so that it is this one that is corrected; several come into one.

    Raises:
        UserError: a case is faulty, or the one file of several was changed since it was written.
    """
    folder = layout.eval_cases.parent
    linked = len(cases) == 1 and is_local(layout.root)
    target = folder / f"po_eval_cases{cases[0].suffix.lower() if linked else SUFFIXES[0]}"
    written, lines = folder / "po_eval_cases.sha256", list[bytes]()
    for path in [] if linked else cases:
        try:
            read_cases(UPath(path))  # a fault has the name and the line of the file that it is in
            lines += case_lines(UPath(path))
        except OSError as error:
            raise UserError(f"The cases {path} cannot be read: {error.strerror}.") from error
    content = b"".join(line.rstrip(b"\r") + b"\n" for line in lines)
    for place in (folder / f"po_eval_cases{suffix}" for suffix in SUFFIXES):
        if linked and place.resolve() == UPath(cases[0]).resolve():  # linked already, maybe the other way round
            return
        own = place.exists() and not place.is_symlink()
        if own and written.exists() and place.read_bytes() != content and written.read_text() != file_digest(place):
            raise UserError(
                f"{place} was changed since it was made of {join(list(map(str, cases)))} (as `po-assets review "
                "land` does). To keep the changes, move it over there in place of these; to drop them, delete it."
            )
        if place.is_symlink() or (own and (linked or place != target)):
            place.unlink()
    if linked:
        folder.mkdir(parents=True, exist_ok=True)
        Path(str(target)).symlink_to(os.path.relpath(cases[0], str(folder.resolve())))
    elif not target.exists() or not written.exists() or target.read_bytes() != content:
        replace_file(target, content)
        replace_file(written, file_digest(target).encode())
