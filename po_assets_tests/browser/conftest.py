"""A browser, and a webserver on an instance in which a bad landing stopped a run after a good one."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from po_assets_tests.automation.live import Server, webserver
from po_assets_tests.automation.test_staleness import scene_in
from po_assets_tests.automation.workplace import make_workplace

CHROMIUM = os.environ.get("PO_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium; without it the tests are skipped, or fail where `PO_REQUIRE_BROWSER` is set."""
    missing = "" if CHROMIUM else "chromium is not installed: apt-get install chromium (or set PO_CHROMIUM to its path)"
    if not importlib.util.find_spec("playwright"):
        missing = "playwright is not installed: make test-browser"
    if missing and os.environ.get("PO_REQUIRE_BROWSER"):
        pytest.fail(missing)
    elif missing:
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    # Until it is closed, an event loop runs in this thread, beside which nobody else's `asyncio.run` works.
    with sync_playwright() as driver:
        # As root, and in containers, chromium cannot make a sandbox of its own.
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def ui(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The webserver; first the browser, so that nothing is made for a test that is skipped."""
    place = make_workplace(tmp_path_factory.mktemp("ui"))
    with scene_in(place) as scene:
        scene.run()
        place.land("2026-11-bad", "no json at all", '{"some": "thing"}')
        scene.run()
    with webserver(place) as server:
        yield server


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A fresh page of a usual size."""
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    page.set_default_timeout(30_000)
    yield page
    page.close()
