"""The contract of a kind of example: what each of the `KINDS` must do; a row for each."""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import DataConfig, MLPConfig, UNetConfig
from diffusion_jax.data.clips import CLIPS
from diffusion_jax.data.kind import Kind
from diffusion_jax.data.kinds import KINDS, PICTURES, POINTS, kind_of
from diffusion_jax.data.sounds import Sounds
from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.runtime.errors import BadRequest

RNG = np.random.default_rng(0)
POINTS_CONFIG = DataConfig(image_size=(), channels=2)
TITLE, GAP = 16, 2


class Row(NamedTuple):
    """A kind, and what is expected of it.

    Attributes:
      kind: the object.
      config: the DataConfig of its examples.
      examples: 6 examples as a file has them.
      seen: the same examples as the network sees them.
      outside: values of a network, and what a file has for them.
      refused: arrays, each with a part of the message.
      size: (width, height) of a drawing of the examples.
      beside: size of a drawing of two sets of examples, side by side.
      strip: size of a drawing of a trajectory of 3 frames.
      in_grid: height of a row of examples in a grid of many sets, and how many it shows.
      shown: function that returns whether a drawing shows these examples.
    """

    kind: Kind
    config: DataConfig
    examples: np.ndarray
    seen: np.ndarray
    outside: tuple[list[float], list[float]]
    refused: list[tuple[np.ndarray, str]]
    size: tuple[int, int]
    beside: tuple[int, int]
    strip: tuple[int, int]
    in_grid: tuple[int, int]
    shown: Callable[[np.ndarray, np.ndarray], bool]


def tiles_show(pixels, images):
    """Return whether each image, enlarged 12 times to 48, lies in its place, 3 per row."""
    for i, image in enumerate(images):
        top, left = (GAP + n * (48 + GAP) for n in divmod(i, 3))
        tile = pixels[top : top + 48, left : left + 48]
        if (tile != image[..., 0].repeat(12, 0).repeat(12, 1)).any():
            return False
    return True


def rows_show(pixels, clips):
    """Return whether each frame, enlarged 24 times to 48, lies in the row of its clip."""
    for i, clip in enumerate(clips):
        for j, frame in enumerate(clip):
            top, left = GAP + i * (48 + GAP), GAP + j * (48 + GAP)
            tile = pixels[top : top + 48, left : left + 48]
            if (tile != frame[..., 0].repeat(24, 0).repeat(24, 1)).any():
                return False
    return True


def dots_show(pixels, points):
    """Return whether blue dots are where the points are, by the axes, and nowhere else."""
    dark = pixels.max(-1) < 100
    rows = np.flatnonzero(dark.sum(1) > 100)
    columns = np.flatnonzero(dark.sum(0) > 100)
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    blue = pixels[..., 2].astype(int) - pixels[..., 0] > 20
    y, x = np.nonzero(blue[top:bottom, left:right])
    found = np.stack([x / (right - left), 1 - y / (bottom - top)], axis=1) * 5 - 2.5
    wanted = points[:, [0, -1]]
    distance = np.hypot(*(found[:, None] - wanted[None]).transpose(2, 0, 1))
    return distance.min(0).max() < 0.05 and distance.min(1).max() < 0.05


