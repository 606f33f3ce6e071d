"""Each method's rows against its definition: exact solutions, marginals, orders, limits.

Everything here is NumPy in float64; test_chain.py runs the tables in a scan.
"""

import dataclasses
import functools
import warnings
from typing import NamedTuple

import jax
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.optimize import brentq
from scipy.stats import norm

from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.schedules import (
    alphas_cumprod_at,
    cosine_betas,
    jsd_betas,
    linear_betas,
    make_schedule,
    rescale_zero_terminal_snr,
    times_at_log_snr,
)
from diffusion_jax.samplers import methods, timesteps
from diffusion_jax.samplers.table import aligned
from helpers import gaussian_moments, run_table

T = 1000
SCHEDULE = make_schedule(linear_betas(T))
COSINE = make_schedule(cosine_betas(T))
EVERY = timesteps.trailing_timesteps(T, T)
UNEVEN = [999.0, 810.5, 700.0, 450.25, 200.0, 90.0, 20.0]
MODEL, OF_X0 = Model(SCHEDULE), Model(SCHEDULE, "x0")
LEARNED = Model(SCHEDULE, variance="learned")
METHODS = methods.METHODS


class Traits(NamedTuple):
    """Traits that the contract leaves open to a method; the defaults are those of most."""

    order: int = 1  # Order of the method without noise.
    num_previous: int = 0
    has_anchor: bool = False
    is_two_stage: bool = False  # Two rows per step, from a slope that must be finite.


# A new method needs a row here only where it differs from the defaults.
TRAITS = {
    "dpmpp_2m": Traits(order=2, num_previous=1),
    "dpmpp_3m": Traits(order=3, num_previous=2),
    "unipc": Traits(order=3, num_previous=2, has_anchor=True),
    "heun": Traits(order=2, num_previous=1, has_anchor=True, is_two_stage=True),
}


def traits(name):
    return TRAITS.get(name, Traits())


def is_deterministic(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return not METHODS[name](MODEL, UNEVEN).to_x.noise.any()


DETERMINISTIC = [name for name in METHODS if is_deterministic(name)]


def is_finite(table):
    return all(np.isfinite(np.asarray(c, float)).all() for c in jax.tree.leaves(table))


def assert_same(found, expected, rtol=0.0):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol)


def levels(schedule, times):
    """alphas_cumprod at the times and at where each step leads."""
    share = alphas_cumprod_at(schedule, np.asarray(times))
    return share, np.append(share[1:], 1.0)


def half_log_snr(share):
    return np.log(share / (1 - share)) / 2


# Ancestral sampling and DDIM


def test_ddpm_over_all_steps_has_the_posterior_of_the_process():
    """Rows against `q_posterior`, which test_forward_process.py checks by Bayes' rule."""
    to_x = methods.ddpm_table(MODEL, EVERY).to_x
    np.testing.assert_allclose(to_x.x0[::-1], SCHEDULE.posterior_mean_coef1, rtol=1e-9)
    np.testing.assert_allclose(
        to_x.x[::-1], SCHEDULE.posterior_mean_coef2, rtol=1e-9, atol=1e-15
    )
    np.testing.assert_allclose(
        to_x.noise[::-1] ** 2, SCHEDULE.posterior_variance, atol=1e-15
    )


@pytest.mark.parametrize("schedule", [SCHEDULE, COSINE])
def test_ddim_with_eta_1_over_all_steps_is_ddpm_fixed_small(schedule):
    ddpm = methods.ddpm_table(Model(schedule), EVERY)
    ddim = methods.ddim_table(Model(schedule), EVERY, eta=1.0)
    assert_same(ddpm, ddim, rtol=1e-11)


@pytest.mark.parametrize("count", [3, 10, 61, 250])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_respaced_ddpm_is_the_ddpm_of_the_respaced_process(count):
    """Betas rebuilt from the chosen alphas_cumprod make a schedule of their own."""
    chosen = timesteps.trailing_timesteps(T, count)
    share = levels(SCHEDULE, chosen)[0][::-1]
    respaced = make_schedule(1 - share / np.append(1.0, share[:-1]))
    to_x = methods.ddpm_table(MODEL, chosen).to_x
    np.testing.assert_allclose(to_x.x0[::-1], respaced.posterior_mean_coef1, rtol=1e-9)
    np.testing.assert_allclose(
        to_x.noise[::-1] ** 2, respaced.posterior_variance, atol=1e-14
    )
    large = methods.ddpm_table(MODEL, chosen, variance="fixed_large").to_x
    np.testing.assert_allclose(large.noise[-2::-1] ** 2, respaced.betas[1:], rtol=1e-9)
    learned = methods.ddpm_table(LEARNED, chosen)
    assert learned.is_learned
    np.testing.assert_array_equal(learned.to_x.noise, to_x.noise)
    np.testing.assert_allclose(
        learned.noise_log_range[:-1],
        2 * np.log(large.noise[:-1] / to_x.noise[:-1]),
        rtol=1e-9,
    )
    assert learned.noise_log_range[-1] == 0


