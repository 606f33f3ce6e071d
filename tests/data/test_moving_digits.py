"""Clips of moving digits: real digits, on paths that a simulation by pixels gives too."""

import itertools

import numpy as np
import pytest

from diffusion_jax.config import DataConfig
from diffusion_jax.data import embedded, sources

CONFIG = DataConfig(source="moving_digits", image_size=(16,), num_frames=8)
VELOCITIES = [v for v in itertools.product(range(-2, 3), repeat=2) if v != (0, 0)]


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
            for top in range(9)
            for left in range(9)
            if (frame[top : top + 8, left : left + 8] == image).all()
        ]
        assert frame.sum(dtype=int) == image.sum(dtype=int) and len(here) == 1
        found += here
    return np.array(found)


def bounced(place, velocity):
    """Return a path of 8 places: each step goes on, or back from the edges 0 and 8."""
    place, velocity, path = list(place), list(velocity), []
    for _ in range(8):
        path.append(tuple(place))
        for axis in (0, 1):
            for _ in range(abs(velocity[axis])):  # A pixel at a time.
                if not 0 <= place[axis] + np.sign(velocity[axis]) <= 8:
                    velocity[axis] *= -1
                place[axis] += int(np.sign(velocity[axis]))
    return path


def test_each_clip_is_one_real_digit_on_a_path_that_bounces(data, still):
    assert data.train.shape == (3 * 1597, 8, 16, 16, 1) and data.train.dtype == np.uint8
    assert data.shape == CONFIG.shape == (8, 16, 16, 1)
    for i in range(0, len(data.train), 37):
        path = places(data.train[i], still.train[i % 1597])
        simulated = [bounced(path[0], v) for v in VELOCITIES]
        assert list(map(tuple, path)) in simulated
        assert data.labels[i] == still.labels[i % 1597]


def test_held_out_clips_are_of_held_out_digits(data, still):
    assert data.held_out.shape == (200, 8, 16, 16, 1)
    for clip, image in zip(data.held_out[::10], still.held_out[::10], strict=True):
        places(clip, image)
    np.testing.assert_array_equal(data.held_out_labels, still.held_out_labels)
    assert data.num_classes == 10


@pytest.mark.statistical
def test_starts_and_velocities_are_uniform():
    """Chi-square over 81 starts and 24 velocities, of a mark that shows where it is."""
    from scipy.stats import chisquare

    mark = np.full((8100, 8, 8, 1), 9, np.uint8)
    clips = embedded.moving(mark, 5)
    corners = np.array([np.argwhere(clip[:2, ..., 0])[[0, 64], 1:] for clip in clips])
    starts = corners[:, 0]
    assert chisquare(np.bincount(starts @ [9, 1], minlength=81)).pvalue > 1e-3
    inside = ((starts >= 2) & (starts <= 6)).all(1)  # No bounce in the first step.
    velocities = (corners[:, 1] - starts)[inside] + 2
    counts = np.bincount(velocities @ [5, 1], minlength=25)
    assert counts[12] == 0  # Nothing stands still.
    assert chisquare(np.delete(counts, 12)).pvalue > 1e-3


def test_the_motion_is_that_of_the_seed(data):
    again, other = (sources.open_data_set(CONFIG, seed=seed) for seed in (3, 4))
    np.testing.assert_array_equal(again.train, data.train)
    assert (other.train != data.train).any()


def test_labels_are_the_digits(data):
    config = DataConfig(source="moving_digits", image_size=(16,), num_frames=8, labels=True)
    batch = sources.open_data_set(config, seed=3).split("train")[np.array([5, 0])]
    np.testing.assert_array_equal(batch.cond["label"], data.labels[[5, 0]])
