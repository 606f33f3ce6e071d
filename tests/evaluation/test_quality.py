"""Metrics together: features in blocks, and the names and numbers of figures."""

import numpy as np
import pytest

from diffusion_jax.evaluation import quality
from diffusion_jax.evaluation.nearest import nearest
from diffusion_jax.evaluation.quality import FeatureSet, Sets


def normal(seed, num, size=3):
    return np.random.default_rng(seed).normal(size=(num, size)).astype(np.float32)


def in_blocks(x, size):
    return [x[i : i + size] for i in range(0, len(x), size)]


@pytest.mark.parametrize("size", [1, 7, 64, 5000])
def test_blocks_make_no_difference(size, monkeypatch):
    """Moments, the groups of halves, and neighbours, by NumPy on the whole."""
    monkeypatch.setattr(quality, "_PIECE", 50)
    monkeypatch.setattr(quality, "MOST_PAIRED", 30)
    x = normal(0, 333)
    features = FeatureSet(in_blocks(x, size), len(x))
    assert features.moments.num == 333
    np.testing.assert_allclose(features.moments.mean, x.mean(axis=0, dtype=float))
    np.testing.assert_allclose(features.moments.covariance, np.cov(x.T.astype(float)))
    sizes = [group.num for group in features.groups]
    assert len(sizes) == quality.NUM_GROUPS and max(sizes) - min(sizes) <= 1
    np.testing.assert_array_equal(features.paired, x[:30])
    mine, whole = quality.nearest_of(normal(1, 20), features), nearest(normal(1, 20), x)
    np.testing.assert_array_equal(mine.position, whole.position)
    np.testing.assert_allclose(mine.distance, whole.distance)


def test_few_examples_make_fewer_groups():
    features = FeatureSet([normal(0, 5)], 5)
    assert [group.num for group in features.groups] == [1] * 5


def sets(num=400):
    samples, reference = normal(0, num), normal(1, 500)
    held_out = FeatureSet([normal(2, 100)], 100)
    logits = [np.zeros((num, 4), np.float32)]
    return Sets(
        FeatureSet(in_blocks(samples, 64), num),
        FeatureSet(in_blocks(reference, 64), 500),
        held_out,
        logits,
    )


def test_every_figure_has_the_name_of_the_network_and_its_numbers():
    found = quality.figures(sets(), "net")
    assert {name.removesuffix("-net") for name in found} == {
        "FD",
        "KID",
        "IS",
        "precision",
        "recall",
        "density",
        "coverage",
        "share_nearer",
        "share_nearest",
        "median_ratio",
    }
    assert all(name.endswith("-net") for name in found)
    assert all(figure.num_samples == 400 for figure in found.values())
    assert {name for name, f in found.items() if not f.num_reference} == {"IS-net"}


def test_samples_of_the_same_distribution_are_good():
    """Limits for one distribution: FD and KID 0, all shares those of a perfect model."""
    found = {k: v for k, v in quality.figures(sets(), "net").items()}
    for name, wanted in {
        "KID": 0.0,
        "density": 1.0,
        "share_nearer": 0.5,
        "median_ratio": 1.0,
    }.items():
        figure = found[f"{name}-net"]
        assert abs(figure.value - wanted) < 4 * figure.standard_error, name
    assert found["FD-net"].value < 0.1
    assert found["IS-net"].value == pytest.approx(1.0)


def test_what_needs_more_is_left_out():
    """No held-out examples: no memorisation. No classes: no Inception score."""
    found = quality.figures(sets()._replace(held_out=None, logits=None), "net")
    assert "share_nearer-net" not in found and "IS-net" not in found


def test_the_error_bar_of_few_samples_is_not_made_up():
    """Halves of 20 samples in 12 dimensions have no Frechet distance."""
    few = FeatureSet([normal(0, 20, 12)], 20)
    many = FeatureSet([normal(1, 100, 12)], 100)
    found = quality.figures(Sets(few, many), "net")["FD-net"]
    assert found.standard_error is None and found.value > 0


def test_a_copy_of_the_training_set_is_told():
    there = normal(1, 500)
    mine = sets()._replace(samples=FeatureSet([there[:400]], 400), logits=None)
    mine = mine._replace(reference=FeatureSet([there], 500))
    found = quality.figures(mine, "net")
    assert found["share_nearer-net"].value == found["share_nearest-net"].value == 1
    assert found["median_ratio-net"].value == 0


def test_too_few_examples_are_refused():
    quality.check_enough("it", 4, 3)
    with pytest.raises(ValueError, match="it has 3 examples"):
        quality.check_enough("it", 3, 3)
