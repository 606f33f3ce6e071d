"""What samplers are compared with: tables run by a plain loop, and exact moments."""

import numpy as np

from diffusion_jax.diffusion.schedules import alphas_cumprod_at


def run_table(table, network, x, noises, hook=None):
    """Every state of a chain in NumPy float64: [S + 1, ...], by a plain loop.

    Args:
      table: rows to run.
      network: network(x, t) -> prediction.
      x: the initial noise.
      noises: one array for each row.
      hook: on the predicted x_0.
    """
    anchor = prev = prev2 = np.zeros_like(x)
    states = [x]
    for i in range(table.num_rows):
        row = table.take(i)
        x0 = row.x0_from_x * x + row.x0_from_prediction * network(x, row.t)
        x0 = x0 if hook is None else hook(x0)
        values = (x, anchor, x0, prev, prev2, noises[i])
        x, anchor = (
            sum(w * v for w, v in zip(weights, values, strict=True))
            for weights in (row.to_x, row.to_anchor)
        )
        if row.is_remembered:
            prev, prev2 = x0, prev
        states.append(x)
    return np.array(states)


def gaussian_x0(schedule, mean, std, t):
    """(a, b) with E[x_0 | x] = a x + b at time t, for data N(mean, std^2)."""
    share = alphas_cumprod_at(schedule, np.array([t]))[0]
    total = share * std**2 + 1 - share
    return np.sqrt(share) * std**2 / total, (1 - share) * mean / total


def gaussian_moments(table, schedule, mean, std, start=0.0):
    """Mean and variance of the chain's end with the best network for N(mean, std^2).

    Exact: every row is affine in (x, anchor, two predictions) and the noise, whatever
    the network predicts. `start` is the mean of the initial noise.
    """
    state, cov = np.array([start, 0, 0, 0]), np.zeros((4, 4))
    cov[0, 0] = 1.0
    for i in range(table.num_rows):
        row = table.take(i)
        a, b = gaussian_x0(schedule, mean, std, row.t)

        def new(weights, a=a):
            return np.array(
                [
                    weights.x + weights.x0 * a,
                    weights.anchor,
                    weights.x0_prev,
                    weights.x0_prev2,
                ]
            )

        step = np.array([new(row.to_x), new(row.to_anchor), [a, 0, 0, 0], [0, 0, 1, 0]])
        shift = np.array([row.to_x.x0 * b, row.to_anchor.x0 * b, b, 0])
        noise = np.array([row.to_x.noise, row.to_anchor.noise, 0, 0])
        if not row.is_remembered:
            step[2:], shift[2:] = np.eye(4)[2:], 0
        state = step @ state + shift
        cov = step @ cov @ step.T + np.outer(noise, noise)
    return state[0], cov[0, 0]
