"""Losses where their value is known: perfect, silent and optimal predictors."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from diffusion_jax.diffusion import (
    forward_process,
    loss_weighting,
    losses,
    oracle,
    parameterization,
    schedules,
    timestep_sampling,
    variational_bound,
)
from diffusion_jax.diffusion.batch import Batch, Draw
from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.schedules import linear_betas, make_schedule
from helpers import SHAPES

SCHEDULE = make_schedule(linear_betas(100, 1e-3, 0.14))
PIXELS = oracle.discrete([[0, 30], [255, 128], [127, 127]], [0.5, 0.2, 0.3])


def simple(apply_fn, key, x0, *, prediction="eps", cond=None, **options):
    """`simple_loss` of a network without parameters."""
    model = Model(SCHEDULE, prediction, apply_fn=apply_fn)
    batch = Batch(x0, {} if cond is None else cond)
    return losses.simple_loss(model, None, key, batch, **options)


def target(kind, x0, t, noise):
    return Model(SCHEDULE, kind).target(x0, t, noise)


def silent(params, x_t, t, cond, *, train, key):
    return jnp.zeros_like(x_t)


def test_a_perfect_predictor_has_no_loss():
    """One data point, x_0 = c: then eps, x_0 and v are known exactly from x_t."""
    c = 0.25

    def oracle(kind):
        def apply_fn(params, x_t, t, cond, *, train, key):
            x0 = jnp.full_like(x_t, c)
            eps = parameterization.eps_from_x0(SCHEDULE, x_t, t, x0)
            return target(kind, x0, t, eps)

        return apply_fn

    x0 = jnp.full((256, 2, 2, 1), c)
    for kind in parameterization.PREDICTION_TYPES:
        for norm in losses.NORMS:
            loss = simple(oracle(kind), jax.random.key(0), x0, prediction=kind, norm=norm)
            assert float(loss) < 1e-5


@pytest.mark.statistical
@pytest.mark.parametrize(("norm", "expected"), [("l2", 1.0), ("l1", np.sqrt(2 / np.pi))])
def test_a_silent_predictor_of_eps_has_the_moments_of_the_normal(norm, expected):
    x0 = jnp.zeros((4096, 8))
    loss = simple(silent, jax.random.key(1), x0, norm=norm)
    assert float(loss) == pytest.approx(expected, abs=0.02)


@pytest.mark.statistical
def test_the_optimal_predictor_of_gaussian_data_has_the_known_loss():
    """x_0 ~ N(0, s^2): E|eps - E[eps|x_t]|^2 = a s^2 / (a s^2 + 1 - a) at each t."""
    s, n = 0.5, 1_000_000
    a = jnp.asarray(SCHEDULE.alphas_cumprod, jnp.float32)

    def optimal(params, x_t, t, cond, *, train, key):
        share = a[t][:, None]
        return jnp.sqrt(1 - share) / (share * s**2 + 1 - share) * x_t

    x0 = s * jax.random.normal(jax.random.key(2), (n, 1))
    loss = simple(optimal, jax.random.key(3), x0)
    share = SCHEDULE.alphas_cumprod
    expected = (share * s**2 / (share * s**2 + 1 - share)).mean()
    assert float(loss) == pytest.approx(expected, rel=0.02)  # Five standard errors.


@pytest.mark.statistical
def test_t_is_uniform_over_all_timesteps():
    """Counts of the timesteps that a network sees, by chi-square."""
    seen = []

    def spy(params, x_t, t, cond, *, train, key):
        seen.append(t)
        return jnp.zeros_like(x_t)

    simple(spy, jax.random.key(4), jnp.zeros((50_000, 1)))
    counts = np.bincount(np.asarray(seen[0]), minlength=100)
    assert len(counts) == 100 and counts.min() > 0
    # Chi-square with 99 degrees of freedom: mean 99, standard deviation 14.
    assert ((counts - 500) ** 2 / 500).sum() < 99 + 5 * 14


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="'l3'"):
        simple(silent, jax.random.key(0), jnp.zeros((4, 1)), norm="l3")


def test_no_key_is_used_twice(monkeypatch):
    used = []

    def recorded(draw):
        def record(key, *args, **options):
            used.append(key)
            return draw(key, *args, **options)

        return record

    monkeypatch.setattr(jax.random, "randint", recorded(jax.random.randint))
    monkeypatch.setattr(jax.random, "normal", recorded(jax.random.normal))

    def spy(params, x_t, t, cond, *, train, key):
        used.append(key)
        return x_t

    parent = jax.random.key(5)
    simple(spy, parent, jnp.zeros((4, 1)))
    words = {tuple(jax.random.key_data(key).tolist()) for key in (parent, *used)}
    assert len(used) == 3 and len(words) == 4


def test_the_condition_reaches_the_network():
    def echo(params, x_t, t, cond, *, train, key):
        return cond

    cond = jnp.full((4, 1), 3.0)
    loss = simple(echo, jax.random.key(0), cond, prediction="x0", cond=cond)
    assert float(loss) == 0


def test_the_loss_of_an_image_is_the_mean_over_its_own_pixels():
    x0 = jnp.stack([jnp.full((2, 3, 1), v) for v in (0.0, 1.0, 2.0)])
    loss = ask(
        losses.prediction_loss,
        silent,
        x0,
        jnp.zeros(3, jnp.int32),
        jnp.zeros_like(x0),
        prediction="x0",
    )
    np.testing.assert_allclose(loss, [0, 1, 4])


def test_the_simple_loss_of_one_number_that_is_known():
    """The loss of x_0 = 0.5 predicted as 0: 1/4 or, in L1, 1/2, at any t and noise."""
    x0 = jnp.full((8, 3), 0.5)
    for norm, expected in (("l2", 0.25), ("l1", 0.5)):
        loss = simple(silent, jax.random.key(0), x0, prediction="x0", norm=norm)
        assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_the_three_norms_by_hand():
    error = jnp.array([-3.0, -0.5, 0.0, 0.25, 2.0])
    for norm, expected in (
        ("l2", [9, 0.25, 0, 0.0625, 4]),
        ("l1", [3, 0.5, 0, 0.25, 2]),
        ("huber", [2.5, 0.125, 0, 0.03125, 1.5]),
    ):
        np.testing.assert_allclose(losses.Distance(norm).elementwise(error), expected)
    # Huber: e^2 / 2 up to delta, delta (|e| - delta / 2) beyond, of one slope at delta.
    found = losses.Distance("huber", 0.5).elementwise(error)
    np.testing.assert_allclose(found, [1.375, 0.125, 0, 0.03125, 0.875])
    slope = jax.vmap(jax.grad(lambda e: losses.Distance("huber", 0.5).elementwise(e)))
    np.testing.assert_allclose(slope(jnp.array([0.49, 0.51, -2.0])), [0.49, 0.5, -0.5])


DISTANCE = ("norm", "huber_delta", "weights")
LEARNED = (losses.variational_loss, losses.hybrid_loss)


def ask(loss, apply_fn, x0, t, noise, *, params=None, process=SCHEDULE, **options):
    """A loss of a network at given t and noise, with options of the model and the loss."""
    function = getattr(loss, "func", loss)
    options = {**getattr(loss, "keywords", {}), **options}
    prediction = "score" if function is losses.score_matching_loss else "eps"
    model = Model(
        process,
        options.pop("prediction", prediction),
        options.pop("variance", "learned" if function in LEARNED else "fixed_small"),
        apply_fn,
    )
    about = {name: options.pop(name) for name in DISTANCE if name in options}
    if about:
        options["distance"] = losses.Distance(**about)
    batch = Batch(x0, options.pop("cond", {}))
    return function(model, params, batch, Draw(t, noise), **options)


@pytest.fixture(scope="module")
def pixels():
    """(x0, t, noise) with every t once."""
    x0 = oracle.sample(PIXELS, jax.random.key(0), 100)
    noise = jax.random.normal(jax.random.key(1), x0.shape)
    return x0, jnp.arange(100), noise


def wrong(params, x_t, t, cond, *, train, key):
    """A network of some prediction and some variance output."""
    return jnp.concatenate([0.5 * x_t, jnp.sin(3 * x_t)], axis=-1)


def half(*args, **options):
    return wrong(*args, **options)[..., :2]


# Every loss of the module at given t and noise; LEARNED names those of two outputs.
LOSSES = [
    function
    for name, function in vars(losses).items()
    if name.endswith("_loss") and "draw" in inspect.signature(function).parameters
]


def network_of(loss):
    return wrong if loss in LEARNED else half


def dropping(loss):
    """A network with dropout of half of its outputs."""

    def apply_fn(params, x_t, t, cond, *, train, key):
        output = network_of(loss)(params, x_t, t, cond, train=train, key=key)
        if not train:
            return output
        return jnp.where(jax.random.bernoulli(key, 0.5, output.shape), 2 * output, 0)

    return apply_fn


def test_the_losses_are_those_that_are_documented():
    names = {loss.__name__ for loss in LOSSES}
    documented = {"prediction", "score_matching", "variational", "hybrid"}
    assert names >= {f"{name}_loss" for name in documented}


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_one_number_of_each_example_alone(loss, pixels):
    """Losses are float32 [B], the same with other examples beside each, and under jit."""
    found = ask(loss, network_of(loss), *pixels)
    assert found.shape == (100,) and found.dtype == jnp.float32
    assert np.isfinite(found).all()
    some = np.array([99, 3, 50])
    alone = ask(loss, network_of(loss), *(a[some] for a in pixels))
    np.testing.assert_allclose(alone, found[some], rtol=1e-5)
    compiled = jax.jit(lambda *args: ask(loss, network_of(loss), *args))(*pixels)
    np.testing.assert_allclose(compiled, found, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_the_mean_over_the_points_of_an_example(loss, shape):
    """Whatever the axes, an example is as many points (two channels) side by side."""
    num = math.prod(shape[:-1])
    x0 = oracle.sample(PIXELS, jax.random.key(0), 100 * num)
    noise, t = jax.random.normal(jax.random.key(1), x0.shape), jnp.arange(100)
    points = ask(loss, network_of(loss), x0, jnp.repeat(t, num), noise)
    x0, noise = (a.reshape(100, *shape) for a in (x0, noise))
    found = ask(loss, network_of(loss), x0, t, noise)
    np.testing.assert_allclose(found, points.reshape(100, num).mean(1), rtol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_moves_the_network_and_refuses_another_width(loss, pixels):
    def scaled(params, *args, **options):
        return params * network_of(loss)(params, *args, **options)

    def mean(scale):
        return ask(loss, scaled, *pixels, params=scale).mean()

    slope = jax.grad(mean)(jnp.float32(1.3))
    assert np.isfinite(slope) and slope != 0
    other = half if network_of(loss) is wrong else wrong
    with pytest.raises(ValueError, match="must have . channels"):
        ask(loss, other, *pixels)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("t", [-1, 100])
def test_no_loss_is_of_a_timestep_that_the_process_lacks(loss, t, pixels):
    x0, _, noise = (a[:2] for a in pixels)
    found = ask(loss, network_of(loss), x0, jnp.array([t, 3]), noise)
    assert np.isnan(found).tolist() == [True, False]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_fixed_key_switches_dropout_on(loss, pixels):
    """Each key has its own mask of dropout; without a key there is no dropout."""
    off = ask(loss, dropping(loss), *pixels)
    np.testing.assert_array_equal(off, ask(loss, network_of(loss), *pixels))
    on, again, other = (
        ask(loss, dropping(loss), *pixels, key=jax.random.key(seed)) for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(on, again)
    for a, b in ((on, off), (on, other), (other, off)):
        assert (np.asarray(a) != np.asarray(b)).mean() > 0.5


@pytest.mark.parametrize("loss", LOSSES)
def test_an_estimate_drops_out_in_training_alone(loss, pixels):
    """Dropout in a Monte Carlo loss has its own key, of neither t nor the noise."""
    batch, key = Batch(pixels[0]), jax.random.key(3)
    keys = []

    def loss_fn(batch, draw, *, key):
        keys.append(key)
        return ask(loss, dropping(loss), batch.x, draw.t, draw.noise, key=key)

    mean, (t, each) = losses.monte_carlo_loss(loss_fn, SCHEDULE, key, batch)
    still, (same_t, _) = losses.monte_carlo_loss(loss_fn, SCHEDULE, key, batch, train=False)
    np.testing.assert_array_equal(t, same_t)
    assert keys[1] is None and keys[0] in jax.random.split(key, 3)
    noise = jax.random.normal(jax.random.split(key, 3)[1], batch.x.shape)
    for found, dropout in ((mean, keys[0]), (still, None)):
        expected = ask(loss, dropping(loss), pixels[0], t, noise, key=dropout).mean()
        assert float(found) == pytest.approx(float(expected), rel=1e-6)
    assert float(mean) != float(still) and each.shape == (100,)


@pytest.mark.parametrize("train", [True, False])
def test_the_simple_loss_drops_out_unless_told_not_to(train, pixels):
    network, key = dropping(losses.prediction_loss), jax.random.key(2)
    found = simple(network, key, pixels[0], train=train)
    k_t, k_noise, k_dropout = jax.random.split(key, 3)
    t, _ = timestep_sampling.uniform_timesteps(k_t, 100, 100)
    noise = jax.random.normal(k_noise, pixels[0].shape)
    dropout = k_dropout if train else None
    expected = ask(losses.prediction_loss, network, pixels[0], t, noise, key=dropout)
    assert float(found) == pytest.approx(float(expected.mean()), rel=1e-6)
    if train:
        assert float(simple(network, key, pixels[0])) == float(found)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_network_is_told_all_that_the_loss_is_told(loss, pixels):
    told = {}

    def spy(params, x_t, t, cond, *, train, key):
        told.update(params=params, t=t, cond=cond, train=train, key=key)
        return network_of(loss)(params, x_t, t, cond, train=train, key=key)

    x0, t, noise = pixels
    ask(loss, spy, x0, t, noise, params="params", cond="cond", key="key")
    np.testing.assert_array_equal(told.pop("t"), t)
    assert told == {"params": "params", "cond": "cond", "train": True, "key": "key"}
    ask(loss, spy, x0, t, noise, params="params", cond="cond")
    assert told["train"] is False and told["key"] is None


def test_huber_turns_where_it_is_told_to():
    """The Huber loss of x_0 = 2 predicted as 0: delta (2 - delta / 2), in two losses."""
    x0, t = jnp.full((1, 2), 2.0), jnp.array([50])
    for loss, options in (
        (losses.prediction_loss, {}),
        (losses.hybrid_loss, {"variational_scale": 0.0}),
    ):
        width = 4 if options else 2
        found = ask(
            loss,
            lambda *_, width=width, **__: jnp.zeros((1, width)),
            x0,
            t,
            x0,
            prediction="x0",
            norm="huber",
            huber_delta=0.5,
            **options,
        )
        assert float(found[0]) == pytest.approx(0.875)


def test_weights_multiply_the_loss_of_their_timestep(pixels):
    table = np.linspace(1, 2, 100)
    plain = ask(losses.prediction_loss, half, *pixels)
    found = ask(losses.prediction_loss, half, *pixels, weights=table)
    np.testing.assert_allclose(found, table * plain, rtol=1e-6)


def test_score_matching_is_the_weighted_eps_loss(pixels):
    """Score matching is the eps loss, without weights if its own are 1 - alphas_cumprod."""

    def score_net(*args, **options):
        x_t, t = args[1], args[2]
        return parameterization.score_from_eps(SCHEDULE, x_t, t, half(*args, **options))

    eps = ask(losses.prediction_loss, half, *pixels)
    weights = 1 - SCHEDULE.alphas_cumprod
    found = ask(losses.score_matching_loss, score_net, *pixels, weights=weights)
    np.testing.assert_allclose(found, eps, rtol=1e-5)
    weights = loss_weighting.loss_weights(Model(SCHEDULE), "score_matching")
    eps = ask(losses.prediction_loss, half, *pixels, weights=weights)
    found = ask(losses.score_matching_loss, score_net, *pixels)
    np.testing.assert_allclose(found, eps, rtol=1e-5)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "score"])
def test_score_matching_of_any_model_is_its_own_loss_with_weights(kind, pixels):
    """Loss weights "score_matching" of each kind; for eps 1 / (1 - alphas_cumprod)."""
    found = ask(losses.score_matching_loss, half, *pixels, prediction=kind)
    table = loss_weighting.loss_weights(Model(SCHEDULE, kind), "score_matching")
    own = ask(losses.prediction_loss, half, *pixels, prediction=kind, weights=table)
    np.testing.assert_allclose(found, own, rtol=1e-3)
    if kind == "eps":
        weights = 1 - SCHEDULE.alphas_cumprod
        found = ask(
            losses.score_matching_loss, half, *pixels, prediction=kind, weights=weights
        )
        eps = ask(losses.prediction_loss, half, *pixels)
        np.testing.assert_allclose(found, eps, rtol=1e-5)


@pytest.mark.statistical
def test_score_matching_is_least_at_the_score_of_the_marginal():
    """The minimiser is grad log q(x_t), not that of the conditional (Vincent 2011)."""
    x0 = oracle.sample(PIXELS, jax.random.key(2), 20_000)
    noise, t = jax.random.normal(jax.random.key(3), x0.shape), jnp.full(20_000, 60)
    best = oracle.optimal_model(PIXELS, SCHEDULE, "score").apply_fn

    def loss(change):
        def apply_fn(params, x_t, t, cond, **options):
            return best(params, x_t, t, cond, **options) * (1 + change)

        return ask(losses.score_matching_loss, apply_fn, x0, t, noise).mean()

    assert loss(0.0) < loss(0.05) and loss(0.0) < loss(-0.05)


def test_the_variational_loss_is_t_times_the_term(pixels):
    x0, t, noise = pixels
    x_t = forward_process.q_sample(SCHEDULE, x0, t, noise)
    for kind in ("eps", "x0", "v"):
        for variance, network in (
            ("fixed_small", half),
            ("fixed_large", half),
            ("learned", wrong),
        ):
            model = Model(SCHEDULE, kind, variance, network)
            prediction = model.predict(None, x_t, t)
            x0_hat = parameterization.converted(
                SCHEDULE, kind, "x0", x_t, t, prediction.output
            )
            terms = variational_bound.variational_terms(prediction, x0, x0_hat)
            found = ask(
                losses.variational_loss,
                network,
                *pixels,
                prediction=kind,
                variance=variance,
            )
            np.testing.assert_allclose(found, 100 * terms, rtol=1e-6)


def test_the_hybrid_loss_is_the_sum_of_its_parts(pixels):
    table = np.linspace(1, 2, 100)
    simple = ask(losses.prediction_loss, half, *pixels, norm="huber", weights=table)
    bound = ask(losses.variational_loss, wrong, *pixels)
    found = ask(losses.hybrid_loss, wrong, *pixels, norm="huber", weights=table)
    np.testing.assert_allclose(found, simple + 0.001 * bound, rtol=1e-6)
    found = ask(losses.hybrid_loss, wrong, *pixels, variational_scale=0.3)
    simple = ask(losses.prediction_loss, half, *pixels)
    np.testing.assert_allclose(found, simple + 0.3 * bound, rtol=1e-6)


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_the_hybrid_loss_moves_the_mean_by_its_simple_part_alone(pixels, kind):
    """Gradients of the hybrid loss with respect to each of its two outputs.

    That of the prediction is exactly the simple loss's, as the bound's own is 0; that of
    the variances is exactly 0.001 times the bound's.
    """
    x0, t, noise = pixels
    x_t = forward_process.q_sample(SCHEDULE, x0, t, noise)
    output = wrong(None, x_t, t, None, train=False, key=None)

    def gradient(loss, given=output, **options):
        def total(output):
            return ask(
                loss, lambda *_, **__: output, *pixels, prediction=kind, **options
            ).sum()

        return np.asarray(jax.grad(total)(given))

    hybrid = gradient(losses.hybrid_loss)
    simple = gradient(losses.prediction_loss, output[:, :2])
    np.testing.assert_array_equal(hybrid[:, :2], simple)
    only_bound = gradient(losses.hybrid_loss, weights=np.zeros(100))
    np.testing.assert_array_equal(only_bound[:, :2], 0)
    bound = gradient(losses.variational_loss)
    np.testing.assert_allclose(hybrid[:, 2:], 0.001 * bound[:, 2:], rtol=1e-5, atol=1e-9)
    assert np.abs(bound[:, :2]).max() > 1 and np.abs(bound[:, 2:]).max() > 1


@pytest.mark.parametrize(
    "loss",
    [
        functools.partial(losses.prediction_loss, prediction="eps"),
        functools.partial(losses.prediction_loss, prediction="v", norm="huber"),
        functools.partial(losses.score_matching_loss),
    ],
)
def test_gradients_are_those_of_finite_differences(loss):
    x0 = jax.random.uniform(jax.random.key(0), (3, 2), minval=-1.0, maxval=1.0)
    noise, t = jax.random.normal(jax.random.key(1), x0.shape), jnp.array([20, 50, 90])

    def total(output):
        return ask(loss, lambda *_, **__: output, x0, t, noise).sum()

    check_grads(total, (0.3 * noise + 0.1,), order=1, modes=["rev"], rtol=1e-2)


def test_gradients_of_the_bound_are_those_of_finite_differences():
    """Gradients in float64, through mean and variance, at t = 0 (the bins) and beyond."""
    # Tables are read in float32, whatever the images are.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        x0 = jnp.asarray(PIXELS.means)
        t, noise = jnp.array([0, 7, 80]), jax.random.normal(jax.random.key(1), x0.shape)
        output = jnp.concatenate([noise + 0.05, 0.3 * noise], axis=1)

        def total(output):
            return ask(losses.variational_loss, lambda *_, **__: output, x0, t, noise).sum()

        check_grads(total, (output,), order=1, modes=["rev"], rtol=2e-3)


# Estimates over random t


def history():
    """Losses that differ by a factor of a hundred from one timestep to another."""
    state = timestep_sampling.empty_history(100)
    for _ in range(10):
        state = timestep_sampling.record_losses(
            state, jnp.arange(100), jnp.asarray(np.geomspace(1, 100, 100), jnp.float32)
        )
    return state


@pytest.mark.statistical
@pytest.mark.parametrize("name", timestep_sampling.TIMESTEP_SAMPLERS)
@pytest.mark.parametrize(
    ("loss", "network"),
    [
        (losses.prediction_loss, half),
        (losses.variational_loss, wrong),
        (losses.hybrid_loss, wrong),
    ],
)
def test_an_estimate_over_random_t_is_the_full_mean(loss, network, name):
    """Estimates at one x_0 and noise, with t alone random, within five standard errors."""
    x0, noise = jnp.asarray(PIXELS.means[:1], jnp.float32), jnp.array([[0.7, -1.1]])
    draw = {
        "uniform": timestep_sampling.uniform_timesteps,
        "stratified": timestep_sampling.stratified_timesteps,
        "loss_second_moment": lambda key, num, _: timestep_sampling.importance_timesteps(
            key, num, history()
        ),
    }[name]
    n = 64

    def loss_fn(_, draw, **options):
        t = draw.t
        same = [jnp.repeat(a, t.shape[0], axis=0) for a in (x0, noise)]
        return ask(loss, network, same[0], t, same[1])

    def estimate(key):
        return losses.monte_carlo_loss(
            loss_fn, SCHEDULE, key, Batch(jnp.zeros((n, 2))), draw_timesteps=draw
        )[0]

    found = np.asarray(jax.vmap(estimate)(jax.random.split(jax.random.key(4), 400)))
    every = loss_fn(x0, Draw(jnp.arange(100), noise))
    expected = np.asarray(every, np.float64).mean()
    assert abs(found.mean() - expected) < 5 * found.std() / 20 + 1e-5 * expected


@pytest.mark.statistical
def test_the_whole_bound_of_the_oracle_is_near_the_entropy():
    """The mean variational loss of the optimal network, plus L_T.

    The sum is not below the entropy of the data. Exact variances and 100 timesteps leave it
    within 0.1 bits of the entropy, fixed variances far away.
    """
    schedule = SCHEDULE
    data = oracle.discrete([[0], [90], [255]], [0.5, 0.2, 0.3])
    entropy = oracle.entropy(data) / math.log(2)
    n = 2000
    x0 = oracle.sample(data, jax.random.key(5), n)
    share = schedule.alphas_cumprod[-1]
    second = (data.weights[:, None] * data.means**2).sum()
    prior = 0.5 * (share * second - share - math.log1p(-share)) / math.log(2)

    @functools.partial(jax.jit, static_argnums=2)
    def bound(key, t, variance):
        model = oracle.optimal_model(data, schedule, "v", variance)
        noise = jax.random.normal(jax.random.fold_in(key, t), x0.shape)
        draw = Draw(jnp.full(n, t), noise)
        return losses.variational_loss(model, None, Batch(x0), draw).mean()

    found = {
        variance: prior
        + np.mean([float(bound(jax.random.key(6), t, variance)) for t in range(100)])
        for variance in parameterization.VARIANCES
    }
    assert entropy - 0.01 < found["learned"] < entropy + 0.1
    assert min(found["fixed_large"], found["fixed_small"]) > entropy + 0.5


def test_what_is_recorded_are_the_losses_without_importance_weights(pixels):
    x0 = pixels[0]

    def loss_fn(batch, draw, *, key):
        return 1.0 + draw.t.astype(jnp.float32)

    def draw(key, num, total):
        return jnp.arange(num), jnp.full(num, 3.0)

    mean, (t, found) = losses.monte_carlo_loss(
        loss_fn, SCHEDULE, jax.random.key(0), Batch(x0), draw_timesteps=draw
    )
    np.testing.assert_array_equal(found, np.arange(1, 101))
    np.testing.assert_array_equal(t, np.arange(100))
    assert float(mean) == pytest.approx(3 * 50.5)


def test_a_network_of_the_wrong_width_is_refused(pixels):
    for loss in (losses.hybrid_loss, losses.variational_loss):
        with pytest.raises(ValueError, match="must have 4 channels"):
            ask(loss, half, *pixels)
    with pytest.raises(ValueError, match="must have 2 channels"):
        ask(losses.prediction_loss, wrong, *pixels)
    with pytest.raises(ValueError, match="needs variance 'learned'; got 'fixed_small'"):
        ask(losses.hybrid_loss, half, *pixels, variance="fixed_small")


def test_zero_terminal_snr_trains_v_at_every_timestep():
    schedule = make_schedule(schedules.jsd_betas(10))
    x0 = jnp.full((10, 2), 0.5)
    loss = ask(
        losses.prediction_loss,
        silent,
        x0,
        jnp.arange(10),
        jnp.zeros_like(x0),
        prediction="v",
        process=schedule,
    )
    # v of x_0 without noise is -sqrt(1 - alphas_cumprod) x_0.
    np.testing.assert_allclose(loss, 0.25 * np.arange(1, 11) / 10, rtol=1e-6)