def keeps_the_marginals(table, share, after):
    """Assert that rows lead from sqrt(a) x_0 + sqrt(1-a) eps to that form at the next."""
    np.testing.assert_allclose(
        table.to_x.x * np.sqrt(share) + table.to_x.x0, np.sqrt(after), rtol=1e-12
    )
    noise = table.to_x.x**2 * (1 - share) + table.to_x.noise**2
    np.testing.assert_allclose(noise, 1 - after, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("schedule", [SCHEDULE, COSINE])
def test_ddim_ddpm_and_any_sigma_keep_the_marginals_of_the_process(schedule, eta):
    model = Model(schedule)
    for chosen in (timesteps.trailing_timesteps(T, 20), UNEVEN):
        share, after = levels(schedule, chosen)
        std = eta * 0.9 * np.sqrt(1 - after)
        for table in (
            methods.ddim_table(model, chosen, eta=eta),
            methods.non_markovian_table(model, chosen, std),
            methods.ddpm_table(model, chosen),
        ):
            keeps_the_marginals(table, share, after)
        np.testing.assert_array_equal(
            methods.non_markovian_table(model, chosen, std).to_x.noise, std
        )


def test_eta_scales_the_noise():
    full, part = (methods.ddim_table(MODEL, UNEVEN, eta=eta) for eta in (1.0, 0.3))
    np.testing.assert_allclose(part.to_x.noise, 0.3 * full.to_x.noise)
    assert not methods.ddim_table(MODEL, UNEVEN).to_x.noise.any()


def test_a_sigma_of_no_such_process_is_refused():
    room = np.sqrt(1 - levels(SCHEDULE, UNEVEN)[1])
    methods.non_markovian_table(MODEL, UNEVEN, room)
    for bad, said in (
        (room[1:], "one value for each of 7 steps"),
        (room * 1.001, r"std\[0\]"),
        (np.append(room[:-1], 1e-3), r"std\[6\] .* here 0"),
        (-room, r"std\[0\]"),
    ):
        with pytest.raises(ValueError, match=said):
            methods.non_markovian_table(MODEL, UNEVEN, bad)


def test_repeated_timesteps_change_nothing():
    """Repeated timesteps, as in DDIM's quadratic list, are steps of no length."""
    once = [800.0, 300.0, 2.0, 0.0]
    for make, model in (
        (methods.ddpm_table, MODEL),
        (methods.ddpm_table, LEARNED),
        (functools.partial(methods.ddim_table, eta=0.7), MODEL),
    ):
        table = make(model, [800.0, 300.0, 300.0, 2.0, 0.0, 0.0])
        for row in (1, 4):
            assert table.to_x.x[row] == 1
            assert table.to_x.x0[row] == table.to_x.noise[row] == 0
        assert_same(table.take(np.array([0, 2, 3, 5])), make(model, once), rtol=1e-12)


def test_the_variance_of_ddpm_is_the_models_unless_told_else():
    chosen = timesteps.trailing_timesteps(T, 200)
    kinds = ("fixed_small", "fixed_large", "learned")
    own = {kind: methods.ddpm_table(Model(SCHEDULE, "v", kind), chosen) for kind in kinds}
    assert own["fixed_small"].to_x.noise[0] < own["fixed_large"].to_x.noise[0]
    for kind in kinds:
        assert own[kind].is_learned == (kind == "learned")
        for told in ("fixed_small", "fixed_large"):
            table = methods.ddpm_table(Model(SCHEDULE, "v", kind), chosen, variance=told)
            assert_same(table, own[told])
            assert not table.is_learned
    told = methods.ddpm_table(LEARNED, chosen, variance="learned")
    assert_same(told, methods.ddpm_table(LEARNED, chosen))
    for kind in ("fixed_small", "fixed_large"):
        with pytest.raises(ValueError, match="'learned' needs a network that has learned"):
            methods.ddpm_table(Model(SCHEDULE, "v", kind), chosen, variance="learned")


def test_few_steps_with_fixed_large_variances_are_warned_of():
    for count, warned in ((100, True), (101, False)):
        chosen = timesteps.trailing_timesteps(T, count)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            methods.ddpm_table(MODEL, chosen, variance="fixed_large")
            methods.ddpm_table(MODEL, chosen)
        assert [f"with {count} steps" in str(w.message) for w in said] == [True] * warned


@pytest.mark.parametrize("start", [-1.0, 0.5])
def test_steps_that_multiply_errors_of_x0_are_warned_of(start):
    """2M weighs two predictions with alpha' (1 - e^-h) (1 + h / h_before) in all; errors of
    x_0 are of the order of sigma / alpha, at most 1; what comes of both may be 3.5."""

    def total(h):
        after = 1 / np.sqrt(1 + np.exp(-2 * (start + h)))
        return after * (1 - np.exp(-h)) * (1 + h / 0.2)

    error = min(np.exp(-start), 1.0)
    limit = brentq(lambda h: total(h) * error - 3.5, 0.2, 3)
    for h, warned in ((limit * 0.997, False), (limit * 1.003, True), (2 * limit, True)):
        lam = np.array([start - 0.2, start, start + h])
        chosen = times_at_log_snr(SCHEDULE, 2 * lam)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for make in (methods.dpmpp_2m_table, methods.ddim_table):
                make(MODEL, chosen)
        assert len(said) == warned
        if warned:
            text = f"dpmpp_2m multiplies the predicted x_0 by {total(h):.4g} in all at"
            assert text in str(said[0].message)


def test_3m_tells_the_weight_of_all_three_predictions():
    """Each coefficient is the step of a parabola: 1 at one prediction, 0 at the others."""
    chosen = [999.0, 900.0, 800.0, 200.0]
    lam = half_log_snr(levels(SCHEDULE, chosen)[0])[:3]
    total = 0.0
    for k in range(3):
        others = np.delete(lam, k)
        basis = np.polynomial.Polynomial.fromroots(others) / np.prod(lam[k] - others)
        total += abs(exact_step(SCHEDULE, 800.0, 200.0, 0.0, basis))
    assert total > 3.5
    with pytest.warns(UserWarning, match=f"by {total:.4g} in all at timestep 800,"):
        methods.dpmpp_3m_table(MODEL, chosen)


def test_other_ruinous_steps_are_warned_of_and_usual_ones_are_not():
    for name, schedule, chosen in (
        ("heun", COSINE, timesteps.trailing_timesteps(T, 10)),
        ("heun", SCHEDULE, [999.0, 10.0]),
        ("dpmpp_3m", COSINE, timesteps.karras_timesteps(COSINE, 5)),
        ("unipc", COSINE, [999, 900, 500, 499.9, 200, 20, 0]),
    ):
        with pytest.warns(UserWarning, match=f"{name} multiplies the predicted x_0"):
            METHODS[name](Model(schedule), chosen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for schedule in (SCHEDULE, COSINE):
            model = Model(schedule)
            methods.heun_table(model, [999.0])
            methods.heun_table(model, timesteps.karras_timesteps(schedule, 10))
            for name in ("dpmpp_2m", "dpmpp_3m", "unipc"):
                for count in (5, 10, 20, 50):
                    METHODS[name](model, timesteps.trailing_timesteps(T, count))


# The contract of all methods


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("count", [1, 2, 3, 50, T])
def test_the_last_row_lands_on_x0_without_noise(name, count):
    table = METHODS[name](MODEL, timesteps.trailing_timesteps(T, count))
    assert table.num_rows == (2 * count - 1 if traits(name).is_two_stage else count)
    last = table.take(-1).to_x
    assert last.x0 == pytest.approx(1, rel=1e-12)
    assert (last.x, last.anchor, last.x0_prev, last.x0_prev2, last.noise) == (0,) * 5
    assert is_finite(table)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "score"])
