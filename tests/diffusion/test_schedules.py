"""Schedules against published values and 50-digit arithmetic from their definitions."""

import math
import warnings
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from diffusion_jax.diffusion import schedules
from diffusion_jax.diffusion.schedules import cosine_betas, linear_betas, make_schedule

mpmath.mp.dps = 50
mpf = mpmath.mpf


@pytest.fixture(scope="module")
def linear():
    return make_schedule(linear_betas(1000))


# Betas by their definition, in mpmath


LOW, HIGH = mpf("0.0001"), mpf("0.02")


def evenly(low, high, total):
    return [low + (high - low) * mpf(i) / (total - 1) for i in range(total)]


def exact_sigmoid(total):
    curve = [(1 + mpmath.tanh(x / 2)) / 2 for x in evenly(mpf(-6), mpf(6), total)]
    return [LOW + (HIGH - LOW) * c for c in curve]


def exact_cosine(total):
    half_turn = [
        mpmath.pi * (mpf(i) / total + mpf("0.008")) / mpf("2.016") for i in range(total + 1)
    ]
    f = [(1 + mpmath.cos(2 * angle)) / 2 for angle in half_turn]
    return [min(1 - b / a, mpf("0.999")) for a, b in zip(f, f[1:], strict=False)]


# One row for each of SCHEDULES.
EXACT_BETAS = {
    "linear": lambda total: evenly(LOW, HIGH, total),
    "cosine": exact_cosine,
    "quadratic": lambda total: [
        root**2 for root in evenly(mpmath.sqrt(LOW), mpmath.sqrt(HIGH), total)
    ],
    "constant": lambda total: [HIGH] * total,
    "sigmoid": exact_sigmoid,
    "jsd": lambda total: [1 / mpf(total - i) for i in range(total)],
}


def exact_betas(name, total):
    return EXACT_BETAS[name](total)


def exact_tables(betas):
    """Every table of the schedule, from its definition in Schedule's docstring."""
    tables = {name: [] for name in schedules.Schedule._fields}
    share = mpf(1)
    for beta in betas:
        before, share = share, share * (1 - beta)
        # Bayes: x_{t-1} ~ N(sqrt(before) x_0, 1 - before), x_t = sqrt(alpha) x_{t-1} + ...
        if before == 1:
            variance, of_x0, of_x_t = mpf(0), mpf(1), mpf(0)
        else:
            precision = 1 / (1 - before) + (1 - beta) / beta
            variance = 1 / precision
            of_x0 = variance * mpmath.sqrt(before) / (1 - before)
            of_x_t = variance * mpmath.sqrt(1 - beta) / beta
        for name, value in (
            ("betas", beta),
            ("alphas", 1 - beta),
            ("alphas_cumprod", share),
            ("alphas_cumprod_prev", before),
            ("sqrt_alphas_cumprod", mpmath.sqrt(share)),
            ("sqrt_one_minus_alphas_cumprod", mpmath.sqrt(1 - share)),
            ("posterior_mean_coef1", of_x0),
            ("posterior_mean_coef2", of_x_t),
            ("posterior_variance", variance),
            ("posterior_log_variance_clipped", mpmath.log(variance) if variance else None),
        ):
            tables[name].append(value)
    logs = tables["posterior_log_variance_clipped"]
    logs[0] = logs[1]
    return tables


@pytest.mark.parametrize("total", [10, 1000])
@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_float32_tables_are_within_one_ulp_of_50_digits(name, total):
    schedule = make_schedule(schedules.named_betas(name, total))
    for field, exact in exact_tables(exact_betas(name, total)).items():
        table = getattr(schedule, field)
        assert table.dtype == np.float64 and len(table) == schedule.num_timesteps == total
        rounded = np.array([float(x) for x in exact])
        error = np.abs(table.astype(np.float32).astype(np.float64) - rounded)
        ulp = np.spacing(np.abs(rounded).astype(np.float32)).astype(np.float64)
        assert (error <= ulp).all(), (field, np.argmax(error / ulp))


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_schedule_of_any_length_and_ends_loses_signal_at_every_step(name):
    """Properties that all schedules have, and values that all refuse."""
    for total in (2, 3, 50):
        betas = schedules.named_betas(name, total, 0.01, 0.3)
        assert betas.shape == (total,) and betas.dtype == np.float64
        schedule = make_schedule(betas)
        np.testing.assert_array_equal(schedule.betas, betas)
        share = np.append(1.0, schedule.alphas_cumprod)
        assert (np.diff(share) < 0).all() and share[-1] >= 0
        for table in schedule:
            assert np.isfinite(table).all()
    for total in (1, 0, -3):
        with pytest.raises(ValueError, match=rf"num_timesteps \({total}\)"):
            schedules.named_betas(name, total)


