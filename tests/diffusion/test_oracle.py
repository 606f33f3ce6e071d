"""The oracle against numerical integration, its own density, and counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import forward_process, oracle, parameterization
from diffusion_jax.diffusion.model import Model, p_mean_log_variance
from diffusion_jax.diffusion.noise_level import noise_level_at
from diffusion_jax.diffusion.schedules import cosine_betas, linear_betas, make_schedule

SCHEDULE = make_schedule(linear_betas(1000))
DATA = {
    "gaussian": oracle.gaussian([0.3, -0.4], [0.04, 0.5]),
    "mixture": oracle.mixture(
        [1, 2, 3],
        [[0.5, -0.2], [-0.6, 0.3], [0.0, 0.9]],
        [[0.01, 0.2], [0.09, 0.04], [0.3, 0.02]],
    ),
    "points": oracle.discrete([[0, 30], [255, 128], [127, 127]], [0.5, 0.2, 0.3]),
}
STEPS = (0, 1, 20, 200, 600, 999)


# Real-valued t, as samplers have it


def test_between_timesteps_the_noise_level_is_that_of_the_schedule():
    """log alphas_cumprod is linear between timesteps; whole floats read as integers do."""
    with jax.enable_x64(True):
        times = np.array([0.0, 0.5, 20.0, 500.25, 998.9, 999.0])
        share = np.exp(np.interp(times, np.arange(1000), np.log(SCHEDULE.alphas_cumprod)))
        level = noise_level_at(SCHEDULE, jnp.asarray(times), jnp.float64)
        np.testing.assert_allclose(level.alpha, np.sqrt(share), rtol=1e-12)
        np.testing.assert_allclose(level.sigma, np.sqrt(1 - share), rtol=1e-9)
        for bad in (-0.1, 999.1):
            assert np.isnan(noise_level_at(SCHEDULE, jnp.float64(bad))).all()
    whole = noise_level_at(SCHEDULE, jnp.array([0, 20, 999]))
    for found, expected in zip(
        noise_level_at(SCHEDULE, jnp.array([0.0, 20.0, 999.0])), whole, strict=True
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    data = oracle.mixture([0.3, 0.7], [[-0.6], [0.5]], 0.01)
    network = oracle.optimal_model(data, SCHEDULE, "x0").apply_fn
    x, t = jnp.array([[0.4], [-0.2]]), jnp.full(2, 500)
    np.testing.assert_allclose(
        network(None, x, t * 1.0), network(None, x, t), rtol=1e-4, atol=1e-6
    )


def test_8_bit_levels_lie_on_the_grid():
    data = oracle.discrete([[0, 255], [51, 204]], [1, 3])
    np.testing.assert_allclose(data.means, [[-1, 1], [-0.6, 0.6]], rtol=1e-15)
    assert data.weights.tolist() == [0.25, 0.75] and data.is_discrete
    x0 = np.asarray(oracle.sample(data, jax.random.key(0), 64))
    assert {tuple(row) for row in x0} == {(-1, 1), (np.float32(-0.6), np.float32(0.6))}


def test_samples_of_a_gaussian_have_its_moments():
    """Mean and deviation within five standard errors, which are well below 1 % here."""
    n = 1_000_000
    x0 = np.asarray(oracle.sample(oracle.gaussian([3.0], 4.0), jax.random.key(0), n))
    assert abs(x0.mean() - 3) < 5 * 2 / np.sqrt(n)
    assert abs(x0.std() / 2 - 1) < 5 / np.sqrt(2 * n)


def test_the_likelihood_of_points_is_their_probability():
    data = DATA["points"]
    x0 = jnp.asarray(data.means, jnp.float32)
    found = oracle.negative_log_likelihood(data, x0)
    np.testing.assert_allclose(np.exp(-found), [0.5, 0.2, 0.3], rtol=1e-6)
    assert oracle.negative_log_likelihood(data, x0[::-1] * 0 + 0.5)[0] == np.inf
    mean = (np.array([0.5, 0.2, 0.3]) * np.asarray(found)).sum()
    assert oracle.entropy(data) == pytest.approx(mean, rel=1e-6)
    with pytest.raises(ValueError, match="discrete"):
        oracle.entropy(DATA["mixture"])


def test_the_likelihood_of_a_mixture_is_its_density():
    """The likelihood integrates to 1 over a grid; at a Gaussian's mean it is known."""
    data = DATA["mixture"]
    axis = np.linspace(-4, 4, 801)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    density = np.exp(-np.asarray(oracle.negative_log_likelihood(data, jnp.asarray(grid))))
    assert density.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=1e-4)
    found = oracle.negative_log_likelihood(DATA["gaussian"], jnp.array([[0.3, -0.4]]))
    assert float(found[0]) == pytest.approx(0.5 * np.log((2 * np.pi) ** 2 * 0.02), abs=1e-5)


