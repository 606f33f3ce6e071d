"""Samplers as tables: one row of linear coefficients for each network call.

Every reverse step here is linear in the state x, the predicted x_0, those of earlier rows
and fresh noise. So a method is a function on the host that fills a table in NumPy float64
(table.py explains its columns), and one scan (chain.py) runs any of them.

Below a step goes from the noise level (alpha, sigma) of a timestep to that of the next one
of the list, (alpha', sigma'): nothing of the steps between them is used. Its beta is the
variance of the noise that leads back, 1 - alpha^2 / alpha'^2 where the process preserves
the variance. lambda = log(alpha / sigma), h = lambda' - lambda. The last step goes to
alpha' = 1, sigma' = 0, h = infinity, so it lands on x_0 and adds no noise.

Every method takes

  model: its noise process, what it predicts and its variance; the network is not used.

  timesteps: falling real numbers in 0 .. T-1, strictly except for `ddpm_table`,
  `ddim_table` and `non_markovian_table`, where one that is repeated changes nothing; or
  the `Steps` themselves.

and raises ValueError for timesteps that do not fall or are out of range, and for eps from
a timestep without any signal.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import jax
import numpy as np

from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.noise_level import NoiseLevel
from diffusion_jax.diffusion.parameterization import check_variance
from diffusion_jax.diffusion.tables import names_with
from diffusion_jax.samplers.noise_levels import (
    Steps,
    Timesteps,
    churned_steps,
    make_steps,
    rising_steps,
)
from diffusion_jax.samplers.table import Coefficients, SamplerTable, assemble

# Unseen (0.1): where a warning begins is a choice.
_MAX_LEFT = 0.1  # Langevin's noise that may be left, in the units of images in [-1, 1].
# Unseen (4): with one more or less the order is the same.
_INVERTING = 4  # Rows that invert the last step of a chain.
_MAX_GAIN = 3.5  # Gain of the errors of predicted x_0: with more, digits show them.


def ddpm_table(
    model: Model,
    timesteps: Timesteps | Steps,
    *,
    variance: str | None = None,
) -> SamplerTable:
    """Ancestral sampling (DDPM algorithm 2; over fewer steps, IDDPM section 4).

    The mean is that of q(x' | x, x_0) (DDPM eq. 7):

        x' = alpha / alpha' sigma'^2 / sigma^2 x + alpha' beta / sigma^2 x_0 + std noise

    std^2 is beta-tilde = beta sigma'^2 / sigma^2 ("fixed_small", eq. 7), beta
    ("fixed_large", section 3.2), or between the two where the network says so ("learned",
    IDDPM eq. 15). With few steps fixed_large is ruinous, and warned of.

    Args:
      variance: of the noise, if not the model's; "learned" is for a model that has it.
    """
    chosen = model.variance if variance is None else variance
    check_variance(chosen)
    if chosen == "learned" != model.variance:
        raise ValueError("variance 'learned' needs a network that has learned it")
    s = make_steps(model.process, timesteps, repeats=True)
    beta = s.added_variance
    shrink = s.next.sigma_squared / s.level.sigma_squared
    noise_variance = beta * shrink
    log_range = np.zeros(len(beta))
    if chosen == "fixed_large":
        noise_variance = np.append(beta[:-1], 0.0)
        if 10 * len(beta) <= model.process.num_timesteps:
            warnings.warn(
                f"fixed_large variances with {len(beta)} steps of "
                f"{model.process.num_timesteps} leave the samples noisy (on CIFAR-10 a FID "
                "of 367 with 10 steps, 133 with 20, 33 with 50, 10 with 100, where ddim "
                "has 13, 6.8, 4.7, 4.2); take fixed_small, or ddim",
                stacklevel=2,
            )
    if chosen == "learned":
        log_range[:-1] = -np.log(shrink[:-1])
    return assemble(
        model,
        s.t,
        s.level,
        {
            "x": shrink * s.level.alpha / s.next.alpha,
            "x0": beta * s.next.alpha / s.level.sigma_squared,
            "noise": np.sqrt(noise_variance),
        },
        noise_log_range=log_range,
    )


def non_markovian_table(
    model: Model,
    timesteps: Timesteps | Steps,
    std: Sequence[float] | np.ndarray,
) -> SamplerTable:
    """The family of DDIM (eq. 12), with any standard deviation of the noise.

        x' = alpha' x_0 + sqrt(sigma'^2 - std^2) eps + std noise,
        eps = (x - alpha x_0) / sigma

    Whatever std is, x has the marginals of the process (lemma 1).

    Args:
      std: of each step, float64 [S], in 0 .. sigma'; so 0 for the last one.

    Raises:
      ValueError: also for a std of another length, or too large.
    """
    s = make_steps(model.process, timesteps, repeats=True)
    std = np.asarray(std, np.float64)
    if std.shape != s.t.shape:
        raise ValueError(f"std must have one value for each of {len(s.t)} steps")
    rest = s.next.sigma_squared - std**2
    # Where std is sigma', which DDPM's is at full noise, the rest is 0 except for rounding.
    # Unseen (1e-12): a tolerance for rounding in float64, which is near 1e-16.
    for i in np.flatnonzero(~((std >= 0) & (rest > -1e-12)))[:1]:
        raise ValueError(
            f"std[{i}] ({std[i]}) must be in 0 .. sqrt(1 - alphas_cumprod) of the "
            f"timestep that it leads to, here {s.next.sigma[i]:.6g}"
        )
    direction = np.sqrt(np.maximum(rest, 0.0)) / s.level.sigma
    return assemble(
        model,
        s.t,
        s.level,
        {"x": direction, "x0": s.next.alpha - direction * s.level.alpha, "noise": std},
    )


def ddim_table(
    model: Model,
    timesteps: Timesteps | Steps,
    *,
    eta: float = 0.0,
) -> SamplerTable:
    """DDIM: `non_markovian_table` with eta times DDPM's standard deviation (eq. 16).

        std = eta sigma' / sigma sqrt(beta)

    eta = 0 is deterministic: Euler's method on the probability flow (section 4.3).

    Args:
      eta: 0 .. 1; 1 is `ddpm_table` with fixed_small variances.
    """
    _check_eta(eta)
    s = make_steps(model.process, timesteps, repeats=True)
    # Upwards nothing is added, and eta is 0.
    added = np.maximum(s.added_variance, 0.0)
    std = eta * s.next.sigma / s.level.sigma * np.sqrt(added)
    return non_markovian_table(model, s, std)


def dpmpp_2m_table(
    model: Model,
    timesteps: Timesteps | Steps,
    *,
    eta: float = 0.0,
) -> SamplerTable:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2), of second order, and its SDE form.

    With c = 1 + eta and r = (h of the step before) / h:

        x' = sigma' / sigma e^(-eta h) x + alpha' (1 - e^(-c h)) D
             + sigma' sqrt(1 - e^(-2 eta h)) noise
        D = x_0 + (x_0 - x_0 of the step before) / (2 r)

    The first and the last step have D = x_0, of first order.

    Args:
      eta: 0 (the ODE) .. 1 (SDE-DPM-Solver++).
    """
    _check_eta(eta)
    s = make_steps(model.process, timesteps)
    coefficients = {**_exponential_decay(s, eta), **_to_the_middle(s, eta)}
    table = assemble(model, s.t, s.level, coefficients)
    return _checked(table, "dpmpp_2m")


def dpmpp_3m_table(
    model: Model,
    timesteps: Timesteps | Steps,
    *,
    eta: float = 0.0,
) -> SamplerTable:
    """DPM-Solver++ 3M (after the code of Lu et al. 2022), of third order, and its SDE form.

    The exact solution where x_0 is the parabola in lambda through the last three
    predictions, x_0 + d1 u + d2 u^2 / 2 at u = lambda - (that of this row):

        x' = sigma' / sigma e^(-eta h) x + alpha' (p0 x_0 + p1 d1 + p2 d2) + noise
        p0 = 1 - e^(-c h),   p1 = h - p0 / c,   p2 = h^2 / 2 - p1 / c,   c = 1 + eta

    and the noise of `dpmpp_2m_table`. The published code takes half of d2, and is of
    second order. The first two steps take a constant and a line; the last is DDIM.

    Args:
      eta: 0 (the ODE) .. 1 (the SDE).
    """
    _check_eta(eta)
    s = make_steps(model.process, timesteps)
    c = 1 + eta
    p0 = -np.expm1(-c * s.h)
    # Unseen (0.0): it stands where nothing is read.
    h = np.where(np.isfinite(s.h), s.h, 0.0)
    # Unseen (0.0): it stands where nothing is read.
    p1 = np.where(h, h - p0 / c, 0.0)
    # Unseen (0.0): it stands where nothing is read.
    p2 = np.where(h, h**2 / 2 - p1 / c, 0.0)
    # How far back in lambda the two earlier predictions lie.
    back = np.append(np.inf, s.h[:-1])
    back2 = back + np.append(np.inf, back[:-1])
    # Divided differences: d1 = (x_0 - x_0_prev) / back + back d2 / 2, and d2 / 2 =
    # ((x_0 - x_0_prev) / back - (x_0_prev - x_0_prev2) / (back2 - back)) / back2.
    known = np.isfinite(back2)
    # Unseen (0.0): it stands where nothing is read.
    curve = np.where(known, (p1 * np.where(known, back, 0.0) + 2 * p2) / back2, 0.0)
    line, bend = (p1 + curve) / back, curve / np.append(np.inf, back[:-1])
    table = assemble(
        model,
        s.t,
        s.level,
        {
            **_exponential_decay(s, eta),
            "x0": s.next.alpha * (p0 + line),
            "x0_prev": -s.next.alpha * (line + bend),
            "x0_prev2": s.next.alpha * bend,
        },
    )
    return _checked(table, "dpmpp_3m")


def unipc_table(model: Model, timesteps: Timesteps | Steps) -> SamplerTable:
    """UniPC-2 with B(h) = e^h - 1, predicting x_0 (Zhao et al. 2023).

    The network's answer at a predicted x also corrects that x (UniC-2), and the next
    step starts from the corrected one, which the anchor keeps. So the corrector costs no
    call. The predictor, UniP-2, is a step of `dpmpp_2m_table`; the corrector's first step
    is of first order.
    """
    s = make_steps(model.process, timesteps)
    # The h of the step that led here, and the h before over that (r_1, negative). Row 0
    # has neither and row 1 no r_1: the -1 and 1 in their places are not used.
    # Unseen (1.0): it stands where nothing is read.
    h = np.append(1.0, s.h[:-1])
    # Unseen (1.0): it stands where nothing is read.
    r1 = np.append([-1.0, -1.0], -h[1:-1] / h[2:])[: len(h)]
    # The paper's b_1 and b_2, and the two equations for rho that they belong to, solved.
    phi = -np.expm1(-h)
    b1 = 1 / phi - 1 / h
    b2 = 1 / phi - 2 * b1 / h
    rho1 = (b1 - b2) / (1 - r1)
    rho2 = b1 - rho1
    rho1[:2], rho2[:2] = 0.0, 0.5
    gain = s.level.alpha * phi
    corrected = {
        "anchor": s.level.sigma / np.append(np.inf, s.level.sigma[:-1]),
        "x0": gain * rho2,
        "x0_prev": gain * (1 - rho1 / r1 - rho2),
        "x0_prev2": gain * rho1 / r1,
    }
    for coefficient in corrected.values():
        coefficient[0] = 0.0  # Nothing to correct yet.
    corrected["x"] = np.eye(1, len(h))[0]
    decay = s.next.sigma / s.level.sigma
    predicted = {name: decay * coefficient for name, coefficient in corrected.items()}
    for name, coefficient in _to_the_middle(s, 0.0).items():
        predicted[name] = predicted[name] + coefficient
    table = assemble(model, s.t, s.level, predicted, corrected)
    return _checked(table, "unipc")


def euler_table(
    model: Model,
    timesteps: Timesteps | Steps,
    *,
    churn: float = 0.0,
) -> SamplerTable:
    """Euler's method on the probability flow (EDM eq. 1), with EDM's churn.

    With xbar = x / alpha and sbar = sigma / alpha, d xbar / d sbar = (xbar - x_0) / sbar:

        x' = sigma' / sigma x + (alpha' - alpha sigma' / sigma) x_0

    Without churn that is `ddim_table`. EDM's own timesteps are those of
    `karras_timesteps`.

    Args:
      churn: S_churn of EDM algorithm 2, at least 0: before each step noise is added until
        sbar is 1 + min(churn / S, sqrt(2) - 1) times what it was, but no more than at
        T - 1.
    """
    s, rescale, noise = churned_steps(model.process, timesteps, churn)
    coefficients = {name: rescale * coefficient for name, coefficient in _euler(s).items()}
    return assemble(model, s.t, s.level, {**coefficients, "noise": noise})


def heun_table(
    model: Model,
    timesteps: Timesteps | Steps,
    *,
    churn: float = 0.0,
) -> SamplerTable:
    """Heun's method on the probability flow (EDM algorithms 1 and 2), of second order.

    Two rows per step: a trial step of Euler's, with x kept in the anchor, and from there
    again with the mean of the slopes at both ends. The last step is Euler's alone, so S
    timesteps are 2 S - 1 calls of the network. A step multiplies what changes of x_0 by
    (sbar / sbar' - 1) / 2, so that long ones are ruinous, and warned of.

    Args:
      churn: as in `euler_table`.

    Raises:
      ValueError: also where the first timestep is without any signal.
    """
    s, rescale, noise = churned_steps(model.process, timesteps, churn)
    if s.level.alpha[0] == 0:
        raise ValueError(
            "heun needs the slope at the first timestep, which is infinite with a zero "
            "terminal signal-to-noise ratio; take unipc, or a list of timesteps below it"
        )
    trial = _euler(s)
    has_second = np.isfinite(s.h)  # All steps except that to x_0.
    step = np.repeat(np.arange(len(s.t)), 1 + has_second)
    is_second = np.append(False, step[1:] == step[:-1])
    # sbar' / sbar.
    ratio = np.exp(-s.h[has_second])
    signal, scale = s.next.alpha[has_second], rescale[has_second]
    second = {
        "anchor": scale * signal / s.level.alpha[has_second] * (1 + ratio) / 2,
        "x": scale * (1 - 1 / ratio) / 2,
        "x0_prev": scale * signal * (1 - ratio) / 2,
        "x0": -scale * signal * (1 - 1 / ratio) / 2,
        "noise": noise[has_second],
    }

    def both(first: np.ndarray, then: np.ndarray) -> np.ndarray:
        rows = first[step]
        rows[is_second] = then
        return rows

    none = np.zeros(len(s.t))
    is_trial = np.append(is_second[1:], False)
    level = NoiseLevel(
        *(both(a, b[has_second]) for a, b in zip(s.level, s.next, strict=True))
    )
    table = assemble(
        model,
        both(s.t, s.next_t[has_second]),
        level,
        {name: both(trial.get(name, none), second[name]) for name in second},
        {"x": is_trial.astype(np.float64)},
        is_trial=is_trial,
    )
    return _checked(table, "heun")


def langevin_table(
    model: Model,
    timesteps: Timesteps | Steps,
    *,
    step_size: float = 0.05,
    # Unseen (1): a number of rows, an integer.
    steps_per_level: int = 1,
) -> SamplerTable:
    """Annealed Langevin dynamics (Song & Ermon 2019, algorithm 1), from noise.

    At each timestep, and with the state carried over to the next one as it is,

        x' = x + a score + sqrt(2 a) noise,   score = (alpha x_0 - x) / sigma^2,
        a = step_size sigma^2

    a function of t alone; the very last row is x_0 itself. The stationary variance is too
    large by a factor of about 1 + step_size / 2. With few rows the noise is left behind,
    which is warned of.

    Args:
      step_size: above 0, at most 1; 2 snr^2 in Song et al. 2021, algorithm 5.
      steps_per_level: rows for each timestep, at least 1.
    """
    _check_langevin(step_size, steps_per_level)
    s = make_steps(model.process, timesteps)
    if steps_per_level > 1 and s.level.alpha[0] == 0:
        raise ValueError(
            f"langevin with {steps_per_level} steps at each timestep (langevin_steps) "
            f"cannot start at {s.t[0]:g}, where the signal-to-noise ratio is zero; "
            "take 1 step, or a list of timesteps that starts lower"
        )
    t = np.repeat(s.t, steps_per_level)
    level = NoiseLevel(*(np.repeat(square, steps_per_level) for square in s.level))
    coefficients = _langevin(level, step_size)
    left = 1.0  # Variance of the noise in x, if x_0 were known all the way.
    for shrink, noise in zip(
        coefficients["x"][:-1], coefficients["noise"][:-1], strict=True
    ):
        left = shrink**2 * left + noise**2
    if len(t) > 1 and left**0.5 > _MAX_LEFT:
        warnings.warn(
            f"langevin with {len(t)} rows leaves noise of standard deviation "
            f"{left**0.5:.4g} before the last one; take more timesteps, more steps at "
            "each, or a larger step_size",
            stacklevel=2,
        )
    for name, last in (("x", 0.0), ("x0", 1.0), ("noise", 0.0)):
        coefficients[name][-1] = last
    return assemble(model, t, level, coefficients)


def with_langevin(
    table: SamplerTable, *, step_size: float = 0.05, num_steps: int = 1
) -> SamplerTable:
    """Predictor and corrector (Song et al. 2021, algorithm 1): any table, corrected.

    Each of its steps except the last is followed by `num_steps` of `langevin_table` at the
    timestep that it led to. They do not count among the predictions that a method
    remembers; an anchor that the next row goes on from moves along.

    Args:
      table: of any method.
      step_size: above 0, at most 1.
      num_steps: at least 1.
    """
    _check_langevin(step_size, num_steps)
    copies = np.ones(table.num_rows, int)
    copies[1:] += num_steps * ~table.is_trial[:-1]
    row = np.repeat(np.arange(table.num_rows), copies)
    corrects = np.append(row[1:] == row[:-1], False)  # The last copy is the row itself.
    moved = table.take(row)
    added = _langevin(moved.level, step_size)
    # The next row takes `share` of the anchor as its corrected x.
    share = np.where(moved.to_anchor.anchor == 0, np.inf, moved.to_anchor.anchor)
    step = {"x": added["x"] - 1, "x0": added["x0"], "noise": added["noise"]}

    def insert(old: Coefficients, new: dict[str, np.ndarray]) -> Coefficients:
        columns = old._asdict().items()
        changed = {k: np.where(corrects, new.get(k, 0.0), c) for k, c in columns}
        return Coefficients(**changed)

    return dataclasses.replace(
        moved,
        to_x=insert(moved.to_x, added),
        to_anchor=insert(
            moved.to_anchor,
            {"anchor": np.ones(len(row)), **{k: w / share for k, w in step.items()}},
        ),
        noise_log_range=np.where(corrects, 0.0, moved.noise_log_range),
        is_remembered=moved.is_remembered & ~corrects,
        is_trial=moved.is_trial & ~corrects,
    )


def with_interval(table: SamplerTable, low: float, high: float) -> SamplerTable:
    """Return the table with guidance in an interval of noise levels alone.

    A step is guided if low < sigma / alpha <= high at its beginning (Kynkäänniemi et al.
    2024, eqs. 5, 6), and then in all its rows.

    Args:
      table: of any method.
      low, high: 0 <= low < high.
    """
    if not 0 <= low < high:
        raise ValueError(f"the interval {low:g}, {high:g} must rise, from 0 or more")
    with np.errstate(divide="ignore"):
        sigma = table.level.sigma / table.level.alpha
    is_guided = (low < sigma) & (sigma <= high)
    is_second = np.append(False, table.is_trial[:-1])
    is_guided[is_second] = is_guided[:-1][is_second[1:]]
    return dataclasses.replace(table, is_guided=is_guided)


def with_base_noise(table: SamplerTable) -> SamplerTable:
    """Return the table for CFG++ (Chung et al. 2024, algorithm 2).

        x' = (the row, with the base as x_0) + alpha' (guided x_0 - base)

    For DDIM that is alpha' x_0 + sigma' eps of the base. alpha' is that of the noise level
    where the row leads to.

    Raises:
      ValueError: for a method that keeps an anchor: its rows do not lead to a state each.
    """
    if table.has_anchor:
        raise ValueError(
            "CFG++ is for methods whose state is x alone: ddpm, ddim, euler, dpmpp_2m, "
            "dpmpp_3m"
        )
    gain = np.append(table.level.alpha[1:], 1.0)
    return dataclasses.replace(table, to_x=table.to_x._replace(gain=gain))


def with_resampling(
    table: SamplerTable,
    times: int,
    # Unseen (1): a number of rows, an integer.
    jump_length: int = 1,
) -> SamplerTable:
    """Return the table with every stretch of rows run several times (RePaint).

    After `jump_length` rows x is noised again to the level where they began, and they are
    run again (Lugmayr et al. 2022, algorithm 1 and figure 9), so that what is painted fits
    what is known.

    Args:
      table: of a method that remembers no earlier row, without learned variances.
      times: r, how often each stretch is run, at least 1.
      jump_length: j, rows of a stretch, at least 1; the last one may be shorter.

    Raises:
      ValueError: for another table, or numbers below 1.
    """
    if times < 1 or jump_length < 1:
        raise ValueError(
            f"resamplings ({times}) and the jump length ({jump_length}) must be at least 1"
        )
    if times > 1 and (table.has_anchor or table.num_previous or table.is_learned):
        raise ValueError(
            "resampling is for methods that remember no earlier row, without learned "
            "variances: ddpm, ddim, euler, langevin"
        )
    num_rows = table.num_rows
    firsts = range(0, num_rows, jump_length)
    ends = [min(first + jump_length, num_rows) for first in firsts]
    row = np.concatenate(
        [np.tile(np.arange(a, b), times) for a, b in zip(firsts, ends, strict=True)]
    )
    jumps = np.append(row[1:] <= row[:-1], False)
    moved = table.take(row)
    back = NoiseLevel(*(np.append(square[1:], square[-1:]) for square in moved.level))
    # The level that the row leads to, which is that of the row after it in the old table.
    ahead = NoiseLevel(
        np.append(table.level.alpha_squared[1:], 1.0)[row],
        np.append(table.level.sigma_squared[1:], 0.0)[row],
    )
    share = np.where(jumps, back.alpha / ahead.alpha, 1.0)
    added = np.where(jumps, back.sigma_squared - share**2 * ahead.sigma_squared, 0.0)
    to_x = Coefficients(*(share * column for column in moved.to_x))
    noise = np.sqrt(np.square(to_x.noise) + np.maximum(added, 0.0))
    return dataclasses.replace(moved, to_x=to_x._replace(noise=noise))


def encoding_table(model: Model, name: str, timesteps: Timesteps) -> SamplerTable:
    """Return the table of a chain backwards, from x_0 to x at the first timestep.

    The last step of the chain that leads back is x_0 = D(x), D the predicted x_0 at the
    last timestep. It is inverted by a few rows x' = x + alpha (x_0 - D(x)), from x = x_0
    on, each of which shortens the error by a factor of about sigma^2 over the variance of
    the data. The rows of the method then lead up the list (DDIM section 4.3). The error of
    what the same list leads back to falls at the order of the method; of dpmpp_3m at the
    second, by its first rows.

    Args:
      model: as for every method.
      name: of a method that adds no noise; its options are the defaults.
      timesteps: falling, as those of the chain that leads back.

    Raises:
      ValueError: for another method, or as `noise_levels.rising_steps`.
    """
    if name not in DETERMINISTIC:
        raise ValueError(
            f"{name} adds noise, and cannot run backwards; take {', '.join(DETERMINISTIC)}"
        )
    s = rising_steps(model.process, timesteps)
    table = METHODS[name](model, s)
    first = np.zeros(_INVERTING, int)
    level = NoiseLevel(*(square[first] for square in s.level))
    begins = np.eye(1, _INVERTING)[0]
    to_x = {
        # Unseen (begins * level.alpha): the rows after the first one correct it.
        "x": 1 + begins * level.alpha,
        # Unseen (begins): in the first row the anchor is 0.
        "anchor": (1 - begins) * level.alpha,
        "x0": -level.alpha,
    }
    # Unseen (begins): in the first row the anchor is 0.
    to_anchor = {"x": begins, "anchor": 1 - begins}
    inverse = assemble(model, s.t[first], level, to_x, to_anchor)
    parts = (
        # Unseen (table.num_previous): a number of arrays.
        dataclasses.replace(part, num_previous=table.num_previous, has_anchor=True)
        for part in (inverse, table)
    )
    return jax.tree.map(lambda a, b: np.concatenate([a, b]), *parts)


def _to_the_middle(s: Steps, eta: float) -> dict[str, np.ndarray]:
    """Coefficients of two predictions, extrapolated to the middle of each step by a line.

    The first and the last step, of first order, take the newest alone.
    """
    # Unseen (0.0): it stands where nothing is read.
    finite = np.where(np.isfinite(s.h), s.h, 0.0)
    half = np.append(0.0, finite[1:] / s.h[:-1]) / 2
    gain = -s.next.alpha * np.expm1(-(1 + eta) * s.h)
    return {"x0": gain * (1 + half), "x0_prev": -gain * half}


def _euler(s: Steps) -> dict[str, np.ndarray]:
    """Coefficients of x and x_0 in a step of Euler's on the probability flow."""
    decay = s.next.sigma / s.level.sigma
    return {"x": decay, "x0": s.next.alpha - s.level.alpha * decay}


def _checked(table: SamplerTable, method: str) -> SamplerTable:
    """The table; with a warning where it multiplies errors of predicted x_0.

    Steps that are much longer than the one before weigh predictions against each other.
    An error of x_0 is of the order of sigma / alpha, but at most 1.
    """
    to_x, level = table.to_x, table.level
    total = np.abs(to_x.x0) + np.abs(to_x.x0_prev) + np.abs(to_x.x0_prev2)
    with np.errstate(divide="ignore"):
        noise_to_signal = np.sqrt(level.sigma_squared / level.alpha_squared)
    gain = total * np.minimum(noise_to_signal, 1.0)
    row = int(np.argmax(gain))
    if gain[row] > _MAX_GAIN:
        warnings.warn(
            f"{method} multiplies the predicted x_0 by {total[row]:.4g} in all at timestep "
            f"{table.t[row]:.4g}, so that its errors show; take more steps, another "
            "spacing (heun: karras), or ddim",
            stacklevel=3,
        )
    return table


def _exponential_decay(s: Steps, eta: float) -> dict[str, np.ndarray]:
    """Coefficients of x and noise of the exponential integrators, at this eta."""
    decay = s.next.sigma / s.level.sigma
    if eta == 0:  # Also where h is infinite.
        return {"x": decay}
    return {
        "x": decay * np.exp(-eta * s.h),
        "noise": s.next.sigma * np.sqrt(-np.expm1(-2 * eta * s.h)),
    }


def _langevin(level: NoiseLevel, step_size: float) -> dict[str, np.ndarray]:
    """Coefficients of one Langevin step at these noise levels."""
    return {
        "x": np.full(len(level.alpha), 1 - step_size),
        "x0": step_size * level.alpha,
        "noise": np.sqrt(2 * step_size * level.sigma_squared),
    }


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(
            f"eta ({eta}) must be between 0 (deterministic) and 1 (the noise of DDPM)"
        )


def _check_langevin(step_size: float, num_steps: int) -> None:
    if not 0 < step_size <= 1:
        raise ValueError(f"step_size ({step_size}) must be above 0 and at most 1")
    if num_steps < 1:
        raise ValueError(f"Langevin steps ({num_steps}) must be at least 1")


METHODS: dict[str, Callable[..., SamplerTable]] = {
    "ddpm": ddpm_table,
    "ddim": ddim_table,
    "dpmpp_2m": dpmpp_2m_table,
    "dpmpp_3m": dpmpp_3m_table,
    "unipc": unipc_table,
    "euler": euler_table,
    "heun": heun_table,
    "langevin": langevin_table,
}
# Methods that add no noise, unless an option says so.
DETERMINISTIC = ("ddim", "dpmpp_2m", "dpmpp_3m", "unipc", "euler", "heun")
# Methods that take a list in which a timestep is repeated.
REPEATING = ("ddpm", "ddim")
# The spacing of a method where none is named; trailing for all others.
SPACINGS_OF = {"euler": "karras", "heun": "karras"}


def methods_with(option: str) -> tuple[str, ...]:
    """Return the names of the methods that take an option."""
    return names_with(METHODS, option)
