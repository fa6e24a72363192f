"""From a float model to its fake-quant copy.

capture the forward in both modes → find the sites of quantizers in each → swap layers for their fake-quant
subclasses under the same names → rewrite the graphs to call them → write down the plan
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from qat.errors import ConfigError, NumericsError, PlacementError, unknown_name
from qat.layers import pruned
from qat.layers.adopt import adopt
from qat.layers.frozen import open_frozen
from qat.layers.transformer import open_attention
from qat.observers import Observer
from qat.placement.capture import capture
from qat.placement.describe import describe
from qat.placement.fake import Shapes
from qat.placement.gates import open_gates
from qat.placement.modules import prepare_modules
from qat.placement.narrowed import narrow_for_products
from qat.placement.overrides import choose, first_and_last
from qat.placement.patterns import NORMS
from qat.placement.prepared import PreparedModel, device_of
from qat.placement.rewrite import Rewriter
from qat.placement.rules import excluded, matching
from qat.placement.shapes import propagate_shapes, two_examples
from qat.placement.sites import Sites, find_sites, name_nodes
from qat.placement.synced import close_synced, open_synced
from qat.placement.usable import usable
from qat.recipe import QuantRecipe, numerics
from qat.spec import Scheme
from qat.target import Target

PLACEMENTS = ("graph", "modules")


def prepare(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    recipe: str | Mapping[str, Any] | QuantRecipe = "w8a8",
    target: str | Mapping[str, Any] | Target = "onnxruntime",
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    exclude: Sequence[str] = (),
    leaf_modules: tuple[type[nn.Module], ...] = (),
    placement: str = "graph",
) -> PreparedModel:
    """A copy of `model` with fake-quant modules in it; the argument is untouched.

    Build the optimizer from the copy's parameters. Ranges are not known yet: `qat.calibrate` next.

    Args:
        model: a float model without data-dependent control flow.
        example_inputs: one input tensor, or the tuple of positional inputs; only shapes and dtypes matter.
        recipe: name of a recipe (`conf/quant`), its mapping, or a `QuantRecipe`.
        target: name of a target (`conf/target`), its mapping, or a `Target`.
        example_kwargs: keyword inputs of forward; a bool, string or None is a setting, and fixed at that value.
        exclude: glob patterns of modules that stay in float, besides the recipe's.
        leaf_modules: module classes that are not traced through and stay in float.
        placement: `graph`, or `modules` for a model that cannot be traced: weights and inputs of convolutions and
            linear layers alone.

    Raises:
        ConfigError: an unknown recipe, target or placement; leaf_modules without a graph.
        CaptureError: the model cannot be traced, or rejects the inputs.
        PlacementError: nothing to quantize, an exclude or override pattern that matches nothing, a model already
            prepared, or one of TorchScript, in half precision, with lazy layers or weights that are computed.
        NumericsError: NaN or Inf in a parameter or buffer.
    """
    recipe, target = QuantRecipe.parse(recipe), Target.parse(target)
    grids = numerics(recipe, target)
    if placement not in PLACEMENTS:
        raise ConfigError(unknown_name("placement", placement, PLACEMENTS))
    if leaf_modules and placement == "modules":
        raise ConfigError(
            "leaf_modules keeps classes whole in a graph, and placement=modules makes none; leave layers in float with "
            "exclude"
        )
    if isinstance(model, PreparedModel):
        raise PlacementError("the model is already prepared; prepare the float model again to change recipe or target")
    patterns = (*recipe.exclude, *exclude)
    model = usable(model, patterns)
    require_finite(model)
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    device = device_of(model)
    named = dict(example_kwargs or {})
    examples = two_examples((*args, *named.values()), device)
    args, kwargs = examples[: len(args)], dict(zip(named, examples[len(args) :], strict=True))

    if placement == "modules":
        return prepare_modules(model, args, kwargs, recipe, target, grids, patterns)
    _require_static(model, patterns, leaf_modules)
    root = open_frozen(open_attention(pruned.copied(model)))
    open_synced(root, args, kwargs)
    captured = capture(root, args, kwargs, leaf_modules)
    for path in captured.norms:
        norm = root.get_submodule(path)
        root.set_submodule(path, adopt(norm, next(cls for cls in NORMS if isinstance(norm, cls))))
    graphs = [captured.eval] if captured.modes_agree else [captured.eval, captured.train]
    modules = dict(root.named_modules())
    shapes = Shapes()
    for graph in graphs:
        root.train(graph is not captured.eval)
        propagate_shapes(root, graph, args, kwargs, shapes)
        if target.opens_gates:
            left_whole = [n for n, name in name_nodes(graph).items() if any(matching(p, [name]) for p in patterns)]
            open_gates(graph, modules, leaf_modules, left_whole, clamps=grids.activation.scheme is Scheme.AFFINE)
    root.train(model.training)
    sites, left = _sites(graphs, modules, patterns, target)
    if recipe.wide_residuals and _narrow(graphs, modules, sites, recipe):
        sites, left = _sites(graphs, modules, patterns, target)
    if not any(s.tails for s in sites.values()):
        raise PlacementError(
            f"nothing to quantize in {type(model).__name__}: no convolution, linear layer, addition or pooling is left "
            "after exclude, whose patterns match names of the plan; drop one"
        )
    choices = choose(recipe, target, captured.eval, modules, sites[id(captured.eval)])
    plan = describe(type(model).__name__, captured, modules, sites[id(captured.eval)], left, recipe, target, choices)
    given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    inputs = [given[str(n.target).lstrip("*")] for n in captured.eval.nodes if n.op == "placeholder"]
    rewriter = Rewriter(root, modules, choices, [(g, sites[id(g)]) for g in graphs])
    rewriter.run()
    close_synced(root)
    pruned.hand_back(root)
    plan = replace(plan, notes=(*plan.notes, *pruned.notes(root)))
    return PreparedModel(
        root,
        {True: captured.train, False: captured.eval},
        plan=plan,
        recipe=recipe,
        target=target,
        numerics=grids,
        example_inputs=tree_map_only(Tensor, Tensor.cpu, tuple(inputs)),
        units=tuple(rewriter.units),
        fixed_arguments=captured.fixed,
    )


def _sites(
    graphs: Sequence[fx.Graph], modules: Mapping[str, nn.Module], patterns: Sequence[str], target: Target
) -> tuple[dict[int, Sites], Mapping[str, str]]:
    """Sites by the graph's id, the evaluation graph's first; and what stays in float by a pattern of the user."""
    names = {id(graphs[0]): name_nodes(graphs[0])}
    for graph in graphs[1:]:
        names[id(graph)] = name_nodes(graph, like=names[id(graphs[0])])
    everything = list(dict.fromkeys(n for g in graphs for node, n in names[id(g)].items() if node.op != "output"))
    left = excluded(patterns, everything)
    found = {
        id(g): find_sites(
            g, modules, names[id(g)], left, sums_round_once=target.sums_round_once, conv_curves=target.conv_curves,
            linear_curves=target.linear_curves,
        )
        for g in graphs
    }  # fmt: skip
    return found, left


def _narrow(
    graphs: Sequence[fx.Graph], modules: Mapping[str, nn.Module], sites: Mapping[int, Sites], recipe: QuantRecipe
) -> bool:
    """Let products read residuals narrowed, where the recipe has other bits for them than for sums."""
    assert recipe.sum_bits is not None
    if recipe.sum_bits <= recipe.activation.bits:
        return False
    whole: set[str] = set()
    if (recipe.first_last_bits or 0) >= recipe.sum_bits:
        outer, _ = first_and_last(graphs[0], modules, sites[id(graphs[0])])
        whole = {sites[id(graphs[0])].names[head] for head in outer}
    return any([narrow_for_products(graph, sites[id(graph)], whole) for graph in graphs])


def _require_static(model: nn.Module, patterns: Sequence[str], leaf_modules: tuple[type[nn.Module], ...]) -> None:
    """Raise `PlacementError` for recurrent layers that the user did not leave in float."""
    found = [n for n, m in model.named_modules() if isinstance(m, nn.RNNBase) and not isinstance(m, leaf_modules)]
    found = [name for name in found if not any(matching(pattern, [name]) for pattern in patterns)]
    if found:
        raise PlacementError(
            f"{type(model).__name__} has recurrent layers, {', '.join(found)}, whose state moves at every step, and "
            "one static range would have to cover all of them. Use task=dynamic (qat.quantize_dynamic), which takes "
            f"ranges when it runs; or quantize the other layers alone, with quant.exclude=[{','.join(found)}] or "
            "placement=modules"
        )


def require_finite(model: nn.Module) -> None:
    """Raise `NumericsError` naming the parameters and buffers that hold NaN or Inf."""
    unseen = {id(b) for m in model.modules() if isinstance(m, Observer) for b in m.buffers()}  # infinite until observed
    bad = [
        name
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if tensor.is_floating_point() and id(tensor) not in unseen and not torch.isfinite(tensor).all()
    ]
    if bad:
        raise NumericsError(
            f"NaN or Inf in {', '.join(bad[:5])}{f' and {len(bad) - 5} more' if len(bad) > 5 else ''} before "
            "quantization; a grid needs finite values. Load another checkpoint, or train the float model again"
        )


__all__ = ["prepare", "require_finite"]
