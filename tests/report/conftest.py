"""A headless Chromium that notes what a page asks of others and what it says; pictures are in .screenshots."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
PICTURES = Path(__file__).parents[2] / ".screenshots"  # of whole pages, from the last run of the tests
OPEN = 2.0  # seconds until the last chart is drawn, as benchmarks/report.py measures them alone on a machine
BUSY = 15  # times as long beside other tests, at most: this catches a page that hangs


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no chromium, and CI is where the report has to be opened: .ci/run installs it")
        pytest.skip("no chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, request):
    """`with opened(file, width, scheme) as page`: it fits the width, asks nobody, says nothing, and opens in time."""

    @contextmanager
    def open_page(file: Path, width: int, scheme: str) -> Iterator[Any]:
        asked, said = [], []
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(file.as_uri())
        page.wait_for_function("performance.getEntriesByName('drawn').length", timeout=1000 * OPEN * BUSY)
        PICTURES.mkdir(exist_ok=True)
        name = f"{request.node.originalname}-{width}-{scheme}.png".removeprefix("test_")
        page.screenshot(path=PICTURES / name, full_page=True)
        yield page
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        page.close()
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        assert said == []

    return open_page
