"""Answers as they came out of a model, and the cache that lets an interrupted evaluation go on.

One JSON line per answer. What an answer is worth belongs to `scoring`.
"""

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from upath import UPath

from po_assets.storage import atomic_file
from po_assets.storage.atomic import is_local


@dataclass(frozen=True)
class Answer:
    """One model's answer to one case."""

    case_id: str
    text: str
    finish_reason: str
    """`stop`: the model or the grammar ended it; `length`: it was cut at the token limit."""
    tokens: int
    seconds: float
    """Computing time: each forward pass divided among the answers in it, so that the sum over answers is the whole."""
    attempts: int = 1


class AnswerCache:
    """Finished answers of one model under one decoding, by the digest of what was asked.

    A line is appended and synced per answer, so that nothing finished is lost; a line cut by a crash is ignored.
    """

    def __init__(self, folder: UPath, model_digest: str, decoding_digest: str) -> None:
        self._path = folder / f"{model_digest[:16]}-{decoding_digest[:16]}.jsonl"
        self._answers = dict(_read_lines(self._path))

    @property
    def path(self) -> UPath:
        """The cache's file."""
        return self._path

    def get(self, asked: str) -> Answer | None:
        """The answer to what has this digest, if it is there."""
        return self._answers.get(asked)

    def add(self, asked: str, answer: Answer) -> None:
        """Keep a finished answer, on disk when this returns."""
        self._answers[asked] = answer
        if is_local(self._path):
            _append_synced(Path(str(self._path)), _line(asked, answer))
        else:  # an object store cannot append; the file is small
            with atomic_file(self._path) as file:
                file.write(b"".join(_line(asked, answer) for asked, answer in self._answers.items()))


def _line(asked: str, answer: Answer) -> bytes:
    return json.dumps({"asked": asked, **asdict(answer)}).encode() + b"\n"


def _append_synced(path: Path, line: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")  # shuts off a line that a crash cut
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _read_lines(path: UPath) -> Iterable[tuple[str, Answer]]:
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a cut line: its answer is made again
            record = json.loads(line)
            yield record.pop("asked"), Answer(**record)
