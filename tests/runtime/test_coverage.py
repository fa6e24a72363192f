from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import qat
from qat.runtime import load
from qat.runtime.coverage import Coverage, Executed, Kind


def chain(*kinds: Kind) -> Coverage:
    operators = [
        Executed(name=str(i), op="Op", kind=kind, inputs=(str(i - 1),) if i else ()) for i, kind in enumerate(kinds)
    ]
    return Coverage(runtime="mine", operators=tuple(operators))


INTEGER, FLOAT, BORDER = Kind.INTEGER, Kind.FLOAT, Kind.BORDER


@pytest.mark.parametrize(
    ("kinds", "islands"),
    [
        ((INTEGER, BORDER, FLOAT, BORDER, INTEGER), ["2"]),
        ((INTEGER, BORDER, FLOAT, FLOAT, BORDER, INTEGER), ["2", "3"]),
        ((FLOAT, BORDER, INTEGER, BORDER, FLOAT), []),
        ((INTEGER, BORDER, INTEGER), []),
        ((FLOAT,), []),
    ],
)
def test_an_island_has_integers_on_both_sides(kinds, islands):
    assert [o.name for o in chain(*kinds).islands] == islands


def test_a_float_branch_beside_integers_is_no_island():
    operators = (
        Executed(name="a", op="Conv", kind=INTEGER),
        Executed(name="b", op="Softmax", kind=FLOAT, inputs=("a",)),
        Executed(name="c", op="Conv", kind=INTEGER, inputs=("a",)),
    )
    assert Coverage(runtime="mine", operators=operators).islands == ()


def test_in_words():
    assert str(chain(INTEGER, FLOAT, INTEGER)) == "mine: 2 integer, 1 float, 1 island: Op 1"
    assert str(Coverage(runtime="mine", operators=(), delegates=1)) == "mine: 0 integer, 0 float, 1 delegate, no island"


@pytest.mark.runtime
@pytest.mark.parametrize(("target", "file"), [("onnxruntime", "model.onnx"), ("openvino", "model.xml")])
def test_known_nets_run_on_integers_throughout(trained, tmp_path, target, file):
    if target == "openvino":
        pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    coverage = load(qat.export(qat.convert(trained(target)), tmp_path / file)).coverage()
    assert coverage.in_float == ()
    assert len(coverage.integer) >= 8  # convolutions, pooling, linear; additions may run inside convolutions


class Float(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)

    def forward(self, x):
        return self.second(self.first(x).erf()).mean((2, 3))


@pytest.mark.runtime
@pytest.mark.parametrize(("target", "file"), [("onnxruntime", "model.onnx"), ("openvino", "model.xml")])
def test_an_operator_without_an_integer_kernel_is_an_island(images, tmp_path, target, file):
    if target == "openvino":
        pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    prepared = qat.prepare(Float().eval(), images[:2], target=target)
    qat.calibrate(prepared, [images])
    coverage = load(qat.export(qat.convert(prepared), tmp_path / file)).coverage()
    assert "Erf" in {str(o).partition(" ")[0] for o in coverage.islands} or len(coverage.islands) == 1


