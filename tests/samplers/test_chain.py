"""The scan: against a plain loop and exact moments; its promises about noise and memory."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import oracle, parameterization
from diffusion_jax.diffusion.schedules import jsd_betas, linear_betas, make_schedule
from diffusion_jax.samplers import chain, methods, thresholding, timesteps
from helpers import gaussian_moments, run_table

T = 1000
SCHEDULE = make_schedule(linear_betas(T))
MEAN, STD = 0.3, 0.2
UNEVEN = [999.0, 810.5, 700.0, 450.25, 200.0, 90.0, 20.0]


def make(name, timesteps, **options):
    """A table by a name such as "dpmpp_2m eta=1" or "heun churn=20 +langevin"."""
    method, *words = name.split()
    for word in words:
        key, _, value = word.partition("=")
        if value:
            options[key] = {"variance_type": str, "steps_per_level": int}.get(key, float)(
                value
            )
    table = methods.METHODS[method](SCHEDULE, timesteps, **options)
    return methods.with_langevin(table, SCHEDULE) if "+langevin" in words else table


# Every method, every kind of noise, every state that is carried.
ALL = (
    "ddpm",
    "ddpm variance_type=fixed_large",
    "ddim",
    "ddim eta=0.5",
    "dpmpp_2m",
    "dpmpp_2m eta=1",
    "dpmpp_3m",
    "dpmpp_3m eta=0.5",
    "unipc",
    "unipc +langevin",
    "euler churn=20",
    "heun",
    "heun churn=20 +langevin",
    "langevin",
    "dpmpp_3m +langevin",
)


def gaussian_eps(params, x_t, t, cond, *, train, key):
    """E[eps | x_t] for x_0 ~ N(MEAN, STD^2), at real-valued t."""
    log_share = jnp.interp(t, jnp.arange(T) * 1.0, jnp.log(SCHEDULE.alphas_cumprod))
    share, rest = jnp.exp(log_share)[:, None], -jnp.expm1(log_share)[:, None]
    return jnp.sqrt(rest) * (x_t - jnp.sqrt(share) * MEAN) / (share * STD**2 + rest)


@functools.partial(jax.jit, static_argnums=(0, 4), static_argnames=("frames", "x0_hook"))
def jitted(apply_fn, table, key, indices, shape, **options):
    return chain.sample_chain(
        apply_fn, None, table, key, indices, shape=shape, **{"x0_hook": None, **options}
    )


def run(table, n=64, *, apply_fn=gaussian_eps, start=0, shape=(1,), **options):
    indices = jnp.arange(start, start + n)
    return jitted(apply_fn, table, jax.random.key(0), indices, shape, **options)


# Against a plain loop and exact moments


@pytest.mark.parametrize("name", ALL)
def test_scan_equals_a_python_loop_in_float64(name):
    """Clipped, so that the hook counts, and with noise drawn by its contract."""
    table = make(name, UNEVEN)
    found = np.asarray(run(table, 5, start=3, x0_hook=thresholding.static_threshold)[0])
    keys = [jax.random.fold_in(jax.random.key(0), index) for index in range(3, 8)]
    draws = [
        np.array([jax.random.normal(jax.random.fold_in(k, row), (1,)) for k in keys])
        for row in range(table.num_rows + 1)
    ]

    def network(x, t):
        return np.asarray(
            gaussian_eps(None, x, np.full(5, t), None, train=False, key=None), np.float64
        )

    looped = run_table(
        table,
        network,
        np.float64(draws[0]),
        np.float64(draws[1:]),
        hook=lambda x0: np.clip(x0, -1, 1),
    )
    np.testing.assert_allclose(found, looped[-1], atol=5e-5)


@pytest.mark.statistical
@pytest.mark.parametrize("count", [5, 50])
@pytest.mark.parametrize("name", ALL)
def test_chain_on_gaussian_data_has_the_moments_of_the_exact_recursion(name, count):
    n = 20_000
    table = make(name, timesteps.log_snr_timesteps(SCHEDULE, count))
    samples = np.asarray(run(table, n)[0])
    mean, variance = gaussian_moments(table, SCHEDULE, MEAN, STD)
    assert abs(samples.mean() - mean) < 4 * np.sqrt(variance / n) + 1e-5
    assert abs(samples.var() / variance - 1) < 4 * np.sqrt(2 / n) + 1e-4


MIXTURE = oracle.mixture([0.3, 0.7], [[-0.6], [0.5]], 0.01)


@pytest.mark.statistical
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * ("langevin" in n)) for n in ALL],
)
def test_mixture_weights_are_those_of_the_data(name):
    """The share of 10,000 draws in one component, within 3 standard errors."""
    n = 10_000
    network = oracle.oracle_apply_fn(MIXTURE, SCHEDULE, "x0")
    count = 500 if "churn" in name else 100
    if name == "langevin":
        name = "langevin step_size=0.1 steps_per_level=30"
    table = make(name, timesteps.log_snr_timesteps(SCHEDULE, count), prediction_type="x0")
    samples = np.asarray(run(table, n, apply_fn=network)[0])
    share = (samples < -0.05).mean()
    assert abs(share - 0.3) < 3 * np.sqrt(0.3 * 0.7 / n), share


# Learned variances


def gaussian_chain(schedule, count, n=20_000, **options):
    """Samples of N(MEAN, STD^2) by the oracle with its exact reverse variance."""
    data = oracle.gaussian([MEAN], [STD**2])
    network = oracle.oracle_apply_fn(data, schedule, "v", learned=True)
    chosen = timesteps.trailing_timesteps(schedule.num_timesteps, count)
    table = methods.ddpm_table(schedule, chosen, prediction_type="v", **options)

    def integer_t(params, x_t, t, cond, **rest):
        return network(params, x_t, t.astype(jnp.int32), cond, **rest)

    return np.asarray(run(table, n, apply_fn=integer_t)[0])


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
    chosen = timesteps.trailing_timesteps(T, 40)
    small, large, learned = (
        make(f"ddpm variance_type={kind}", chosen)
        for kind in ("fixed_small", "fixed_large", "learned")
    )
    assert learned.is_learned and not small.is_learned and not large.is_learned
    for output in (-1.0, 0.0, 1.0):

        def apply_fn(params, x_t, t, cond, *, train, key, output=output):
            between = jnp.full_like(x_t, output)
            return jnp.concatenate([jnp.zeros_like(x_t), between], axis=-1)

        share = (output + 1) / 2
        expected = small.to_x.noise ** (1 - share) * large.to_x.noise**share
        fixed = dataclasses.replace(small, to_x=small.to_x._replace(noise=expected))
        options = {"apply_fn": apply_fn, "frames": (1, 20, 39, 40)}
        options["x0_hook"] = thresholding.static_threshold
        for a, b in zip(run(learned, **options), run(fixed, **options), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_table_of_fixed_variances_ignores_learned_ones():
    def apply_fn(params, x_t, t, cond, *, train, key):
        eps = gaussian_eps(params, x_t, t, cond, train=train, key=key)
        return jnp.concatenate([eps, jnp.full_like(eps, 7.0)], axis=-1)

    for name in ("ddim eta=0.5", "ddpm", "unipc"):
        table = make(name, timesteps.trailing_timesteps(T, 5))
        np.testing.assert_allclose(
            run(table, apply_fn=apply_fn)[0], run(table)[0], atol=1e-5
        )


def test_a_table_of_learned_variances_needs_a_network_that_has_them():
    table = make("ddpm variance_type=learned", [9, 5])
    with pytest.raises(ValueError, match="must have 2 channels"):
        run(table)


# What the network is asked, and what is made of its answer


@pytest.mark.parametrize("kind", parameterization.PREDICTION_TYPES)
@pytest.mark.parametrize("name", ["ddim eta=0.5", "unipc", "heun"])
def test_all_parameterisations_give_the_same_samples(name, kind):
    """The same oracle, told as eps, x0 or v, through a chain that clips."""

    def apply_fn(params, x_t, t, cond, *, train, key):
        eps, t = (
            gaussian_eps(params, x_t, t, cond, train=train, key=key),
            t.astype(jnp.int32),
        )
        if kind == "eps":
            return eps
        if kind == "v":
            return parameterization.v_from_eps(SCHEDULE, x_t, t, eps)
        return parameterization.x0_from_eps(SCHEDULE, x_t, t, eps)

    chosen = timesteps.trailing_timesteps(T, 25)
    options = {"x0_hook": thresholding.static_threshold}
    found = run(make(name, chosen, prediction_type=kind), apply_fn=apply_fn, **options)[0]
    np.testing.assert_allclose(found, run(make(name, chosen), **options)[0], atol=2e-4)


@pytest.mark.parametrize("name", ALL)
def test_the_network_is_told_each_timestep_in_float32(name):
    seen = []

    def network(params, x_t, t, cond, *, train, key):
        assert t.shape == (3,) and t.dtype == x_t.dtype == jnp.float32
        assert not train and key is None and cond == "a condition"
        jax.debug.callback(lambda t: seen.append(float(t)), t[0], ordered=True)
        return jnp.zeros_like(x_t)

    table = make(name, [900, 500.5, 20], prediction_type="x0")
    samples, _ = chain.sample_chain(
        network,
        None,
        table,
        jax.random.key(0),
        jnp.arange(3),
        shape=(2,),
        cond="a condition",
    )
    jax.effects_barrier()
    assert seen == np.float32(table.t).tolist()
    if "churn" not in name:  # Which moves them: see test_tables.py.
        assert set(seen) == {900.0, 500.5, 20.0}
    np.testing.assert_allclose(samples, 0.0, atol=1e-6)


def test_x0_is_clipped_before_the_mean_is_formed():
    """A network that claims x_0 = 5 everywhere: every row's x_0 is 1, so the end is 1."""

    def far(params, x_t, t, cond, *, train, key):
        return jnp.full_like(x_t, 5.0)

    for name in ("ddim", "dpmpp_3m", "unipc", "heun"):
        table = make(name, timesteps.trailing_timesteps(T, 5), prediction_type="x0")
        options = {"apply_fn": far, "frames": (0, 1)}
        clip = thresholding.static_threshold
        samples, frames = run(table, 4, x0_hook=clip, **options)
        np.testing.assert_allclose(samples, 1.0, rtol=1e-5)
        first = table.to_x.x[0] * np.asarray(frames[0]) + table.to_x.x0[0]
        np.testing.assert_allclose(frames[1], first, rtol=1e-5)
        np.testing.assert_allclose(run(table, 4, **options)[0], 5.0, rtol=1e-5)
    default = chain.sample_chain(
        far, None, table, jax.random.key(0), jnp.arange(2), shape=(1,)
    )
    np.testing.assert_allclose(default[0], 1.0, rtol=1e-5)


