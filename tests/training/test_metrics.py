"""The metrics of a run in CSV: rows from before an interruption stay, and a full disk is one message."""

from __future__ import annotations

import csv
import errno
from pathlib import Path

import pytest

from qat.errors import ExportError
from qat.training.loggers import RunCSVLogger

pytestmark = pytest.mark.filterwarnings("ignore:Experiment logs directory")  # it goes on there


def rows(folder: Path) -> list[tuple[str, ...]]:
    with (folder / "qat" / "metrics.csv").open(newline="") as file:
        return [tuple(row.values()) for row in csv.DictReader(file)]


def logger(folder: Path) -> RunCSVLogger:
    return RunCSVLogger(folder, name="qat", version="", flush_logs_every_n_steps=1)


def test_rows_from_before_stay_and_those_logged_again_are_the_new_ones(tmp_path: Path) -> None:
    first = logger(tmp_path)
    for step in range(4):
        first.log_metrics({"loss": 0.5 + step}, step)
    first.log_metrics({"top1": 0.9}, 3)
    first.save()
    again = logger(tmp_path)
    assert again.experiment is again.experiment
    assert len(rows(tmp_path)) == 5  # nothing is lost until the run goes on
    again.log_metrics({"loss": 7.0}, 3)
    again.log_metrics({"loss": 8.0, "lr": 0.1}, 4)
    again.save()
    kept = [("0.5", "", "0"), ("1.5", "", "1"), ("2.5", "", "2")]
    assert rows(tmp_path) == [*kept, ("7.0", "", "3"), ("8.0", "0.1", "4")]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = logger(tmp_path)

    def refuse() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(full.experiment, "save", refuse)
    with pytest.raises(ExportError, match=r"cannot write .*qat/metrics\.csv: No space left on device\. Free"):
        full.log_metrics({"loss": 1.0}, 0)
