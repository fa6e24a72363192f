"""`task=analyze` and `quant.budget`, each through `run`: the files, the widths they agree on, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig

import qat
from qat.budget import Budget
from qat.errors import CheckpointError, ConfigError
from qat.models import resnet20
from qat.pipeline import run
from qat.pipeline.analysis import read_analysis
from qat.pipeline.wanted import read_recipe, read_targets

Config = Callable[..., DictConfig]
QUICK = [
    "model=resnet20", "quant=w4a4_lsq", "data.image_size=8", "data.batch_size=32", "analyze.batches=1",
    "qat.calibration_batches=1", "trainer.enable_progress_bar=false", "trainer.limit_train_batches=1",
    "trainer.log_every_n_steps=1", "latency.repeats=1", "report=false", "verify.agreement=0", "verify.top1=100",
]  # fmt: skip

pytestmark = pytest.mark.runtime


@pytest.fixture(scope="module")
def analyzed(
    config: Config, tmp_path_factory: pytest.TempPathFactory, checkpoint: Path
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A run of `task=analyze` without a budget: its folder, its results, and `sensitivity.json`."""
    folder = tmp_path_factory.mktemp("analyze")
    results = run(config(folder, "task=analyze", f"init_from={checkpoint}", "qat.distill={weight: 0.5}"))
    return folder, results, json.loads((folder / "sensitivity.json").read_text())


def test_it_ends_in_the_card_and_trains_nothing(analyzed):
    folder, results, _ = analyzed
    assert (results["task"], results["passed"]) == ("analyze", True)
    assert {"analyze", "calibrate", "export"} <= set(results["seconds"])
    assert "qat" not in results["seconds"]
    assert json.loads((folder / "results.json").read_text()) == results


def test_every_tensor_is_ranked_the_most_sensitive_first(analyzed):
    _, _, told = analyzed
    tensors = told["tensors"]
    assert (len(tensors), told["examples"]) == (51, 32)
    snr = [row["alone"]["snr"] for row in tensors]
    assert snr == sorted(snr)
    assert [row["rank"]["snr"] for row in tensors] == list(range(1, 52))
    by_loss = sorted(tensors, key=lambda row: row["rank"]["loss"])
    losses = [row["alone"]["loss"] for row in by_loss]
    assert losses == sorted(losses, reverse=True)
    widest = {"weight": "7", "activation": "8"}
    for row in tensors:
        assert set(row["widths"]) == ({"4", "5", "6", widest[row["tensor"]]} if row["open"] else set())
        assert (str(row["chosen_bits"]) in row["widths"]) == row["open"]


def test_without_a_budget_it_takes_the_middle(analyzed):
    _, _, told = analyzed
    assert told["chosen"]["budget"] == {"weight": 5.5, "activation": 6.0, "weight_bytes": None}
    assert told["chosen"]["mean_bits"]["weight"] <= 5.5
    snr = [each["snr"] for each in told["front"]]
    assert snr == sorted(snr)
    assert [each["budget"]["activation"] for each in told["front"]] == [4 + i / 2 for i in range(9)]


def test_the_picture_is_one(analyzed):
    text = (analyzed[0] / "sensitivity.svg").read_text()
    assert text.startswith("<svg")
    assert "layer3.2.conv2" in text


def test_a_later_run_takes_the_file(config, analyzed, tmp_path):
    folder, results, told = analyzed
    recipe = read_recipe(config(tmp_path, f"quant.override={folder / 'override.yaml'}"))
    prepared = qat.prepare(resnet20(), torch.rand(2, 3, 8, 8), recipe)
    assert str(prepared.plan) == (folder / "plan.txt").read_text()
    bits = {(u.name, u.tensor): qat.quantizers(prepared)[u.quantizer].spec.bits for u in prepared.units}
    chosen = {(row["name"], row["tensor"]): row["chosen_bits"] for row in told["tensors"] if row["open"]}
    assert chosen.items() <= bits.items()
    assert 5 < results["mean_bits"]["weight"] < 5.6


