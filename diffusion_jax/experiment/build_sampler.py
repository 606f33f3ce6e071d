"""The sampler that a config describes: timesteps, table, and the compiled chain."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from diffusion_jax.config import Config, SamplingConfig
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.diffusion.guidance import Projection
from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.schedules import (
    MAX_TERMINAL_SIGNAL,
    Schedule,
    alphas_cumprod_at,
)
from diffusion_jax.experiment import validation
from diffusion_jax.runtime import cpu, devices
from diffusion_jax.runtime.checks import values_refused
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.fields import leaves_of
from diffusion_jax.samplers import chain, methods
from diffusion_jax.samplers.table import SamplerTable
from diffusion_jax.samplers.thresholding import Hook, dynamic_threshold, static_threshold
from diffusion_jax.samplers.timesteps import AUTO, check_timesteps, spaced_timesteps

# Older versions of jax never store a program with a host callback in the compilation cache.
_CALLBACKS_ARE_CACHED = jax.__version_info__ >= (0, 12)
_MIN_LAST_SIGNAL = 0.1  # alphas_cumprod of the last timestep.
_SEGMENTS = 100  # Dispatches of a chain whose progress is told between them.
_SEGMENT_ROWS = 5  # Fewest rows of such a dispatch.

# Fields of a SamplingConfig that only some samplers have, and those samplers.
_SAMPLERS = {
    leaf.path: leaf.about.only_with["sampling.sampler"]
    for leaf in leaves_of(SamplingConfig())
    if leaf.about.only_with and list(leaf.about.only_with) == ["sampling.sampler"]
}
Sampler = Callable[
    [Any, SamplerTable, chain.Samples, Mapping[str, Any]],
    tuple[jax.Array, jax.Array],
]


def change(config: Config, given: dict[str, Any]) -> None:
    """Put the flags of a command line into config.sampling, and check the whole.

    Args:
      config: of a run; it is changed.
      given: values by their field of SamplingConfig; timesteps also as strings.

    Raises:
      BadRequest: naming the field as a flag.
    """
    sampling = config.sampling
    if given.get("sampler", sampling.sampler) != sampling.sampler:
        sampling.spacing = ""  # The run's spacing was chosen for another sampler.
    if "guidance_interval" in given:
        given = {**given, "guidance_interval": _interval(given["guidance_interval"])}
    if "timesteps" in given:
        for other in {"steps", "spacing"} & given.keys():
            raise BadRequest(f"--{other} and --timesteps: give one of them")
        try:
            times = tuple(float(t) for t in given["timesteps"])
        except ValueError as error:
            raise BadRequest(
                f"--timesteps must be numbers, such as 999,500,20: {error}"
            ) from error
        if not all(map(math.isfinite, times)):
            raise BadRequest(f"--timesteps must be finite: {', '.join(map(str, times))}")
        if not times:
            raise BadRequest("--timesteps is an empty list")
        given = {**given, "timesteps": times, "steps": len(times)}
    elif {"steps", "spacing"} & given.keys():
        given = {**given, "timesteps": ()}
    for field, value in given.items():
        setattr(sampling, field, value)
    try:
        validation.check(config)
        for field, names in _SAMPLERS.items():
            if field in given and sampling.sampler not in names:
                raise BadRequest(
                    f"sampling.{field} ({given[field]}) is not for sampler "
                    f"{sampling.sampler}, but for {', '.join(names)}"
                )
        _check_fits(config, given)
        if "dynamic_percentile" in given and sampling.threshold != "dynamic":
            raise BadRequest("sampling.dynamic_percentile needs --threshold dynamic")
        if "langevin_step_size" in given and not sampling.langevin_steps:
            if sampling.sampler != "langevin":
                raise BadRequest("sampling.langevin_step_size needs --langevin_steps")
        _check_guidance(sampling, given)
    except BadRequest as error:
        raise BadRequest(str(error).replace("sampling.", "--")) from error


def _check_fits(config: Config, given: Mapping[str, Any]) -> None:
    """Refuse fields that are not for the examples of the run."""
    kind = kind_of(config.data)
    for field in {"threshold", "dynamic_percentile"} & given.keys():
        if not kind.is_bounded:
            raise BadRequest(f"sampling.{field} is for images, and these are {kind.name}")
    if "aug_level" in given and not config.data.low_res:
        raise BadRequest(
            f"sampling.aug_level ({given['aug_level']:g}) is for runs that refine images, "
            "and this one was trained without data.low_res; leave it out"
        )


_OF_GUIDANCE = {
    "guidance_interval": "interval",
    "guidance_rescale": "rescale",
    "apg_parallel": "parallel",
    "apg_momentum": "momentum",
    "apg_max_norm": "norm",
    "cfg_plus_plus": "cfgpp",
}  # Fields that say how guidance is done, and their short names.


def _interval(texts: Sequence[Any]) -> tuple[float, ...]:
    try:
        low, high = map(float, texts)
    except ValueError as error:
        raise BadRequest(
            f"--guidance_interval {','.join(map(str, texts))} must be two numbers, such "
            "as 0.3,5"
        ) from error
    return low, high


def _check_guidance(sampling: SamplingConfig, given: Collection[str]) -> None:
    """Check what the fields of guidance need of each other."""
    usual = SamplingConfig()
    if not needs_base(sampling):
        for field in _OF_GUIDANCE:
            if field in given and getattr(sampling, field) != getattr(usual, field):
                raise BadRequest(
                    f"sampling.{field} needs another sampling.guidance than "
                    f"{sampling.guidance:g}, such as 2"
                )
    if not sampling.cfg_plus_plus:
        return
    if sampling.guidance > 1:
        raise BadRequest(
            f"sampling.guidance ({sampling.guidance:g}) is lambda with "
            "sampling.cfg_plus_plus, which must be in 0 .. 1"
        )
    if sampling.guidance_interval:
        raise BadRequest(
            "sampling.guidance_interval and sampling.cfg_plus_plus: give one of them"
        )
    if sampling.sampler == "langevin" or sampling.langevin_steps:
        raise BadRequest(
            "sampling.cfg_plus_plus is not for Langevin steps, after which the noise in x "
            "is not that which was predicted"
        )


def _guidance_name(sampling: SamplingConfig) -> list[str]:
    """Return parts of a name for files: what of the guidance is not as usual."""
    parts = [] if sampling.guidance == 1 else [f"guidance{sampling.guidance:g}"]
    usual = SamplingConfig()
    for field, short in _OF_GUIDANCE.items():
        value = getattr(sampling, field)
        if value == getattr(usual, field):
            continue
        if isinstance(value, bool):
            parts.append(short)
        else:
            values = value if isinstance(value, tuple) else (value,)
            parts.append(short + "-".join(f"{v:g}" for v in values))
    return parts


def short_name(sampling: SamplingConfig) -> str:
    """Return a name for files: the sampler, S, and what is not as usual."""
    parts = [sampling.sampler, str(len(sampling.timesteps) or sampling.steps)]
    if sampling.timesteps:
        parts.append("list")
    elif sampling.spacing:
        parts.append(sampling.spacing)
    for field, names in _SAMPLERS.items():
        value = getattr(sampling, field)
        if value and sampling.sampler in names:
            parts.append(value if isinstance(value, str) else f"{field}{value:g}")
    size = f"x{sampling.langevin_step_size:g}"
    usual = sampling.langevin_step_size == SamplingConfig().langevin_step_size
    if sampling.langevin_steps or sampling.sampler == "langevin" and not usual:
        steps = sampling.langevin_steps or ""
        parts.append(f"langevin{steps}{'' if usual else size}")
    if sampling.threshold != "static":
        parts.append(sampling.threshold)
    if sampling.aug_level != SamplingConfig().aug_level:
        parts.append(f"aug{sampling.aug_level:g}")
    return "_".join(parts + _guidance_name(sampling))


def before_choice(sampling: SamplingConfig) -> SamplingConfig:
    """Return the config, with other timesteps for spacing "auto" until those are chosen."""
    if sampling.spacing != AUTO:
        return sampling
    return dataclasses.replace(sampling, spacing="trailing")


def make_timesteps(schedule: Schedule, sampling: SamplingConfig) -> np.ndarray:
    """The timesteps of a config; float64 [S].

    Raises:
      BadRequest: for more steps than T, a list that does not fall, or an unknown name.
    """
    with values_refused():
        if sampling.timesteps:
            return check_timesteps(sampling.timesteps, schedule.num_timesteps)
        usual = methods.SPACINGS_OF.get(sampling.sampler, "trailing")
        spacing = sampling.spacing or usual
        return spaced_timesteps(spacing, schedule, sampling.steps)


def make_table(
    model: Model, sampling: SamplingConfig, *, from_noise: bool = True
) -> SamplerTable:
    """Return the sampler's table of a config.

    Args:
      model: of the run.
      sampling: the config.
      from_noise: whether the chain starts from pure noise; if so, an early start is
        warned of.

    Raises:
      BadRequest: for timesteps, eta, churn or a Langevin step out of range, a method that
        cannot start from them, or an unknown name.
    """
    timesteps = make_timesteps(model.process, sampling)
    _warn_of_odd_choices(model, sampling, timesteps, from_noise)
    name, langevin_steps = sampling.sampler, sampling.langevin_steps
    options: dict[str, Any] = {}
    for field, names in _SAMPLERS.items():
        if name in names:
            options[field] = getattr(sampling, field)
    if name == "ddpm" and not sampling.variance:
        options["variance"] = model.variance
    if name == "langevin":
        options["step_size"] = sampling.langevin_step_size
        options["steps_per_level"] = max(1, langevin_steps)
    with values_refused():
        table = methods.METHODS[name](model, timesteps, **options)
        if name != "langevin" and langevin_steps:
            table = methods.with_langevin(
                table, step_size=sampling.langevin_step_size, num_steps=langevin_steps
            )
        table = _with_interval(table, sampling)
        if sampling.cfg_plus_plus:
            try:
                table = methods.with_base_noise(table)
            except ValueError as error:
                raise BadRequest(f"--cfg_plus_plus with sampler {name}: {error}") from error
    return table


def _with_interval(table: SamplerTable, sampling: SamplingConfig) -> SamplerTable:
    if not sampling.guidance_interval:
        return table
    table = methods.with_interval(table, *sampling.guidance_interval)
    if not table.is_guided.any():
        warnings.warn(
            f"no step lies in guidance_interval {sampling.guidance_interval}, so that none "
            "is guided",
            stacklevel=3,
        )
    return table


def make_encoding_table(model: Model, sampling: SamplingConfig) -> SamplerTable:
    """Return the table of a config's chain backwards, from x_0 to its first timestep.

    Raises:
      BadRequest: for a sampler that adds noise, CFG++, or timesteps out of range.
    """
    if sampling.cfg_plus_plus:
        raise BadRequest("--cfg_plus_plus has no chain backwards; leave it out")
    timesteps = make_timesteps(model.process, sampling)
    with values_refused():
        table = methods.encoding_table(model, sampling.sampler, timesteps)
        table = _with_interval(table, sampling)
    return table


def chain_options(config: Config, frames: Sequence[int] = ()) -> chain.ChainOptions:
    """Return the options of a config's chain: its threshold, and which states to keep."""
    return chain.ChainOptions(_x0_hook(config), tuple(frames))


