"""Rows per second and memory from landing to training rows, at growing sizes, beside two other ways to do it.

    python -m benchmarks.rows                             10,000 and 100,000 rows, all ways
    python -m benchmarks.rows --rows 1000000 --ways ours   a million rows, some ten minutes
    python -m benchmarks.rows --rows 1000000 --ways ours --keep-all   the same without the limit of 400 samples

Each way runs in a process of its own, on rows of the project's own generator. Its documents are about half as long as
those of real teachers, so each gets notes made of the sentences of rows before it, which makes a row 5 kB and a million
rows 5 GB.

* `ours`: raw_teacher, normalized_teacher and supervised_dataset with all their checks, materialized by Dagster.
* `unchecked`: the same without the checks, which neither of the others has.
* `plain`: the same work the obvious way: json.loads, PyYAML's SafeLoader, one process, one DataFrame. It writes the
  same normalized rows, ledger and training rows and runs no check. It is given the benefit of reading each document
  once.
* `datasets`: Hugging Face `datasets`, with this project's own functions in `map` and `filter`, as many processes as
  there are processors. It writes normalized rows and training rows, keeps no ledger and runs no check.

All three count the tokens of the rows they keep with the same tokenizer. The clock starts when libraries are imported
and the tokenizer is loaded, which takes all of them some seconds and says nothing about rows. Memory is the largest
resident set of the main process and that of any one worker, sampled five times a second; processor time is that of all
processes together, which a busy machine distorts less than the clock.
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.landed import land
from benchmarks.machine import machine

RowLengths = Callable[[Sequence[tuple[str, str]]], list[int]]
REPOSITORY = Path(__file__).resolve().parents[1]
SIZES = (10_000, 100_000)
ROW_LIMIT = {"plain": 20_000}
"""The obvious way takes hours for a million rows; above this it is only run when it is asked for by name alone."""


def main() -> None:
    """Measure and print a table; `--one` measures a single way in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--keep-all", action="store_true", help="no limit on the number of training rows")
    parser.add_argument("--repeats", type=int, default=1, help="measure so often and print the median")
    parser.add_argument("--work", type=Path, default=None, help="folder for the tables (default: a temporary one)")
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_here(arguments.one, arguments.work, keep_all=arguments.keep_all)))
        return
    print(machine())
    print(
        f"{'way':<9} {'rows':>9} {'seconds':>8} {'ms/row':>7} {'rows/s':>7} {'cpu s':>8} {'main MiB':>8} "
        f"{'worker MiB':>10}  stages (s)"
    )
    for rows in arguments.rows:
        with _folder(arguments.work) as folder:
            land(folder / "incoming", rows)
            landed = sum(path.stat().st_size for path in (folder / "incoming").iterdir())
            print(f"{rows:,} rows, {landed / 1e9:.2f} GB landed", flush=True)
            ways = [way for way in arguments.ways if rows <= ROW_LIMIT.get(way, rows) or len(arguments.ways) == 1]
            for way in set(arguments.ways) - set(ways):
                print(f"{way:<9} {rows:>9,} left out; ask for it alone with --ways {way}")
            # In turns, so that a busy minute of the machine does not fall on one of them alone.
            runs = [
                (way, _measure(way, folder, keep_all=arguments.keep_all))
                for _ in range(arguments.repeats)
                for way in ways
            ]
            for way in ways:
                done = sorted((run for name, run in runs if name == way), key=lambda run: run["seconds"])
                _report(way, rows, done[len(done) // 2])


def measure_here(way: str, root: Path, *, keep_all: bool) -> dict[str, Any]:
    """Run one way in this process: its seconds, processor seconds (of children too) and seconds per stage."""
    for library in LIBRARIES.get(way, ()):
        importlib.import_module(library)
    row_lengths = _row_lengths(root)
    start, before = time.monotonic(), _processor_seconds()
    stages = WAYS[way](root, row_lengths, keep_all=keep_all)
    return {"seconds": time.monotonic() - start, "processor": _processor_seconds() - before, "stages": stages}


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def materialize(root: Path, _: RowLengths, *, keep_all: bool, checked: bool = True) -> dict[str, float]:
    """Our way: the assets and their checks, by Dagster; seconds per step."""
    import dagster as dg

    from po_assets.dag import Artifacts, JsonlIOManager
    from po_assets.dataset.assets import eval_cases, supervised_dataset
    from po_assets.dataset.checks import dataset_checks
    from po_assets.dataset.settings import PromptSettings, SelectionSettings
    from po_assets.intake.assets import normalized_teacher, raw_teacher
    from po_assets.intake.checks import teacher_checks
    from po_assets.model import BaseModel

    artifacts = Artifacts(root=str(root))
    policy = SelectionSettings(max_samples=None) if keep_all else SelectionSettings()
    checks = [*teacher_checks, *dataset_checks] if checked else []
    result = dg.materialize(
        [raw_teacher, normalized_teacher, eval_cases, supervised_dataset, *checks],
        resources={
            "artifacts": artifacts,
            "io_manager": JsonlIOManager(artifacts=artifacts),
            "selection": policy,
            "prompt": PromptSettings(),
            "base_model": BaseModel(),
        },
    )
    if not result.success:
        sys.exit("the graph failed")
    steps = (event for event in result.all_events if event.event_type_value == "STEP_SUCCESS")
    return {str(event.step_key): event.step_success_data.duration_ms / 1000 for event in steps}


def plain(root: Path, row_lengths: RowLengths, *, keep_all: bool) -> dict[str, float]:
    """The obvious way: everything in one process and one DataFrame."""
    import pandas as pd
    import yaml

    from po_assets.dataset.publication import training_row
    from po_assets.intake import normalization
    from po_assets.intake.landing import Line
    from po_assets.intake.lines import Rejected
    from po_assets.product_owner import documents, fast_yaml

    fast_yaml._parse = None  # noqa: SLF001
    documents._C_LOADER = yaml.SafeLoader  # noqa: SLF001
    normalization.read_object = lambda line, *_: json.loads(line)  # type: ignore[assignment]

    out = root / "plain"
    out.mkdir(exist_ok=True)
    start = time.monotonic()
    entries: list[dict[str, Any]] = []
    for path in sorted((root / "incoming").glob("*.jsonl")):
        for number, data in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                row = normalization.normalize(Line(path.name, number, data, len(data))).row
                entries.append({**row, "outcome": "kept", "reason": ""})
            except Rejected as rejected:
                entries.append(
                    {"file": path.name, "line": number, "outcome": "rejected", "reason": rejected.reason.value}
                )
    frame = pd.DataFrame(entries)
    normalized = time.monotonic()
    frame.loc[(frame.outcome == "kept") & (frame.score < 0.82), "outcome"] = "below_min_score"
    hold_out = _hold_out(root)
    kept = frame[frame.outcome == "kept"]
    overlaps = [
        hold_out.find(*row) is not None
        for row in zip(kept.concept, kept.requirements_yaml, kept.input_digest, strict=True)
    ]
    frame.loc[kept.index[overlaps], "outcome"] = "held_out"
    chosen = frame[frame.outcome == "kept"]
    others = chosen[chosen.status != "conflicts"]
    room = len(others) if keep_all else max(0, 400 - (len(chosen) - len(others)))
    sampled = others.sample(min(room, len(others)), random_state=42)
    frame.loc[others.index.difference(sampled.index), "outcome"] = "over_max_samples"
    chosen = frame[frame.outcome == "kept"]
    pairs = [training_row(row) for row in chosen.to_dict("records")]
    assert all(row_lengths([(pair["prompt"], pair["response"])])[0] <= 2048 for pair in pairs)
    frame.to_json(out / "normalized.jsonl", orient="records", lines=True)
    frame[["file", "line", "record_id", "format", "outcome", "reason"]].to_json(
        out / "ledger.jsonl", orient="records", lines=True
    )
    pd.DataFrame(pairs).to_json(out / "supervised.jsonl", orient="records", lines=True)
    return {"normalize": normalized - start, "select": time.monotonic() - normalized}


def hugging_face(root: Path, row_lengths: RowLengths, *, keep_all: bool) -> dict[str, float]:
    """What one would otherwise pick: datasets' map and filter with the same functions."""
    import datasets

    datasets.disable_progress_bars()
    processes = os.cpu_count() or 1
    start = time.monotonic()
    files = [str(path) for path in sorted((root / "incoming").glob("*.jsonl"))]
    cache = tempfile.mkdtemp(prefix="hf-cache-", dir=root)  # a second run must not find the first one's results
    lines = datasets.load_dataset("text", data_files=files, cache_dir=cache, split="train")
    rows = lines.map(_normalize_text, remove_columns=["text"], num_proc=processes)
    normalized = time.monotonic()
    kept = rows.filter(_is_wanted, num_proc=processes, fn_kwargs={"root": root})
    conflicts = kept.filter(lambda status: status == "conflicts", input_columns="status")
    others = kept.filter(lambda status: status != "conflicts", input_columns="status")
    room = len(others) if keep_all else max(0, 400 - len(conflicts))
    others = others.shuffle(seed=42).select(range(min(room, len(others))))
    kept = datasets.concatenate_datasets([conflicts, others])
    pairs = kept.map(_as_pair, remove_columns=kept.column_names)
    fits = pairs.filter(
        lambda prompts, responses: [n <= 2048 for n in row_lengths(list(zip(prompts, responses, strict=True)))],
        input_columns=["prompt", "response"],
        batched=True,
    )
    assert len(fits) == len(pairs)
    out = root / "datasets"
    out.mkdir(exist_ok=True)
    rows.to_json(out / "normalized.jsonl")
    pairs.to_json(out / "supervised.jsonl")
    return {"normalize": normalized - start, "select": time.monotonic() - normalized}


def _row_lengths(root: Path) -> RowLengths:
    from upath import UPath

    from po_assets.dataset.publication import token_budget
    from po_assets.model import BaseModel
    from po_assets.storage import Layout

    return token_budget(BaseModel(), Layout(UPath(root))).row_lengths


def _normalize_text(record: dict[str, str]) -> dict[str, Any]:
    from po_assets.intake.landing import Line
    from po_assets.intake.lines import Rejected
    from po_assets.intake.normalization import COLUMNS, normalize

    data = record["text"].encode()
    try:
        row = normalize(Line("rows", 1, data, len(data))).row
    except Rejected as rejected:
        return dict.fromkeys(COLUMNS) | {"rejected": rejected.detail}
    return row | {"metadata": json.dumps(row["metadata"]), "rejected": ""}


def _is_wanted(row: dict[str, Any], root: Path) -> bool:
    if row["rejected"] or row["score"] < 0.82:
        return False
    return _hold_out(root).find(row["concept"], row["requirements_yaml"], row["input_digest"]) is None


@functools.cache
def _hold_out(root: Path) -> Any:
    """Of the evaluation cases; made once in each process."""
    from upath import UPath

    from po_assets.dataset.cases import read_eval_cases
    from po_assets.dataset.holdout import HoldOut
    from po_assets.storage import Layout

    return HoldOut(read_eval_cases(Layout(UPath(root)).eval_cases), 0.8)


def _as_pair(row: dict[str, Any]) -> dict[str, str]:
    from po_assets.dataset.publication import training_row

    return training_row(row | {"metadata": json.loads(row["metadata"])})


WAYS: dict[str, Callable[..., dict[str, float]]] = {
    "ours": materialize,
    "unchecked": functools.partial(materialize, checked=False),
    "plain": plain,
    "datasets": hugging_face,
}


OURS = ("dagster", "dagster._core.instance.factory", "dagster._core.storage.runs.in_memory", "matplotlib.figure")
LIBRARIES = {"ours": OURS, "unchecked": OURS, "plain": ("pandas",), "datasets": ("datasets", "pyarrow")}


def _measure(way: str, folder: Path, *, keep_all: bool) -> dict[str, Any]:
    """What `measure_here` says, from a process of its own, and `peaks`: the largest resident sets (MiB), sampled."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.rows", "--one", way, "--work", str(folder)]
    if keep_all:
        command.append("--keep-all")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=REPOSITORY)
    parent, main, worker, output = psutil.Process(process.pid), 0, 0, None
    while output is None:
        with contextlib.suppress(psutil.Error):
            main = max(main, parent.memory_info().rss)
            worker = max([worker, *(child.memory_info().rss for child in parent.children(recursive=True))])
        with contextlib.suppress(subprocess.TimeoutExpired):
            output, _ = process.communicate(timeout=0.2)
    if process.returncode:
        sys.exit(f"{way} failed; run it alone to see why: {' '.join(command)}")
    return {**json.loads(output.splitlines()[-1]), "peaks": (main / 2**20, worker / 2**20)}


def _report(way: str, rows: int, measured: dict[str, Any]) -> None:
    seconds = measured["seconds"]
    named = ", ".join(f"{name} {value:.1f}" for name, value in measured["stages"].items())
    print(
        f"{way:<9} {rows:>9,} {seconds:>8.1f} {1000 * seconds / rows:>7.3f} {rows / seconds:>7,.0f} "
        f"{measured['processor']:>8.1f} {measured['peaks'][0]:>8,.0f} {measured['peaks'][1]:>10,.0f}  {named}",
        flush=True,
    )


@contextlib.contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    """A fresh artifact root with the committed evaluation cases and the base model, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="po-rows-", dir=work))
    try:
        (folder / "evaluation").mkdir()
        shutil.copy(REPOSITORY / "artifacts" / "evaluation" / "po_eval_cases.jsonl", folder / "evaluation")
        models = REPOSITORY / "artifacts" / "models" / "base"
        if models.exists():  # converting the base model is no part of what is measured here
            (folder / "models").mkdir()
            (folder / "models" / "base").symlink_to(models)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
