"""`python -m qat.report RUN_DIR...`: report.html and report.md, into the folder of the first run, or of the sweep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from qat.errors import QatError
from qat.report.folder import read_runs
from qat.report.jobs import is_sweep, read_sweep
from qat.report.page import write_report, write_sweep


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; the exit status, 1 where a folder cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m qat.report", description="What runs left behind, on one page.")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN_DIR", help="folder of a run, several are compared; or of a sweep"
    )
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where to write; default: the first run's folder")
    given = parser.parse_args(arguments)
    try:
        folder = Path(given.output or given.runs[0])
        sweep = len(given.runs) == 1 and is_sweep(given.runs[0])
        path = write_sweep(read_sweep(given.runs[0]), folder) if sweep else write_report(read_runs(given.runs), folder)
    except QatError as error:
        Console(stderr=True, soft_wrap=True).print(f"{type(error).__name__}: {error}", markup=False, highlight=False)
        return 1
    Console(soft_wrap=True).print(str(path), markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
