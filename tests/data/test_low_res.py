"""Low-resolution images: against a plain loop and Pillow, and the same in every stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.config import DataConfig
from diffusion_jax.data import sources
from diffusion_jax.data.kinds import PICTURES
from diffusion_jax.data.low_res import reduced
from diffusion_jax.diffusion.batch import Batch


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("size", [(2, 2), (2, 3), (4, 6), (1, 1)])
def test_a_pixel_is_the_rounded_mean_of_its_block(size):
    """Every block, by a loop over whole numbers; a half is rounded up."""
    images = random_images(3, 4, 6, 3)
    found = reduced(images, size)
    assert found.shape == (3, *size, 3) and found.dtype == np.uint8
    rows, columns = 4 // size[0], 6 // size[1]
    for n, y, x, c in np.ndindex(found.shape):
        values = [
            int(images[n, y * rows + i, x * columns + j, c])
            for i in range(rows)
            for j in range(columns)
        ]
        quotient, rest = divmod(sum(values), len(values))
        assert found[n, y, x, c] == quotient + (2 * rest >= len(values))


@pytest.mark.parametrize("factor", [2, 4])
def test_reduction_is_that_of_pillow(factor):
    image = random_images(16, 24, 3)
    by_pillow = np.asarray(Image.fromarray(image).reduce(factor))
    np.testing.assert_array_equal(reduced(image, (16 // factor, 24 // factor)), by_pillow)


def test_bright_images_do_not_overflow():
    """A block of 64 x 64 white pixels is white."""
    np.testing.assert_array_equal(reduced(np.full((64, 64, 1), 255, np.uint8), (1, 1)), 255)


def test_a_flip_mirrors_the_low_resolution_with_its_image():
    """Each flipped image still has the low resolution that is made of it."""
    images = random_images(32, 8, 8, 1)
    batch = Batch(jnp.asarray(images), {"low_res": jnp.asarray(reduced(images, (4, 4)))})
    found = PICTURES.training_batch(jax.random.key(1), batch, flip=True)
    back = PICTURES.from_network(np.asarray(found.x))
    flipped = (back != images).any(axis=(1, 2, 3))
    assert 5 < flipped.sum() < 27
    np.testing.assert_array_equal(back[flipped], images[flipped][:, :, ::-1])
    low = PICTURES.from_network(np.asarray(found.cond["low_res"]))
    np.testing.assert_array_equal(low, reduced(back, (4, 4)))


def test_the_network_sees_the_low_resolution_in_its_range_and_without_noise():
    images = np.array([0, 255, 51], np.uint8).reshape(3, 1, 1, 1)
    batch = PICTURES.network_batch(Batch(images, {"low_res": jnp.asarray(images)}))
    np.testing.assert_allclose(np.ravel(batch.cond["low_res"]), [-1, 1, -0.6], atol=1e-7)
    np.testing.assert_array_equal(batch.cond["aug_level"], np.zeros(3))


def npz(tmp_path, images):
    np.savez(tmp_path / "x.npz", arr_0=images)
    return {"source": "npz", "path": str(tmp_path / "x.npz"), "held_out_fraction": 0.25}


def folder(tmp_path, images):
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / "pictures" / f"{i:02d}.png")
    where = str(tmp_path / "pictures")
    return {"source": "folder", "path": where, "held_out_fraction": 0.25}


@pytest.mark.parametrize("resize", ["pad", "crop", "squash"])
@pytest.mark.parametrize("source", [npz, folder])
def test_the_base_run_sees_the_low_resolution_of_the_next_stage(tmp_path, source, resize):
    """Bit for bit, of pictures that fit neither size, in both splits."""
    own = {**source(tmp_path, random_images(8, 14, 12, 1)), "channels": 1, "resize": resize}
    base = DataConfig(image_size=(4,), reduced_from=(16,), **own)
    next_stage = DataConfig(image_size=(16,), low_res=(4,), **own)
    sets = [sources.open_data_set(config) for config in (base, next_stage)]
    for split in ("train", "held_out"):
        small, large = (data.split(split) for data in sets)
        indices = np.arange(len(small))
        low = large[indices].cond["low_res"]
        np.testing.assert_array_equal(small[indices].x, low)
        assert low.shape[1:] == (4, 4, 1) and low.std() > 0


@pytest.mark.parametrize("size", [(28, 28), (20, 28)])
def test_padding_keeps_every_pixel_of_a_smaller_image(tmp_path, size):
    """The image lies in the middle, with black around it, and is not resampled."""
    images = random_images(4, *size, 1)
    config = DataConfig(image_size=(32,), channels=1, resize="pad", **npz(tmp_path, images))
    data = sources.open_data_set(config)
    found = np.concatenate([data.train, data.held_out])
    top, left = (32 - size[0]) // 2, (32 - size[1]) // 2
    inside = found[:, top : top + size[0], left : left + size[1]]
    assert {x.tobytes() for x in inside} == {x.tobytes() for x in images}
    assert found.sum() == images.sum(dtype=int)


def test_padding_shrinks_a_larger_image_until_all_of_it_fits(tmp_path):
    """A white picture of 64 x 32 becomes 32 x 16 with black at the left and the right."""
    white = np.full((4, 64, 32, 1), 255, np.uint8)
    config = DataConfig(image_size=(32,), channels=1, resize="pad", **npz(tmp_path, white))
    found = sources.open_data_set(config).train
    np.testing.assert_array_equal(found[:, :, 8:24], 255)
    np.testing.assert_array_equal(found[:, :, :8], 0)
    np.testing.assert_array_equal(found[:, :, 24:], 0)


def test_the_conditions_of_a_set_are_in_its_fingerprint():
    """A run with another low resolution is not of the same data."""
    configs = [DataConfig(low_res=low) for low in ((), (4,), (2,))]
    prints = [sources.fingerprint(sources.open_data_set(c)) for c in configs]
    assert len(set(prints)) == 3
