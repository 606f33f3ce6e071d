"""Sounds: read from files, resampled, cut or padded, drawn, written; and made (chirps)."""

import dataclasses
import io
import math
import struct
import sys
import wave
import zipfile

import numpy as np
import pytest
import soundfile

from diffusion_jax.config import DataConfig
from diffusion_jax.data import chirps, sound_drawing, sources
from diffusion_jax.data.npz import read_npz
from diffusion_jax.data.sound_files import SoundFormat, resampled, wav_of
from diffusion_jax.data.sounds import Sounds
from diffusion_jax.data.unreadable import Unreadable
from diffusion_jax.experiment.setup import load_data, make_plan
from diffusion_jax.runs.record import check_examples
from diffusion_jax.runtime.errors import BadRequest
from helpers import points_config, tiny_unet

RNG = np.random.default_rng(0)
RATE, LENGTH = 8000, 64
FORMATS = ("wav", "flac", "ogg")


def tone(hertz, rate, seconds=0.5, amplitude=0.5):
    time = np.arange(int(rate * seconds)) / rate
    return (amplitude * np.sin(2 * np.pi * hertz * time)).astype(np.float32)[:, None]


def content_of(values, rate=RATE, format="WAV", **options):
    file = io.BytesIO()
    soundfile.write(file, values, rate, format=format, **options)
    return file.getvalue()


def decoded(content, length=LENGTH, channels=1, rate=RATE):
    return SoundFormat(rate).decode(content, (length, channels))


def write(path, values, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content_of(values, rate, path.suffix[1:].upper()))


def config_of(path, **options):
    options = {"channels": 0, "image_size": (), "sound_length": LENGTH, **options}
    options = {"source": "folder", "sample_rate": RATE, "batch_size": 4, **options}
    return DataConfig(path=str(path), **options)


def opened(path, **options):
    return sources.open_data_set(config_of(path, **options))


@pytest.fixture
def folder(tmp_path):
    """Ten sounds in two classes, of two formats and lengths; number i has the peak i/16."""
    root = tmp_path / "sounds"
    for i in range(10):
        values = np.zeros((40 + 60 * (i % 2), 1), np.float32)
        values[3] = i / 16
        write(root / f"{'high' if i % 3 else 'low'}/{i}.{('wav', 'flac')[i % 2]}", values)
    (root / "notes.txt").write_text("no sound")
    return root


# Files


