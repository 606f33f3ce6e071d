"""An estimated number with its standard error."""

from typing import NamedTuple


class Estimate(NamedTuple):
    """An estimate of a metric.

    Attributes:
      value: of the metric.
      standard_error: the standard deviation of `value` over repeats with other examples.
    """

    value: float
    standard_error: float
