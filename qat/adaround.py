"""AdaRound on a calibrated model: weights are rounded so that each layer's output changes least, not each weight.

    min over V of E || f(W x) - f(W~(V) x') ||^2 + lambda * penalty(V)       f: BatchNorm and activation

x is the layer's input in the float model, x' the one in the model whose earlier layers are rounded already (Nagel et
al. 2020, arXiv:2004.10568, eq. 25; functional/adaround.py). Weights end on their grid, so that rounding to the nearest
reads the learned integers; scales must not move afterwards. For post-training quantization, from 1,000 examples on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qat.bias_correction import Norm, batches_for, weighted_in_order
from qat.calibrate import forward
from qat.errors import ConfigError
from qat.functional.adaround import beta_at, penalty, soft_step, soft_weight, undecided
from qat.functional.affine import broadcast
from qat.functional.ste import IDENTITY, Clamp
from qat.layers import FakeQuantLinear, FakeQuantWeight, pruned
from qat.layers.batchnorm import _FakeQuantBatchNorm
from qat.placement.prepared import PreparedModel, quantizers
from qat.quantizers import DoReFa
from qat.quantizers.observed import clamp
from qat.switches import as_deployed, fake_quant


def adaround(
    prepared: PreparedModel,
    batches: Iterable[Any],
    *,
    max_batches: int = 32,
    iterations: int = 1000,
    batch_size: int = 32,
    learning_rate: float = 0.01,
    regularization: float = 0.01,
    seed: int = 0,
    follow: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> dict[str, float]:
    """Learn the rounding of every weight, in place; returns per layer the share that leaves its nearest integer.

    Args:
        prepared: a calibrated model; its mode and switches are as before afterwards.
        batches: inputs, or tuples whose first element is the input, or dicts of keyword inputs; kept in memory, with
            one layer's inputs and outputs for all of them.
        max_batches: use so many.
        iterations: steps of Adam per layer; the paper takes 10,000.
        batch_size: examples per step.
        learning_rate: of Adam.
        regularization: the lambda above.
        seed: of the order of examples.
        follow: goes through the layers, e.g. with a progress bar.

    Raises:
        PlacementError: not a prepared model, or one without a graph.
        CalibrationError: no batch, or ranges that were never observed.
        ConfigError: a quantizer that does not round its weight itself.
    """
    kept = batches_for("adaround", prepared, batches, max_batches)
    for name, quantizer in quantizers(prepared).items():
        if isinstance(quantizer, DoReFa):
            raise ConfigError(f"{name} rounds a tanh of its weight; adaround needs another weight quantizer")
    baseline = cast(PreparedModel, pruned.copied(prepared)).eval()
    fake_quant(baseline, enabled=False)
    targets = {name: layer for layer, (name, _) in weighted_in_order(baseline).items()}
    generator = torch.Generator().manual_seed(seed)
    changed = {}
    with as_deployed(prepared):
        for layer, (name, norm) in follow([*weighted_in_order(prepared).items()]):
            x, _ = _seen(prepared, layer, kept)
            _, y = _seen(baseline, targets[name], kept)
            after = _after(prepared, name, norm)
            problem = _Layer(layer, norm, after)
            changed[name] = problem.learn(x, y, iterations, batch_size, learning_rate, regularization, generator)
    return changed


class _Layer:
    """One layer's problem: its weight on the grid (folded where the quantizer sees it so), and what follows."""

    def __init__(self, layer: FakeQuantWeight, norm: Norm | None, after: Callable[[Tensor], Tensor]) -> None:
        self.layer, self.after = layer, after
        quantizer = layer.weight_quantizer
        self.spec = quantizer.spec
        with torch.no_grad():
            folds = layer.norm_eps is not None and norm is not None
            self.factor = layer.fold(norm.weight, cast(Tensor, norm.running_var)) if folds and norm else torch.ones(())
            self.factor = self.factor.to(layer.weight.device)
            self.weight = (layer.kept_weight() * self.factor).detach()
            mask = layer._buffers.get(pruned.MASK)
            self.kept = torch.ones_like(self.weight) if mask is None else mask
            self.scale = broadcast(quantizer.scale.detach().clone(), self.weight, quantizer.spec.axis)

    def output(self, x: Tensor, weight: Tensor) -> Tensor:
        layer = self.layer
        weight = weight / self.factor
        if isinstance(layer, FakeQuantLinear):
            return self.after(F.linear(x, weight, layer.bias))
        return self.after(cast(Any, layer)._conv_forward(x, weight, layer.bias))

    def learn(
        self, x: Tensor, y: Tensor, iterations: int, batch_size: int, learning_rate: float, regularization: float,
        generator: torch.Generator,
    ) -> float:  # fmt: skip
        ends = self.spec.qmin, self.spec.qmax
        v = undecided(self.weight, self.scale).requires_grad_()
        optimizer = torch.optim.Adam([v], lr=learning_rate)
        with torch.no_grad():
            y = self.after(y)
        with torch.enable_grad():
            for step in range(iterations):
                chosen = torch.randperm(len(x), generator=generator)[:batch_size].to(x.device)
                rounded = self.kept * soft_weight(self.weight, v, self.scale, *ends)
                error = self.output(x[chosen], rounded) - y[chosen]
                channels = error.shape[-1] if isinstance(self.layer, FakeQuantLinear) else error.shape[1]
                loss = error.square().mean() * channels  # sum over channels, mean over all else
                beta = beta_at(step / iterations)
                if beta is not None:
                    loss = loss + regularization * penalty(v, beta)
                (v.grad,) = torch.autograd.grad(loss, v)
                optimizer.step()
        with torch.no_grad():
            decided = (soft_step(v) > 0.5).to(v.dtype)
            steps = self.kept * ((self.weight / self.scale).floor() + decided).clamp(*ends)
            nearest = (self.weight / self.scale).round().clamp(*ends)
            cast(Tensor, self.layer._parameters.get("weight_orig", self.layer.weight)).copy_(
                steps * self.scale / self.factor
            )
        return float((steps != nearest).float().mean())


@torch.no_grad()
def _seen(model: PreparedModel, layer: FakeQuantWeight, batches: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Inputs and outputs of one layer, all batches together."""
    inputs, outputs = [], []

    def take(module: nn.Module, args: Any, output: Tensor) -> None:
        inputs.append(args[0])
        outputs.append(output)

    handle = layer.register_forward_hook(take)
    try:
        for batch in batches:
            forward(model, batch)
    finally:
        handle.remove()
    return torch.cat(inputs), torch.cat(outputs)


def _after(prepared: PreparedModel, name: str, norm: Norm | None) -> Callable[[Tensor], Tensor]:
    """BatchNorm and activation behind a layer."""
    activation = norm.activation if isinstance(norm, _FakeQuantBatchNorm) else _absorbed(prepared, name, norm)

    def after(y: Tensor) -> Tensor:
        if norm is not None:
            y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
        return clamp(y, activation)

    return after


def _absorbed(prepared: PreparedModel, name: str, norm: Norm | None) -> Clamp:
    """The activation that the quantizer behind a layer has taken in."""
    for node in prepared.graphs[False].nodes:
        if node.op == "call_module" and str(node.target) == name:
            if norm is not None:
                node = next(iter(node.users))
            return cast(Clamp, next((u.kwargs["activation"] for u in node.users if "activation" in u.kwargs), IDENTITY))
    return IDENTITY
