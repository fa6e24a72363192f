from __future__ import annotations

import torch
from torch import nn

import qat
from qat.layers import FakeQuantBatchNorm1d, FakeQuantBatchNorm2d


class Net(nn.Module):
    """One BatchNorm that ends in a quantizer, in two and in four dimensions, and one that is excluded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.fc, self.flat = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.head, self.left = nn.Linear(4, 2), nn.BatchNorm1d(2)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.left(self.head(torch.relu(self.flat(self.fc(x)))))


def test_a_model_with_synchronised_batchnorm_is_prepared_as_one_without():
    plain = Net()
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(Net())
    synced.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 8, 8)
    one, other = (qat.prepare(model, x, exclude=["head", "left"]) for model in (plain, synced))
    assert str(one.plan) == str(other.plan)
    assert one.state_dict().keys() == other.state_dict().keys()
    assert isinstance(other.norm, FakeQuantBatchNorm2d)
    assert isinstance(other.flat, FakeQuantBatchNorm1d)
    assert type(other.left) is nn.SyncBatchNorm
    assert (other.norm.synced, other.flat.synced, one.norm.synced) == (True, True, False)
    for prepared in (one, other):
        qat.calibrate(prepared, [x])
    for mode in (True, False):  # one process: as without
        assert torch.equal(one.train(mode)(x), other.train(mode)(x))
    assert isinstance(synced.norm, nn.SyncBatchNorm)  # the argument is untouched


def test_batchnorm_is_synchronised_after_prepare():
    x = torch.randn(4, 3, 8, 8)
    prepared = qat.prepare(Net(), x, exclude=["head", "left"])
    keys = list(prepared.state_dict())
    assert qat.sync_batchnorm(prepared) is prepared
    assert (prepared.norm.synced, prepared.flat.synced) == (True, True)
    assert type(prepared.left) is nn.SyncBatchNorm
    assert list(prepared.state_dict()) == keys
    qat.calibrate(prepared, [x])
    prepared.train()(x).sum().backward()  # one process: nothing to exchange
    integer = qat.convert(prepared)
    assert torch.isfinite(integer(x)).all()
