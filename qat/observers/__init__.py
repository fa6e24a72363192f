"""Range estimators: what values does a tensor take?"""

from qat.observers.base import Observer
from qat.observers.min_max import MinMax
from qat.observers.moving_average import MovingAverage

__all__ = ["MinMax", "MovingAverage", "Observer"]
