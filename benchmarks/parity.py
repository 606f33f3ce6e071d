"""Our samplers beside those of diffusers: the same eps function, steps and noise.

`make bench-parity` runs this in an environment of its own, with torch and diffusers. As
shipped, diffusers keeps its tables in float32; with its alphas_cumprod replaced by ours in
float64, what is left is rounding.
"""

import functools
from collections.abc import Callable, Iterator
from unittest import mock

import jax

jax.config.update("jax_enable_x64", True)

import diffusers
import jax.numpy as jnp
import numpy as np
import torch
from record import Figure, record

from diffusion_jax.diffusion import oracle
from diffusion_jax.diffusion.schedules import alphas_cumprod_at, linear_betas, make_schedule
from diffusion_jax.samplers import chain, methods

SCHEDULE = make_schedule(linear_betas(1000))
DATA = oracle.mixture([0.3, 0.7], [[-0.6, 0.2], [0.5, -0.4]], 0.04)
MODEL = oracle.optimal_model(DATA, SCHEDULE)
NETWORK = MODEL.apply_fn
KEY, INDICES, SHAPE = jax.random.key(0), jnp.arange(64), (2,)
COMMON = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
TEN = [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]  # "trailing", 10 of 1,000.
EVERY = list(range(999, -1, -1))
# Its "linspace" of 9 and of 10: whole numbers, which leave nothing to interpolate.
NINE = [999, 888, 777, 666, 555, 444, 333, 222, 111]


@functools.cache
def noise(position: int, dtype: type) -> torch.Tensor:
    """The draws of our chain: position 0 is the start, row r draws at r + 1."""
    with jax.enable_x64(dtype is np.float64):
        return torch.tensor(
            np.asarray(chain._draw(chain.Samples(KEY, INDICES), position, SHAPE))
        )


def ours(table, dtype: type) -> np.ndarray:
    with jax.enable_x64(dtype is np.float64):
        return np.asarray(
            chain.sample_chain(
                MODEL,
                None,
                table,
                chain.Samples(KEY, INDICES),
                SHAPE,
                None,
                chain.ChainOptions(hook=None),
            )[0]
        )


def theirs(
    scheduler, count: int, dtype: type, timesteps: list[int], step: Callable
) -> np.ndarray:
    """Their loop, with our eps function and our noise in its places."""
    if dtype is np.float64:
        scheduler.alphas_cumprod = torch.tensor(SCHEDULE.alphas_cumprod)
        scheduler.betas = torch.tensor(SCHEDULE.betas)
        scheduler.alphas = torch.tensor(SCHEDULE.alphas)
    scheduler.set_timesteps(count)
    told = [float(t) for t in scheduler.timesteps]
    assert list(dict.fromkeys(told)) == timesteps, (told, timesteps)
    x = noise(0, dtype)
    heun = isinstance(scheduler, diffusers.HeunDiscreteScheduler)
    if heun:  # Its state is x / sqrt(alphas_cumprod).
        x = x / alphas_cumprod_at(SCHEDULE, np.array([999.0])).item() ** 0.5
    for row, t in enumerate(scheduler.timesteps):
        x_t = scheduler.scale_model_input(x, t) if heun else x
        with jax.enable_x64(dtype is np.float64):
            eps = NETWORK(None, jnp.asarray(x_t.numpy()), jnp.full(64, float(t)))
            eps = torch.tensor(np.asarray(eps))
        x = step(scheduler, eps, t, x, noise(row + 1, dtype))
    return x.numpy()


def plain(scheduler, eps, t, x, draw):
    return scheduler.step(eps, t, x).prev_sample


def ddim(scheduler, eps, t, x, draw, eta=0.0):
    options = {"variance_noise": draw} if eta else {}
    return scheduler.step(eps, t, x, eta=eta, **options).prev_sample


def ddpm(scheduler, eps, t, x, draw):
    if t == scheduler.timesteps[-1]:
        # Where the variance is 0 theirs is 1e-20: over a list that does not end at 0 the
        # last step adds noise of 1e-10, which is more than rounding.
        draw = torch.zeros_like(draw)
    where = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    with mock.patch(where, lambda *_, **__: draw):
        return scheduler.step(eps, t, x).prev_sample


def sde(scheduler, eps, t, x, draw):
    return scheduler.step(eps, t, x, variance_noise=draw).prev_sample


def cases():
    """(name, our table, their scheduler, steps, how it is stepped, float64 as well)."""
    free = {"clip_sample": False, **COMMON}
    trailing = {"timestep_spacing": "trailing"}
    linspace = {"timestep_spacing": "linspace"}
    dpm = functools.partial(diffusers.DPMSolverMultistepScheduler, **COMMON, **linspace)
    yield (
        "DDPM, 1,000 steps",
        methods.ddpm_table(MODEL, EVERY),
        diffusers.DDPMScheduler(**free),
        EVERY,
        ddpm,
        True,
    )
    yield (
        "DDPM fixed large, 1,000 steps",
        methods.ddpm_table(MODEL, EVERY, variance="fixed_large"),
        diffusers.DDPMScheduler(**free, variance_type="fixed_large"),
        EVERY,
        ddpm,
        True,
    )
    yield (
        "DDPM, 10 steps",
        methods.ddpm_table(MODEL, TEN),
        diffusers.DDPMScheduler(**free, **trailing),
        TEN,
        ddpm,
        True,
    )
    for eta in (0.0, 0.5, 1.0):
        for chosen in (TEN, EVERY):
            yield (
                f"DDIM, eta {eta:g}, {len(chosen):,} steps",
                methods.ddim_table(MODEL, chosen, eta=eta),
                diffusers.DDIMScheduler(**free, **trailing),
                chosen,
                functools.partial(ddim, eta=eta),
                True,
            )
    yield (
        "DPM-Solver++ 2M, 9 steps",
        methods.dpmpp_2m_table(MODEL, NINE),
        dpm(final_sigmas_type="zero"),
        NINE,
        plain,
        False,
    )
    yield (
        "DPM-Solver++ 2M SDE, 9 steps",
        methods.dpmpp_2m_table(MODEL, NINE, eta=1.0),
        dpm(final_sigmas_type="zero", algorithm_type="sde-dpmsolver++"),
        NINE,
        sde,
        False,
    )
    yield (
        "UniPC, 9 steps",
        methods.unipc_table(MODEL, NINE),
        diffusers.UniPCMultistepScheduler(**COMMON, **linspace, final_sigmas_type="zero"),
        NINE,
        plain,
        False,
    )
    yield (
        "Heun, 10 steps",
        methods.heun_table(MODEL, [*NINE, 0]),
        diffusers.HeunDiscreteScheduler(**COMMON, **linspace),
        [*NINE, 0],
        plain,
        False,
    )


def parity() -> Iterator[Figure]:
    """The largest difference of any sample, in the units of images in [-1, 1]."""
    for name, table, scheduler, chosen, step, double in cases():
        found = theirs(scheduler, len(chosen), np.float32, chosen, step)
        gap = np.abs(ours(table, np.float32) - found).max()
        yield f"parity: {name}, as shipped", float(gap), "<= 5e-05"
        if double:
            found = theirs(scheduler, len(chosen), np.float64, chosen, step)
            gap = np.abs(ours(table, np.float64) - found).max()
            yield f"parity: {name}, float64", float(gap), "<= 1e-10"


if __name__ == "__main__":
    record(parity)
