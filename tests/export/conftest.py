"""One small net through prepare, calibrate, convert: what the exporters and runtimes are tested on."""

from __future__ import annotations

import pytest
import torch

import qat


@pytest.fixture
def prepared(small_net, images) -> qat.PreparedModel:
    model = qat.prepare(small_net, images[:2])
    qat.calibrate(model, [images])
    return model.eval()


@pytest.fixture
def integer(prepared) -> torch.fx.GraphModule:
    return qat.convert(prepared)