def test_a_folder_and_a_zip_of_sounds_are_examples_with_classes(folder, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    for place in (folder, tmp_path / "all.zip"):
        data = opened(place)
        assert data.shape == (LENGTH, 1) and data.class_names == ("high", "low")
        x = np.concatenate([s[np.arange(len(s))] for s in (data.train, data.held_out)])
        assert x.dtype == np.float32 and x.shape == (10, LENGTH, 1)
        number = np.rint(np.abs(x).max((1, 2)) * 16).astype(int)
        assert sorted(number) == list(range(10))
        np.testing.assert_array_equal(x[:, 3, 0], number / 16)
        assert (x[number % 2 == 0, 40:] == 0).all()
        labels = np.concatenate([data.labels, data.held_out_labels])
        np.testing.assert_array_equal(labels, number % 3 == 0)
        assert "as they are not sounds: 1 .txt" in capsys.readouterr().out


@pytest.mark.parametrize("format", FORMATS)
def test_a_sound_of_each_format_is_cut_from_its_beginning(format):
    values = tone(440, RATE)
    found = decoded(content_of(values, format=format.upper()), 1000)
    assert found.shape == (1000, 1) and found.dtype == np.float32
    # 16 bits are exact to half a level; Vorbis loses more, but not the wave.
    assert np.abs(found - values[:1000]).max() < (0.05 if format == "ogg" else 2**-15)


def test_mono_is_the_mean_of_stereo_and_stereo_is_mono_twice():
    left, right = RNG.integers(-99, 99, (2, LENGTH)) / 128
    both = np.stack([left, right], axis=1)
    np.testing.assert_allclose(decoded(content_of(both))[:, 0], (left + right) / 2)
    np.testing.assert_array_equal(decoded(content_of(both), channels=2), both)
    twice = decoded(content_of(left[:, None]), channels=2)
    np.testing.assert_array_equal(twice, np.stack([left, left], axis=1))


def test_channels_are_as_the_files_have_them(tmp_path, capsys):
    for i in range(3):
        write(tmp_path / f"{i}.wav", np.full((LENGTH, 1), i / 8))
    assert opened(tmp_path).shape == (LENGTH, 1)
    write(tmp_path / "3.wav", np.full((LENGTH, 2), 0.5))
    assert opened(tmp_path).shape == (LENGTH, 2)
    assert "3 mono sounds become stereo, as the other 1 are" in capsys.readouterr().out
    assert opened(tmp_path, channels=1).shape == (LENGTH, 1)
    with pytest.raises(BadRequest, match=r"1 \(mono\), 2 \(stereo\) or 0"):
        opened(tmp_path, channels=3)


# Resampling


@pytest.mark.parametrize("rate", [4000, 11025, 16000, 44100, 44101, 48000])
def test_a_resampled_tone_is_that_tone(rate):
    """A tone below both highest frequencies, against the formula at the new times."""
    wanted = tone(700, RATE)
    found = resampled(tone(700, rate), rate, RATE)
    assert abs(len(found) - len(wanted)) <= 1
    inner = slice(300, min(len(found), len(wanted)) - 300)
    assert np.abs(found - wanted[: len(found)])[inner].max() < 1e-3 * 0.5


@pytest.mark.parametrize("hertz", [4300, 5000, 11000])
def test_what_is_above_half_the_new_rate_vanishes(hertz):
    found = resampled(tone(hertz, 48000), 48000, RATE)[300:-300]
    assert 20 * math.log10(np.abs(found).max() / 0.5) < -90


@pytest.mark.parametrize("rate", [4000, 11025, 44100])
def test_the_beginning_of_a_long_sound_is_that_of_the_whole(rate):
    """Only what decides the first values is read."""
    values = RNG.uniform(-0.5, 0.5, (rate * 2, 1)).astype(np.float32)
    found = decoded(content_of(values, rate, subtype="FLOAT"))
    np.testing.assert_allclose(found, resampled(values, rate, RATE)[:LENGTH], atol=1e-6)


# Refusals


def wave_header(channels, size, total=None):
    """Write the header of a WAV of 16 bits, which claims `size` bytes of values."""
    form = struct.pack("<HHIIHH", 1, channels, RATE, RATE * 2 * channels, 2 * channels, 16)
    head = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", total or len(head) + size) + head


NOT_FINITE = np.array([[0.5], [np.nan]] * LENGTH, np.float32)
BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"no sound" * 99, "not a WAV, FLAC or OGG"),
    "page": (b"<!doctype html>" * 99, "it is a web page"),
    "none": (wave_header(1, 0), "length 0"),
    "six": (content_of(np.zeros((LENGTH, 6))), "6 channels, not 1 or 2"),
    "nan": (content_of(NOT_FINITE, subtype="FLOAT"), "not finite"),
    "head": (wave_header(1, 2 * LENGTH)[:30], "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_sound_is_named_with_the_reason(name, tmp_path):
    content, reason = BAD[name]
    for i in range(3):
        write(tmp_path / f"{i}.wav", tone(100 + i, RATE))
    (tmp_path / f"{name}.wav").write_bytes(content)
    config = config_of(tmp_path, channels=1)
    with pytest.raises(BadRequest, match=rf"{name}\.wav.*{reason}") as error:
        sources.into_memory(sources.open_data_set(config), config)
    assert "1 of 4 sounds cannot be read" in str(error.value)
    assert str(tmp_path) in str(error.value)
    config.unreadable = "skip"
    data = sources.into_memory(sources.open_data_set(config), config)
    assert np.isfinite(data.train).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_a_truncated_sound_is_refused_even_if_its_beginning_is_there(format, share):
    noise = RNG.uniform(-0.5, 0.5, (3 * RATE, 1))
    content = content_of(noise, format=format.upper())
    assert decoded(content).shape == (LENGTH, 1)
    with pytest.raises(Unreadable, match=r"truncated|cannot be read"):
        decoded(content[: int(share * len(content))])


def test_damage_within_a_flac_is_found():
    content = bytearray(content_of(RNG.uniform(-0.5, 0.5, (3 * RATE, 1)), format="FLAC"))
    content[9000:9400] = bytes(400)
    with pytest.raises(Unreadable, match="cannot be read"):
        decoded(bytes(content), 3 * RATE)


def test_an_ogg_without_its_last_pages_is_truncated():
    content = content_of(RNG.uniform(-0.5, 0.5, (3 * RATE, 1)), format="OGG")
    pages = content.count(b"OggS")
    assert pages > 4
    for _ in range(pages - 3):
        content = content[: content.rfind(b"OggS")]
        with pytest.raises(Unreadable, match="it is truncated"):
            decoded(content)


def test_a_wav_from_a_pipe_whose_length_is_not_known_is_read():
    """Programs that cannot go back to the header leave a length of 2^32 - 1 there."""
    values = (tone(440, RATE)[:100] * 32768).astype("<i2").tobytes()
    content = wave_header(1, 2**32 - 1, 2**32 - 1) + values
    found = decoded(content)
    assert np.abs(found - tone(440, RATE)[:LENGTH]).max() < 2**-15


def test_an_encrypted_entry_of_a_zip_is_named(folder, tmp_path):
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(3):
            archive.writestr(f"{i}.wav", content_of(tone(100 + i, RATE)))
    content = bytearray(path.read_bytes())
    content[content.rfind(b"PK\x01\x02") + 8] |= 1  # Its flag, in the zip's table.
    path.write_bytes(content)
    with pytest.raises(BadRequest, match=r"2\.wav: it is encrypted; unpack"):
        opened(path)


@pytest.mark.parametrize("name", ["low/cover.png", "clip.mp4"])
def test_other_kinds_of_example_among_sounds_are_refused(name, folder):
    (folder / name).touch()
    with pytest.raises(BadRequest, match=f"mixes sounds with .*{name}"):
        opened(folder)


def test_a_missing_library_is_one_line_that_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(BadRequest, match=r"pip install 'diffusion-jax\[sound\]'"):
        opened(folder)


def test_sounds_are_not_looked_for_among_images(folder):
    with pytest.raises(
        BadRequest, match="has no images.*it holds.*for sounds take .*sound_folder"
    ):
        sources.open_data_set(DataConfig(source="folder", path=str(folder)))
    with pytest.raises(BadRequest, match="is of images, but the config is of sounds"):
        opened("", source="tfds:mnist", channels=1)


# Arrays


def test_sounds_of_an_npz_are_cut_or_padded(tmp_path):
    x = RNG.uniform(-1, 1, (4, 50, 2)).astype(np.float32)
    np.savez(tmp_path / "x.npz", arr_0=x)
    for length in (20, 50, 64):
        config = config_of("", source="npz", sound_length=length)
        found, _ = read_npz(str(tmp_path / "x.npz"), "data.path", config)
        assert found.shape == (4, length, 2)
        np.testing.assert_array_equal(found[:, :50], x[:, :length])
        assert (found[:, 50:] == 0).all()


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((4, 50, 1), np.int16), r"astype\(np.float32\) / 32768"),
        (np.zeros((4, 50, 1)), "float64 with arr_0.astype"),
        (np.zeros((4, 50), np.float32), r"arr_0\[..., None\]"),
        (np.zeros((4, 50, 3), np.float32), "3 channels must be 1 or 2"),
        (np.zeros((4, 2, 50), np.float32), r"save arr_0.transpose\(0, 2, 1\)"),
        (np.full((4, 50, 1), np.inf, np.float32), "not finite"),
    ],
)
def test_arrays_that_are_no_sounds_are_refused(array, said, tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=array)
    with pytest.raises(BadRequest, match=said):
        opened(tmp_path / "x.npz", source="npz")


