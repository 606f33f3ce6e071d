"""Clips of moving digits: real digits, on paths that a simulation by pixels gives too."""

import itertools

import numpy as np
import pytest

from diffusion_jax.config import DataConfig
from diffusion_jax.data import embedded, sources

CONFIG = DataConfig(source="moving_digits", image_size=(12,), num_frames=8)
VELOCITIES = list(itertools.product((-1, 0, 1), repeat=2))


@pytest.fixture(scope="module")
def data():
    return sources.open_data_set(CONFIG, seed=3)


@pytest.fixture(scope="module")
def still():
    return sources.open_data_set(DataConfig())


def places(clip, image):
    """Return where the image lies in each frame; it must be the only thing there."""
    found = []
    for frame in clip:
        here = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if (frame[top : top + 8, left : left + 8] == image).all()
        ]
        assert frame.sum(dtype=int) == image.sum(dtype=int) and len(here) == 1
        found += here
    return np.array(found)


def bounced(place, velocity):
    """Return a path of 8 places: each step goes on, or back from the edges 0 and 4."""
    place, velocity, path = list(place), list(velocity), []
    for _ in range(8):
        path.append(tuple(place))
        for axis in (0, 1):
            if not 0 <= place[axis] + velocity[axis] <= 4:
                velocity[axis] *= -1
            place[axis] += velocity[axis]
    return path


def test_each_clip_is_one_real_digit_on_a_path_that_bounces(data, still):
    assert data.train.shape == (3 * 1597, 8, 12, 12, 1) and data.train.dtype == np.uint8
    assert data.shape == CONFIG.shape == (8, 12, 12, 1)
    for i in range(0, len(data.train), 37):
        path = places(data.train[i], still.train[i % 1597])
        simulated = [bounced(path[0], v) for v in VELOCITIES]
        assert list(map(tuple, path)) in simulated
        assert data.labels[i] == still.labels[i % 1597]


def test_held_out_clips_are_of_held_out_digits(data, still):
    assert data.held_out.shape == (200, 8, 12, 12, 1)
    for clip, image in zip(data.held_out[::10], still.held_out[::10], strict=True):
        places(clip, image)
    np.testing.assert_array_equal(data.held_out_labels, still.held_out_labels)
    assert data.num_classes == 10


@pytest.mark.statistical
def test_starts_and_velocities_are_uniform():
    """Chi-square over 25 starts and 9 velocities, of a mark that shows where it is."""
    from scipy.stats import chisquare

    mark = np.full((5000, 8, 8, 1), 9, np.uint8)
    clips = embedded.moving(mark, 5)
    corners = np.array([np.argwhere(clip[:2, ..., 0])[[0, 64], 1:] for clip in clips])
    starts = corners[:, 0]
    assert chisquare(np.bincount(starts @ [5, 1], minlength=25)).pvalue > 1e-3
    inside = ((starts >= 1) & (starts <= 3)).all(1)  # No bounce in the first step.
    velocities = (corners[:, 1] - starts)[inside] + 1
    assert chisquare(np.bincount(velocities @ [3, 1], minlength=9)).pvalue > 1e-3


def test_the_motion_is_that_of_the_seed(data):
    again, other = (sources.open_data_set(CONFIG, seed=seed) for seed in (3, 4))
    np.testing.assert_array_equal(again.train, data.train)
    assert (other.train != data.train).any()


def test_labels_are_the_digits(data):
    config = DataConfig(source="moving_digits", image_size=(12,), num_frames=8, labels=True)
    batch = sources.open_data_set(config, seed=3).split("train")[np.array([5, 0])]
    np.testing.assert_array_equal(batch.cond["label"], data.labels[[5, 0]])
