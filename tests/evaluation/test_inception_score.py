"""The inception score of classifiers whose score is known."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from diffusion_jax.evaluation.inception_score import inception_score


def confident(classes, num_classes):
    return 1e4 * np.eye(num_classes)[classes]


@pytest.mark.parametrize("num_classes", [2, 7])
def test_confident_and_even_over_k_classes_is_k(num_classes):
    """Sorted by class too, since neighbours are of different splits."""
    classes = np.repeat(np.arange(num_classes), 10)
    found = inception_score([confident(classes, num_classes)])
    assert found.value == pytest.approx(num_classes, rel=1e-12)
    assert found.standard_error == pytest.approx(0, abs=1e-12)


def test_one_answer_to_all_is_1():
    """An even and an uneven answer, and one class with certainty."""
    for logits in ([0, 0, 0], [3, -1, 0.5], [0, 1e4, 0]):
        found = inception_score([np.tile(logits, (20, 1))])
        assert found.value == pytest.approx(1, rel=1e-12)
        assert found.standard_error == pytest.approx(0, abs=1e-12)


def test_confident_and_uneven_is_the_exponential_of_the_entropy():
    """Half of class 0 and a quarter of each of two others: exp(H) = 2^(3/2)."""
    classes = np.repeat([0, 0, 1, 2], 2)
    found = inception_score([confident(classes, 3)], num_splits=2)
    assert found.value == pytest.approx(2**1.5, rel=1e-12)


def test_it_is_the_mean_of_the_divergences_of_the_splits():
    """Against SciPy's relative entropy, example by example, in blocks of any size."""
    logits = 3 * np.random.default_rng(0).standard_normal((57, 4)).astype(np.float32)
    scores = []
    for split in range(3):
        p = softmax(logits[split::3].astype(np.float64), axis=1)
        scores.append(np.exp(np.mean([entropy(each, p.mean(axis=0)) for each in p])))
    for cuts in ([], [1, 20], [30, 31]):
        found = inception_score(iter(np.split(logits, cuts)), num_splits=3)
        assert found.value == pytest.approx(np.mean(scores), rel=1e-12)
        error = np.std(scores, ddof=1) / np.sqrt(3)
        assert found.standard_error == pytest.approx(error, rel=1e-10)


@pytest.mark.statistical
def test_the_standard_error_is_the_spread_over_repeats():
    rng = np.random.default_rng(0)
    draws = 2 * rng.standard_normal((300, 400, 3))
    values, errors = np.array([inception_score([logits]) for logits in draws]).T
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(ddof=1), rel=0.15)


def test_what_has_no_score_is_refused():
    with pytest.raises(ValueError, match="10 splits need 10 examples, not 9"):
        inception_score([np.zeros((9, 3))])
    for bad in (np.nan, -np.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            inception_score([np.full((20, 3), bad)])
