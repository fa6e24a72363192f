"""Experiments that start from published weights, on eight images: transfer learning, and PyTorch's recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import WeightsEnum, mobilenet_v2, resnet18

from qat.pipeline import run

CONF = Path(__file__).parent.parent / "conf"
SMALL = ["data.image_size=32", "data.batch_size=4", "float.epochs=1", "qat.epochs=1", "qat.calibration_batches=1",
         "latency.repeats=1", "verify.agreement=0", "verify.top1=100", "trainer.enable_progress_bar=false",
         "trainer.accelerator=cpu", "trainer.log_every_n_steps=1"]  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """ImageNet's layout, two classes of a colour each: four images to train, two to validate."""
    for split, count in (("train", 4), ("val", 2)):
        for name, colour in (("ants", (200, 40, 40)), ("bees", (40, 40, 200))):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (48, 40 + i), colour).save(folder / f"{i}.png")
    return tmp_path / "photos"


@pytest.mark.runtime
@pytest.mark.parametrize("start", ["weights", pytest.param("init_from", marks=pytest.mark.slow)])
def test_first_the_head_then_the_whole(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    published = resnet18()  # 1,000 classes
    torch.save(published.state_dict(), tmp_path / "resnet18.pth")
    monkeypatch.setattr(WeightsEnum, "url", property(lambda _: (tmp_path / "resnet18.pth").as_uri()))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    overrides = ["experiment=transfer_resnet18", f"data.root={photos}", f"run_dir={tmp_path}/run", *SMALL]
    overrides += [f"cache_dir={tmp_path}/cache"]
    if start == "init_from":
        overrides += ["model.weights=null", f"init_from={tmp_path}/resnet18.pth"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        results = run(compose("config", overrides=overrides))
    assert results["examples"] == 4

    (kept,) = (tmp_path / "cache").glob("*.safetensors")
    before, head_trained = published.state_dict(), load_file(kept)
    assert head_trained["fc.weight"].shape == (2, 512)
    backbone = [key for key in before if not key.startswith("fc.")]
    assert all(torch.equal(head_trained[key], before[key]) for key in backbone)

    trained = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    still = [key for key in backbone if torch.equal(trained[f"model.{key}"], before[key])]
    assert not still  # every weight and every statistic went on


@pytest.mark.runtime
@pytest.mark.slow
def test_the_recipe_of_mobilenet_v2(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the experiment has it but for the size, the epochs, and the head: there are two classes here."""
    published = mobilenet_v2()
    torch.save(published.state_dict(), tmp_path / "mobilenet_v2.pth")
    monkeypatch.setattr(WeightsEnum, "url", property(lambda _: (tmp_path / "mobilenet_v2.pth").as_uri()))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    overrides = ["experiment=recipe_mobilenet_v2", f"data.root={photos}", f"run_dir={tmp_path}/run", *SMALL]
    overrides += [f"cache_dir={tmp_path}/cache", "model.num_classes=2", "init_reset_head=true"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=overrides)
        results = run(cfg)
    assert cfg.qat.scheduler.step_size == 30
    assert results["recipe"] == "w8a8"
    assert results["examples"] == 4
    trained = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    first = "features.0.0.weight"
    assert not torch.equal(trained[f"model.{first}"], published.state_dict()[first])
