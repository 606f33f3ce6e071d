"""Toy examples as in the papers on guidance, with networks in closed form.

The mixtures are this project's own, made after the descriptions of the papers' figures.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import guidance, oracle
from diffusion_jax.diffusion.model import Model
from diffusion_jax.samplers import chain, methods
from diffusion_jax.samplers.timesteps import karras_timesteps
from helpers import SCHEDULE

# Guidance in a limited interval (Kynkäänniemi et al. 2024): data of one dimension, two
# classes of equal weight. Class 0 has two modes of equal weight, of which one is next to
# the only mode of class 1.
FAR, NEAR, OTHER, STD = -1.0, 0.2, 1.0, 0.1
INTERVAL, SCALE, NUM = (0.1, 0.6), 6.0, 2000


def two_modes(called=None):
    """The optimal model of both classes; `called` gets the batch size of each call."""
    given = oracle.mixture([1, 1], [[FAR], [NEAR]], STD**2)
    whole = oracle.mixture([1, 1, 2], [[FAR], [NEAR], [OTHER]], STD**2)
    models = [oracle.optimal_model(data, SCHEDULE, "v") for data in (given, whole)]

    def apply_fn(params, x_t, t, cond, **options):
        if called is not None:
            jax.debug.callback(functools.partial(called, len(x_t)))
        given, whole = (m.apply_fn(params, x_t, t) for m in models)
        return jnp.where(cond["label"][:, None] == 0, given, whole)

    return Model(SCHEDULE, "v", apply_fn=apply_fn)


def in_one_dimension(model, table, scale, num=NUM, is_limited=False):
    """Samples of class 0."""
    by_label = guidance.by_label(model, 1, is_limited=is_limited)
    options = chain.ChainOptions(hook=None, guidance=by_label)
    cond = {"label": np.zeros(num, int), "guidance": np.full(num, scale)}
    samples = chain.Samples(jax.random.key(0), np.arange(num))
    run = functools.partial(chain.sample_chain, model, None, table, samples)
    return np.asarray(jax.jit(lambda cond: run((1,), cond, options)[0])(cond))[:, 0]


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("x64")
@pytest.mark.statistical
@pytest.mark.parametrize("name", ["heun", "ddim"])
def test_guidance_everywhere_loses_a_mode_and_the_interval_keeps_both(name):
    """Shares of the near mode, 0.5 of the class: s = 6 leaves none, and (0.1, 0.6] half."""
    model = two_modes()
    table = methods.METHODS[name](model, karras_timesteps(SCHEDULE, 60))
    limited = methods.with_interval(table, *INTERVAL)
    plain = in_one_dimension(model, table, 1.0)
    everywhere = in_one_dimension(model, table, SCALE)
    kept = in_one_dimension(model, limited, SCALE, is_limited=True)

    def near(x):
        return (np.abs(x - NEAR) < np.abs(x - FAR)).mean()

    assert abs(near(plain) - 0.5) < 0.06  # Five standard deviations.
    assert near(everywhere) < 0.001
    assert abs(near(kept) - 0.5) < 0.1
    # Both modes are where they were, to their deviation; without the interval even the
    # mode that is left has gone further.
    for mode, is_there in ((FAR, kept < -0.4), (NEAR, kept > -0.4)):
        assert abs(np.median(kept[is_there]) - mode) < STD
    assert abs(np.median(everywhere) - FAR) > STD
    distance = np.minimum(np.abs(kept - FAR), np.abs(kept - NEAR))
    assert (distance < 4 * STD).mean() > 0.98


@pytest.mark.usefixtures("x64")
def test_both_calls_of_a_step_of_heun_are_guided_or_neither():
    """The second call is at the next noise level, which may lie outside of the interval."""
    calls = collections.Counter()
    model = two_modes(lambda size: calls.update([size]))
    table = methods.heun_table(model, karras_timesteps(SCHEDULE, 60))
    table = methods.with_interval(table, *INTERVAL)
    first = np.flatnonzero(table.is_trial)
    is_guided = table.is_guided
    np.testing.assert_array_equal(is_guided[first], is_guided[first + 1])
    sbar = table.level.sigma / table.level.alpha
    np.testing.assert_array_equal(
        is_guided[first], (INTERVAL[0] < sbar[first]) & (sbar[first] <= INTERVAL[1])
    )
    # There is a step that ends below the interval, and one that ends in it.
    alone = (INTERVAL[0] < sbar) & (sbar <= INTERVAL[1])
    assert {0, 1} == set(is_guided[alone != is_guided].astype(int))
    # As often does the network get a batch of twice the size.
    in_one_dimension(model, table, SCALE, num=5, is_limited=True)
    jax.effects_barrier()
    assert calls == {10: is_guided.sum(), 5: (~is_guided).sum()}


# Autoguidance (Karras et al. 2024): a tree of 15 branches in two dimensions for each of two
# classes, which grow from the same root in opposite directions. A network that has not
# learned all is the optimal one for data that are blurred.
DEPTH, BEADS = 4, 6


def branches(angle):
    """Means, variances and weights of the beads of each branch."""
    found = []

    def grow(root, angle, depth):
        step = 0.5 * 0.75**depth * np.array([np.cos(angle), np.sin(angle)])
        means = root + step * (np.arange(BEADS) + 0.5)[:, None] / BEADS
        variance, weight = (0.04 * 0.75**depth) ** 2, 0.5**depth
        found.append((means, np.full((BEADS, 2), variance), np.full(BEADS, weight)))
        if depth + 1 < DEPTH:
            for turn in (0.75, -0.75):
                grow(root + step, angle + turn * 0.8**depth, depth + 1)

    grow(np.zeros(2), angle, 0)
    return found


CLASS, OPPOSITE = branches(np.pi / 4), branches(5 * np.pi / 4)
BLUR, WEAK_BLUR = 0.05, 0.1


def of(branches, blur=0.0):
    means, variances, weights = map(np.concatenate, zip(*branches, strict=True))
    return oracle.mixture(weights, means, variances + blur**2)


def outside_and_branches(x, reference):
    """The share of x outside of the data, and each branch's share of x and of the data.

    Outside is where the density is below that of 99 % of the data; a point belongs to the
    branch with the nearest bead.
    """

    def log_p(x):
        return -np.asarray(oracle.negative_log_likelihood(of(CLASS), x))

    def shares(x):
        beads = np.concatenate([means for means, _, _ in CLASS])
        nearest = np.square(x[:, None] - beads).sum(-1).argmin(1)
        return np.bincount(nearest // BEADS, minlength=len(CLASS)) / len(x)

    outside = (log_p(x) < np.quantile(log_p(reference), 0.01)).mean()
    return outside, shares(x), shares(reference)


@pytest.mark.statistical
def test_autoguidance_leaves_the_branches_and_guidance_by_class_does_not():
    """Samples outside of the data, and the total variation of the branches from the data's.

    Unguided 22 % and 0.03; with autoguidance at s = 3 2 % and 0.03; with guidance by class
    at s = 3 28 % and 0.4, without a sample on the trunk, which is next to the other class.
    """
    num = 1000
    model = oracle.optimal_model(of(CLASS, BLUR), SCHEDULE, "v")
    table = methods.heun_table(model, karras_timesteps(SCHEDULE, 20))
    reference = np.asarray(oracle.sample(of(CLASS), jax.random.key(1), 20_000))

    def measured(base, scale):
        by_model = guidance.by_model(model, oracle.optimal_model(base, SCHEDULE, "v"))
        options = chain.ChainOptions(hook=None, guidance=by_model)
        samples = chain.Samples(jax.random.key(0), np.arange(num))
        cond = {"guidance": np.full(num, scale, np.float32)}
        run = functools.partial(chain.sample_chain, model, (None, None), table, samples)
        x = np.asarray(jax.jit(lambda cond: run((2,), cond, options)[0])(cond))
        outside, found, wanted = outside_and_branches(x, reference)
        return outside, np.abs(found - wanted).sum() / 2, found / wanted

    weak = of(CLASS, WEAK_BLUR)
    outside, distance, ratios = measured(weak, 1.0)
    assert outside > 0.17 and distance < 0.08 and ratios.min() > 0.6
    outside, distance, ratios = measured(weak, 3.0)
    assert outside < 0.05 and distance < 0.08 and ratios.min() > 0.6
    outside, distance, ratios = measured(of(CLASS + OPPOSITE, BLUR), 3.0)
    assert outside > 0.2 and distance > 0.3 and ratios[0] < 0.03
