"""Draws of timesteps: counted one by one, and by the losses that were recorded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import timestep_sampling as sampling


def history_of(losses):
    """A history whose last ten losses of timestep t are all losses[t]."""
    history = sampling.empty_history(len(losses))
    for _ in range(10):
        history = sampling.record_losses(
            history, jnp.arange(len(losses)), jnp.asarray(losses, jnp.float32)
        )
    return history


def test_a_stratified_batch_is_evenly_spread():
    """Timesteps in a batch of 4 out of T = 12 are three apart, modulo 12, in every draw."""
    seen = set()
    for seed in range(200):
        t, weights = sampling.stratified_timesteps(jax.random.key(seed), 4, 12)
        assert set(np.diff(np.asarray(t)) % 12) == {3} and t.dtype == jnp.int32
        np.testing.assert_array_equal(weights, 1)
        seen.add(int(t[0]))
    assert seen == set(range(12))


def test_a_stratified_batch_of_many_timesteps_is_evenly_spread():
    for seed in range(20):
        t, _ = sampling.stratified_timesteps(jax.random.key(seed), 4, 1000)
        assert set(np.diff(np.asarray(t)) % 1000) == {250}


def test_uniform_draws_are_integers_of_weight_1():
    t, weights = sampling.uniform_timesteps(jax.random.key(0), 500, 3)
    assert t.dtype == jnp.int32 and set(np.asarray(t)) == {0, 1, 2}
    np.testing.assert_array_equal(weights, np.ones(500))


@pytest.mark.parametrize(("num", "total"), [(3, 7), (7, 3), (5, 5), (2, 150)])
def test_each_stratified_t_is_exactly_uniform(num, total, monkeypatch):
    """Counts over all T * B draws of one integer: each place has each t equally often."""
    counts = np.zeros((num, total), int)
    for first in range(num * total):
        monkeypatch.setattr(jax.random, "randint", lambda *_, first=first: jnp.int32(first))
        t, _ = sampling.stratified_timesteps(jax.random.key(0), num, total)
        counts[np.arange(num), np.asarray(t)] += 1
    assert (counts == num).all()


def test_a_batch_too_large_to_count_is_refused():
    """Sums stay below 2^31 for T * B up to 2^30 - 1 = 993 * 1081311."""
    t, _ = sampling.stratified_timesteps(jax.random.key(0), 993, 1081311)
    assert set(np.diff(np.asarray(t)) % 1081311) <= {1088, 1089} and t.min() >= 0
    with pytest.raises(ValueError, match=r"batch size \(32768\)"):
        sampling.stratified_timesteps(jax.random.key(0), 2**15, 2**15)


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["uniform", "importance"])
def test_draws_have_their_probabilities(name):
    """Chi-square over 20 timesteps; and E[1 / (T p)] is 1 for every sampler."""
    n, losses = 100_000, np.arange(1.0, 21.0)
    if name == "uniform":
        t, weights = sampling.uniform_timesteps(jax.random.key(0), n, 20)
        p = np.full(20, 1 / 20)
    else:
        t, weights = sampling.importance_timesteps(jax.random.key(0), n, history_of(losses))
        p = 0.999 * losses / losses.sum() + 0.001 / 20
    counts = np.bincount(np.asarray(t), minlength=20)
    assert len(counts) == 20
    assert ((counts - n * p) ** 2 / (n * p)).sum() < 19 + 5 * np.sqrt(2 * 19)
    np.testing.assert_allclose(weights, 1 / (20 * p[np.asarray(t)]), rtol=1e-5)
    # An estimate of the sum of f over t, within five standard errors.
    f = np.cos(np.arange(20.0)) + 2
    estimate = np.asarray(weights) * f[np.asarray(t)]
    assert abs(estimate.mean() - f.mean()) < 5 * estimate.std() / np.sqrt(n)


def test_probabilities_follow_the_root_mean_square_of_ten_losses():
    """Probabilities of IDDPM eq. 18, with a thousandth shared out evenly."""
    history = sampling.empty_history(3)
    rows = np.array([[1.0] * 10, [0.0] * 5 + [2.0] * 5, [3.0] * 10])
    for column in rows.T:
        history = sampling.record_losses(history, jnp.arange(3), jnp.asarray(column))
    rms = np.array([1.0, np.sqrt(2.0), 3.0])
    expected = 0.999 * rms / rms.sum() + 0.001 / 3
    found = sampling.timestep_probabilities(history)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_probabilities_are_uniform_until_every_timestep_has_ten():
    history = history_of([5.0, 1.0, 1.0])
    early = history._replace(counts=history.counts.at[2].set(9))
    np.testing.assert_allclose(sampling.timestep_probabilities(early), 1 / 3, rtol=1e-6)
    assert float(sampling.timestep_probabilities(history)[0]) > 0.7
    t, weights = sampling.importance_timesteps(jax.random.key(0), 8, early)
    np.testing.assert_allclose(weights, 1, rtol=1e-6)
    assert set(np.asarray(t)) <= {0, 1, 2}
    little = sampling.timestep_probabilities(history_of([2e-4, 1e-4, 1e-4]))
    np.testing.assert_allclose(little, [0.5, 0.25, 0.25], rtol=1e-3)
    nothing = history_of([0.0, 0.0, 0.0])
    np.testing.assert_allclose(sampling.timestep_probabilities(nothing), 1 / 3, rtol=1e-6)


def test_a_batch_is_recorded_as_if_one_loss_after_another():
    """A history against one list per timestep, over batches with many of the same t."""
    rng = np.random.default_rng(0)
    history, lists = sampling.empty_history(5), [[] for _ in range(5)]
    record = jax.jit(sampling.record_losses)
    for _ in range(6):
        t = rng.choice(5, 24, p=[0.6, 0.2, 0.1, 0.1, 0.0])
        losses = rng.uniform(1, 2, 24).astype(np.float32)
        losses[3] = np.nan
        history = record(history, jnp.asarray(t), jnp.asarray(losses))
        for step, loss in zip(t, losses, strict=True):
            if np.isfinite(loss):
                lists[step].append(loss)
        for row, expected in enumerate(lists):
            assert int(history.counts[row]) == len(expected)
            last = expected[-10:] + [0.0] * (10 - len(expected[-10:]))
            np.testing.assert_array_equal(
                np.sort(history.losses[row]), np.sort(np.array(last, np.float32))
            )