def test_one_command_measures_searches_and_trains(config, checkpoint, tmp_path, caplog):
    with caplog.at_level("INFO", "qat"):
        results = run(config(tmp_path, f"init_from={checkpoint}", "quant.budget=5", "qat.epochs=1"))
    assert "mean bits: weights" in caplog.text
    assert {"analyze", "qat"} <= set(results["seconds"])
    told = json.loads((tmp_path / "sensitivity.json").read_text())
    assert told["quantized"] is None  # the search needs no more
    assert told["chosen"]["mean_bits"]["activation"] <= 5
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    settings = torch.load(checkpoint, weights_only=True)["qat"]["settings"]
    assert settings["recipe.override.layer1.0.conv1.activation.bits"] in (4, 5, 6, 8)

    # resumed, the widths are those that it began with: another measurement could differ
    cfg = config(tmp_path / "on", "quant.budget=5", f"ckpt_path={checkpoint}")
    analysis = read_analysis(cfg, read_recipe(cfg), read_targets(cfg)[0])
    recipe = analysis.recipe(cfg, None, None, tmp_path / "on")
    assert recipe.override == yaml.safe_load((tmp_path / "override.yaml").read_text())
    assert recipe.limits is None
    assert (tmp_path / "on" / "override.yaml").read_text() == (tmp_path / "override.yaml").read_text()
    cfg = config(tmp_path, "quant.budget=6", f"ckpt_path={checkpoint}")
    with pytest.raises(CheckpointError, match=r"was trained under a budget of .*'weight': 5.* run has .*'weight': 6"):
        read_analysis(cfg, read_recipe(cfg), read_targets(cfg)[0])
    (tmp_path / "override.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"a run without override.yaml and sensitivity.json, .*"):
        read_analysis(cfg, read_recipe(cfg), read_targets(cfg)[0])


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_its_widths(config, checkpoint, tmp_path):
    given = [f"init_from={checkpoint}", "quant.budget=5", "qat.scheduler=null"]  # none that plans for one epoch alone
    run(config(tmp_path, *given, "qat.epochs=1"))
    results = run(config(tmp_path, *given, "qat.epochs=2", f"ckpt_path={tmp_path}/checkpoints/last.ckpt"))
    assert "analyze" in results["seconds"]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1


def test_nothing_is_measured_unless_asked_for(config, tmp_path):
    cfg = config(tmp_path)
    assert read_analysis(cfg, read_recipe(cfg), read_targets(cfg)[0]) is None
    cfg = config(tmp_path, "quant.budget={weight: 5}", "analyze.weight_bits=[8, 2]", "analyze.batches=3")
    analysis = read_analysis(cfg, read_recipe(cfg), read_targets(cfg)[0])
    assert (analysis.batches, analysis.weight_bits, analysis.everything) == (3, (2, 8), False)
    assert analysis.wanted.limits == Budget(weight=5)


@pytest.mark.parametrize("experiment", ["mixed5", "w5a5"])
def test_the_experiments_differ_in_the_budget_alone(config, tmp_path, experiment):
    cfg = config(tmp_path, f"experiment=cifar10_resnet20_{experiment}", "data.path=d", "init_from=f.th")
    recipe = read_recipe(cfg)
    assert (recipe.weight.bits, recipe.activation.bits, recipe.budget) == (5, 5, 5 if experiment == "mixed5" else None)
    assert (cfg.qat.epochs, cfg.qat.distill.temperature) == (2, 4.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["quant.budget=3"], r"of 3 for weights, and analyze.weight_bits=\[4, 5, 6, 8\]: the smallest that can "
         r"be met is 4. Raise the budget, or allow narrower widths with analyze.weight_bits"),
        (["quant.budget=5", "analyze.activation_bits=[]"], r"analyze.activation_bits=\[\]: there is no width"),
        (["quant.budget=1"], r"need 2 <= quant.budget <= 8"),
        (["quant.budget_mb=-1"], r"need quant.budget_mb > 0"),
        (["quant.budget=5", "quant=w4a8", "target=executorch"], r"stores them in 8 bits: the smallest that can be met "
         r"is 8. Limit weights alone, quant.budget=\{weight: BITS\}"),
        (["quant.budget=5", "placement=modules"], r"placement=modules gives all layers the same bits.*t quant.budget"),
        (["task=analyze", "placement=modules"], r"placement=modules gives all layers the same bits.*out task=analyze"),
        (["task=analyze", "analyze.batches=0"], r"need analyze.batches >= 1, a number of batches, got 0"),
        (["task=analyze", "analyze.weight_bits=4"], r"need analyze.weight_bits as a list of widths such as .*, got 4"),
        (["task=analyze", "analyze.weight_bits=[1, 4]"], r"need 2 <= bits <= 8, got bits=1"),
        (["task=weight_only", "quant.budget=5"], r"are for static quantization: task=qat, ptq and analyze. task=weigh"),
        (["task=dynamic", "quant.budget_mb=1"], r"task=dynamic takes quant.weight.bits"),
        (["quant.override=nowhere.yaml"], r"quant.override=nowhere.yaml is no file; task=analyze writes one"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_written(config: Config, tmp_path: Path, overrides: list[str], message: str) -> None:
    pytest.importorskip("executorch")
    with pytest.raises(ConfigError, match=message):
        run(config(tmp_path, *overrides))
    assert not (tmp_path / "config.yaml").exists()


def test_a_file_that_is_too_small_for_any_width(config, checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"stores the weights in 0.01 MB: the smallest quant.budget_mb that can be"):
        run(config(tmp_path, f"init_from={checkpoint}", "quant.budget_mb=0.01"))
