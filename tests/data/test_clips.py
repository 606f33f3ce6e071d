"""Clips from files, GIF, animated WebP and MP4, and to files."""

import io
import zipfile

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from diffusion_jax.config import DataConfig
from diffusion_jax.data import clip_files, images, sources
from diffusion_jax.data.clip_files import ClipFormat
from diffusion_jax.data.clips import CLIPS
from diffusion_jax.data.unreadable import Unreadable
from diffusion_jax.runtime.errors import BadRequest

RNG = np.random.default_rng(0)


def encoded(frames, format, **options):
    """Return the file of frames, uint8 [F, H, W, 3], as Pillow writes it."""
    first, *others = map(Image.fromarray, frames)
    file = io.BytesIO()
    first.save(file, format, save_all=True, append_images=others, **options)
    return file.getvalue()


def as_gif(frames, **options):
    return encoded(frames, "GIF", **options)


def as_webp(frames):
    return encoded(frames, "WEBP", lossless=True)


def as_mp4(frames, **options):
    """Return an H.264 file without loss, except for the change of colours."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


WRITERS = {".gif": as_gif, ".webp": as_webp, ".mp4": as_mp4}


def greys(count, height=32, width=48):
    """Return frames whose upper half is grey, 20 levels brighter each, above black."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[:, : height // 2] = 20 * np.arange(1, count + 1)[:, None, None, None]
    return frames


def noise(count, height, width, levels):
    values = RNG.integers(0, 256, (levels, 3), np.uint8)
    return values[RNG.integers(0, levels, (count, height, width))]


def config_of(path, num_frames=4, size=(8, 12), **fields):
    fields = {"channels": 3, "held_out_fraction": 0.5, **fields}
    return DataConfig(
        source="folder", path=str(path), image_size=size, num_frames=num_frames, **fields
    )


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_first_frames_of_a_file_are_an_example(suffix, tmp_path):
    """Frames of one grey above black, which shrinking leaves as they are in the middle."""
    for i in range(2):
        (tmp_path / f"{i}{suffix.upper()}").write_bytes(WRITERS[suffix](greys(6)))
    data = sources.open_data_set(config_of(tmp_path))
    assert data.shape == (4, 8, 12, 3) and len(data.train) == len(data.held_out) == 1
    clip = data.train[np.array([0])][0].astype(int)
    assert clip.dtype == int and clip.shape == data.shape
    tolerance = 4 if suffix == ".mp4" else 0  # Colours of MP4 are rounded.
    wanted = 20 * np.arange(1, 5)[:, None, None]
    assert np.abs(clip[:, 0] - wanted).max() <= tolerance
    assert np.abs(clip[:, -1]).max() <= tolerance


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("write", [as_gif, as_webp])
def test_frames_are_fitted_as_images_are(write, resize):
    frames = noise(3, 20, 31, 60)
    clip = ClipFormat(3, resize).decode(write(frames), (3, 8, 12, 3))
    for frame, original in zip(clip, frames, strict=True):
        file = io.BytesIO()
        Image.fromarray(original).save(file, "PNG")
        alone = images.decode(file.getvalue(), (8, 12, 3), resize)
        np.testing.assert_array_equal(frame, alone)


def test_a_clip_of_the_shape_of_the_config_keeps_its_bytes():
    frames = noise(4, 8, 12, 30)
    for content in (as_gif(frames), as_webp(frames)):
        np.testing.assert_array_equal(ClipFormat(4).decode(content, frames.shape), frames)


@pytest.mark.parametrize(("disposal", "stays"), [(1, True), (2, False)])
def test_frames_of_a_gif_are_composed_as_a_player_does(disposal, stays):
    """Squares on nothing: the next frame lies on the last one, or where that one was."""
    frames = np.zeros((3, 12, 12, 4), np.uint8)
    for i, frame in enumerate(frames):
        frame[:, 4 * i : 4 * i + 4] = (60 * i, 60 * i, 60 * i, 255)
    content = as_gif(frames, disposal=disposal)
    clip = ClipFormat(3).decode(content, (3, 12, 12, 1))[:, 0, ::4, 0]
    gone = 0 if stays else 255  # What is transparent lies on white.
    first, second = (0, 60) if stays else (gone, gone)
    expected = [[0, 255, 255], [first, 60, 255], [first, second, 120]]
    np.testing.assert_array_equal(clip, expected)


def test_how_long_a_frame_is_shown_does_not_matter():
    frames = noise(4, 8, 12, 30)
    read = ClipFormat(4).decode
    even, uneven = (
        read(as_gif(frames, duration=d), frames.shape) for d in (100, [20, 500, 30, 90])
    )
    np.testing.assert_array_equal(even, uneven)


