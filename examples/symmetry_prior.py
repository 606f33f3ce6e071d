"""Structural knowledge: the digit is its own mirror image, left to right."""

import jax.numpy as jnp

ERROR = 0.05  # Variance of the difference between a pixel and its mirror image.


def log_p_of_x0(x0, level, cond):
    difference = x0 - x0[:, :, ::-1]
    unknown = level.sigma_squared / (level.alpha_squared + level.sigma_squared / 0.25)
    return -jnp.square(difference).sum(axis=(1, 2, 3)) / (4 * (ERROR + 2 * unknown))