def test_linear_schedule_has_the_known_values(linear):
    # Computed from the definition, elsewhere.
    np.testing.assert_allclose(linear.alphas_cumprod[[0, 499]], [0.9999, 0.0785872429])
    np.testing.assert_allclose(linear.alphas_cumprod[999], 4.0358298e-5, rtol=1e-7)
    np.testing.assert_allclose(linear.sqrt_alphas_cumprod[999], 0.0063528, rtol=1e-5)
    np.testing.assert_allclose(linear.posterior_variance[1], 5.45318766e-5, rtol=1e-8)
    np.testing.assert_allclose(linear.posterior_variance[999], 0.01999998, rtol=1e-6)
    np.testing.assert_allclose(linear.log_snr[[0, 999]], [9.21024, -10.11767], atol=1e-5)
    np.testing.assert_allclose(linear.snr, np.exp(linear.log_snr), rtol=1e-12)


def test_posterior_log_variance_is_finite_at_the_first_step(linear):
    log_variance = linear.posterior_log_variance_clipped
    np.testing.assert_allclose(log_variance[[0, 1]], [-9.816725] * 2, atol=1e-6)
    np.testing.assert_allclose(log_variance[2:], np.log(linear.posterior_variance[2:]))
    assert linear.posterior_variance[0] == 0


def test_cosine_schedule_has_the_known_values():
    betas = cosine_betas(1000)
    np.testing.assert_allclose(betas[[0, -2]], [4.13e-5, 0.749999], rtol=2e-3)
    assert betas[-1] == 0.999 and (betas[:-1] < 0.999).all()
    np.testing.assert_allclose(
        make_schedule(betas).alphas_cumprod[-1], 2.42877e-9, rtol=1e-5
    )
    last = make_schedule(betas).alphas_cumprod[-1]
    np.testing.assert_allclose(1 / math.sqrt(last), 20291, rtol=1e-5)
    last = make_schedule(cosine_betas(4000)).alphas_cumprod[-1]
    np.testing.assert_allclose(last, 1.518e-10, rtol=1e-3)
    np.testing.assert_allclose(1 / math.sqrt(last), 81165, rtol=1e-5)


def test_tables_are_exact_in_rational_arithmetic():
    betas = [Fraction(1, 10), Fraction(1, 5), Fraction(1, 2), Fraction(3, 4)]
    with pytest.warns(UserWarning, match="not noise"):
        schedule = make_schedule(np.array(betas, float))
    share = Fraction(1)
    for t, beta in enumerate(betas):
        _before, share = share, share * (1 - beta)
        assert schedule.alphas_cumprod[t] == pytest.approx(float(share), rel=1e-15)
        assert schedule.snr[t] == pytest.approx(float(share / (1 - share)), rel=1e-14)


@pytest.mark.parametrize(
    ("name", "total", "lost"),
    [("linear", 1000, 1.7e-4), ("cosine", 1000, 5.3e-4), ("cosine", 4000, 2.9e-3)],
)
def test_the_first_noise_level_keeps_its_digits(name, total, lost):
    """1 - alphas_cumprod[0] from a float32 table is off by `lost`; ours is not."""
    schedule = make_schedule(schedules.named_betas(name, total))
    exact = float(exact_betas(name, total)[0])
    naive = float(1 - np.float32(schedule.alphas_cumprod[0]))
    assert abs(naive / exact - 1) == pytest.approx(lost, rel=0.03)
    kept = float(np.float32(schedule.sqrt_one_minus_alphas_cumprod[0]))
    assert kept == pytest.approx(math.sqrt(exact), rel=6e-8)


def test_the_prior_of_the_linear_schedule_matches_the_paper(linear):
    """L_T in bits per dimension, for data of mean square 1/4 and 1 (the paper: 1e-5)."""
    share = linear.alphas_cumprod[-1]
    for mean_square, expected in ((0.25, 7.28e-6), (1.0, 2.911e-5)):
        nats = 0.5 * (share * mean_square - share - math.log1p(-share))
        assert nats / math.log(2) == pytest.approx(expected, rel=1e-3)


# Zero terminal SNR, shifts


