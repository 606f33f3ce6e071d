"""Weightings: one loss whatever is predicted, and the values that the papers give."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import loss_weighting, losses, parameterization, schedules
from diffusion_jax.diffusion.batch import Batch, Draw
from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.schedules import linear_betas, make_schedule

T = 1000
SCHEDULE = make_schedule(linear_betas(T))
# SNR by the definition of alphas_cumprod.
SNR = np.array([np.prod(1 - SCHEDULE.betas[: t + 1]) for t in range(T)])
SNR = SNR / (1 - SNR)


def weights(name, prediction, *, variance="fixed_small", **options):
    model = Model(SCHEDULE, prediction, variance)
    parameters = loss_weighting.Parameters(**options)
    return loss_weighting.loss_weights(model, name, parameters)


def target(kind, x0, t, noise):
    return Model(SCHEDULE, kind).target(x0, t, noise)


# Weightings of the error of what is predicted; all others are of that of x_0.
OF_THE_PREDICTION = ("simple",)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "score"])
@pytest.mark.parametrize("name", loss_weighting.WEIGHTINGS)
def test_every_weighting_is_a_table_of_positive_numbers(name, kind):
    """One loss weight for each timestep of any process, in float64 on the host."""
    short = make_schedule(linear_betas(10, 0.01, 0.9))
    for process in (SCHEDULE, make_schedule(schedules.cosine_betas(50)), short):
        for variance in ("fixed_small", "fixed_large"):
            model = Model(process, kind, variance)
            found = loss_weighting.loss_weights(model, name)
            assert isinstance(found, np.ndarray) and found.dtype == np.float64
            assert found.shape == (process.num_timesteps,)
            assert np.isfinite(found).all() and (found > 0).all()
            given = loss_weighting.PAPERS
            np.testing.assert_array_equal(
                loss_weighting.loss_weights(model, name, given), found
            )


@pytest.mark.parametrize(
    "name", [name for name in loss_weighting.WEIGHTINGS if name not in OF_THE_PREDICTION]
)
def test_a_weighting_is_the_same_loss_whatever_is_predicted(name):
    """Weighted errors of a wrong x_0 agree, given as eps, x0, v or score."""
    x0 = jax.random.uniform(jax.random.key(0), (6, 5), minval=-1.0, maxval=1.0)
    noise, t = (
        jax.random.normal(jax.random.key(1), x0.shape),
        jnp.array([0, 3, 90, 400, 700, 999]),
    )

    def guess(kind):
        def apply_fn(params, x_t, t, cond, *, train, key):
            v = 0.7 * target("v", x0, t, noise)
            if kind == "v":
                return v
            return getattr(parameterization, f"{kind}_from_v")(SCHEDULE, x_t, t, v)

        return apply_fn

    found = [
        losses.prediction_loss(
            Model(SCHEDULE, kind, apply_fn=guess(kind)),
            None,
            Batch(x0),
            Draw(t, noise),
            distance=losses.Distance(weights=weights(name, kind)),
        )
        for kind in ("eps", "x0", "v", "score")
    ]
    np.testing.assert_allclose(found[0], found[2], rtol=1e-3)
    np.testing.assert_allclose(found[1], found[2], rtol=1e-3)
    np.testing.assert_allclose(found[3], found[2], rtol=1e-3)


def test_simple_is_1_for_all():
    for kind in parameterization.PREDICTION_TYPES:
        np.testing.assert_array_equal(weights("simple", kind), np.ones(T))


def test_snr_is_the_plain_eps_loss():
    np.testing.assert_allclose(weights("snr", "eps"), 1, rtol=1e-12)
    np.testing.assert_allclose(weights("snr", "x0"), SNR, rtol=1e-9)


def test_truncated_snr_is_the_larger_of_the_two_losses():
    """Truncated SNR is max(eps-MSE, x-MSE), Salimans & Ho section 4."""
    np.testing.assert_allclose(weights("truncated_snr", "eps"), np.maximum(1, 1 / SNR))
    np.testing.assert_allclose(weights("truncated_snr", "x0"), np.maximum(SNR, 1))


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_is_right_for_each_prediction(gamma):
    """The three forms of min-SNR, written out (Hang et al. 2023, section 3.4, appendix)."""
    for kind, expected in (
        ("eps", np.minimum(SNR, gamma) / SNR),
        ("x0", np.minimum(SNR, gamma)),
        ("v", np.minimum(SNR, gamma) / (SNR + 1)),
    ):
        np.testing.assert_allclose(weights("min_snr", kind, min_snr_gamma=gamma), expected)
    assert weights("min_snr", "v", min_snr_gamma=gamma).max() <= gamma / (gamma + 1) + 1e-12


def test_p2_divides_the_eps_loss():
    """P2 is 1 / (k + SNR)^gamma on eps (Choi et al. 2022, eq. 8 over DDPM's own weight)."""
    found = weights("p2", "eps", p2_gamma=0.5, p2_k=2.0)
    np.testing.assert_allclose(found, (2 + SNR) ** -0.5, rtol=1e-9)
    np.testing.assert_allclose(weights("p2", "eps"), 1 / (1 + SNR), rtol=1e-9)
    np.testing.assert_allclose(weights("p2", "eps", p2_gamma=0.0), 1, rtol=1e-9)


def test_the_variational_weight_is_half_the_fall_of_snr():
    """The weight T / 2 (SNR(t-1) - SNR(t)) on x_0, in bits (Kingma et al. 2021, eq. 14)."""
    fall = -np.diff(SNR) / 2 * T / np.log(2)
    np.testing.assert_allclose(weights("variational", "x0")[1:], fall, rtol=1e-8)
    second = SCHEDULE.betas[1] * SCHEDULE.betas[0] / (1 - np.prod(1 - SCHEDULE.betas[:2]))
    first = T / (2 * second) / np.log(2)  # x_0's own density, with the variance of t = 1.
    assert weights("variational", "x0")[0] == pytest.approx(first, rel=1e-9)


def test_the_variational_weight_of_large_variances_is_that_of_ddpm():
    """DDPM eq. 12: beta^2 / (2 sigma^2 alpha (1 - alpha-bar)) on eps, sigma^2 = beta."""
    share = np.array([np.prod(1 - SCHEDULE.betas[: t + 1]) for t in range(T)])
    expected = SCHEDULE.betas / (2 * (1 - SCHEDULE.betas) * (1 - share)) * T / np.log(2)
    found = weights("variational", "eps", variance="fixed_large")
    np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-8)
    np.testing.assert_allclose(
        found[0], weights("variational", "eps", variance="fixed_small")[0]
    )


