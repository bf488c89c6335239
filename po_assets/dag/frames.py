"""Tables as pandas frames: JSONL files read whole or in chunks, frames written as one JSON object per row."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import orjson
import pandas as pd
from upath import UPath

from po_assets.storage import StagedTable, read_rows, stage_lines
from po_assets.storage.jsonl import CHUNK_ROWS


@dataclass(frozen=True)
class TableStream:
    """A published table that may not fit in memory: iterating gives frames of at most `CHUNK_ROWS` rows, every time."""

    path: UPath

    def __iter__(self) -> Iterator[pd.DataFrame]:
        return read_frames(self.path)


def read_frame(path: UPath) -> pd.DataFrame:
    """The whole table; an empty file gives an empty frame. Errors as `storage.read_rows`."""
    return pd.DataFrame(list(read_rows(path)))


def read_frames(path: UPath, rows: int = CHUNK_ROWS) -> Iterator[pd.DataFrame]:
    """The table in frames of at most `rows` rows, with a running index; errors as `storage.read_rows`."""
    records, start = read_rows(path), 0
    while batch := list(islice(records, rows)):
        yield pd.DataFrame(batch, index=range(start, start + len(batch)))
        start += len(batch)


def stage_frames(target: UPath, frames: Iterable[pd.DataFrame]) -> StagedTable:
    """Write data frames as one JSON object per row beside `target`; missing values become null."""
    return stage_lines(target, (line for frame in frames for line in _encoded(frame)))


def _encoded(frame: pd.DataFrame) -> Iterator[bytes]:
    columns = [str(column) for column in frame.columns]
    values = [frame[column].tolist() for column in frame.columns]
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    for row in zip(*values, strict=True):
        yield orjson.dumps(dict(zip(columns, row, strict=True)), option=options)
