"""What holds for every test: skipped where an extra is missing, one thread for each of several workers."""

import contextlib
import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: workers side by side have a core each.
    os.environ["OMP_NUM_THREADS"] = "1"

with contextlib.suppress(ImportError):  # of the extra dev
    from hypothesis import settings

    settings.register_profile("patient", deadline=None)  # a busy machine is no fault
    settings.load_profile("patient")

EXTRAS = {
    "axe_playwright_python": "dev",
    "dagster_k8s": "kubernetes",
    "dagster_postgres": "postgres",
    "dagster_ray": "ray",
    "hypothesis": "dev",
    "kubernetes": "kubernetes",
    "kubernetes_validate": "dev",
    "mlflow": "mlflow",
    "moto": "dev",
    "playwright": "dev",
    "psycopg2": "postgres",
    "pyarrow": "ray",
    "ray": "ray",
    "ryaml": "fast",
    "s3fs": "s3",
    "xllamacpp": "export",
}
"""The extra that brings a module."""


def _skip_for(error: BaseException | None) -> None:
    """Skip where a module of an extra is missing, naming the extra."""
    while error is not None:
        extra = EXTRAS.get((getattr(error, "name", None) or "").partition(".")[0])
        if isinstance(error, ModuleNotFoundError) and extra:
            pytest.skip(f"needs the extra {extra}: make setup EXTRAS={extra}", allow_module_level=True)
        error = error.__cause__


class _Module(pytest.Module):
    def _getobj(self) -> Any:
        try:
            return super()._getobj()
        except self.CollectError as error:
            _skip_for(error)
            raise


def pytest_pycollect_makemodule(module_path: Any, parent: Any) -> pytest.Module:
    """A test module that is skipped where it imports what is not installed."""
    return _Module.from_parent(parent, path=module_path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """A fixture may import it too, and a test itself."""
    try:
        return (yield)
    except ModuleNotFoundError as error:
        _skip_for(error)
        raise


pytest_runtest_call = pytest_runtest_setup


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a fresh bucket on an S3 server of this machine."""
    from po_assets_tests.storage.s3_server import s3_server

    with s3_server() as url:
        yield url
