"""Which operator gets which bits: the recipe's exceptions, by the names that the plan prints.

first and last layers   weighted operators with no other before, or none after them: `first_last_bits` for their weight,
                        their input and the logits, because few multiplications and much of the error are there
sums                    values that no product reads: `sum_bits`; narrow operands save work, narrow sums only lose bits.
                        `wide_residuals`: values that both read as well, and products read them narrowed (narrowed.py)
override                patterns of the user, in their order; they win over the above

An exception is decided on the evaluation graph, and holds for the operator of the same name in the training graph.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import fx, nn

from qat.errors import PlacementError
from qat.placement.narrowed import is_product
from qat.placement.patterns import Role, grid_inputs, role_of
from qat.placement.rules import matching
from qat.placement.sites import Sites, sources, writers
from qat.recipe import QuantRecipe, TensorRecipe, numerics
from qat.spec import IntSpec
from qat.target import Target


@dataclass(frozen=True)
class Choice:
    """How one tensor is quantized: the recipe, and the grid that the target left of it."""

    recipe: TensorRecipe
    spec: IntSpec


@dataclass(frozen=True)
class Choices:
    """The grids of all operators; an operator without an exception has the recipe's.

    Attributes:
        weight: for all other weights.
        activation: for what all other operators put out.
        weights: exceptions by the operator's name.
        activations: exceptions by the name of the operator that puts the value out.
        notes: where the target overruled one of them.
        fixed: operators whose bits an exception set, for `weight` and for `activation`.
    """

    weight: Choice
    activation: Choice
    weights: Mapping[str, Choice] = field(default_factory=dict)
    activations: Mapping[str, Choice] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fixed: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def of_weight(self, name: str) -> Choice:
        """For the weight of an operator."""
        return self.weights.get(name, self.weight)

    def of_activation(self, name: str) -> Choice:
        """For the value that an operator puts out."""
        return self.activations.get(name, self.activation)


def choose(
    recipe: QuantRecipe, target: Target, graph: fx.Graph, modules: Mapping[str, nn.Module], sites: Sites
) -> Choices:
    """The grids that `recipe` gives the operators of `graph` on `target`.

    Args:
        recipe: with its exceptions.
        target: has the last word on every grid.
        graph: the evaluation graph.
        modules: by path.
        sites: of that graph.

    Raises:
        PlacementError: listing all patterns of `override` that match nothing, with the nearest names.
        ConfigError: when the target cannot run an exception.
    """
    base = numerics(recipe, target)
    weights = {sites.names[head]: recipe.weight for head in sites.tails if sites.roles[head] is Role.WEIGHTED}
    names = writers(sites)
    activations = {name: recipe.activation for name in names.values()}
    fixed: dict[str, set[str]] = {"weight": set(), "activation": set()}
    if recipe.sum_bits is not None:
        for point in _read_by_no_product(sites):
            activations[names[point]] = _widened(activations[names[point]], recipe.sum_bits)
            fixed["activation"].add(names[point])
    if recipe.first_last_bits is not None:
        outer, points = first_and_last(graph, modules, sites)
        for head in outer:
            if sites.names[head] in weights:
                weights[sites.names[head]] = replace(recipe.weight, bits=recipe.first_last_bits)
                fixed["weight"].add(sites.names[head])
        for point in points:
            activations[names[point]] = replace(recipe.activation, bits=recipe.first_last_bits)
            fixed["activation"].add(names[point])
    apply_override(recipe, {"weight": weights, "activation": activations})
    for pattern, change in recipe.override.items():
        for which, values in change.items():
            if "bits" in values:
                fixed[which] |= matching(pattern, weights if which == "weight" else activations)

    notes = dict.fromkeys(base.notes)

    def settled(which: str, tensor: TensorRecipe) -> Choice:
        weight, activation = (tensor, recipe.activation) if which == "weight" else (recipe.weight, tensor)
        grids = numerics(replace(recipe, weight=weight, activation=activation, override={}), target)
        notes.update(dict.fromkeys(grids.notes))
        return Choice(tensor, grids.weight if which == "weight" else grids.activation)

    return Choices(
        weight=Choice(recipe.weight, base.weight),
        activation=Choice(recipe.activation, base.activation),
        weights={name: settled("weight", t) for name, t in weights.items() if t != recipe.weight},
        activations={name: settled("activation", t) for name, t in activations.items() if t != recipe.activation},
        notes=tuple(notes),
        fixed={which: frozenset(found) for which, found in fixed.items()},
    )


def apply_override(recipe: QuantRecipe, chosen: Mapping[str, dict[str, TensorRecipe]]) -> None:
    """Change what `override` of the recipe names, in place; `chosen` has the operators by name, for each tensor.

    Raises:
        PlacementError: listing all patterns that match nothing, with the nearest names.
    """
    useless = []
    for pattern, change in recipe.override.items():
        for which, values in change.items():
            hits = matching(pattern, chosen[which])
            if not hits:
                near = difflib.get_close_matches(pattern, chosen[which], n=3, cutoff=0.3)
                useless.append(f"  {pattern!r} for {which}" + (f" (nearest: {', '.join(near)})" if near else ""))
            for name in hits:
                chosen[which][name] = chosen[which][name].changed(values, f"override[{pattern!r}].{which}")
    if useless:
        raise PlacementError(
            "override patterns that match no operator with such a tensor on integers:\n" + "\n".join(useless) + "\n"
            "  Patterns are globs over the names in plan.txt, such as 'layer1.0.*'; correct or remove them"
        )


def _widened(recipe: TensorRecipe, bits: int) -> TensorRecipe:
    return replace(recipe, bits=max(bits, recipe.bits))


def _read_by_no_product(sites: Sites) -> list[fx.Node]:
    read: set[fx.Node] = set()
    for head in sites.tails:
        if is_product(head, sites):
            read.update(sources(sites, grid_inputs(head, sites.roles[head])))
    return [point for point in sites.points if point not in read]


def first_and_last(
    graph: fx.Graph, modules: Mapping[str, nn.Module], sites: Sites
) -> tuple[list[fx.Node], list[fx.Node]]:
    """Weighted operators with none before or none after them (whether on integers or not), and values to keep wide."""
    weighted = [node for node in graph.nodes if role_of(node, modules) is Role.WEIGHTED]
    behind: set[fx.Node] = set()  # a weighted operator had a part in these values
    for node in graph.nodes:
        if any(n in behind or n in weighted for n in node.all_input_nodes):
            behind.add(node)
    ahead: set[fx.Node] = set()  # these values have a part in what a weighted operator reads
    for node in reversed(graph.nodes):
        if any(user in ahead or user in weighted for user in node.users):
            ahead.add(node)
    first = [node for node in weighted if node not in behind]
    last = [node for node in weighted if node not in ahead]
    inputs = sources(sites, (n for head in last for n in grid_inputs(head, Role.WEIGHTED)))
    points = [
        point
        for point in sites.points
        if point in inputs or point not in ahead or (point not in behind and point not in weighted)
    ]
    return list(dict.fromkeys([*first, *last])), points
