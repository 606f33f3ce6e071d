"""Guidance, against the closed forms of a labelled mixture of Gaussians."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import guidance, oracle, parameterization
from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.diffusion.noise_level import noise_level_at
from helpers import SCHEDULE, SHAPES

MEANS = np.array([[-0.6, 0.1], [0.2, 0.5], [0.7, -0.4]])
VARIANCES = np.array([[0.02, 0.05], [0.04, 0.01], [0.03, 0.03]])
SHARES = np.array([0.5, 0.2, 0.3])
CLASSES = [oracle.gaussian(m, v) for m, v in zip(MEANS, VARIANCES, strict=True)]
WHOLE = oracle.mixture(SHARES, MEANS, VARIANCES)


def labelled(prediction, variance="fixed_small"):
    """The optimal model of the mixture whose components are the classes."""
    models = [
        oracle.optimal_model(data, SCHEDULE, prediction, variance)
        for data in (*CLASSES, WHOLE)
    ]

    def apply_fn(params, x_t, t, cond, **options):
        outputs = jnp.stack([m.apply_fn(params, x_t, t) for m in models])
        return outputs[cond["label"], jnp.arange(len(x_t))]

    return dataclasses.replace(models[0], apply_fn=apply_fn)


def inputs(scale):
    x = jax.random.normal(jax.random.key(0), (6, 2))
    t = jnp.array([5, 100, 300, 500, 700, 950])
    label = jnp.array([0, 1, 2, 0, 1, 2])
    return x, t, {"label": label, "guidance": jnp.full(6, jnp.float32(scale))}


def guided(model, x, t, cond):
    """The guided x_0."""
    by_label = guidance.by_label(model, len(CLASSES))
    given, base = by_label.both({}, x, t, {"label": cond["label"]})
    return by_label.combine(given.x0, base.x0, cond["guidance"], None)[0]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
def test_the_guided_score_is_that_of_the_tilted_density(prediction, scale):
    """The gradient of (1 - s) log q(x_t) + s log q(x_t | label), by differentiation."""
    x, t, cond = inputs(scale)
    x0 = guided(labelled(prediction), x, t, cond)
    found = parameterization.score_from_x0(SCHEDULE, x, t, x0)

    def log_tilted(x, t, label):
        level = noise_level_at(SCHEDULE, t[None], x.dtype)
        of_all = oracle.log_density(WHOLE, x[None], level)[0]
        of_each = [oracle.log_density(data, x[None], level)[0] for data in CLASSES]
        return (1 - scale) * of_all + scale * jnp.stack(of_each)[label]

    wanted = jax.vmap(jax.grad(log_tilted))(x, t, cond["label"])
    np.testing.assert_allclose(found, wanted, rtol=4e-3, atol=4e-3)


def test_each_example_has_its_own_scale():
    x, t, cond = inputs(0.0)
    scales = jnp.arange(6.0)
    model = labelled("x0")
    found = guided(model, x, t, {**cond, "guidance": scales})
    for i, scale in enumerate(scales):
        alone = guided(model, x, t, {**cond, "guidance": jnp.full(6, scale)})
        np.testing.assert_array_equal(found[i], alone[i])


def test_a_learned_variance_is_that_of_the_conditional_prediction():
    x, t, cond = inputs(3.0)
    model = labelled("eps", "learned")
    found, base = guidance.by_label(model, 3).both({}, x, t, cond)
    wanted = model.predict({}, x, t, cond)
    np.testing.assert_array_equal(found.variance_output, wanted.variance_output)
    np.testing.assert_array_equal(found.output, wanted.output)
    none = model.predict({}, x, t, {"label": jnp.full(6, 3)})
    np.testing.assert_array_equal(base.output, none.output)


def test_labels_are_dropped_at_the_rate_and_nothing_else_is_changed():
    """100,000 labels: the share within 5 standard deviations, the others as they were."""
    num, rate = 100_000, 0.1
    label = jnp.arange(num, dtype=jnp.int32) % 7
    batch = Batch(jnp.zeros((num, 1)), {"label": label, "other": label})
    found = guidance.drop_labels(jax.random.key(1), batch, 7, rate)
    dropped = np.asarray(found.cond["label"] == 7)
    assert abs(dropped.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / num)
    np.testing.assert_array_equal(found.cond["label"][~dropped], label[~dropped])
    np.testing.assert_array_equal(found.cond["other"], label)
    for c in range(7):  # Of each class as often.
        share = dropped[np.asarray(label) == c].mean()
        assert abs(share - rate) < 5 * np.sqrt(rate * (1 - rate) / (num / 7))
    for rate, same in ((0.0, True), (1.0, False)):
        found = guidance.drop_labels(jax.random.key(1), batch, 7, rate).cond["label"]
        assert np.array_equal(found, label) == same


# Forms of guidance


def pair(shape=(5, 3, 2)):
    """D_c, D_u and scales."""
    keys = jax.random.split(jax.random.key(2), 2)
    return *(jax.random.normal(k, shape) for k in keys), jnp.array([0, 0.5, 1, 2.0, 4])


def test_projected_guidance_is_classifier_free_guidance_by_default():
    """eta = 1, beta = 0 and no clipping."""
    x0, base, scale = pair()
    options = guidance.Projection()
    found = guidance.projected(x0, x0 - base, scale, options)
    np.testing.assert_allclose(found, guidance.combined(x0, base, scale), atol=1e-5)
    by_label = guidance.Guidance(None, None, projection=options)
    assert not by_label.has_momentum
    found, momentum = by_label.combine(x0, base, scale, None)
    assert momentum is None
    np.testing.assert_allclose(found, guidance.combined(x0, base, scale), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_projected_guidance_has_no_part_along_the_prediction(shape):
    """eta = 0 leaves what is orthogonal to D_c; eta takes that share of the rest."""
    x0, base, scale = pair((5, *shape))
    flat = np.float64(x0).reshape(5, -1)
    length = (flat**2).sum(1)
    difference = np.float64(x0 - base).reshape(5, -1)
    share = (difference * flat).sum(1) / length
    for eta in (0.0, 0.3):
        found = guidance.projected(x0, x0 - base, scale, guidance.Projection(eta))
        moved = np.float64(found - x0).reshape(5, -1)
        along = (moved * flat).sum(1) / length
        np.testing.assert_allclose(along, (scale - 1) * eta * share, atol=1e-5)
        rest = moved - along[:, None] * flat
        wanted = difference - share[:, None] * flat
        np.testing.assert_allclose(rest, (scale - 1)[:, None] * wanted, atol=1e-5)


def test_the_norm_of_the_difference_is_limited_for_each_example():
    x0, base, _ = pair()
    base = x0 + (base - x0) * jnp.array([0.1, 0.5, 1, 2, 0])[:, None, None]
    norm = np.linalg.norm(np.asarray(x0 - base).reshape(5, -1), axis=1)
    options = guidance.Projection(max_norm=float(np.median(norm)))
    found = guidance.projected(x0, x0 - base, jnp.full(5, 2.0), options)
    moved = np.linalg.norm(np.asarray(found - x0).reshape(5, -1), axis=1)
    np.testing.assert_allclose(moved, np.minimum(norm, options.max_norm), rtol=1e-4)


def test_a_prediction_of_zero_is_no_direction():
    zero = jnp.zeros((1, 3))
    options = guidance.Projection(parallel=0.0, max_norm=1.0)
    difference = jnp.array([[0.1, 0.2, 0.3]])
    found = guidance.projected(zero, difference, jnp.full(1, 2.0), options)
    np.testing.assert_allclose(found, difference, rtol=1e-6)
    same = guidance.projected(zero, zero, jnp.full(1, 2.0), options)
    np.testing.assert_array_equal(same, zero)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_rescaling_moves_the_deviation_to_that_of_the_prediction(share, shape):
    """The deviation is phi std(D_c) + (1 - phi) std(D), and the shape that of D."""
    x0, base, scale = pair((5, *shape))
    plain = guidance.combined(x0, base, scale)
    found = guidance.Guidance(None, None, rescale=share).combine(x0, base, scale, None)[0]

    def std(x):
        return np.asarray(x).reshape(5, -1).std(1)

    np.testing.assert_allclose(
        std(found), share * std(x0) + (1 - share) * std(plain), rtol=1e-5
    )
    factor = (std(found) / std(plain)).reshape(5, *(1,) * len(shape))
    np.testing.assert_allclose(found, plain * factor, atol=1e-5)
    flat = jnp.full((1, 4), 0.3)  # Of no deviation, which is left as it is.
    np.testing.assert_array_equal(guidance.rescaled(flat, flat * 2, share), flat)


# Measurements


@jax.enable_x64(True)
def test_a_measurement_is_weighed_with_the_variance_that_is_left():
    """`measured`: the score of the posterior of data with one variance, in closed form.

    y is the sum of two coordinates over sqrt(2) with noise, of data N(m, v I).
    """
    mean, v, noise, y = np.array([0.3, -0.2]), 0.4, 0.05, 0.9
    row = np.array([1.0, 1.0]) / np.sqrt(2)
    data = oracle.gaussian(mean, v)
    prior = guidance.measured(lambda x: x @ row[:, None], np.full((2, 1), y), noise, v)
    gain = v * row / (v + noise)
    posterior_mean = mean + gain * (y - row @ mean)
    posterior_covariance = v * np.eye(2) - np.outer(gain, v * row)
    x = np.array([[0.5, -1.2], [0.1, 0.4]])
    for t in (30, 400, 900):
        level = noise_level_at(SCHEDULE, jnp.array(t), jnp.float64)

        def total(x, level=level):
            mean, _ = oracle.x0_mean_variance(data, x, level)
            return prior.log_p(mean, level, None).sum()

        found = oracle.score(data, x, level) + jax.grad(total)(x)
        a, s2 = float(level.alpha), float(level.sigma_squared)
        noised = a**2 * posterior_covariance + s2 * np.eye(2)
        wanted = -np.linalg.solve(noised, (x - a * posterior_mean).T).T
        np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_a_measurement_without_a_spread_is_that_of_video_diffusion():
    """x_0 - (alpha w / 2) grad |y - x_0|^2 of the paper's eq. 8, with w = 1."""
    y, x0 = np.float32([[0.4, 0.2]]), np.float32([[0.1, -0.3]])
    level = noise_level_at(SCHEDULE, jnp.array(300))
    prior = guidance.measured(lambda x: x, y, 0.0, np.inf)
    towards = jax.grad(lambda x: prior.log_p(x, level, None).sum())(jnp.asarray(x0))
    found = guidance.shift_of_x0(towards, jnp.ones(1), level)
    np.testing.assert_allclose(found, level.alpha / 2 * 2 * (y - x0), rtol=1e-5)


