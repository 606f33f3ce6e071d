"""Sound files: WAV, FLAC and OGG, read by soundfile; and WAV, written without it."""

import dataclasses
import fractions
import functools
import io
import math
import re
import wave
from collections.abc import Mapping, Sequence
from typing import IO, Any, ClassVar

import numpy as np

from diffusion_jax.data import formats
from diffusion_jax.data.file_format import FileFormat
from diffusion_jax.data.unreadable import Unreadable, reason
from diffusion_jax.runtime.errors import BadRequest

_MAGIC = re.compile(rb"RIFF....WAVE|RF64....WAVE|fLaC|OggS", re.DOTALL)
_MAX_RATE = 768_000  # As the range of data.sample_rate.
_UNKNOWN_SIZES = (0, 2**32 - 1)  # Of WAV files that were written into a pipe.
_END_OF_STREAM = 4  # Bit of the type of an Ogg page.
# The low-pass filter of resampling: zero crossings to each side, Kaiser's beta (120 dB),
# and where it cuts, as a share of the smaller of the two highest frequencies.
_CROSSINGS, _BETA, _CUTOFF = 64, 10.0, 0.97
_MAX_DENOMINATOR = 10_000  # Of the ratio of two rates; others are within 1e-4 of that.


@dataclasses.dataclass(frozen=True)
class SoundFormat(FileFormat):
    """Sound files, which become float32 [L, C].

    Attributes:
      sample_rate: that the sounds get, in Hz.
    """

    sample_rate: int

    name: ClassVar[str] = "sounds"
    one: ClassVar[str] = "sound"
    suffixes: ClassVar[tuple[str, ...]] = formats.SOUND_SUFFIXES
    dtype: ClassVar[type] = np.float32
    channels: ClassVar[Mapping[int, str]] = {1: "mono", 2: "stereo"}
    widened: ClassVar[str] = "stereo"

    def check_installed(self, names: Sequence[str]) -> None:
        try:
            _soundfile()
        except (ImportError, OSError) as error:  # Its C library can be missing.
            raise BadRequest(
                f"sounds ({' '.join(self.suffixes)}) are read by soundfile, which cannot "
                f"be loaded ({reason(error)}): pip install 'diffusion-jax[sound]'"
            ) from error

    def num_channels(self, file: IO[bytes], size: int | None = None) -> int:
        head = file.read(formats.HEAD)
        file.seek(0)
        _check_head(head)
        with _opened(file) as sound:
            return int(sound.channels)

    def decode(self, content: bytes, shape: tuple[int, ...]) -> np.ndarray:
        """Return the beginning of a sound; float32 [L, C], zeros behind its end.

        It is resampled; mono is the mean of stereo, and stereo is mono twice.

        Args:
          content: of a WAV, FLAC or OGG file.
          shape: (L, C) with C 1 or 2.

        Raises:
          Unreadable: if it is none of these, truncated, of length 0, of more than two
            channels, or has values that are not finite.
        """
        length, channels = shape
        _check_head(content[: formats.HEAD])
        _check_complete(content)
        with _opened(io.BytesIO(content)) as sound:
            values = _read(sound, _needed(length, sound.samplerate, self.sample_rate))
            rate = sound.samplerate
        if not np.isfinite(values).all():
            raise Unreadable("it has values that are not finite")
        if channels == 1:
            values = values.mean(axis=1, keepdims=True)
        elif values.shape[1] == 1:
            values = values.repeat(channels, axis=1)
        return fit_length(resampled(values, rate, self.sample_rate), length)


def fit_length(sounds: np.ndarray, length: int) -> np.ndarray:
    """Return sounds [..., l, C] cut behind `length` values, or with zeros up to there."""
    cut = sounds[..., :length, :]
    behind = [(0, 0)] * (sounds.ndim - 2) + [(0, length - cut.shape[-2]), (0, 0)]
    return np.pad(cut, behind)


