"""The pictures of docs/theory.md, by the functions that it tells of; no run is needed.

python benchmarks/theory.py writes docs/images/theory_*.png.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from record import ROOT

from diffusion_jax.config import DataConfig
from diffusion_jax.data.kinds import PICTURES
from diffusion_jax.data.sources import open_data_set
from diffusion_jax.diffusion import oracle
from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.diffusion.forward_process import q_sample
from diffusion_jax.diffusion.noise_level import noise_level_at
from diffusion_jax.diffusion.schedules import (
    constant_betas,
    cosine_betas,
    linear_betas,
    make_schedule,
)
from diffusion_jax.evaluation.bound import Bound
from diffusion_jax.runtime import devices
from diffusion_jax.samplers import methods
from diffusion_jax.samplers.chain import ChainOptions, Samples, sample_chain
from diffusion_jax.samplers.timesteps import trailing_timesteps

IMAGES = ROOT / "docs" / "images"
T = 1000
SCHEDULES = {
    "linear": make_schedule(linear_betas(T)),
    "cosine": make_schedule(cosine_betas(T)),
}
LINEAR = SCHEDULES["linear"]
# Two groups of grey levels, as images of one pixel.
LEVELS = np.array([[30], [40], [50], [180], [190]])
DATA = oracle.discrete(LEVELS, [0.2, 0.2, 0.1, 0.3, 0.2])


def save(figure: Figure, name: str) -> None:
    FigureCanvasAgg(figure)
    path = IMAGES / f"theory_{name}.png"
    figure.savefig(path, dpi=110)
    print("wrote", path.relative_to(ROOT))


def noising() -> None:
    """A digit at rising t, by the linear and by the cosine schedule."""
    image = open_data_set(DataConfig()).train[np.array([3])]
    x0 = PICTURES.to_network(jnp.asarray(image))
    noise = jax.random.normal(jax.random.key(1), x0.shape)
    times = (0, 50, 100, 200, 300, 400, 500, 600, 800, 999)
    figure = Figure(figsize=(1.1 * len(times), 2.6), layout="constrained")
    for i, (name, schedule) in enumerate(SCHEDULES.items()):
        for j, t in enumerate(times):
            axes = figure.add_subplot(2, len(times), i * len(times) + j + 1)
            x_t = q_sample(schedule, x0, jnp.array([t]), noise)
            axes.imshow(np.asarray(x_t)[0, ..., 0], cmap="gray", vmin=-1.5, vmax=1.5)
            axes.set(xticks=[], yticks=[], title=f"t = {t}" if i == 0 else "")
            if j == 0:
                axes.set_ylabel(name)
    save(figure, "noising")


def schedules() -> None:
    """Signal, log SNR, and the ratio of the two variances of the reverse step."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    signal, ratio, small = (figure.add_subplot(1, 3, i) for i in (1, 2, 3))
    for name, schedule in SCHEDULES.items():
        signal.plot(schedule.alphas_cumprod, label=name)
        ratio.plot(schedule.log_snr, label=name)
        small.plot(schedule.posterior_variance[1:] / schedule.betas[1:], label=name)
    signal.set(xlabel="t", title=r"$\bar\alpha_t$, the share of the image")
    ratio.set(xlabel="t", title="log SNR")
    small.set(xlabel="t", title=r"$\tilde\beta_t / \beta_t$", xscale="log")
    for axes in (signal, ratio, small):
        axes.grid(alpha=0.3)
        axes.legend()
    save(figure, "schedules")


def density(schedule, x: np.ndarray, times: np.ndarray) -> np.ndarray:
    """q(x_t) on a grid; [x, t]."""
    columns = []
    for t in times:
        level = noise_level_at(schedule, jnp.array(int(t)), jnp.float32)
        log_p = oracle.log_density(DATA, jnp.asarray(x[:, None], jnp.float32), level)
        columns.append(np.exp(np.asarray(log_p)))
    return np.stack(columns, axis=1)


def predictions() -> None:
    """What the best network says of x_0, of the noise and of v, at some t."""
    x = np.linspace(-3, 3, 400, dtype=np.float32)[:, None]
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    names = {"x0": r"$\hat x_0$", "eps": r"$\hat\epsilon$", "v": r"$\hat v$"}
    for i, (kind, title) in enumerate(names.items()):
        axes = figure.add_subplot(1, 3, i + 1)
        network = oracle.optimal_model(DATA, LINEAR, kind).apply_fn
        for t in (50, 150, 300, 600, 999):
            times = jnp.full(len(x), t)
            found = network(None, jnp.asarray(x), times, None, train=False, key=None)
            axes.plot(x[:, 0], np.asarray(found)[:, 0], label=f"t = {t}")
        axes.set(xlabel=r"$x_t$", title=title, ylim=(-3, 3))
        axes.grid(alpha=0.3)
    axes.legend()
    save(figure, "predictions")


