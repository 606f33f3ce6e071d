"""The bound over a data set: entropy, quadrature, unbiased estimates, invariance."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr, roots_hermitenorm

from diffusion_jax.diffusion import oracle
from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.schedules import linear_betas, make_schedule
from diffusion_jax.evaluation.bound import (
    Bound,
    combined,
    rate_distortion,
    standard_error,
)
from diffusion_jax.evaluation.timestep_scan import strata
from helpers import DATA, LEVELS, SCHEDULE, SHAPES, SHARES, gaussian, images, mesh_of

ENTROPY = oracle.entropy(DATA) / math.log(2)  # In bits per dimension.


def bound_of(
    variance, num_strata=1000, num_devices=4, seed=0, schedule=SCHEDULE, shape=(1,)
):
    """The bound of the best model of examples whose elements are independent."""
    of_one = oracle.optimal_model(DATA, schedule, "eps", variance)

    def apply_fn(params, x_t, t, cond=None, **options):
        each = jnp.repeat(t, math.prod(shape))
        output = of_one.apply_fn(params, x_t.reshape(-1, 1), each).reshape(*x_t.shape, -1)
        # The prediction, and the variance if learned.
        return jnp.concatenate([*jnp.moveaxis(output, -1, 0)], axis=-1)

    model = dataclasses.replace(of_one, apply_fn=apply_fn)
    return Bound(model, mesh_of(num_devices), num_strata, seed=seed)


def terms_of(bound, x0, indices=None, size=None, **options):
    """The terms of images without conditions, as one batch."""
    indices = np.arange(len(x0)) if indices is None else indices
    return bound.terms(None, Batch(x0), indices, size or len(x0), **options)


def by_quadrature(variance, levels=LEVELS, shares=SHARES):
    """The bound by float64 NumPy alone: sums over levels, Gauss-Hermite over the noise.

    The terms are those of DDPM's eqs. 5, 7 and 13 as they stand, in bits.
    """
    x = levels / 127.5 - 1
    nodes, weights = roots_hermitenorm(16)
    weights = weights / weights.sum()
    betas = np.linspace(1e-4, 0.02, 1000)
    bars = np.concatenate([[1.0], np.cumprod(1 - betas)])
    tilde = (1 - bars[:-1]) / (1 - bars[1:]) * betas
    end = bars[-1]
    total = (shares * (end * x**2 - end - np.log(1 - end)) / 2).sum()
    for t in range(1, 1001):
        bar, before, beta = bars[t], bars[t - 1], betas[t - 1]
        x_t = np.sqrt(bar) * x[:, None] + np.sqrt(1 - bar) * nodes
        distance = (x_t[..., None] - np.sqrt(bar) * x) ** 2
        p = shares * np.exp(-distance / (2 * (1 - bar)))
        p /= p.sum(-1, keepdims=True)
        predicted = p @ x
        coef1 = np.sqrt(before) * beta / (1 - bar)
        coef2 = np.sqrt(1 - beta) * (1 - before) / (1 - bar)
        true_mean = coef1 * x[:, None] + coef2 * x_t
        mean = coef1 * predicted + coef2 * x_t
        if variance == "learned":
            spread = p @ x**2 - predicted**2
            s2 = np.maximum(tilde[t - 1] + coef1**2 * spread, 1e-12)
        elif variance == "fixed_large" and t > 1:
            s2 = beta
        else:
            s2 = tilde[max(t - 1, 1)]
        if t > 1:
            ratio = tilde[t - 1] / s2
            nats = (ratio - 1 - np.log(ratio) + (true_mean - mean) ** 2 / s2) / 2
        else:
            upper = (x[:, None] - mean + 1 / 255) / np.sqrt(s2)
            lower = (x[:, None] - mean - 1 / 255) / np.sqrt(s2)
            flip = lower > 0
            upper, lower = np.where(flip, -lower, upper), np.where(flip, -upper, lower)
            nats = -np.log(np.maximum(ndtr(upper) - ndtr(lower), 1e-12))
        total += (shares[:, None] * weights * nats).sum()
    return total / math.log(2)


@pytest.mark.slow
def test_the_gaps_of_the_bound_that_were_computed_elsewhere():
    """Gaps of 0.76 bits with fixed small variances, 0.13 with large, 0.002 with exact."""
    levels, shares = gaussian(0.5, spread=9)
    entropy = -(shares * np.log2(shares)).sum()
    found = {
        variance: by_quadrature(variance, levels, shares) - entropy
        for variance in ("fixed_small", "fixed_large", "learned")
    }
    expected = {"fixed_small": 0.76, "fixed_large": 0.13, "learned": 0.002}
    assert found == {k: pytest.approx(v, abs=0.015) for k, v in expected.items()}


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("variance", "shape"),
    [
        pytest.param("fixed_small", (1,), marks=pytest.mark.slow),
        pytest.param("fixed_large", (1,), marks=pytest.mark.slow),
        pytest.param("learned", (1,), marks=pytest.mark.slow),
        pytest.param("learned", SHAPES["image"], marks=pytest.mark.slow),
        ("learned", SHAPES["clip"]),
    ],
)
def test_the_bound_is_that_of_quadrature(variance, shape):
    expected = by_quadrature(variance)
    assert expected > ENTROPY
    x0 = images(1968).reshape(-1, *shape)
    found = terms_of(bound_of(variance, shape=shape), x0)
    assert abs(found.bits.mean() - expected) < 3 * standard_error(found.bits)


def test_the_bound_with_the_exact_variance_is_nearly_the_entropy():
    """The bound by quadrature, which the code is tested with, is just above the entropy."""
    assert 0 < by_quadrature("learned") - ENTROPY < 0.01


@pytest.mark.statistical
def test_the_bound_given_the_label_is_that_of_the_class():
    """Each example as its class's own model has it; the labels are worth their entropy."""
    is_upper = np.cumsum(SHARES) > 0.5
    halves = [~is_upper, is_upper]
    classes = [oracle.discrete(LEVELS[h][:, None], SHARES[h]) for h in halves]
    parts = [oracle.optimal_model(data, SCHEDULE, "eps", "learned") for data in classes]

    def apply_fn(params, x_t, t, cond, **options):
        outputs = [part.apply_fn(params, x_t, t) for part in parts]
        return jnp.where(cond["label"][:, None] == 0, *outputs)

    model = dataclasses.replace(parts[0], apply_fn=apply_fn)
    rng, num = np.random.default_rng(0), 2000
    which = rng.choice(len(LEVELS), num, p=SHARES)
    x0 = np.float32(LEVELS[which] / 127.5 - 1)[:, None]
    label, indices = np.int32(is_upper[which]), np.arange(num)
    bound = Bound(model, mesh_of(4), 50)
    found = bound.terms(None, Batch(x0, {"label": label}), indices, num).bits
    for c, part in enumerate(parts):
        here = np.flatnonzero(label == c)
        alone = Bound(part, mesh_of(4), 50)
        wanted = alone.terms(None, Batch(x0[here]), here, num).bits
        np.testing.assert_allclose(found[here], wanted, rtol=1e-4, atol=1e-4)
    weights = np.array([SHARES[h].sum() for h in halves])
    of_label = -(weights * np.log2(weights)).sum()
    left = oracle.entropy(oracle.discrete(LEVELS[:, None], SHARES)) / math.log(2) - of_label
    assert abs(found.mean() - left) < 3 * standard_error(found) + 0.01
    assert of_label > 0.5