def resampled(values: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Return values over time at another sample rate; float32 [ceil(l wanted / rate), C].

    A polyphase filter cuts at 0.97 of the smaller of the two highest frequencies, with 120
    dB in the stop band.

    Args:
      values: float32 [l, C].
      rate, wanted: in Hz.
    """
    up, down = _ratio(rate, wanted)
    if up == down:
        return values
    from scipy import signal

    wide = signal.resample_poly(
        values.astype(np.float64), up, down, axis=0, window=_low_pass(max(up, down))
    )
    return wide.astype(np.float32)


def wav_of(sound: np.ndarray, sample_rate: int) -> bytes:
    """Return a WAV file of 16 bits; value v is round(32768 v), clipped.

    Args:
      sound: [L, C] in [-1, 1].
      sample_rate: in Hz.
    """
    levels = np.clip(np.rint(np.asarray(sound) * 32768.0), -32768, 32767)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((sound.shape[1], 2, sample_rate, len(sound), "NONE", ""))
        out.writeframes(levels.astype("<i2").tobytes())
    return file.getvalue()


def _soundfile() -> Any:
    # Imported where it is used: it is an extra, and loads a C library.
    import soundfile

    return soundfile


def _check_head(head: bytes) -> None:
    if not head:
        raise Unreadable("the file is empty")
    if not _MAGIC.match(head):
        other = formats.other_kind(head)
        raise Unreadable(
            f"it is {other.name}" if other else "it is not a WAV, FLAC or OGG sound"
        )


def _opened(file: IO[bytes]) -> Any:
    """Open a sound of one or two channels that is not empty."""
    soundfile = _soundfile()
    try:
        sound = soundfile.SoundFile(file)
    except soundfile.LibsndfileError as error:
        raise Unreadable(f"it cannot be read: {error.error_string}") from error
    if sound.channels not in SoundFormat.channels:
        raise Unreadable(f"it has {sound.channels} channels, not 1 or 2")
    if not sound.frames:
        raise Unreadable("it has length 0")
    if not 1 <= sound.samplerate <= _MAX_RATE:
        raise Unreadable(f"its sample rate is {sound.samplerate} Hz")
    return sound


def _read(sound: Any, most: int) -> np.ndarray:
    """Return the first values, at most `most`, of a sound that is all there."""
    try:
        sound.seek(sound.frames - 1)  # A FLAC without its end fails here.
        sound.seek(0)
        wanted = min(most, sound.frames)
        values = sound.read(wanted, dtype="float32", always_2d=True)
    except _soundfile().LibsndfileError as error:
        raise Unreadable(f"it cannot be read: {error.error_string}") from error
    if len(values) < wanted:
        raise Unreadable("it is truncated")
    return values


def _check_complete(content: bytes) -> None:
    """Refuse a WAV or OGG without its end, which soundfile takes for a shorter one."""
    if content.startswith(b"OggS"):
        last = content.rfind(b"OggS")
        table = content[last + 26 : last + 27]
        sizes = content[last + 27 : last + 27 + table[0]] if table else b""
        ends = last + 27 + len(sizes) + sum(sizes) <= len(content)
        if not (table and len(sizes) == table[0] and ends):
            raise Unreadable("it is truncated")
        if not content[last + 5] & _END_OF_STREAM:
            raise Unreadable("it is truncated")
    elif content.startswith(b"RIFF"):
        at = 12
        while at + 8 <= len(content):
            size = int.from_bytes(content[at + 4 : at + 8], "little")
            if content[at : at + 4] == b"data" and size in _UNKNOWN_SIZES:
                return
            at += 8 + size + size % 2
        if at - 1 > len(content):  # The last byte, which fills up to an even number.
            raise Unreadable("it is truncated")


@functools.lru_cache(maxsize=64)
def _ratio(rate: int, wanted: int) -> tuple[int, int]:
    """Return by how much to sample up, and then down."""
    most = max(_MAX_DENOMINATOR, rate // wanted + 1)
    ratio = fractions.Fraction(wanted, rate).limit_denominator(most)
    return ratio.numerator, ratio.denominator


@functools.lru_cache(maxsize=8)
def _low_pass(factor: int) -> np.ndarray:
    from scipy import signal

    window = ("kaiser", _BETA)
    return signal.firwin(2 * _CROSSINGS * factor + 1, _CUTOFF / factor, window=window)


def _needed(length: int, rate: int, wanted: int) -> int:
    """Return how many values decide the first `length` after resampling."""
    up, down = _ratio(rate, wanted)
    return math.ceil((length * down + _CROSSINGS * max(up, down)) / up) + 1
