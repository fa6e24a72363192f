"""What an integer model says of where it came from; exporters and the audit read it."""

from __future__ import annotations

from typing import Any

from qat.placement.prepared import PreparedModel


def origin(prepared: PreparedModel, sites: tuple[str, ...]) -> dict[str, Any]:
    """The `meta` of an integer model.

    Args:
        prepared: the model that was converted.
        sites: names of the quantized values, in the order of the graph.
    """
    return {
        "prepared": {
            "example_inputs": prepared.example_inputs,
            "recipe": prepared.recipe.name,
            "target": prepared.target,
            "model": prepared.plan.model,
            "sites": sites,
        }
    }