def by_equation_16(betas):
    """DDPM eq. 16 on grids, in bits: the entropy, and what each reverse step misses."""

    def normal(x, mean, variance):
        return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)

    def divergence(p, q, width):
        return (p * np.log(np.maximum(p, 1e-300) / q)).sum(-1) * width

    x0 = LEVELS / 127.5 - 1
    wide, fine = np.linspace(-5, 5, 401), np.linspace(-5, 5, 2001)
    bars = np.append(1.0, np.cumprod(1 - betas))
    end = (SHARES * normal(fine[:, None], np.sqrt(bars[-1]) * x0, 1 - bars[-1])).sum(-1)
    total = divergence(end, normal(fine, 0, 1), fine[1] - fine[0])
    total -= (SHARES * np.log(SHARES)).sum()
    tilde = betas * (1 - bars[:-1]) / (1 - bars[1:])
    for t, beta in enumerate(betas):
        before, bar = bars[t], bars[t + 1]
        joint = SHARES * normal(wide[:, None], np.sqrt(bar) * x0, 1 - bar)
        weights = joint.sum(-1) * (wide[1] - wide[0])
        p = joint / joint.sum(-1, keepdims=True)
        predicted = p @ x0
        if t == 0:
            std = np.sqrt(tilde[1])
            mass = ndtr((x0 + 1 / 255 - predicted[:, None]) / std)
            mass -= ndtr((x0 - 1 / 255 - predicted[:, None]) / std)
            total += weights @ divergence(p, np.maximum(mass, 1e-12), 1)
            continue
        of_x0 = np.sqrt(before) * beta / (1 - bar)
        of_x_t = np.sqrt(1 - beta) * (1 - before) / (1 - bar)
        reverse = np.zeros((len(wide), len(fine)))
        for k, level in enumerate(x0):
            centre = of_x0 * level + of_x_t * wide
            reverse += p[:, k, None] * normal(fine, centre[:, None], tilde[t])
        model = normal(fine, (of_x0 * predicted + of_x_t * wide)[:, None], beta)
        total += weights @ divergence(reverse, model + 1e-300, fine[1] - fine[0])
    return total / math.log(2)


