"""The scan: against a plain loop and exact moments; its noise and its memory."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import oracle, parameterization
from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.schedules import jsd_betas, linear_betas, make_schedule
from diffusion_jax.samplers import chain, methods, thresholding, timesteps
from helpers import SHAPES, gaussian_moments, run_table

T = 1000
SCHEDULE = make_schedule(linear_betas(T))
MEAN, STD = 0.3, 0.2
UNEVEN = [999.0, 810.5, 700.0, 450.25, 200.0, 90.0, 20.0]


# Every method, every kind of noise, every state that is carried.
ALL = (
    *methods.METHODS,
    "ddpm variance=fixed_large",
    "ddim eta=0.5",
    "dpmpp_2m eta=1",
    "dpmpp_3m eta=0.5",
    "dpmpp_3m +langevin",
    "unipc +langevin",
    "euler churn=20",
    "heun churn=20 +langevin",
)
# Of these, for examples of other axes.
SOME = ("ddpm", "unipc +langevin", "heun churn=20 +langevin")


def model_of(answer, prediction="eps", variance="fixed_small"):
    """A model whose network answers answer(x_t, t, cond)."""

    def apply_fn(params, x_t, t, cond, *, train, key):
        return answer(x_t, t, cond)

    return Model(SCHEDULE, prediction, variance, apply_fn)


def gaussian_eps(x_t, t, cond=None):
    """E[eps | x_t] for x_0 ~ N(MEAN, STD^2), at real-valued t."""
    log_of = jnp.asarray(np.log(SCHEDULE.alphas_cumprod), jnp.float32)
    log_share = jnp.interp(t, jnp.arange(T, dtype=jnp.float32), log_of)
    log_share = log_share.reshape(-1, *(1,) * (x_t.ndim - 1))
    share, rest = jnp.exp(log_share), -jnp.expm1(log_share)
    return jnp.sqrt(rest) * (x_t - jnp.sqrt(share) * MEAN) / (share * STD**2 + rest)


GAUSSIAN = model_of(gaussian_eps)


def make(name, timesteps, model=GAUSSIAN, **options):
    """A table by a name such as "dpmpp_2m eta=1" or "heun churn=20 +langevin"."""
    method, *words = name.split()
    for word in words:
        key, _, value = word.partition("=")
        if value:
            options[key] = {"variance": str, "steps_per_level": int}.get(key, float)(value)
    table = methods.METHODS[method](model, timesteps, **options)
    return methods.with_langevin(table) if "+langevin" in words else table


# The methods that add no noise unless told to.
DETERMINISTIC = [
    name
    for name in methods.METHODS
    if name != "langevin" and not make(name, UNEVEN).to_x.noise.any()
]
NO_HOOK = chain.ChainOptions(hook=None)


def samples_of(indices):
    return chain.Samples(jax.random.key(0), jnp.asarray(indices))


PROGRAMS = {}  # By the id of a model.


def jitted(model):
    """`sample_chain` of a model; calls with the same one share what is compiled."""
    if id(model) not in PROGRAMS:
        sample = functools.partial(chain.sample_chain, model, None)
        PROGRAMS[id(model)] = model, jax.jit(sample, static_argnums=(2, 4))
    return PROGRAMS[id(model)][1]


def run(table, n=64, *, model=GAUSSIAN, start=0, shape=(1,), cond=None, **options):
    samples = samples_of(range(start, start + n))
    options = chain.ChainOptions(**{"hook": None, **options})
    return jitted(model)(table, samples, shape, cond, options)


def noises_of(indices, num_rows, shape):
    """Noises of a chain by its contract, the initial one first; [num_rows + 1, B, ...]."""
    keys = [jax.random.fold_in(jax.random.key(0), index) for index in indices]
    return np.float64(
        [
            [jax.random.normal(jax.random.fold_in(k, row), shape) for k in keys]
            for row in range(num_rows + 1)
        ]
    )


def as_numpy(network):
    """A network of NumPy arrays at one timestep, for `run_table`."""

    def at_one_time(x, t):
        return np.float64(network(jnp.float32(x), jnp.full(len(x), t, jnp.float32)))

    return at_one_time


# Against a plain loop and exact moments


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, (1,)) for name in ALL),
        *((name, SHAPES[kind]) for name in SOME for kind in ("sound", "image", "clip")),
    ],
)
def test_scan_equals_a_python_loop_in_float64(name, shape):
    """A chain that clips, so that the hook counts, and has noise drawn by its contract."""
    table = make(name, UNEVEN)
    found = run(table, 5, start=3, shape=shape, hook=thresholding.static_threshold)[0]
    noises = noises_of(range(3, 8), table.num_rows, shape)
    looped = run_table(
        table,
        as_numpy(gaussian_eps),
        noises[0],
        noises[1:],
        hook=lambda x0, x, level, cond: np.clip(x0, -1, 1),
    )
    np.testing.assert_allclose(found, looped[-1], atol=5e-5)


@pytest.mark.statistical
@pytest.mark.parametrize("count", [5, 50])
@pytest.mark.parametrize("name", ALL)
def test_chain_on_gaussian_data_has_the_moments_of_the_exact_recursion(name, count):
    n = 20_000
    table = make(name, timesteps.log_snr_timesteps(SCHEDULE, count))
    samples = np.asarray(run(table, n)[0])
    mean, variance = gaussian_moments(table, MEAN, STD)
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
    model = oracle.optimal_model(MIXTURE, SCHEDULE, "x0")
    count = 500 if "churn" in name else 100
    if name == "langevin":
        name = "langevin step_size=0.1 steps_per_level=30"
    table = make(name, timesteps.log_snr_timesteps(SCHEDULE, count), model)
    samples = np.asarray(run(table, n, model=model)[0])
    share = (samples < -0.05).mean()
    assert abs(share - 0.3) < 3 * np.sqrt(0.3 * 0.7 / n), share


# Learned variances


def gaussian_chain(schedule, count, n=20_000):
    """Samples of N(MEAN, STD^2) by the oracle with its exact reverse variance."""
    data = oracle.gaussian([MEAN], [STD**2])
    model = oracle.optimal_model(data, schedule, "v", "learned")
    table = methods.ddpm_table(
        model, timesteps.trailing_timesteps(schedule.num_timesteps, count)
    )
    assert table.is_learned
    return np.asarray(run(table, n, model=model)[0])


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
    samples = gaussian_chain(schedule, total, n)
    share = schedule.alphas_cumprod[0]
    left = STD**2 * (1 - share) / (share * STD**2 + 1 - share)
    std = np.sqrt(STD**2 - left)
    assert abs(samples.mean() - MEAN) < 5 * std / np.sqrt(n)
    assert abs(samples.std() / std - 1) < 5 / np.sqrt(2 * n)


def with_variance_output(answer, output):
    """A model of learned variances with the same variance output everywhere."""

    def both(x_t, t, cond):
        between = jnp.full_like(x_t, output)
        return jnp.concatenate([answer(x_t, t, cond), between], axis=-1)

    return model_of(both, variance="learned")


def test_a_learned_variance_scales_the_noise_of_its_row():
    """Outputs -1, 0, 1 give beta-tilde, geometric mean, beta: rows of two other tables."""
    chosen = timesteps.trailing_timesteps(T, 40)
    for output in (-1.0, 0.0, 1.0):
        model = with_variance_output(lambda x_t, t, cond: jnp.zeros_like(x_t), output)
        learned = make("ddpm", chosen, model)
        small, large = (
            make(f"ddpm variance={kind}", chosen, model)
            for kind in ("fixed_small", "fixed_large")
        )
        assert learned.is_learned and not small.is_learned and not large.is_learned
        share = (output + 1) / 2
        expected = small.to_x.noise ** (1 - share) * large.to_x.noise**share
        fixed = dataclasses.replace(small, to_x=small.to_x._replace(noise=expected))
        options = {"model": model, "frames": (1, 20, 39, 40)}
        options["hook"] = thresholding.static_threshold
        for a, b in zip(run(learned, **options), run(fixed, **options), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_table_of_fixed_variances_ignores_learned_ones():
    model = with_variance_output(gaussian_eps, 7.0)
    for name in ("ddim eta=0.5", "ddpm variance=fixed_small", "unipc"):
        table = make(name, timesteps.trailing_timesteps(T, 5), model)
        assert not table.is_learned
        np.testing.assert_allclose(run(table, model=model)[0], run(table)[0], atol=1e-5)


def test_a_table_of_learned_variances_needs_a_model_that_has_them():
    """A table of learned variances needs a model and a network that have them."""
    model = with_variance_output(gaussian_eps, 0.0)
    table = make("ddpm", [9, 5], model)
    run(table, model=model)
    with pytest.raises(ValueError, match="table's variance is learned, and .* is not"):
        run(table)
    without = dataclasses.replace(model, apply_fn=GAUSSIAN.apply_fn)
    with pytest.raises(ValueError, match="must have 2 channels"):
        run(table, model=without)
    with pytest.raises(ValueError, match="needs a network that has learned it"):
        make("ddpm variance=learned", [9, 5], GAUSSIAN)


# What the network is asked, and what is made of its answer


@pytest.mark.parametrize("kind", [*parameterization.PREDICTION_TYPES, "score"])
@pytest.mark.parametrize("name", ["ddim eta=0.5", "unipc", "heun"])
def test_all_parameterisations_give_the_same_samples(name, kind):
    """Samples of one oracle as eps, x0, v or score, by a chain that clips."""

    def answer(x_t, t, cond):
        eps, t = gaussian_eps(x_t, t), t.astype(jnp.int32)
        return parameterization.converted(SCHEDULE, "eps", kind, x_t, t, eps)

    chosen, model = timesteps.trailing_timesteps(T, 25), model_of(answer, kind)
    clip = {"hook": thresholding.static_threshold}
    found = run(make(name, chosen, model), model=model, **clip)[0]
    np.testing.assert_allclose(found, run(make(name, chosen), **clip)[0], atol=2e-4)


@pytest.mark.parametrize("name", ALL)
def test_the_network_is_told_each_timestep_in_float32(name):
    seen = []

    def network(params, x_t, t, cond, *, train, key):
        assert t.shape == (3,) and t.dtype == x_t.dtype == jnp.float32
        assert params == "parameters" and cond == "a condition"
        assert not train and key is None
        jax.debug.callback(lambda t: seen.append(float(t)), t[0], ordered=True)
        return jnp.zeros_like(x_t)

    model = Model(SCHEDULE, "x0", apply_fn=network)
    table = make(name, [900, 500.5, 20], model)
    samples, _ = chain.sample_chain(
        model, "parameters", table, samples_of(range(3)), (2,), "a condition"
    )
    jax.effects_barrier()
    assert seen == np.float32(table.t).tolist()
    if "churn" not in name:  # Churn moves them: see test_methods.py.
        assert set(seen) == {900.0, 500.5, 20.0}
    np.testing.assert_allclose(samples, 0.0, atol=1e-6)


def test_x0_is_clipped_before_the_mean_is_formed():
    """A network that predicts x_0 = 5: every row's x_0 is 1, so the end is 1."""
    far = model_of(lambda x_t, t, cond: jnp.full_like(x_t, 5.0), "x0")
    for name in ("ddim", "dpmpp_3m", "unipc", "heun"):
        table = make(name, timesteps.trailing_timesteps(T, 5), far)
        options = {"model": far, "frames": (0, 1)}
        samples, frames = run(table, 4, hook=thresholding.static_threshold, **options)
        np.testing.assert_allclose(samples, 1.0, rtol=1e-5)
        first = table.to_x.x[0] * np.asarray(frames[0]) + table.to_x.x0[0]
        np.testing.assert_allclose(frames[1], first, rtol=1e-5)
        np.testing.assert_allclose(run(table, 4, **options)[0], 5.0, rtol=1e-5)
    default = chain.sample_chain(far, None, table, samples_of(range(2)), (1,))
    np.testing.assert_allclose(default[0], 1.0, rtol=1e-5)


