"""Shares of weights that oscillate: the closed form, gaps, and a training that records them."""

from __future__ import annotations

import math
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import qat
from qat.functional.oscillation import Oscillation, follow
from qat.recorder import TrainingRecorder
from qat.recorder.oscillation import Oscillations, share
from qat.report.record import Training, read
from qat.training import Classifier, QuantizationAwareTraining

TRIPLES = st.lists(st.tuples(*[st.integers(-7, 7)] * 3), min_size=1, max_size=20)


@given(TRIPLES)
def test_the_share_is_that_of_the_rule_that_freezes_weights(triples):
    first, second, third = (torch.tensor(row, dtype=torch.int8) for row in zip(*triples, strict=True))
    state = follow(Oscillation.start(first), second, momentum=1.0, threshold=1.0)
    state = follow(state, third, momentum=1.0, threshold=1.0)
    assert share(first, second, third) == pytest.approx(float(state.frequency.mean()))


def test_a_gap_starts_anew(small_net, images):
    prepared = qat.prepare(small_net, images[:2])
    qat.calibrate(prepared, [images])
    seen = Oscillations()
    for step in (1, 2, 2, 4, 5):
        seen.look(prepared, step)
    assert all(math.isnan(value) for value in seen.shares().values())
    with torch.no_grad():
        prepared.get_submodule("stem").weight.neg_()
    seen.look(prepared, 6)
    assert seen.shares()["stem"] == 0.0
    with torch.no_grad():
        prepared.get_submodule("stem").weight.neg_()
    seen.look(prepared, 7)
    assert seen.shares()["stem"] > 0.9  # all but zeros
    assert seen.shares()["fc"] == 0.0


def test_a_training_records_a_share_wherever_it_records_scales(small_net, images, tmp_path):
    loader = DataLoader(TensorDataset(images, torch.arange(16) % 5), batch_size=4)
    module = Classifier(small_net.train(), num_classes=5, optimizer=partial(torch.optim.SGD, lr=0.5))
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[QuantizationAwareTraining(recipe="w4a8"), TrainingRecorder(tmp_path, "qat")],
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    found = read(tmp_path, Training, "qat")
    assert set(found.oscillating) == {"stem", "depthwise", "point", "fc"}
    assert {len(v) for v in found.oscillating.values()} == {len(found.range_steps)} == {8}
    assert any(0 < v <= 1 for values in found.oscillating.values() for v in values)