@pytest.fixture(scope="module", params=DATA)
def data(request):
    return DATA[request.param]


def noised(data, num=64):
    """x_t at every timestep of STEPS, and t; float32."""
    x0 = oracle.sample(data, jax.random.key(0), num * len(STEPS))
    t = jnp.repeat(jnp.array(STEPS), num)
    noise = jax.random.normal(jax.random.key(1), x0.shape)
    return forward_process.q_sample(SCHEDULE, x0, t, noise), t


def test_the_score_is_the_gradient_of_the_log_density(data):
    x_t, t = noised(data)
    with jax.enable_x64(True):
        x_t = jnp.asarray(x_t, jnp.float64)
        level = noise_level_at(SCHEDULE, t, jnp.float64)

        def log_density(x, level):
            return oracle.log_density(data, x[None], level)[0]

        gradient = jax.vmap(jax.grad(log_density))(x_t, level)
        found = oracle.score(data, x_t, level)
        assert found.dtype == jnp.float64
        scale = np.abs(gradient).max(axis=1, keepdims=True)
        np.testing.assert_allclose(found / scale, gradient / scale, atol=1e-10)


def test_eps_x0_v_and_score_say_the_same(data):
    """Forms of the oracle agree by `parameterization`, within the documented rounding."""
    x_t, t = noised(data)
    level = noise_level_at(SCHEDULE, t)
    eps, v = oracle.eps_mean(data, x_t, level), oracle.v_mean(data, x_t, level)
    x0, _ = oracle.x0_mean_variance(data, x_t, level)
    sigma = np.asarray(level.sigma)[:, None]
    np.testing.assert_allclose(
        parameterization.x0_from_v(SCHEDULE, x_t, t, v), x0, atol=3e-6
    )
    np.testing.assert_allclose(
        parameterization.eps_from_v(SCHEDULE, x_t, t, v), eps, atol=3e-6
    )
    found = parameterization.eps_from_x0(SCHEDULE, x_t, t, x0)
    assert (np.abs(found - eps) * sigma).max() < 3e-6
    found = parameterization.score_from_eps(SCHEDULE, x_t, t, eps)
    assert (np.abs(found - oracle.score(data, x_t, level)) * sigma).max() < 3e-6


@pytest.mark.parametrize("schedule", [SCHEDULE, make_schedule(cosine_betas(50))])
@pytest.mark.parametrize("step", [0, 1, 5, 25, 48])
def test_means_and_variances_are_those_of_bayes_by_integration(schedule, step):
    """1-D: p(x_0) q(x_t | x_0), and p(x_{t-1}) q(x_t | x_{t-1}), summed on a grid.

    p(x_{t-1}) is itself taken from the chain of betas, not from the oracle.
    """
    weights, means, variances = [0.3, 0.7], np.array([-0.5, 0.4]), np.array([0.02, 0.1])
    data = oracle.mixture(weights, means[:, None], variances[:, None])
    share = np.prod(1 - schedule.betas[: step + 1])
    before, beta = np.prod(1 - schedule.betas[:step]), schedule.betas[step]
    grid = np.linspace(-8, 8, 320_001)

    def density(scale, added):
        variance = scale * variances + added
        each = np.exp(-((grid[:, None] - np.sqrt(scale) * means) ** 2) / (2 * variance))
        return (each / np.sqrt(2 * np.pi * variance)) @ np.array(weights)

    def moments(weight):
        weight = weight / weight.sum()
        mean = (weight * grid).sum()
        return mean, (weight * (grid - mean) ** 2).sum()

    with jax.enable_x64(True):
        for x_t in (-0.9, 0.05, 1.3):
            x, t = jnp.full((1, 1), x_t, jnp.float64), jnp.array([step])
            level = noise_level_at(schedule, t, jnp.float64)
            likelihood = np.exp(-((x_t - np.sqrt(share) * grid) ** 2) / (2 * (1 - share)))
            found = oracle.x0_mean_variance(data, x, level)
            expected = moments(density(1.0, 0.0) * likelihood)
            np.testing.assert_allclose(np.ravel(found), expected, rtol=1e-6, atol=1e-9)
            likelihood = np.exp(-((x_t - np.sqrt(1 - beta) * grid) ** 2) / (2 * beta))
            found = oracle.previous_mean_variance(data, schedule, x, t)
            expected = moments(density(before, 1 - before) * likelihood)
            np.testing.assert_allclose(np.ravel(found), expected, rtol=1e-6, atol=1e-9)
            marginal = density(share, 1 - share)
            log_density = oracle.log_density(data, x, level)
            at_x_t = np.log(np.interp(x_t, grid, marginal))
            np.testing.assert_allclose(log_density, at_x_t, atol=1e-6)


