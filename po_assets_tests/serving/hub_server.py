"""The Hub's endpoints that a push needs, on this machine: what is uploaded counts only when it is committed."""

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from po_assets_tests.teacher.teacher_server import Handler, listening

TOKEN = "hf_right"
REPOSITORY = "team/student"


@dataclass
class Hub:
    """One repository; `files` by name, of large ones the sha256."""

    url: str = ""
    exists: bool = True
    down_at: str = ""
    """Part of a path at which the server hangs up instead of answering."""
    refusal: tuple[int, str] | None = None
    """Status and words in which a commit is refused."""
    files: dict[str, bytes | str] = field(default_factory=lambda: {".gitattributes": b"", "old.gguf": b"old"})
    blobs: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def commit(self, lines: list[dict[str, Any]]) -> None:
        """Take a commit as a whole."""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value["summary"])
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                assert value["oid"] in self.blobs
                self.files[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]


class _Handler(Handler):
    hub: Hub

    def _answer(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        content = self.body()
        hub.asked.append(f"{self.command} {path}")
        if hub.down_at and hub.down_at in path:
            self.close_connection = True
            return
        if path.startswith("/upload/"):
            hub.blobs.add(hashlib.sha256(content).hexdigest())
            self.reply({})
        elif self.headers.get("authorization") != f"Bearer {TOKEN}":
            self.reply({}, 401, {"x-error-message": "Invalid credentials in Authorization header"})
        elif path == "/api/repos/create":
            hub.exists = True
            self.reply({"url": f"{hub.url}/{REPOSITORY}"})
        elif path == "/api/validate-yaml":
            self.reply({"warnings": [], "errors": []})
        elif not hub.exists or REPOSITORY not in path:
            self.reply({"error": "Repository not found"}, 404, {"x-error-code": "RepoNotFound"})
        elif "/preupload/" in path:
            names = [one["path"] for one in json.loads(content)["files"]]
            modes = {name: "lfs" if name.endswith((".safetensors", ".gguf")) else "regular" for name in names}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self.reply({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.url}/upload/{one['oid']}", "header": {}}}}
                for one in json.loads(content)["objects"]
            ]
            self.reply({"transfer": "basic", "objects": objects})
        elif "/commit/" in path and hub.refusal:
            self.reply({"error": hub.refusal[1]}, hub.refusal[0])
        elif "/commit/" in path:
            hub.commit([json.loads(line) for line in content.splitlines()])
            self.reply({"commitUrl": f"{hub.url}/{REPOSITORY}/commit/c0ffee", "commitOid": "c0ffee"})
        elif "/tree/" in path:
            self.reply([{"type": "file", "path": name, "size": 1, "oid": "0"} for name in hub.files])
        else:
            self.reply({"id": REPOSITORY, "sha": "f00d", "siblings": [{"rfilename": name} for name in hub.files]})

    do_GET = do_POST = do_PUT = do_HEAD = _answer  # noqa: N815 - named by http.server


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """The server, while the block runs."""
    hub = Hub()
    with listening(type("Handler", (_Handler,), {"hub": hub})) as url:
        hub.url = url.removesuffix("/v1")
        yield hub
