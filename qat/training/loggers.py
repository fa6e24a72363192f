"""Loggers of Lightning under the arguments that a run gives to all of them: `name`, the stage, `float` or `qat`."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.loggers import MLFlowLogger


def mlflow(*, name: str, experiment_name: str = "qat", tracking_uri: str | None = None, **options: Any) -> MLFlowLogger:
    """MLflow's, one run for each stage.

    Args:
        name: of the run.
        experiment_name: what the runs are grouped by.
        tracking_uri: a server, or `file:FOLDER`; None takes MLflow's own.
        options: others of `MLFlowLogger`.
    """
    return MLFlowLogger(experiment_name, run_name=name, tracking_uri=tracking_uri, **options)
