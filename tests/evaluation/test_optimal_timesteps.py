"""auto:K against brute force, the divergences that it adds up, and the bound itself."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import oracle
from diffusion_jax.diffusion.batch import Batch, Draw
from diffusion_jax.diffusion.forward_process import q_sample
from diffusion_jax.diffusion.model import Model, Prediction
from diffusion_jax.diffusion.parameterization import x0_from_eps
from diffusion_jax.diffusion.schedules import linear_betas, make_schedule, respaced
from diffusion_jax.diffusion.variational_bound import prior_term, variational_terms
from diffusion_jax.evaluation import optimal_timesteps as best
from diffusion_jax.evaluation.bound import Bound, standard_error
from diffusion_jax.evaluation.timestep_scan import TimestepScan
from diffusion_jax.samplers.timesteps import ddim_quadratic_timesteps, linspace_timesteps
from helpers import DATA, SCHEDULE, images, mesh_of

VARIANCES = ["fixed_small", "fixed_large", "learned"]


def cost_of(path, costs, last, first):
    """Cost of rising timesteps: the sum as it stands in the bound."""
    steps = sum(costs[s, t] for s, t in itertools.pairwise(path))
    return last[path[0], path[min(1, len(path) - 1)]] + steps + first[path[-1]]


@pytest.mark.parametrize("num", range(1, 13))
def test_the_dynamic_programme_is_brute_force(num):
    """The best of all subsets of 12 timesteps, with costs that are no schedule's."""
    rng = np.random.default_rng(num)
    last, first = rng.exponential(size=(12, 12)), rng.exponential(size=12)
    costs = np.where(
        np.triu(np.ones((12, 12)), 1) > 0, rng.exponential(size=(12, 12)), np.inf
    )
    found, total = best.best_timesteps(costs, last, first, num)
    paths = list(itertools.combinations(range(12), num))
    every = [cost_of(path, costs, last, first) for path in paths]
    assert total == pytest.approx(min(every), rel=1e-12)
    np.testing.assert_array_equal(found[::-1], paths[int(np.argmin(every))])


def predicted_by(model, x_t, t, output, variance_output):
    """The prediction of a network with this output, and this variance if it is learned."""
    between = jnp.asarray(variance_output, jnp.float32)
    learned = model.variance == "learned"
    return Prediction(model, x_t, t, jnp.asarray(output), between if learned else None)


@pytest.mark.parametrize("variance", VARIANCES)
def test_a_step_costs_the_divergence_of_its_two_gaussians(variance):
    """Costs against `variational_terms` of the process that visits t, s and those below."""
    rng = np.random.default_rng(0)
    schedule = make_schedule(linear_betas(40, 1e-3, 0.4))
    x0, predicted, x_t = rng.uniform(-1, 1, (3, 64, 5)).astype(np.float32)
    shares = best.shares_of(variance)
    w = rng.choice(shares, x0.shape)
    errors = np.square(predicted - x0)
    statistics = best.Statistics(
        last=np.zeros((40, 21)),
        fractions=np.tile([(w == s).mean() for s in shares], (40, 1)),
        errors=np.tile([(errors * (w == s)).mean() for s in shares], (40, 1)),
        second_moment=0.0,
    )
    costs = best.step_costs(schedule, variance, statistics)
    for t, s, below in ((39, 38, 2), (39, 5, 0), (17, 3, 1), (8, 7, 0)):
        model = Model(respaced(schedule, np.array([t, s, below])), "x0", variance)
        prediction = predicted_by(model, x_t, jnp.full(64, 2), predicted, 2 * w - 1)
        terms = variational_terms(prediction, x0)
        assert costs[s, t] / math.log(2) == pytest.approx(float(terms.mean()), rel=2e-4)
    assert np.isinf(costs[np.tril_indices(40)]).all()


def test_starting_at_t_costs_the_prior_term_of_a_process_that_ends_there():
    x0 = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    found = best.prior_costs(SCHEDULE, float(np.square(x0).mean())) / math.log(2)
    for t in (1, 400, 900, 999):
        until = (
            make_schedule(SCHEDULE.betas[: t + 1])
            if t == 999
            else respaced(SCHEDULE, np.arange(t, -1, -1))
        )
        assert found[t] == pytest.approx(float(prior_term(until, x0).mean()), rel=1e-3)


def test_a_learned_share_between_two_values_is_divided_among_them():
    """The histogram of learned shares keeps the mean of w, and sums to one."""

    def apply_fn(params, x_t, t, cond, *, train, key):
        return jnp.concatenate([x_t, jnp.full_like(x_t, params)], axis=-1)

    model = Model(SCHEDULE, variance="learned", apply_fn=apply_fn)
    measure = best.make_measure(model, "learned", clip=True)
    x0 = jnp.zeros((4, 1, 2, 1))
    noise = jax.random.normal(jax.random.key(0), x0.shape)
    for w in (-0.2, 0.0, 0.013, 0.7, 1.0, 1.2):
        _, (_, fractions, errors) = measure(
            2 * w - 1, Batch(x0), Draw(jnp.full(4, 500), noise)
        )
        np.testing.assert_allclose(fractions.sum(axis=1), 1, rtol=1e-5)
        mean = fractions @ best.shares_of("learned")
        np.testing.assert_allclose(mean, np.clip(w, 0, 1), atol=1e-5)
        assert (errors.sum(axis=1) > 0).all()


