"""A provider's batch endpoint on 127.0.0.1: files and batches as OpenAI's API has them, with faults on demand."""

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from po_assets.product_owner import split_prompt
from po_assets_tests.teacher.scenes import ACCEPTED
from po_assets_tests.teacher.teacher_server import BILL, Handler, listening


@dataclass
class HostedBatch:
    """A batch as the provider keeps it; `requests` are the lines of its file."""

    id: str
    requests: list[dict[str, Any]]
    metadata: dict[str, str]
    looks: int = 0
    cancelled: bool = False


def completion(text: str = ACCEPTED) -> dict[str, Any]:
    """A line's response and error, with a whole answer."""
    body = {
        "model": "served-model",
        "choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}],
        "usage": BILL,
    }
    return {"response": {"status_code": 200, "body": body}, "error": None}


def failure(status: int, message: str) -> dict[str, Any]:
    """A line of the error file."""
    return {"response": {"status_code": status, "body": {"error": {"message": message}}}, "error": None}


EXPIRED = {"response": None, "error": {"code": "batch_expired", "message": "not executed in time"}}
LOST = {"lost": True}
"""No line at all."""


@dataclass
class Provider:
    """A running endpoint. `answers` gives what a request (its batch, its concept) ends in."""

    answers: Callable[[HostedBatch, str], dict[str, Any]] = lambda _batch, _concept: completion()
    status: Callable[[HostedBatch], str] = lambda batch: "completed" if batch.looks > 1 else "in_progress"
    happens: Callable[[str], None] = lambda _event: None
    """Called before a response is sent: `file`, `batch`, `look`, `content`, `list`, `cancel`."""
    refuses: Callable[[str], int | None] = lambda _event: None
    """A status to answer with instead."""
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, HostedBatch] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)
    url: str = ""

    @property
    def asked(self) -> Counter[str]:
        """Requests for each concept in all batches."""
        return Counter(concept_of(line) for batch in self.batches.values() for line in batch.requests)

    def do(self, method: str, path: str, body: bytes) -> tuple[str, Callable[[], Any]]:
        """The event that a request is, and what makes its response."""
        parts = path.partition("?")[0].removeprefix("/v1/").split("/")
        match method, parts:
            case "POST", ["files"]:
                return "file", lambda: self._upload(body)
            case "POST", ["batches"]:
                return "batch", lambda: self._make(json.loads(body))
            case "GET", ["batches"]:
                return "list", lambda: {"data": [self._shown(b) for b in reversed(self.batches.values())]}
            case "GET", ["batches", name]:
                return "look", lambda: self._shown(self.batches[name], looks=1)
            case "POST", ["batches", name, "cancel"]:
                return "cancel", lambda: self._shown(self.batches[name], cancelled=True)
            case "POST", ["chat", "completions"]:
                return "live", lambda: completion()["response"]["body"]
            case "GET", ["files", name, "content"]:
                return "content", lambda: self.files[name]
        raise KeyError(path)

    def _upload(self, form: bytes) -> Any:
        assert b'name="purpose"\r\n\r\nbatch\r\n' in form
        name = f"file-{len(self.files)}"
        self.files[name] = b"\n".join(line for line in form.splitlines() if line.startswith(b"{"))
        return {"id": name, "object": "file", "purpose": "batch"}

    def _make(self, body: dict[str, Any]) -> Any:
        assert (body["endpoint"], body["completion_window"]) == ("/v1/chat/completions", "24h")
        requests = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        assert all(line["method"] == "POST" and line["url"] == body["endpoint"] for line in requests)
        batch = HostedBatch(f"batch_{len(self.batches)}", requests, body["metadata"])
        self.batches[batch.id] = batch
        return self._shown(batch)

    def _shown(self, batch: HostedBatch, looks: int = 0, *, cancelled: bool = False) -> Any:
        batch.looks += looks
        batch.cancelled |= cancelled
        status = "cancelled" if batch.cancelled else self.status(batch)
        shown = {"id": batch.id, "object": "batch", "status": status, "metadata": batch.metadata}
        if status == "failed":
            return shown | {"errors": {"data": [{"code": "model", "message": "the model has no batch endpoint"}]}}
        if status in {"completed", "expired", "cancelled"}:
            lines: dict[str, list[bytes]] = {"output": [], "error": []}
            for request in batch.requests:
                made = self.answers(batch, concept_of(request))
                good = (made.get("response") or {}).get("status_code") == 200
                if made is not LOST:
                    record = {"id": "r", "custom_id": request["custom_id"]} | made
                    lines["output" if good else "error"].append(json.dumps(record).encode())
            for name, content in lines.items():
                if content:
                    self.files[f"{batch.id}-{name}"] = b"\n".join(content)
                    shown[f"{name}_file_id"] = f"{batch.id}-{name}"
        return shown


def concept_of(line: dict[str, Any]) -> str:
    return split_prompt(line["body"]["messages"][-1]["content"]).concept or ""


@contextlib.contextmanager
def provider(**faults: Any) -> Iterator[Provider]:
    """A provider on a free port."""
    made = Provider(**faults)
    turn = threading.Lock()

    class Asking(Handler):
        def answer(self) -> None:
            body = self.body()
            with turn:
                made.keys.add(self.headers.get("authorization", ""))
                try:
                    event, make = made.do(self.command, self.path, body)
                    made.seen[event] += 1
                    status = made.refuses(event)
                    result = make() if status is None else {"error": {"message": f"status {status}"}}
                except KeyError as error:
                    event, status, result = "", 404, {"error": {"message": f"no {error}"}}
                made.happens(event)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.reply(result, status or 200)

        do_GET = do_POST = answer  # noqa: N815 - named by http.server

    with listening(Asking) as made.url:
        yield made