def test_jsd_takes_the_same_share_at_every_step_down_to_zero():
    schedule = make_schedule(schedules.jsd_betas(8))
    np.testing.assert_allclose(schedule.alphas_cumprod, 1 - np.arange(1, 9) / 8, atol=1e-15)
    assert schedule.has_zero_terminal_snr and schedule.log_snr[-1] == -np.inf
    assert schedule.snr[-1] == 0


@pytest.mark.parametrize("betas", [linear_betas(1000), cosine_betas(50)])
def test_rescaling_ends_in_noise_and_begins_as_before(betas):
    """Rescaling maps sqrt(alphas_cumprod) by a line that keeps its first and ends at 0."""
    before = make_schedule(betas)
    after = make_schedule(schedules.rescale_zero_terminal_snr(betas))
    assert after.betas[-1] == 1 and after.alphas_cumprod[-1] == 0
    assert not before.has_zero_terminal_snr and after.has_zero_terminal_snr
    assert after.sqrt_alphas_cumprod[0] == pytest.approx(
        before.sqrt_alphas_cumprod[0], rel=1e-12
    )
    slope = np.diff(after.sqrt_alphas_cumprod) / np.diff(before.sqrt_alphas_cumprod)
    np.testing.assert_allclose(slope, slope[0], rtol=1e-6)
    for table in after:
        assert np.isfinite(table).all()


def test_rescaling_what_ends_in_noise_changes_nothing():
    betas = schedules.jsd_betas(100)
    np.testing.assert_allclose(
        schedules.rescale_zero_terminal_snr(betas), betas, rtol=1e-10
    )


@pytest.mark.parametrize("size", [32, 64, 256])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_shift_moves_log_snr_by_the_same_everywhere(size):
    """A shift of log SNR by 2 ln(64 / size), for averages of (size / 64)^2 pixels."""
    shift = 2 * math.log(64 / size)
    betas = linear_betas(1000)
    moved = make_schedule(schedules.shift_log_snr(betas, shift))
    snr = make_schedule(betas).snr * (64 / size) ** 2
    np.testing.assert_allclose(moved.snr, snr, rtol=1e-9)
    far = schedules.shift_log_snr(betas, 10.0)
    np.testing.assert_allclose(
        make_schedule(far).log_snr, np.log(snr) - shift + 10, atol=1e-6
    )
    back = schedules.shift_log_snr(moved.betas, -shift)
    np.testing.assert_allclose(back, betas, rtol=1e-8)


# What is refused, and what is warned of


@pytest.mark.parametrize(
    ("betas", "said"),
    [
        ([0.1], "num_timesteps (1) must be at least 2"),
        ([0.1, 0.0], "betas[1] (0.0)"),
        ([1.0, 0.1], "betas[0] (1.0)"),
        ([0.1, 1.1], "betas[1] (1.1)"),
        ([-0.1, 0.1], "betas[0] (-0.1)"),
        ([0.1, float("nan")], "betas[1] (nan)"),
        ([[0.1, 0.2]], "one axis"),
        ([1e-20, 0.1], "no noise at the first step"),
        ([0.999999] * 60, "no signal at the last one"),
    ],
)
def test_bad_betas_are_refused(betas, said):
    with pytest.raises(ValueError) as error:
        make_schedule(np.array(betas))
    assert said in str(error.value)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="add no noise to rescale"):
        schedules.rescale_zero_terminal_snr(np.array([1e-20, 1e-19]))
    with pytest.raises(ValueError, match=r"beta_end \(1.5\)"):
        linear_betas(10, beta_end=1.5)
    with pytest.raises(ValueError, match=r"beta_start \(0\)"):
        schedules.quadratic_betas(10, beta_start=0)
    with pytest.raises(ValueError, match=r"beta_start \(nan\)"):
        schedules.sigmoid_betas(10, beta_start=float("nan"))
    with pytest.raises(ValueError, match=r"\(2\)"):
        schedules.constant_betas(10, 2)
    for make in (cosine_betas, schedules.jsd_betas, linear_betas):
        with pytest.raises(ValueError, match=r"num_timesteps \(1\)"):
            make(1)
    with pytest.raises(ValueError, match="linear, cosine"):
        schedules.named_betas("quartic", 10)


