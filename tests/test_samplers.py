"""Samplers against closed forms: Gaussian data, where the best denoiser is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import oracle, predictions
from diffusion_jax.samplers import chain, steps, tables
from diffusion_jax.schedules import (
    cosine_betas,
    jsd_betas,
    linear_betas,
    make_schedule,
)

T = 1000
SCHEDULE = make_schedule(linear_betas(T))
MEAN, STD = 0.3, 0.2


def gaussian_eps(params, x_t, t, cond, *, train, key):
    """E[eps | x_t] for x_0 ~ N(MEAN, STD^2)."""
    share = jnp.asarray(SCHEDULE.alphas_cumprod, jnp.float32)[t][:, None]
    rest = jnp.asarray(1 - SCHEDULE.alphas_cumprod, jnp.float32)[t][:, None]
    return jnp.sqrt(rest) * (x_t - jnp.sqrt(share) * MEAN) / (share * STD**2 + rest)


def run(table, n=64, *, apply_fn=gaussian_eps, start=0, clip=False, **options):
    options = {"shape": (1,), "clip_x0": clip, **options}
    return jax.jit(
        lambda key, i: chain.sample_chain(apply_fn, None, table, key, i, **options)
    )(jax.random.key(0), jnp.arange(start, start + n))


def moments_by_recursion(table):
    """Mean and std of the chain's end in float64: every row is affine in x and noise."""
    mean, var = 0.0, 1.0
    for i, t in enumerate(table.t):
        share = SCHEDULE.alphas_cumprod[t]
        slope = np.sqrt(1 - share) / (share * STD**2 + 1 - share)
        # eps = slope (x - sqrt(share) MEAN); x_0 = (x - sqrt(1 - share) eps)/sqrt(share)
        x0_x = (1 - np.sqrt(1 - share) * slope) / np.sqrt(share)
        x0_1 = np.sqrt(1 - share) * slope * MEAN
        gain = table.w_x[i] + table.w_x0[i] * x0_x
        mean = gain * mean + table.w_x0[i] * x0_1
        var = gain**2 * var + table.w_noise[i] ** 2
    return mean, np.sqrt(var)


# Trailing and linspace steps


@pytest.mark.parametrize("total", [2, 7, 10, 100, 1000])
@pytest.mark.parametrize("spacing", steps.SPACINGS)
def test_every_count_gives_exactly_that_many_falling_steps(spacing, total):
    for count in range(1, total + 1):
        chosen = steps.spaced_timesteps(spacing, total, count)
        assert len(chosen) == count and chosen[0] == total - 1 and chosen[-1] >= 0
        assert (np.diff(chosen) < 0).all()
    assert (chosen == np.arange(total)[::-1]).all()


def test_known_step_lists():
    assert steps.trailing_timesteps(1000, 10).tolist() == list(range(999, 0, -100))
    assert steps.linspace_timesteps(1000, 4).tolist() == [999, 666, 333, 0]


@pytest.mark.parametrize("bad", [0, -1, 1001])
def test_more_steps_than_the_process_has_are_refused(bad):
    with pytest.raises(ValueError, match=rf"steps \({bad}\)"):
        steps.spaced_timesteps("trailing", T, bad)


@pytest.mark.parametrize("bad", [[], [5, 5], [3, 4], [1000, 1], [1, -1], [2.5, 1.0]])
def test_a_list_of_steps_that_is_not_falling_in_range_is_refused(bad):
    with pytest.raises(ValueError, match="timesteps"):
        tables.ddim_table(SCHEDULE, bad)


# Tables


def test_ddpm_over_all_steps_has_the_posterior_of_the_process():
    """Rows against `q_posterior`, which test_process.py checks against Bayes' rule."""
    table = tables.ddpm_table(SCHEDULE, np.arange(T)[::-1])
    np.testing.assert_allclose(table.w_x0[::-1], SCHEDULE.posterior_mean_coef1, rtol=1e-9)
    np.testing.assert_allclose(
        table.w_x[::-1], SCHEDULE.posterior_mean_coef2, rtol=1e-9, atol=1e-15
    )
    np.testing.assert_allclose(
        table.w_noise[::-1] ** 2, SCHEDULE.posterior_variance, atol=1e-15
    )