@pytest.mark.parametrize("name", METHODS)
def test_x0_comes_out_of_what_the_network_predicts(name, kind):
    """x_0 at each row's own t, also at Heun's trial points and in a corrector's rows."""
    table = METHODS[name](Model(SCHEDULE, kind), UNEVEN)
    table = methods.with_langevin(table)
    share = alphas_cumprod_at(SCHEDULE, table.t)
    x0, eps = 0.3, -1.1
    x = np.sqrt(share) * x0 + np.sqrt(1 - share) * eps
    v = np.sqrt(share) * eps - np.sqrt(1 - share) * x0
    prediction = {"eps": eps, "x0": x0, "v": v, "score": -eps / np.sqrt(1 - share)}[kind]
    found = table.x0_from_x * x + table.x0_from_prediction * prediction
    np.testing.assert_allclose(found, x0, rtol=1e-11)


OPTIONS = {"eta": 0.5, "churn": 20.0, "steps_per_level": 2}


@pytest.mark.parametrize("schedule", [SCHEDULE, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        *((name, None) for name in METHODS),
        *((name, option) for option in OPTIONS for name in methods.methods_with(option)),
    ],
)
def test_the_level_of_a_row_is_the_noise_level_of_its_timestep(name, option, schedule):
    """Levels of all rows, also of trial, churned and corrector's rows and of padding.

    At real-valued times log alphas_cumprod is a polygon, by definition.
    """
    options = {} if option is None else {option: OPTIONS[option]}
    plain = METHODS[name](Model(schedule), UNEVEN, **options)
    corrected = methods.with_langevin(plain, num_steps=2)
    assert set(UNEVEN) <= set(plain.t) or option == "churn"
    assert corrected.num_rows > plain.num_rows
    for table in (plain, corrected, corrected.padded(60), plain.take(slice(2, 5))):
        log_share = np.interp(table.t, np.arange(T), np.log(schedule.alphas_cumprod))
        level = table.level
        assert all(square.dtype == np.float64 for square in level)
        np.testing.assert_allclose(level.alpha_squared, np.exp(log_share), rtol=1e-11)
        np.testing.assert_allclose(level.sigma_squared, -np.expm1(log_share), rtol=1e-9)
        np.testing.assert_allclose(level.alpha, np.exp(log_share / 2), rtol=1e-11)
        np.testing.assert_allclose(level.sigma**2, level.sigma_squared, rtol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_lists_that_cannot_be_are_refused(name):
    make = METHODS[name]
    for bad in ([], [3, 4], [1000, 1], [1, -1]):
        with pytest.raises(ValueError, match="timesteps"):
            make(MODEL, bad)
    if name in methods.REPEATING:
        assert is_finite(make(MODEL, [5, 5]))
    else:
        with pytest.raises(ValueError, match="strictly"):
            make(MODEL, [5, 5])


@pytest.mark.parametrize("name", METHODS)
def test_only_what_a_method_needs_is_carried(name):
    table = METHODS[name](MODEL, UNEVEN)
    carried = table.num_previous, table.has_anchor
    assert carried == (traits(name).num_previous, traits(name).has_anchor)
    for column in (table.is_live, table.is_remembered, table.is_trial):
        assert column.dtype == bool
    assert not table.is_learned and table.is_live.all() and table.is_remembered.all()
    assert table.is_trial.any() == traits(name).is_two_stage


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", METHODS)
def test_from_pure_noise_the_first_row_takes_x0_as_it_is_told(name):
    """x_T of a zero terminal SNR has no part in x_0, which is the prediction alone."""
    make = METHODS[name]
    for betas in (jsd_betas(100), rescale_zero_terminal_snr(linear_betas(100))):
        schedule = make_schedule(betas)
        chosen = timesteps.trailing_timesteps(100, 10)
        if traits(name).is_two_stage:
            with pytest.raises(ValueError, match="infinite"):
                make(Model(schedule, "v"), chosen)
            continue
        for kind, of_prediction in (("v", -1.0), ("x0", 1.0)):
            table = make(Model(schedule, kind), chosen)
            assert is_finite(table)
            first = table.take(0)
            assert (first.x0_from_x, first.x0_from_prediction) == (0, of_prediction)
            assert first.level == (0, 1)
        for kind in ("eps", "score"):
            with pytest.raises(ValueError, match=f"prediction '{kind}'.*predict v or x0"):
                make(Model(schedule, kind), chosen)
            assert make(Model(schedule, kind), chosen[1:]).num_rows == 9
        for same in ([99, 98.5, 30], [99, 99, 30]):
            with pytest.raises(ValueError, match="the same noise|strictly"):
                make(Model(schedule, "v"), same)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_langevin_takes_one_step_where_there_is_no_signal_and_names_the_remedies():
    model = Model(make_schedule(jsd_betas(100)), "v")
    with pytest.raises(ValueError, match=r"\(langevin_steps\).* at 99, .*take 1 step, or"):
        methods.langevin_table(model, [99, 50, 0], steps_per_level=2)
    assert methods.langevin_table(model, [99, 50, 0], steps_per_level=1).num_rows == 3
    assert methods.langevin_table(model, [98, 50, 0], steps_per_level=2).num_rows == 6
    with pytest.raises(ValueError, match="above timestep 98; take only one timestep above"):
        methods.langevin_table(model, [99, 98.5, 0])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_where_the_first_step_has_no_length_in_lambda_multistep_methods_begin_again():
    chosen = timesteps.trailing_timesteps(100, 10)
    for betas in (jsd_betas(100), rescale_zero_terminal_snr(linear_betas(100))):
        model = Model(make_schedule(betas), "v")
        two, ddim = (
            make(model, chosen).to_x
            for make in (methods.dpmpp_2m_table, methods.ddim_table)
        )
        np.testing.assert_allclose(two.x0[:2], ddim.x0[:2], rtol=1e-12)
        noisy = methods.dpmpp_2m_table(model, chosen, eta=1.0).to_x
        ddpm = methods.ddpm_table(model, chosen).to_x
        np.testing.assert_allclose(noisy.noise, ddpm.noise, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "eta"),
    [
        *((name, None) for name in DETERMINISTIC),
        *((name, eta) for name in ("dpmpp_2m", "dpmpp_3m") for eta in (0.6, 1.0)),
    ],
)
def test_data_that_is_one_point_is_followed_exactly(name, eta):
    """A known x_0 = c: x = alpha c + sigma eps keeps that form, whatever the order, since
    all predictions agree. The SDE keeps e^(-eta h) of the noise that was."""
    options = {} if eta is None else {"eta": eta}
    table = METHODS[name](OF_X0, UNEVEN, **options)
    share, after = levels(SCHEDULE, UNEVEN)
    c, x = 0.37, np.array([0.9, -1.3])
    found = run_table(table, lambda x, t: c, x, np.zeros(table.num_rows))
    found = found[::2] if traits(name).is_two_stage else found[:-1]
    eps = (x - np.sqrt(share[0]) * c) / np.sqrt(1 - share[0])
    lam = half_log_snr(share)
    kept = np.sqrt(1 - share) * np.exp(-(eta or 0.0) * (lam - lam[0]))
    expected = np.sqrt(share)[:, None] * c + kept[:, None] * eps
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    if eta:
        kept = np.append(kept[1:] / kept[:-1], 0.0)  # The part kept in each step.
        total = kept**2 * (1 - share) + table.to_x.noise**2
        np.testing.assert_allclose(total, 1 - after, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_one_weight_of_one_row_changed_by_1_percent_is_noticed(name):
    """Coefficients changed by 1 % move the states by far more than the 1e-11 above."""
    table = METHODS[name](OF_X0, UNEVEN)

    def states(table):
        noises = np.zeros(table.num_rows)
        return run_table(table, lambda x, t: 0.37, np.array([0.9]), noises)

    exact, count = states(table), 0
    for field in ("to_x", "to_anchor"):
        for column, weights in getattr(table, field)._asdict().items():
            for row in np.flatnonzero(weights[:-2] if field == "to_anchor" else weights):
                changed = np.where(np.arange(len(weights)) == row, 1.01, 1.0) * weights
                all_changed = getattr(table, field)._replace(**{column: changed})
                found = states(dataclasses.replace(table, **{field: all_changed}))
                assert np.abs(found - exact).max() > 1e-6, (field, column, row)
                count += 1
    assert count >= 2 * table.num_rows - 1


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("name", methods.methods_with("eta"))
def test_eta_out_of_range_is_refused(name, bad):
    with pytest.raises(ValueError, match="eta"):
        METHODS[name](MODEL, [5, 1], eta=bad)


def test_other_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="'huge'"):
        methods.ddpm_table(MODEL, [5, 1], variance="huge")
    assert set(methods.methods_with("churn")) >= {"euler", "heun"}
    for name in methods.methods_with("churn"):
        for bad in (-1.0, float("nan")):
            with pytest.raises(ValueError, match="churn"):
                METHODS[name](MODEL, [5, 1], churn=bad)
    for bad in (0.0, 1.01, float("nan")):
        with pytest.raises(ValueError, match="step_size"):
            methods.langevin_table(MODEL, [5, 1], step_size=bad)
    with pytest.raises(ValueError, match="at least 1"):
        methods.langevin_table(MODEL, [5, 1], steps_per_level=0)
    with pytest.raises(ValueError, match="at least 1"):
        methods.with_langevin(methods.ddim_table(MODEL, [5, 1]), num_steps=0)


