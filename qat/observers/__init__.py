"""Range estimators: what values does a tensor take?"""

from qat.observers.base import Observer
from qat.observers.histogram import Histogram
from qat.observers.min_max import MinMax
from qat.observers.moving_average import MovingAverage
from qat.observers.percentile import Percentile

__all__ = ["Histogram", "MinMax", "MovingAverage", "Observer", "Percentile"]
