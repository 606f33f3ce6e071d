"""Folders, zips and .npz files: which images, of which class, split how, refused when."""

import os
import pathlib
import re
import shutil
import socket
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.config import DataConfig
from diffusion_jax.data import sources
from diffusion_jax.data.encoded import EncodedExamples
from diffusion_jax.data.images import Unreadable
from diffusion_jax.data.pipeline import Loader, StepBatches
from diffusion_jax.runtime.errors import BadRequest
from helpers import interrupted_after

RNG = np.random.default_rng(0)


def picture(path, color, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB" if isinstance(color, tuple) else "L", size, color).save(path)


@pytest.fixture
def folder(tmp_path):
    """Forty pictures in two classes, each of one colour that holds its number."""
    root = tmp_path / "pictures"
    for i in range(40):
        name = f"{'cats' if i % 4 else 'ants'}/deeper/{i:02}.{('png', 'webp')[i % 2]}"
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 100, 200)).save(path, lossless=True)
    (root / "notes.txt").write_text("not an image")
    (root / ".hidden.png").write_text("not an image")
    return root


def opened(path, **options):
    options = {"image_size": (8,), "channels": 3, "source": "folder", **options}
    return sources.open_data_set(DataConfig(path=str(path), **options))


def numbers(source):
    """Numbers of a source's pictures, by their colours."""
    return source[np.arange(len(source))][:, 0, 0, 0].tolist()


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                name = os.fsencode(file.relative_to(folder)).decode("utf-8", "replace")
                archive.write(file, pathlib.Path("top") / name)
    return path


def test_a_folder_is_split_once_and_for_all_with_its_classes(folder):
    data = opened(folder, held_out_fraction=0.1)
    assert data.shape == (8, 8, 3) and data.class_names == ("ants", "cats")
    train, held_out = numbers(data.train), numbers(data.held_out)
    assert len(held_out) == 4 and sorted(train + held_out) == list(range(40))
    for numbers_, labels in ((train, data.labels), (held_out, data.held_out_labels)):
        assert labels.tolist() == [int(n % 4 != 0) for n in numbers_]
    again = opened(folder, held_out_fraction=0.1)
    assert numbers(again.held_out) == held_out
    rows = data.train[np.array([5, 0, 5])]
    assert rows.dtype == np.uint8 and rows[:, 0, 0].tolist() == [
        [train[i], 100, 200] for i in (5, 0, 5)
    ]


def test_a_zip_of_a_folder_is_the_same(folder, tmp_path):
    data = opened(zipped(folder, tmp_path / "pictures.zip"))
    plain = opened(folder)
    assert data.class_names == plain.class_names
    np.testing.assert_array_equal(data.labels, plain.labels)
    assert numbers(data.train) == numbers(plain.train)
    assert numbers(data.held_out) == numbers(plain.held_out)


def test_a_flat_folder_has_no_classes_and_one_level_may_hold_all(tmp_path):
    for i in range(4):
        picture(tmp_path / f"flat/{i}.png", (i, 0, 0))
        picture(tmp_path / f"mixed/{i}.png", (i, 0, 0))
    picture(tmp_path / "mixed/more/9.png", (9, 0, 0))
    for name in ("flat", "mixed"):
        data = opened(tmp_path / name)
        assert data.class_names == () and data.labels is None


def test_a_folder_of_its_own_is_held_out(folder, tmp_path):
    for i in range(3):
        picture(tmp_path / f"val/ants/{i}.png", (50 + i, 0, 0))
        picture(tmp_path / f"val/cats/{i}.png", (60 + i, 0, 0))
    data = opened(folder, held_out=str(tmp_path / "val"))
    assert sorted(numbers(data.train)) == list(range(40))
    assert sorted(numbers(data.held_out)) == [50, 51, 52, 60, 61, 62]
    assert data.held_out_labels.tolist() == [0, 0, 0, 1, 1, 1]
    for other in (folder, folder / "ants", folder.parent):
        with pytest.raises(BadRequest, match="would be trained on"):
            opened(folder, held_out=str(other))
    picture(tmp_path / "val/dogs/0.png", (1, 1, 1))
    with pytest.raises(BadRequest, match="other classes"):
        opened(folder, held_out=str(tmp_path / "val"))


def test_channels_are_as_the_images_have_or_as_asked_for(folder, tmp_path):
    for i in range(5):
        picture(tmp_path / f"grey/{i}.png", 10 * i)
    assert opened(tmp_path / "grey", channels=0).shape == (8, 8, 1)
    assert opened(tmp_path / "grey", channels=3).shape == (8, 8, 3)
    assert opened(folder, channels=0).shape == (8, 8, 3)
    picture(folder / "ants/odd.png", 7)
    assert opened(folder, channels=1).shape == (8, 8, 1)


def test_grey_among_coloured_ones_becomes_coloured_and_it_is_said(folder, tmp_path, capsys):
    for i in range(3):
        picture(folder / f"ants/odd{i}.png", 7 + i)
    data = opened(folder, channels=0)
    assert "3 grey images become coloured, as the other 40 are" in capsys.readouterr().out
    pixels = np.concatenate([s[np.arange(len(s))] for s in (data.train, data.held_out)])
    assert pixels.shape == (43, 8, 8, 3)
    assert sum((image == image[..., :1]).all() for image in pixels) == 3
    # Grey images to train on become coloured as well if held-out ones are.
    for name in ("ants", "cats"):
        picture(tmp_path / f"grey/{name}/0.png", ord(name[0]))
    data = opened(tmp_path / "grey", channels=0, held_out=str(folder))
    assert data.shape == (8, 8, 3)
    assert "5 grey images become coloured" in capsys.readouterr().out
    opened(folder, channels=3)
    assert "grey images" not in capsys.readouterr().out


