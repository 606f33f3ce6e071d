"""The likelihood under the probability-flow ODE, against densities in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr, roots_hermitenorm

import helpers
from diffusion_jax.diffusion import oracle
from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.noise_level import noise_level_at
from diffusion_jax.diffusion.schedules import (
    linear_betas,
    make_schedule,
    rescale_zero_terminal_snr,
)
from diffusion_jax.evaluation.bound import standard_error
from diffusion_jax.evaluation.ode_likelihood import Flow, make_stages
from helpers import DATA, LEVELS, SHAPES, SHARES, images, mesh_of

SCHEDULES = {
    **helpers.SCHEDULES,
    "zero_terminal_snr": make_schedule(rescale_zero_terminal_snr(linear_betas(1000))),
}
LINEAR = SCHEDULES["linear"]


def flow_of(
    of, schedule=LINEAR, prediction="eps", num_steps=50, num_devices=1, dequantize=False
):
    """The flow of the best model, of points or, with `dequantize`, of levels."""
    model = oracle.optimal_model(of, schedule, prediction)
    return Flow(model, mesh_of(num_devices), num_steps, dequantize=dequantize)


def bits_of(flow, x0, indices=None, size=None):
    """Bits per dimension of examples without conditions, as one batch."""
    indices = np.arange(len(x0)) if indices is None else indices
    return flow.bits(None, Batch(x0), indices, size or len(x0))


def mixture_of(*shape, seed=0):
    rng = np.random.default_rng(seed)
    means = rng.uniform(-1, 1, (3, *shape))
    return oracle.mixture([0.5, 0.3, 0.2], means, rng.uniform(0.01, 0.2, (3, *shape)))


def bits_by_density(flow, data, schedule, x0):
    """-log2 of the density at t = 0 of what the flow starts from, per dimension."""
    x, _, _ = flow._begin(None, Batch(jnp.asarray(x0)), jnp.arange(len(x0)))
    log_density = oracle.log_density(data, x, noise_level_at(schedule, 0))
    return -np.asarray(log_density, np.float64) / (x0[0].size * math.log(2))


@pytest.mark.parametrize(
    ("schedule", "prediction", "kind"),
    [
        ("linear", "eps", "point"),
        ("linear", "v", "point"),
        ("linear", "score", "point"),
        ("cosine", "x0", "point"),
        ("zero_terminal_snr", "v", "point"),
        ("zero_terminal_snr", "x0", "point"),
        ("zero_terminal_snr", "v", "sound"),
        ("zero_terminal_snr", "v", "clip"),
    ],
)
def test_examples_have_the_true_density(schedule, prediction, kind):
    """Densities of 64 examples one by one, not their mean.

    The linear schedule leaves 0.6 % of the amplitude, which the prior does not have.
    """
    tolerance = 1e-2 if schedule == "linear" else 2e-4
    schedule, data = SCHEDULES[schedule], mixture_of(*SHAPES[kind])
    flow = flow_of(data, schedule, prediction)
    x0 = np.asarray(oracle.sample(data, jax.random.key(0), 64))
    found = bits_of(flow, x0)
    expected = bits_by_density(flow, data, schedule, x0)
    assert expected.std() > 0.2
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_the_error_falls_with_the_steps():
    """Errors of fourth order: half the steps have 16 times the error, at least 8 times."""
    data = mixture_of(2)
    x0 = np.asarray(oracle.sample(data, jax.random.key(0), 64))

    def error(num_steps):
        schedule = SCHEDULES["cosine"]
        flow = flow_of(data, schedule, "v", num_steps)
        found = bits_of(flow, x0)
        return np.abs(found - bits_by_density(flow, data, schedule, x0)).mean()

    assert error(8) > 8 * error(16)


@pytest.mark.statistical
def test_hutchinsons_estimate_is_unbiased():
    """Mean error over 4,000 points in 18 dimensions, where the divergence is not summed."""
    data = mixture_of(18)
    flow = flow_of(data)
    x0 = np.asarray(oracle.sample(data, jax.random.key(0), 4000))
    found = bits_of(flow, x0)
    difference = found - bits_by_density(flow, data, LINEAR, x0)
    assert difference.std() > 1e-3
    assert abs(difference.mean()) < 3 * standard_error(difference)


def bound_by_quadrature():
    """E_q[log q(x_1 | x_0) - log q(x_1)] + L_0 of one dimension, in bits, by NumPy."""
    nodes, weights = roots_hermitenorm(64)
    weights = weights / weights.sum()
    bar = 1 - 1e-4
    tilde = 1e-4 / (1 - bar * (1 - np.linspace(1e-4, 0.02, 1000)[1]))
    tilde *= np.linspace(1e-4, 0.02, 1000)[1]
    x = LEVELS / 127.5 - 1
    x_1 = np.sqrt(bar) * x[:, None] + np.sqrt(1 - bar) * nodes
    distance = (x_1[..., None] - np.sqrt(bar) * x) ** 2
    likelihood = np.exp(-distance / (2 * (1 - bar)))
    own = np.exp(-(nodes**2) / 2)
    gain = np.log(own) - np.log((SHARES * likelihood).sum(-1))
    predicted = (SHARES * likelihood) @ x / (SHARES * likelihood).sum(-1)
    upper = ndtr((x[:, None] + 1 / 255 - predicted) / np.sqrt(tilde))
    lower = ndtr((x[:, None] - 1 / 255 - predicted) / np.sqrt(tilde))
    nats = gain - np.log(np.maximum(upper - lower, 1e-12))
    return (SHARES[:, None] * weights * nats).sum() / math.log(2)


@pytest.mark.statistical
def test_images_have_the_bound_of_the_exact_flow():
    """Images, dequantised by the first step of noising, have a bound above the entropy."""
    expected = bound_by_quadrature()
    assert expected > oracle.entropy(DATA) / math.log(2)
    flow = flow_of(DATA, num_steps=100, dequantize=True)
    found = bits_of(flow, images(4000))
    assert abs(found.mean() - expected) < 3 * standard_error(found) + 0.002


@pytest.mark.slow
def test_devices_batches_and_order_change_nothing_beyond_rounding():
    data = mixture_of(2)
    x0 = np.asarray(oracle.sample(data, jax.random.key(0), 24))
    whole = bits_of(flow_of(data, num_steps=10), x0)
    divided = flow_of(data, num_steps=10, num_devices=4)
    order = np.random.default_rng(0).permutation(24)
    parts = [bits_of(divided, x0[i], i, 16) for i in (order[:16], order[16:])]
    np.testing.assert_allclose(np.concatenate(parts), whole[order], rtol=1e-5)


def test_every_example_flows_with_its_own_condition():
    """Examples of two Gaussians in one batch have the density that their label selects.

    The batch is filled up.
    """
    each = [oracle.gaussian([0.3, -0.2], [0.04, 0.1]), oracle.gaussian([-0.5, 0.6], 0.3)]
    models = [oracle.optimal_model(data, LINEAR, "v") for data in each]

    def apply_fn(params, x_t, t, cond, **options):
        both = [model.apply_fn(params, x_t, t, None, **options) for model in models]
        return jnp.where(cond["label"][:, None] == 1, both[1], both[0])

    flow = Flow(Model(LINEAR, "v", apply_fn=apply_fn), mesh_of(4), 50, dequantize=False)
    labels = np.arange(21) % 3 % 2
    x0 = np.asarray(oracle.sample(each[0], jax.random.key(0), 24))
    found = flow.bits(None, Batch(x0[:21], {"label": labels}), np.arange(21), 24)
    for label, data in enumerate(each):
        expected = bits_by_density(flow, data, LINEAR, x0)[:21]
        here = labels == label
        np.testing.assert_allclose(found[here], expected[here], atol=1e-2)
        assert np.abs(found[~here] - expected[~here]).max() > 0.1


def test_the_steps_reach_from_the_first_timestep_to_the_last():
    """Steps lie along the arc on which the times of the schedule lie."""
    stages = make_stages(Model(LINEAR, "v"), 20)
    assert stages.t[0, 0] == 0 and stages.t[-1, -1] == 999
    assert (np.diff(stages.t, axis=1) > 0).all()
    arc = np.arccos(LINEAR.sqrt_alphas_cumprod[[0, -1]])
    assert stages.length.sum() == pytest.approx(arc[1] - arc[0], rel=1e-6)
