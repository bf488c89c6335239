"""A PostgreSQL server on loopback, in a temporary folder; it ends with the block."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from po_assets_tests.automation.live import serving
from po_assets_tests.processes import free_port


def _program(name: str) -> str | None:
    """On the path, or where Debian keeps it."""
    found = shutil.which(name) or next(iter(sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    return str(found) if found else None


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """Yield the URL of an empty database; skips the test, with the reason, where there is no server to start."""
    initdb, postgres = _program("initdb"), _program("postgres")
    if not initdb or not postgres:
        pytest.skip("PostgreSQL's programs initdb and postgres are not installed (Debian: postgresql)")
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # which the server refuses
        unprivileged = next((u for u in pwd.getpwall() if u.pw_name in ("postgres", "nobody")), None)
        if unprivileged is None:
            pytest.skip("PostgreSQL refuses to run as root, and there is no user 'postgres' or 'nobody'")
        user = {"user": unprivileged.pw_uid, "group": unprivileged.pw_gid, "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if user:
        os.chown(folder, user["user"], user["group"])
    data = folder / "data"
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(folder)}
    common: dict[str, Any] = {"cwd": folder, "env": environment, **user}
    subprocess.run(
        [initdb, "-D", data, "-U", "dagster", "--auth=trust", "--no-sync", "-E", "UTF8"],
        check=True, capture_output=True, **common,
    )  # fmt: skip
    port = free_port()
    command = [postgres, "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"]
    url = f"postgresql+psycopg2://dagster@127.0.0.1:{port}/postgres"
    try:
        # Ctrl-C is its "fast" shutdown: it closes the clients' connections.
        with serving(command, folder / "server.log", lambda: _answers(url), **common):
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answers(url: str) -> bool:
    import psycopg2

    with contextlib.suppress(psycopg2.OperationalError):
        psycopg2.connect(url.replace("+psycopg2", "")).close()
        return True
    return False