def test_ddim_with_eta_1_over_all_steps_is_ddpm_fixed_small():
    every = np.arange(T)[::-1]
    ddpm, ddim = (
        tables.ddpm_table(SCHEDULE, every),
        tables.ddim_table(SCHEDULE, every, eta=1.0),
    )
    for a, b in zip(ddpm, ddim, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("count", [3, 10, 61, 250])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_respaced_ddpm_is_the_ddpm_of_the_respaced_process(count):
    """Betas rebuilt from the chosen alphas_cumprod make a schedule of their own."""
    chosen = steps.trailing_timesteps(T, count)
    share = SCHEDULE.alphas_cumprod[chosen[::-1]]
    respaced = make_schedule(1 - share / np.append(1.0, share[:-1]))
    table = tables.ddpm_table(SCHEDULE, chosen)
    np.testing.assert_allclose(table.w_x0[::-1], respaced.posterior_mean_coef1, rtol=1e-9)
    np.testing.assert_allclose(
        table.w_noise[::-1] ** 2, respaced.posterior_variance, atol=1e-14
    )
    large = tables.ddpm_table(SCHEDULE, chosen, variance_type="fixed_large")
    np.testing.assert_allclose(large.w_noise[-2::-1] ** 2, respaced.betas[1:], rtol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("schedule", [SCHEDULE, make_schedule(cosine_betas(T))])
def test_ddim_rows_keep_the_marginals_of_the_process(schedule, eta):
    """From x_t = sqrt(a) x_0 + sqrt(1-a) eps every row leads to the same form at prev."""
    table = tables.ddim_table(schedule, steps.trailing_timesteps(T, 20), eta=eta)
    share = schedule.alphas_cumprod[table.t]
    prev = np.append(share[1:], 1.0)
    np.testing.assert_allclose(table.w_x * np.sqrt(share) + table.w_x0, np.sqrt(prev))
    noise = table.w_x**2 * (1 - share) + table.w_noise**2
    np.testing.assert_allclose(noise, 1 - prev, atol=1e-14)


@pytest.mark.parametrize("count", [1, 2, 50, T])
def test_the_last_row_lands_on_x0_without_noise(count):
    chosen = steps.trailing_timesteps(T, count)
    for table in (
        tables.ddpm_table(SCHEDULE, chosen),
        tables.ddpm_table(SCHEDULE, chosen, variance_type="fixed_large"),
        tables.ddim_table(SCHEDULE, chosen, eta=1.0),
    ):
        assert table.w_noise[-1] == 0 and table.w_x[-1] == 0
        assert table.w_x0[-1] == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_eta_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match="eta"):
        tables.ddim_table(SCHEDULE, [5, 1], eta=bad)


def test_unknown_variance_is_refused():
    with pytest.raises(ValueError, match="'huge'"):
        tables.ddpm_table(SCHEDULE, [5, 1], variance_type="huge")


# Chains


@pytest.mark.statistical
@pytest.mark.parametrize(
    "table",
    [
        tables.ddpm_table(SCHEDULE, steps.trailing_timesteps(T, T)),
        tables.ddpm_table(
            SCHEDULE, steps.trailing_timesteps(T, 100), variance_type="fixed_large"
        ),
        tables.ddim_table(SCHEDULE, steps.linspace_timesteps(T, 50)),
        tables.ddim_table(SCHEDULE, steps.trailing_timesteps(T, 20), eta=0.5),
    ],
    ids=["ddpm", "ddpm-large-100", "ddim-50", "ddim-20-eta"],
)
def test_chain_on_gaussian_data_has_the_moments_of_the_exact_recursion(table):
    n = 20_000
    samples = np.asarray(run(table, n)[0])
    mean, std = moments_by_recursion(table)
    assert abs(samples.mean() - mean) < 5 * std / np.sqrt(n)
    assert abs(samples.std() / std - 1) < 5 / np.sqrt(2 * n)


def test_full_chains_recover_the_data_distribution():
    """The two fixed variances are the bounds of the right one (DDPM section 3.2)."""
    every = steps.trailing_timesteps(T, T)
    found = {
        "small": tables.ddpm_table(SCHEDULE, every),
        "large": tables.ddpm_table(SCHEDULE, every, variance_type="fixed_large"),
        "ddim": tables.ddim_table(SCHEDULE, every),
    }
    mean, std = {}, {}
    for name, table in found.items():
        mean[name], std[name] = moments_by_recursion(table)
        assert mean[name] == pytest.approx(MEAN, abs=2e-3)
        assert std[name] == pytest.approx(STD, rel=0.03)
    assert std["small"] < STD < std["large"]
    assert std["ddim"] == pytest.approx(STD, rel=0.01)


# Learned variances, and what a zero terminal SNR allows


def gaussian_chain(schedule, count, n=20_000, **options):
    """Samples of N(MEAN, STD^2) by the oracle with its exact reverse variance."""
    data = oracle.gaussian([MEAN], [STD**2])
    network = oracle.oracle_apply_fn(data, schedule, "v", learned=True)
    chosen = steps.trailing_timesteps(schedule.num_timesteps, count)
    table = tables.ddpm_table(schedule, chosen, prediction_type="v", **options)
    return np.asarray(run(table, n, apply_fn=network)[0])


@pytest.mark.statistical
@pytest.mark.parametrize("total", [2, 5, 50])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_with_the_exact_variance_every_number_of_steps_gives_the_data(total):
    """For Gaussian data q(x_{t-1} | x_t) is Gaussian, so the chain is exact.

    jsd ends in pure noise, so its x_T is exact as well; the last step adds no noise, so
    what is left is Var[x_0 | x_1], and that is known.
    """
    schedule = make_schedule(jsd_betas(total))
    n = 20_000
    samples = gaussian_chain(schedule, total, n, variance_type="learned")
    share = schedule.alphas_cumprod[0]
    left = STD**2 * (1 - share) / (share * STD**2 + 1 - share)
    std = np.sqrt(STD**2 - left)
    assert abs(samples.mean() - MEAN) < 5 * std / np.sqrt(n)
    assert abs(samples.std() / std - 1) < 5 / np.sqrt(2 * n)


def test_a_learned_variance_scales_the_noise_of_its_row():
    """-1, 0, 1 give beta-tilde, the geometric mean, beta: rows of the other two tables."""
    chosen = steps.trailing_timesteps(T, 40)
    small, large, learned = (
        tables.ddpm_table(SCHEDULE, chosen, variance_type=kind)
        for kind in ("fixed_small", "fixed_large", "learned")
    )
    assert learned.is_learned and not small.is_learned and not large.is_learned
    np.testing.assert_array_equal(learned.w_noise, small.w_noise)
    for output in (-1.0, 0.0, 1.0):

        def apply_fn(params, x_t, t, cond, *, train, key, output=output):
            between = jnp.full_like(x_t, output)
            return jnp.concatenate([jnp.zeros_like(x_t), between], axis=-1)

        expected = small.w_noise ** ((1 - output) / 2) * large.w_noise ** ((1 + output) / 2)
        fixed = small._replace(w_noise=expected)
        options = {"apply_fn": apply_fn, "clip": True, "frames": (1, 20, 39, 40)}
        for a, b in zip(run(learned, **options), run(fixed, **options), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_table_of_fixed_variances_ignores_learned_ones():
    def apply_fn(params, x_t, t, cond, *, train, key):
        eps = gaussian_eps(params, x_t, t, cond, train=train, key=key)
        return jnp.concatenate([eps, jnp.full_like(eps, 7.0)], axis=-1)

    for table in (
        tables.ddim_table(SCHEDULE, steps.trailing_timesteps(T, 5), eta=0.5),
        tables.ddpm_table(SCHEDULE, steps.trailing_timesteps(T, 5)),
    ):
        np.testing.assert_allclose(
            run(table, apply_fn=apply_fn)[0], run(table)[0], atol=1e-5
        )


def test_a_table_of_learned_variances_needs_a_network_that_has_them():
    table = tables.ddpm_table(SCHEDULE, [9, 5], variance_type="learned")
    with pytest.raises(ValueError, match="must have 2 channels"):
        run(table)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_from_pure_noise_the_first_row_takes_x0_as_it_is_told():
    """x_T of a zero terminal SNR has no weight in x_0, and ends in its place."""
    schedule = make_schedule(jsd_betas(100))
    chosen = steps.trailing_timesteps(100, 10)
    for kind, of_prediction in (("v", -1.0), ("x0", 1.0)):
        for table in (
            tables.ddpm_table(schedule, chosen, prediction_type=kind),
            tables.ddim_table(schedule, chosen, prediction_type=kind, eta=0.3),
        ):
            assert all(np.isfinite(column).all() for column in table)
            assert (table.x0_from_x[0], table.x0_from_prediction[0]) == (0, of_prediction)
    for make in (tables.ddpm_table, tables.ddim_table):
        with pytest.raises(ValueError, match="predict v or x0"):
            make(schedule, chosen)
        assert make(schedule, chosen[1:]).num_rows == 9


@pytest.mark.parametrize("kind", predictions.PREDICTION_TYPES)
def test_all_parameterisations_give_the_same_samples(kind):
    """The same oracle, told as eps, x0 or v, through a chain that clips."""

    def apply_fn(params, x_t, t, cond, *, train, key):
        eps = gaussian_eps(params, x_t, t, cond, train=train, key=key)
        if kind == "eps":
            return eps
        if kind == "v":
            return predictions.v_from_eps(SCHEDULE, x_t, t, eps)
        return predictions.x0_from_eps(SCHEDULE, x_t, t, eps)

    chosen = steps.trailing_timesteps(T, 25)
    table = tables.ddim_table(SCHEDULE, chosen, eta=0.5, prediction_type=kind)
    expected = run(tables.ddim_table(SCHEDULE, chosen, eta=0.5), clip=True)[0]
    np.testing.assert_allclose(
        run(table, apply_fn=apply_fn, clip=True)[0], expected, atol=2e-4
    )


def test_scan_equals_a_python_loop_in_float64():
    table = tables.ddpm_table(SCHEDULE, steps.trailing_timesteps(T, 12))
    found = np.asarray(run(table, 5, start=3, clip=True)[0])
    for row, index in enumerate(range(3, 8)):
        key = jax.random.fold_in(jax.random.key(0), index)
        draws = [jax.random.normal(jax.random.fold_in(key, r), (1,)) for r in range(13)]
        x = np.float64(draws[0][0])
        for i, t in enumerate(table.t):
            a = SCHEDULE.alphas_cumprod[t]
            eps = np.sqrt(1 - a) * (x - np.sqrt(a) * MEAN) / (a * STD**2 + 1 - a)
            x0 = np.clip((x - np.sqrt(1 - a) * eps) / np.sqrt(a), -1, 1)
            x = (
                table.w_x[i] * x
                + table.w_x0[i] * x0
                + table.w_noise[i] * float(draws[i + 1][0])
            )
        np.testing.assert_allclose(found[row, 0], x, atol=1e-5)


def test_x0_is_clipped_before_the_mean_is_formed():
    """A network that claims x_0 = 5 everywhere: every row's x_0 is 1, so the end is 1."""

    def far(params, x_t, t, cond, *, train, key):
        return jnp.full_like(x_t, 5.0)

    table = tables.ddim_table(
        SCHEDULE, steps.trailing_timesteps(T, 5), prediction_type="x0"
    )
    samples, frames = run(table, 4, apply_fn=far, clip=True, frames=(0, 1))
    np.testing.assert_allclose(samples, 1.0, rtol=1e-6)
    first = table.w_x[0] * np.asarray(frames[0]) + table.w_x0[0]
    np.testing.assert_allclose(frames[1], first, rtol=1e-5)


def test_noise_depends_on_seed_index_and_row_alone():
    """The same bits in another batch, another place in it, and another device count."""
    table = tables.ddpm_table(SCHEDULE, steps.trailing_timesteps(T, 8))
    one = np.asarray(run(table, 64)[0])
    np.testing.assert_array_equal(one[16:48], run(table, 32, start=16)[0])
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = jax.jit(
        lambda key, i: chain.sample_chain(
            gaussian_eps, None, table, key, i, shape=(1,), clip_x0=False
        )[0],
        in_shardings=(None, rows),
        out_shardings=rows,
    )(jax.random.key(0), jnp.arange(64))
    assert len(sharded.sharding.device_set) == 4
    np.testing.assert_array_equal(one, sharded)
    assert len(np.unique(one)) == 64


def test_ddim_without_eta_draws_its_noise_at_the_start_only():
    """Its end is a function of the first frame: the affine map of the exact recursion."""
    table = tables.ddim_table(SCHEDULE, steps.trailing_timesteps(T, 30))
    samples, frames = run(table, 16, frames=(0,))
    mean, std = moments_by_recursion(table)
    np.testing.assert_allclose(samples, mean + std * np.asarray(frames[0]), atol=2e-5)


def test_frames_are_the_states_of_a_shorter_chain():
    """The state after k rows is what the first k rows alone lead to."""
    table = tables.ddpm_table(SCHEDULE, steps.trailing_timesteps(T, 10))
    samples, frames = run(table, 8, frames=(0, 4, 10))
    short = tables.SamplerTable(*(column[:4] for column in table))
    np.testing.assert_allclose(frames[1], run(short, 8)[0], atol=1e-6)
    np.testing.assert_array_equal(frames[2], samples)
    assert abs(float(np.std(frames[0])) - 1) < 0.6


@pytest.mark.parametrize("bad", [(0, 0), (-1,), (11,)])
def test_frames_that_are_not_states_are_refused(bad):
    table = tables.ddpm_table(SCHEDULE, steps.trailing_timesteps(T, 10))
    with pytest.raises(ValueError, match="frames"):
        run(table, 2, frames=bad)


def test_a_network_of_another_shape_is_refused():
    table = tables.ddpm_table(SCHEDULE, steps.trailing_timesteps(T, 3))
    with pytest.raises(AssertionError):
        run(table, 2, apply_fn=lambda p, x, t, c, *, train, key: x[:1])


def test_even_frames_hold_both_ends():
    assert chain.even_frames(1000, 10)[::9] == (0, 1000)
    assert len(chain.even_frames(1000, 10)) == 10
    assert chain.even_frames(3, 10) == (0, 1, 2, 3)


def test_progress_is_reported_from_inside_the_program():
    seen = []
    table = tables.ddim_table(SCHEDULE, steps.trailing_timesteps(T, 50))
    jax.block_until_ready(
        run(table, 4, progress_every=10, on_progress=lambda done: seen.append(int(done)))
    )
    jax.effects_barrier()
    assert sorted(seen) == [1, 2, 10, 20, 30, 40, 50]


def test_memory_of_the_chain_does_not_grow_with_its_length():
    def temporaries(count):
        table = tables.ddim_table(SCHEDULE, steps.trailing_timesteps(T, count))
        lowered = jax.jit(
            lambda i: chain.sample_chain(
                gaussian_eps, None, table, jax.random.key(0), i, shape=(64,)
            )[0]
        ).lower(jnp.arange(64))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(1000) < temporaries(10) + 64 * 64 * 4


def test_steps_lie_evenly():
    """Trailing gaps differ by one at most; linspace is within half a step, halves go up."""
    for total, count in ((1000, 7), (1000, 61), (100, 33), (10, 4)):
        gaps = -np.diff(steps.trailing_timesteps(total, count), append=-1)
        assert gaps.max() - gaps.min() <= 1
        exact = np.linspace(total - 1, 0, count)
        assert np.abs(steps.linspace_timesteps(total, count) - exact).max() <= 0.5 + 1e-9
    assert steps.linspace_timesteps(4, 3).tolist() == [3, 2, 0]
    assert steps.trailing_timesteps(10, 4).tolist() == [9, 6, 4, 1]


@pytest.mark.parametrize("count", [3, 10, 61, 250])
def test_respaced_ddpm_rows_keep_the_marginals(count):
    chosen = steps.trailing_timesteps(T, count)
    table = tables.ddpm_table(SCHEDULE, chosen)
    share = SCHEDULE.alphas_cumprod[chosen]
    prev = np.append(share[1:], 1.0)
    np.testing.assert_allclose(table.w_x * np.sqrt(share) + table.w_x0, np.sqrt(prev))
    noise = table.w_x**2 * (1 - share) + table.w_noise**2
    np.testing.assert_allclose(noise, 1 - prev, atol=1e-13)


def test_eta_scales_the_noise():
    chosen = steps.trailing_timesteps(T, 20)
    full, part = (tables.ddim_table(SCHEDULE, chosen, eta=eta) for eta in (1.0, 0.3))
    np.testing.assert_allclose(part.w_noise, 0.3 * full.w_noise)


def test_the_chain_evaluates_clips_and_hands_the_condition_on():
    def network(params, x_t, t, cond, *, train, key):
        assert not train and key is None
        return cond

    table = tables.ddim_table(
        SCHEDULE, steps.trailing_timesteps(T, 5), prediction_type="x0"
    )
    for clip, end in (({}, 1.0), ({"clip_x0": False}, 5.0)):
        samples, _ = chain.sample_chain(
            network,
            None,
            table,
            jax.random.key(0),
            jnp.arange(3),
            shape=(2,),
            cond=jnp.full((3, 2), 5.0),
            **clip,
        )
        np.testing.assert_allclose(samples, end, rtol=1e-6)


def test_even_frames_are_rounded():
    assert chain.even_frames(5, 4) == (0, 2, 3, 5)
