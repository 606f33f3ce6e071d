"""Timesteps of a chain: counts, ends, evenness, and the published lists."""

from typing import NamedTuple

import numpy as np
import pytest

from diffusion_jax.diffusion.schedules import (
    cosine_betas,
    jsd_betas,
    linear_betas,
    make_schedule,
    rescale_zero_terminal_snr,
)
from diffusion_jax.samplers import timesteps

T = 1000
SCHEDULE = make_schedule(linear_betas(T))


class Traits(NamedTuple):
    """Traits that the contract leaves open to a spacing."""

    begins_at_the_end: bool = True  # At T - 1.
    ends_at_zero: bool = True
    repeats: bool = False  # It may hold a timestep twice.
    is_whole: bool = False  # Whole numbers, all of them if S is T.


# A new spacing needs a row here only where it differs from the defaults.
TRAITS = {
    "trailing": Traits(ends_at_zero=False, is_whole=True),
    "linspace": Traits(is_whole=True),
    "uniform": Traits(begins_at_the_end=False, is_whole=True),
    "karras": Traits(begins_at_the_end=False),
    "ddim_quadratic": Traits(begins_at_the_end=False, repeats=True),
}


def schedule_of(total):
    return make_schedule(linear_betas(total, 1e-4, min(0.5, 20 / total)))