def test_an_mp4_that_is_to_be_turned_is_turned():
    """The matrix of a phone that is held upright: a quarter to the right."""
    content = as_mp4(greys(4))
    start = content.index(b"tkhd") + 44
    one, turned = 2**16, [0, 2**16, 0, -(2**16), 0, 0, 0, 0, 2**30]
    assert np.frombuffer(content[start : start + 36], ">i4")[[0, 4]].tolist() == [one] * 2
    content = content[:start] + np.array(turned, ">i4").tobytes() + content[start + 36 :]
    clip = ClipFormat(4).decode(content, (4, 48, 32, 3))
    # The upper half becomes the right half.
    assert (
        clip[3, :, :12].max() <= 4 and np.abs(clip[3, :, 20:].astype(int) - 80).max() <= 4
    )


def test_grey_clips_have_one_channel_beside_others_three(tmp_path):
    for i in range(2):
        Image.new("L", (8, 8)).save(
            tmp_path / f"{i}.gif", save_all=True, append_images=[Image.new("L", (8, 8), 9)]
        )
    found = sources.open_data_set(config_of(tmp_path, 2, (8,), channels=0))
    assert found.shape == (2, 8, 8, 1)
    (tmp_path / "coloured.gif").write_bytes(as_gif(noise(2, 8, 8, 9)))
    found = sources.open_data_set(config_of(tmp_path, 2, (8,), channels=0))
    assert found.shape == (2, 8, 8, 3)


def test_sub_folders_are_classes_and_a_zip_is_as_the_folder(tmp_path):
    archive = zipfile.ZipFile(tmp_path / "clips.zip", "w")
    for i, name in enumerate(["cat/a.gif", "cat/b.webp", "dog/c.mp4", "dog/d.gif"]):
        content = WRITERS[name[-4:].replace("webp", ".webp")](greys(3 + i))
        path = tmp_path / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        archive.writestr(name, content)
    archive.close()
    folder, zipped = (
        config_of(tmp_path / name, 3, labels=True) for name in ("clips", "clips.zip")
    )
    data = sources.open_data_set(folder)
    assert data.class_names == ("cat", "dog")
    streamed = data.split("train")[np.arange(2)]
    kept = sources.into_memory(sources.open_data_set(zipped), zipped)
    whole = kept.split("train")[np.arange(2)]
    np.testing.assert_array_equal(whole.x, streamed.x)
    np.testing.assert_array_equal(whole.cond["label"], streamed.cond["label"])


def with_canvas(content, side):
    return content[:6] + 2 * side.to_bytes(2, "little") + content[10:]


def damaged(content):
    middle = len(content) // 2
    return content[:middle] + b"\xff" * 400 + content[middle + 400 :]


ENCRYPTION = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "0123456789abcdef" * 2,
    "encryption_kid": "fedcba9876543210" * 2,
}


