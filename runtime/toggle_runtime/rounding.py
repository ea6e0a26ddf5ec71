"""Float64 arithmetic with stated error: how far a computed sum may be off, and how to round away from zero.

With `u = 2**-53`, a sum of `n` products in any order, fused or not, is off by at most `n * u / (1 - n * u)` times
the sum of the products' absolute values (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section
3.1). For non-negative terms that is a relative error. What is counted here in operations is multiplied by `2 * u`,
which covers that bound for every `n` below 2**52 and leaves as much again for the host's own rounding: it sums
the same terms in another order.
"""

from typing import Any, Tuple, Union

import numpy as np
from numpy.typing import NDArray

TINY = 1e-290
"""Added to what may have underflowed: below it, relative errors say nothing."""

EXPONENTIAL_OPERATIONS = 1600
"""What an exponential, or a quotient of two, is off by, in operations.

A difference `d` of two float32 values is off by `u * |d|`, and `exp` turns that into a relative error. Where
`exp(d)` is above 1e-300, `|d|` is below 700. Two such terms, and numpy's elementary functions, of which we assume
4 units in the last place, stay below 1600.
"""


def slack(operations: int) -> float:
    """Bound on the relative error of that many float64 operations on non-negative terms."""
    return operations * 2.0**-52


def float32_above(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """The least float32 values that are not below `values`; a NaN stays one."""
    nearest = values.astype(np.float32)
    above = np.where(nearest < values, np.nextafter(nearest, np.float32(np.inf)), nearest)
    result: NDArray[np.float32] = above.astype(np.float32)
    return result


def all_finite(values: NDArray[Any], axis: Union[int, Tuple[int, ...]]) -> NDArray[np.bool_]:
    """Which rows along `axis` hold neither NaN nor an infinity."""
    result: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(values), axis=axis)
    return result