@pytest.mark.parametrize("total", [2, 7, 10, 100, 1000])
@pytest.mark.parametrize("spacing", timesteps.SPACINGS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_count_gives_exactly_that_many_falling_steps(spacing, total):
    schedule, traits = schedule_of(total), TRAITS.get(spacing, Traits())
    for count in range(1, total + 1):
        chosen = timesteps.spaced_timesteps(spacing, schedule, count)
        assert chosen.dtype == np.float64 and chosen.shape == (count,)
        assert chosen[-1] >= 0 and chosen[0] <= total - 1
        # Timesteps are still different in float32, as a network gets them.
        for gaps in (np.diff(chosen), np.diff(chosen.astype(np.float32))):
            assert (gaps <= 0 if traits.repeats else gaps < 0).all()
        if traits.begins_at_the_end:
            assert chosen[0] == total - 1
        if traits.ends_at_zero and count > 1:
            assert chosen[-1] == 0
        if traits.is_whole:
            assert (chosen == np.rint(chosen)).all()
        np.testing.assert_array_equal(
            timesteps.check_timesteps(chosen, total, repeats=traits.repeats), chosen
        )
    if traits.is_whole:
        assert (chosen == np.arange(total)[::-1]).all()


def test_known_step_lists():
    assert timesteps.trailing_timesteps(1000, 10).tolist() == list(range(999, 0, -100))
    assert timesteps.trailing_timesteps(10, 4).tolist() == [9, 6, 4, 1]
    assert timesteps.linspace_timesteps(1000, 4).tolist() == [999, 666, 333, 0]
    assert timesteps.linspace_timesteps(4, 3).tolist() == [3, 2, 0]


@pytest.mark.parametrize("count", [1, 2, 4, 5, 10, 50, 100, 250, 500, 1000])
def test_uniform_is_the_list_of_the_ddim_code_where_that_has_the_right_length(count):
    published = list(range(0, T, T // count))
    assert timesteps.uniform_timesteps(T, count).tolist() == published[::-1]


@pytest.mark.parametrize(("count", "different"), [(50, 49), (100, 96), (10, 10)])
def test_the_quadratic_list_is_the_published_one(count, different):
    """Timesteps by the expression of DDIM's code; `different` is counted in its list."""
    published = [int(s) for s in np.linspace(0, np.sqrt(T * 0.8), count) ** 2]
    chosen = timesteps.ddim_quadratic_timesteps(T, count)
    assert chosen.tolist() == published[::-1]
    assert timesteps.spaced_timesteps("ddim_quadratic", SCHEDULE, count).tolist() == [
        *chosen
    ]
    assert len(set(published)) == different and chosen[0] == 800


def test_steps_lie_evenly():
    """Trailing gaps differ by one at most; linspace is within half a step, halves go up."""
    for total, count in ((1000, 7), (1000, 61), (1000, 702), (10, 4)):
        for make in (timesteps.trailing_timesteps, timesteps.uniform_timesteps):
            gaps = -np.diff(make(total, count))
            assert gaps.max() - gaps.min() <= 1
        exact = np.linspace(total - 1, 0, count)
        assert (
            np.abs(timesteps.linspace_timesteps(total, count) - exact).max() <= 0.5 + 1e-9
        )


def log_snr_between(schedule, times):
    """Log SNR at real times, by the definition: log alphas_cumprod is a polygon."""
    share = np.exp(
        np.interp(times, np.arange(schedule.num_timesteps), np.log(schedule.alphas_cumprod))
    )
    return np.log(share / (1 - share))


@pytest.mark.parametrize("schedule", [SCHEDULE, make_schedule(cosine_betas(T))])
@pytest.mark.parametrize("count", [2, 9, 1000])
def test_log_snr_and_karras_are_even_in_what_they_say(schedule, count):
    even = log_snr_between(schedule, timesteps.log_snr_timesteps(schedule, count))
    np.testing.assert_allclose(np.diff(even), (even[-1] - even[0]) / (count - 1), rtol=1e-6)
    for rho, most in ((7.0, 80.0), (3.0, 30.0), (7.0, 1e9)):
        times = timesteps.karras_timesteps(schedule, count, rho, most)
        sigma = np.exp(-log_snr_between(schedule, times) / 2)
        gaps = np.diff(sigma ** (1 / rho))
        np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-6)
        least = np.exp(-schedule.log_snr[-1] / 2)
        assert sigma[0] == pytest.approx(min(most, least), rel=1e-6)
        assert (times[0] == T - 1) == (most == 1e9) and times[-1] == 0
    np.testing.assert_array_equal(
        timesteps.karras_timesteps(schedule, count),
        timesteps.karras_timesteps(schedule, count, 7.0, 80.0),
    )


@pytest.mark.parametrize("bad", [0, -1, 1001])
@pytest.mark.parametrize("spacing", timesteps.SPACINGS)
def test_more_steps_than_the_process_has_are_refused(spacing, bad):
    with pytest.raises(ValueError, match=rf"steps \({bad}\)"):
        timesteps.spaced_timesteps(spacing, SCHEDULE, bad)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_noise_levels_without_an_end_are_divided_up_to_a_largest_or_refused():
    for betas in (jsd_betas(200), rescale_zero_terminal_snr(linear_betas(200))):
        schedule = make_schedule(betas)
        with pytest.raises(ValueError, match="zero terminal"):
            timesteps.spaced_timesteps("log_snr", schedule, 5)
        times = timesteps.spaced_timesteps("karras", schedule, 5)
        assert 190 < times[0] <= 198 and (np.diff(times) < 0).all()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_karras_refuses_what_leaves_no_noise_levels():
    with pytest.raises(ValueError, match="no noise levels"):
        timesteps.karras_timesteps(make_schedule(jsd_betas(2)), 2)
    for rho, most in ((0.0, 80.0), (float("nan"), 80.0), (7.0, 0.0), (7.0, float("nan"))):
        with pytest.raises(ValueError, match="must be above 0"):
            timesteps.karras_timesteps(SCHEDULE, 5, rho, most)
    with pytest.raises(ValueError, match="no noise levels"):
        timesteps.karras_timesteps(SCHEDULE, 5, 7.0, 1e-3)
    with pytest.raises(ValueError, match=r"steps \(2.5\)"):
        timesteps.trailing_timesteps(T, 2.5)


def test_an_unknown_spacing_is_refused():
    with pytest.raises(ValueError, match="'even' is unknown"):
        timesteps.spaced_timesteps("even", SCHEDULE, 5)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([], "a list of numbers"),
        ([[3, 2]], "a list of numbers"),
        (["9"], "a list of numbers"),
        ([5, 5], "5 is followed by 5"),
        ([9, 3, 4], "3 is followed by 4"),
        ([3, 3.001], "3 is followed by 3.001"),
        ([1000, 1], "0 .. 999"),
        ([999.5], "0 .. 999"),
        ([1, -0.5], "0 .. 999"),
        ([float("nan")], "0 .. 999"),
    ],
)
def test_a_list_of_steps_that_is_not_falling_in_range_is_refused(bad, said):
    with pytest.raises(ValueError, match=said):
        timesteps.check_timesteps(bad, T)


def test_lists_of_real_numbers_and_repeats_where_they_are_meant():
    assert timesteps.check_timesteps([999, 20.5, 0], T).tolist() == [999, 20.5, 0]
    assert timesteps.check_timesteps([5, 5], T, repeats=True).tolist() == [5, 5]
    assert timesteps.check_timesteps(np.array([5, 3], np.uint16), T).tolist() == [5, 3]
    with pytest.raises(ValueError, match="must fall, from"):
        timesteps.check_timesteps([5, 6], T, repeats=True)