# Multistep methods: what is exact, and their order


def exact_step(schedule, before, after, x, m, eta=0.0):
    """The solution from one time to another where x_0 is the function m of lambda.

    d(x / sigma) = e^lambda m d lambda in the ODE (Lu et al. 2022), by quadrature;
    with noise, the mean of the SDE: rates times 1 + eta.
    """
    share, next_share = alphas_cumprod_at(schedule, np.array([before, after]))
    start, end = half_log_snr(share), half_log_snr(next_share)
    rate = 1 + eta
    integral, _ = quad(
        lambda u: rate * np.exp(rate * (u - end)) * m(u), start, end, epsabs=1e-14
    )
    decay = np.sqrt((1 - next_share) / (1 - share)) * np.exp(-eta * (end - start))
    return decay * x + np.sqrt(next_share) * integral


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_3m_is_exact_where_x0_is_a_parabola_in_lambda(eta):
    """Exact rows of 3M: first for a constant, second for a line, others for a parabola."""
    lam = half_log_snr(levels(SCHEDULE, UNEVEN)[0])
    table = methods.dpmpp_3m_table(OF_X0, UNEVEN, eta=eta)
    for row in range(len(UNEVEN) - 1):
        degree = min(row, 2)
        coefficients = [0.3, -0.7, 0.2][: degree + 1]
        m = np.polynomial.Polynomial(coefficients)
        c, x = table.take(row), 0.8
        history = [m(lam[row - k]) if row >= k else 7.0 for k in range(3)]
        found = c.to_x.x * x + np.dot([c.to_x.x0, c.to_x.x0_prev, c.to_x.x0_prev2], history)
        exact = exact_step(SCHEDULE, UNEVEN[row], UNEVEN[row + 1], x, m, eta)
        assert found == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "eta"), [("unipc", None), *(("dpmpp_2m", eta) for eta in (0.0, 0.6, 1.0))]
)
def test_2m_extrapolates_to_the_middle_of_the_step(name, eta):
    """D is the line through two predictions at lambda + h / 2; the first row's is x_0.

    The predictor of UniPC is the same step, from its corrected x.
    """
    options = {} if eta is None else {"eta": eta}
    table = METHODS[name](OF_X0, UNEVEN, **options)
    share, after = levels(SCHEDULE, UNEVEN)
    lam = half_log_snr(share)
    for row in range(len(UNEVEN) - 1):
        h = lam[row + 1] - lam[row]
        decay = np.sqrt((1 - after[row]) / (1 - share[row])) * np.exp(-(eta or 0.0) * h)
        gain = np.sqrt(after[row]) * (1 - np.exp(-(1 + (eta or 0.0)) * h))
        to_x, to_anchor = table.take(row).to_x, table.take(row).to_anchor
        start = to_anchor if name == "unipc" else np.eye(1, len(to_x))[0]
        rest = np.array(to_x) - decay * np.array(start)
        assert rest[[0, 1, 4]] == pytest.approx(0, abs=1e-12)
        assert rest[2] + rest[3] == pytest.approx(gain, rel=1e-11)
        middle = lam[row] + (h / 2 if row else 0)
        line = rest[2] * lam[row] + rest[3] * lam[max(row - 1, 0)]
        assert line == pytest.approx(gain * middle, rel=1e-9)


