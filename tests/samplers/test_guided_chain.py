"""Guided chains: against an ODE solver, closed forms, and the chains at their ends."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from diffusion_jax.diffusion import guidance, oracle
from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.noise_level import noise_level_at, variance_preserving
from diffusion_jax.diffusion.parameterization import x0_coefficients
from diffusion_jax.diffusion.schedules import (
    alphas_cumprod_at,
    times_at_log_snr,
)
from diffusion_jax.samplers import chain, methods
from diffusion_jax.samplers.thresholding import static_threshold
from helpers import SCHEDULE, run_table

MEANS = np.array([[-0.6, 0.1], [0.2, 0.5], [0.7, -0.4]])
VARIANCES = np.array([[0.2, 0.15], [0.14, 0.1], [0.13, 0.23]])
SHARES = np.array([0.5, 0.2, 0.3])
CLASSES = [oracle.gaussian(m, v) for m, v in zip(MEANS, VARIANCES, strict=True)]
WHOLE = oracle.mixture(SHARES, MEANS, VARIANCES)
LABELS = np.array([0, 1, 2, 0, 1, 2])
# Orders of the deterministic methods; that of UniPC is met in the limit alone.
ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpmpp_2m": 2, "dpmpp_3m": 3, "unipc": 2.6}


def labelled(prediction="v", shares=SHARES):
    """The optimal model of the mixture whose components are the classes."""
    whole = oracle.mixture(shares, MEANS, VARIANCES)
    models = [
        oracle.optimal_model(data, SCHEDULE, prediction) for data in (*CLASSES, whole)
    ]

    def apply_fn(params, x_t, t, cond, **options):
        outputs = jnp.stack([m.apply_fn(params, x_t, t) for m in models])
        return outputs[cond["label"], jnp.arange(len(x_t))]

    return Model(SCHEDULE, prediction, apply_fn=apply_fn)


MODEL = labelled()
GUIDED = guidance.by_label(MODEL, 3)
RENOISED = guidance.by_label(MODEL, 3, renoises_with_base=True)
SAMPLE = jax.jit(chain.sample_chain, static_argnums=(0, 4, 6))
NETWORK = jax.jit(lambda x, t, label: MODEL.apply_fn(None, x, t, {"label": label}))


def samples():
    return chain.Samples(jax.random.key(0), np.arange(6))


def cond_of(scale, label=LABELS):
    return {"label": label, "guidance": np.full(6, float(scale))}


def run(table, cond, guided=None, model=MODEL, params=None, **options):
    options = chain.ChainOptions(**{"hook": None, "guidance": guided, **options})
    return np.asarray(SAMPLE(model, params, table, samples(), (2,), cond, options)[0])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


# Against an ODE solver


def log_snr_times(count, first=990.0, last=20.0):
    ends = alphas_cumprod_at(SCHEDULE, np.array([first, last]))
    return times_at_log_snr(SCHEDULE, np.linspace(*np.log(ends / (1 - ends)), count + 1))


def denoised(data, x, s):
    """E[x_0 | x = x_0 + s noise] of a mixture, in NumPy."""
    error = x[None] - data.means
    total = data.variances + s**2
    log_p = np.log(data.weights) - 0.5 * (error**2 / total + np.log(total)).sum(1)
    share = np.exp(log_p - log_p.max())
    share = (share / share.sum())[:, None]
    return (share * (data.means + data.variances / total * error)).sum(0)


def solved(x, scale):
    """The end of the guided probability flow (EDM eq. 1) from x, at 1e-12."""
    share = alphas_cumprod_at(SCHEDULE, np.array([990.0, 20.0]))
    alpha, sbar = np.sqrt(share), np.sqrt((1 - share) / share)
    found = []
    for start, label in zip(x / alpha[0], LABELS, strict=True):

        def slope(log_s, y, label=label):
            s = np.exp(log_s)
            base, given = denoised(WHOLE, y, s), denoised(CLASSES[label], y, s)
            return y - (base + scale * (given - base))

        flow = solve_ivp(slope, np.log(sbar), start, "DOP853", rtol=1e-12, atol=1e-12)
        found.append(flow.y[:, -1])
    return np.array(found) * alpha[1]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ORDERS)
def test_a_guided_chain_approaches_the_ode_solution_at_its_order(name):
    """Each deterministic method, at several scales by one compiled program."""
    options = chain.ChainOptions(hook=None, guidance=GUIDED)
    first = methods.METHODS[name](MODEL, log_snr_times(2))
    x = np.asarray(chain.start_chain(first, samples(), (2,)).x)

    traces = []

    @jax.jit
    def sample(table, cond):
        traces.append(table.num_rows)
        end = chain.sample_chain(MODEL, None, table, samples(), (2,), cond, options)
        return end[0]

    for scale in (0.0, 1.0, 2.0, 4.0):
        wanted, errors = solved(x, scale), []
        for count in (80, 160):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                table = methods.METHODS[name](MODEL, log_snr_times(count))
            table = table.take(slice(0, -1)).padded(2 * 160 + 1)
            errors.append(np.abs(sample(table, cond_of(scale)) - wanted).max())
        assert np.log2(errors[0] / errors[1]) > ORDERS[name] - 0.1
        assert errors[1] < {1: 0.02, 2: 5e-4, 3: 3e-5}[round(ORDERS[name])]
    assert traces == [2 * 160 + 1]


# At the ends of the scale, and what is asked of the network


TIMES = [990.0, 850.5, 700.0, 450.25, 200.0, 90.0, 20.0]
EVERY = sorted(set(methods.METHODS) - {"langevin"})


def table_of(name, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return methods.METHODS[name](MODEL, TIMES, **options)


@pytest.mark.parametrize("name", EVERY)
def test_scales_1_and_0_are_the_conditional_and_the_unconditional_chain(name):
    table, guided = table_of(name), GUIDED
    for scale, label in ((1.0, LABELS), (0.0, np.full(6, 3))):
        found = run(table, cond_of(scale), guided)
        np.testing.assert_allclose(found, run(table, {"label": label}), atol=2e-5)


def counting(model, seen):
    """The model, which puts the sizes of the batches that it is asked into a list."""

    def apply_fn(params, x_t, t, cond, **options):
        jax.debug.callback(lambda: seen.append(len(x_t)))
        return model.apply_fn(params, x_t, t, cond, **options)

    return Model(SCHEDULE, model.prediction, apply_fn=apply_fn)


def sigma_of(table):
    return np.sqrt(table.level.sigma_squared / table.level.alpha_squared)


@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_the_interval_guides_its_rows_alone_and_the_others_ask_once(name):
    """(low, high]: as the guided chain where it holds all, as the other where none."""
    plain, seen = table_of(name), []
    model = counting(MODEL, seen)
    guided = guidance.by_label(model, 3, is_limited=True)
    sigma, cond = sigma_of(plain), cond_of(4.0)
    starts = ~np.append(False, plain.is_trial[:-1])  # The first row of each step.
    low, high = sigma[starts][3], sigma[starts][1]
    table = methods.with_interval(plain, low, high)
    assert table.is_guided[starts].tolist() == [False, True, True, *[False] * 4]
    trials = np.flatnonzero(plain.is_trial)
    np.testing.assert_array_equal(table.is_guided[trials], table.is_guided[trials + 1])
    found = run(table, cond, guided, model)
    jax.effects_barrier()
    assert seen == [12 if row else 6 for row in table.is_guided]
    everywhere = methods.with_interval(plain, 0.0, 1e9)
    nowhere = methods.with_interval(plain, 1e8, 1e9)
    np.testing.assert_allclose(
        run(everywhere, cond, guided, model), run(plain, cond, GUIDED), atol=2e-6
    )
    np.testing.assert_allclose(
        run(nowhere, cond, guided, model), run(plain, {"label": LABELS}), atol=2e-6
    )
    # In between: the guided rows take the scale, the others 1.
    scales = iter(np.where(table.is_guided, 4.0, 1.0))

    def network(x, t):
        x, t, scale = jnp.float32(x), jnp.full(6, t, jnp.float32), next(scales)
        base, given = (NETWORK(x, t, label) for label in (none, LABELS))
        return np.float64(base + scale * (given - base))

    none = np.full(6, 3)
    start = np.asarray(chain.start_chain(table, samples(), (2,)).x)
    looped = run_table(plain, network, start, np.zeros(table.num_rows))[-1]
    np.testing.assert_allclose(found, looped, atol=2e-5)


# CFG++


def pair_at(x, t):
    """D_c and D_u at one timestep, in NumPy."""
    x, times = jnp.float32(x), jnp.full(6, t, jnp.float32)
    both = (NETWORK(x, times, label) for label in (LABELS, np.full(6, 3)))
    level = variance_preserving(alphas_cumprod_at(SCHEDULE, np.array([t])))
    a, b = x0_coefficients("v", level)
    return [np.float64(a * np.asarray(x) + b * np.asarray(said)) for said in both]


def test_cfg_plus_plus_of_ddim_is_its_definition():
    """x' = alpha' (D_u + lambda (D_c - D_u)) + sigma' eps_u, both after the threshold."""
    table, scale = methods.with_base_noise(table_of("ddim")), 0.6
    found = run(table, cond_of(scale), RENOISED, hook=static_threshold)
    x = np.float64(chain.start_chain(table, samples(), (2,)).x)
    share = alphas_cumprod_at(SCHEDULE, np.array(TIMES))
    after = np.append(share[1:], 1.0)
    for t, a, b in zip(TIMES, share, after, strict=True):
        given, base = pair_at(x, t)
        mixed = np.clip(base + scale * (given - base), -1, 1)
        base = np.clip(base, -1, 1)
        eps = (x - np.sqrt(a) * base) / np.sqrt(1 - a)
        x = np.sqrt(b) * mixed + np.sqrt(1 - b) * eps
    np.testing.assert_allclose(found, x, atol=2e-5)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler", "dpmpp_2m", "dpmpp_3m"])
