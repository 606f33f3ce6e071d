"""Inpainting and starts from a known x_0: exact where it is known, and closed forms."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.data.kinds import PICTURES
from diffusion_jax.diffusion import guidance
from diffusion_jax.diffusion.model import Model
from diffusion_jax.samplers import chain, inpainting, methods
from diffusion_jax.samplers.inpainting import IS_KNOWN, KNOWN
from diffusion_jax.samplers.interpolation import slerp
from diffusion_jax.samplers.thresholding import static_threshold
from diffusion_jax.samplers.timesteps import trailing_timesteps
from helpers import ROOT, SCHEDULE

TIMES = np.array([999.0, 600.0, 300.0, 120.0, 20.0])


def noisy(params, x_t, t, cond, **options):
    """A network that is no denoiser: the states are far from any data."""
    mean = jnp.mean(x_t, axis=(1, 2, 3), keepdims=True)
    output = jnp.sin(7 * x_t + 3 * mean)
    return jnp.concatenate([output, mean - output], -1) if params == "learned" else output


def learned(params, x_t, t, cond, **options):
    return noisy("learned", x_t, t, cond)


MODEL = Model(SCHEDULE, "v", apply_fn=noisy)
LEARNED = Model(SCHEDULE, "v", "learned", apply_fn=learned)
TABLES = {
    **{name: lambda method=method: method(MODEL, TIMES) for name, method in
       methods.METHODS.items()},
    "ddim, eta": lambda: methods.ddim_table(MODEL, TIMES, eta=0.7),
    "dpmpp_3m, eta": lambda: methods.dpmpp_3m_table(MODEL, TIMES, eta=1.0),
    "euler, churn": lambda: methods.euler_table(MODEL, TIMES, churn=1.0),
    "heun, churn": lambda: methods.heun_table(MODEL, TIMES, churn=1.0),
    "ddpm, resampled": lambda: methods.with_resampling(
        methods.ddpm_table(MODEL, TIMES), 3, 2
    ),
    "unipc, langevin": lambda: methods.with_langevin(methods.unipc_table(MODEL, TIMES)),
    "learned": lambda: methods.ddpm_table(LEARNED, TIMES),
    "cfg++": lambda: methods.with_base_noise(methods.ddim_table(MODEL, TIMES)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", TABLES)
def test_what_is_known_is_kept_to_the_last_bit(name):
    """All 256 levels, in float32 and as a file has them; the rest is painted."""
    table, model = TABLES[name](), LEARNED if name == "learned" else MODEL
    pictures = np.arange(256).reshape(4, 8, 8, 1).astype(np.uint8)
    x0 = np.asarray(PICTURES.to_network(jnp.asarray(pictures)))
    is_known = np.random.default_rng(0).random((4, 8, 8, 1)) < 0.5
    cond = {KNOWN: x0, IS_KNOWN: is_known}
    guided = None
    if name == "cfg++":
        guided = guidance.Guidance(
            model.predict, lambda *a: (model.predict(*a),) * 2, renoises_with_base=True
        )
        cond["guidance"] = np.full(4, 0.5, np.float32)
    options = chain.ChainOptions(inpainting.keep_known(static_threshold), guidance=guided)
    level = jax.tree.map(lambda column: column[0], table.level)
    start = inpainting.noised_start(x0, level, is_known)
    samples = chain.Samples(jax.random.key(1), np.arange(4), start)
    end = np.asarray(
        jax.jit(
            lambda table, cond: chain.sample_chain(
                model, None, table, samples, (8, 8, 1), cond, options
            )[0]
        )(table, cond)
    )
    np.testing.assert_array_equal(end[is_known], x0[is_known])
    stored = PICTURES.from_network(end)
    np.testing.assert_array_equal(stored[is_known], pictures[is_known])
    assert (stored[~is_known] != pictures[~is_known]).mean() > 0.9


def test_the_hook_thresholds_what_is_painted_alone():
    x0 = np.array([[3.0, -3.0, 0.5]], np.float32)
    cond = {
        KNOWN: np.full((1, 3), 2.0, np.float32),
        IS_KNOWN: np.array([[True, False, False]]),
    }
    level = methods.ddim_table(MODEL, TIMES).level
    for hook, wanted in ((static_threshold, [2, -1, 0.5]), (None, [2, -3, 0.5])):
        found = inpainting.keep_known(hook)(jnp.asarray(x0), x0, level, cond)
        np.testing.assert_array_equal(found, np.array([wanted], np.float32))


def test_a_start_has_the_moments_of_the_process_and_of_noise():
    """alpha x_0 and sigma where x_0 is known, 0 and 1 elsewhere."""
    level = jax.tree.map(lambda c: c[2], methods.ddim_table(MODEL, TIMES).level)
    alpha = np.prod(1 - SCHEDULE.betas[:301]) ** 0.5
    x0 = np.array([[0.5, -0.25]], np.float32)
    start = inpainting.noised_start(x0, level, np.array([[True, False]]))
    np.testing.assert_allclose(start.mean, [[0.5 * alpha, 0]], rtol=1e-6)
    np.testing.assert_allclose(start.std, [[(1 - alpha**2) ** 0.5, 1]], rtol=1e-6)
    start = inpainting.noised_start(x0, level)
    np.testing.assert_allclose(start.mean, alpha * x0, rtol=1e-6)
    np.testing.assert_allclose(start.std, [[(1 - alpha**2) ** 0.5]], rtol=1e-6)


# Gaussian data of two coordinates, of which the first is known.

MEAN = np.array([0.1, -0.2])
COVARIANCE = np.array([[0.3, 0.24], [0.24, 0.4]])
X0 = 0.7
SLOPE = COVARIANCE[1, 0] / COVARIANCE[0, 0]
POSTERIOR = MEAN[1] + SLOPE * (X0 - MEAN[0]), COVARIANCE[1, 1] - SLOPE * COVARIANCE[0, 1]


def denoiser(alpha, sigma_squared):
    """(A, b) with E[x_0 | x] = A x + b."""
    total = alpha**2 * COVARIANCE + sigma_squared * np.eye(2)
    matrix = alpha * COVARIANCE @ np.linalg.inv(total)
    return matrix, (np.eye(2) - alpha * matrix) @ MEAN


def painted_moments(table):
    """Mean and variance of the second coordinate at the end, by the rows alone."""
    level = table.level
    mean = np.array([level.alpha[0] * X0, 0.0])
    cov = np.diag([level.sigma_squared[0], 1.0])
    for i in range(table.num_rows):
        row = table.take(i)
        matrix, shift = denoiser(row.level.alpha, row.level.sigma_squared)
        matrix[0], shift[0] = 0.0, X0
        step = row.to_x.x * np.eye(2) + row.to_x.x0 * matrix
        mean = step @ mean + row.to_x.x0 * shift
        cov = step @ cov @ step.T + row.to_x.noise**2 * np.eye(2)
    return mean[1], cov[1, 1]


def resampled(steps, times, jump_length=1, method=methods.ddpm_table):
    table = method(MODEL, trailing_timesteps(1000, steps))
    return methods.with_resampling(table, times, jump_length)


def error(*args, **kwargs):
    """The larger error of mean and variance, against the exact posterior."""
    found = painted_moments(resampled(*args, **kwargs))
    return max(abs(a - b) for a, b in zip(found, POSTERIOR, strict=True))


def test_resampling_leads_to_the_exact_posterior():
    """The error falls with the resamplings and with the steps; without it stays.

    The posterior has the mean 0.28 and the variance 0.208.
    """
    of_times = [error(640, times) for times in (1, 4, 16)]
    assert of_times[0] > 0.2 and of_times[1] < 0.09 and of_times[2] < 0.023
    of_steps = [error(steps, 16) for steps in (10, 40, 160, 640)]
    for before, after in zip(of_steps, of_steps[1:], strict=False):
        assert after < 0.7 * before
    assert error(640, 1) > 0.2 and error(160, 1) > 0.2  # More steps alone do not help.
    assert error(640, 16, 10) < 0.025
    assert error(640, 16, method=methods.ddim_table) < 0.043


def test_the_errors_that_the_page_states_are_those_of_the_rows():
    page = (ROOT / "docs" / "pictures.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.M)
    assert len(rows) == 4
    for steps, *stated in rows:
        found = [error(int(steps), times) for times in (1, 4, 16)]
        np.testing.assert_allclose(found, np.float64(stated), atol=6e-4)


def test_a_chain_has_the_moments_of_its_rows():
    """8,192 chains of float32, within 5 standard errors; the known coordinate is exact."""
    num, shares = 8192, SCHEDULE.alphas_cumprod
    both = [denoiser(share**0.5, 1 - share) for share in shares]
    matrices, shifts = (
        jnp.asarray(np.stack(x), jnp.float32) for x in zip(*both, strict=True)
    )

    def apply_fn(params, x_t, t, cond, **options):
        i = t.astype(int)
        return jnp.einsum("bij,bj->bi", matrices[i], x_t) + shifts[i]

    model = Model(SCHEDULE, "x0", apply_fn=apply_fn)
    table = methods.ddpm_table(model, trailing_timesteps(1000, 40))
    table = methods.with_resampling(table, 3, 4)
    is_known = np.tile([[True, False]], (num, 1))
    x0 = np.full((num, 2), X0, np.float32)
    level = jax.tree.map(lambda column: column[0], table.level)
    start = inpainting.noised_start(x0, level, is_known)
    samples = chain.Samples(jax.random.key(3), np.arange(num), start)
    options = chain.ChainOptions(inpainting.keep_known(None))
    end, _ = jax.jit(functools.partial(chain.sample_chain, model), static_argnums=(3, 5))(
        None, table, samples, (2,), {KNOWN: x0, IS_KNOWN: is_known}, options
    )
    end = np.asarray(end, np.float64)
    mean, variance = painted_moments(table)
    assert (end[:, 0] == np.float32(X0)).all()
    assert abs(end[:, 1].mean() - mean) < 5 * (variance / num) ** 0.5
    assert abs(end[:, 1].var() - variance) < 5 * variance * (2 / num) ** 0.5


# Latents between two others


def test_slerp_stays_on_the_sphere_at_even_angles():
    """In the plane of both ends: against complex numbers."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(60, 2)))[0].T.reshape(2, 3, 4, 5)
    a, b = (np.tensordot([np.cos(w), np.sin(w)], 5 * basis, 1) for w in (0.3, 2.2))
    for share in (0.0, 0.25, 0.5, 1.0):
        z = 5 * np.exp(1j * (0.3 + share * 1.9))
        wanted = np.tensordot([z.real, z.imag], basis, 1)
        np.testing.assert_allclose(slerp(a, b, share), wanted, atol=2e-6)


def test_slerp_has_the_bits_of_its_ends_and_of_equal_ones():
    a, b = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(slerp(a, b, 0.0), a)
    np.testing.assert_array_equal(slerp(a, b, 1.0), b)
    np.testing.assert_array_equal(slerp(a, -a, 0.0), a)
    np.testing.assert_array_equal(slerp(a, 0 * a, 0.5), a / 2)
    for share in (0.0, 0.3, 0.5, 1.0):
        np.testing.assert_allclose(slerp(a, a, share), a, rtol=3e-7)