def wide(path, blue):
    """Write an image, green in the middle, red and blue where a crop does not reach."""
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, :8, 0] = pixels[:, 8:16, 1] = pixels[:, 16:, 2] = 255
    pixels[0, 0, 2] = blue  # No two are the same.
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.mark.parametrize(("resize", "sides"), [("crop", 0), ("squash", 255)])
def test_resize_is_as_the_config_says_everywhere(resize, sides, tmp_path):
    for blue, name in enumerate(("train/0.png", "train/1.png", "val/0.png")):
        pixels = wide(tmp_path / name, blue)
    np.savez(tmp_path / "a.npz", np.stack([pixels, pixels]))
    for path, options in (
        (tmp_path / "train", {"held_out": str(tmp_path / "val")}),
        (tmp_path / "a.npz", {"source": "npz"}),
    ):
        data = opened(path, resize=resize, **options)
        for split in (data.train, data.held_out):
            seen = split[np.array([0])][0].astype(int)
            assert abs(seen[:, 0, 0] - sides).max() < 60
            assert abs(seen[:, -1, 2] - sides).max() < 60
            assert (seen[:, 4, 1] > 190).all()


def test_many_pictures_are_all_decoded(tmp_path):
    """Pictures of more than one portion are decoded, each into its own place."""
    for i in range(600):
        picture(tmp_path / f"{i:03}.png", (i % 256, i // 256, 9), (1, 1))
    config = DataConfig(source="folder", path=str(tmp_path), channels=3, image_size=(1,))
    told = []
    data = sources.into_memory(
        sources.open_data_set(config), config, lambda *args: told.append(args)
    )
    both = np.concatenate([data.train, data.held_out])[:, 0, 0].astype(int)
    assert sorted(both[:, 0] + 256 * both[:, 1]) == list(range(600))
    assert told[-1][1:] == (12, 12) and ("decoding images", 588, 588) in told


def test_which_files_count(tmp_path):
    for name in ("A.JPG", "b.jpeg", "c.WebP", "__MACOSX/x.png", ".thumbs/d.png", "._b.png"):
        picture(tmp_path / "pictures" / name, (1, 2, 3))
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in (tmp_path / "pictures").rglob("*.*"):
            if file.is_file():
                archive.write(file, file.relative_to(tmp_path / "pictures"))
    for place in (tmp_path / "pictures", path):
        assert opened(place).train.encoded.names == ["A.JPG", "b.jpeg", "c.WebP"]


def test_links_count_as_what_they_lead_to_but_once(folder, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links/all").symlink_to(folder)
    (tmp_path / "links/again").symlink_to(folder)
    (folder / "loop").symlink_to(folder)
    data = opened(tmp_path / "links")
    assert sorted(numbers(data.train) + numbers(data.held_out)) == list(range(40))


def test_a_name_that_is_no_text_can_be_said(tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(b"")
    for i in range(3):
        picture(tmp_path / f"{i}.png", (i, i, i))
    opened(tmp_path, unreadable="skip")
    assert "caf\\udce9.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("count", "fraction", "sizes"),
    [(10, 0.01, (9, 1)), (2, 0.5, (1, 1)), (40, 0.04, (38, 2)), (3, 0.5, (1, 2))],
)
def test_both_splits_have_something(count, fraction, sizes, tmp_path):
    for i in range(count):
        picture(tmp_path / f"{i}.png", (i, i, i), (1, 1))
    data = opened(tmp_path, held_out_fraction=fraction)
    assert (len(data.train), len(data.held_out)) == sizes


def test_what_is_held_out_is_of_all_classes(folder):
    assert set(opened(folder, held_out_fraction=0.25).held_out_labels) == {0, 1}


def test_targets_need_not_be_square(folder):
    data = opened(folder, image_size=(4, 6))
    assert data.train[np.array([0])].shape == (1, 4, 6, 3)


DAMAGE = {
    "ants/zero.png": (b"", "the file is empty"),
    "ants/text.jpg": (b"no image", "not a PNG, JPEG, WEBP"),
}


def test_files_that_are_no_images_are_named_and_counted(folder, capsys):
    for name, (content, _) in DAMAGE.items():
        (folder / name).write_bytes(content)
    with pytest.raises(BadRequest) as error:
        opened(folder)
    assert "2 of 42 images cannot be read" in str(error.value)
    assert "data.unreadable=skip" in str(error.value)
    data = opened(folder, unreadable="skip")
    said = capsys.readouterr().out
    for name, (_, reason) in DAMAGE.items():
        assert name in str(error.value) and reason in str(error.value)
        assert name in said and "skipped: 2 of 42" in said
    assert sorted(numbers(data.train) + numbers(data.held_out)) == list(range(40))


def truncate(path):
    """Write an image cut after its header and a little more, found by decoding alone."""
    noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:3000])


def test_a_truncated_image_is_found_by_decoding_it(folder, capsys):
    truncate(folder / "ants/broken.png")
    config = DataConfig(source="folder", path=str(folder), channels=3)
    data = sources.open_data_set(config)
    with pytest.raises(BadRequest) as error:
        sources.into_memory(data, config)
    assert "1 of 41 images cannot be read: ants/broken.png" in str(error.value)
    where = [
        i
        for split in (data.train, data.held_out)
        for i in range(len(split))
        if split.encoded.name(split.indices[i]) == "ants/broken.png"
    ]
    with pytest.raises(Unreadable, match=r"ants/broken\.png"):
        data.train[np.array(where)]
    # The next readable image replaces a skipped one, streamed or decoded at once.
    config.unreadable = "skip"
    data = sources.open_data_set(config)
    memory = sources.into_memory(data, config)
    assert "1 of 41 images cannot be read" in capsys.readouterr().out
    everything = np.arange(len(data.train))
    np.testing.assert_array_equal(memory.train, data.train[everything])
    (i,) = where
    assert memory.train[i, 0, 0].tolist() == [numbers(data.train)[i + 1], 100, 200]


def test_the_last_example_is_replaced_by_the_first(tmp_path):
    for i in range(20):
        picture(tmp_path / f"{i:02}.png", (i, 0, 0))
    data = opened(tmp_path, unreadable="skip")
    truncate(tmp_path / data.train.encoded.name(data.train.indices[-1]))
    memory = sources.into_memory(data, DataConfig(unreadable="skip"))
    first, last = data.train[np.array([0, len(data.train) - 1])]
    np.testing.assert_array_equal(first, last)
    np.testing.assert_array_equal(memory.train[-1], first)


def test_a_folder_of_nothing_readable_is_refused_even_if_skipping(tmp_path):
    for i in range(3):
        truncate(tmp_path / f"{i}.png")
    config = DataConfig(source="folder", path=str(tmp_path), channels=3, unreadable="skip")
    with pytest.raises(BadRequest, match=r"3 of 3|2 of 2|1 of 1"):
        sources.into_memory(sources.open_data_set(config), config)


def test_a_damaged_member_of_a_zip_is_named(folder, tmp_path):
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for i in range(4):
            picture(tmp_path / "one.png", (i, i, i))
            archive.write(tmp_path / "one.png", f"{i}.png")
        offset = archive.getinfo("2.png").header_offset
    content = bytearray(path.read_bytes())
    content[offset + 60] ^= 255  # Within the file: its checksum no longer fits.
    path.write_bytes(content)
    config = DataConfig(source="folder", path=str(path), channels=3)
    with pytest.raises(BadRequest, match=r"2\.png"):
        sources.into_memory(sources.open_data_set(config), config)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p / "nowhere", "there is no such folder or zip"),
        (lambda p: (p / "empty").mkdir() or p / "empty", "it is empty"),
        (lambda p: (p / "a.mp4").write_text("x") and p, "it holds 1 .mp4"),
        (lambda p: (p / "a.zip").write_text("x") and p / "a.zip", "neither a folder"),
        (lambda p: pathlib.Path("~nobody-of-this-name/x"), "no such folder or zip"),
        (lambda p: pathlib.Path("/dev/zero"), "is a device, not a regular"),
        (lambda p: picture(p / "one.png", (1, 2, 3)) or p, "one example"),
    ],
)
def test_a_path_without_images_is_refused(make, said, tmp_path):
    with pytest.raises(BadRequest) as error:
        opened(make(tmp_path))
    assert said in str(error.value)