def test_the_corrector_of_unipc_is_exact_where_x0_is_a_parabola():
    """A step from the corrected x before, by the two predictions before and this row's."""
    lam = half_log_snr(levels(SCHEDULE, UNEVEN)[0])
    corrected = methods.unipc_table(OF_X0, UNEVEN).to_anchor
    assert [w[0] for w in corrected] == [1, *[0] * (len(corrected) - 1)]
    for row in range(2, len(UNEVEN)):
        m = np.polynomial.Polynomial([0.3, -0.7, 0.2])
        weights = [w[row] for w in corrected]
        values = [7.0, 0.8, m(lam[row]), m(lam[row - 1]), m(lam[row - 2]), 7.0, 7.0]
        exact = exact_step(SCHEDULE, UNEVEN[row - 1], UNEVEN[row], 0.8, m)
        assert np.dot(weights, values) == pytest.approx(exact, rel=1e-9)
    # Row 1 has one prediction from before: rho = 1/2, as in the paper's code.
    weights = [w[1] for w in corrected]
    assert weights[2] == pytest.approx(weights[3], rel=1e-12) and weights[4] == 0
    exact = exact_step(SCHEDULE, UNEVEN[0], UNEVEN[1], 0.8, lambda u: 0.3)
    assert np.dot(weights, [7, 0.8, 0.3, 0.3, 7, 7, 7]) == pytest.approx(exact, rel=1e-9)


WEIGHTS, MEANS, VARIANCES = np.array([0.3, 0.7]), np.array([-0.6, 0.5]), [0.05, 0.02]


def mixture_x0(x, share):
    """E[x_0 | x] of a mixture of two Gaussians, straight from Bayes' rule."""
    a, noise = np.sqrt(share), 1 - share
    each = []
    for w, m, v in zip(WEIGHTS, MEANS, VARIANCES, strict=True):
        total = share * v + noise
        density = w * np.exp(-((x - a * m) ** 2) / total / 2) / np.sqrt(total)
        each.append((density, m + a * v / total * (x - a * m)))
    return sum(d * mean for d, mean in each) / sum(d for d, _ in each)


@functools.cache
def flow(start, end):
    """Some x at `start`, and where the probability flow has them at `end`, to 1e-12."""
    x = norm.ppf((np.arange(64) + 0.5) / 64)  # Noise, without its randomness.

    def slope(u, scaled):
        share = 1 / (1 + np.exp(-2 * u))
        return np.exp(u) * mixture_x0(scaled * np.sqrt(1 - share), share)

    share, last = alphas_cumprod_at(SCHEDULE, np.array([start, end]))
    times, first = half_log_snr(np.array([share, last])), x / np.sqrt(1 - share)
    solved = solve_ivp(slope, times, first, method="DOP853", rtol=1e-12, atol=1e-13)
    return x, solved.y[:, -1] * np.sqrt(1 - last)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_each_method_has_its_order(name):
    """Slopes of the error at 80, 160, 320 steps, even in log SNR from T - 1 to index 20."""
    x, exact = flow(999.0, 20.0)
    first, last = SCHEDULE.log_snr[[-1, 20]]
    errors = []
    for count in (80, 160, 320):
        times = times_at_log_snr(SCHEDULE, np.linspace(first, last, count + 1))
        times[[0, -1]] = 999.0, 20.0
        table = METHODS[name](OF_X0, times)
        rows = table.take(slice(0, 2 * count if traits(name).is_two_stage else count))
        states = run_table(
            rows,
            lambda x, t: mixture_x0(x, alphas_cumprod_at(SCHEDULE, np.array([t]))[0]),
            x,
            np.zeros(rows.num_rows),
        )
        errors.append(np.sqrt(np.mean((states[-1] - exact) ** 2)))
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.abs(slopes - traits(name).order).max() < 0.25, (errors, slopes)


def test_euler_without_churn_is_ddim():
    for chosen in (UNEVEN, [999.0]):
        euler, ddim = methods.euler_table(MODEL, chosen), methods.ddim_table(MODEL, chosen)
        assert_same(euler, ddim, rtol=1e-12)


def test_the_first_step_of_the_sde_is_that_of_ddpm():
    """SDE-DPM-Solver++ of first order is ancestral sampling (Lu et al. 2022)."""
    ddpm = methods.ddpm_table(MODEL, UNEVEN).to_x
    for make in (methods.dpmpp_2m_table, methods.dpmpp_3m_table):
        sde = make(MODEL, UNEVEN, eta=1.0).to_x
        for found, expected in zip(sde, ddpm, strict=True):
            assert found[0] == pytest.approx(expected[0], rel=1e-11)
        np.testing.assert_allclose(sde.noise, ddpm.noise, rtol=1e-11)


# Churn and Langevin


