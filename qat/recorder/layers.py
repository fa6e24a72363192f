"""The record of every operator: what its grids lose by themselves, and how much noise has gathered in its result.

The model runs twice at once over each node, quantizers off and on. A quantizer is shown the value of the run without
noise, so that its histogram, clipped share and SNR are its own; the SNR of a result compares the two runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from qat.inputs import Inputs
from qat.layers import FakeQuantFunction, FakeQuantWeight
from qat.placement.plan import Plan, PlannedOp
from qat.placement.prepared import PreparedModel, device_of, plain_copy, quantizers
from qat.quantizers import FakeQuantize
from qat.recorder.noise import Noise, Watched
from qat.recorder.owners import Owned, find_owners
from qat.report.record import Layer, Layers
from qat.runtime.profile import Profile
from qat.switches import fake_quant

PACKED = 4  # bits; narrower weights share a byte (export/packing.py)


@torch.no_grad()
def record_layers(
    prepared: PreparedModel, batches: Iterable[Any], *, examples: int = 32, profile: Profile | None = None
) -> Layers:
    """The record of a trained model; its mode and switches are as before afterwards.

    Args:
        prepared: the fake-quant model.
        batches: inputs `[N, ...]`, or tuples that begin with them.
        examples: how many of them to look at.
        profile: measured times, of the artefact in its runtime.
    """
    modes = {module: module.training for module in prepared.modules()}
    prepared.eval()
    seen, owned = _Seen(prepared), find_owners(prepared)
    count = 0
    try:
        for batch in batches:
            x = Inputs.of(batch).args[0][: examples - count].to(device_of(prepared))
            _BothWays(prepared, seen, owned).run(x) if owned.owner else _whole(prepared, seen, x)
            count += len(x)
            if count >= examples:
                break
    finally:
        fake_quant(prepared, enabled=True)
        for module, mode in modes.items():
            module.training = mode
    layers = tuple(_layer(op, prepared, seen, owned, profile) for op in prepared.plan.ops)
    return Layers(layers=layers, examples=count, ms_other=profile.other if profile else None)


def record_plan(plan: Plan) -> Layers:
    """The record of a model without quantizers to look at, dynamic or of integer weights: what its plan says."""
    layers = (
        Layer(name=op.name, kind=op.kind, integer=op.integer, why=op.why, fused=op.fused, macs=op.macs)
        for op in plan.ops
    )
    return Layers(layers=tuple(layers))


class _Seen:
    """What was seen of each operator, by its name."""

    def __init__(self, prepared: PreparedModel) -> None:
        self.weights: dict[str, Watched] = {}
        self.activations: dict[str, Watched] = {}
        self.outputs: dict[str, Noise] = {}
        self.sites: dict[str, str] = {}  # the artefact's name of its value
        self.paths = {quantizer: path for path, quantizer in quantizers(prepared).items()}

    def weight(self, name: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
        """The weight of a layer, once: it is the same for every batch."""
        if name in self.weights or not isinstance(layer, FakeQuantWeight | FakeQuantFunction):
            return
        weight = args[1] if isinstance(layer, FakeQuantFunction) else layer.weight
        if isinstance(layer, FakeQuantWeight) and layer.norm_eps is not None:
            weight = weight * layer.fold(args[1], args[2])
        self.weights[name] = Watched(layer.weight_quantizer)
        self.weights[name].add(weight)

    def activation(self, name: str, quantizer: FakeQuantize, x: Tensor) -> None:
        """A value before its quantizer."""
        self.activations.setdefault(name, Watched(quantizer)).add(x)


class _Two:
    """A value of the run without quantizers, and of the run with them."""

    def __init__(self, off: Any, on: Any) -> None:
        self.values = (off, on)


class _Side:
    """Takes one run's value out of an argument."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, argument: Any) -> Any:
        return argument.values[self.index] if isinstance(argument, _Two) else argument