@pytest.mark.parametrize(
    ("betas", "said"),
    [
        (np.array([0.1, 0.5, 0.3, 0.9999]), r"betas\[1\] is 0.5 and betas\[2\] is 0.3"),
        (np.full(1000, 0.02), r"betas do not rise everywhere: betas\[0\] is 0.02"),
        (linear_betas(100), r"x_T is not noise: alphas_cumprod\[-1\] is 0.3\d+"),
        (linear_betas(100), r"keeps 60.\d % of the signal's amplitude"),
    ],
)
def test_odd_betas_are_warned_of_with_the_number(betas, said):
    with pytest.warns(UserWarning, match=said):
        make_schedule(betas)


@pytest.mark.parametrize("name", ["linear", "cosine", "quadratic", "sigmoid", "jsd"])
def test_the_schedules_of_the_papers_are_not_warned_of(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_schedule(schedules.named_betas(name, 1000))


def test_the_warning_starts_at_three_percent_of_the_amplitude():
    """A warning for alphas_cumprod[-1] above 0.001, and none below."""
    for last, warned in ((0.000996, False), (0.001004, True)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            make_schedule(np.array([0.5, 1 - last / 0.5]))
        assert bool(said) == warned


def test_the_ends_are_those_of_ddpm_unless_given():
    for name in ("linear", "quadratic", "sigmoid", "constant"):
        found = getattr(schedules, f"{name}_betas")(1000)
        expected = [float(beta) for beta in exact_betas(name, 1000)]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_ends_of_linear_quadratic_and_sigmoid_can_be_chosen():
    for make in (linear_betas, schedules.quadratic_betas):
        np.testing.assert_allclose(make(10, 0.01, 0.3)[[0, -1]], [0.01, 0.3])
    ends = schedules.sigmoid_betas(10, 0.01, 0.3)[[0, -1]]
    logistic = 1 / (1 + math.exp(6))
    np.testing.assert_allclose(ends, [0.01 + 0.29 * logistic, 0.3 - 0.29 * logistic])
    np.testing.assert_array_equal(schedules.named_betas("constant", 3, 0.1, 0.3), 0.3)


# Between the timesteps


def test_between_timesteps_the_share_of_x0_is_a_weighted_geometric_mean():
    for betas in (linear_betas(100), cosine_betas(1000), np.array([0.1, 0.4])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            schedule = make_schedule(betas)
        share, last = schedule.alphas_cumprod, len(betas) - 1
        whole = np.arange(len(betas))
        np.testing.assert_array_equal(schedules.alphas_cumprod_at(schedule, whole), share)
        for part in (0.005, 0.25, 0.5, 0.995):
            found = schedules.alphas_cumprod_at(schedule, whole[:last] + part)
            expected = share[:-1] ** (1 - part) * share[1:] ** part
            np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_on_the_way_to_no_signal_there_is_none():
    schedule = make_schedule(schedules.jsd_betas(10))
    found = schedules.alphas_cumprod_at(schedule, np.array([7.5, 8.0, 8.01, 9.0]))
    np.testing.assert_allclose(found, [np.sqrt(0.02), 0.1, 0.0, 0.0], rtol=1e-12)


def test_times_are_found_by_their_log_snr():
    """Times found again from their log SNR; beyond the schedule, its ends."""
    for schedule in (make_schedule(linear_betas(1000)), make_schedule(cosine_betas(1000))):
        times = np.array([0.0, 0.3, 20.0, 500.25, 998.9, 999.0])
        share = schedules.alphas_cumprod_at(schedule, times)
        found = schedules.times_at_log_snr(schedule, np.log(share / (1 - share)))
        np.testing.assert_allclose(found, times, rtol=1e-7, atol=1e-7)
        beyond = np.array([-1e3, 1e3, -np.inf])
        found = schedules.times_at_log_snr(schedule, beyond)
        np.testing.assert_array_equal(found, [999.0, 0.0, 999.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jsd = make_schedule(schedules.jsd_betas(10))
    found = schedules.times_at_log_snr(jsd, np.array([-np.inf, -100.0, np.log(0.25)]))
    np.testing.assert_allclose(found, [8.0, 8.0, 7.0], rtol=1e-9)


def test_a_respaced_process_has_the_marginals_of_the_whole_one():
    """Marginals at the timesteps that are kept; a respaced process gives no warning."""
    schedule = make_schedule(linear_betas(1000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = schedules.respaced(schedule, np.array([999.0, 500.0, 499.0, 3.0]))
    kept = schedule.alphas_cumprod[[3, 499, 500, 999]]
    np.testing.assert_allclose(found.alphas_cumprod, kept, rtol=1e-12)