@pytest.mark.statistical
def test_the_bound_is_the_entropy_and_what_the_reverse_steps_miss():
    """DDPM eq. 16, which has q(x_{t-1} | x_t) without x_0, against the terms of eq. 5."""
    betas = np.array([0.02, 0.1, 0.3, 0.6, 0.8, 0.95])
    expected = by_equation_16(betas)
    bound = bound_of("fixed_large", num_strata=6, schedule=make_schedule(betas))
    found = terms_of(bound, images(20000))
    assert expected > ENTROPY
    assert abs(found.bits.mean() - expected) < 3 * standard_error(found.bits)


@pytest.mark.statistical
def test_a_part_of_the_timesteps_is_unbiased_and_its_standard_error_honest():
    """A thousand repeats, of 50 images with 20 timesteps each, against quadrature."""
    expected, repeats, num = by_quadrature("fixed_large"), 1000, 50
    x0 = images(repeats * num)
    found = terms_of(bound_of("fixed_large", num_strata=20), x0)
    assert abs(found.bits.mean() - expected) < 3 * standard_error(found.bits)
    groups = found.bits.reshape(repeats, num)
    covered = [abs(bits.mean() - expected) < 1.96 * standard_error(bits) for bits in groups]
    assert 0.92 < np.mean(covered) < 0.98


@pytest.mark.parametrize("num_timesteps", [2, 12, 50, 1000, 4000])
def test_strata_divide_the_timesteps(num_timesteps):
    """Strata are not empty and do not overlap; as many as timesteps have one each."""
    for num in {1, 2, min(7, num_timesteps), num_timesteps - 1, num_timesteps}:
        edges = strata(num_timesteps, num)
        assert len(edges) == num + 1 and (np.diff(edges) >= 1).all()
        assert (edges[0], edges[-1]) == (0, num_timesteps)
    np.testing.assert_array_equal(
        strata(num_timesteps, num_timesteps), np.arange(num_timesteps + 1)
    )


