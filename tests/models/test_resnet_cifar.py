from __future__ import annotations

import pytest
import torch
from torch import nn

from qat.errors import ConfigError
from qat.models import ResNetCifar, resnet20, resnet32, resnet44, resnet56
from qat.models.resnet_cifar import BasicBlock, PadShortcut


def formula(depth: int, classes: int) -> int:
    """Parameters from the paper's table: 3x3 kernels, gamma and beta per channel, one linear layer."""
    n = (depth - 2) // 6
    convs = (
        [(3, 16)] + [(16, 16)] * 2 * n + [(16, 32)] + [(32, 32)] * (2 * n - 1) + [(32, 64)] + [(64, 64)] * (2 * n - 1)
    )
    return sum(9 * c_in * c_out + 2 * c_out for c_in, c_out in convs) + 64 * classes + classes


@pytest.mark.parametrize(
    ("builder", "depth", "parameters"),
    [(resnet20, 20, 269_722), (resnet32, 32, 464_154), (resnet44, 44, 658_586), (resnet56, 56, 853_018)],
)
def test_parameter_count_is_the_papers(builder, depth, parameters):
    model = builder(10)
    assert sum(p.numel() for p in model.parameters()) == formula(depth, 10) == parameters
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == depth


def test_names_are_those_of_published_checkpoints():
    keys = set(resnet20().state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer3.2.bn2.bias", "fc.bias"} <= keys
    assert not [key for key in keys if "shortcut" in key]


@pytest.mark.parametrize(("c_in", "c_out", "size"), [(16, 32, 8), (32, 64, 4), (2, 6, 5)])
def test_shortcut_against_the_index_formula(c_in, c_out, size):
    x = torch.randn(2, c_in, size, size)
    half = (size + 1) // 2
    expected = torch.zeros(2, c_out, half, half)
    p = (c_out - c_in) // 2
    for c in range(c_in):
        for i in range(half):
            for j in range(half):
                expected[:, p + c, i, j] = x[:, c, 2 * i, 2 * j]
    torch.testing.assert_close(PadShortcut(c_in, c_out)(x), expected, atol=0, rtol=0)


def test_shortcut_equals_a_strided_convolution_with_a_selecting_kernel():
    x = torch.randn(3, 16, 8, 8)
    kernel = torch.zeros(32, 16, 1, 1)
    kernel[8:24, :, 0, 0] = torch.eye(16)
    expected = nn.functional.conv2d(x, kernel, stride=2)
    torch.testing.assert_close(PadShortcut(16, 32)(x), expected, atol=0, rtol=0)


def test_block_with_silent_convolutions_is_its_shortcut():
    block = BasicBlock(16, 32).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(block(x), PadShortcut(16, 32)(x).relu(), atol=0, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_traces_and_the_graph_takes_any_batch_and_size(training):
    model = ResNetCifar(8, 5).train(training)
    graph = torch.fx.symbolic_trace(model)
    for shape in [(2, 3, 32, 32), (5, 3, 32, 32), (3, 3, 20, 28)]:
        x = torch.randn(shape)
        y = graph(x)
        assert y.shape == (shape[0], 5)
        torch.testing.assert_close(y, model(x), atol=0, rtol=0)


def test_every_relu_is_called_once():
    calls = [n.target for n in torch.fx.symbolic_trace(resnet20()).graph.nodes if n.op == "call_module"]
    assert len(calls) == len(set(calls))


def test_one_image_does_not_depend_on_its_batch():
    model = ResNetCifar(8, 10).eval()
    x = torch.randn(6, 3, 32, 32)
    one_by_one = torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(model(x), one_by_one)  # other batch, other summation order inside the convolution


def test_kaiming_keeps_the_variance_of_what_flows_back():
    weight = resnet20().layer3[1].conv1.weight
    expected = (2 / (9 * 64)) ** 0.5
    assert weight.std().item() == pytest.approx(expected, rel=0.05)  # 36,864 draws: 0.4 % standard error


@pytest.mark.parametrize("depth", [2, 18, 21, 101, -4])
def test_depth_outside_6n_plus_2(depth):
    with pytest.raises(ConfigError, match=rf"need depth = 6n \+ 2 .* got depth={depth}"):
        ResNetCifar(depth)


def test_no_class():
    with pytest.raises(ConfigError, match=r"need num_classes >= 1, got 0"):
        resnet20(0)
