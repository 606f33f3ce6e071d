"""KID against its definition, kernels by hand, and its spread over repeats."""

import itertools

import numpy as np
import pytest

from diffusion_jax.evaluation import feature_blocks
from diffusion_jax.evaluation import kernel_distance as kid
from diffusion_jax.evaluation.kernel_distance import kernel_distance


def sets(m, n, d, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((m, d)), rng.standard_normal((n, d)) + shift


def by_pairs(x, y):
    """The definition, one pair at a time."""

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    within = [
        np.mean([kernel(a, b) for a, b in itertools.permutations(of, 2)]) for of in (x, y)
    ]
    return sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])


@pytest.mark.parametrize("block", [3, 4, 100])
def test_it_is_the_mean_over_all_pairs_whatever_the_blocks(block, monkeypatch):
    monkeypatch.setattr(feature_blocks, "BLOCK", block)
    x, y = sets(9, 13, 5, shift=0.3)
    found = kernel_distance(x, y)
    assert found.value == pytest.approx(by_pairs(x, y), rel=1e-11)
    error = kernel_distance(y, x).standard_error
    assert found.standard_error == pytest.approx(error, rel=1e-11)


def test_a_set_and_itself_are_two_sets():
    """Their pairs across include those of an example with itself."""
    x, _ = sets(9, 1, 5)
    assert kernel_distance(x, x).value == pytest.approx(by_pairs(x, x), rel=1e-10)
    assert kernel_distance(x, x).value < 0


def test_constant_sets_by_hand():
    """x = (2, 0), y = (0, 4): kernels (4 / 2 + 1)^3 and (16 / 2 + 1)^3, and 1 across."""
    x, y = np.tile([2.0, 0.0], (5, 1)), np.tile([0.0, 4.0], (7, 1))
    found = kernel_distance(x, y)
    assert found.value == pytest.approx(27 + 729 - 2, rel=1e-14)
    assert kernel_distance(x, y, most=4).value == pytest.approx(27 + 729 - 2, rel=1e-14)
    assert found.standard_error == pytest.approx(0, abs=1e-9)


@pytest.mark.statistical
def test_the_expectation_is_that_of_the_moments():
    """For D = 1, MMD^2 = sum over p of C(3, p) (E x^p - E y^p)^2.

    Standard normals against N(1/2, 1), whose moments to the third are 1/2, 5/4, 13/8.
    """
    exact = 3 * 0.5**2 + 3 * 0.25**2 + 1.625**2
    found = [kernel_distance(*sets(60, 40, 1, 0.5, seed)).value for seed in range(2000)]
    error = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx(exact, abs=4 * error)
    assert error < 0.03 * exact


@pytest.mark.statistical
@pytest.mark.parametrize("m, n, d, shift", [(100, 120, 16, 0), (100, 160, 16, 0.3)])
def test_the_standard_error_is_the_spread_over_200_repeats(m, n, d, shift):
    """Two sets of one distribution, where the mean is 0 too, and of two distributions.

    The spread over 200 repeats is itself known to 5 %.
    """
    found = [kernel_distance(*sets(m, n, d, shift, seed)) for seed in range(200)]
    values, errors = np.array(found).T
    spread = values.std(ddof=1)
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(spread, rel=0.2)
    if not shift:
        assert np.mean(values) == pytest.approx(0, abs=3 * spread / np.sqrt(200))


@pytest.mark.statistical
def test_overlapping_subsets_do_not_tell_the_spread_over_repeats():
    """The usual recipe in small, 20 subsets of 25 of 100 examples, for 60 repeats.

    The standard deviation over subsets is too large by far, and divided by sqrt(20) it is
    too small; the whole sets vary less than the mean of the subsets.
    """
    means, deviations, whole = [], [], []
    for repeat in range(60):
        x, y = sets(100, 100, 8, 0.1, repeat)
        subsets = [kernel_distance(x, y, most=25, seed=seed).value for seed in range(20)]
        means.append(np.mean(subsets))
        deviations.append(np.std(subsets, ddof=1))
        whole.append(kernel_distance(x, y).value)
    spread, deviation = np.std(means, ddof=1), np.sqrt(np.mean(np.square(deviations)))
    assert deviation > 1.5 * spread
    assert deviation / np.sqrt(20) < spread / 1.5
    assert np.std(whole, ddof=1) < spread


def pairs_part(x, y=None):
    """The mean square of what in k(x_i, y_j) is due neither to x_i nor to y_j."""
    kernel = (x @ (x if y is None else y).T / x.shape[1] + 1) ** 3
    if y is None:
        kernel = np.ma.array(kernel, mask=np.eye(len(x)))
    parts = kernel.mean(), *(kernel.mean(axis=axis) - kernel.mean() for axis in (0, 1))
    return np.mean(kernel**2) - sum(np.mean(np.square(part)) for part in parts)


@pytest.mark.parametrize("shift, seed", [(0.5, 0), (0, 8)])
def test_the_variance_is_the_jackknife_less_what_it_counts_twice(shift, seed):
    """The jackknife by leaving the examples out one by one.

    What it counts twice is the variance that the kernels' parts of pairs would have alone,
    and the variance is at least that. Two sets of one distribution may have no more.
    """
    x, y = sets(9, 7, 3, shift, seed)
    jackknife = 0
    for of, without in (
        (9, [by_pairs(np.delete(x, i, axis=0), y) for i in range(9)]),
        (7, [by_pairs(x, np.delete(y, j, axis=0)) for j in range(7)]),
    ):
        jackknife += (of - 1) * np.var(without)
    pairs = 2 * pairs_part(x) / (9 * 8) + 2 * pairs_part(y) / (7 * 6)
    pairs += 4 * pairs_part(x, y) / (9 * 7)
    assert (jackknife > 2 * pairs) == (shift > 0)
    exact = jackknife - pairs if shift else pairs
    found = kernel_distance(x, y)
    assert found.standard_error == pytest.approx(np.sqrt(exact), rel=1e-9)


def test_the_part_of_pairs_is_the_variance_of_a_product_of_its_variables():
    """The part of pairs of k = (x y + 1)^3, x, y = +-1, is 4 x y, and its square 16."""
    signs = np.repeat([[1.0], [-1.0]], 2000, axis=0)
    for same in (True, False):
        pairs = kid._pairs(signs, signs, same=same)
        assert kid._centred_square(pairs) == pytest.approx(16, rel=2e-3)


@pytest.mark.statistical
def test_larger_sets_are_cut_to_examples_taken_at_random():
    x, y = sets(40, 30, 4)
    some = [kernel_distance(x, y, most=20, seed=seed) for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert kernel_distance(x, y, most=40) == kernel_distance(x, y)
    every = [kernel_distance(x, y, most=20, seed=seed).value for seed in range(300)]
    error = np.std(every) / np.sqrt(300)
    assert np.mean(every) == pytest.approx(kernel_distance(x, y).value, abs=4 * error)


def test_a_file_mapped_into_memory_is_read_as_it_is(tmp_path):
    x, y = (of.astype(np.float32) for of in sets(40, 30, 4))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert kernel_distance(mapped, y, most=20) == kernel_distance(x, y, most=20)


def test_what_has_no_kernel_distance_is_refused():
    x, y = sets(5, 5, 2)
    with pytest.raises(ValueError, match="needs 4 examples of each set, not 3 and 5"):
        kernel_distance(x[:3], y)
    with pytest.raises(ValueError, match=r"\(5, 2\) and \(5, 1\) have no kernel distance"):
        kernel_distance(x, y[:, :1])
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            kernel_distance(x, np.where(y > 0, bad, y))
