"""Guards and inputs that all tests share: a fixed seed, nothing left behind, golden text, one small net."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn
from torch.nn import functional as F

import qat

# derandomize: the same examples in every run, so that a red test is red everywhere; no database, so no files
settings.register_profile("qat", deadline=None, database=None, derandomize=True, max_examples=60, print_blob=False)
settings.load_profile("qat")

# tensors are tiny here: a second thread saves nothing, and waiting for it on a busy machine takes 20 times as long
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regen-golden", action="store_true", help="rewrite tests/golden/*.txt from the code")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _leaves_no_files() -> Iterator[None]:
    """Fail a test that writes beside the code instead of into `tmp_path`; caches of tools start with a dot."""
    folder = Path.cwd()
    before = _visible(folder)
    yield
    left = sorted(_visible(folder) - before)
    assert not left, f"the test left {', '.join(left)} in {folder}; write into tmp_path"


def _visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith((".", "__pycache__"))}


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: text equals tests/golden/<name>, or rewrites it under `--regen-golden`."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--regen-golden"):
            path.write_text(text)
        assert path.is_file(), f"{path.name} is not there yet; write it with: pytest --regen-golden"
        assert text == path.read_text(), f"{path.name} differs; if that is meant: pytest --regen-golden, and review"

    return check


class SmallNet(nn.Module):
    """What CNNs are made of in 3,000 weights: conv with an unused bias, depthwise, residual, pooling, linear."""

    def __init__(self, *, eps: float = 1e-3, momentum: float | None = 0.01) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)  # its bias goes into the BatchNorm behind it
        self.stem_norm = nn.BatchNorm2d(8, eps=eps, momentum=momentum)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(8, eps=eps, momentum=momentum)
        self.point = nn.Conv2d(8, 8, 1, bias=False)
        self.point_norm = nn.BatchNorm2d(8, eps=eps, momentum=momentum)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W] -> [N, 5]`."""
        x = F.relu(self.stem_norm(self.stem(x)))
        y = F.relu6(self.depthwise_norm(self.depthwise(x)))
        x = F.relu(x + self.point_norm(self.point(y)))
        return self.fc(torch.flatten(self.pool(x), 1))


def randomize_norms(model: nn.Module) -> nn.Module:
    """Statistics and weights as after training: gammas of both signs, and one dead channel in each BatchNorm."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                if module.track_running_stats:
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2.0)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5).mul_(torch.randint_like(module.weight, 2) * 2 - 1)
                    module.weight[0] = 0.0
                    module.bias.normal_()
    return model


@pytest.fixture
def randomize() -> Callable[[nn.Module], nn.Module]:
    return randomize_norms


@pytest.fixture
def small_net() -> SmallNet:
    """A SmallNet in evaluation mode, with statistics as after training."""
    return randomize_norms(SmallNet()).eval()


@pytest.fixture
def images() -> Tensor:
    """`[16, 3, 8, 8]` in [-1, 1]."""
    return torch.rand(16, 3, 8, 8) * 2 - 1


@pytest.fixture
def prepared(small_net, images) -> qat.PreparedModel:
    """The small net in fake-quant, calibrated, in evaluation mode."""
    model = qat.prepare(small_net, images[:2])
    qat.calibrate(model, [images])
    return model.eval()


@pytest.fixture
def integer(prepared) -> torch.fx.GraphModule:
    """Its integer model."""
    return qat.convert(prepared)