@pytest.mark.parametrize("max_norm", [float("inf"), 1e6, 0.5])
def test_a_function_of_x0_can_be_differentiated_through_projected_guidance(max_norm):
    """Also where both predictions are the same, and where D_c is zero."""
    x0, base, scale = pair()
    x0 = x0.at[0].set(base[0]).at[1].set(0.0)
    options = guidance.Projection(0.2, max_norm=max_norm)

    def total(x0):
        return guidance.projected(x0, x0 - base, scale, options).sum()

    found, step = jax.grad(total)(x0), 1e-2
    assert np.isfinite(found).all()
    for i in (2, 3, 4):  # By central differences.
        moved = jnp.zeros_like(x0).at[i, 1, 1].set(step)
        slope = (total(x0 + moved) - total(x0 - moved)) / (2 * step)
        np.testing.assert_allclose(found[i, 1, 1], slope, rtol=0.02, atol=0.02)


def test_the_momentum_is_added_and_kept():
    """r = D_c - D_u + beta (r before), which the next row takes."""
    x0, base, scale = pair()
    before = jax.random.normal(jax.random.key(7), x0.shape)
    by_label = guidance.Guidance(None, None, projection=guidance.Projection(momentum=-0.5))
    found, kept = by_label.combine(x0, base, scale, before)
    wanted = np.asarray(x0 - base) - 0.5 * np.asarray(before)
    np.testing.assert_allclose(kept, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        found, x0 + (scale - 1)[:, None, None] * wanted, rtol=1e-4, atol=1e-5
    )