# Gain


def plan_of(data):
    config = points_config()
    config.data, config.model = data, tiny_unet()
    return make_plan(config)


@pytest.mark.parametrize("memory_gib", [2.0, 0.0])
def test_the_gain_makes_the_loudest_value_to_train_on_one(folder, memory_gib, tmp_path):
    for i, peak in enumerate((0.25, 1.0)):
        write(tmp_path / f"held/{('high', 'low')[i]}/{i}.wav", np.full((9, 1), peak * 0.5))
    options = {"held_out": str(tmp_path / "held"), "memory_gib": memory_gib}
    config = config_of(folder, unreadable="skip", **options)
    plan = load_data(plan_of(config))
    assert plan.config.data.gain == pytest.approx(16 / 9)
    everything = plan.data.train[np.arange(len(plan.data.train))]
    kind = Sounds(RATE, plan.config.data.gain)
    assert np.abs(kind.to_network(everything)).max() == pytest.approx(1)
    about = check_examples(plan.config, plan.data, tmp_path, None)
    assert about["gain"] == plan.config.data.gain and about["sample_rate"] == RATE
    given = plan_of(dataclasses.replace(config, gain=0.5))
    assert given.config.data.gain == 0.5


def test_silence_has_no_gain(tmp_path):
    for i in range(3):
        write(tmp_path / f"{i}.wav", np.zeros((LENGTH + i, 1)))
    with pytest.raises(BadRequest, match="all sounds to train on are silent"):
        plan_of(config_of(tmp_path))


