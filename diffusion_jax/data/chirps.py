"""Sounds made by a formula: tones and sweeps whose pitch is known."""

import numpy as np

SAMPLE_RATE, LENGTH = 8000, 1024
NUM_SOUNDS, NUM_HELD_OUT = 4000, 400
_LOWEST, _BANDS = 200.0, 8  # Hz; bands of half an octave.
EDGES = _LOWEST * 2.0 ** (np.arange(_BANDS + 1) / 2)
BAND_NAMES = tuple(
    f"{low:.0f}-{high:.0f} Hz" for low, high in zip(EDGES[:-1], EDGES[1:], strict=True)
)
_MOST_SWEPT = 0.25  # Of the pitch, from the middle of a sweep to each of its ends.


def chirps(num: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sounds, their bands and their pitches.

    A sound is a sin^2(pi t / T) sin(2 pi (f t + s (t - T/2)^2 / 2) + phase), T = 0.128 s:
    it is loudest in the middle, where its frequency is the pitch f, uniform in log f from
    200 to 3,200 Hz. One half are tones, s = 0; the others sweep linearly, up or down, over
    at most f / 4 to each side. The amplitude a is uniform from 1/2 to 1.

    Returns:
      float32 [num, 1024, 1] at 8 kHz; int32 [num], the half octave from 200 Hz on in which
      f lies, 0 .. 7; and f in Hz, float64 [num].
    """
    rng = np.random.default_rng(seed)
    octaves = rng.uniform(0, _BANDS / 2, num)
    pitch = _LOWEST * 2.0**octaves
    amplitude, phase = rng.uniform(0.5, 1, num), rng.uniform(0, 2 * np.pi, num)
    sweeps = rng.permutation(num) < num // 2
    swept = np.where(sweeps, rng.uniform(-_MOST_SWEPT, _MOST_SWEPT, num), 0) * pitch
    duration = LENGTH / SAMPLE_RATE
    time = np.arange(LENGTH) / SAMPLE_RATE
    from_middle = time - duration / 2
    slope = swept / (duration / 2)
    cycles = pitch[:, None] * time + slope[:, None] * from_middle**2 / 2
    envelope = amplitude[:, None] * np.sin(np.pi * time / duration) ** 2
    sounds = envelope * np.sin(2 * np.pi * cycles + phase[:, None])
    bands = np.minimum((2 * octaves).astype(np.int32), _BANDS - 1)
    return sounds.astype(np.float32)[..., None], bands, pitch