def test_a_norm_is_limited_from_the_limit_on():
    """0.4 % above it is made as long as the limit, and 0.4 % below is left."""
    direction = jnp.array([[0.6, 0.0, 0.8]])
    for limit in (3.0, 0.5):
        options = guidance.Projection(max_norm=limit)
        for length in (0.996, 1.004):
            difference = limit * length * direction
            x0, two = jnp.ones((1, 3)), jnp.full(1, 2.0)
            moved = guidance.projected(x0, difference, two, options) - x0
            wanted = min(length, 1.0) * limit
            np.testing.assert_allclose(np.linalg.norm(moved), wanted, rtol=1e-3)


def test_small_predictions_are_projected_and_rescaled_as_others():
    """All is linear in both predictions: a thousandth of them gives a thousandth."""
    x0, base, scale = pair()
    both = guidance.Guidance(
        None, None, rescale=0.5, projection=guidance.Projection(parallel=0.3)
    )
    large = both.combine(x0, base, scale, None)[0]
    small = both.combine(x0 * 1e-3, base * 1e-3, scale, None)[0]
    np.testing.assert_allclose(small * 1e3, large, rtol=1e-3, atol=1e-4)


def test_the_base_of_another_model_is_its_own_prediction():
    x, t, cond = inputs(0.0)
    model, guide = labelled("eps"), oracle.optimal_model(WHOLE, SCHEDULE, "eps")

    def scaled(model):
        def apply_fn(params, x_t, t, cond, **options):
            return params * model.apply_fn(None, x_t, t, cond)

        return dataclasses.replace(model, apply_fn=apply_fn)

    params = jnp.float32(0.9), jnp.float32(1.2)
    guided_by = guidance.by_model(scaled(model), scaled(guide))
    given, base = guided_by.both(params, x, t, cond)
    wanted = 0.9 * model.apply_fn(None, x, t, cond)
    for found in (given, guided_by.predict(params, x, t, cond)):
        np.testing.assert_allclose(found.output, wanted, rtol=1e-6)
    np.testing.assert_allclose(base.output, 1.2 * guide.apply_fn(None, x, t), rtol=1e-6)