class Block(nn.Module):
    """A transformer's: attention, two linear layers with GELU between them, LayerNorm before each."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up, self.gelu, self.down = nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return (x + self.down(self.gelu(self.up(self.norm2(x)))))[:, 0]


@pytest.fixture
def tokens() -> torch.Tensor:
    """`[8, 5, 16]`."""
    return torch.randn(8, 5, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.runtime
def test_linear_layers_of_tokens_run_on_integers_and_what_is_float_is_counted(tokens, tmp_path):
    prepared = qat.prepare(Block().eval(), tokens[:2])
    qat.calibrate(prepared, [tokens])
    integer = qat.convert(prepared.eval())
    artifact = qat.export(integer, tmp_path / "model.onnx")
    runtime = load(artifact)
    coverage = runtime.coverage()
    assert [o.op for o in coverage.in_float] == ["LayerNormalization", "Softmax", "LayerNormalization", "Gelu"]
    assert [o.op for o in coverage.integer].count("QGemm") == 4
    for n in (1, 2, 7):
        torch.testing.assert_close(runtime(tokens[:n]), integer(tokens[:n]), rtol=0, atol=0.05)
    layers = qat.verify(prepared, artifact, [tokens], strict=False, layerwise=True).layers
    assert [layer.site for layer in layers] == list(artifact.sites)
    assert max(layer.max_steps for layer in layers) <= 2


def excluding(model: nn.Module, names: tuple[str, ...], images: torch.Tensor, target: str) -> qat.PreparedModel:
    recipe = replace(qat.QuantRecipe.parse("w8a8"), exclude=names)
    prepared = qat.prepare(model, images[:2], recipe, target)
    qat.calibrate(prepared, [images])
    return prepared.eval()


executorch = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)  # its own imports


@pytest.mark.runtime
@executorch
def test_what_a_delegate_runs_in_float_is_counted(small_net, images, tmp_path):
    pytest.importorskip("executorch", reason="the extra `executorch` is not installed")
    prepared = excluding(small_net, ("fc", "depthwise"), images, "executorch")
    artifact = qat.export(qat.convert(prepared), tmp_path / "model.pte")
    coverage = load(artifact).coverage()
    assert coverage.delegates == 1
    in_float = [o.op for o in coverage.in_float]
    assert in_float.count("XNNDepthwiseConv2d") == in_float.count("XNNFullyConnected") == 1
    assert any(o.op == "XNNDepthwiseConv2d" for o in coverage.islands)
    report = qat.verify(prepared, artifact, [images], tolerance=qat.Tolerance(in_float=0), strict=False)
    assert any("XNNDepthwiseConv2d" in failure for failure in report.failures)
    plain = load(qat.export(small_net.eval(), tmp_path / "float.pte", (images[:2],))).coverage()
    assert plain.integer == ()
    assert len(plain.in_float) > 4


@pytest.mark.runtime
@executorch
def test_a_mean_over_space_runs_on_integers_in_xnnpack(images, tmp_path):
    pytest.importorskip("executorch", reason="the extra `executorch` is not installed")

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(self.conv(x).mean((2, 3)))

    prepared = excluding(Mean().eval(), (), images, "executorch")
    coverage = load(qat.export(qat.convert(prepared), tmp_path / "model.pte")).coverage()
    assert coverage.in_float == ()
    assert [o.op for o in coverage.integer].count("XNNGlobalAvgPooling2d") == 1


WRAPPER = """
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(4, &buf0_handle));
    cpp_fused_quantize_per_tensor_0((const float*)(arg0.data_ptr()), (uint8_t*)(buf0.data_ptr()), s77);
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__qconv_pointwise_tensor(buf0, x_scale, &buf1_handle));
    cpp_fused_dequantize_per_tensor_hardswish_quantize_per_tensor_2((uint8_t*)(buf2.data_ptr()), buf1);
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_proxy_executor_call_function(proxy_executor, 0, 8, {buf2, buf3}.data()));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(buf4, buf3, weight, 1L, 1L));
    cpp_fused_dequantize_per_tensor_transpose_6((const uint8_t*)(buf4.data_ptr()), (float*)(buf5.data_ptr()));
"""


def test_inductor_kernels_by_what_they_are_called():
    pytest.importorskip("torchao", reason="the extra `inductor` is not installed")
    from qat.runtime.inductor import executed

    coverage = Coverage(runtime="inductor", operators=executed(WRAPPER, ["quantized::max_pool2d"]))
    assert [o.kind for o in coverage.operators] == [BORDER, INTEGER, FLOAT, INTEGER, FLOAT, BORDER]
    assert [o.name for o in coverage.islands] == ["call_2"]
    assert [o.op for o in coverage.in_float][1] == "aoti_torch_cpu_addmm_out"