@pytest.mark.parametrize("churn", [1.0, 100.0])
def test_churn_adds_noise_until_sigma_has_grown_as_edm_says(churn):
    """Each row ends where x has the marginal of sbar (1 + gamma): at the next row's t."""
    share, _ = levels(SCHEDULE, UNEVEN)
    sbar = np.sqrt((1 - share) / share)
    grown = sbar * (1 + min(churn / len(UNEVEN), 2**0.5 - 1))
    grown[0] = sbar[0]  # There is nothing above T - 1.
    table = methods.euler_table(MODEL, UNEVEN, churn=churn)
    start = alphas_cumprod_at(SCHEDULE, table.t)
    np.testing.assert_allclose(np.sqrt((1 - start) / start), grown, rtol=1e-9)
    keeps_the_marginals(table, start, np.append(start[1:], 1.0))
    # Heun's second rows end at the same places: the next row of Heun is a first one.
    heun = methods.heun_table(OF_X0, UNEVEN, churn=churn)
    np.testing.assert_array_equal(heun.t[::2], table.t)
    np.testing.assert_array_equal(heun.t[1::2], UNEVEN[1:])
    np.testing.assert_allclose(heun.to_x.noise[1::2], table.to_x.noise[:-1], rtol=1e-12)
    assert not heun.to_x.noise[::2].any()
    x = np.array([0.9])
    states = run_table(heun, lambda x, t: 0.37, x, np.zeros(heun.num_rows))[::2]
    plain = run_table(
        methods.euler_table(OF_X0, UNEVEN, churn=churn),
        lambda x, t: 0.37,
        x,
        np.zeros(7),
    )
    np.testing.assert_allclose(states, plain[:-1], rtol=1e-11)


def test_langevin_rests_at_the_marginal():
    """Gain 1 - a / v and noise 2 a at one level leave v the variance v / (1 - a / 2 v)."""
    mean, std, size = 0.3, 0.2, 0.05
    for t in (700.0, 100.0, 20.5):
        share = alphas_cumprod_at(SCHEDULE, np.array([t]))[0]
        v, a = share * std**2 + 1 - share, size * (1 - share)
        table = methods.langevin_table(MODEL, [t], steps_per_level=4, step_size=size)
        assert table.t.tolist() == [t] * 4
        row = table.take(0).to_x
        # The best network has x_0 = alpha std^2 / v x + (1 - share) mean / v.
        gain = row.x + row.x0 * np.sqrt(share) * std**2 / v
        assert gain == pytest.approx(1 - a / v, rel=1e-9)
        assert gain * np.sqrt(share) * mean + row.x0 * (
            1 - share
        ) * mean / v == pytest.approx(np.sqrt(share) * mean, rel=1e-9)
        resting = row.noise**2 / (1 - gain**2)
        assert resting == pytest.approx(v / (1 - a / 2 / v), rel=1e-9)


def test_annealed_langevin_visits_every_level_in_turn():
    table = methods.langevin_table(MODEL, [900, 50, 3], steps_per_level=2)
    assert table.t.tolist() == [900, 900, 50, 50, 3, 3]
    np.testing.assert_array_equal(table.to_x.x[:-1], 0.95)
    default = methods.langevin_table(MODEL, [900, 50, 3])
    assert default.t.tolist() == [900, 50, 3]


@pytest.mark.parametrize("count", [3, 100])
def test_langevin_that_cannot_follow_is_warned_of_with_what_it_leaves(count):
    """Noise left over data that is almost one point, by the exact recursion."""
    chosen = timesteps.trailing_timesteps(T, count)
    with pytest.warns(UserWarning) as said:
        table = methods.langevin_table(MODEL, chosen)
    rows = table.take(slice(count - 1))
    left = gaussian_moments(rows, 0.0, 1e-9)[1] ** 0.5
    text = f"with {count} rows leaves noise of standard deviation {left:.4g} before"
    assert text in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        methods.langevin_table(MODEL, chosen[:1])
        methods.langevin_table(
            MODEL, timesteps.trailing_timesteps(T, 100), steps_per_level=10
        )
        methods.langevin_table(MODEL, EVERY)


@pytest.mark.parametrize("name", METHODS)
def test_a_corrector_moves_a_biased_sample_toward_the_truth(name):
    """Gaussian data, by the exact recursion, from a start with the wrong mean."""
    mean, std, chosen = 0.3, 0.5, timesteps.log_snr_timesteps(SCHEDULE, 20)
    table = METHODS[name](MODEL, chosen)
    off = []
    for count in (0, 5, 20):
        corrected = methods.with_langevin(table, num_steps=count) if count else table
        found, _ = gaussian_moments(corrected, mean, std, start=2.0)
        off.append(abs(found - mean))
    assert off[0] > 0.002 and off[2] < off[1] < 0.7 * off[0] and off[2] < 0.3 * off[0], off
    assert corrected.num_rows == table.num_rows + 20 * 19


@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun", "langevin"])
def test_a_corrector_mends_the_variance_of_few_steps(name):
    std, chosen = 0.5, timesteps.log_snr_timesteps(SCHEDULE, 20)
    table = METHODS[name](MODEL, chosen)
    corrected = methods.with_langevin(table, num_steps=20)
    without, found = (gaussian_moments(t, 0.3, std)[1] for t in (table, corrected))
    assert abs(found / std**2 - 1) < 0.5 * abs(without / std**2 - 1)


def test_a_table_can_be_corrected_twice():
    """Predictions of a first corrector's rows are not remembered after a second one."""
    table = methods.dpmpp_3m_table(OF_X0, UNEVEN)
    once = methods.with_langevin(table)
    twice = methods.with_langevin(once)
    assert twice.is_remembered.sum() == once.is_remembered.sum() == table.num_rows


@pytest.mark.parametrize("name", ["dpmpp_3m", "unipc", "heun", "ddpm"])
def test_a_corrector_that_does_nothing_changes_nothing(name):
    """Corrector steps of almost no size leave the predictor's history and anchor right."""
    variance = "learned" if name == "ddpm" else "fixed_small"
    table = METHODS[name](Model(SCHEDULE, "x0", variance), UNEVEN)
    assert table.is_learned == (name == "ddpm")
    corrected = methods.with_langevin(table, num_steps=3, step_size=1e-13)
    x = np.array([0.9, -1.3])

    def network(x, t):
        return np.tanh(2 * x + t / 1000)

    plain, found = (
        run_table(t, network, x, np.zeros(t.num_rows))[-1] for t in (table, corrected)
    )
    np.testing.assert_allclose(found, plain, rtol=1e-9)
    assert corrected.noise_log_range.sum() == table.noise_log_range.sum()
    inserted = corrected.t[~corrected.is_remembered]
    np.testing.assert_array_equal(inserted, np.repeat(UNEVEN[1:], 3))


