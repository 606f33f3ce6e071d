"""FLOP of a traced program: those of its matrix products and convolutions."""

import math
from collections.abc import Iterator
from typing import Any


def count(jaxpr: Any) -> int:
    """Return the FLOP of matrix products and convolutions, a multiply-add as two.

    Those of a `scan` count as often as it runs, those of a loop whose length is not known
    once, and of the branches of a condition the dearest. A kernel's products with the
    padding count, those with the zeros of a dilated input do not.

    Args:
      jaxpr: of a program, as `jax.stages.Traced.jaxpr`.
    """
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "cond":
            total += max(map(count, params["branches"]))
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(map(count, _inner(params)))
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if hasattr(getattr(one, "jaxpr", one), "eqns"):
                yield one


def _dot(equation: Any) -> int:
    left = equation.invars[0].aval.shape
    (contracted, _), _ = equation.params["dimension_numbers"]
    size = math.prod(equation.outvars[0].aval.shape)
    return 2 * size * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    params, kernel = equation.params, equation.invars[1].aval.shape
    out_axis = params["dimension_numbers"].rhs_spec[0]
    per_output = math.prod(kernel) // kernel[out_axis]
    size = math.prod(equation.outvars[0].aval.shape)
    return 2 * size * per_output // math.prod(params["lhs_dilation"])
