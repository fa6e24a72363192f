from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from qat.pipeline.changes import changed, differences

QUICK = ["model=resnet20"]
THEN = {"seed": 0, "qat": {"epochs": 5, "lr": 0.1}, "data": {"mean": [0.5]}, "also": []}


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (THEN, []),
        ({**THEN, "data": {"mean": None}}, []),  # the run filled it in
        ({**THEN, "seed": 1}, ["seed"]),
        ({**THEN, "qat": {"epochs": 5, "lr": 0.2}}, ["qat.lr"]),
        ({**THEN, "qat": {"epochs": 5, "lr": 0.1, "new": 1}}, ["qat.new"]),
        ({**THEN, "qat": {"epochs": None, "lr": 0.1}}, ["qat.epochs"]),  # no run fills that in
        ({"seed": 0, "qat": {"lr": 0.1}, "data": {"mean": [0.5]}, "also": []}, ["qat.epochs"]),
        ({**THEN, "also": ["openvino"]}, ["also"]),
    ],
)
def test_in_what_settings_differ(now, expected):
    assert differences(now, THEN) == expected


@pytest.mark.parametrize(
    ("given", "then", "expected"),
    [
        (["quiet=true"], ["quiet=true", "trainer.enable_progress_bar=false"], []),
        (["task=ptq"], ["task=ptq", "qat.epochs=0"], []),
        (["task=analyze", "qat.mixup=0.2"], ["task=analyze", "qat.epochs=0"], []),
        (["data.num_workers=2"], [], []),
        ([], ["trainer.limit_train_batches=10"], ["trainer.limit_train_batches"]),
        ([], ["qat.distill={temperature: 4.0, weight: 0.9}"], ["qat.distill"]),
        ([], ["task=ptq", "qat.epochs=0"], ["qat.epochs", "task"]),
    ],
)
def test_what_a_run_sets_itself_and_what_is_in_no_result_changes_nothing(config, tmp_path, given, then, expected):
    OmegaConf.save(config(tmp_path, *then), tmp_path / "config.yaml")
    assert changed(config(tmp_path / "other", *given), tmp_path) == expected
