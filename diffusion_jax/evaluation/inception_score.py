"""Inception score, from the logits of a classifier (Salimans et al. 2016).

IS = exp(E_x KL(p(y | x) || p(y)))          1 (no classes told apart) .. K (all, evenly)
"""

from collections.abc import Iterable

import numpy as np
from scipy.special import entr, log_softmax

from diffusion_jax.evaluation.estimate import Estimate


def inception_score(blocks: Iterable[np.ndarray], *, num_splits: int = 10) -> Estimate:
    """Return the mean score of disjoint splits, and the standard error of that mean.

    Example i belongs to split i mod `num_splits`, so that examples in the order of their
    classes are divided evenly. p(y) is the mean of a split, which makes the score of few
    examples too low: the literature has splits of 5,000. It prints the standard deviation
    over splits, which is sqrt(num_splits) times the standard error.

    Args:
      blocks: logits [B, K] of any real type, block by block.
      num_splits: number of splits, 2 or more; 10 in the literature.

    Raises:
      ValueError: for fewer examples than splits, and for NaN and infinite logits.
    """
    counts, entropies = np.zeros(num_splits), np.zeros(num_splits)
    totals, num = np.zeros((num_splits, 1)), 0
    for block in blocks:
        logits = np.asarray(block, np.float64)
        if not np.isfinite(logits).all():
            raise ValueError("the logits hold NaN or infinite numbers")
        logs = log_softmax(logits, axis=1)
        split = (num + np.arange(len(logits))) % num_splits
        members = (split == np.arange(num_splits)[:, None]).astype(np.float64)
        counts += members.sum(axis=1)
        # The sum of -p log p over classes, for each example.
        entropies -= members @ (np.exp(logs) * logs).sum(axis=1)
        totals = totals + members @ np.exp(logs)
        num += len(logits)
    if num < num_splits:
        raise ValueError(f"{num_splits} splits need {num_splits} examples, not {num}")
    marginals = totals / counts[:, None]
    scores = np.exp(entr(marginals).sum(axis=1) - entropies / counts)
    error = scores.std(ddof=1) / np.sqrt(num_splits)
    return Estimate(float(scores.mean()), float(error))
