"""Where quantizers go in one graph: a forward pass over the nodes that knows which values lie on a grid.

    WEIGHTED, ARITHMETIC   need their inputs on grids, and put a new grid behind their tail (BatchNorm, activation)
    MOVE, SCALE, IDENTITY  stay on the grid of their input, or its multiple
    NORM                   alone is a product and sum per channel: an integer operator, where its input is on a grid
    FLOAT                  read values, produce values; a later integer operator puts its input on a grid

Putting a value on a grid can put a node before it on a grid as well (a MOVE that was visited earlier), so the pass is
repeated until nothing changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import partial

from torch import fx, nn

from qat.functional.ste import IDENTITY, Clamp
from qat.placement.patterns import (
    SUMS,
    Role,
    clamp_of,
    curve_name,
    function_name,
    grid_inputs,
    is_one,
    is_tensor,
    learned_or_data,
    module_of,
    role_of,
)

NAMED = "qat_name"  # in a node's meta: what the plan calls a node that is no operator of the model
STAYS = (Role.MOVE, Role.SCALE, Role.IDENTITY)  # on the grid of the input, or a multiple of it


@dataclass(frozen=True)
class Tail:
    """What follows an integer operator before its quantizer; each link has one user."""

    norm: fx.Node | None = None
    clamp: fx.Node | None = None
    curve: fx.Node | None = None

    def last(self, head: fx.Node) -> fx.Node:
        """The node behind which the quantizer stands."""
        return self.clamp or self.curve or self.norm or head


@dataclass
class Sites:
    """Placement on one graph.

    Attributes:
        names: what the plan calls each node.
        roles: what each node does to grids; what the user excluded is FLOAT.
        tails: per integer operator.
        points: nodes whose value gets a quantizer, with the activation that it absorbs.
        on_grid: nodes whose value lies on a grid.
        unrounded: results of convolutions that an addition takes in as they are, where the target rounds but once.
        curves: activations that a layer with a weight in front of them takes in, where the target rounds but once.
    """

    names: dict[fx.Node, str]
    roles: dict[fx.Node, Role]
    tails: dict[fx.Node, Tail] = field(default_factory=dict)
    points: dict[fx.Node, Clamp] = field(default_factory=dict)
    on_grid: set[fx.Node] = field(default_factory=set)
    unrounded: set[fx.Node] = field(default_factory=set)
    curves: set[fx.Node] = field(default_factory=set)

    @property
    def fused(self) -> dict[fx.Node, fx.Node]:
        """Nodes that run inside an integer operator, with that operator."""
        inside: dict[fx.Node, fx.Node] = {}
        for head, tail in self.tails.items():
            inside |= {node: head for node in (tail.norm, tail.clamp, tail.curve) if node is not None}
        return inside


def find_sites(
    graph: fx.Graph,
    modules: Mapping[str, nn.Module],
    names: dict[fx.Node, str],
    excluded: Mapping[str, str],
    *,
    sums_round_once: bool = False,
    conv_curves: Collection[str] = (),
    linear_curves: Collection[str] = (),
) -> Sites:
    """Decide which values of `graph` get a quantizer.

    Args:
        graph: with shapes propagated.
        modules: by path.
        names: from `name_nodes`.
        excluded: names that stay in float.
        sums_round_once: leave a convolution in front of an addition without a quantizer.
        conv_curves: names of curves that a 2-d convolution in front of them takes in, without a quantizer between them.
        linear_curves: the same of a linear layer.
    """
    roles: dict[fx.Node, Role] = {n: Role.FLOAT if names[n] in excluded else role_of(n, modules) for n in graph.nodes}
    known = learned_or_data(graph, modules)
    for node, role in roles.items():
        if role is Role.ARITHMETIC and not all(n in known for n in grid_inputs(node, role)):
            roles[node] = Role.FLOAT  # a mask of -100 or -inf would stretch the grid of the sum
    sites = Sites(names=names, roles=roles)
    for node, role in roles.items():
        if role is Role.ARITHMETIC and function_name(node) in SUMS and _feeds_softmax(node, modules, sites):
            roles[node] = Role.FLOAT
    if sums_round_once:
        sums = [n for n, role in roles.items() if role is Role.ARITHMETIC and function_name(n) in SUMS]
        sites.unrounded = {value for node in sums for value in _convolutions_into(node, sites)[:1]}
    for node in graph.nodes:
        if names[node] not in excluded and (name := curve_name(node, modules)) is not None:
            head = node.all_input_nodes[0]
            head = head.all_input_nodes[0] if roles[head] is Role.NORM else head
            if name in (linear_curves if _is_linear(head, modules) else conv_curves if _is_plane(head) else ()):
                sites.curves.add(node)
    while True:
        before = len(sites.points)
        _pass(graph, modules, sites)
        if len(sites.points) == before:
            return sites


def _pass(graph: fx.Graph, modules: Mapping[str, nn.Module], sites: Sites) -> None:
    sites.on_grid = set(sites.points)
    sites.tails.clear()
    for node in graph.nodes:
        role = sites.roles[node]
        inputs = grid_inputs(node, role)
        if role in STAYS and inputs and all(i in sites.on_grid for i in inputs):
            sites.on_grid.add(node)
        elif role is Role.CLAMP and inputs and inputs[0] in sites.on_grid and node not in sites.fused:
            _put(sites, node, clamp_of(node, modules))  # an activation beside other readers of its input
            sites.tails[node] = Tail(clamp=None)
        elif node in sites.curves and node in sites.fused:
            continue
        elif (role in (Role.WEIGHTED, Role.ARITHMETIC) and inputs) or _stands_alone(node, inputs, role, sites):
            for value in map(partial(_tensor_before, sites=sites), inputs):
                if value not in sites.on_grid and value not in sites.unrounded and is_one(value):
                    absorbed = clamp_of(value, modules) if sites.roles[value] is Role.CLAMP else None
                    _put(sites, value, absorbed)
            if role is Role.ARITHMETIC and _feeds_softmax(node, modules, sites):
                sites.tails[node] = Tail()  # a product of integers with a float result: onnxruntime has that kernel
                continue
            tail = _tail(node, role, sites, modules)
            sites.tails[node] = tail
            if tail.last(node) not in sites.unrounded:
                _put(sites, tail.last(node), clamp_of(tail.clamp, modules) if tail.clamp else None)


def _tensor_before(value: fx.Node, sites: Sites) -> fx.Node:
    """The tensor that several, chunks say, were moved from: they share its grid."""
    while not is_one(value) and sites.roles[value] in STAYS and (before := grid_inputs(value, sites.roles[value])):
        value = before[0]
    return value


def _feeds_softmax(node: fx.Node, modules: Mapping[str, nn.Module], sites: Sites) -> bool:
    """Whether softmax alone reads a value, after scaling or a mask.

    It computes in float; on a quantized input and output onnxruntime would take an integer softmax of its own, which is
    off by a step in 7 % of its results.
    """
    return bool(node.users) and all(
        isinstance(module_of(user, modules), nn.Softmax)
        or function_name(user) == "softmax"
        or ((sites.roles[user] in STAYS or function_name(user) in SUMS) and _feeds_softmax(user, modules, sites))
        for user in node.users
    )


def _stands_alone(node: fx.Node, inputs: list[fx.Node], role: Role, sites: Sites) -> bool:
    """Whether a BatchNorm that no convolution takes in runs on integers: as a depthwise convolution with one tap."""
    if role is not Role.NORM or not inputs or inputs[0] not in sites.on_grid or node in sites.fused:
        return False
    return inputs[0].meta["val"].ndim > 2


def _convolutions_into(addition: fx.Node, sites: Sites) -> list[fx.Node]:
    """Summands that are a convolution's result, BatchNorm included, of the sum's own shape and read by nothing else.

    Of two, OpenVINO makes the sum a part of the first.
    """
    shape = addition.meta["val"].shape
    found = []
    for value in addition.all_input_nodes:
        head = value.all_input_nodes[0] if sites.roles[value] is Role.NORM else value
        if (
            sites.roles[head] is Role.WEIGHTED
            and head.meta["val"].ndim > 3
            and value.meta["val"].shape == shape
            and _only_user(value) is addition
            and (head is value or _only_user(head) is value)
        ):
            found.append(value)
    return found


def writers(sites: Sites) -> dict[fx.Node, str]:
    """For each value with a quantizer, the name of the operator that puts it out, with BatchNorm and activation."""
    heads = {tail.last(head): head for head, tail in sites.tails.items()}
    return {point: sites.names[heads.get(point, point)] for point in sites.points}


def sources(sites: Sites, values: Iterable[fx.Node]) -> set[fx.Node]:
    """The quantized values that these are, or were moved from."""
    found: set[fx.Node] = set()
    for value in values:
        if value in sites.points:
            found.add(value)
        elif sites.roles.get(value) in STAYS:
            found |= sources(sites, grid_inputs(value, sites.roles[value]))
    return found


def _put(sites: Sites, node: fx.Node, clamp: Clamp | None) -> None:
    sites.points.setdefault(node, clamp or IDENTITY)
    sites.on_grid.add(node)


def _tail(head: fx.Node, role: Role, sites: Sites, modules: Mapping[str, nn.Module]) -> Tail:
    norm = clamp = None
    follower = _only_user(head)
    takes_norm = role is Role.WEIGHTED and head.op == "call_module" and _channels_first(head, modules)
    if takes_norm and follower is not None and sites.roles[follower] is Role.NORM:
        norm, follower = follower, _only_user(follower)
    if follower is not None and sites.roles[follower] is Role.CLAMP and is_tensor(follower):
        clamp = follower
    curve = follower if role is Role.WEIGHTED and follower in sites.curves else None
    return Tail(norm=norm, clamp=clamp, curve=curve)


def _is_linear(head: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    return isinstance(module_of(head, modules), nn.Linear) or function_name(head) == "linear"


def _is_plane(head: fx.Node) -> bool:
    """Whether a value is `[N, C, H, W]`: not every runtime takes as much in for one dimension or three."""
    return is_one(head) and is_tensor(head) and head.meta["val"].ndim == 4


def _channels_first(head: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether BatchNorm's dimension 1 is that of the layer's output channels: not for a linear layer on `[N, L, C]`."""
    return not isinstance(module_of(head, modules), nn.Linear) or head.meta["val"].ndim == 2


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def name_nodes(graph: fx.Graph, like: Mapping[fx.Node, str] | None = None) -> dict[fx.Node, str]:
    """A name per node: module path, or scope and function, with a count when repeated.

    Args:
        graph: any of a model's graphs.
        like: names in the graph of the other mode. Operators that both graphs have in the same order get the same
            names, so that both modes share their quantizers; those of one mode alone get names of their own.
    """
    nodes, bases = list(graph.nodes), [base_name(node) for node in graph.nodes]
    names: dict[fx.Node, str] = {}
    taken: set[str] = set()
    if like is not None:
        taken = set(like.values())
        other = list(like.items())
        for block in SequenceMatcher(None, [base_name(n) for n in like], bases, autojunk=False).get_matching_blocks():
            names |= {nodes[block.b + i]: other[block.a + i][1] for i in range(block.size)}
    for node, base in zip(nodes, bases, strict=True):
        if node not in names:
            count = next(i for i in itertools.count(1) if _counted(base, i) not in taken)
            names[node] = _counted(base, count)
            taken.add(names[node])
    return {node: names[node] for node in nodes}


def _counted(base: str, count: int) -> str:
    return base if count == 1 else f"{base}_{count}"


def base_name(node: fx.Node) -> str:
    """What a node is called, before a count is put behind a name that is taken."""
    if NAMED in node.meta:
        return str(node.meta[NAMED])
    if node.op in ("call_module", "placeholder", "get_attr"):
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    scope = next(reversed(stack.values()))[0] if stack else ""
    function = str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", "value")
    return f"{scope}.{function.strip('_')}" if scope else function.strip("_")