def test_the_mean_over_x_t_of_the_posterior_mean_is_the_mean_of_the_data():
    """Laws of total mean and variance, in 1-D by integration over x_t."""
    data = oracle.mixture([1, 3], [[-0.5], [0.4]], [[0.02], [0.1]])
    grid = np.linspace(-7, 7, 4001)[:, None]
    with jax.enable_x64(True):
        grid = jnp.asarray(grid, jnp.float64)
        for t in (10, 300, 900):
            level = noise_level_at(SCHEDULE, jnp.array([t]), jnp.float64)
            density = np.exp(oracle.log_density(data, grid, level))
            density /= density.sum()
            mean, variance = (
                np.asarray(m)[:, 0] for m in oracle.x0_mean_variance(data, grid, level)
            )
            whole = -0.25 * 0.5 + 0.75 * 0.4
            assert (density * mean).sum() == pytest.approx(whole, abs=1e-9)
            second = 0.25 * (0.02 + 0.25) + 0.75 * (0.1 + 0.16)
            total = (density * (variance + mean**2)).sum()
            assert total == pytest.approx(second, abs=1e-9)


@pytest.mark.statistical
def test_samples_have_the_moments_of_the_mixture(data):
    n = 40_000
    x0 = np.asarray(oracle.sample(data, jax.random.key(3), n), np.float64)
    w = data.weights[:, None]
    mean = (w * data.means).sum(axis=0)
    variance = (w * (data.variances + (data.means - mean) ** 2)).sum(axis=0)
    assert (np.abs(x0.mean(axis=0) - mean) < 5 * np.sqrt(variance / n)).all()
    np.testing.assert_allclose(x0.var(axis=0), variance, rtol=0.06)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "score"])
def test_the_oracle_stands_in_for_a_network(data, kind):
    x_t, t = noised(data, 4)
    level = noise_level_at(SCHEDULE, t)
    network = oracle.optimal_model(data, SCHEDULE, kind, "learned").apply_fn
    output = network(None, x_t, t, None, train=True, key=None)
    alone = oracle.optimal_model(data, SCHEDULE, kind).apply_fn(None, x_t, t)
    np.testing.assert_array_equal(output[:, :2], alone)
    expected = {
        "eps": oracle.eps_mean(data, x_t, level),
        "x0": oracle.x0_mean_variance(data, x_t, level)[0],
        "v": oracle.v_mean(data, x_t, level),
        "score": oracle.score(data, x_t, level),
    }[kind]
    np.testing.assert_array_equal(alone, expected)
    # The learned variance of the reverse step is the exact one.
    x0, _ = oracle.x0_mean_variance(data, x_t, level)
    prediction = oracle.optimal_model(data, SCHEDULE, kind, "learned").predict(None, x_t, t)
    mean, log_variance = p_mean_log_variance(prediction, x0)
    exact_mean, exact = oracle.previous_mean_variance(data, SCHEDULE, x_t, t)
    np.testing.assert_allclose(mean, exact_mean, atol=1e-5)
    np.testing.assert_allclose(log_variance, np.log(np.maximum(exact, 1e-12)), atol=2e-4)
    # Variances are the same at whole timesteps in float32, and nan between two.
    real = network(None, x_t, t.astype(jnp.float32), None)
    np.testing.assert_array_equal(real[:, 2:], output[:, 2:])
    assert np.isnan(network(None, x_t, t.astype(jnp.float32) + 0.5, None)[:, 2:]).all()


