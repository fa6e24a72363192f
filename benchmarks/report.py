"""How large reports are, and how long a browser takes from opening one to its last chart.

    python benchmarks/report.py outputs/RUN/report.html multirun/SWEEP/report.html

Needs a Chromium that is installed, and playwright. Run it alone on a machine: beside other work it measures that.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

REPEATS = 5
DRAWN = "performance.getEntriesByName('drawn')"


def opening(browser, file: Path) -> float:
    """Seconds from the start of navigation until every chart is there."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(file.resolve().as_uri())
    page.wait_for_function(f"{DRAWN}.length")
    found = page.evaluate(f"{DRAWN}[0].startTime") / 1000.0
    page.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT.HTML")
    given = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        Console(stderr=True).print("no chromium on this machine: apt-get install chromium")
        return 1
    from playwright.sync_api import sync_playwright

    table = Table("report", "MB", f"seconds, median of {REPEATS}", "slowest")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for file in given.reports:
            times = [opening(browser, file) for _ in range(REPEATS)]
            size = file.stat().st_size / 1e6
            table.add_row(str(file), f"{size:.2f}", f"{median(times):.2f}", f"{max(times):.2f}")
        browser.close()
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