def model_of(variance):
    """The oracle of discrete data, with the same "learned" variance output everywhere."""
    whole = oracle.optimal_model(DATA, SCHEDULE)

    def apply_fn(params, x_t, *arguments, **options):
        eps = whole.apply_fn(params, x_t, *arguments, **options)
        if variance != "learned":
            return eps
        return jnp.concatenate([eps, jnp.full_like(x_t, -0.21)], axis=-1)

    return Model(SCHEDULE, "eps", variance, apply_fn)


def chosen_for(variance, num):
    """(chosen timesteps, their expected bits)."""
    measure = best.make_measure(model_of(variance), variance, clip=True)
    scan = TimestepScan(measure, 1000, mesh_of(1), 1000, same_noise=True)
    x0 = images(1000, seed=1)
    _, _, (last, fractions, errors) = scan.run(None, Batch(x0), np.arange(1000), 1000)
    second_moment = float(np.square(x0).mean())
    statistics = best.Statistics(last, fractions, errors, second_moment)
    timesteps, cost = best.best_timesteps(
        best.step_costs(SCHEDULE, variance, statistics),
        best.last_costs(SCHEDULE, variance, statistics),
        best.prior_costs(SCHEDULE, second_moment),
        num,
    )
    return timesteps, cost / math.log(2)


def bits_of(variance, timesteps, num=4000):
    """The bound of the chain over these timesteps, of each example, by its own terms."""
    steps = np.unique(timesteps).astype(np.int32)
    whole = model_of(variance)

    def apply_fn(params, x_t, i, *arguments, **options):
        return whole.apply_fn(params, x_t, jnp.asarray(steps)[i], *arguments, **options)

    process = respaced(SCHEDULE, steps[::-1])
    model = Model(process, "eps", variance, apply_fn)
    bound = Bound(model, mesh_of(1), len(steps))
    return bound.terms(None, Batch(images(num)), np.arange(num), num).bits


@pytest.mark.statistical
@pytest.mark.parametrize(
    "variance",
    ["fixed_small", *(pytest.param(v, marks=pytest.mark.slow) for v in VARIANCES[1:])],
)
def test_the_bound_of_the_chosen_steps_is_what_was_promised_and_the_least(variance):
    timesteps, promised = chosen_for(variance, 10)
    assert len(timesteps) == 10 and (np.diff(timesteps) < 0).all()
    found = bits_of(variance, timesteps)
    # The error of both: `promised` is of fewer and other images, with one noise at all t.
    error = standard_error(found) * math.sqrt(1 + 4)
    assert abs(found.mean() - promised) < 3 * error + 0.01
    for other in (linspace_timesteps(1000, 10), ddim_quadratic_timesteps(1000, 10)):
        difference = bits_of(variance, other) - found
        assert difference.mean() > 3 * standard_error(difference), other


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_last_step_costs_L_0_of_its_process(variance):
    """L_0 from s, after a step from t, against `variational_terms` of a process of both."""

    def apply_fn(params, x_t, t, cond, *, train, key):
        eps = 0.9 * x_t
        learned = jnp.concatenate([eps, jnp.full_like(eps, -0.4)], axis=-1)
        return learned if variance == "learned" else eps

    model = Model(SCHEDULE, "eps", variance, apply_fn)
    measure = best.make_measure(model, variance, clip=True)
    x0 = jnp.asarray(images(256))
    noise = jax.random.normal(jax.random.key(0), x0.shape)
    for s, t in ((0, 1), (0, 30), (20, 60), (100, 800)):
        times = jnp.full(len(x0), s)
        _, found = measure(None, Batch(x0), Draw(times, noise))
        rows = [
            np.tile(np.asarray(part, np.float64).mean(axis=0), (1000, 1)) for part in found
        ]
        statistics = best.Statistics(*rows, second_moment=0.0)
        x_s = q_sample(SCHEDULE, x0, times, noise)
        predicted = jnp.clip(x0_from_eps(SCHEDULE, x_s, times, 0.9 * x_s), -1, 1)
        two = Model(respaced(SCHEDULE, np.array([t, s])), "x0", variance)
        first = jnp.zeros(len(x0), jnp.int32)
        between = jnp.full_like(x0, -0.4)
        terms = variational_terms(predicted_by(two, x_s, first, predicted, between), x0)
        error = jnp.square(predicted - x0).mean()
        assert rows[2][0].sum() == pytest.approx(float(error), rel=1e-5)
        costs = best.last_costs(SCHEDULE, variance, statistics) / math.log(2)
        assert costs[s, t] == pytest.approx(float(terms.mean()), rel=5e-3)
    alone = rows[0][0, -1] / math.log(2)  # The variance is then the whole of the noise.
    assert costs[s, s] == pytest.approx(alone)


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_last_step_has_the_variance_of_the_step_before(variance):
    """Log variances as costs, which interpolation leaves as they are."""
    shares = best.shares_of(variance)
    w = 0.75 if variance == "learned" else shares[0]
    statistics = best.Statistics(
        last=np.tile(best._LAST_LOG_RATIOS, (1000, 1)),
        fractions=np.tile(np.float64(shares == w), (1000, 1)),
        errors=np.zeros((1000, len(shares))),
        second_moment=0.0,
    )
    found = best.last_costs(SCHEDULE, variance, statistics)
    for s, t in ((0, 1), (2, 6), (60, 120), (300, 301), (100, 800)):
        process = respaced(SCHEDULE, np.array([t, s]))
        expected = process.posterior_log_variance_clipped[0] - np.log(process.betas[0])
        if variance == "learned":
            expected *= 0.25
        assert found[s, t] == pytest.approx(expected, rel=1e-9)
    assert found[5, 5] == 0