def test_cfg_plus_plus_with_lambda_0_is_the_unconditional_chain(name):
    """And with another lambda it is not; what is remembered is the base."""
    table = methods.with_base_noise(table_of(name))
    none = run(table, {"label": np.full(6, 3)})
    np.testing.assert_allclose(run(table, cond_of(0.0), RENOISED), none, atol=2e-6)
    assert np.abs(run(table, cond_of(0.5), RENOISED) - none).max() > 0.05


def test_cfg_plus_plus_of_2m_remembers_the_base():
    """The published form of DPM-Solver++ 2M, in NumPy: history and noise of D_u."""
    table, scale = methods.with_base_noise(table_of("dpmpp_2m")), 0.4
    found = run(table, cond_of(scale), guidance.by_label(MODEL, 3, renoises_with_base=True))
    share = alphas_cumprod_at(SCHEDULE, np.array(TIMES))
    sbar = np.append(np.sqrt((1 - share) / share), 0.0)
    x = np.float64(chain.start_chain(table, samples(), (2,)).x) / np.sqrt(share[0])
    h, old = None, None
    for i, t in enumerate(TIMES):
        given, base = pair_at(x * np.sqrt(share[i]), t)
        mixed, decay = base + scale * (given - base), sbar[i + 1] / sbar[i]
        bent = base
        if 0 < i < len(TIMES) - 1:
            r = h / np.log(sbar[i] / sbar[i + 1])
            bent = base + (base - old) / (2 * r)
        x = decay * x + (1 - decay) * bent + (mixed - base)
        h, old = np.log(sbar[i] / sbar[i + 1]) if sbar[i + 1] else None, base
    np.testing.assert_allclose(found, x, atol=3e-5)