# Noise, frames, memory, compilation


@pytest.mark.parametrize("name", ["ddpm", "unipc +langevin"])
def test_noise_depends_on_seed_index_and_row_alone(name):
    """The same bits in another batch, another place in it, and another device count."""
    table = make(name, timesteps.trailing_timesteps(T, 8))
    one = np.asarray(run(table, 64)[0])
    np.testing.assert_array_equal(one[16:48], run(table, 32, start=16)[0])
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = jax.jit(
        lambda key, i: chain.sample_chain(
            gaussian_eps, None, table, key, i, shape=(1,), x0_hook=None
        )[0],
        in_shardings=(None, rows),
        out_shardings=rows,
    )(jax.random.key(0), jnp.arange(64))
    assert len(sharded.sharding.device_set) == 4
    np.testing.assert_array_equal(one, sharded)
    assert len(np.unique(one)) == 64


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "dpmpp_3m", "unipc", "heun", "euler"])
def test_without_noise_the_key_is_ignored_after_the_start(name):
    """The end is a function of the first frame: the affine map of the exact recursion."""
    table = make(name, timesteps.trailing_timesteps(T, 30))
    samples, frames = run(table, 16, frames=(0,))
    mean, variance = gaussian_moments(table, SCHEDULE, MEAN, STD)
    expected = mean + np.sqrt(variance) * np.asarray(frames[0])
    np.testing.assert_allclose(samples, expected, atol=5e-5)