def test_a_corrector_moves_the_anchor_as_it_moves_x():
    """UniPC goes on from its corrected x, which has to move by d where x moves by d."""
    table = methods.unipc_table(OF_X0, UNEVEN)
    corrected = methods.with_langevin(table, step_size=0.04)
    assert corrected.num_rows == 13 and (~corrected.is_remembered[1::2]).all()
    for row in range(1, 13, 2):
        c, after = corrected.take(row), corrected.take(row + 1)
        change = np.array([c.to_x.x - 1, c.to_x.x0, c.to_x.noise])
        of_anchor = np.array([c.to_anchor.x, c.to_anchor.x0, c.to_anchor.noise])
        np.testing.assert_allclose(of_anchor * after.to_anchor.anchor, change, rtol=1e-12)
        assert c.to_anchor.anchor == 1 and c.to_x.anchor == 0
        assert c.t == after.t and c.x0_from_prediction == after.x0_from_prediction
    default = methods.with_langevin(methods.ddim_table(MODEL, UNEVEN))
    np.testing.assert_allclose(default.to_x.x[1::2], 0.95)


# Moments


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (methods.ddpm_table, 0.857),
        (methods.ddim_table, 0.920),
        (functools.partial(methods.ddpm_table, variance="fixed_large"), 1.016),
    ],
)
def test_the_variance_that_an_exact_score_leaves(make, expected):
    """Variances for data of deviation 0.05, S = T = 1,000, worked out beforehand."""
    _, variance = gaussian_moments(make(MODEL, EVERY), 0.0, 0.05)
    assert variance / 0.05**2 == pytest.approx(expected, abs=1e-3)


def test_the_gap_closes_as_t_grows():
    """One process cut into more and more steps: linear betas scaled by 1 / T."""
    gaps = {"fixed_small": [], "fixed_large": [], "ddim": []}
    for total in (250, 1000, 4000):
        model = Model(make_schedule(linear_betas(total, 0.1 / total, 20 / total)))
        every = timesteps.trailing_timesteps(total, total)
        for name, seen in gaps.items():
            table = (
                methods.ddim_table(model, every)
                if name == "ddim"
                else methods.ddpm_table(model, every, variance=name)
            )
            mean, variance = gaussian_moments(table, 0.3, 0.2)
            assert mean == pytest.approx(0.3, abs=2e-3)
            seen.append(abs(variance / 0.2**2 - 1))
    for seen in gaps.values():
        assert seen[2] < 0.4 * seen[1] < 0.4 * 0.5 * seen[0]


def test_full_chains_recover_the_data_distribution():
    """The two fixed variances are the bounds of the right one (DDPM section 3.2)."""
    found = {
        "small": methods.ddpm_table(MODEL, EVERY),
        "large": methods.ddpm_table(MODEL, EVERY, variance="fixed_large"),
        "ddim": methods.ddim_table(MODEL, EVERY),
    }
    variance = {}
    for name, table in found.items():
        mean, variance[name] = gaussian_moments(table, 0.3, 0.2)
        assert mean == pytest.approx(0.3, abs=2e-3)
        assert variance[name] == pytest.approx(0.2**2, rel=0.06)
    assert variance["small"] < 0.2**2 < variance["large"]
    assert variance["ddim"] == pytest.approx(0.2**2, rel=0.02)


# The columns


def test_a_padded_table_ends_with_rows_that_are_not_live():
    table = methods.heun_table(MODEL, UNEVEN)
    assert table.padded(13) is table and not table.is_padded
    padded = table.padded(20)
    assert padded.is_padded and padded.is_live.tolist() == [True] * 13 + [False] * 7
    assert_same(padded.take(slice(13)), table)


def test_a_table_that_is_padded_again_has_the_same_live_rows():
    table = methods.heun_table(MODEL, UNEVEN)
    twice = table.padded(20).padded(30)
    assert_same(twice, table.padded(30))
    assert twice.num_calls == table.num_calls == 13
    assert not twice.idle().num_calls and not table.idle().is_live.any()
    assert not table.unguided().is_guided.any()


def test_aligned_tables_have_one_form():
    """Tables of any methods become the same tree of the same shapes, with their rows."""
    tables = [
        methods.ddim_table(MODEL, [9, 5]),
        methods.heun_table(MODEL, UNEVEN),
        methods.dpmpp_3m_table(MODEL, UNEVEN),
    ]
    found = aligned(tables)
    assert len({(jax.tree.structure(t), t.num_rows) for t in found}) == 1
    assert [t.num_calls for t in found] == [t.num_rows for t in tables]
    for long, table in zip(found, tables, strict=True):
        rows = jax.tree.leaves(long.take(slice(table.num_rows)))
        for a, b in zip(rows, jax.tree.leaves(table), strict=True):
            np.testing.assert_array_equal(a, b)
    assert found[0].num_previous == 2 and found[0].has_anchor and found[1].is_padded


# Intervals, CFG++, resampling


def test_the_interval_of_guidance_holds_its_upper_end_and_not_its_lower_one():
    table = methods.ddim_table(MODEL, UNEVEN)
    sigma = table.level.sigma / table.level.alpha
    assert methods.with_interval(table, 0.0, 1e9).is_guided.all()
    for low, high in ((4, 1), (6, 0), (3, 2)):
        found = methods.with_interval(table, sigma[low], sigma[high]).is_guided
        assert np.flatnonzero(found).tolist() == list(range(high, low))
    rows = np.arange(7)
    between = methods.with_interval(table, sigma[4] * 0.999, sigma[1] * 0.999).is_guided
    np.testing.assert_array_equal(between, (rows >= 2) & (rows <= 4))


