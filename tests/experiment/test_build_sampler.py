"""Timesteps, tables and the compiled chain, from a config or flags."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import (
    Config,
    DataConfig,
    MLPConfig,
    ProcessConfig,
    SamplingConfig,
)
from diffusion_jax.diffusion.guidance import Projection
from diffusion_jax.diffusion.model import Model
from diffusion_jax.experiment import build, build_sampler, validation
from diffusion_jax.runtime import devices
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.samplers import chain, methods, timesteps


def process_config(**fields):
    return ProcessConfig(num_timesteps=50, beta_start=1e-3, beta_end=0.3, **fields)


MODEL = build.without_network(process_config())
SCHEDULE = MODEL.process


def points_config(**fields):
    return Config(
        data=DataConfig(source="mine", image_size=(), channels=2),
        model=MLPConfig(),
        process=process_config(),
        sampling=SamplingConfig(**{"steps": 7, **fields}),
    )


def model_of(config, network):
    """The model of a config, with another network."""
    return dataclasses.replace(build.without_network(config.process), apply_fn=network)


def four_samples(config, network):
    """Four samples of a network without parameters, by the table of the config."""
    model = model_of(config, network)
    table = build_sampler.make_table(model, config.sampling)
    sampler = build_sampler.make_sampler(config, model, devices.make_mesh())
    samples = chain.Samples(jax.random.key(0), np.arange(4, dtype=np.int32))
    return np.asarray(sampler({}, table, samples, {})[0])


def same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


# Tables


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize(
    ("fields", "make", "options"),
    [
        ({"sampler": "ddim", "eta": 0.3}, methods.ddim_table, {"eta": 0.3}),
        ({"sampler": "ddpm"}, methods.ddpm_table, {}),
        (
            {"sampler": "ddpm", "variance": "learned"},
            methods.ddpm_table,
            {"variance": "learned"},
        ),
        ({"sampler": "dpmpp_2m", "eta": 1.0}, methods.dpmpp_2m_table, {"eta": 1.0}),
        ({"sampler": "dpmpp_3m", "eta": 0.2}, methods.dpmpp_3m_table, {"eta": 0.2}),
        ({"sampler": "unipc", "eta": 0.2}, methods.unipc_table, {}),
        ({"sampler": "euler", "churn": 3.0}, methods.euler_table, {"churn": 3.0}),
        ({"sampler": "heun", "churn": 3.0}, methods.heun_table, {"churn": 3.0}),
        ({"sampler": "langevin"}, methods.langevin_table, {}),
        (
            {"sampler": "langevin", "langevin_steps": 3, "langevin_step_size": 0.1},
            methods.langevin_table,
            {"steps_per_level": 3, "step_size": 0.1},
        ),
    ],
)
def test_the_config_decides_the_table(prediction, fields, make, options):
    variance = fields.get("variance", "fixed_small")
    model = Model(SCHEDULE, prediction, variance)
    config = SamplingConfig(steps=7, spacing="linspace", **fields)
    found = build_sampler.make_table(model, config)
    assert found.is_learned == (variance == "learned")
    same(found, make(model, timesteps.linspace_timesteps(50, 7), **options))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_the_variance_of_the_process_is_that_of_ddpm_unless_told_else(variance):
    model = build.without_network(process_config(variance=variance))
    chosen = timesteps.trailing_timesteps(50, 20)
    found = build_sampler.make_table(model, SamplingConfig(steps=20))
    same(found, methods.ddpm_table(model, chosen, variance=variance))
    for told in ("fixed_small", "fixed_large"):
        config = SamplingConfig(steps=20, variance=told)
        found = build_sampler.make_table(model, config)
        same(found, methods.ddpm_table(model, chosen, variance=told))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_a_variance_that_the_network_has_not_learned_is_refused(variance):
    model = build.without_network(process_config(variance=variance))
    config = SamplingConfig(steps=20, variance="learned")
    with pytest.raises(BadRequest, match="needs a network that has learned it"):
        build_sampler.make_table(model, config)


def test_langevin_steps_correct_any_other_sampler():
    config = SamplingConfig(
        sampler="unipc", steps=7, langevin_steps=2, langevin_step_size=0.2
    )
    plain = methods.unipc_table(MODEL, timesteps.trailing_timesteps(50, 7))
    expected = methods.with_langevin(plain, step_size=0.2, num_steps=2)
    same(build_sampler.make_table(MODEL, config), expected)


def test_the_fields_of_guidance_decide_columns_of_the_table():
    plain = methods.ddim_table(MODEL, timesteps.trailing_timesteps(50, 7))
    usual = {"sampler": "ddim", "steps": 7, "guidance": 0.5}
    config = SamplingConfig(**usual, guidance_interval=(0.3, 5.0))
    same(build_sampler.make_table(MODEL, config), methods.with_interval(plain, 0.3, 5.0))
    config = SamplingConfig(**usual, cfg_plus_plus=True)
    same(build_sampler.make_table(MODEL, config), methods.with_base_noise(plain))
    config = SamplingConfig(sampler="heun", steps=7, guidance=0.5, cfg_plus_plus=True)
    with pytest.raises(BadRequest, match="--cfg_plus_plus with sampler heun: CFG"):
        build_sampler.make_table(MODEL, config)


def test_the_fields_of_guidance_decide_how_predictions_are_combined():
    found = build_sampler.guidance_options
    assert found(SamplingConfig()) == {
        "rescale": 0.0,
        "projection": None,
        "renoises_with_base": False,
        "is_limited": False,
    }
    config = SamplingConfig(
        guidance_rescale=0.7, apg_momentum=-0.5, guidance_interval=(0.3, 5.0)
    )
    options = found(config)
    assert (options["rescale"], options["is_limited"]) == (0.7, True)
    assert options["projection"] == Projection(1.0, -0.5, np.inf)
    options = found(SamplingConfig(apg_parallel=0.0, apg_max_norm=3.0, cfg_plus_plus=True))
    assert options["projection"] == Projection(0.0, 0.0, 3.0)
    assert options["renoises_with_base"]


def test_a_base_is_needed_except_at_the_ends():
    for fields, needs in (
        ({"guidance": 0.0}, False),
        ({"guidance": 1.0}, False),
        ({"guidance": 0.5}, True),
        ({"guidance": 2.0}, True),
        ({"guidance": 1.0, "cfg_plus_plus": True}, True),
        ({"guidance": 0.0, "cfg_plus_plus": True}, False),
        ({"guidance": 0.0, "guidance_interval": (0.3, 5.0)}, True),
    ):
        assert build_sampler.needs_base(SamplingConfig(**fields)) == needs


def test_a_list_of_timesteps_counts_with_its_own_length():
    """A list of two timesteps makes 10,001 calls at each of two, not of a thousand."""
    config = points_config(timesteps=(999.0, 5.0), langevin_steps=10_000)
    config.process = ProcessConfig(num_timesteps=1000)
    validation.check(config)
    config.sampling.timesteps = tuple(map(float, range(999, -1, -1)))
    with pytest.raises(BadRequest, match="1,000 steps makes 10,001,000 calls"):
        validation.check(config)


@pytest.mark.parametrize("spacing", timesteps.SPACINGS)
def test_the_spacing_or_the_list_of_a_config_decides_the_timesteps(spacing):
    config = SamplingConfig(steps=7, spacing=spacing)
    expected = timesteps.spaced_timesteps(spacing, SCHEDULE, 7)
    np.testing.assert_array_equal(build_sampler.make_timesteps(SCHEDULE, config), expected)
    config.timesteps = (49.0, 20.5, 3)
    assert build_sampler.make_timesteps(SCHEDULE, config).tolist() == [49, 20.5, 3]


def test_odd_choices_are_warned_of_with_their_numbers():
    for fields, process, said in (
        ({"spacing": "uniform", "steps": 5}, {}, "timestep 800 of 999, .* 3.88 %"),
        ({"timesteps": (500.0, 3.0)}, {}, "timestep 500 of 999, .* 27.9 %"),
        ({"threshold": "none"}, {"schedule": "cosine"}, "amplified 20,291 times"),
        ({"variance": "fixed_large", "steps": 10}, {}, "with 10 steps of 1000"),
        ({"steps": 1}, {}, "from timestep 999, .* 0.635 %"),
    ):
        model = build.without_network(ProcessConfig(**process))
        with pytest.warns(UserWarning, match=said):
            build_sampler.make_table(model, SamplingConfig(**fields))
    model = build.without_network(ProcessConfig())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fields in ({}, {"steps": 10}, {"spacing": "karras", "steps": 2}):
            build_sampler.make_table(model, SamplingConfig(**fields))


def test_euler_and_heun_are_spaced_as_edm_does_and_the_others_evenly():
    for name in methods.METHODS:
        config = SamplingConfig(sampler=name, steps=7)
        edm = name in ("euler", "heun")
        make = timesteps.karras_timesteps if edm else timesteps.spaced_timesteps
        expected = make(SCHEDULE, 7) if edm else make("trailing", SCHEDULE, 7)
        np.testing.assert_array_equal(
            build_sampler.make_timesteps(SCHEDULE, config), expected
        )


def test_the_percentile_of_the_config_is_that_of_the_threshold():
    def ramp(params, x_t, t, cond, *, train, key):
        return 2 * jnp.linspace(-1, 1, x_t.size).reshape(x_t.shape)

    for percentile in (0.5, 1.0):
        fields = SamplingConfig(steps=1, threshold="dynamic", dynamic_percentile=percentile)
        config = Config(process=ProcessConfig(prediction="x0"), sampling=fields)
        clipped = (np.abs(four_samples(config, ramp)[0]) > 0.999).mean()
        assert (clipped > 0.4) == (percentile == 0.5)


# Flags


def test_flags_change_the_sampling_of_a_run():
    config = points_config()
    build_sampler.change(config, {"sampler": "heun", "churn": 2.0, "spacing": "karras"})
    assert config.sampling == SamplingConfig(
        sampler="heun", steps=7, churn=2.0, spacing="karras"
    )
    build_sampler.change(config, {"timesteps": ["49", "20.5", "3"]})
    assert (config.sampling.timesteps, config.sampling.steps) == ((49, 20.5, 3), 3)
    build_sampler.change(config, {"steps": 5})
    assert (config.sampling.timesteps, config.sampling.steps) == ((), 5)
    config.sampling.spacing = "linspace"
    build_sampler.change(config, {"sampler": "unipc"})
    assert config.sampling.spacing == ""  # The usual spacing of the new sampler.
    build_sampler.change(config, {"spacing": "linspace"})
    build_sampler.change(config, {"sampler": "unipc"})
    assert config.sampling.spacing == "linspace"
    build_sampler.change(config, {"sampler": "langevin", "langevin_step_size": 0.3})
    build_sampler.change(config, {"sampler": "ddim", "eta": 0.5, "langevin_steps": 1})
    assert config.sampling.eta == 0.5


BAD = [
    ({"sampler": "dimm"}, "--sampler .'dimm'. is unknown; did you mean ddim"),
    ({"spacing": "karas"}, "--spacing .'karas'. is unknown; did you mean karras"),
    ({"steps": 51}, r"--steps \(51\) must be at most process.num_timesteps \(50\)"),
    ({"steps": 0}, r"--steps \(0\) must be in 1 .."),
    ({"sampler": "ddim", "eta": 1.5}, r"--eta \(1.5\) must be in 0 .. 1"),
    ({"sampler": "ddpm", "eta": 0.5}, "--eta .0.5. is not for sampler ddpm, but for ddim"),
    ({"sampler": "heun", "churn": -1.0}, r"--churn \(-1.0\) must be in 0"),
    ({"sampler": "ddim", "churn": 1.0}, "but for euler, heun"),
    ({"sampler": "ddim", "variance": "fixed_small"}, "but for ddpm"),
    ({"variance": "learned"}, "--variance .'learned'. needs a network that has learned it"),
    ({"langevin_steps": -1}, "--langevin_steps"),
    ({"langevin_step_size": 0.1}, "--langevin_step_size needs --langevin_steps"),
    ({"langevin_steps": 1, "langevin_step_size": 2.0}, "--langevin_step_size .2.0."),
    ({"threshold": "dynamc"}, "did you mean dynamic"),
    ({"threshold": "static"}, "--threshold is for images"),
    ({"timesteps": ["3", "9"]}, "--timesteps: timesteps must fall .* 3 is followed by 9"),
    ({"timesteps": ["nan"]}, "--timesteps"),
    (
        {"sampler": "heun", "spacing": "ddim_quadratic"},
        "--spacing .'ddim_quadratic'. repeats",
    ),
    ({"timesteps": ["5", "x"]}, "--timesteps must be numbers"),
    ({"timesteps": []}, "empty"),
    ({"timesteps": ["5"], "steps": 3}, "--steps and --timesteps: give one"),
    ({"guidance": -1.0}, r"--guidance \(-1.0\) must be in 0 .. 1000"),
    ({"guidance_rescale": 0.5}, "--guidance_rescale needs another --guidance than 1"),
    ({"guidance": 0.0, "apg_parallel": 0.0}, "--apg_parallel needs another --guidance"),
    ({"guidance": 2.0, "apg_momentum": 1.0}, "--apg_momentum .1.0. must be"),
    ({"guidance_interval": ["0.3", "x"]}, "--guidance_interval 0.3,x must be two numbers"),
    ({"guidance": 2.0, "guidance_interval": ["3"]}, "must be two numbers, such as 0.3,5"),
    ({"guidance": 2.0, "guidance_interval": ["5", "0.3"]}, "must be two numbers that rise"),
    ({"guidance_interval": ["0.3", "5"]}, "--guidance_interval needs another --guidance"),
    ({"guidance": 2.0, "cfg_plus_plus": True}, "is lambda with --cfg_plus_plus"),
    (
        {"guidance": 0.5, "cfg_plus_plus": True, "guidance_interval": ["0.3", "5"]},
        "--guidance_interval and --cfg_plus_plus: give one of them",
    ),
    ({"guidance": 0.5, "cfg_plus_plus": True, "langevin_steps": 1}, "not for Langevin"),
    ({"guidance": 0.5, "cfg_plus_plus": True, "sampler": "langevin"}, "not for Langevin"),
]


@pytest.mark.parametrize(("given", "said"), BAD, ids=[str(g) for g, _ in BAD])
def test_flags_that_cannot_be_are_refused_by_their_names(given, said):
    with pytest.raises(BadRequest, match=said):
        build_sampler.change(points_config(), given)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ((3.0, 9.0), "3 is followed by 9"),
        ((3.0, 3.0), "strictly"),
        ((50.0,), "0 .. 49"),
    ],
)
def test_a_list_that_does_not_fall_in_range_is_refused(times, said):
    with pytest.raises(BadRequest, match=said):
        build_sampler.make_table(MODEL, SamplingConfig(timesteps=times))


def test_names_say_what_is_not_as_usual():
    for fields, name in (
        ({}, "ddpm_1000"),
        ({"sampler": "ddim", "steps": 50, "eta": 0.5}, "ddim_50_eta0.5"),
        ({"sampler": "ddpm", "eta": 0.5}, "ddpm_1000"),
        ({"sampler": "heun", "steps": 9, "spacing": "karras", "churn": 4.0}, None),
        ({"timesteps": (9.0, 3.0), "spacing": "karras"}, "ddpm_2_list"),
        (
            {"guidance": 2.0, "guidance_interval": (0.3, 5.0), "apg_parallel": 0.0},
            "ddpm_1000_guidance2_interval0.3-5_parallel0",
        ),
        ({"guidance": 0.5, "cfg_plus_plus": True}, "ddpm_1000_guidance0.5_cfgpp"),
        ({"variance": "learned", "threshold": "dynamic"}, "ddpm_1000_learned_dynamic"),
        ({"langevin_steps": 2}, "ddpm_1000_langevin2"),
        ({"langevin_steps": 2, "langevin_step_size": 0.1}, "ddpm_1000_langevin2x0.1"),
    ):
        found = build_sampler.short_name(SamplingConfig(**fields))
        assert found == (name or "heun_9_karras_churn4")


# The compiled chain


def test_points_are_not_clipped_images_are():
    def far(params, x_t, t, cond, *, train, key):
        return jnp.full_like(x_t, 5.0) + jnp.arange(x_t.size).reshape(x_t.shape) * 1e-3

    points = DataConfig(image_size=(), channels=2)
    for data, threshold, low, high in (
        (points, "static", 5.0, 5.1),
        (DataConfig(), "static", 1.0, 1.0),
        (DataConfig(), "dynamic", 0.98, 1.0),
        (DataConfig(), "none", 5.0, 5.3),
    ):
        config = Config(
            data=data,
            process=ProcessConfig(prediction="x0"),
            sampling=SamplingConfig(steps=4, threshold=threshold),
        )
        samples = four_samples(config, far)
        assert low - 1e-5 <= np.min(samples) and np.max(samples) <= high + 1e-5
        assert (np.ptp(samples) > 0) == (threshold != "static" or data is points)


def network(params, x_t, t, cond, *, train, key):
    return params * x_t * (1 + t[:, None] / 50)


@pytest.mark.parametrize("callbacks_are_cached", [True, False])
@pytest.mark.parametrize("count", [1, 9, 10, 37])
def test_progress_changes_no_sample_whichever_way_it_is_told(
    monkeypatch, callbacks_are_cached, count
):
    """Progress from inside the program, or between segments, the last of them padded."""
    monkeypatch.setattr(build_sampler, "_CALLBACKS_ARE_CACHED", callbacks_are_cached)
    config = points_config(steps=count, sampler="unipc")
    model = model_of(config, network)
    table = build_sampler.make_table(model, config.sampling)
    samples = chain.Samples(jax.random.key(0), np.arange(8))
    arguments = jnp.float32(0.3), table, samples, {}
    options = build_sampler.chain_options(config, (0, count))
    mesh, seen = devices.make_mesh(), []
    plain = build_sampler.make_sampler(config, model, mesh, options)(*arguments)
    told = build_sampler.make_sampler(
        config, model, mesh, options, on_progress=lambda n: seen.append(int(n))
    )
    for _ in range(2):
        found = jax.block_until_ready(told(*arguments))
        jax.effects_barrier()
        for a, b in zip(found, plain, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
            assert len(a.sharding.device_set) == 4
    rows = set(range(1, count + 1))
    assert set(seen) == rows if callbacks_are_cached else True
    assert set(seen) <= rows and (
        callbacks_are_cached or set(seen) == set(range(5, count, 5))
    )


def test_timesteps_chosen_by_the_likelihood_may_start_early():
    """Only a list that the user gives is warned about, if it starts as early."""
    config = points_config(steps=4)
    config.sampling.timesteps = (15.0, 8.0, 3.0, 0.0)
    model = build.without_network(config.process)
    with pytest.warns(UserWarning, match="starts from pure noise at timestep 15"):
        build_sampler.make_table(model, config.sampling)
    config.sampling.spacing = "auto"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_sampler.make_table(model, config.sampling)