# .npz


def saved(path, *arrays, **named):
    np.savez(path, *arrays, **named)
    return path


def test_npz_images_and_labels_come_back(tmp_path):
    images = RNG.integers(0, 256, (50, 8, 8, 3), np.uint8)
    labels = np.arange(50)
    path = saved(tmp_path / "a.npz", images, labels)
    data = opened(path, source="npz", held_out_fraction=0.2)
    assert len(data.train) == 40 and len(data.held_out) == 10
    np.testing.assert_array_equal(images[data.labels], data.train)
    np.testing.assert_array_equal(images[data.held_out_labels], data.held_out)
    assert sorted([*data.labels, *data.held_out_labels]) == list(range(50))
    other = saved(tmp_path / "b.npz", 255 - images[:3], np.array([100, 101, 102]))
    data = opened(path, source="npz", held_out=str(other))
    np.testing.assert_array_equal(data.train, images)
    np.testing.assert_array_equal(data.held_out, 255 - images[:3])
    assert data.labels.tolist() == list(range(50))
    assert data.held_out_labels.tolist() == [100, 101, 102]
    with pytest.raises(BadRequest, match="would be trained on"):
        opened(path, source="npz", held_out=str(path))


def test_npz_images_are_resampled_as_files_are(tmp_path):
    color = np.array([10, 200, 90], np.uint8)
    path = saved(tmp_path / "a.npz", np.broadcast_to(color, (5, 8, 8, 3)))
    data = opened(path, source="npz", image_size=(4, 6))
    assert data.shape == (4, 6, 3) and (data.train == color).all()
    data = opened(path, source="npz", image_size=(4, 6), channels=1)
    assert data.shape == (4, 6, 1)
    assert abs(data.train - color @ np.array([0.299, 0.587, 0.114])).max() <= 0.51
    grey = saved(tmp_path / "b.npz", np.full((5, 8, 8, 1), 33, np.uint8))
    data = opened(grey, source="npz", image_size=(4, 6), channels=3)
    assert data.shape == (4, 6, 3) and (data.train == 33).all()


def test_npz_points_come_back(tmp_path):
    points = RNG.normal(size=(20, 3)).astype(np.float32)
    path = saved(tmp_path / "a.npz", points)
    data = opened(path, source="npz", image_size=(), channels=3, held_out_fraction=0.5)
    both = np.concatenate([data.train, data.held_out])
    assert sorted(both.tolist()) == sorted(points.tolist())


