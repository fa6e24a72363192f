"""Where a run comes from: its command, the commit of the code, the date."""

from __future__ import annotations

import subprocess
from datetime import datetime
from pathlib import Path

from qat.report.record import Run

SECONDS = 10  # for git on a slow disk


def record_run(command: str, folder: str | Path = ".") -> Run:
    """The origin of a run that was started by `command` in `folder`; without a commit outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD") or ""
    changed = bool(commit and _git(folder, "status", "--porcelain", "--untracked-files=no"))
    created = datetime.now().astimezone().isoformat(timespec="seconds")
    return Run(command=command, commit=commit, changed=changed, created=created)


def _git(folder: str | Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):  # no git
        return None
    return done.stdout.strip() if done.returncode == 0 else None