def needs_base(sampling: SamplingConfig) -> bool:
    """Return whether its guidance takes two predictions: 0 and 1 are one of them alone."""
    if sampling.guidance == 0:
        return bool(sampling.guidance_interval)
    return sampling.guidance != 1 or sampling.cfg_plus_plus


def guidance_options(sampling: SamplingConfig) -> dict[str, Any]:
    """Return the options of `guidance.Guidance` that a config gives."""
    projection = Projection(
        sampling.apg_parallel, sampling.apg_momentum, sampling.apg_max_norm or math.inf
    )
    return {
        "rescale": sampling.guidance_rescale,
        "projection": None if projection == Projection() else projection,
        "renoises_with_base": sampling.cfg_plus_plus,
        "is_limited": bool(sampling.guidance_interval),
    }


def make_sampler(
    config: Config,
    model: Model,
    mesh: jax.sharding.Mesh,
    options: chain.ChainOptions | None = None,
    *,
    on_progress: Callable[[Any], None] | None = None,
    in_segments: bool = False,
) -> Sampler:
    """Return the whole chain as one compiled program, its batch split over the mesh.

    With `on_progress`, and a jax that does not store programs with callbacks in its
    compilation cache, the chain is instead dispatched as segments of one compiled program.

    Args:
      config: of the run.
      model: of the run.
      mesh: the devices.
      options: of the chain, without its progress; those of `chain_options` unless given.
      on_progress: called with the rows done, a hundred times per chain.
      in_segments: with `on_progress`, dispatch segments anyway, between which it may raise
        an exception that ends the chain.

    Returns:
      sampler(params, table, samples, cond) -> (samples, frames), compiled at the first
      call with a table of that length and a batch of that size. Inside another `jax.jit`
      call `chain.sample_chain` instead: this is a whole program.
    """
    options = chain_options(config) if options is None else options
    shape = config.data.shape
    if on_progress is not None and (in_segments or not _CALLBACKS_ARE_CACHED):
        return _Segments(model, shape, options, mesh, on_progress)
    whole, rows = devices.replicated(mesh), devices.split_batch(mesh)

    def sampler(params: Any, table: SamplerTable, samples: chain.Samples, cond: Any):
        reported = options._replace(
            progress_every=max(1, table.num_rows // _SEGMENTS), on_progress=on_progress
        )
        return chain.sample_chain(model, params, table, samples, shape, cond, reported)

    return jax.jit(
        sampler,
        in_shardings=(whole, whole, _of_samples(mesh), rows),
        out_shardings=(rows, devices.split_batch(mesh, axis=1)),
        compiler_options=cpu.compiler_options(devices.platform_of(mesh)),
    )


def _of_samples(mesh: jax.sharding.Mesh) -> Any:
    whole, rows = devices.replicated(mesh), devices.split_batch(mesh)
    return chain.Samples(whole, rows, rows)  # type: ignore[arg-type]


class _Segments:
    """A chain as dispatches of one program, between which `on_progress` is told."""

    def __init__(
        self,
        model: Model,
        shape: tuple[int, ...],
        options: chain.ChainOptions,
        mesh: jax.sharding.Mesh,
        on_progress: Callable[[Any], None],
    ):
        self._frames, self._on_progress = options.frames, on_progress
        whole, rows = devices.replicated(mesh), devices.split_batch(mesh)
        kept = devices.split_batch(mesh, axis=1)
        samples = _of_samples(mesh)
        states: Any = chain.ChainState(*(rows,) * 4, kept)  # type: ignore[arg-type]

        def start(table: SamplerTable, samples: chain.Samples):
            return chain.start_chain(table, samples, shape, options)

        def advance(params, state, stretch, samples, cond):
            state = chain.run_rows(model, params, state, stretch, samples, cond, options)
            return state, stretch.done[-1]

        self._start = jax.jit(start, in_shardings=(whole, samples), out_shardings=states)
        self._advance = jax.jit(
            advance,
            in_shardings=(whole, states, whole, samples, rows),
            out_shardings=(states, whole),
            donate_argnums=1,
            compiler_options=cpu.compiler_options(devices.platform_of(mesh)),
        )

    def __call__(
        self,
        params: Any,
        table: SamplerTable,
        samples: chain.Samples,
        cond: Mapping[str, Any],
    ) -> tuple[jax.Array, jax.Array]:
        num_rows = table.num_rows
        size = min(num_rows, max(_SEGMENT_ROWS, -(-num_rows // _SEGMENTS)))
        padded = table.padded(-(-num_rows // size) * size)
        rows = chain.chain_rows(padded, self._frames)
        state = self._start(table, samples)
        running = None
        for first in range(0, num_rows, size):
            here = slice(first, first + size)
            stretch = jax.tree.map(lambda column, here=here: column[here], rows)
            state, done = self._advance(params, state, stretch, samples, cond)
            if running is not None:  # The device has its next segment while the host waits.
                self._on_progress(int(running))
            running = done
        return state.x, state.frames


def _x0_hook(config: Config) -> Hook | None:
    sampling = config.sampling
    if not kind_of(config.data).is_bounded or sampling.threshold == "none":
        return None
    if sampling.threshold == "static":
        return static_threshold
    return functools.partial(dynamic_threshold, percentile=sampling.dynamic_percentile)


def _warn_of_odd_choices(
    model: Model, sampling: SamplingConfig, timesteps: np.ndarray, from_noise: bool
) -> None:
    schedule = model.process
    share = float(alphas_cumprod_at(schedule, timesteps[:1])[0])
    starts_early = timesteps[0] < schedule.num_timesteps - 1
    is_chosen = sampling.spacing == AUTO  # By the likelihood, which weighs that as well.
    if from_noise and share > MAX_TERMINAL_SIGNAL and starts_early and not is_chosen:
        warnings.warn(
            f"sampling starts from pure noise at timestep {timesteps[0]:g} of "
            f"{schedule.num_timesteps - 1}, where training saw {100 * share**0.5:.3g} % of "
            "the signal's amplitude; take spacing trailing, or more steps",
            stacklevel=3,
        )
    end = float(alphas_cumprod_at(schedule, timesteps[-1:])[0])
    if end < _MIN_LAST_SIGNAL:
        warnings.warn(
            f"the last step goes straight to x_0 from timestep {timesteps[-1]:g}, where x "
            f"holds {100 * end**0.5:.3g} % of the signal's amplitude: the samples are "
            "rough guesses; take more steps, or a list that goes down further",
            stacklevel=3,
        )
    if model.prediction == "eps" and sampling.threshold == "none" and share < 1e-6:
        warnings.warn(
            f"without a threshold an error of eps is amplified {share**-0.5:,.0f} times at "
            f"the first timestep ({timesteps[0]:g}); take threshold static, or predict v",
            stacklevel=3,
        )