# Writing


def test_written_sounds_come_back_from_their_files(tmp_path):
    x = RNG.uniform(-1, 1, (3, LENGTH, 2)).astype(np.float32)
    paths = {"_sounds": tmp_path / "new/s"}
    (kept,) = paths.keys() & set(Sounds.suffixes)
    Sounds(RATE, 2.0).save(paths, np.concatenate([x, x]))
    (tmp_path / "new/s/mine.wav").write_bytes(b"mine")
    Sounds(RATE, 2.0).save(paths, x)  # Fewer than before.
    names = sorted(path.name for path in paths[kept].iterdir())
    assert names == ["0000.wav", "0001.wav", "0002.wav", "mine.wav"]
    (tmp_path / "new/s/mine.wav").unlink()
    data = opened(tmp_path / "new/s", channels=2)
    back = np.concatenate([data.train[np.arange(2)], data.held_out[np.array([0])]])
    distance = np.abs(back[:, None] - x[None]).max((2, 3))
    np.testing.assert_array_less(distance.min(0), 0.51 / 32768)


def test_a_wav_is_what_the_standard_library_reads():
    values = np.array([[-1.5, 0], [-1, 1], [0.5, 2**-15]])
    with wave.open(io.BytesIO(wav_of(values, 11025))) as file:
        assert file.getparams()[:4] == (2, 2, 11025, 3)
        levels = np.frombuffer(file.readframes(3), "<i2").reshape(3, 2)
    assert levels.tolist() == [[-32768, 0], [-32768, 32767], [16384, 1]]


def test_sounds_louder_than_one_are_written_by_their_gain(tmp_path):
    Sounds(RATE, 0.25).save({"_sounds": tmp_path / "s"}, np.full((1, 9, 1), 2.0))
    values, rate = soundfile.read(tmp_path / "s/0000.wav")
    assert rate == RATE and (values == 0.5).all()


# Pictures


@pytest.mark.parametrize("channels", [1, 2])
def test_a_waveform_spans_its_values_in_a_band_of_its_channel(channels):
    x = np.zeros((1, 500, channels), np.float32)
    x[0, :, 0] = np.where(np.arange(500) < 250, 0.5, -1)
    (cell,) = sound_drawing.cells(x)
    height = sound_drawing.WAVE_HEIGHT // channels
    blue = (cell[: sound_drawing.WAVE_HEIGHT] != 255).any(-1)
    rows = [np.flatnonzero(blue[:height, column]) for column in (20, 140)]
    assert [r.tolist() for r in rows] == [[round((height - 1) / 4)], [height - 1]]
    if channels == 2:
        assert np.flatnonzero(blue[height:, 20]).tolist() == [round((height - 1) / 2)]