BAD = {
    "short.gif": (as_gif(greys(3)), "it has 3 frames, fewer than data.num_frames (4)"),
    "short.mp4": (as_mp4(greys(3)), "it has 3 frames, fewer than data.num_frames (4)"),
    "still.webp": (as_webp(greys(1)), "it has 1 frame, fewer than data.num_frames (4)"),
    "empty.mp4": (b"", "the file is empty"),
    "text.gif": (b"some words " * 40, "it is not a GIF, WebP or MP4"),
    "cut.webp": (as_webp(greys(4))[:-20], "it is truncated"),
    "cut.mp4": (as_mp4(greys(4))[:400], "Invalid data found when processing input"),
    "codec.mp4": (as_mp4(greys(4)).replace(b"avc1", b"zzzz"), "convert it to H.264"),
    "page.mp4": (b"<!doctype html>" + bytes(300), "it is a web page; download the file"),
    "canvas.gif": (with_canvas(as_gif(greys(4)), 2**15), "for a decompression bomb"),
    "frames.gif": (
        with_canvas(as_gif(noise(12, 9, 9, 9)), 9000),
        "12 frames of 9000 x 9000 pixels are taken for a decompression bomb",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_such_clip_is_named_when_the_run_starts(name, tmp_path):
    content, said = BAD[name]
    num_frames = 12 if name == "frames.gif" else 4
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.gif").write_bytes(as_gif(greys(12)))
    with pytest.raises(BadRequest) as error:
        sources.open_data_set(config_of(tmp_path, num_frames))
    assert f"1 of 2 clips cannot be read: {name}: " in str(error.value)
    assert said in str(error.value) and "data.unreadable=skip" in str(error.value)


def test_a_single_image_is_no_clip(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.gif", "PNG")
    with pytest.raises(BadRequest, match=r"it is one image \(PNG\), not a clip"):
        sources.open_data_set(config_of(tmp_path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (damaged(as_mp4(noise(4, 32, 48, 99))), "Invalid data found"),
        (as_mp4(greys(4), **ENCRYPTION), "it is encrypted"),
        (as_gif(noise(4, 32, 48, 99))[:-900], "truncated"),
        (as_webp(greys(4))[:-20], "it is truncated"),
        (as_mp4(greys(3)), "it has 3 frames, fewer than data.num_frames (4)"),
    ],
    ids=["damaged.mp4", "encrypted.mp4", "cut.gif", "cut.webp", "short.mp4"],
)
def test_damage_behind_the_header_is_found_by_decoding(content, said):
    with pytest.raises(Unreadable) as error:
        ClipFormat(4).decode(content, (4, 8, 12, 3))
    assert said in str(error.value)


def test_an_encrypted_entry_of_a_zip_is_named(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.gif", as_gif(greys(4)))
        archive.writestr("b.gif", as_gif(greys(5)))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1  # The flag of the last entry.
    path.write_bytes(content)
    with pytest.raises(
        BadRequest, match=r"1 of 2 clips cannot be read: b.gif: .*encrypted"
    ):
        sources.open_data_set(config_of(path))


@pytest.mark.parametrize(("other", "kind"), [("a.png", "images"), ("a.wav", "sounds")])
def test_other_kinds_of_example_beside_clips_are_refused(other, kind, tmp_path):
    (tmp_path / "a.gif").write_bytes(as_gif(greys(4)))
    (tmp_path / other).write_bytes(b"x")
    with pytest.raises(BadRequest, match=f"mixes clips with {kind}: {other}"):
        sources.open_data_set(config_of(tmp_path))


def test_without_pyav_mp4_files_are_refused_and_others_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_files, "reads_mp4", lambda: False)
    for i in range(2):
        (tmp_path / f"{i}.gif").write_bytes(as_gif(greys(4)))
    assert len(sources.open_data_set(config_of(tmp_path)).train) == 1
    (tmp_path / "a.mp4").write_bytes(as_mp4(greys(4)))
    with pytest.raises(BadRequest, match="pip install 'diffusion-jax.clips.'"):
        sources.open_data_set(config_of(tmp_path))


def test_arrays_of_clips_are_read_from_an_npz(tmp_path):
    x = RNG.integers(0, 256, (6, 4, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "a.npz", x, np.arange(6))
    config = config_of(tmp_path / "a.npz", channels=1, size=(8,))
    config.source = "npz"
    data = sources.open_data_set(config)
    both = np.concatenate([data.train, data.held_out])
    labels = np.concatenate([data.labels, data.held_out_labels])
    np.testing.assert_array_equal(both, x[labels])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_animated_sheet_of_samples_can_be_read_back(channels, tmp_path):
    """Clips of 48 pixels are drawn as they are, with gaps of 2, in a square."""
    levels = RNG.integers(0, 256, (5, 1, 1, 1, channels)).repeat(3, 1).repeat(48, 2)
    x = (levels.repeat(48, 3) + 5 * np.arange(3)[:, None, None, None]).astype(np.uint8)
    paths = {suffix: tmp_path / f"new/x{suffix}" for suffix in CLIPS.suffixes}
    CLIPS.save(paths, x)
    sheet = ClipFormat(3).decode(paths[".gif"].read_bytes(), (3, 102, 152, channels))
    moving = ClipFormat(3).decode(paths[".mp4"].read_bytes(), (3, 102, 152, channels))
    for i, clip in enumerate(x):
        top, left = (2 + 50 * n for n in divmod(i, 3))
        place = np.s_[:, top : top + 48, left : left + 48]
        np.testing.assert_array_equal(sheet[place], clip)
        middle = np.s_[:, 8:40, 8:40]
        difference = moving[place][middle].astype(int) - clip[middle]
        assert np.abs(difference).mean() < 6
    with Image.open(paths[".gif"]) as gif:
        assert gif.info["loop"] == 0 and gif.n_frames == 3
        assert {f.info["duration"] for f in ImageSequence.Iterator(gif)} == {120}


def test_without_pyav_samples_have_no_mp4(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion_jax.data.clips.reads_mp4", lambda: False)
    x = np.zeros((1, 2, 8, 8, 1), np.uint8)
    CLIPS.save({suffix: tmp_path / f"x{suffix}" for suffix in CLIPS.suffixes}, x)
    assert [path.name for path in tmp_path.iterdir()] == ["x.gif"]


def test_an_animated_sheet_shows_the_first_64_clips():
    """A square of 8 by 8 clips, whatever number there is."""
    x = np.zeros((100, 2, 48, 48, 1), np.uint8)
    assert [sheet.size for sheet in CLIPS.draw_animated(x)] == [(402, 402)] * 2


def test_a_long_clip_shows_eight_of_its_frames_in_a_strip():
    frames = np.zeros((2, 1, 15, 48, 48, 1), np.uint8)
    frames[:] = np.arange(15)[:, None, None, None] * 10
    strip = np.asarray(CLIPS.draw_strip(frames, ["", ""]))
    assert strip.shape == (8 * 50 + 2, 2 * 50 + 2)
    np.testing.assert_array_equal(strip[25::50, 25], np.arange(0, 15, 2) * 10)