def test_batches_devices_and_order_change_nothing_beyond_rounding():
    x0 = images(24)
    whole = terms_of(bound_of("fixed_large", 60), x0)
    one = bound_of("fixed_large", 60, num_devices=1)
    order = np.random.default_rng(0).permutation(24)
    parts = [terms_of(one, x0[p], p, 16) for p in (order[:16], order[16:])]
    again = combined(parts)
    np.testing.assert_allclose(again.bits, whole.bits[order], rtol=2e-5)
    np.testing.assert_allclose(again.terms, whole.terms, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(again.squared_errors, whole.squared_errors, rtol=1e-4)
    assert again.prior == pytest.approx(whole.prior, rel=1e-6)


def labelled_model():
    """A model whose predicted x_0 is x_t times the label."""

    def apply_fn(params, x_t, t, cond, *, train, key):
        assert not train and key is None
        return x_t * cond["label"][:, None]

    return Model(SCHEDULE, "x0", apply_fn=apply_fn)


@pytest.mark.parametrize("num_devices", [1, 4])
def test_every_image_is_measured_with_its_own_condition(num_devices):
    """Conditions stay with their images in any order, also in a batch that is filled up."""
    x0, labels = images(24), np.linspace(-1, 1, 24, dtype=np.float32)
    bound = Bound(labelled_model(), mesh_of(num_devices), 20)

    def terms(rows, size):
        batch = Batch(x0[rows], {"label": labels[rows]})
        return bound.terms(None, batch, rows, size).bits

    whole = terms(np.arange(24), 24)
    order = np.random.default_rng(0).permutation(24)
    parts = np.concatenate([terms(rows, 16) for rows in (order[:16], order[16:])])
    np.testing.assert_allclose(parts, whole[order], rtol=2e-5)
    same = Batch(x0, {"label": labels[::-1]})
    swapped = bound.terms(None, same, np.arange(24), 24).bits
    assert (swapped != whole).all()


def test_the_terms_add_up_to_the_bound_and_the_curve_begins_with_the_prior():
    x0 = images(32)
    found = terms_of(bound_of("fixed_small", 1000), x0)
    assert found.prior + found.terms.sum() == pytest.approx(found.bits.mean(), rel=1e-5)
    curve = rate_distortion(found, 1000)
    assert curve.t[0] == 999 and curve.t[-1] == 0
    assert curve.rate[0] == pytest.approx(found.prior)
    assert curve.rate[-1] == pytest.approx(found.bits.mean() - found.terms[0], rel=1e-5)
    # From noise alone the best guess is the mean, and its error the spread of the data.
    assert curve.rmse[0] == pytest.approx(127.5 * x0.std(), rel=0.1)
    assert curve.rmse[-1] < 0.2 * curve.rmse[0]


def test_progress_is_told_between_segments():
    told = []
    bound = bound_of("fixed_small", 120)
    terms_of(bound, images(8), on_progress=told.append)
    assert told == [50, 100, 120]


def test_images_off_the_grid_are_refused():
    bound = bound_of("fixed_small", num_strata=1)
    for x0 in (images(4) + 1e-4, images(4) * 2 + 1):
        with pytest.raises(ValueError, match="256 levels"):
            terms_of(bound, x0)


def test_memory_does_not_grow_with_the_timesteps():
    """Memory of the compiled program, whose scan has 50 steps whatever T."""
    sizes = []
    for num in (100, 1000):
        bound = bound_of("fixed_small", num, 1, schedule=make_schedule(linear_betas(num)))
        scan = bound._scan
        zeros, indices = np.zeros((64, 1), np.float32), np.zeros(64, np.int32)
        arguments = (None, Batch(zeros), indices, zeros[:, 0], zeros[:, 0], 0)
        memory = scan._advance.lower(*arguments).compile().memory_analysis()
        sizes.append(memory.temp_size_in_bytes)
    assert sizes[1] < 1.05 * sizes[0] + 2e5
