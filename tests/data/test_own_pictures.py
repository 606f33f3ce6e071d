"""Pictures and masks of the user's own: resized as training data are."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.config import DataConfig
from diffusion_jax.data.images import fit_mask
from diffusion_jax.data.own_pictures import read_mask, read_pictures
from diffusion_jax.data.sources import open_data_set
from diffusion_jax.runtime.errors import BadRequest

CONFIG = DataConfig(image_size=(6, 4), channels=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of several sizes, in colour and grey."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(9, 7), (6, 4), (20, 31, 3), (5, 5, 3)]):
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(
            folder / f"{i}.png"
        )
    return folder


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_pictures_are_those_that_a_run_would_train_on(folder, resize, tmp_path):
    """A folder, a zip, an .npz and single files, against the data set of the folder."""
    config = DataConfig(
        source="folder", path=str(folder), image_size=(6, 4), channels=1, resize=resize
    )
    data = open_data_set(config)
    wanted = np.zeros((4, 6, 4, 1), np.uint8)
    for split in (data.train, data.held_out):
        wanted[split.indices] = split[np.arange(len(split))]
    found = read_pictures(str(folder), "--x", config, 99)
    np.testing.assert_array_equal(found.pixels, wanted)
    assert found.sizes == {(9, 7), (6, 4), (20, 31), (5, 5)}
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    zipped = read_pictures(str(tmp_path / "x.zip"), "--x", config, 3)
    np.testing.assert_array_equal(zipped.pixels, wanted[:3])
    for i in range(4):
        one = read_pictures(str(folder / f"{i}.png"), "--x", config, 1)
        np.testing.assert_array_equal(one.pixels, wanted[i : i + 1])
    colour = np.asarray(Image.open(folder / "2.png"))[None]
    np.savez(tmp_path / "x.npz", arr_0=colour)
    npz = read_pictures(str(tmp_path / "x.npz"), "--x", config, 2)
    np.testing.assert_array_equal(npz.pixels, wanted[2:3])
    assert npz.sizes == {(20, 31)}


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("shape", [(6, 4), (12, 8), (13, 9), (5, 7), (3, 2), (60, 60)])
def test_a_pixel_is_set_where_any_part_of_its_area_is(shape, resize):
    """Against the overlap of the areas, pixel by pixel, as fractions of a fine grid."""
    rng = np.random.default_rng(1)
    is_set = rng.random(shape) < min(0.3, 20 / np.prod(shape))
    height, width = shape
    box = (height, width)
    if resize == "crop":
        scale = min(height / 6, width / 4)
        box = (6 * scale, 4 * scale)
    wanted = np.zeros((6, 4), bool)
    for i, j in np.ndindex(6, 4):
        for a, b in zip(*np.nonzero(is_set), strict=True):
            ends = []
            for at, place, count, side, whole in (
                (i, a, 6, box[0], height),
                (j, b, 4, box[1], width),
            ):
                first = (whole - side) / 2 + at * side / count
                overlap = min(first + side / count, place + 1) - max(first, place)
                ends.append(overlap > 1e-5)
            wanted[i, j] |= all(ends)
    np.testing.assert_array_equal(fit_mask(is_set, (6, 4), resize), wanted)


def mask_of(path, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return str(path)


def test_a_mask_keeps_what_is_black_and_has_a_size_that_fits(tmp_path):
    pixels = np.zeros((12, 8))
    pixels[:6], pixels[11, 7] = 255, 128
    path = mask_of(tmp_path / "m.png", pixels)
    known = read_mask(path, "--mask", CONFIG, frozenset([(12, 8)]))
    wanted = np.repeat([[False], [True]], 3, axis=0) & np.ones((6, 4), bool)
    wanted[5, 3] = False
    np.testing.assert_array_equal(known, wanted)
    pixels[11, 7] = 127
    path = mask_of(tmp_path / "m.png", pixels)
    assert read_mask(path, "--mask", CONFIG, frozenset([(12, 8)]))[5, 3]
    own = mask_of(tmp_path / "own.png", 255 * np.eye(6, 4))
    for sizes in ([(12, 8)], [(6, 4)], [(12, 8), (6, 4)]):
        known = read_mask(own, "--mask", CONFIG, frozenset(sizes))
        np.testing.assert_array_equal(known, ~np.eye(6, 4, dtype=bool))
    for sizes in ([(9, 9)], [(12, 8), (9, 9)]):
        with pytest.raises(BadRequest, match="8 x 12 pixels, and the picture"):
            read_mask(path, "--mask", CONFIG, frozenset(sizes))


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((6, 4)), "nothing is painted"),
        (np.full((6, 4), 255), "leaves nothing known"),
        (255 * (np.indices((12, 8)).sum(0) % 2), "leaves nothing known"),
    ],
)
def test_a_mask_of_one_colour_is_refused(pixels, said, tmp_path):
    path = mask_of(tmp_path / "m.png", pixels)
    with pytest.raises(BadRequest, match=said):
        read_mask(path, "--mask", CONFIG, frozenset([pixels.shape]))


def test_files_that_hold_no_pictures_are_refused_by_name(folder, tmp_path):
    (tmp_path / "x.txt").write_text("hello")
    (tmp_path / "x.png").write_bytes((folder / "2.png").read_bytes()[:200])
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((2, 6, 4, 1), np.float32))
    for name, said in (
        ("gone.png", "there is no such image, folder or zip of images, or .npz"),
        ("x.txt", "it is not a PNG"),
        ("x.png", "cannot be read"),
        ("empty", "has no images"),
        ("x.npz", "must be images, uint8"),
    ):
        with pytest.raises(BadRequest, match=said) as refused:
            read_pictures(str(tmp_path / name), "--from_image", CONFIG, 9)
        assert name in str(refused.value) and "--from_image" in str(refused.value)
        assert "--config" not in str(refused.value)
    with pytest.raises(BadRequest, match="is empty"):
        read_pictures("", "--from_image", CONFIG, 9)