IMAGES = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda p: None, "there is no such file"),
        (lambda p: p.write_text("hello"), "is not an .npz"),
        (lambda p: np.savez(p, x=IMAGES, y=IMAGES), "has no arr_0; it has x, y"),
        (lambda p: np.savez(p, IMAGES / 255), "arr_0 is float64 [4, 8, 8, 3]"),
        (lambda p: np.savez(p, IMAGES[0]), "arr_0 is uint8 [8, 8, 3]"),
        (lambda p: np.savez(p, IMAGES[:0]), "not empty"),
        (lambda p: np.savez(p, IMAGES, np.arange(3)), "arr_1 is int64 [3]"),
        (lambda p: np.savez(p, IMAGES, np.zeros(4)), "arr_1 is float64 [4]"),
        (lambda p: np.savez(p, np.zeros((4, 8, 8, 2), np.uint8)), "2 channels"),
        (lambda p: np.savez(p, np.array([{"a": 1}] * 4, object)), "allow_pickle=False"),
        (lambda p: np.savez(p, IMAGES[:1]), "one example"),
        (lambda p: np.savez(p, IMAGES[:, :0]), "not empty"),
        (lambda p: np.savez(p, IMAGES[..., :0]), "not empty"),
        (
            lambda p: zipfile.ZipFile(p, "w").writestr("arr_0", "no array"),
            "must be arrays",
        ),
        (
            lambda p: np.savez(p, IMAGES) or p.write_bytes(p.read_bytes()[:-400]),
            "is not an .npz",
        ),
    ],
)
def test_an_npz_that_cannot_be_trained_on_is_refused(write, said, tmp_path):
    path = tmp_path / "a.npz"
    write(path)
    with pytest.raises(BadRequest) as error:
        opened(path, source="npz")
    assert said in str(error.value)
    assert "a.npz" in str(error.value) or said == "one example"


def test_an_npz_with_objects_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "hacked",))

    path = saved(tmp_path / "a.npz", np.array([Evil()], object))
    with pytest.raises(BadRequest):
        opened(path, source="npz")
    assert not (tmp_path / "hacked").exists()


# In memory or streamed


def test_what_does_not_fit_is_streamed_with_the_same_batches(folder, tmp_path):
    config = DataConfig(source="folder", path=str(folder), channels=3, image_size=(8,))
    size = 40 * 8 * 8 * 3 / 2**30
    data = sources.open_data_set(config)
    config.memory_gib = 0.99 * size
    streamed = sources.into_memory(data, config)
    config.memory_gib = 1.01 * size
    memory = sources.into_memory(data, config)
    assert isinstance(streamed.train, EncodedExamples)
    assert isinstance(memory.train, np.ndarray)
    config.path = str(zipped(folder, tmp_path / "pictures.zip"))
    unpacked = sources.open_data_set(config).train
    unpacked[np.array([0])]  # The zip is open; a worker opens it for itself.
    for source, start, workers in (
        (streamed.train, 0, 0),
        (streamed.train, 17, 0),
        (streamed.train, 3, 2),
        (unpacked, 3, 1),
    ):
        cond = {"number": np.array(numbers(memory.train)), "half": np.ones((39, 2), "f2")}
        wanted = StepBatches(memory.split("train"), 16, 5, slice(4, 12))
        batches = StepBatches(sources.Split(source, cond), 16, 5, slice(4, 12))
        with Loader(batches, start, most=3, num_workers=workers) as loader:
            for step in (start, start + 1, start + 4, start + 7):
                expected = np.stack([wanted[step + i].x for i in range(3)])
                batch = loader.load(step, 3)
                np.testing.assert_array_equal(batch.x, expected)
                # Each example has its own row of every condition.
                np.testing.assert_array_equal(batch.cond["number"], batch.x[..., 0, 0, 0])
                half = batch.cond["half"]
                assert half.shape == (3, 8, 2) and half.dtype == "f2" and half.all()


def test_an_image_that_is_skipped_takes_its_conditions_along(folder):
    """A row of conditions belongs to the image that replaces a skipped one."""
    data = opened(folder, unreadable="skip")
    which = np.array(numbers(data.train))
    ant = np.flatnonzero(which % 4 == 0)[-1]
    after = which[ant + 1]  # A cat.
    truncate(folder / f"ants/deeper/{which[ant]:02}.png")
    split = sources.Split(data.train, {"number": which, "label": data.labels})
    batch = split[np.array([ant, 0])]
    assert batch.x[:, 0, 0, 0].tolist() == [after, which[0]]
    assert batch.cond["number"].tolist() == [after, which[0]]
    assert batch.cond["label"].tolist() == [1, data.labels[0]]
    memory = sources.into_memory(data, DataConfig(source="folder", unreadable="skip"))
    np.testing.assert_array_equal(memory.labels, memory.train[:, 0, 0, 0] % 4 > 0)
    np.testing.assert_array_equal(memory.held_out_labels, data.held_out_labels)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_while_streaming_is_named(folder, workers):
    config = DataConfig(source="folder", path=str(folder), channels=3, memory_gib=0)
    data = sources.open_data_set(config)
    truncate(folder / "cats/deeper/07.webp")  # After its header was read.
    batches = StepBatches(
        data.split("train"), len(data.train), 0, slice(0, len(data.train))
    )
    with Loader(batches, 0, 1, workers) as loader:
        with pytest.raises(Unreadable, match=r"cats/deeper/07\.webp"):
            loader.load(0, 1)


def test_a_folder_path_is_for_sources_that_read_one():
    with pytest.raises(BadRequest, match="digits does not"):
        sources.open_data_set(DataConfig(path="x"))
    with pytest.raises(BadRequest, match="did you mean folder?"):
        sources.open_data_set(DataConfig(source="foldr"))
    with pytest.raises(BadRequest, match="is for points"):
        sources.open_data_set(DataConfig(source="folder", path="x", image_size=()))
    with pytest.raises(BadRequest, match=r"data\.channels \(2\)"):
        sources.open_data_set(DataConfig(source="folder", path="x", channels=2))