def test_both_rows_of_a_step_are_guided_or_none():
    table = methods.heun_table(MODEL, UNEVEN)
    alone = methods.ddim_table(MODEL, UNEVEN)
    for low, high in ((0.3, 5.0), (0.0, 0.5), (5.0, 1e9)):
        found = methods.with_interval(table, low, high).is_guided
        wanted = methods.with_interval(alone, low, high).is_guided
        assert found.any() and not found.all()
        np.testing.assert_array_equal(found, np.repeat(wanted, 2)[:-1])


@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (1.0, 1.0), (-0.1, 1.0)])
def test_an_interval_that_does_not_rise_is_refused(low, high):
    with pytest.raises(ValueError, match="must rise"):
        methods.with_interval(methods.ddim_table(MODEL, UNEVEN), low, high)


@pytest.mark.parametrize("churn", [0.0, 20.0])
def test_the_gain_of_cfg_plus_plus_is_the_signal_where_the_row_leads(churn):
    """With churn, at the level after the noise."""
    table = methods.with_base_noise(methods.euler_table(MODEL, UNEVEN, churn=churn))
    np.testing.assert_array_equal(table.to_x.gain[:-1], table.level.alpha[1:])
    assert table.to_x.gain[-1] == 1
    assert not table.to_anchor.gain.any()


@pytest.mark.parametrize("name", ["heun", "unipc"])
def test_cfg_plus_plus_is_refused_for_methods_with_an_anchor(name):
    with pytest.raises(ValueError, match="whose state is x alone"):
        methods.with_base_noise(METHODS[name](MODEL, UNEVEN))


@pytest.mark.parametrize(("times", "jump_length"), [(1, 3), (3, 1), (2, 3), (4, 99)])
def test_resampled_rows_lead_back_to_the_level_where_they_began(times, jump_length):
    """At each row x has the marginal of its level, whichever way it came there."""
    plain = methods.ddpm_table(MODEL, UNEVEN)
    table = methods.with_resampling(plain, times, jump_length)
    assert table.num_rows == times * plain.num_rows
    if times == 1:
        for found, wanted in zip(*map(jax.tree.leaves, (table, plain)), strict=True):
            np.testing.assert_array_equal(found, wanted)
    c, mean, variance = 0.37, 0.0, None
    for i in range(table.num_rows):
        row = table.take(i)
        if variance is None:
            mean, variance = row.level.alpha * c, row.level.sigma_squared
        np.testing.assert_allclose(mean, row.level.alpha * c, rtol=1e-9)
        np.testing.assert_allclose(variance, row.level.sigma_squared, rtol=1e-9)
        mean = row.to_x.x * mean + row.to_x.x0 * c
        variance = row.to_x.x**2 * variance + row.to_x.noise**2
    assert (mean, variance) == (pytest.approx(c), 0)


def test_what_cannot_be_resampled_is_refused():
    for name in ("heun", "dpmpp_2m"):
        with pytest.raises(ValueError, match="remember no earlier row"):
            methods.with_resampling(METHODS[name](MODEL, UNEVEN), 2)
    for numbers in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            methods.with_resampling(methods.ddpm_table(MODEL, UNEVEN), *numbers)


# Backwards


GAUSSIAN_MEAN, GAUSSIAN_VARIANCE = 0.3, 0.15


def gaussian_answer(x, t):
    """E[x_0 | x_t] of a Gaussian."""
    share = float(alphas_cumprod_at(SCHEDULE, np.array([t]))[0])
    total = share * GAUSSIAN_VARIANCE + 1 - share
    error = x - np.sqrt(share) * GAUSSIAN_MEAN
    return GAUSSIAN_MEAN + np.sqrt(share) * GAUSSIAN_VARIANCE / total * error


@pytest.mark.parametrize("name", methods.DETERMINISTIC)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_encoding_is_the_flow_and_decoding_returns_the_input(name):
    """Latents of Gaussian data in closed form, and back, each at the method's order."""
    x0, first, last = np.array([-0.4, 0.1, 0.9]), 990.0, 10.0
    a, b = alphas_cumprod_at(SCHEDULE, np.array([last, first]))
    totals = np.array([a, b]) * GAUSSIAN_VARIANCE + 1 - np.array([a, b])
    # From the x of the last timestep whose predicted x_0 this is, along the flow.
    of_last = totals[0] / (np.sqrt(a) * GAUSSIAN_VARIANCE) * (x0 - GAUSSIAN_MEAN)
    latents = np.sqrt(b) * GAUSSIAN_MEAN + np.sqrt(totals[1] / totals[0]) * of_last
    ends = np.log([b / (1 - b), a / (1 - a)])
    off, lost = [], []
    for count in (80, 160):
        times = times_at_log_snr(SCHEDULE, np.linspace(*ends, count))
        encode = methods.encoding_table(OF_X0, name, times)
        decode = METHODS[name](OF_X0, times)
        none = np.zeros(2 * encode.num_rows)
        found = run_table(encode, gaussian_answer, x0, none)[-1]
        off.append(np.abs(found - latents).max())
        back = run_table(decode, gaussian_answer, found, none)[-1]
        lost.append(np.abs(back - x0).max())
    order = min(traits(name).order, 2)
    assert np.log2(lost[0] / lost[1]) > order - 0.15, lost
    assert np.log2(off[0] / off[1]) > order - 0.15, off
    assert lost[1] < {1: 0.05, 2: 3e-4}[order], lost


def test_what_cannot_run_backwards_is_refused():
    for name in ("ddpm", "langevin"):
        with pytest.raises(ValueError, match="adds noise"):
            methods.encoding_table(MODEL, name, UNEVEN)
    with pytest.raises(ValueError, match="at least two"):
        methods.encoding_table(MODEL, "ddim", [20.0])
    zero = make_schedule(rescale_zero_terminal_snr(SCHEDULE.betas))
    with pytest.raises(ValueError, match="signal-to-noise ratio"):
        methods.encoding_table(Model(zero, "v"), "ddim", [999.0, 20.0])


def test_the_deterministic_methods_are_those_that_can_run_backwards():
    assert set(DETERMINISTIC) == set(methods.DETERMINISTIC)
