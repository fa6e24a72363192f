"""One run from the config to its card, in stages; the only reader of the config."""

from qat.pipeline.static import run

__all__ = ["run"]
