from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qat
from qat.calibrate import forward, labels_of
from qat.errors import CalibrationError, NumericsError

FLOAT = 1e-6  # relative: a mean of four float32 numbers


@pytest.fixture
def prepared(small_net, images) -> qat.PreparedModel:
    return qat.prepare(small_net, images)


def ranges(prepared: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in prepared.state_dict().items() if "quantizer" in k}


def test_ranges_are_those_of_the_float_model_averaged_over_batches(prepared, small_net, images):
    batches = images.split(4)
    assert qat.calibrate(prepared, batches) == 4
    with torch.no_grad():
        values = [F.relu(small_net.stem_norm(small_net.stem(x))) for x in batches]
    observer = prepared.stem_norm.output_quantizer.observer
    torch.testing.assert_close(observer.high, torch.stack([v.max() for v in values]).mean(), atol=0, rtol=FLOAT)
    torch.testing.assert_close(observer.low, torch.stack([v.min() for v in values]).mean(), atol=0, rtol=FLOAT)
    weight = prepared.fc.weight_quantizer.observer
    assert torch.equal(weight.high, small_net.fc.weight.amax(1).detach())


def test_every_quantizer_is_calibrated(prepared, images):
    assert not any(q.calibrated for q in qat.quantizers(prepared).values())
    qat.calibrate(prepared, [images])
    assert all(q.calibrated for q in qat.quantizers(prepared).values())


def test_what_was_observed_before_is_forgotten(prepared, images):
    qat.calibrate(prepared, [images * 100, images * 50])
    qat.calibrate(prepared, [images])
    once = {k: v.clone() for k, v in ranges(prepared).items()}
    qat.calibrate(prepared, [images])
    assert all(torch.equal(v, once[k]) for k, v in ranges(prepared).items())
    assert prepared.get_submodule("x_quantizer").observer.high == images.max()


def test_weights_and_statistics_do_not_move(prepared, small_net, images):
    qat.calibrate(prepared.train(), [images])
    state = prepared.state_dict()
    assert all(torch.equal(state[k], v) for k, v in small_net.state_dict().items())
    assert all(p.grad is None for p in prepared.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("observing", [True, False])
def test_mode_and_switches_are_restored_with_fake_quant_on(prepared, images, training, observing):
    prepared.train(training)
    prepared.stem_norm.training = not training  # a mode of its own
    qat.observers(prepared, enabled=observing)
    qat.fake_quant(prepared, enabled=False)
    modes = {name: module.training for name, module in prepared.named_modules()}
    qat.calibrate(prepared, [images])
    assert {name: module.training for name, module in prepared.named_modules()} == modes
    assert all(q.observing is observing and q.enabled for q in qat.quantizers(prepared).values())


def test_they_are_restored_after_an_error_too(prepared, images):
    def broken():
        yield images
        raise OSError("disk")

    prepared.train()
    with pytest.raises(OSError, match="disk"):
        qat.calibrate(prepared, broken())
    assert all(module.training for module in prepared.modules())
    assert all(q.enabled for q in qat.quantizers(prepared).values())


def test_frozen_ranges_are_calibrated_all_the_same(prepared, images):
    """After `observers(enabled=False)` a second calibration is still what the user asked for."""
    qat.observers(prepared, enabled=False)
    qat.calibrate(prepared, [images])
    assert all(q.calibrated for q in qat.quantizers(prepared).values())


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: (x, torch.zeros(4)), lambda x: [x, torch.zeros(4)], lambda x: {"x": x}],
    ids=["tensor", "tuple", "list", "dict"],
)
def test_forms_of_a_batch(prepared, images, wrap):
    assert qat.calibrate(prepared, [wrap(x) for x in images.split(4)]) == 4
    ours = {k: v.clone() for k, v in ranges(prepared).items()}
    qat.calibrate(prepared, images.split(4))
    assert all(torch.equal(v, ours[k]) for k, v in ranges(prepared).items())


def test_max_batches_reads_no_more_than_asked_for(prepared, images):
    read = []

    def batches():
        for x in images.split(4):
            read.append(1)
            yield x

    assert qat.calibrate(prepared, batches(), max_batches=2) == 2
    assert len(read) == 2


def test_a_module_that_holds_a_prepared_model(prepared, images):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = prepared

        def forward(self, x):
            return self.model(x)

    qat.calibrate(Wrapper(), [images])
    assert all(q.calibrated for q in qat.quantizers(prepared).values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_batch_names_the_value_and_the_batch(prepared, images, value):
    broken = images[:4].clone()
    broken[2, 0, 1, 1] = value
    with pytest.raises(NumericsError, match=r"NaN or Inf reached 'x_quantizer' in calibration batch 2\."):
        qat.calibrate(prepared, [images[:4], broken, images[4:8]])


def test_no_batch(prepared):
    with pytest.raises(CalibrationError, match="calibration saw no batch; pass at least one"):
        qat.calibrate(prepared, [])


def test_parts_of_a_batch():
    x, y = torch.zeros(2, 3), torch.tensor([1, 2])
    assert labels_of((x, y)) is y
    assert labels_of([x, "text"]) is None
    assert labels_of((x,)) is None
    assert labels_of(x) is None
    assert torch.equal(forward(nn.Identity(), (x, y)), x)
    assert torch.equal(forward(nn.Flatten(), {"input": x}), x)
