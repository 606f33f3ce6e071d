"""The loss where its value is known: perfect, silent and Gaussian-optimal predictors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import losses, process
from diffusion_jax.schedules import linear_betas, make_schedule

SCHEDULE = make_schedule(linear_betas(100, 1e-3, 0.1))


def silent(params, x_t, t, cond, *, train, key):
    return jnp.zeros_like(x_t)


def test_a_perfect_predictor_has_no_loss():
    """One data point, x_0 = c: then eps, x_0 and v are known exactly from x_t."""
    c = 0.25

    def oracle(kind):
        def apply_fn(params, x_t, t, cond, *, train, key):
            x0 = jnp.full_like(x_t, c)
            eps = process.eps_from_x0(SCHEDULE, x_t, t, x0)
            return process.prediction_target(SCHEDULE, kind, x0, t, eps)

        return apply_fn

    x0 = jnp.full((256, 2, 2, 1), c)
    for kind in process.PREDICTION_TYPES:
        for norm in losses.NORMS:
            loss = losses.simple_loss(
                oracle(kind),
                None,
                SCHEDULE,
                jax.random.key(0),
                x0,
                prediction_type=kind,
                norm=norm,
            )
            assert float(loss) < 1e-5


@pytest.mark.parametrize(("norm", "expected"), [("l2", 1.0), ("l1", np.sqrt(2 / np.pi))])
def test_a_silent_predictor_of_eps_has_the_moments_of_the_normal(norm, expected):
    x0 = jnp.zeros((4096, 8))
    loss = losses.simple_loss(silent, None, SCHEDULE, jax.random.key(1), x0, norm=norm)
    assert float(loss) == pytest.approx(expected, abs=0.02)


def test_the_optimal_predictor_of_gaussian_data_has_the_known_loss():
    """x_0 ~ N(0, s^2): E|eps - E[eps|x_t]|^2 = a s^2 / (a s^2 + 1 - a) at each t."""
    s, n = 0.5, 1_000_000
    a = jnp.asarray(SCHEDULE.alphas_cumprod, jnp.float32)

    def optimal(params, x_t, t, cond, *, train, key):
        share = a[t][:, None]
        return jnp.sqrt(1 - share) / (share * s**2 + 1 - share) * x_t

    x0 = s * jax.random.normal(jax.random.key(2), (n, 1))
    loss = losses.simple_loss(optimal, None, SCHEDULE, jax.random.key(3), x0)
    share = SCHEDULE.alphas_cumprod
    expected = (share * s**2 / (share * s**2 + 1 - share)).mean()
    assert float(loss) == pytest.approx(expected, rel=0.02)  # Five standard errors.


def test_t_is_uniform_over_all_timesteps():
    """A predictor that reports t as its error shows the mean and the range of t."""
    seen = []

    def spy(params, x_t, t, cond, *, train, key):
        seen.append(t)
        return jnp.zeros_like(x_t)

    losses.simple_loss(spy, None, SCHEDULE, jax.random.key(4), jnp.zeros((50_000, 1)))
    counts = np.bincount(np.asarray(seen[0]), minlength=100)
    assert len(counts) == 100 and counts.min() > 0
    # Chi-square with 99 degrees of freedom: mean 99, standard deviation 14.
    assert ((counts - 500) ** 2 / 500).sum() < 99 + 5 * 14


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="'l3'"):
        losses.simple_loss(
            silent, None, SCHEDULE, jax.random.key(0), jnp.zeros((4, 1)), norm="l3"
        )


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
    losses.simple_loss(spy, None, SCHEDULE, parent, jnp.zeros((4, 1)))
    words = {tuple(jax.random.key_data(key).tolist()) for key in (parent, *used)}
    assert len(used) == 3 and len(words) == 4


def test_the_condition_reaches_the_network():
    def echo(params, x_t, t, cond, *, train, key):
        return cond

    cond = jnp.full((4, 1), 3.0)
    loss = losses.simple_loss(
        echo,
        None,
        SCHEDULE,
        jax.random.key(0),
        jnp.full((4, 1), 3.0),
        prediction_type="x0",
        cond=cond,
    )
    assert float(loss) == 0


def test_the_loss_of_an_image_is_the_mean_over_its_own_pixels():
    x0 = jnp.stack([jnp.full((2, 3, 1), v) for v in (0.0, 1.0, 2.0)])
    loss = losses.prediction_loss(
        lambda p, x, t, c, *, train, key: jnp.zeros_like(x),
        None,
        SCHEDULE,
        x0,
        jnp.zeros(3, jnp.int32),
        jnp.zeros_like(x0),
        prediction_type="x0",
    )
    np.testing.assert_allclose(loss, [0, 1, 4])
