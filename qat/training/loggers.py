"""Loggers of Lightning under the arguments that a run gives to all of them: `name`, the stage, `float` or `qat`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, MLFlowLogger

from qat.errors import ExportError
from qat.training.processes import first


def mlflow(*, name: str, experiment_name: str = "qat", tracking_uri: str | None = None, **options: Any) -> MLFlowLogger:
    """MLflow's, one run for each stage.

    Args:
        name: of the run.
        experiment_name: what the runs are grouped by.
        tracking_uri: a server, or `file:FOLDER`; None takes MLflow's own.
        options: others of `MLFlowLogger`.
    """
    return MLFlowLogger(experiment_name, run_name=name, tracking_uri=tracking_uri, **options)


class RunCSVLogger(CSVLogger):
    """Lightning's CSVLogger for runs that are interrupted: rows from before stay, and a full disk is one message.

    Rows that the resumed run logs again, of the epoch that was not complete, are those of the resumed run.
    """

    _before: list[dict[str, str]] | None = None

    @property
    def experiment(self) -> Any:
        """The writer of the file."""
        if self._experiment is None:
            path = Path(self.log_dir) / "metrics.csv"
            if first() and path.is_file():
                with path.open(newline="") as file:
                    self._before = list(csv.DictReader(file))
            found = super().experiment  # removes the file
            self._write(self._before or [])
            return found
        return super().experiment

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Add a row; the first one decides which of those before stay."""
        writer = self.experiment
        if first() and self._before and step is not None:
            kept = [row for row in self._before if (row.get("step") or "0").isdigit() and int(row["step"] or 0) < step]
            if len(kept) < len(self._before):
                Path(writer.metrics_file_path).unlink(missing_ok=True)
                writer.metrics_keys.clear()
                self._write(kept)
            self._before = None
        super().log_metrics(metrics, step)

    def save(self) -> None:
        """Write what was logged.

        Raises:
            ExportError: the disk is full, or the folder cannot be written.
        """
        try:
            super().save()
        except OSError as error:
            raise ExportError(
                f"cannot write {Path(self.log_dir) / 'metrics.csv'}: {error.strerror or error}. Free some space, and "
                "go on with ckpt_path=last"
            ) from error

    def _write(self, rows: list[dict[str, str]]) -> None:
        if first() and rows:
            self._experiment.metrics = [{key: value for key, value in row.items() if value} for row in rows]  # type: ignore[union-attr]
            self.save()