# Odd paths, and files that are not regular

STRANGE = (
    "a [v2]",
    "b*?",
    "c%20#",
    "d\n\t",
    "e'\"\\",
    os.fsdecode(b"f\xe9"),
    "{x,y}~",
    "-g",
)


@pytest.mark.parametrize("name", STRANGE)
def test_any_path_that_a_file_system_allows_works(name, folder, tmp_path, capsys):
    strange = tmp_path / name
    strange.mkdir()
    shutil.copytree(folder, strange / "pictures")
    picture(strange / f"pictures/ants/{name}.png", (50, 0, 0))
    picture(strange / "val/ants/0.png", (51, 0, 0))
    picture(strange / "val/cats/0.png", (52, 0, 0))
    archive = zipped(strange / "pictures", strange / "pictures.zip")
    for path in (strange / "pictures", archive):
        data = opened(path, held_out=str(strange / "val"))
        assert sorted(numbers(data.train)) == [*range(40), 50]
        assert sorted(numbers(data.held_out)) == [51, 52]
        batches = StepBatches(data.split("train"), 4, 0, slice(0, 4))
        with Loader(batches, 0, most=1, num_workers=0) as loader:
            np.testing.assert_array_equal(loader.load(0, 1).x[0], batches[0].x)
    images = RNG.integers(0, 256, (4, 8, 8, 3), np.uint8)
    path = saved(strange / "a.npz", images)
    other = saved(strange / "b.npz", 255 - images[:1])
    data = opened(path, source="npz", held_out=str(other))
    np.testing.assert_array_equal(data.train, images)
    # In messages a path is one line that can be printed.
    (strange / "pictures/ants/broken.png").write_bytes(b"")
    (strange / f"pictures/{name}.txt").touch()
    with pytest.raises(BadRequest) as error:
        opened(strange / "pictures")
    assert str(error.value).isprintable()
    said = capsys.readouterr().out
    assert said.replace("\n", "").isprintable() and "left out" in said


@pytest.fixture
def in_time():
    """Fail where something waits for ever, as opening a named pipe does."""
    with interrupted_after(30, AssertionError("it waits")):
        yield


def special(path, kind):
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as end:
            os.chdir(path.parent)  # A socket's path must be short.
            end.bind(path.name)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path.parent)  # A folder; os.walk does not list it as a file.
    return path


KINDS = ("a named pipe", "a socket", "a device")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_unreadable_for_the_true_reason(
    kind, folder, tmp_path, monkeypatch, in_time, capsys
):
    monkeypatch.chdir(tmp_path)
    special(folder / "ants/x.png", kind)
    with pytest.raises(BadRequest, match=f"1 of 41 .*ants/x.png: is {kind}, not a regular"):
        opened(folder)
    assert len(opened(folder, unreadable="skip").train) == 39
    place = special(tmp_path / "place", kind)
    for options in ({"source": "folder"}, {"source": "npz"}):
        with pytest.raises(BadRequest, match=rf"data\.path .* is {kind}"):
            opened(place, **options)
    with pytest.raises(BadRequest, match=rf"data\.held_out .* is {kind}"):
        opened(folder, unreadable="skip", held_out=str(place))
    path = saved(tmp_path / "a.npz", np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(BadRequest, match=rf"data\.held_out .* is {kind}"):
        opened(path, source="npz", held_out=str(place))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("what", ["a picture", "the zip"])
def test_a_pipe_that_takes_the_place_of_a_file_stops_the_stream(
    workers, what, folder, tmp_path, in_time
):
    path = folder if what == "a picture" else zipped(folder, tmp_path / "a.zip")
    data = opened(path)
    victim = path if what == "the zip" else folder / "cats/deeper/07.webp"
    victim.unlink()
    os.mkfifo(victim)
    data.train.encoded._archive = None  # As in a process that has not opened it yet.
    batches = StepBatches(
        data.split("train"), len(data.train), 0, slice(0, len(data.train))
    )
    with Loader(batches, 0, 1, workers) as loader:
        with pytest.raises(Unreadable, match="is a named pipe"):
            loader.load(0, 1)


def test_a_path_that_cannot_even_be_looked_at_is_refused(folder, tmp_path):
    for path in ("x" * 300, "a\0b", str(tmp_path / "a.npz/b")):
        (tmp_path / "a.npz").touch()
        for source in ("folder", "npz"):
            with pytest.raises(BadRequest, match="no such|cannot be read"):
                opened(path, source=source)
            good = folder if source == "folder" else saved(tmp_path / "b.npz", IMAGES)
            with pytest.raises(BadRequest, match="held_out.*(no such|cannot be read)"):
                opened(good, source=source, held_out=path)


# Names from outside


def test_names_and_classes_cannot_forge_lines(tmp_path, capsys):
    evil = "\x1b]0;title\x07\nERROR: forged\u202e"
    for name in (f"{evil}/0.png", "cats/1.png", f"cats/{evil}.png"):
        picture(tmp_path / "train" / name, (1, 2, len(name)))
        picture(tmp_path / "val" / f"more{name}", (3, 2, len(name)))
    (tmp_path / "train" / evil / "bad.png").touch()
    (tmp_path / "train" / f"notes.{evil}").touch()
    with pytest.raises(BadRequest) as error:
        opened(tmp_path / "train")
    assert str(error.value).isprintable()
    with pytest.raises(BadRequest, match="other classes") as error:
        opened(tmp_path / "train", held_out=str(tmp_path / "val"), unreadable="skip")
    assert str(error.value).isprintable()
    said = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in said)
    assert not any(line.startswith("ERROR") for line in said)


