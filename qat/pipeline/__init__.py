"""One run from the config to its card, in stages; the only reader of the config."""

from qat.pipeline.tasks import run

__all__ = ["run"]
