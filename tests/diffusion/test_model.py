"""Models: the arguments of the network, and how its output is read."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import forward_process, parameterization
from diffusion_jax.diffusion.model import Model, Prediction, p_mean_log_variance
from helpers import SCHEDULES

LINEAR = SCHEDULES["linear"]
KINDS = ("eps", "x0", "v", "score")
T = jnp.array([100, 200, 300, 400, 450, 499])  # Where each form determines the others.


def network_of(output):
    return lambda *_, **__: output


def predicted(output, x_t, variance):
    model = Model(LINEAR, "eps", variance, network_of(output))
    return model.predict(None, x_t, jnp.zeros(len(x_t), jnp.int32))


def truth(process, images):
    """x_t, and the target of each kind of model there."""
    x0, _, noise = images
    x_t = forward_process.q_sample(process, x0, T, noise)
    return x_t, {kind: Model(process, kind).target(x0, T, noise) for kind in KINDS}


def test_the_targets_are_those_of_the_definitions(schedule, images):
    """Targets in float64, from x_0 and the noise."""
    x0, _, noise = (np.asarray(a, np.float64) for a in images)
    share = np.array([np.prod(1 - schedule.betas[: t + 1]) for t in np.asarray(T)])
    share = share.reshape(-1, 1, 1, 1)
    expected = {
        "eps": noise,
        "x0": x0,
        "v": np.sqrt(share) * noise - np.sqrt(1 - share) * x0,
        "score": -noise / np.sqrt(1 - share),
    }
    _, found = truth(schedule, images)
    for kind in KINDS:
        np.testing.assert_allclose(found[kind], expected[kind], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_has_all_four_forms(schedule, images, kind):
    """Forms of a true prediction, with the bits of the conversion functions."""
    x_t, true = truth(schedule, images)
    found = Model(schedule, kind, apply_fn=network_of(true[kind])).predict(None, x_t, T)
    for name in KINDS:
        form = getattr(found, name)
        chex.assert_trees_all_close(form, true[name], atol=2e-4)
        if name != kind:
            convert = getattr(parameterization, f"{name}_from_{kind}")
            np.testing.assert_array_equal(form, convert(schedule, x_t, T, true[kind]))
    assert getattr(found, kind) is true[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_flows_through_a_fixed_mean(images, kind):
    """Gradients of a prediction with a fixed mean go through its variance alone."""
    x_t, true = truth(LINEAR, images)
    model = Model(LINEAR, kind, "learned")

    def total(output, between):
        found = Prediction(model, x_t, T, output, between).with_fixed_mean()
        forms = sum(getattr(found, name).sum() for name in KINDS)
        return forms + found.log_variance.sum()

    mean, between = jax.grad(total, argnums=(0, 1))(true[kind], jnp.zeros_like(x_t))
    assert not mean.any() and between.all()
    found = Prediction(model, x_t, T, true[kind], x_t).with_fixed_mean()
    np.testing.assert_array_equal(found.output, true[kind])
    np.testing.assert_array_equal(found.variance_output, x_t)


def test_the_reverse_step_has_the_posterior_mean_and_the_models_variance(schedule, images):
    """The mean is at the predicted x_0 or another; the log variance is fixed or between."""
    x_t, true = truth(schedule, images)
    small, large = (
        np.log(table[np.asarray(T)]).reshape(-1, 1, 1, 1)
        for table in (schedule.posterior_variance, schedule.betas)
    )
    between = jnp.full_like(x_t, -0.5)
    for variance, output, expected in (
        ("fixed_small", None, small),
        ("fixed_large", None, large),
        ("learned", between, 0.25 * large + 0.75 * small),
    ):
        found = Prediction(Model(schedule, "eps", variance), x_t, T, true["eps"], output)
        for x0 in (None, images[0] / 2):
            mean, log_variance = p_mean_log_variance(found, x0)
            x0 = found.x0 if x0 is None else x0
            posterior = forward_process.q_posterior(schedule, x0, x_t, T)
            np.testing.assert_array_equal(mean, posterior[0])
            wide = np.broadcast_to(log_variance, x_t.shape)
            np.testing.assert_allclose(
                wide, np.broadcast_to(expected, x_t.shape), rtol=1e-6
            )


def test_a_clipped_x0_lies_in_the_range_of_images():
    x_t = jnp.array([[-3.0, -1.0, 0.5, 1.5]])
    found = Prediction(Model(LINEAR, "x0"), x_t, jnp.array([3]), x_t)
    np.testing.assert_array_equal(found.clipped_x0(), [[-1, -1, 0.5, 1]])
    np.testing.assert_array_equal(found.clipped_x0(False), x_t)


def test_the_network_is_told_what_the_model_is_told():
    told = {}

    def spy(params, x_t, t, cond, *, train, key):
        told.update(params=params, x_t=x_t, t=t, cond=cond, train=train, key=key)
        return x_t

    model = Model(LINEAR, apply_fn=spy)
    x_t, t = jnp.ones((2, 3)), jnp.array([3, 5])
    found = model.predict("params", x_t, t, "cond", train=True, key="key")
    about = {"params": "params", "cond": "cond", "train": True, "key": "key"}
    assert told == {"x_t": x_t, "t": t, **about}
    assert (found.model, found.x_t, found.t) == (model, x_t, t)
    model.predict("params", x_t, t)
    assert told == {
        "params": "params",
        "x_t": x_t,
        "t": t,
        "cond": None,
        "train": False,
        "key": None,
    }


def test_an_output_is_split_where_the_variance_is_learned():
    x_t = jnp.zeros((2, 4, 4, 3))
    output = jnp.arange(6.0)[None, None, None] * jnp.ones((2, 4, 4, 6))
    found = predicted(output, x_t, "learned")
    np.testing.assert_array_equal(found.output[0, 0, 0], [0, 1, 2])
    np.testing.assert_array_equal(found.variance_output[0, 0, 0], [3, 4, 5])
    for variance in ("fixed_small", "fixed_large"):
        found = predicted(x_t, x_t, variance)
        assert found.output is x_t and found.variance_output is None


@pytest.mark.parametrize("variance", parameterization.VARIANCES)
@pytest.mark.parametrize("shape", [(2, 4, 4, 1), (2, 4, 4, 3), (2, 4, 4, 6), (2, 4, 4, 12)])
def test_an_output_of_the_wrong_number_of_channels_is_refused(variance, shape):
    """Outputs with the wrong channels are refused, also under jit, and not broadcast."""
    x_t, channels = jnp.zeros((2, 4, 4, 3)), 6 if variance == "learned" else 3
    if shape[-1] == channels:
        assert predicted(jnp.zeros(shape), x_t, variance).output.shape == x_t.shape
        return
    said = f"{variance!r}.* must have {channels} channels"
    with pytest.raises(ValueError, match=said):
        predicted(jnp.zeros(shape), x_t, variance)
    with pytest.raises(ValueError, match=said):
        jax.jit(lambda x: predicted(jnp.zeros(shape), x, variance).output)(x_t)


@pytest.mark.parametrize("shape", [(4, 4, 3), (1, 4, 4, 3), (2, 1, 4, 3), (2, 4, 4)])
def test_an_output_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="has the shape"):
        predicted(jnp.zeros(shape), jnp.zeros((2, 4, 4, 3)), "fixed_small")


def test_a_learned_variance_needs_the_variance_output_of_the_network():
    x_t = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="needs the variance output"):
        Prediction(Model(LINEAR, "x0", "learned"), x_t, T[:2], x_t).log_variance  # noqa: B018


def test_a_model_without_a_network_predicts_nothing():
    model = Model(LINEAR)
    with pytest.raises(TypeError, match="has no network"):
        model.predict(None, jnp.zeros((1, 2)), jnp.zeros(1))
    x = jnp.ones((1, 2))
    given = dataclasses.replace(model, apply_fn=network_of(x))
    assert given.predict(None, x, jnp.array([0])).output is x


def test_a_model_is_a_static_argument():
    """Models are compared by identity, whatever they hold."""
    assert len({Model(LINEAR), Model(LINEAR)}) == 2
    model = Model(LINEAR, "x0", apply_fn=lambda params, x_t, *_, **__: 2 * x_t)

    def ask(model, x_t):
        return model.predict(None, x_t, jnp.array([5])).x0

    x = jnp.ones((1, 2))
    np.testing.assert_array_equal(jax.jit(ask, static_argnums=0)(model, x), 2 * x)


def test_unknown_names_are_refused():
    for kind, variance in itertools.product(KINDS, parameterization.VARIANCES):
        Model(LINEAR, kind, variance)
    for kind in ("noise", "EPS", "", None):
        with pytest.raises(ValueError, match=f"prediction {kind!r} is unknown.*eps, x0, v"):
            Model(LINEAR, kind)
    with pytest.raises(ValueError, match="'huge' is unknown.*fixed_small"):
        Model(LINEAR, "eps", "huge")
    with pytest.raises(ValueError, match="'noise' is unknown"):
        dataclasses.replace(Model(LINEAR), prediction="noise")