def listed(said):
    return pathlib.Path(re.search(r"\(all of them: (.*?)\)", said)[1])


def test_a_list_that_is_cut_short_is_whole_in_a_file(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for i in range(7):
        (folder / f"ants/bad{i}\n.png").touch()
        (folder / f"photo{i}.heic").touch()
    opened(folder, unreadable="skip")
    others, bad = capsys.readouterr().out.splitlines()
    assert "7 .heic, 1 .txt" in others and "and 3 more" in others
    lines = listed(bad).read_text().splitlines()
    assert lines == [f"ants/bad{i}\\n.png: the file is empty" for i in range(7)]
    names = listed(others).read_text().splitlines()
    assert sorted(names) == ["notes.txt", *(f"photo{i}.heic" for i in range(7))]
    assert listed(bad).stat().st_mode & 0o077 == 0
    for path in (listed(bad), listed(others)):
        path.unlink()
    # If the message names all of them, there is no file.
    for i in range(4):
        (folder / f"photo{i}.heic").unlink()
        (folder / f"ants/bad{i}\n.png").unlink()
    opened(folder, unreadable="skip")
    assert "all of them" not in capsys.readouterr().out
    assert not list(tmp_path.glob("diffusion_jax*"))


def test_streaming_says_that_pixels_are_not_looked_at_yet(folder, capsys):
    config = DataConfig(source="folder", path=str(folder), channels=3, memory_gib=0)
    data = sources.open_data_set(config)
    capsys.readouterr()
    sources.into_memory(data, config)
    assert "decoded for each batch" in capsys.readouterr().out
    for options in ({"unreadable": "skip"}, {"memory_gib": 1}):
        sources.into_memory(data, DataConfig(channels=3, **options))
        assert "decoded for each batch" not in capsys.readouterr().out


def test_files_of_all_kinds_are_taken_and_others_counted(tmp_path, capsys):
    for i, suffix in enumerate((".gif", ".bmp", ".TIF", ".tiff", ".jfif", ".jpe", ".ppm")):
        kind = "JPEG" if suffix.startswith(".j") else None
        color = Image.new("RGB", (8, 8), (10 * i, 0, 0))
        color.save(tmp_path / f"{i}{suffix}", kind)
    for i in range(2):
        (tmp_path / f"{i}.heic").touch()
    data = opened(tmp_path)
    seen = sorted([*numbers(data.train), *numbers(data.held_out)])
    assert abs(np.array(seen) - 10 * np.arange(7)).max() <= 3
    assert "2 .heic" in capsys.readouterr().out


# Zips


def entries(path, *named, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in named:
            archive.writestr(name, content)
    return path


def png_bytes(tmp_path, color):
    picture(tmp_path / "one.png", color)
    return (tmp_path / "one.png").read_bytes()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_is_itself_even_if_another_has_its_name(tmp_path):
    named = [("a.png", png_bytes(tmp_path, (i, 0, 0))) for i in (1, 2, 3)]
    data = opened(entries(tmp_path / "a.zip", *named, ("b.png", named[0][1])))
    assert sorted([*numbers(data.train), *numbers(data.held_out)]) == [1, 1, 2, 3]
    workers = StepBatches(data.split("train"), 3, 0, slice(0, 3))
    with Loader(workers, 0, 1, num_workers=1) as loader:
        np.testing.assert_array_equal(loader.load(0, 1).x[0], workers[0].x)


def test_backslashes_separate_folders_where_nothing_else_does(tmp_path):
    named = [
        (rf"top\{c}\{i}.png", png_bytes(tmp_path, (i, 0, 0)))
        for i, c in enumerate(("ants", "cats"))
    ]
    data = opened(entries(tmp_path / "a.zip", ("top\\ants\\", b""), *named))
    assert data.class_names == ("ants", "cats")
    data = opened(entries(tmp_path / "b.zip", (r"x/a\b.png", named[0][1]), named[1]))
    assert data.class_names == ()


def test_names_that_lead_out_of_a_zip_lead_nowhere(tmp_path):
    names = ("/etc/a.png", "../../b.png", "./c.png", "x/../d.png")
    named = [(n, png_bytes(tmp_path, (i, 0, 0))) for i, n in enumerate(names)]
    data = opened(entries(tmp_path / "a.zip", *named))
    assert data.train.encoded.names == ["b.png", "c.png", "etc/a.png", "x/d.png"]
    seen = [data.train.encoded.read(i) for i in range(4)]
    assert seen == [named[i][1] for i in (1, 2, 0, 3)]


def test_an_encrypted_entry_is_called_so(tmp_path):
    path = entries(tmp_path / "a.zip", *[(f"{i}.png", b"x" * 99) for i in range(3)])
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    content[start + 8] |= 1  # In the table of contents, and where the entry lies.
    content[6] |= 1
    path.write_bytes(content)
    with pytest.raises(BadRequest, match=r"0.png: it is encrypted"):
        opened(path)


@pytest.mark.parametrize(
    "head",
    [
        b"RIFF\xf8\xff\xff\xffWEBPVP8 \xec\xff\xff\xff",
        b"RIFF\xf8\xff\xff\xffWEBPVP8X\x0a\0\0\0" + bytes(10),
        b"\0\0\0\x18ftypavif",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
    ],
)
def test_a_bomb_in_a_zip_is_not_unpacked(head, tmp_path):
    """An entry that unpacks to 256 MiB is refused, read for its header or as a whole."""
    tight = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = tight.compress(head) + b"".join(tight.compress(bytes(2**22)) for _ in range(64))
    data += tight.flush()
    path = entries(tmp_path / "a.zip", ("x.webp", b""))
    size = len(head) + 2**28
    sizes = struct.pack("<LLL", 0, len(data), size)
    local = struct.pack("<4sHHHHH", b"PK\3\4", 20, 0, 8, 0, 0) + sizes
    local += struct.pack("<HH", 6, 0) + b"x.webp"
    table = struct.pack("<4sHHHHHH", b"PK\1\2", 20, 20, 0, 8, 0, 0) + sizes
    table += struct.pack("<HHHHHLL", 6, 0, 0, 0, 0, 0, 0) + b"x.webp"
    end = struct.pack(
        "<4sHHHHLLH", b"PK\5\6", 0, 0, 1, 1, len(table), len(local) + len(data), 0
    )
    path.write_bytes(local + data + table + end)
    with pytest.raises(BadRequest, match=r"taken for a bomb"):
        opened(path)
    # No more is unpacked than an entry claims to hold.
    small = struct.pack("<LLL", 0, len(data), 1000)
    path.write_bytes((local + data + table + end).replace(sizes, small))
    with pytest.raises(BadRequest, match=r"1 of 1 images cannot be read"):
        sources.into_memory(opened(path), DataConfig(channels=3))


def test_a_huge_file_is_not_read(folder):
    with (folder / "ants/x.png").open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(BadRequest, match=r"x.png: it has more than 536,870,912 bytes"):
        opened(folder)


# What is no folder, zip or .npz

FORMATS = [
    (b"\x80\x04\x95", "a pickle", "np.savez"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "np.savez"),
    (b"PAR1", "a Parquet file", "np.savez"),
    (b"\x1f\x8b\x08", "compressed by gzip", "unpack it"),
    (bytes(257) + b"ustar\x00", "a tar", "unpack it"),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it"),
]


@pytest.mark.parametrize("source", ["folder", "npz"])
@pytest.mark.parametrize(("content", "name", "remedy"), FORMATS)
def test_other_formats_are_named_with_what_to_do(content, name, remedy, source, tmp_path):
    (tmp_path / "data").write_bytes(content + bytes(1000))
    with pytest.raises(BadRequest, match=f"is {name}.*{remedy}"):
        opened(tmp_path / "data", source=source)


def test_one_picture_and_the_wrong_source_are_named(folder, tmp_path):
    one = folder / "ants/deeper/00.png"
    for source in ("folder", "npz"):
        with pytest.raises(BadRequest, match="is one image"):
            opened(one, source=source)
    with pytest.raises(BadRequest, match="is a zip of images.*source=folder"):
        opened(zipped(folder, tmp_path / "a.zip"), source="npz")
    with pytest.raises(BadRequest, match="data.source=npz"):
        opened(saved(tmp_path / "a.npz", np.zeros(3)))
    with pytest.raises(BadRequest, match="is a folder.*source=folder"):
        opened(folder, source="npz")


# Arrays


def test_a_npy_is_read_as_it_is(tmp_path):
    images = RNG.integers(0, 256, (10, 8, 8, 3), np.uint8)
    for order in "CF":
        np.save(tmp_path / "a.npy", np.asarray(images, order=order))
        np.save(tmp_path / "b.npy", 255 - images[:2])
        data = opened(tmp_path / "a.npy", source="npz", held_out=str(tmp_path / "b.npy"))
        np.testing.assert_array_equal(data.train, images)
        np.testing.assert_array_equal(data.held_out, 255 - images[:2])
    np.save(tmp_path / "a.npy", np.array([{}], object))
    with pytest.raises(BadRequest, match="allow_pickle=False"):
        opened(tmp_path / "a.npy", source="npz")


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_arrays_of_any_order_come_back(order, write, tmp_path):
    images = np.asarray(RNG.integers(0, 256, (10, 8, 8, 3), np.uint8), order=order)
    write(tmp_path / "a.npz", images, np.arange(10, dtype=">i8"))
    data = opened(tmp_path / "a.npz", source="npz", held_out_fraction=0.5)
    np.testing.assert_array_equal(data.train, images[data.labels])


UINT8 = RNG.integers(0, 256, (4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ([UINT8.transpose(0, 3, 1, 2)], "looks like [N, C, H, W]"),
        ([UINT8.transpose(0, 3, 1, 2) / 255], "looks like [N, C, H, W]"),
        ([UINT8 / 255], "np.rint(arr_0 * 255)"),
        ([(UINT8 / 127.5 - 1).astype(np.float32)], "np.rint((arr_0 + 1) * 127.5)"),
        ([UINT8.astype(np.float32)], "scale it to 0 to 255"),
        ([UINT8.astype(np.int64)], "save arr_0.astype(np.uint8)"),
        ([UINT8 > 9], "arr_0.astype(np.uint8) * 255"),
        ([UINT8.astype(np.uint16) * 257], "np.rint(arr_0 / 257)"),
        ([UINT8[..., 0]], "save arr_0[..., None]"),
        ([UINT8, np.array([0, 1, 2, 2**31])], "must fit into int32"),
        ([UINT8, np.array([0, 1, 2, 2**63], np.uint64)], "must fit into int32"),
        ([UINT8, np.array([0, 1, 2, -(2**31) - 1])], "must fit into int32"),
    ],
)
def test_arrays_of_another_form_are_refused_with_the_remedy(arrays, said, tmp_path):
    with pytest.raises(BadRequest) as error:
        opened(saved(tmp_path / "a.npz", *arrays), source="npz")
    assert said in str(error.value)


def test_points_of_another_kind_are_refused_with_the_remedy(tmp_path):
    path = saved(tmp_path / "a.npz", np.zeros((4, 2)))
    with pytest.raises(BadRequest, match=r"arr_0.astype\(np.float32\)"):
        opened(path, source="npz", image_size=())


def claiming(path, shape, content=b"", size=None):
    """Write a .npy whose header claims another shape than there are bytes."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(117) + "\n"
    whole = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    if path.suffix == ".npy":
        path.write_bytes(whole + content)
        if size:
            os.truncate(path, size)
        return path
    return entries(path, ("arr_0.npy", whole + content), compression=zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_an_array_that_claims_more_than_is_there_is_refused(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    for shape in ((10**9, 1000, 1000, 3), (2**62, 4, 4, 4), (4, 8, 8, 4), (-4, 8, 8, -3)):
        with pytest.raises(BadRequest, match="claims|damaged"):
            opened(claiming(path, shape, bytes(768)), source="npz")


def test_arrays_that_are_bombs_are_not_unpacked(tmp_path):
    shape = (2**18, 32, 32, 3)
    path = claiming(tmp_path / "a.npy", shape, size=128 + 2**18 * 3072)
    with pytest.raises(BadRequest, match="bomb.*raise data.memory_gib"):
        opened(path, source="npz", memory_gib=0.5)
    path = claiming(tmp_path / "a.npz", (2**28,), bytes(2**28 + 1))
    with pytest.raises(BadRequest, match="bomb"):
        opened(path, source="npz", memory_gib=0.1)


# Held-out images are not trained on


def test_what_is_held_out_is_never_trained_on_under_another_name(tmp_path):
    for i in range(4):
        picture(tmp_path / f"a/{i}.png", (i, 0, 0))
        picture(tmp_path / f"b/{i}.png", (9 + i, 0, 0))
    a, b = tmp_path / "a", tmp_path / "b"
    opened(a, held_out=str(b))

    def refused(said="in common"):
        for one, other in ((a, b), (b, a)):
            with pytest.raises(BadRequest, match=said):
                opened(one, held_out=str(other))

    for link in (os.symlink, os.link, shutil.copy):
        link(b / "1.png", a / "other.png")
        refused("other.png|1.png")
        (a / "other.png").unlink()
    (a / "more").symlink_to(b)
    refused()
    (a / "more").unlink()
    (tmp_path / "c").symlink_to(a)
    with pytest.raises(BadRequest, match="would be trained on"):
        opened(a, held_out=str(tmp_path / "c"))
    # Images in a zip are compared by content, and those of two zips by their entries.
    archive = zipped(b, tmp_path / "b.zip")
    with pytest.raises(BadRequest, match=r"4 images in common.*top/0.png is 0.png"):
        opened(b, held_out=str(archive))
    os.link(archive, tmp_path / "again.zip")
    with pytest.raises(BadRequest, match="in common"):
        opened(archive, held_out=str(tmp_path / "again.zip"))
    opened(a, held_out=str(archive))


def test_files_of_one_size_are_not_taken_for_one(tmp_path):
    """Uncompressed pictures that differ at their end alone, behind 64 KiB."""
    pixels = RNG.integers(0, 256, (200, 200, 3), np.uint8)
    for name in ("a/0.bmp", "a/1.bmp", "b/0.bmp"):
        pixels[0, 0] += 1  # The first row is the last in the file.
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    opened(tmp_path / "a", held_out=str(tmp_path / "b"))
    shutil.copy(tmp_path / "a/0.bmp", tmp_path / "b/1.bmp")
    with pytest.raises(BadRequest, match="1 images in common.*: 1.bmp is 0.bmp"):
        opened(tmp_path / "a", held_out=str(tmp_path / "b"))


def test_one_file_under_two_names_is_on_one_side_only(folder, capsys):
    for i in range(0, 40, 2):
        os.symlink(
            folder / f"{'cats' if i % 4 else 'ants'}/deeper/{i:02}.png",
            folder / f"ants/link{i}.png",
        )
    os.link(folder / "ants/deeper/00.png", folder / "ants/hard.png")
    data = opened(folder, held_out_fraction=0.5)
    both = [*numbers(data.train), *numbers(data.held_out)]
    assert sorted(both) == list(range(40))
    assert "as other names of the same files: 21" in capsys.readouterr().out


def test_a_home_is_a_place_like_others(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(opened("~/pictures").train) == 39
    with pytest.raises(BadRequest, match="must not contain one another"):
        opened(folder, held_out="~/pictures/ants")


def test_arrays_that_are_trained_on_are_not_held_out(tmp_path):
    np.savez(tmp_path / "a.npz", UINT8)
    for name, part in (("all", UINT8), ("some", UINT8[1:3][::-1])):
        np.savez_compressed(tmp_path / f"{name}.npz", part)
        with pytest.raises(BadRequest, match="would be trained on"):
            opened(tmp_path / "a.npz", source="npz", held_out=str(tmp_path / f"{name}.npz"))
    np.savez(tmp_path / "other.npz", np.concatenate([UINT8[:1], 255 - UINT8[:1]]))
    opened(tmp_path / "a.npz", source="npz", held_out=str(tmp_path / "other.npz"))


@pytest.mark.parametrize("name", ["ants/song.WAV", "trip.mp4", "cats/a.flac"])
def test_a_mixture_of_kinds_in_a_folder_is_refused(name, folder, tmp_path):
    (folder / name).touch()
    for place in (folder, zipped(folder, tmp_path / "pictures.zip")):
        with pytest.raises(BadRequest, match="mixes images with") as error:
            opened(place)
        assert name in str(error.value) and "to a folder of its own" in str(error.value)