# Autoguidance


def test_autoguidance_leads_away_from_the_guide():
    """D_g + s (D - D_g) with D_g another mixture's, against a loop in NumPy."""
    guide = labelled(shares=[0.1, 0.1, 0.8])
    table, none, scale = table_of("ddim"), np.full(6, 3), 2.5

    def scaled(model):  # Params are used, each model's own.
        def apply_fn(params, x_t, t, cond, **options):
            return params.astype(x_t.dtype) * model.apply_fn(None, x_t, t, cond)

        return Model(SCHEDULE, "v", apply_fn=apply_fn)

    guided = guidance.by_model(scaled(MODEL), scaled(guide))
    params = jnp.float32(1.1), jnp.float32(0.9)
    found = run(table, cond_of(scale, none), guided, params=params)

    @functools.partial(jax.jit, static_argnums=0)
    def asked(model, x, t):
        return model.apply_fn(None, x, t, {"label": none})

    def network(x, t):
        x, t = jnp.float32(x), jnp.full(6, t, jnp.float32)
        good, weak = (asked(m, x, t) for m in (MODEL, guide))
        return np.float64(0.9 * weak + scale * (1.1 * good - 0.9 * weak))

    start = np.asarray(chain.start_chain(table, samples(), (2,)).x)
    looped = run_table(table, network, start, np.zeros(table.num_rows))[-1]
    np.testing.assert_allclose(found, looped, atol=3e-5)


# Projected guidance over the rows


def test_the_momentum_of_projected_guidance_goes_from_row_to_row():
    """Algorithm 1 of the paper in NumPy, over a whole chain with an interval."""
    plain, scale, options = table_of("ddim"), 3.0, guidance.Projection(0.3, -0.5, 0.4)
    sigma = sigma_of(plain)
    table = methods.with_interval(plain, sigma[-2], sigma[0] - 1e-3)
    guided = guidance.by_label(MODEL, 3, projection=options, is_limited=True)
    found = run(table, cond_of(scale), guided)
    x, average = np.float64(chain.start_chain(table, samples(), (2,)).x), 0.0
    for i, t in enumerate(TIMES):
        given, base = pair_at(x, t)
        if table.is_guided[i]:
            average = given - base - 0.5 * average
            length = np.linalg.norm(average, axis=1, keepdims=True)
            difference = average * np.minimum(1, 0.4 / length)
            unit = given / np.linalg.norm(given, axis=1, keepdims=True)
            along = (difference * unit).sum(1, keepdims=True) * unit
            given = given + (scale - 1) * (difference - along + 0.3 * along)
        row = plain.take(i)
        x = row.to_x.x * x + row.to_x.x0 * given
    assert table.is_guided.tolist() == [False, *[True] * 4, False, False]
    np.testing.assert_allclose(found, x, atol=3e-5)