def test_a_spectrogram_is_as_loud_as_its_tone_and_falls_with_the_logarithm():
    """A full sine is the brightest colour; one of -40 dB is half way; silence is black."""
    cells = [
        sound_drawing.cells(tone(1000, RATE, 0.5, amplitude)[None])[0]
        for amplitude in (1, 0.01, 1e-6)
    ]
    brightest = [cell[sound_drawing.WAVE_HEIGHT :, 80].astype(int) for cell in cells]
    row = 63 - int(1000 / 4000 * 64)
    assert brightest[0][row].tolist() == [255, 255, 220]
    np.testing.assert_allclose(brightest[1][row], [160, 55, 80], atol=3)
    assert brightest[2].max() == 0


# Chirps


def dominant(sounds):
    """Return the frequency of the largest magnitude, in Hz, on a grid of 1/8 Hz."""
    magnitude = np.abs(np.fft.rfft(sounds[..., 0], 64_000))
    return magnitude.argmax(-1) / 8


def test_the_dominant_frequency_of_a_chirp_is_its_pitch():
    sounds, bands, pitch = chirps.chirps(300, 3)
    assert sounds.shape == (300, 1024, 1) and sounds.dtype == np.float32
    peak = np.abs(sounds).max((1, 2))
    assert 0.45 < peak.min() < 0.55 and 0.95 < peak.max() <= 1
    assert np.abs(dominant(sounds) / pitch - 1).max() < 0.002
    low = 200 * math.sqrt(2.0) ** bands
    assert ((low <= pitch) & (pitch < low * math.sqrt(2.0))).all()
    assert set(bands) == set(range(8))


def test_half_of_the_chirps_are_tones():
    """The phase of a tone turns evenly: its frequency is the same at the end of it."""
    from scipy.signal import hilbert

    sounds, _, pitch = chirps.chirps(200, 4)
    phase = np.unwrap(np.angle(hilbert(sounds[..., 0])))[:, 256:768]
    turning = np.diff(phase, axis=1) * 8000 / (2 * np.pi) / pitch[:, None]
    swept = turning[:, -50:].mean(1) - turning[:, :50].mean(1)
    assert abs((np.abs(swept) < 0.004).sum() - 100) <= 5
    # From a quarter to three quarters of a sweep over f / 2 at most.
    assert 0.15 < swept.max() < 0.25 and -0.25 < swept.min() < -0.15


def test_chirps_are_a_source_with_labels():
    config = config_of("", source="chirps", sound_length=1024, labels=True)
    data = sources.open_data_set(config, 1)
    assert len(data.train) == 4000 and len(data.held_out) == 400
    batch = data.split("train")[np.array([5])]
    assert batch.x.shape == (1, 1024, 1)
    low, high = data.class_names[int(batch.cond["label"][0])].removesuffix(" Hz").split("-")
    assert int(low) - 10 < dominant(batch.x)[0] < int(high) + 10
    again = sources.open_data_set(config, 1)
    assert sources.whole_fingerprint(again) == sources.whole_fingerprint(data)
    assert sources.whole_fingerprint(data) != sources.whole_fingerprint(
        sources.open_data_set(config, 2)
    )
    with pytest.raises(BadRequest, match="sample_rate .* must be 8000"):
        opened("", source="chirps", sound_length=1024, sample_rate=16000)


def test_wav_files_are_written_where_no_folder_is_yet(tmp_path):
    folder = tmp_path / "samples" / "step_000001_sounds"
    kind = Sounds(8000, 1.0)
    kind.save({suffix: folder for suffix in kind.suffixes}, np.zeros((2, 8, 1), np.float32))
    assert sorted(path.name for path in folder.iterdir()) == ["0000.wav", "0001.wav"]
