"""Data: the digits on their grid, toys on their shapes, batches as a function of step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import DataConfig
from diffusion_jax.data import embedded, pipeline, sources, transforms


def test_digits_are_the_1797_real_ones_split_once():
    data = sources.open_data_set(DataConfig())
    assert data.train.shape == (1597, 8, 8, 1) and data.held_out.shape == (200, 8, 8, 1)
    assert data.train.dtype == np.uint8 and data.shape == (8, 8, 1)
    both = np.concatenate([data.train, data.held_out])
    # 17 levels, on the 256-level grid; and each picture is in one split only.
    levels = {round(v * 255 / 16) for v in range(17)}
    assert set(np.unique(both)) == levels
    from sklearn.datasets import load_digits

    real = {tuple(image.ravel()) for image in load_digits().images.astype(int)}
    back = {tuple(np.rint(image.ravel() / 255 * 16).astype(int)) for image in both}
    assert real == back
    np.testing.assert_array_equal(data.train, sources.open_data_set(DataConfig()).train)


def test_two_moons_lie_on_two_half_circles():
    points = embedded.two_moons(4000, 0) + np.array([0.5, 0.25])
    upper = np.abs(np.hypot(*points.T) - 1)
    lower = np.abs(np.hypot(*(points - np.array([1.0, 0.5])).T) - 1)
    assert np.quantile(np.minimum(upper, lower), 0.99) < 3 * 0.05


def test_eight_gaussians_have_their_centres_and_width():
    points = embedded.eight_gaussians(16_000, 0)
    which = (
        np.round(np.angle(points[:, 0] + 1j * points[:, 1]) / (np.pi / 4)).astype(int) % 8
    )
    for i in range(8):
        mine = points[which == i]
        assert len(mine) == pytest.approx(2000, rel=0.1)
        centre = 1.5 * np.array([np.cos(i * np.pi / 4), np.sin(i * np.pi / 4)])
        np.testing.assert_allclose(mine.mean(0), centre, atol=0.015)
        np.testing.assert_allclose(mine.std(0), 0.1, rtol=0.1)


def test_swiss_roll_lies_on_its_spiral():
    """x = a cos a, y = a sin a: the distance from the centre is the angle, mod 2 pi."""
    x, y = (embedded.swiss_roll(4000, 0) * 8).T
    turn = (np.hypot(x, y) - np.arctan2(y, x)) / (2 * np.pi)
    assert np.quantile(np.abs(turn - np.round(turn)), 0.99) < 0.3 * 3 / 6
    assert np.hypot(x, y).min() > 3 and np.hypot(x, y).max() < 16


@pytest.mark.parametrize("name", sources.EMBEDDED)
def test_every_embedded_source_follows_the_protocol(name):
    data = sources.open_data_set(DataConfig(source=name))
    rows = data.train[np.array([5, 0, 5])]
    assert rows.shape == (3, *data.shape) and len(data.held_out) > 0
    np.testing.assert_array_equal(rows[0], rows[2])


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (np.zeros((4, 8, 8), np.uint8), "[N, H, W, C]"),
        (np.zeros((4, 8, 8, 1), np.float32), "float32 (4, 8, 8, 1)"),
        (np.zeros((0, 2), np.float32), "not empty"),
        (np.full((4, 2), np.nan, np.float32), "not finite"),
        (np.zeros((4, 3), np.float32), "same kind"),
    ],
)
def test_arrays_that_cannot_be_trained_on_are_refused(train, said):
    with pytest.raises(ValueError) as error:
        sources.arrays(train, np.zeros((2, 2), np.float32))
    assert said in str(error.value)


def test_every_epoch_runs_through_all_examples_in_a_new_order():
    n, batch = 23, 5
    stream = np.concatenate([pipeline.batch_indices(n, batch, 7, s) for s in range(46)])
    epochs = stream.reshape(10, n)
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    assert len({tuple(epoch) for epoch in epochs}) == 10


def test_a_batch_is_a_function_of_seed_and_step_alone():
    a = pipeline.batch_indices(1000, 64, 3, 12_345)
    pipeline.batch_indices(1000, 64, 3, 1)
    np.testing.assert_array_equal(a, pipeline.batch_indices(1000, 64, 3, 12_345))
    assert (a != pipeline.batch_indices(1000, 64, 4, 12_345)).any()


def test_processes_load_the_rows_of_one_global_batch():
    source = np.arange(100)[:, None]
    whole = [pipeline.StepBatches(source, 8, 0, slice(0, 8))[n] for n in range(5, 8)]
    assert whole[0].shape == (8, 1)
    parts = [pipeline.StepBatches(source, 8, 0, slice(2 * p, 2 * p + 2)) for p in range(4)]
    for step, batch in zip(range(5, 8), whole, strict=True):
        np.testing.assert_array_equal(batch, np.concatenate([p[step] for p in parts]))


def test_a_loader_gives_the_steps_that_it_is_asked_for():
    source = np.arange(100)[:, None]
    batches = pipeline.StepBatches(source, 8, 0, slice(2, 6))
    with pipeline.Loader(batches, start=5, most=3) as loader:
        for step in (5, 8, 9, 12):  # A dispatch may end early.
            expected = np.stack([batches[step + i] for i in range(3)])
            np.testing.assert_array_equal(loader.load(step, 3), expected)


def test_pixels_survive_the_way_there_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = np.asarray(transforms.to_model_range(jnp.asarray(levels)))
    assert x.min() == -1 and x.max() == 1
    np.testing.assert_allclose(x, levels / 127.5 - 1, atol=1e-7)
    np.testing.assert_array_equal(transforms.to_uint8(x), levels)
    # Rounded, not cut; and clipped, not wrapped around.
    near = x + np.where(levels % 2 == 0, 0.49, -0.49).astype(np.float32) / 127.5
    np.testing.assert_array_equal(transforms.to_uint8(near), levels)
    assert transforms.to_uint8(np.array([-3.0, 3.0])).tolist() == [0, 255]


def test_flips_mirror_about_half_of_the_images_whole():
    images = jax.random.randint(jax.random.key(0), (400, 4, 6, 3), 0, 256).astype(jnp.uint8)
    plain = transforms.to_model_range(images)
    flipped = transforms.training_examples(jax.random.key(1), images, flip=True)
    same = (flipped == plain).all((1, 2, 3))
    mirrored = (flipped == plain[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all() and 150 < int(mirrored.sum()) < 250
    off = transforms.training_examples(jax.random.key(1), images, flip=False)
    np.testing.assert_array_equal(off, plain)


def test_examples_come_back_as_what_they_were():
    images = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    back = transforms.to_examples(
        np.asarray(transforms.to_model_range(jnp.asarray(images))), (4, 4, 3)
    )
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, images)
    points = np.array([[3.0, -3.0]], np.float32)
    np.testing.assert_array_equal(transforms.to_examples(points, (2,)), points)


def test_flips_follow_their_key():
    images = jax.random.randint(jax.random.key(0), (64, 4, 6, 3), 0, 256).astype(jnp.uint8)
    a, b = (
        transforms.training_examples(jax.random.key(k), images, flip=True) for k in (1, 2)
    )
    assert (a != b).any()


def test_the_epochs_of_two_seeds_have_nothing_in_common():
    a = {tuple(pipeline.batch_indices(50, 50, 7, epoch)) for epoch in range(5)}
    b = {tuple(pipeline.batch_indices(50, 50, 8, epoch)) for epoch in range(5)}
    assert not a & b


def test_toys_hold_out_other_points_and_follow_the_seed():
    config = DataConfig(source="two_moons")
    data, other = (sources.open_data_set(config, seed) for seed in (0, 1))
    rows = {tuple(p) for p in data.train.tolist()}
    assert not rows & {tuple(p) for p in data.held_out.tolist()}
    assert not rows & {tuple(p) for p in other.train.tolist()}


def test_pixels_are_exact_under_jit():
    """k / 127.5 - 1, rounded once to float32, compiled or not."""
    levels = np.arange(256, dtype=np.uint8)
    exact = (levels / 127.5 - 1).astype(np.float32)
    np.testing.assert_array_equal(transforms.to_model_range(jnp.asarray(levels)), exact)
    np.testing.assert_array_equal(jax.jit(transforms.to_model_range)(levels), exact)