# Guidance by a function


def log_p_of_label(x, level, cond):
    """log p(label | x_t) of the mixture: the perfect classifier."""
    level = level.reshape(1)
    each = jnp.stack([oracle.log_density(data, x, level) for data in CLASSES])
    chosen = each[cond["label"], jnp.arange(len(x))]
    share = jnp.asarray(np.log(SHARES), x.dtype)[cond["label"]]
    return chosen + share - oracle.log_density(WHOLE, x, level)


UNLABELLED = oracle.optimal_model(WHOLE, SCHEDULE, "v")
CLASSIFIER = guidance.Prior(log_p_of_label, is_of_x0=False)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("name", ["ddim", "heun", "unipc", "ddpm"])
def test_a_perfect_classifier_guides_as_labels_do(name, scale):
    """score + s grad log p(c | x_t) is the score of classifier-free guidance: Bayes."""
    whole, prior = UNLABELLED, CLASSIFIER
    cond = {"label": LABELS, "prior_scale": np.full(6, scale)}
    table = table_of(name)
    found = run(table, cond, model=whole, prior=prior)
    wanted = run(table, cond_of(scale), GUIDED)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)
    without = run(table, cond, model=whole)
    assert np.abs(found - without).max() > 0.1


MEAN, COVARIANCE = np.array([0.2, -0.1]), np.array([[0.3, 0.2], [0.2, 0.25]])


def correlated():
    """The optimal model of a Gaussian whose coordinates are correlated."""

    def apply_fn(params, x_t, t, cond, **options):
        level = noise_level_at(SCHEDULE, t, x_t.dtype)
        a2, s2, alpha = level.alpha_squared[0], level.sigma_squared[0], level.alpha[0]
        error = x_t - alpha * MEAN[None]
        solved = jnp.linalg.solve(a2 * COVARIANCE + s2 * np.eye(2), error.T)
        return MEAN[None] + alpha * (COVARIANCE @ solved).T

    return Model(SCHEDULE, "x0", apply_fn=apply_fn)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc"])
def test_a_function_of_x0_leads_to_the_exact_posterior_of_a_gaussian(name):
    """The first coordinate is measured: mean and covariance, at the method's order.

    log p(y | x_t) is that of the predicted x_0 with its own variance. The chain is affine
    in its noise, so that three chains give its moments exactly.
    """
    y, noise = 0.7, 0.02

    def log_p(x0, level, cond):
        total = level.alpha_squared * COVARIANCE + level.sigma_squared * np.eye(2)
        left = COVARIANCE - level.alpha_squared * COVARIANCE @ jnp.linalg.solve(
            total, COVARIANCE
        )
        return -jnp.square(y - x0[:, 0]) / (2 * (noise + left[0, 0]))

    gain = COVARIANCE[:, 0] / (COVARIANCE[0, 0] + noise)
    mean = MEAN + gain * (y - MEAN[0])
    covariance = COVARIANCE - np.outer(gain, COVARIANCE[0])
    model, prior = correlated(), guidance.Prior(log_p, is_of_x0=True)
    starts = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    begin = chain.Start(jnp.asarray(starts), 0.0)
    options = chain.ChainOptions(hook=None, prior=prior)
    cond = {"prior_scale": np.ones(3)}

    @jax.jit
    def ends(table):
        three = chain.Samples(jax.random.key(0), np.arange(3), begin)
        return chain.sample_chain(model, None, table, three, (2,), cond, options)[0]

    errors = []
    for count in (40, 80):
        times = log_snr_times(count, 999.0, 0.0)
        table = methods.METHODS[name](model, times).padded(90)
        at_zero, *along = np.asarray(ends(table))
        map_ = np.stack(along, axis=1) - at_zero[:, None]
        level = variance_preserving(alphas_cumprod_at(SCHEDULE, times[:1]))
        noised = level.alpha_squared * covariance + level.sigma_squared * np.eye(2)
        end = at_zero + map_ @ (level.alpha * mean)
        off = np.abs(map_ @ noised @ map_.T - covariance).max()
        errors.append(np.abs(end - mean).max() + off)
    assert errors[1] < (0.01 if name == "ddim" else 1e-3), errors
    assert errors[1] < 0.7 * errors[0], errors


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_gradient_that_is_not_finite_is_not_hidden_by_a_threshold(value):
    def log_p(x, level, cond):
        return jnp.where(level.sigma_squared < 0.5, value, 1.0) * x.sum(axis=1)

    prior = guidance.Prior(log_p, is_of_x0=False)
    cond = {"label": LABELS, "prior_scale": np.ones(6)}
    found = run(table_of("ddim"), cond, prior=prior, hook=static_threshold)
    assert np.isnan(found).all()
