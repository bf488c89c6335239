"""Reading artifacts wherever they are: files by line at full speed, folders as a local path.

How they are written belongs to `atomic`; what the lines mean to `jsonl` and the stages.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from upath import UPath

from po_assets.storage.atomic import is_local, published_directory

_BUFFER = 1 << 20


def open_buffered(path: UPath | Path) -> BinaryIO:
    """A binary file to read line by line.

    fsspec's own remote files find line ends in Python, slowly, and their `readline` takes no limit; hence the buffer.
    """
    file = UPath(path).open("rb")
    return cast("BinaryIO", file if isinstance(file, io.BufferedIOBase) else io.BufferedReader(file, _BUFFER))


@contextlib.contextmanager
def local_copy(folder: UPath | Path) -> Iterator[Path]:
    """A published folder as a path on this machine: itself where it is here, else a copy that vanishes afterwards.

    Raises:
        FileNotFoundError: an object store holds nothing there.
    """
    if is_local(folder):
        yield Path(str(folder))
        return
    with tempfile.TemporaryDirectory() as temporary:
        source = published_directory(folder)
        source.fs.get(f"{source.path.rstrip('/')}/", f"{temporary}/", recursive=True)
        yield Path(temporary)