@pytest.mark.parametrize("bias", [-3.0, 0.0, 2.0])
def test_sigmoid_multiplies_the_bound(bias):
    """Kingma & Gao's sigmoid(bias - log SNR); in the limit of many timesteps SiD2's.

    Hoogeboom et al. 2024, eq. 4: on x_0, -1/2 dlogSNR/du e^b sigmoid(log SNR - b).
    """
    found = weights("sigmoid", "x0", sigmoid_bias=bias)
    bound = weights("variational", "x0")
    log_snr = np.log(SNR)
    np.testing.assert_allclose(found, bound / (1 + np.exp(log_snr - bias)), rtol=1e-8)
    slope = np.gradient(log_snr) * T
    limit = -0.5 * slope * np.exp(bias) / (1 + np.exp(bias - log_snr)) / np.log(2)
    np.testing.assert_allclose(found[100:-1], limit[100:-1], rtol=0.03)


def test_the_score_matching_weight_is_that_of_the_scores_error():
    share = SNR / (1 + SNR)
    np.testing.assert_allclose(weights("score_matching", "eps"), 1 / (1 - share), rtol=1e-9)


def test_the_defaults_are_those_of_the_papers():
    for name, options in (
        ("min_snr", {"min_snr_gamma": 5.0}),
        ("p2", {"p2_gamma": 1.0, "p2_k": 1.0}),
        ("sigmoid", {"sigmoid_bias": 0.0}),
    ):
        np.testing.assert_array_equal(weights(name, "v"), weights(name, "v", **options))
        function = getattr(loss_weighting, f"{name}_weights")
        np.testing.assert_array_equal(weights(name, "x0"), function(SCHEDULE))