def bound() -> None:
    """The terms of the bound of the best network, by the variance of the reverse step."""
    entropy = oracle.entropy(DATA) / math.log(2)
    x0 = np.asarray(oracle.sample(DATA, jax.random.key(0), 4000))
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    terms, total = (figure.add_subplot(1, 2, i) for i in (1, 2))
    for variance in ("fixed_small", "fixed_large", "learned"):
        model = oracle.optimal_model(DATA, LINEAR, "eps", variance)
        evaluated = Bound(model, devices.make_mesh(), T)
        found = evaluated.terms(None, Batch(x0), np.arange(len(x0)), len(x0))
        label = "exact" if variance == "learned" else variance
        terms.plot(np.arange(1, T), found.terms[1:], label=label)
        spent = found.prior + np.cumsum(found.terms[::-1])
        total.plot(np.arange(T)[::-1], spent, label=f"{label}: {spent[-1]:.2f} bits")
    terms.set(xlabel="t", title=r"$L_{t-1}$ in bits", xscale="log", yscale="log")
    total.axhline(entropy, color="black", lw=1, ls="--", label=f"entropy: {entropy:.2f}")
    total.set(xlabel="t", title="bits spent from T down to t", xscale="symlog")
    total.set_xlim(T, 0)
    for axes in (terms, total):
        axes.grid(alpha=0.3)
        axes.legend()
    save(figure, "bound")


def sampling() -> None:
    """Chains of the best network over the density of x_t: DDPM, between, and DDIM."""
    model = oracle.optimal_model(DATA, LINEAR)
    steps = trailing_timesteps(T, 100)
    frames = tuple(range(101))
    x = np.linspace(-3, 3, 300)
    shown = density(LINEAR, x, np.linspace(999, 0, 200))
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for i, eta in enumerate((1.0, 0.5, 0.0)):
        table = methods.ddim_table(model, steps, eta=eta)
        samples = Samples(jax.random.key(3), jnp.arange(12))
        options = ChainOptions(frames=frames)
        _, states = sample_chain(model, None, table, samples, (1,), None, options)
        axes = figure.add_subplot(1, 3, i + 1)
        axes.imshow(
            np.sqrt(shown),
            extent=(999, 0, -3, 3),
            origin="lower",
            aspect="auto",
            cmap="Blues",
            vmax=1.5,
        )
        axes.plot(np.append(steps, 0), np.asarray(states)[..., 0], lw=0.8, color="black")
        name = {1.0: "DDPM ($\\eta = 1$)", 0.0: "DDIM ($\\eta = 0$)"}.get(
            eta, f"$\\eta = {eta}$"
        )
        axes.set(xlabel="t", title=name, ylim=(-3, 3))
    save(figure, "sampling")


def wrong() -> None:
    """What three of the formulas that circulate would do."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    noise, product, target = (figure.add_subplot(1, 3, i) for i in (1, 2, 3))
    constant = constant_betas(T, 1 - (1 - 1e-4) ** (1 / T))
    noise.plot(LINEAR.log_snr, label="linear betas")
    noise.plot(
        np.log(np.cumprod(1 - constant) / (1 - np.cumprod(1 - constant))),
        label=r"$\beta = 1 - (1 - 10^{-4})^{1/T}$",
    )
    noise.set(xlabel="t", title="log SNR of a constant beta")
    product.plot(1 - LINEAR.alphas_cumprod, label=r"$1 - \bar\alpha_t$")
    product.plot(np.cumprod(LINEAR.betas[:60]), label=r"$\prod \beta_s$")
    product.set(xlabel="t", title="a product of betas", xscale="log", ylim=(-0.05, 1.05))
    x = np.linspace(-3, 3, 400, dtype=np.float32)[:, None]
    t = jnp.full(len(x), 300)
    said = {
        kind: np.asarray(
            oracle.optimal_model(DATA, LINEAR, kind).apply_fn(
                None, jnp.asarray(x), t, None, train=False, key=None
            )
        )
        for kind in ("eps", "x0")
    }
    target.plot(x, said["eps"], label=r"least of $\|\epsilon - \epsilon_\theta\|^2$")
    target.plot(
        x,
        said["x0"] - said["eps"],
        label=r"least of $\|x_0 - \epsilon - \epsilon_\theta\|^2$",
    )
    target.set(xlabel=r"$x_t$ at t = 300", title="what the network would learn")
    for axes in (noise, product, target):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save(figure, "wrong")


if __name__ == "__main__":
    for picture in (noising, schedules, predictions, bound, sampling, wrong):
        picture()
