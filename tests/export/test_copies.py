from __future__ import annotations

import torch
from torch.fx.passes.shape_prop import ShapeProp

from qat.artifact import fingerprint
from qat.export.bias import float_biases
from qat.export.copies import with_same_tensors, with_shapes


def places(model) -> set[int]:
    return {t.data_ptr() for t in [*model.parameters(), *model.buffers()]}


def test_a_copy_has_the_tensors_of_the_original_and_a_graph_of_its_own(integer, images):
    before = fingerprint(integer)
    copied = with_same_tensors(integer)
    assert places(copied) == places(integer)
    assert copied.graph is not integer.graph
    rewritten = float_biases(copied)
    assert [t.dtype for t in rewritten.buffers()] != [t.dtype for t in integer.buffers()]
    assert torch.equal(copied(images), integer(images))
    assert fingerprint(integer) == before


def test_shapes_are_those_that_a_run_finds(integer, images):
    copied = with_shapes(integer, (images,))
    assert places(copied) == places(integer)
    ShapeProp(integer).propagate(images)
    for ours, theirs in zip(copied.graph.nodes, integer.graph.nodes, strict=True):
        assert ours.meta.get("tensor_meta") == theirs.meta.get("tensor_meta")
