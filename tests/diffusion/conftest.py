"""Every test of this room computes without a silent promotion of dtypes."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")  # Fixtures of a module are made under it.
def strict_dtype_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield
