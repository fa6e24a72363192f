from __future__ import annotations

import operator

import pytest
import torch
from torch import nn

import qat
from qat.export.decomposition import ALIASES, TRANSLATED, decomposed_when_needed
from qat.export.program import export_program
from qat.placement.written import with_item


class InPlace(nn.Module):
    def forward(self, x):
        return x.mul(2.0).relu_()


def test_a_program_without_such_operators_is_handed_out_as_it_is():
    program = decomposed_when_needed(export_program(nn.Linear(3, 2).eval(), (torch.randn(2, 3),)))
    assert program.run_decompositions({torch.ops.aten.relu.default: torch.relu}) is program


@pytest.mark.parametrize("table", [{torch.ops.aten.linear.default: None}, None])
def test_operators_of_the_table_are_decomposed(table):
    program = decomposed_when_needed(export_program(nn.Linear(3, 2).eval(), (torch.randn(2, 3),)))
    default = torch.export.default_decompositions()
    asked = None if table is None else {op: default[op] for op in table}
    targets = {n.target for n in program.run_decompositions(asked).graph.nodes if n.op == "call_function"}
    assert torch.ops.aten.linear.default not in targets


def test_what_writes_into_its_input_is_made_functional():
    program = decomposed_when_needed(export_program(InPlace().eval(), (torch.randn(2, 3),)))
    targets = {n.target for n in program.run_decompositions({}).graph.nodes if n.op == "call_function"}
    assert torch.ops.aten.relu_.default not in targets


class Turned(nn.Module):
    def forward(self, x):
        return x.swapaxes(1, 2).movedim(1, 2)


def test_what_no_trace_preserves_is_decomposed_and_other_names_are_replaced():
    program = decomposed_when_needed(export_program(Turned().eval(), (torch.randn(2, 3, 4),)))
    assert torch.ops.aten.transpose.int in {n.target for n in program.graph.nodes}  # swapaxes
    targets = {n.target for n in program.run_decompositions({}).graph.nodes if n.op == "call_function"}
    assert not {torch.ops.aten.movedim.int, torch.ops.aten.swapaxes.default} & targets


def test_torch_onnx_translates_what_is_left_to_it():
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration", reason="private")
    known = {found[0].fx_target for found in registration.ONNXRegistry.from_torchlib().functions.values()}
    assert known >= {*TRANSLATED, *ALIASES.values()}


class Masked(nn.Module):
    """Its mask is the same for every input, and its activations write into theirs."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 3), nn.Hardswish(inplace=True), nn.Linear(36, 36)

    def forward(self, x):
        y = torch.nn.functional.silu(self.act(self.conv(x)), inplace=True).flatten(2)  # [N, 4, 36]
        mask = y.new_zeros((4, 36))
        mask[:, 3:] = 1.5
        return self.fc(y + mask)


@pytest.mark.runtime
def test_integer_models_are_exported_without_decomposition(monkeypatch, tmp_path):
    x = torch.randn(4, 3, 8, 8)
    model = Masked().eval()
    prepared = qat.prepare(model, x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    assert not [n for n in integer.graph.nodes if n.target in ("new_zeros", with_item, operator.setitem)]  # a constant

    def refuse(*args, **kwargs):
        raise AssertionError("decomposed")

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", refuse)
    artifact = qat.export(integer, tmp_path / "int8.onnx")
    report = qat.verify(prepared, artifact, [x], strict=False)
    assert report.stages[-1].max_steps <= 1.0
    assert model.act.inplace  # of the float model
    assert prepared.act.inplace