def spectra_show(pixels, sounds):
    """Return whether the brightest row of each spectrogram, 3 per row, is at its tone."""
    for i, sound in enumerate(sounds):
        top, left = (
            GAP + n * (size + GAP) for n, size in zip(divmod(i, 3), CELL, strict=True)
        )
        spectrogram = pixels[top + 32 : top + 96, left : left + 160].astype(int).sum(-1)
        cycles = np.abs(np.fft.rfft(sound[:, 0])).argmax()  # Over 512 values; 256 is half.
        if abs(spectrogram.sum(1).argmax() - (63 - cycles // 4)) > 1:
            return False
    return True


def images(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


GREY = np.concatenate([np.arange(16, dtype=np.uint8), np.arange(176, 256, dtype=np.uint8)])
SPREAD = np.float32([[-2, -1], [0, 0.5], [1, 2], [2, -2], [-1, 1.5], [0.3, -0.7]])
CELL = (96, 160)  # Of a sound.
PERIODS = np.array([16, 200, 40, 120, 80, 240])  # In 512 values.
TONES = np.sin(2 * np.pi * PERIODS[:, None, None] * np.arange(512)[:, None] / 512)
TONES = (TONES / 2).astype(np.float32)
ROWS = [
    Row(
        PICTURES,
        DataConfig(image_size=(4,), channels=1),
        GREY.reshape(6, 4, 4, 1),
        (GREY / 127.5 - 1).astype(np.float32).reshape(6, 4, 4, 1),
        ([-3.0, 3.0, 0.49 / 127.5 - 1, 0.51 / 127.5 - 1], [0, 255, 0, 1]),
        [
            (images(2, 4, 4), "grey images [N, H, W], save arr_0[..., None]"),
            (images(2, 3, 4, 4), "looks like [N, C, H, W]"),
            (images(2, 4, 4, 2), "has 2 channels, not 1 or 3"),
            (images(0, 4, 4, 1), "and not empty"),
            (np.zeros((2, 4, 4, 1), np.float32), "np.rint(arr_0 * 255)"),
            (np.full((2, 4, 4, 1), -1.0), "np.rint((arr_0 + 1) * 127.5)"),
            (np.full((2, 4, 4, 1), 99.0), "scale it to 0 to 255"),
            (np.full((2, 4, 4, 1), 999, np.uint16), "np.rint(arr_0 / 257)"),
            (np.full((2, 4, 4, 1), 9), "its values fit"),
            (np.zeros((2, 4, 4, 1), bool), "astype(np.uint8) * 255"),
            (SPREAD, "but must be images, uint8 [N, H, W, C]"),
        ],
        (3 * 50 + GAP, 2 * 50 + GAP),
        (2 * (3 * 50 + GAP) + 8, 2 * 50 + GAP + TITLE),
        (3 * 50 + GAP, 6 * 50 + GAP),
        (50 + GAP, 6),
        tiles_show,
    ),
    Row(
        POINTS,
        POINTS_CONFIG,
        SPREAD,
        SPREAD,
        ([-3.0, 3.0, 1e9], [-3.0, 3.0, 1e9]),
        [
            (images(2, 4, 4, 1), "for images set data.image_size"),
            (np.zeros((2, 2)), "convert float64 with arr_0.astype(np.float32)"),
            (np.zeros((2, 2), complex), "complex128 [2, 2], but must be points, float32"),
            (np.zeros((0, 2), np.float32), "and not empty"),
            (np.zeros(4, np.float32), "float32 [4], but must be points"),
        ],
        (240, 280),
        (480, 280),
        (720, 280),
        (280, 6),
        dots_show,
    ),
    Row(
        Sounds(8000, 2.0),
        DataConfig(image_size=(), channels=1, sound_length=512, sample_rate=8000, gain=2.0),
        TONES,
        2 * TONES,
        ([-3.0, 3.0, 0.25], [-1.5, 1.5, 0.125]),
        [
            (np.zeros((2, 512, 1), np.int16), "arr_0.astype(np.float32) / 32768"),
            (np.zeros((2, 512), np.float32), "mono sounds [N, L], save arr_0[..., None]"),
            (np.zeros((2, 1, 512), np.float32), "save arr_0.transpose(0, 2, 1)"),
            (np.zeros((2, 512, 2), np.float32), "2 channels must be 1"),
            (np.zeros((0, 512, 1), np.float32), "and not empty"),
            (images(2, 4, 4, 1), "but must be sounds, float32 [N, L, C]"),
        ],
        (3 * 162 + GAP, 2 * 98 + GAP),
        (2 * (3 * 162 + GAP) + 8, 2 * 98 + GAP + TITLE),
        (3 * 162 + GAP, 4 * 98 + GAP),
        (98 + GAP, 3),
        spectra_show,
    ),
    Row(
        CLIPS,
        DataConfig(image_size=(2,), channels=1, num_frames=4),
        GREY.reshape(6, 4, 2, 2, 1),
        (GREY / 127.5 - 1).astype(np.float32).reshape(6, 4, 2, 2, 1),
        ([-3.0, 3.0, 0.49 / 127.5 - 1, 0.51 / 127.5 - 1], [0, 255, 0, 1]),
        [
            (images(4, 2, 2, 1), "for images set data.num_frames=0"),
            (np.zeros((2, 4, 2, 2, 1), np.float32), "np.rint(arr_0 * 255)"),
            (images(0, 4, 2, 2, 1), "and not empty"),
            (SPREAD, "but must be clips, uint8 [N, F, H, W, C]"),
        ],
        (4 * 50 + GAP, 6 * 50 + GAP),
        (2 * (4 * 50 + GAP) + 8, 6 * 50 + GAP + TITLE),
        (3 * 50 + GAP, 4 * 50 + GAP),
        (2 * 50 + GAP, 2),
        rows_show,
    ),
]
of_every_kind = pytest.mark.parametrize("row", ROWS, ids=[row.kind.name for row in ROWS])


def test_every_kind_has_a_row():
    assert {type(row.kind) for row in ROWS} == {type(kind) for kind in KINDS}


@of_every_kind
def test_the_config_chooses_the_kind(row):
    assert kind_of(row.config) == row.kind
    assert row.examples.shape[1:] == row.config.shape
    assert row.examples[0].nbytes == row.kind.dtype.itemsize * np.prod(row.config.shape)


@of_every_kind
def test_an_array_of_a_file_fits_one_kind_alone(row):
    fitting = [type(kind) for kind in KINDS if kind.fits(row.examples)]
    assert fitting == [type(row.kind)]
    found = row.kind.from_file(row.examples, "data.path ('a.npz')", row.config)
    np.testing.assert_array_equal(found, row.examples)
    assert not row.kind.fits(row.examples[:0])


@of_every_kind
def test_what_is_no_example_is_refused_with_a_remedy(row):
    for array, said in row.refused:
        with pytest.raises(BadRequest, match=re.escape(said)) as error:
            row.kind.from_file(array, "data.path ('a.npz')", row.config)
        assert str(error.value).startswith("data.path ('a.npz'): arr_0 ")


@of_every_kind
def test_examples_come_back_from_the_network_as_they_were(row):
    for to_network in (row.kind.to_network, jax.jit(row.kind.to_network)):
        x = to_network(jnp.asarray(row.examples))
        assert x.dtype == jnp.float32
        np.testing.assert_array_equal(x, row.seen)
        back = row.kind.from_network(np.asarray(x))
        assert back.dtype == row.kind.dtype
        np.testing.assert_array_equal(back, row.examples)
    made, expected = row.outside
    np.testing.assert_array_equal(row.kind.from_network(np.float32(made)), expected)


@of_every_kind
def test_what_a_kind_claims_holds(row):
    """Bounds, levels and network of a kind, against its examples."""
    low, high = row.seen.min(), row.seen.max()
    assert row.kind.is_bounded == (-1 <= low and high <= 1)
    levels = (row.seen.astype(float) + 1) * 127.5
    assert row.kind.has_levels == (np.abs(levels - np.rint(levels)).max() < 1e-4)
    assert row.kind.network is (UNetConfig if row.examples.ndim > 2 else MLPConfig)


@of_every_kind
def test_conditions_stay_as_they_are_on_the_way_to_the_network(row):
    kind, cond = row.kind, {"label": jnp.arange(6), "low": jnp.zeros((6, 2, 2), jnp.uint8)}
    given = Batch(jnp.asarray(row.examples), cond)
    key = jax.random.key(0)
    for made in (
        kind.network_batch(given),
        kind.training_batch(key, given, flip=False),
        kind.training_batch(key, given, flip=kind.can_flip),
    ):
        assert made.x.shape == row.seen.shape and made.x.dtype == jnp.float32
        jax.tree.map(np.testing.assert_array_equal, made.cond, cond)
    np.testing.assert_array_equal(kind.training_batch(key, given, flip=False).x, row.seen)


@of_every_kind
def test_flips_mirror_about_half_of_the_examples_whole(row):
    kind, key = row.kind, jax.random.key(1)
    if not kind.can_flip:
        with pytest.raises(ValueError, match="cannot be flipped"):
            kind.flipped(key, jnp.asarray(row.seen))
        return
    shape = (400, *[2] * (kind.ndim - 4), 4, 6, 3)
    given = Batch(jax.random.randint(jax.random.key(0), shape, 0, 256).astype(jnp.uint8))
    plain = kind.network_batch(given).x
    flipped = kind.training_batch(key, given, flip=True).x
    within = tuple(range(1, kind.ndim))
    same = (flipped == plain).all(within)
    mirrored = (flipped == plain[..., ::-1, :]).all(within)  # All frames of a clip alike.
    assert (same ^ mirrored).all() and 150 < int(mirrored.sum()) < 250
    other = kind.training_batch(jax.random.key(2), given, flip=True).x
    assert (other != flipped).any()


@of_every_kind
def test_a_drawing_shows_the_examples(row):
    picture = row.kind.draw(row.examples)
    assert picture.size == row.size
    assert row.shown(np.asarray(picture), row.examples)
    assert not row.shown(np.asarray(picture), row.examples[::-1] * row.kind.dtype.type(3))


@of_every_kind
def test_two_sets_are_drawn_side_by_side(row):
    sets = {"raw weights": row.examples, "moving average": row.examples[::-1]}
    picture = row.kind.draw_side_by_side(sets)
    assert picture.size == row.beside
    pixels = np.asarray(picture)
    half = (row.beside[0] + 1) // 2
    assert (pixels[:TITLE, :half] < 200).any() and (pixels[:TITLE, half:] < 200).any()
    others = row.kind.draw_side_by_side({"a": row.examples, "b": row.examples[::-1]})
    assert (np.asarray(others) != pixels).any()  # The names differ.
    if row.kind is POINTS:
        assert dots_show(pixels[:, : row.size[0]], row.examples)
        return
    for x, left in ((row.examples, 0), (row.examples[::-1], row.size[0] + 8)):
        assert row.shown(pixels[TITLE:, left:], x)


@of_every_kind
def test_many_sets_are_drawn_in_a_grid(row):
    """Three sets, two in a row; the name of the third, a long one, is whole."""
    sets = {"a": row.examples, "b": row.examples[::-1], "c" * 80: row.examples}
    pixels = np.asarray(row.kind.draw_grid(sets, 2))
    height, num = row.in_grid
    assert pixels.shape[0] == 2 * (TITLE + height) + 8
    dark = (pixels < 200).reshape(*pixels.shape[:2], -1).any(-1)
    title = np.flatnonzero(dark[TITLE + height + 8 :][:TITLE].any(0))
    assert 400 < title.max() < (pixels.shape[1] - 8) // 2
    left = (pixels.shape[1] - 8) // 2 + 8
    if row.kind is POINTS:
        cell = pixels[TITLE:][: row.size[1], left:][:, : row.size[0]]
        assert dots_show(cell, row.examples[::-1])
        return
    for x, top, from_left in (
        (row.examples, 0, 0),
        (row.examples[::-1], 0, left),
        (row.examples, TITLE + height + 8, 0),
    ):
        in_a_row = pixels[top + TITLE :, from_left:]
        for i in range(0, num, 3):  # As if they were in rows of 3.
            assert row.shown(in_a_row[:, i * (height - GAP) :], x[i : min(i + 3, num)])


@of_every_kind
def test_a_trajectory_is_a_strip_and_an_animation(row):
    frames = np.stack([row.examples, row.examples[::-1], row.examples])
    strip = row.kind.draw_strip(frames, ["t = 0", "t = 1", "t = 2"])
    assert strip.size == row.strip
    animated = row.kind.draw_frames(frames)
    assert len(animated) == 3
    for picture, frame in zip(animated, frames, strict=True):
        assert picture.size == row.size and row.shown(np.asarray(picture), frame)
    pixels = np.asarray(strip)
    if row.kind is POINTS:
        first = row.size[0]
        assert dots_show(pixels[:, :first], frames[0])
        assert dots_show(pixels[:, first : 2 * first], frames[1])
        return
    if row.kind is CLIPS:  # A row for each frame of the first clip.
        assert rows_show(pixels, frames[:, 0].swapaxes(0, 1))
        return
    # A row for each of the first examples, its frames from left to right.
    rows = (strip.height - GAP) // (row.in_grid[0] - GAP)
    across = frames[:, :rows].swapaxes(0, 1).reshape(-1, *frames.shape[2:])
    assert row.shown(pixels, across)


@pytest.mark.parametrize("turns", [2, 3, 5, 20])
def test_rows_take_images_in_turn_and_none_is_left_out(turns):
    """Image i is in row i mod turns, also where the last column is not full."""
    shown = images(8, 4, 4, 1)
    sheet = np.asarray(PICTURES.draw(shown, turns=turns))
    rows, columns = min(turns, 8), -(-8 // min(turns, 8))
    assert sheet.shape == (rows * 50 + 2, columns * 50 + 2)
    for i, image in enumerate(shown):
        top, left = 2 + i % rows * 50, 2 + i // rows * 50
        tile = sheet[top : top + 48, left : left + 48]
        np.testing.assert_array_equal(tile, image[..., 0].repeat(12, 0).repeat(12, 1))


def test_a_strip_has_eight_images_and_an_animation_25_of_many():
    frames = images(2, 100, 48, 48, 1)
    strip = PICTURES.draw_strip(frames, ["", ""])
    assert strip.size == (2 * 50 + GAP, 8 * 50 + GAP)
    assert {picture.size for picture in PICTURES.draw_frames(frames)} == {(252, 252)}


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (2, "L"), (5, "L")])
def test_images_of_any_number_of_channels_are_drawn(channels, mode):
    """Images of 3 channels are drawn in colour, all others by their first channel."""
    x = images(1, 48, 48, channels)
    picture = PICTURES.draw(x)
    assert picture.mode == mode and picture.size == (52, 52)
    shown = x[0] if channels == 3 else x[0, ..., 0]
    np.testing.assert_array_equal(np.asarray(picture)[GAP:-GAP, GAP:-GAP], shown)


def test_all_levels_survive_the_way_there_and_back():
    """Level k is k / 127.5 - 1, rounded once to float32, compiled or not."""
    levels = np.arange(256, dtype=np.uint8)
    exact = (levels / 127.5 - 1).astype(np.float32)
    assert exact.min() == -1 and exact.max() == 1
    np.testing.assert_array_equal(PICTURES.to_network(jnp.asarray(levels)), exact)
    np.testing.assert_array_equal(jax.jit(PICTURES.to_network)(levels), exact)
    np.testing.assert_array_equal(PICTURES.from_network(exact), levels)
    # Values between two levels are rounded, not cut.
    near = exact + np.where(levels % 2 == 0, 0.49, -0.49).astype(np.float32) / 127.5
    np.testing.assert_array_equal(PICTURES.from_network(near), levels)


def test_images_of_a_file_get_the_shape_of_the_config():
    config = DataConfig(image_size=(4, 6), channels=1)
    found = PICTURES.from_file(images(2, 8, 12, 3), "x", config)
    assert found.shape == (2, 4, 6, 1) and found.dtype == np.uint8
