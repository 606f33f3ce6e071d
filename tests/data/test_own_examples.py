"""Sets of examples that a flag names: archives and images as they are, nothing resized."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.kinds import PICTURES, POINTS
from diffusion_jax.data.own_examples import read_examples
from diffusion_jax.runtime.errors import BadRequest


def pictures(num=5, size=6, channels=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (num, size, size, channels)).astype(np.uint8)


def save(folder, images, names=None):
    folder.mkdir()
    for i, image in enumerate(images):
        flat = image[..., 0] if image.shape[-1] == 1 else image
        Image.fromarray(flat).save(folder / (names[i] if names else f"{i}.png"))
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_and_an_archive_of_the_same_images_are_the_same_examples(
    tmp_path, channels
):
    images = pictures(channels=channels)
    np.savez(tmp_path / "x.npz", arr_0=images)
    folder = save(tmp_path / "x", images)
    for path in (tmp_path / "x.npz", folder):
        found = read_examples(str(path), "--samples")
        assert (found.kind, found.shape) == (PICTURES, images.shape[1:])
        assert len(found.source) == len(images)
        np.testing.assert_array_equal(found.source[np.array([3, 0])], images[[3, 0]])


def test_the_identity_is_that_of_the_content(tmp_path):
    images = pictures()
    for name, content in (("a", images), ("b", images), ("c", images[::-1])):
        np.savez(tmp_path / f"{name}.npz", arr_0=content)
    a, b, c = (read_examples(str(tmp_path / f"{n}.npz"), "-").identity for n in "abc")
    assert a == b != c


def test_points_are_examples_too(tmp_path):
    points = np.zeros((4, 2), np.float32)
    np.savez(tmp_path / "p.npz", arr_0=points)
    found = read_examples(str(tmp_path / "p.npz"), "--samples")
    assert (found.kind, found.shape) == (POINTS, (2,))


def of_array(array):
    def make(folder):
        np.savez(folder / "x.npz", arr_0=array)
        return folder / "x.npz"

    return make


def other_sizes(folder):
    return save(folder / "x", [*pictures(2), *pictures(1, 8)])


def damaged(folder):
    path = save(folder / "x", pictures())
    (path / "2.png").write_bytes((path / "2.png").read_bytes()[:60])
    return path


def empty(folder):
    (folder / "x").mkdir()
    return folder / "x"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (of_array(pictures() / 255), r"uint8 \[N, H, W, C\].*np.rint\(arr_0 \* 255\)"),
        (of_array(np.full((3, 4, 4, 3), np.nan, np.float32)), r"uint8 \[N, H, W, C\]"),
        (of_array(np.full((3, 2), np.nan, np.float32)), "not finite"),
        (of_array(np.zeros((0, 4, 4, 3), np.uint8)), "not empty"),
        (other_sizes, "8 x 8 pixels, and others of the set 6 x 6"),
        (damaged, "2.png"),
        (empty, "has no images|no image"),
        (lambda folder: folder / "none.npz", "not there|no such|there is no"),
    ],
)
def test_what_is_no_set_of_examples_is_refused(tmp_path, make, match):
    path = make(tmp_path)
    with pytest.raises(BadRequest, match=match) as caught:
        found = read_examples(str(path), "--samples")
        found.source[np.arange(len(found.source))]
    assert "\n" not in str(caught.value)


def test_an_empty_flag_is_refused():
    with pytest.raises(BadRequest, match="--samples is empty"):
        read_examples("", "--samples")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
def test_the_sizes_of_images_are_read_from_any_header(tmp_path, suffix):
    """Two images of 9 x 6 pixels; then one of 9 x 7, which is named before any is drawn."""
    folder = tmp_path / "x"
    folder.mkdir()
    for i, height in enumerate((6, 6, 7)):
        Image.fromarray(pictures(1, 9)[0, :height]).save(folder / f"{i}.{suffix}")
    with pytest.raises(BadRequest, match=f"2.{suffix} has 9 x 7 pixels, .* 9 x 6"):
        read_examples(str(folder), "--samples")
    (folder / f"2.{suffix}").unlink()
    assert read_examples(str(folder), "--samples").shape == (6, 9, 3)