# What the hook sees, and the conditions


def projection(clip):
    """A hook of all its arguments, for jnp.clip or np.clip.

    It keeps what is known of x_0, and moves the rest towards x_t where there is signal.
    """

    def hook(x0, x_t, level, cond):
        towards = x0 + 0.3 * level.alpha * (x_t - level.alpha * x0) + 0.1 * level.sigma
        return clip(cond["mask"] * cond["known"] + (1 - cond["mask"]) * towards, -1, 1)

    return hook


PROJECTION = projection(jnp.clip)


def conditions(n):
    """Conditions that differ in each row."""
    row = np.arange(n, dtype=np.float32)[:, None]
    known = np.concatenate([row / n - 0.4, 0.3 - row / n], axis=1)
    return {"known": known, "mask": np.float32([[1, 0]]) * (row % 3 < 2)}


@pytest.mark.parametrize("name", [*methods.METHODS, "heun churn=20 +langevin"])
def test_a_hook_that_uses_x_t_level_and_cond_equals_the_loop_in_float64(name):
    table, cond = make(name, UNEVEN), conditions(5)
    found = run(table, 5, start=3, shape=(2,), hook=PROJECTION, cond=cond)[0]
    noises = noises_of(range(3, 8), table.num_rows, (2,))
    looped = run_table(
        table,
        as_numpy(gaussian_eps),
        noises[0],
        noises[1:],
        hook=projection(np.clip),
        cond=cond,
    )
    np.testing.assert_allclose(found, looped[-1], atol=5e-5)
    known = cond["mask"] == 1
    np.testing.assert_allclose(np.asarray(found)[known], cond["known"][known], atol=1e-6)


