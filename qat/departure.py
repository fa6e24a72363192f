"""Where an artefact departs from the trained model: its integers beside the fake-quant model's, value by value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from qat.artifact import Artifact
from qat.convert import OPS, convert
from qat.inputs import Inputs
from qat.parity import Layer
from qat.placement.flat import feed
from qat.placement.prepared import PreparedModel, plain_copy
from qat.runtime import load
from qat.switches import as_deployed
from qat.walk import given

DEPARTED = 0.01  # a layer departs when more than this share of its integers is off by more than one step


@torch.no_grad()
def compare_layers(prepared: PreparedModel, artifact: Artifact, inputs: Inputs) -> tuple[Layer, ...]:
    """Every value that the artefact's runtime shows, beside the fake-quant model's, in the order of the graph.

    Args:
        prepared: the fake-quant model.
        artifact: an artefact of it; the answer is empty where its runtime shows no intermediate values.
        inputs: of one batch.
    """
    if not artifact.sites:  # nothing is shown: a runtime without names, or a model prepared by modules
        return ()
    grids = _grids(convert(prepared), artifact.sites)
    with as_deployed(prepared):
        recorder = _Recorder(prepared, artifact.sites)
        recorder.run(initial_env=given(prepared, recorder.graph.nodes, inputs))
    found = []
    for site, integers in load(artifact).intermediates(*feed(prepared, inputs, artifact.inputs)).items():
        scale, zero = grids[site]
        mine = (recorder.seen[site].float().cpu() / scale).round() + zero
        difference = (mine - integers.float().reshape(mine.shape)).abs()  # linear layers are stored as rows
        off, departed = (float((difference > limit).float().mean()) for limit in (0, 1))
        found.append(Layer(site=site, max_steps=int(difference.max()), off=off, departed=departed))
    return tuple(found)


def first_departure(layers: tuple[Layer, ...]) -> str:
    """The first of `layers` that departs, with how much; empty if none does."""
    for layer in layers:
        if layer.departed > DEPARTED:
            return f"{layer.site} ({100 * layer.departed:.1f} % of its integers are off by more than one step)"
    return ""


class _Recorder(fx.Interpreter):
    def __init__(self, prepared: PreparedModel, names: Iterable[str]) -> None:
        super().__init__(prepared, graph=plain_copy(prepared.graphs[False]))
        self.names, self.seen = set(names), dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names:
            self.seen[n.name] = value
        return value


def _grids(integer: fx.GraphModule, sites: tuple[str, ...]) -> dict[str, tuple[float, int]]:
    quantized = [n for n in integer.graph.nodes if n.target is OPS.quantize_per_tensor.default]
    return {site: (float(n.args[1]), int(n.args[2])) for site, n in zip(sites, quantized, strict=True)}
