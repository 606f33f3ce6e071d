"""Guidance, against the closed forms of a labelled mixture of Gaussians."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import guidance, oracle, parameterization
from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.diffusion.noise_level import noise_level_at
from helpers import SCHEDULE

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
