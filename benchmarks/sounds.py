r"""Figures of the chirps: is the pitch of samples distributed as that of the data?

Needs the run chirps, and for the last figure chirps_conditional; parts are named on the
command line (`python benchmarks/sounds.py pitch`), all by default:

    python train.py --config chirps
    python train.py --config chirps --config.data.labels=true \
        --workdir runs/chirps_conditional

The dominant frequency of a sound is that of the largest magnitude of its spectrum.
"""

import sys
from collections.abc import Iterator

import numpy as np
from record import Figure, record
from run_samples import drawn
from scipy.stats import ks_2samp

from diffusion_jax.data import chirps
from diffusion_jax.jobs import sample

NUM = 1000
_GRID = 64_000  # Values of a spectrum of 1/8 Hz at 8 kHz.


def dominant_frequencies(sounds: np.ndarray) -> np.ndarray:
    """Return the frequency of the largest magnitude of each mono sound, in Hz; [N]."""
    found = [np.abs(np.fft.rfft(sound[:, 0], _GRID)).argmax() for sound in sounds]
    return np.array(found) * chirps.SAMPLE_RATE / _GRID


def pitch() -> Iterator[Figure]:
    """Distances of the dominant frequencies from those of other chirps."""
    data, others = chirps.chirps(NUM, 1)[0], chirps.chirps(NUM, 2)[0]
    frequencies = dominant_frequencies(data)

    def distance(sounds: np.ndarray) -> float:
        return float(ks_2samp(dominant_frequencies(sounds), frequencies).statistic)

    white = np.random.default_rng(0).normal(size=data.shape)
    found = distance(drawn("chirps", sample.Request(NUM)))
    yield "KS distance of 1,000 samples from the data", found, "<= 0.1"
    yield "KS distance of 1,000 other chirps", distance(others), ""
    yield "KS distance of white noise", distance(white), ""


def bands() -> Iterator[Figure]:
    """Samples asked for by class whose dominant frequency lies in the band of the class."""
    classes = tuple(range(len(chirps.BAND_NAMES)))
    sounds = drawn("chirps_conditional", sample.Request(NUM, label=classes))
    frequencies = dominant_frequencies(sounds)
    asked = np.arange(NUM) % len(classes)
    low, high = chirps.EDGES[asked], chirps.EDGES[asked + 1]
    share = float(((low <= frequencies) & (frequencies < high)).mean())
    yield "share of 1,000 samples in the band asked for", share, ""
    yield "share by chance", 1 / len(classes), ""


PARTS = {"pitch": pitch, "bands": bands}

if __name__ == "__main__":
    record(*(PARTS[name] for name in sys.argv[1:] or PARTS))
