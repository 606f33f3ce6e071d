"""Data: the digits on their grid, toys on their shapes, batches as a function of step."""

import numpy as np
import pytest

from diffusion_jax.config import DataConfig
from diffusion_jax.data import embedded, pipeline, sources


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
    """The spiral x = a cos a, y = a sin a: distance from the centre is angle mod 2 pi."""
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


def numbered(num=100):
    """A split whose examples and conditions are made of their own numbers."""
    numbers = np.arange(num)
    cond = {"number": numbers, "pair": np.stack([numbers, -numbers], axis=1)}
    return sources.Split(numbers[:, None], cond)


def test_processes_load_the_rows_of_one_global_batch():
    split = numbered()
    whole = [pipeline.StepBatches(split, 8, 0, slice(0, 8))[n] for n in range(5, 8)]
    assert whole[0].x.shape == (8, 1)
    parts = [pipeline.StepBatches(split, 8, 0, slice(2 * p, 2 * p + 2)) for p in range(4)]
    for step, batch in zip(range(5, 8), whole, strict=True):
        np.testing.assert_array_equal(batch.x, np.concatenate([p[step].x for p in parts]))
        number = np.concatenate([p[step].cond["number"] for p in parts])
        np.testing.assert_array_equal(batch.cond["number"], number)


def test_a_loader_gives_the_steps_that_it_is_asked_for():
    """Examples and conditions of the steps, row for row; all rows after them are 0."""
    split = numbered()
    batches = pipeline.StepBatches(split, 8, 0, slice(2, 6))
    with pipeline.Loader(batches, start=5, most=3) as loader:
        for step, count in ((5, 3), (8, 3), (9, 1), (10, 3)):  # A dispatch may end early.
            x, cond = loader.load(step, count)
            assert x.shape == (3, 4, 1) and list(cond) == ["number", "pair"]
            expected = np.stack([batches[step + i].x for i in range(count)])
            np.testing.assert_array_equal(x[:count], expected)
            assert not x[count:].any() and not cond["pair"][count:].any()
            np.testing.assert_array_equal(cond["number"], x[..., 0])
            np.testing.assert_array_equal(cond["pair"], x * [1, -1])


def test_a_data_set_gives_batches_of_either_split():
    data = sources.open_data_set(DataConfig())
    for name, source in (("train", data.train), ("held_out", data.held_out)):
        split = data.split(name)
        assert len(split) == len(source)
        x, cond = split[np.array([5, 0, 5])]
        np.testing.assert_array_equal(x, source[[5, 0, 5]])
        assert x.dtype == np.uint8 and dict(cond) == {}
    with pytest.raises(KeyError):
        data.split("test")


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
