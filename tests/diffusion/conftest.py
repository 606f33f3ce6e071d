"""Fixtures of this room, whose tests compute without a silent promotion of dtypes."""

import jax
import jax.numpy as jnp
import pytest

from helpers import SCHEDULES


@pytest.fixture(autouse=True, scope="module")  # Fixtures of a module are made under it.
def strict_dtype_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="module", params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]


@pytest.fixture(scope="module")
def images():
    x0 = jax.random.uniform(jax.random.key(0), (6, 4, 4, 3), minval=-1.0, maxval=1.0)
    noise = jax.random.normal(jax.random.key(1), x0.shape)
    t = jnp.array([0, 1, 10, 499, 998, 999])
    return x0, t, noise
