"""Landed rows for the benchmarks: those of the project's own generator, lengthened to the size of real ones."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import yaml

DOCUMENTS = (
    "requirements_yaml",
    "teacher_product_vision",
    "teacher_product_owner_review",
    "product_vision",
    "product_owner_review",
)
NOTES = 20
"""Sentences that each document gets from rows before it; a row then has 5 kB, as real ones have."""


def land(incoming: Path, rows: int) -> None:
    """Write so many rows of the project's generator, one process per processor, in files of 50,000."""
    incoming.mkdir(parents=True, exist_ok=True)
    per_file = 50_000
    with ProcessPoolExecutor() as processes:
        written = [
            processes.submit(write_rows, incoming / f"rows-{start:08d}.jsonl", min(per_file, rows - start), start)
            for start in range(0, rows, per_file)
        ]
        for one in written:
            one.result()


def write_rows(target: Path, rows: int, start: int) -> None:
    """Write rows of the project's generator, lengthened to the size of real ones."""
    from po_assets.sample_data.records import generate_rows, to_line

    before: list[list[str]] = [[], [], []]  # the sentences of requirements, vision and review
    with target.open("wb") as file:
        for row in generate_rows(rows, start=start):
            before = lengthen(row, before)
            file.write(to_line(row).rstrip(b"\n") + b"\n")


def lengthen(row: dict[str, Any], notes: list[list[str]]) -> list[list[str]]:
    """Append to each document of a row, in place, a list of notes; gives notes with the row's own, for the next row."""
    parts = [part for part in (row, row.get("input"), row.get("output")) if isinstance(part, dict)]
    places = [(part, key) for part in parts for key in DOCUMENTS if key in part]
    if len(places) < len(notes):
        return notes  # a row in the prompt/output format stays as it is
    told: list[list[str]] = []
    for (part, key), said in zip(places, notes, strict=True):
        own = [text for text in _texts(yaml.load(part[key], yaml.CSafeLoader)) if " " in text]
        told.append((said + own)[-NOTES:])
        if said:
            more = yaml.dump({"notes": said}, Dumper=yaml.CSafeDumper, allow_unicode=True, width=120)
            part[key] = f"{part[key].rstrip()}\n{more}"
    return told


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
