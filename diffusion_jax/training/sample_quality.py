"""FD and KID of few samples while a run trains, to compare its checkpoints by."""

from typing import Any

import jax
import numpy as np

from diffusion_jax.config import Config, SamplingConfig
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.data.sources import fixed_choice
from diffusion_jax.diffusion import guidance
from diffusion_jax.evaluation.extractor import Extractor
from diffusion_jax.evaluation.frechet_distance import FrechetDistance
from diffusion_jax.evaluation.kernel_distance import kernel_distance
from diffusion_jax.evaluation.moments import moments_of
from diffusion_jax.evaluation.quality import MOST_PAIRED
from diffusion_jax.experiment import build_features, feature_names
from diffusion_jax.experiment.setup import Plan, ddim_sampling
from diffusion_jax.runtime.interrupts import Stop, Stopped
from diffusion_jax.runtime.progress import ProgressBar
from diffusion_jax.training.drawing import Drawing, held_out_cond


class SampleQuality:
    """The quality of the samples of a run; None if stopped.

    Samples are drawn by DDIM, always from the same noise, and compared with up to 10,000
    training examples, always the same ones.
    """

    def __init__(self, plan: Plan, mesh: jax.sharding.Mesh, stop: Stop, bar: ProgressBar):
        """Prepare; the first use makes the features of the examples. `bar` is above."""
        self._plan, self._mesh, self._stop, self._bar = plan, mesh, stop, bar
        self._names = feature_names.metric_names(plan.config)
        self._reference: np.ndarray | None = None

    def figures(self, params: Any) -> dict[str, float] | None:
        """Return FD and KID of samples drawn with these params, by their names."""
        try:
            if self._reference is None:
                self._reference = self._prepared()
            features = self._features_of_samples(params)
        except Stopped:
            return None
        if not np.isfinite(features).all():
            return {name: float("nan") for name in self._names.values()}
        distance = self._distance(moments_of(features))
        kid = kernel_distance(features, self._reference)
        return {self._names["FD"]: distance, self._names["KID"]: kid.value}

    def _prepared(self) -> np.ndarray:
        """Return the features of the examples, and make what draws samples."""
        config = self._plan.config
        split = self._plan.data.split("train")
        order = fixed_choice(len(split), MOST_PAIRED)
        order = np.random.default_rng(0).permutation(order)
        name = feature_names.network_of(config)
        network = build_features.make_network(name, split.source, order)
        self._extract = Extractor(network, self._mesh)
        found, size = [], config.data.batch_size
        with self._bar.part("features of the data", len(order), "examples") as bar:
            for begin in range(0, len(order), size):
                found.append(self._extract(split.source[order[begin : begin + size]]))
                bar.report(min(begin + size, len(order)))
                self._stop.check()
        reference = np.concatenate(found)[:, : network.num_features]
        self._distance = FrechetDistance(moments_of(reference))
        self._drawing = Drawing(self._plan, self._mesh, self._stop, sampling_of(config))
        return reference

    def _features_of_samples(self, params: Any) -> np.ndarray:
        assert self._reference is not None
        training, kind = self._plan.config.training, kind_of(self._plan.config.data)
        drawing, found = self._drawing, list[np.ndarray]()
        calls, begins = (
            drawing.table.num_rows,
            range(0, training.quality_samples, drawing.size),
        )
        with self._bar.part("quality", len(begins) * calls, "calls") as bar:
            for begin in begins:
                indices = np.arange(begin, begin + drawing.size, dtype=np.int32)
                drawn, _ = drawing.draw(
                    params,
                    indices,
                    self._cond(indices),
                    lambda done: bar.report(len(found) * calls + done),
                )
                features = self._extract(kind.from_network(drawn))
                found.append(features[:, : self._reference.shape[1]])
        return np.concatenate(found)[: training.quality_samples]

    def _cond(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the conditions of samples: classes of training examples, at random."""
        if self._plan.config.data.low_res:
            return held_out_cond(self._plan, indices)
        labels = self._plan.data.split("train").cond.get(guidance.LABEL)
        if labels is None:
            return {}
        chosen = np.random.default_rng(0).permutation(len(labels))
        return {guidance.LABEL: labels[chosen[indices % len(labels)]]}


def num_calls(config: Config) -> int:
    """Return the network calls, of single examples, that the samples of a config take."""
    sampling = sampling_of(config)
    num_batches = -(-config.training.quality_samples // sampling.batch_size)
    return num_batches * sampling.batch_size * sampling.steps


def sampling_of(config: Config) -> SamplingConfig:
    """Return how these samples are drawn: by DDIM, with the steps of a sample grid."""
    return ddim_sampling(
        config,
        min(config.training.sample_steps, config.process.num_timesteps),
        config.sampling.batch_size,
    )