class _BothWays(fx.Interpreter):
    def __init__(self, prepared: PreparedModel, seen: _Seen, owned: Owned) -> None:
        copied = plain_copy(prepared.graphs[False])
        super().__init__(prepared, graph=copied)
        self.prepared, self.seen = prepared, seen
        names = {node.name: owner for node, owner in owned.owner.items()}
        self.owner = {node: names[node.name] for node in copied.nodes if node.name in names}

    def run_node(self, n: fx.Node) -> Any:
        """Both values of a node."""
        if n.op in ("placeholder", "get_attr", "output"):
            return super().run_node(n)
        given = self.fetch_args_kwargs_from_env(n)
        values = []
        for i, enabled in enumerate((False, True)):
            fake_quant(self.prepared, enabled=enabled)
            args, kwargs = map_aggregate(given, _Side(i))
            values.append(getattr(self, n.op)(n.target, args, kwargs))
            if not enabled and n.op == "call_module" and n in self.owner:
                fake_quant(self.prepared, enabled=True)
                self.seen.weight(self.owner[n], self.fetch_attr(str(n.target)), args)
        self._see(n, *values)
        return _Two(*values)

    def _see(self, n: fx.Node, off: Any, on: Any) -> None:
        name = self.owner.get(n)
        if name is None or not isinstance(off, Tensor) or not off.is_floating_point():
            return
        last = not any(self.owner.get(user) == name for user in n.users)
        if last:
            self.seen.outputs.setdefault(name, Noise()).add(off, on)
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        quantizer = module if isinstance(module, FakeQuantize) else getattr(module, "output_quantizer", None)
        if isinstance(quantizer, FakeQuantize):
            self.seen.activation(name, quantizer, off)
            self.seen.sites[name] = n.name


def _whole(prepared: PreparedModel, seen: _Seen, x: Tensor) -> None:
    """A model without a graph: results of its layers by hooks, first without quantizers, then with them."""
    layers = {n: m for n, m in prepared.named_modules() if isinstance(m, FakeQuantWeight)}
    clean: dict[str, Tensor] = {}
    fake_quant(prepared, enabled=False)

    def keep(name: str) -> Any:
        return lambda module, args, output: clean.__setitem__(name, output)

    def keep_input(name: str) -> Any:
        return lambda module, args: clean.__setitem__(f"{name} input", args[0])

    def compare(name: str) -> Any:
        return lambda module, args, output: seen.outputs.setdefault(name, Noise()).add(clean[name], output)

    for hooks in (keep, compare):
        handles = [layer.register_forward_hook(hooks(name)) for name, layer in layers.items()]
        if hooks is keep:
            handles += [layer.register_forward_pre_hook(keep_input(name)) for name, layer in layers.items()]
        prepared(x)
        fake_quant(prepared, enabled=True)
        for handle in handles:
            handle.remove()
    for name, layer in layers.items():
        if name in clean:
            seen.weight(name, layer, ())
            quantizer = layer.input_quantizer
            assert isinstance(quantizer, FakeQuantize)
            seen.activation(name, quantizer, clean[f"{name} input"])


def _layer(op: PlannedOp, prepared: PreparedModel, seen: _Seen, owned: Owned, profile: Profile | None) -> Layer:
    weight, activation = seen.weights.get(op.name), seen.activations.get(op.name)
    output = seen.outputs.get(op.name)
    ms = None
    if profile is not None:
        ms = profile.by_weight.get(op.name, profile.by_site.get(seen.sites.get(op.name, "")))
    return Layer(
        name=op.name,
        kind=op.kind,
        integer=op.integer,
        why=op.why,
        fused=op.fused,
        inputs=owned.inputs.get(op.name, ()),
        macs=op.macs,
        bytes=_bytes(op, prepared, weight),
        ms=ms,
        weight=weight.values if weight else None,
        activation=activation.values if activation else None,
        snr=output.snr if output else None,
        quantizers=tuple(seen.paths[w.quantizer] for w in (weight, activation) if w and w.quantizer in seen.paths),
    )


def _bytes(op: PlannedOp, prepared: PreparedModel, weight: Watched | None) -> int:
    """Of an operator's parameters: packed integers, scales and int32 biases, or floats."""
    if weight is None:
        module = dict(prepared.named_modules()).get(op.name)
        return sum(4 * p.numel() for p in module.parameters()) if module is not None and not op.integer else 0
    channels = max(weight.quantizer.scale.numel(), 1)
    values = weight.total if weight.quantizer.spec.bits > PACKED else (weight.total + 1) // 2
    return values + 8 * channels
