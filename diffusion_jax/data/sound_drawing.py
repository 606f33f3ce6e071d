"""Sounds as pictures: a waveform, and below it a spectrogram, in a cell of fixed size."""

import numpy as np

WIDTH, WAVE_HEIGHT, SPECTRUM_HEIGHT = 160, 32, 64  # Pixels of a cell.
_WINDOW = 256  # Values of a short-time spectrum.
_LOUDEST, _RANGE = 0.0, 80.0  # Decibels of a full sine, and of what is shown below it.
_BLUE = (31, 119, 180)
# Colours of the spectrogram, from silence to the loudest: black, purple, orange, white.
_COLOURS = np.array([[0, 0, 0], [90, 20, 110], [230, 90, 50], [255, 255, 220]])


def cells(sounds: np.ndarray) -> np.ndarray:
    """Return a picture of each sound; uint8 [N, 96, 160, 3].

    The waveform has a band for each channel, from the least to the largest value of the
    time of a pixel, over [-1, 1]. The spectrogram is the magnitude of the mean over
    channels in decibels, from -80 dB to that of a full sine; frequencies are linear, from
    0 at its bottom to half the sample rate at its top.

    Args:
      sounds: [N, L, C] in [-1, 1].
    """
    return np.concatenate([_waveforms(sounds), _spectrograms(sounds.mean(-1))], axis=1)


def _waveforms(sounds: np.ndarray) -> np.ndarray:
    num, length, channels = sounds.shape
    height = WAVE_HEIGHT // channels
    begin = np.arange(WIDTH) * length // WIDTH
    clipped = np.clip(sounds, -1, 1)
    low = np.minimum.reduceat(clipped, begin, axis=1)
    high = np.maximum.reduceat(clipped, begin, axis=1)
    top = np.rint((1 - high) / 2 * (height - 1)).swapaxes(1, 2)[:, :, None]
    bottom = np.rint((1 - low) / 2 * (height - 1)).swapaxes(1, 2)[:, :, None]
    row = np.arange(height)[:, None]
    drawn = ((row >= top) & (row <= bottom)).reshape(num, channels * height, WIDTH)
    cell = np.full((num, WAVE_HEIGHT, WIDTH, 3), 255, np.uint8)
    cell[:, : channels * height][drawn] = _BLUE
    return cell


def _spectrograms(sounds: np.ndarray) -> np.ndarray:
    length = sounds.shape[1]
    padded = np.pad(sounds, ((0, 0), (_WINDOW // 2, _WINDOW)))
    begin = np.linspace(0, length - 1, WIDTH).round().astype(int)
    window = np.hanning(_WINDOW)
    pieces = padded[:, begin[:, None] + np.arange(_WINDOW)] * window
    magnitude = np.abs(np.fft.rfft(pieces))[..., :-1] * 2 / window.sum()
    # The loudest of the frequencies that share a pixel.
    shared = magnitude.reshape(*magnitude.shape[:2], SPECTRUM_HEIGHT, -1).max(-1)
    decibels = 20 * np.log10(np.maximum(shared, 1e-9))
    level = np.clip((decibels - _LOUDEST) / _RANGE + 1, 0, 1).swapaxes(1, 2)[:, ::-1]
    knots = np.linspace(0, 1, len(_COLOURS))
    colours = [np.interp(level, knots, channel) for channel in _COLOURS.T]
    return np.stack(colours, axis=-1).round().astype(np.uint8)