def test_at_zero_terminal_snr_v_and_x0_have_weights_and_eps_has_none():
    schedule = make_schedule(schedules.jsd_betas(10))
    for name in loss_weighting.WEIGHTINGS:
        for kind in ("x0", "v"):
            assert np.isfinite(
                loss_weighting.loss_weights(Model(schedule, kind), name)
            ).all()
        for kind in ("eps", "score"):
            if name != "simple":
                with pytest.raises(ValueError, match=f"'{kind}' has no .*predict v or x0"):
                    loss_weighting.loss_weights(Model(schedule, kind), name)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("minsnr", {}, "'minsnr' is unknown.*min_snr"),
        ("min_snr", {"min_snr_gamma": 0.0}, r"min_snr_gamma \(0.0\) must be above 0"),
        ("min_snr", {"min_snr_gamma": float("nan")}, r"min_snr_gamma \(nan\)"),
        ("p2", {"p2_gamma": -1.0}, r"p2_gamma \(-1.0\)"),
        ("p2", {"p2_k": 0.0}, r"p2_k \(0.0\)"),
        ("p2", {"p2_k": 1e12, "p2_gamma": 100.0}, "beyond float32"),
        ("p2", {"p2_k": 1e-9, "p2_gamma": 10.0}, "beyond float32"),
        ("variational", {"variance": "learned"}, "learned"),
        ("variational", {"variance": "huge"}, "'huge'"),
    ],
)
def test_bad_parameters_are_refused(name, options, said):
    with pytest.raises(ValueError, match=said):
        weights(name, "eps", **options)
    with pytest.raises(ValueError, match="'noise'"):
        weights("simple", "noise")


@pytest.mark.parametrize(
    ("betas", "kind"), [(linear_betas(T), "eps"), (schedules.jsd_betas(10), "v")]
)
def test_p2_weights_that_overflow_are_refused_by_their_fields_alone(betas, kind):
    """Infinite weights, and weights that are not a number, without a NumPy warning."""
    parameters = loss_weighting.Parameters(p2_gamma=100.0, p2_k=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Model(make_schedule(betas), kind)
        with pytest.raises(ValueError, match=r"change p2_gamma \(100\) or p2_k \(1e-06\)$"):
            loss_weighting.loss_weights(model, "p2", parameters)


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_the_weighted_loss_is_the_bound_of_fixed_small_variances(kind):
    """The weighted loss of each image is `variational_loss`'s divergence, for t >= 1."""
    x0 = jnp.round(jax.random.uniform(jax.random.key(0), (5, 8)) * 255) / 127.5 - 1
    t, noise = (
        jnp.array([1, 5, 100, 500, 900]),
        jax.random.normal(jax.random.key(1), (5, 8)),
    )

    def apply_fn(params, x_t, t, cond, *, train, key):
        return 0.8 * target(kind, x0, t, noise)

    for variance in ("fixed_small", "fixed_large"):
        model = Model(SCHEDULE, kind, variance, apply_fn)
        args = (model, None, Batch(x0), Draw(t, noise))
        table = weights("variational", kind, variance=variance)
        distance = losses.Distance(weights=table)
        weighted = losses.prediction_loss(*args, distance=distance)
        bound = losses.variational_loss(*args)
        if variance == "fixed_large":  # KL of two variances alone, the same for all x_0.
            ratio = SCHEDULE.posterior_variance / SCHEDULE.betas
            alone = 0.5 * (ratio[1:] - 1 - np.log(ratio[1:])) * T / np.log(2)
            bound = bound - alone[np.asarray(t) - 1]
        np.testing.assert_allclose(bound, weighted, rtol=2e-3, atol=1e-7)
