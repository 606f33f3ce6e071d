"""How fast each method converges where the score is known: docs/images/convergence.png.

A mixture of two Gaussians in one dimension, real-valued timesteps even in log SNR from
T - 1 to index 20, float64 throughout. The error is the root mean square over 64 starts
against the probability flow, solved by DOP853 to 1e-12. The order of a method is the slope
between 80, 160 and 320 steps. "3M, as published" is the formula in the code of
DPM-Solver, which halves the second difference of the predictions.
"""

import dataclasses
from collections.abc import Iterator

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Plot
from record import ROOT, Figure, record
from scipy.integrate import solve_ivp

from diffusion_jax.diffusion import oracle
from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.noise_level import noise_level
from diffusion_jax.diffusion.schedules import linear_betas, make_schedule, times_at_log_snr
from diffusion_jax.samplers import chain, methods

SCHEDULE = make_schedule(linear_betas(1000))
DATA = oracle.mixture([0.3, 0.7], [[-0.6], [0.5]], [[0.05], [0.02]])
FIRST, LAST = 999, 20
COUNTS = (10, 20, 40, 80, 160, 320)
SAMPLES = chain.Samples(jax.random.key(0), jnp.arange(64))


def published_3m_table(model, timesteps, **options):
    """D1 and D2 as in multistep_dpm_solver_third_update of the code of DPM-Solver."""
    table = methods.dpmpp_3m_table(model, timesteps, **options)
    log_share = np.log(model.process.alphas_cumprod)
    share = np.exp(np.interp(timesteps, np.arange(1000), log_share))
    lam = np.log(share / (1 - share)) / 2
    x0, prev, prev2 = (np.array(w) for w in table.to_x[2:5])
    for i in range(2, len(lam) - 1):
        h, h0, h1 = lam[i + 1] - lam[i], lam[i] - lam[i - 1], lam[i - 1] - lam[i - 2]
        r0, r1 = h0 / h, h1 / h
        phi1 = np.expm1(-h)
        phi2 = phi1 / h + 1
        phi3 = phi2 / h - 0.5
        m0, m1, m2 = np.eye(3)
        d1_0, d1_1 = (m0 - m1) / r0, (m1 - m2) / r1
        d1 = d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1)
        d2 = (d1_0 - d1_1) / (r0 + r1)
        signal = np.sqrt(share[i + 1])
        x0[i], prev[i], prev2[i] = signal * (-phi1 * m0 + phi2 * d1 - phi3 * d2)
    to_x = table.to_x._replace(x0=x0, x0_prev=prev, x0_prev2=prev2)
    return dataclasses.replace(table, to_x=to_x)


METHODS = {
    "Euler, DDIM": methods.ddim_table,
    "DPM-Solver++ 2M": methods.dpmpp_2m_table,
    "Heun (two calls a step)": methods.heun_table,
    "DPM-Solver++ 3M, as published": published_3m_table,
    "DPM-Solver++ 3M": methods.dpmpp_3m_table,
    "UniPC-2": methods.unipc_table,
}


def solution() -> np.ndarray:
    """Where the probability flow has the 64 starts at index LAST."""
    share = SCHEDULE.alphas_cumprod[[FIRST, LAST]]
    start = np.asarray(chain.start_chain(one_row(), SAMPLES, (1,)).x)[:, 0]

    def slope(u, scaled):  # d (x / sigma) / d lambda = e^lambda E[x_0 | x]
        signal, sigma = 1 / np.sqrt(1 + np.exp(-2 * u)), 1 / np.sqrt(1 + np.exp(2 * u))
        x = jnp.asarray(scaled * sigma)[:, None]
        mean, _ = oracle.x0_mean_variance(DATA, x, noise_level(signal, sigma))
        return np.exp(u) * np.asarray(mean)[:, 0]

    span = np.log(share / (1 - share)) / 2
    first = start / np.sqrt(1 - share[0])
    solved = solve_ivp(slope, span, first, method="DOP853", rtol=1e-12, atol=1e-13)
    return solved.y[:, -1] * np.sqrt(1 - share[1])


def one_row():
    return methods.ddim_table(Model(SCHEDULE), [FIRST])


def errors(make, exact: np.ndarray) -> list[float]:
    """Root mean square errors at index LAST, for each number of steps."""
    model = oracle.optimal_model(DATA, SCHEDULE)
    ends = SCHEDULE.log_snr[[FIRST, LAST]]
    found = []
    for count in COUNTS:
        times = times_at_log_snr(SCHEDULE, np.linspace(*ends, count + 1))
        times[[0, -1]] = FIRST, LAST
        table = make(model, times)
        # Without the last step, which goes on to x_0.
        table = table.take(slice(table.num_rows - 1))
        x, _ = jax.jit(
            lambda table: chain.sample_chain(
                model, None, table, SAMPLES, (1,), None, chain.ChainOptions(hook=None)
            )
        )(table)
        found.append(float(np.sqrt(np.mean((np.asarray(x)[:, 0] - exact) ** 2))))
    return found


def orders() -> Iterator[Figure]:
    """The slopes, and the plot of the errors."""
    exact = solution()
    plot = Plot(figsize=(9, 4.5), layout="constrained")
    axes = plot.add_subplot()
    wanted = (1, 2, 2, 2, 3, None)
    for (name, make), order in zip(METHODS.items(), wanted, strict=True):
        found = errors(make, exact)
        calls = np.array(COUNTS) * (2 if "two calls" in name else 1)
        slopes = np.log2(np.array(found[-3:-1]) / found[-2:])
        axes.loglog(calls, found, "o-", ms=3, label=f"{name}: order {slopes.mean():.2f}")
        for span, slope in zip(("80 to 160", "160 to 320"), slopes, strict=True):
            target = f"{order} +- 0.25" if order else ""
            yield f"order: {name}, {span} steps", float(slope), target
    axes.set(
        xlabel="network calls",
        ylabel="root mean square error",
    )
    axes.grid(alpha=0.3, which="both")
    plot.suptitle("Probability flow of a Gaussian mixture, exact score, float64", size=11)
    plot.legend(loc="outside right center")
    FigureCanvasAgg(plot).print_png(ROOT / "docs" / "images" / "convergence.png")


if __name__ == "__main__":
    record(orders)