@pytest.mark.parametrize(
    "name", ["ddpm", "dpmpp_3m eta=0.5", "unipc +langevin", "heun churn=20 +langevin"]
)
def test_the_hook_sees_x0_x_t_level_and_cond_of_each_row(name):
    """Arguments in the order of the rows: the prediction before it is changed, the state
    that the network was asked at, and the level of that state."""
    seen, asked = [], []

    def answer(x_t, t, cond):
        jax.debug.callback(lambda x: asked.append(np.array(x)), x_t, ordered=True)
        return 0.1 * cond["known"] - 0.2 * x_t

    def record(*arguments):
        seen.append(jax.tree.map(np.array, arguments))

    def hook(x0, x_t, level, cond):
        assert level.alpha.shape == level.sigma.shape == ()
        assert x0.dtype == x_t.dtype == level.alpha.dtype == jnp.float32
        jax.debug.callback(record, x0, x_t, level, cond, ordered=True)
        return 0.5 * x0

    model, cond = model_of(answer, "x0"), conditions(4)
    table = make(name, UNEVEN, model)
    every = tuple(range(table.num_rows + 1))
    options = {"model": model, "cond": cond, "hook": hook, "frames": every}
    _, frames = run(table, 4, shape=(2,), **options)
    jax.effects_barrier()
    assert len(seen) == len(asked) == table.num_rows
    for row, (x0, x_t, level, told) in enumerate(seen):
        np.testing.assert_array_equal(x_t, asked[row])
        np.testing.assert_allclose(x_t, frames[row], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(x0, 0.1 * cond["known"] - 0.2 * x_t, atol=1e-6)
        share = np.exp(np.interp(table.t[row], range(T), np.log(SCHEDULE.alphas_cumprod)))
        np.testing.assert_allclose(level.alpha_squared, share, rtol=1e-5)
        np.testing.assert_allclose(level.sigma_squared, 1 - share, rtol=1e-5)
        assert told.keys() == cond.keys()
        for key, value in cond.items():
            np.testing.assert_array_equal(told[key], value)


def test_without_conditions_network_and_hook_are_told_none():
    def answer(x_t, t, cond):
        assert cond is None
        return jnp.zeros_like(x_t)

    def hook(x0, x_t, level, cond):
        assert cond is None
        return x0

    model = model_of(answer)
    run(make("ddim", UNEVEN), 2, model=model, hook=hook)


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_sample_has_its_own_condition(name):
    """A network whose x_0 is the label: each sample comes out as its own label."""
    labels = np.random.default_rng(0).permutation(16).astype(np.int32)

    def answer(x_t, t, cond):
        return jnp.broadcast_to(cond["label"][:, None].astype(x_t.dtype) / 8 - 1, x_t.shape)

    model = model_of(answer, "x0")
    samples, _ = run(make(name, UNEVEN, model), 16, model=model, cond={"label": labels})
    np.testing.assert_allclose(samples[:, 0], labels / 8 - 1, atol=1e-5)


def conditioned(x_t, t, cond):
    return gaussian_eps(x_t, t) * (1 + 0.2 * cond["known"])


@pytest.mark.parametrize("name", ["ddpm", "unipc +langevin"])
def test_conditions_are_split_with_the_batch(name):
    """Conditions stay with their examples, in another batch and over four devices."""
    table, cond = make(name, timesteps.trailing_timesteps(T, 8)), conditions(64)
    options = {"model": model_of(conditioned), "shape": (2,), "hook": PROJECTION}
    one = np.asarray(run(table, 64, cond=cond, **options)[0])
    part = jax.tree.map(lambda x: x[16:48], cond)
    np.testing.assert_allclose(
        one[16:48], run(table, 32, start=16, cond=part, **options)[0], atol=2e-6
    )
    turned = jax.tree.map(lambda x: x[::-1], cond)
    other = np.asarray(run(table, 64, cond=turned, **options)[0])
    assert (abs(other - one) > 1e-4).any(axis=1).all()
    rows = rows_of(4)
    whole = rows.update(spec=jax.sharding.PartitionSpec())
    sharded = jax.jit(
        lambda key, i, cond: chain.sample_chain(
            options["model"],
            None,
            table,
            chain.Samples(key, i),
            (2,),
            cond,
            chain.ChainOptions(PROJECTION),
        )[0],
        in_shardings=(whole, rows, rows),
        out_shardings=rows,
    )(jax.random.key(0), jnp.arange(64), cond)
    assert len(sharded.sharding.device_set) == 4
    np.testing.assert_allclose(one, sharded, atol=2e-6)


# Noise, frames, memory, compilation


def rows_of(num_devices):
    """The sharding of a batch over this many devices."""
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((num_devices,), ("data",), axis_types=auto)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


@pytest.mark.parametrize("name", ["ddpm", "unipc +langevin"])
def test_noise_depends_on_seed_index_and_row_alone(name):
    """Noise in another batch, at another place in it, and on another number of devices.

    The initial noise has the same bits; the end differs by the rounding of another shape.
    """
    table = make(name, timesteps.trailing_timesteps(T, 8))
    one, start = (np.asarray(x) for x in run(table, 64, frames=(0,)))
    part, part_start = run(table, 32, start=16, frames=(0,))
    np.testing.assert_array_equal(start[:, 16:48], part_start)
    np.testing.assert_allclose(one[16:48], part, atol=2e-6)
    rows = rows_of(4)
    sharded = jax.jit(
        lambda key, i: chain.sample_chain(
            GAUSSIAN, None, table, chain.Samples(key, i), (1,), options=NO_HOOK
        )[0],
        in_shardings=(None, rows),
        out_shardings=rows,
    )(jax.random.key(0), jnp.arange(64))
    assert len(sharded.sharding.device_set) == 4
    np.testing.assert_allclose(one, sharded, atol=2e-6)
    assert len(np.unique(one)) == 64


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_without_noise_the_key_is_ignored_after_the_start(name):
    """The end is a function of the first frame: the affine map of the exact recursion."""
    table = make(name, timesteps.trailing_timesteps(T, 30))
    samples, frames = run(table, 16, frames=(0,))
    mean, variance = gaussian_moments(table, MEAN, STD)
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
    for answer in (lambda x, t, c: x[:1], lambda x, t, c: jnp.concatenate([x, x], -1)):
        with pytest.raises(ValueError, match="output has the shape"):
            run(make("ddpm", [9, 5]), 2, model=model_of(answer))


@pytest.mark.parametrize("name", ["dpmpp_3m eta=1", "heun"])
def test_padding_changes_no_sample_and_calls_no_network(name):
    """Rows that are not live leave every state as it is, and the frames as well."""
    table = make(name, UNEVEN)
    calls = []

    def counting(x_t, t, cond):
        jax.debug.callback(lambda: calls.append(1))
        return gaussian_eps(x_t, t)

    frames = (0, 3, table.num_rows)
    expected = run(table, 8, frames=frames)
    found = run(table.padded(20), 8, frames=frames, model=model_of(counting))
    jax.effects_barrier()
    assert len(calls) == table.num_rows
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", ["unipc", "ddpm", "heun churn=20 +langevin"])
def test_a_chain_in_stretches_is_the_whole_chain(name):
    """`start_chain` and `run_rows`: any division of the rows gives the same samples.

    The chain has conditions and a hook, and the last stretch is padded.
    """
    table, samples, cond = make(name, UNEVEN), samples_of(range(8)), conditions(8)
    frames, model = (2, table.num_rows), model_of(conditioned)
    options = {"hook": PROJECTION, "frames": frames}
    whole, kept = run(table, 8, model=model, shape=(2,), cond=cond, **options)
    rows = chain.chain_rows(table.padded(table.num_rows + 2), frames)
    state = chain.start_chain(table, samples, (2,), chain.ChainOptions(**options))
    advance = jax.jit(
        lambda state, stretch, samples, cond: chain.run_rows(
            model, None, state, stretch, samples, cond, chain.ChainOptions(**options)
        )
    )
    for part in (slice(0, 3), slice(3, 6), slice(6, None)):
        stretch = jax.tree.map(lambda column, part=part: column[part], rows)
        state = advance(state, stretch, samples, cond)
    np.testing.assert_allclose(state.x, whole, atol=1e-5)
    np.testing.assert_allclose(state.frames, kept, atol=1e-5)
    without = run(table, 8, shape=(2,), **{"frames": frames})[0]
    assert np.abs(np.asarray(without) - np.asarray(whole)).max() > 0.01


def test_one_compilation_for_any_method_steps_spacing_or_eta():
    """Tables of one length, history and batch share a program: they are an argument."""

    @jax.jit
    @chex.assert_max_traces(n=1)
    def sample(table, key):
        samples = chain.Samples(key, jnp.arange(4))
        return chain.sample_chain(GAUSSIAN, None, table, samples, (1,), options=NO_HOOK)[0]

    found = []
    for name in (
        "ddim",
        "ddim eta=0.5",
        "ddpm",
        "ddpm variance=fixed_large",
        "euler churn=9",
    ):
        for times in (UNEVEN, timesteps.karras_timesteps(SCHEDULE, 7)):
            found.append(np.asarray(sample(make(name, times), jax.random.key(1))))
    assert len(np.unique(found, axis=0)) == len(found)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def multistep(table, key):
        samples = chain.Samples(key, jnp.arange(4))
        return chain.sample_chain(GAUSSIAN, None, table, samples, (1,), options=NO_HOOK)[0]

    for name in ("dpmpp_2m", "dpmpp_2m eta=0.3", "dpmpp_2m eta=1"):
        multistep(make(name, UNEVEN), jax.random.key(1))


def test_the_state_holds_only_what_a_method_needs():
    for name in ALL:
        table = make(name, UNEVEN)
        state = chain.start_chain(table, samples_of(range(2)), (3,))
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
    options = chain.ChainOptions(
        progress_every=10, on_progress=lambda done: seen.append(int(done))
    )
    jax.block_until_ready(
        chain.sample_chain(
            GAUSSIAN, None, table, samples_of(range(4)), (1,), options=options
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
                GAUSSIAN, None, table, samples_of(i), (64,)
            )[0]
        ).lower(table, jnp.arange(64))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(1000) == temporaries(10)
