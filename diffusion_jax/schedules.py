"""Noise schedules: from betas to every table that the forward process needs.

A schedule is data, made once on the host in NumPy float64. The functions of
`diffusion_jax.process` cast what they read to float32; the builders in
`diffusion_jax.samplers.tables` go on in float64 and cast at their end. Nothing
recomputes `1 - alphas_cumprod` in float32, where its relative error reaches 3e-3.

Index convention: arrays have length T, and index t = 0 .. T-1 is the papers' step t + 1.
`alphas_cumprod_prev[0]` is 1, so no code ever indexes with t - 1.
"""

import math
from typing import NamedTuple

import numpy as np

SCHEDULES = ("linear", "cosine")


class Schedule(NamedTuple):
    """The tables of one noise process; each is float64 [T].

    Close a jitted function over a schedule: it is host data, not an argument.

    Attributes:
      betas: variance of the noise that step t adds, in (0, 1).
      alphas: 1 - betas.
      alphas_cumprod: product of alphas up to and with t: the share of x_0 in x_t.
      alphas_cumprod_prev: alphas_cumprod one step earlier; 1 at t = 0.
      sqrt_alphas_cumprod: coefficient of x_0 in x_t (DDPM eq. 4).
      sqrt_one_minus_alphas_cumprod: coefficient of the noise in x_t (DDPM eq. 4).
      posterior_mean_coef1: weight of x_0 in the mean of q(x_{t-1} | x_t, x_0) (eq. 7).
      posterior_mean_coef2: weight of x_t in it (eq. 7).
      posterior_variance: its variance, beta-tilde (eq. 7); 0 at t = 0.
      posterior_log_variance_clipped: its logarithm, with entry 1 repeated at entry 0,
        where the variance is 0 and its logarithm is not finite.
    """

    betas: np.ndarray
    alphas: np.ndarray
    alphas_cumprod: np.ndarray
    alphas_cumprod_prev: np.ndarray
    sqrt_alphas_cumprod: np.ndarray
    sqrt_one_minus_alphas_cumprod: np.ndarray
    posterior_mean_coef1: np.ndarray
    posterior_mean_coef2: np.ndarray
    posterior_variance: np.ndarray
    posterior_log_variance_clipped: np.ndarray

    @property
    def num_timesteps(self) -> int:
        """T, the number of noising steps."""
        return len(self.betas)


def linear_betas(
    num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02
) -> np.ndarray:
    """T betas evenly from beta_start to beta_end (DDPM section 4); float64 [T].

    Raises:
      ValueError: if T < 2, or an end is outside (0, 1).
    """
    _check_num_timesteps(num_timesteps)
    for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
        if not 0 < beta < 1:
            raise ValueError(
                f"{name} ({beta}) must be between 0 and 1, both excluded; "
                "DDPM uses 0.0001 to 0.02"
            )
    return np.linspace(beta_start, beta_end, num_timesteps, dtype=np.float64)


def cosine_betas(
    num_timesteps: int, offset: float = 0.008, max_beta: float = 0.999
) -> np.ndarray:
    """The betas whose alphas_cumprod follow cos^2 (IDDPM eq. 17); float64 [T].

    alphas_cumprod is f(u) / f(0) with f(u) = cos^2((u + offset) / (1 + offset) * pi / 2)
    and u = step / T; each beta is clipped at max_beta, which touches the last one alone.

    Raises:
      ValueError: if T < 2.
    """
    _check_num_timesteps(num_timesteps)
    u = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    alphas_cumprod = np.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], max_beta)


def make_schedule(betas: np.ndarray) -> Schedule:
    """All tables of the process with these betas, in float64.

    Args:
      betas: [T], each in (0, 1), T >= 2.

    Raises:
      ValueError: naming what is wrong with `betas`.
    """
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1:
        raise ValueError(f"betas must have one axis; got the shape {betas.shape}")
    _check_num_timesteps(len(betas))
    bad = np.flatnonzero(~((betas > 0) & (betas < 1)))
    if bad.size:
        raise ValueError(
            f"betas[{bad[0]}] ({betas[bad[0]]}) must be between 0 and 1, both excluded"
        )
    alphas = 1 - betas
    alphas_cumprod = np.cumprod(alphas)
    alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
    one_minus = 1 - alphas_cumprod
    if one_minus[0] == 0 or alphas_cumprod[-1] == 0:
        raise ValueError(
            f"betas ({betas[0]} to {betas[-1]}) leave no noise at the first step or no "
            "signal at the last one, to the precision of float64"
        )
    posterior_variance = betas * (1 - alphas_cumprod_prev) / one_minus
    return Schedule(
        betas=betas,
        alphas=alphas,
        alphas_cumprod=alphas_cumprod,
        alphas_cumprod_prev=alphas_cumprod_prev,
        sqrt_alphas_cumprod=np.sqrt(alphas_cumprod),
        sqrt_one_minus_alphas_cumprod=np.sqrt(one_minus),
        posterior_mean_coef1=betas * np.sqrt(alphas_cumprod_prev) / one_minus,
        posterior_mean_coef2=(1 - alphas_cumprod_prev) * np.sqrt(alphas) / one_minus,
        posterior_variance=posterior_variance,
        posterior_log_variance_clipped=np.log(
            np.append(posterior_variance[1], posterior_variance[1:])
        ),
    )


def _check_num_timesteps(num_timesteps: int) -> None:
    if num_timesteps < 2:
        raise ValueError(
            f"num_timesteps ({num_timesteps}) must be at least 2; DDPM uses 1000"
        )