@pytest.mark.parametrize("variance", ["fixed_small", "learned"])
@pytest.mark.parametrize("kind", ["eps", "x0", "v", "score"])
def test_a_prediction_of_the_optimal_model_is_the_truth_in_all_four_forms(
    data, kind, variance
):
    """Forms with the bits of the conversion functions, near the closed form.

    The timesteps are those where both the signal and the noise are a fair part of x_t.
    """
    x_t, t = noised(data, 4)
    x_t, t = x_t[(t >= 20) & (t <= 600)], t[(t >= 20) & (t <= 600)]
    level = noise_level_at(SCHEDULE, t)
    found = oracle.optimal_model(data, SCHEDULE, kind, variance).predict(None, x_t, t)
    true = {
        "eps": oracle.eps_mean(data, x_t, level),
        "x0": oracle.x0_mean_variance(data, x_t, level)[0],
        "v": oracle.v_mean(data, x_t, level),
        "score": oracle.score(data, x_t, level),
    }
    for name, expected in true.items():
        form = getattr(found, name)
        if name == kind:
            np.testing.assert_array_equal(form, expected)
        else:
            convert = getattr(parameterization, f"{name}_from_{kind}")
            np.testing.assert_array_equal(form, convert(SCHEDULE, x_t, t, found.output))
        np.testing.assert_allclose(form, expected, atol=2e-4)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "score"])
def test_of_a_single_point_the_optimal_model_knows_x0_and_the_noise(kind):
    """Forms for data of one point are those of the draw itself, the losses' targets."""
    data = oracle.discrete([[30, 200]], [1.0])
    t = jnp.array([20, 200, 600])
    x0 = oracle.sample(data, jax.random.key(0), 3)
    noise = jax.random.normal(jax.random.key(1), x0.shape)
    x_t = forward_process.q_sample(SCHEDULE, x0, t, noise)
    found = oracle.optimal_model(data, SCHEDULE, kind).predict(None, x_t, t)
    for name in ("eps", "x0", "v", "score"):
        target = Model(SCHEDULE, name).target(x0, t, noise)
        np.testing.assert_allclose(getattr(found, name), target, atol=2e-4)


@pytest.mark.parametrize("t", [-1, 1000])
def test_t_out_of_range_gives_nan(t):
    model = oracle.optimal_model(DATA["mixture"], SCHEDULE, "eps", "learned")
    found = model.apply_fn(None, jnp.zeros((1, 2)), jnp.array([t]))
    assert np.isnan(found).all()


def test_images_are_data_of_any_shape():
    levels = np.arange(5 * 2 * 3).reshape(5, 2, 3, 1)
    data = oracle.discrete(levels, np.ones(5))
    x_t = jax.random.normal(jax.random.key(0), (7, 2, 3, 1))
    t = jnp.full(7, 500)
    flat = oracle.discrete(levels.reshape(5, 6), np.ones(5))
    for kind in ("eps", "x0", "v"):
        found = oracle.optimal_model(data, SCHEDULE, kind).apply_fn(None, x_t, t)
        expected = oracle.optimal_model(flat, SCHEDULE, kind).apply_fn(
            None, x_t.reshape(7, 6), t
        )
        np.testing.assert_array_equal(found, expected.reshape(x_t.shape))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: oracle.mixture([1.0], [[0.0], [1.0]], 1.0), r"\[K\] and \[K, D...\]"),
        (lambda: oracle.mixture([1, 0], [[0.0], [1.0]], 1.0), "weights .* above 0"),
        (lambda: oracle.mixture([1, 1], [[0.0], [1.0]], [[0.0], [1.0]]), "all be above 0"),
        (lambda: oracle.mixture([1, 1], [[0.0], [1.0]], -1.0), "all be above 0"),
        (lambda: oracle.mixture([1], [[np.inf]], 1.0), "finite"),
        (lambda: oracle.discrete([[256]], [1]), "0 .. 255"),
        (lambda: oracle.discrete(np.zeros((0, 2), int), []), "K"),
        (lambda: oracle.mixture([], np.zeros((0, 2)), 1.0), "K"),
        (lambda: oracle.mixture([1], [[0.0, 1.0]], [1, 2, 3]), "must broadcast to"),
        (lambda: oracle.discrete([[0.5]], [1]), "0 .. 255"),
        (lambda: oracle.discrete([[3], [3]], [1, 1]), "once"),
        (lambda: oracle.optimal_model(DATA["points"], SCHEDULE, "noise"), "'noise'"),
    ],
)
def test_bad_data_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
