"""Guided chains: against an ODE solver, closed forms, and the chains at their ends."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from diffusion_jax.diffusion import guidance, oracle
from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.schedules import alphas_cumprod_at, times_at_log_snr
from diffusion_jax.samplers import chain, methods
from helpers import SCHEDULE

MEANS = np.array([[-0.6, 0.1], [0.2, 0.5], [0.7, -0.4]])
VARIANCES = np.array([[0.2, 0.15], [0.14, 0.1], [0.13, 0.23]])
SHARES = np.array([0.5, 0.2, 0.3])
CLASSES = [oracle.gaussian(m, v) for m, v in zip(MEANS, VARIANCES, strict=True)]
WHOLE = oracle.mixture(SHARES, MEANS, VARIANCES)
LABELS = np.array([0, 1, 2, 0, 1, 2])
# Orders of the deterministic methods; that of UniPC is met in the limit alone.
ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpmpp_2m": 2, "dpmpp_3m": 3, "unipc": 2.6}


def labelled(prediction="v", shares=SHARES):
    """The optimal model of the mixture whose components are the classes."""
    whole = oracle.mixture(shares, MEANS, VARIANCES)
    models = [
        oracle.optimal_model(data, SCHEDULE, prediction) for data in (*CLASSES, whole)
    ]

    def apply_fn(params, x_t, t, cond, **options):
        outputs = jnp.stack([m.apply_fn(params, x_t, t) for m in models])
        return outputs[cond["label"], jnp.arange(len(x_t))]

    return Model(SCHEDULE, prediction, apply_fn=apply_fn)


MODEL = labelled()


def samples():
    return chain.Samples(jax.random.key(0), np.arange(6))


def cond_of(scale, label=LABELS):
    return {"label": label, "guidance": np.full(6, float(scale))}


def run(table, cond, guided=None, model=MODEL, params=None, **options):
    options = chain.ChainOptions(**{"hook": None, "guidance": guided, **options})
    sample = functools.partial(chain.sample_chain, model)
    sample = jax.jit(sample, static_argnums=(3, 5))
    return np.asarray(sample(params, table, samples(), (2,), cond, options)[0])


@pytest.fixture(scope="module")
def x64():
    with jax.enable_x64(True):
        yield


# Against an ODE solver


def log_snr_times(count, first=990.0, last=20.0):
    ends = alphas_cumprod_at(SCHEDULE, np.array([first, last]))
    return times_at_log_snr(SCHEDULE, np.linspace(*np.log(ends / (1 - ends)), count + 1))


def denoised(data, x, s):
    """E[x_0 | x = x_0 + s noise] of a mixture, in NumPy."""
    error = x[None] - data.means
    total = data.variances + s**2
    log_p = np.log(data.weights) - 0.5 * (error**2 / total + np.log(total)).sum(1)
    share = np.exp(log_p - log_p.max())
    share = (share / share.sum())[:, None]
    return (share * (data.means + data.variances / total * error)).sum(0)


def solved(x, scale):
    """The end of the guided probability flow (EDM eq. 1) from x, at 1e-12."""
    share = alphas_cumprod_at(SCHEDULE, np.array([990.0, 20.0]))
    alpha, sbar = np.sqrt(share), np.sqrt((1 - share) / share)
    found = []
    for start, label in zip(x / alpha[0], LABELS, strict=True):

        def slope(log_s, y, label=label):
            s = np.exp(log_s)
            base, given = denoised(WHOLE, y, s), denoised(CLASSES[label], y, s)
            return y - (base + scale * (given - base))

        flow = solve_ivp(slope, np.log(sbar), start, "DOP853", rtol=1e-12, atol=1e-12)
        found.append(flow.y[:, -1])
    return np.array(found) * alpha[1]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ORDERS)
def test_a_guided_chain_approaches_the_ode_solution_at_its_order(name):
    """Each deterministic method, at several scales by one compiled program."""
    options = chain.ChainOptions(hook=None, guidance=guidance.by_label(MODEL, 3))
    first = methods.METHODS[name](MODEL, log_snr_times(2))
    x = np.asarray(chain.start_chain(first, samples(), (2,)).x)

    traces = []

    @jax.jit
    def sample(table, cond):
        traces.append(table.num_rows)
        end = chain.sample_chain(MODEL, None, table, samples(), (2,), cond, options)
        return end[0]

    for scale in (0.0, 1.0, 2.0, 4.0):
        wanted, errors = solved(x, scale), []
        for count in (80, 160):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                table = methods.METHODS[name](MODEL, log_snr_times(count))
            table = table.take(slice(0, -1)).padded(2 * 160 + 1)
            errors.append(np.abs(sample(table, cond_of(scale)) - wanted).max())
        assert np.log2(errors[0] / errors[1]) > ORDERS[name] - 0.1
        assert errors[1] < {1: 0.02, 2: 5e-4, 3: 3e-5}[round(ORDERS[name])]
    assert traces == [2 * 160 + 1]
