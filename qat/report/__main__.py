"""`python -m qat.report RUN_DIR...`: report.html and report.md, into the folder of the first run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from qat.errors import QatError
from qat.report.folder import read_runs
from qat.report.page import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; the exit status, 1 where a folder cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m qat.report", description="What runs left behind, on one page.")
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="folder of a run; several are compared")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where to write; default: the first run's folder")
    given = parser.parse_args(arguments)
    try:
        path = write_report(read_runs(given.runs), Path(given.output or given.runs[0]))
    except QatError as error:
        Console(stderr=True, soft_wrap=True).print(f"{type(error).__name__}: {error}", markup=False, highlight=False)
        return 1
    Console(soft_wrap=True).print(str(path), markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