def test_frames_are_the_states_of_a_shorter_chain():
    """The state after k rows is what the first k rows alone lead to."""
    table = make("dpmpp_3m eta=1", timesteps.trailing_timesteps(T, 10))
    samples, frames = run(table, 8, frames=(10, 0, 4))
    np.testing.assert_allclose(frames[2], run(table.take(slice(4)), 8)[0], atol=1e-5)
    np.testing.assert_array_equal(frames[0], samples)
    assert abs(float(np.std(frames[1])) - 1) < 0.6
    assert run(table, 8)[1].shape == (0, 8, 1)


@pytest.mark.parametrize("bad", [(0, 0), (-1,), (11,)])
def test_frames_that_are_not_states_are_refused(bad):
    table = make("ddpm", timesteps.trailing_timesteps(T, 10))
    with pytest.raises(ValueError, match="frames"):
        run(table, 2, frames=bad)


def test_a_network_of_another_shape_is_refused():
    with pytest.raises(AssertionError):
        run(make("ddpm", [9, 5]), 2, apply_fn=lambda p, x, t, c, *, train, key: x[:1])


@pytest.mark.parametrize("name", ["dpmpp_3m eta=1", "heun"])
def test_padding_changes_no_sample_and_calls_no_network(name):
    """Rows that are not live leave every state as it is, and the frames as well."""
    table = make(name, UNEVEN)
    calls = []

    def counting(params, x_t, t, cond, *, train, key):
        jax.debug.callback(lambda: calls.append(1))
        return gaussian_eps(params, x_t, t, cond, train=train, key=key)

    frames = (0, 3, table.num_rows)
    expected = run(table, 8, frames=frames)
    found = run(table.padded(20), 8, frames=frames, apply_fn=counting)
    jax.effects_barrier()
    assert len(calls) == table.num_rows
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_chain_in_stretches_is_the_whole_chain():
    """`start_chain` and `run_rows`: any division of the rows gives the same samples."""
    table, key, indices = make("unipc", UNEVEN), jax.random.key(0), jnp.arange(8)
    frames = (2, 7)
    samples, kept = run(table, 8, frames=frames)
    rows = chain.chain_rows(table, frames)
    state = chain.start_chain(table, key, indices, shape=(1,), frames=frames)
    for part in (slice(0, 3), slice(3, 7)):
        stretch = jax.tree.map(lambda column, part=part: column[part], rows)
        state = chain.run_rows(
            gaussian_eps, None, state, stretch, key, indices, x0_hook=None
        )
    np.testing.assert_allclose(state.x, samples, atol=1e-5)
    np.testing.assert_allclose(state.frames, kept, atol=1e-5)


