"""Values that a product and a sum read: wide for the sum, narrowed again for the product alone.

    add (8 bits) -> add                        the residual stream of a network keeps its 8 bits
                 -> narrowed (2 bits) -> conv  the product is as narrow as the recipe has it

A residual network carries every block's result through all later sums. With one quantizer a value, the stream has the
few bits of the products; with two, each reader has its own, as where the input of each layer is quantized by itself
(Esser 2020, section 2). Additions cost as little in 8 bits as in 2.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from qat.placement.patterns import Role, function_name, grid_inputs, narrowed
from qat.placement.sites import NAMED, Sites, sources, writers

MATRIX_PRODUCTS = ("matmul", "bmm")  # of two activations: attention


def is_product(head: fx.Node, sites: Sites) -> bool:
    """Whether an integer operator multiplies what it reads: a layer with weights, or attention's matrix products."""
    return sites.roles[head] is Role.WEIGHTED or function_name(head) in MATRIX_PRODUCTS


def narrow_for_products(graph: fx.Graph, sites: Sites, whole: Collection[str] = ()) -> bool:
    """Put `narrowed` between each product and the value that it shares with other integer operators, in place.

    Args:
        graph: with shapes propagated; the new nodes have the shape of what they read, and its name with `_narrowed`.
        sites: of that graph, which no longer fit where this returns True.
        whole: names of products that read as wide as the sums do.

    Returns:
        Whether there was any.
    """
    readers: dict[fx.Node, list[fx.Node]] = {}
    shared: set[fx.Node] = set()
    for head in sites.tails:
        inputs = grid_inputs(head, sites.roles[head])
        if not is_product(head, sites):
            shared |= sources(sites, inputs)
        elif sites.names[head] not in whole:
            for value in dict.fromkeys(inputs):
                readers.setdefault(value, []).append(head)
    found = {value: heads for value, heads in readers.items() if sources(sites, [value]) & shared}
    put_out_by = writers(sites)
    for value, heads in found.items():
        with graph.inserting_after(value):
            node = graph.call_function(narrowed, (value,))
        node.meta = {**value.meta, NAMED: f"{put_out_by.get(value, sites.names[value])}_narrowed"}
        for head in heads:
            head.replace_input_with(value, node)
    return bool(found)


__all__ = ["is_product", "narrow_for_products"]