def test_one_compilation_for_any_method_steps_spacing_or_eta():
    """Of the same length, history and batch: the table is an argument."""

    @jax.jit
    @chex.assert_max_traces(n=1)
    def sample(table, key):
        return chain.sample_chain(
            gaussian_eps, None, table, key, jnp.arange(4), shape=(1,), x0_hook=None
        )[0]

    found = []
    for name in (
        "ddim",
        "ddim eta=0.5",
        "ddpm",
        "ddpm variance_type=fixed_large",
        "euler churn=9",
    ):
        for times in (UNEVEN, timesteps.karras_timesteps(SCHEDULE, 7)):
            found.append(np.asarray(sample(make(name, times), jax.random.key(1))))
    assert len(np.unique(found, axis=0)) == len(found)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def multistep(table, key):
        return chain.sample_chain(
            gaussian_eps, None, table, key, jnp.arange(4), shape=(1,), x0_hook=None
        )[0]

    for name in ("dpmpp_2m", "dpmpp_2m eta=0.3", "dpmpp_2m eta=1"):
        multistep(make(name, UNEVEN), jax.random.key(1))


def test_the_state_holds_only_what_a_method_needs():
    for name in ALL:
        table = make(name, UNEVEN)
        state = chain.start_chain(table, jax.random.key(0), jnp.arange(2), shape=(3,))
        assert len(state.previous) == table.num_previous
        assert (state.anchor is not None) == table.has_anchor


def test_even_frames_hold_both_ends_and_are_rounded():
    assert chain.even_frames(1000, 10)[::9] == (0, 1000)
    assert len(chain.even_frames(1000, 10)) == 10
    assert chain.even_frames(3, 10) == (0, 1, 2, 3)
    assert chain.even_frames(5, 4) == (0, 2, 3, 5)


def test_progress_is_reported_from_inside_the_program():
    seen = []
    table = make("ddim", timesteps.trailing_timesteps(T, 50))
    jax.block_until_ready(
        chain.sample_chain(
            gaussian_eps,
            None,
            table,
            jax.random.key(0),
            jnp.arange(4),
            shape=(1,),
            progress_every=10,
            on_progress=lambda done: seen.append(int(done)),
        )
    )
    jax.effects_barrier()
    assert sorted(seen) == [1, 2, 10, 20, 30, 40, 50]


@pytest.mark.parametrize("name", ["ddpm", "unipc", "heun"])
def test_memory_of_the_chain_does_not_grow_with_its_length(name):
    def temporaries(count):
        table = make(name, timesteps.trailing_timesteps(T, count))
        lowered = jax.jit(
            lambda table, i: chain.sample_chain(
                gaussian_eps, None, table, jax.random.key(0), i, shape=(64,)
            )[0]
        ).lower(table, jnp.arange(64))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(1000) == temporaries(10)
