"""A smoke run: everything that a config asks for, on a small scale.

The network and the data are the config's own. A first start loads the data, takes two
train steps and saves a checkpoint. A second start resumes from it, evaluates the held-out
loss and bits per dimension, and draws sample grids. Then the other commands are tried,
where they apply. At the end the run prints how long each part took, and how long the whole
run would take on this machine.
"""

import dataclasses
import math
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.config import Config
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.data.sources import DataSet
from diffusion_jax.experiment import build_sampler
from diffusion_jax.experiment.setup import Plan, preview_of, times_due
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runtime import processes
from diffusion_jax.runtime.errors import BadRequest, RunFailed
from diffusion_jax.runtime.progress import duration
from diffusion_jax.runtime.stopwatch import Stopwatch
from diffusion_jax.runtime.text import command, say
from diffusion_jax.samplers.timesteps import AUTO
from diffusion_jax.training import periodic, sample_quality, train
from diffusion_jax.training.previews import SAMPLE_GRID
from diffusion_jax.training.train_state import TrainState
from diffusion_jax.training.trainer import CHECKPOINT, TRAIN_STEP

_FLOP = 5e10  # FLOP of the forward passes in a train step on a CPU: a few seconds.
_FEW_STEPS, _FEW_TIMESTEPS = 4, 2
_FEW_SAMPLES, _FEW_FEATURES = 4, "pca1"  # Of the quality of samples.
_FIRST_STEPS, _MOST_MORE_STEPS = 2, 60
_MORE_SECONDS = 2.0  # Seconds of train steps of the second start.
_DATA = "data"
_SAMPLES = 64  # Samples of which the time is printed.

# try_out(workdir, config, data) -> whether the command applies to such a run.
TryOut = Callable[[pathlib.Path, Config, DataSet], bool]


class _Took(NamedTuple):
    """Seconds of the stages, and of the pieces of the two starts."""

    stages: Stopwatch
    first: Stopwatch
    again: Stopwatch


def default_workdir(config: Config) -> pathlib.Path:
    """Return the folder of a smoke run, which is not among the runs that commands find."""
    return pathlib.Path("runs") / "smoke" / config.name


def run(
    config: Config,
    workdir: pathlib.Path,
    request: train.Request,
    commands: Mapping[str, TryOut],
) -> None:
    """Do the smoke run of a config; an earlier smoke run in the folder is replaced.

    Args:
      config: the experiment.
      workdir: a folder that is new, empty, or that of an earlier smoke run.
      request: other options of the training.
      commands: functions that try a command on the trained run, by the command's name.

    Raises:
      BadRequest: as `train.train`, before anything is compiled or written.
      RunFailed: as `train.train` and the commands.
      KeyboardInterrupt: after Ctrl-C.
    """
    _check_replaceable(config, workdir)
    replaces = run_folder.config_path(workdir).exists()
    request = dataclasses.replace(request, overwrite=replaces)
    took = _Took(Stopwatch(), Stopwatch(), Stopwatch())
    with took.stages.timed(_DATA):
        plan = train.prepare(config, workdir, None, request).plan
    config, data = plan.config, plan.data
    small = _small(plan)
    size, whole = small.data.batch_size, config.data.batch_size
    what = f"batches of {size:,} instead of {whole:,}" if size < whole else "full batches"
    say(f"smoke run in {workdir}: the config's own network, {what}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # The whole config has warned.
        request = dataclasses.replace(request, is_smoke=True)
        with took.stages.timed("first start"):
            state = train.train(small, workdir, data, request, took.first)
        if state.step < small.training.num_steps:
            return  # Stopped by SIGTERM.
        a_step = processes.most(min(took.first.seconds[TRAIN_STEP]))
        small = _longer(small, config, a_step)
        say(f"second start: {small.training.num_steps - _FIRST_STEPS} more train steps")
        request = dataclasses.replace(request, overwrite=False, init_from=None)
        with took.stages.timed("second start"):
            state = train.train(small, workdir, data, request, took.again)
        _check_finished(state, small)
        for name, try_out in commands.items():
            with took.stages.timed(name):
                applies = try_out(workdir, small, data)
            if not applies:
                del took.stages.seconds[name]
                say(f"{name}: left out, as it is not for {kind_of(config.data).name}")
    steps = took.first.seconds[TRAIN_STEP] + took.again.seconds.get(TRAIN_STEP, [])
    took.again.seconds[TRAIN_STEP] = [min(steps)]
    for watch in (took.first, took.again):  # The save, and the wait for what is saved.
        watch.seconds[CHECKPOINT] = [sum(watch.seconds[CHECKPOINT])]
    _say_stages(took, workdir)
    _say_whole_run(plan, small, took)


def _check_finished(state: TrainState, config: Config) -> None:
    if state.step < config.training.num_steps:  # After SIGTERM.
        raise RunFailed("the smoke run was stopped before its end")


def _check_replaceable(config: Config, workdir: pathlib.Path) -> None:
    if not run_folder.config_path(workdir).exists():
        return
    there = run_folder.read_config(workdir)
    is_smoke_run = run_folder.is_smoke_run(there) and (
        there.training.num_steps <= _FIRST_STEPS + _MOST_MORE_STEPS
    )
    if not is_smoke_run:
        raise BadRequest(
            f"--smoke: {workdir} holds a run that is not a smoke run; give another "
            f"--workdir, or leave it out to take {default_workdir(config)}"
        )


def _small(plan: Plan) -> Config:
    """Return the config of the first start: the same network and data, less of the rest."""
    config, size = plan.config, _batch_size(plan, jax.device_count())
    training, sampling = config.training, config.sampling
    return dataclasses.replace(
        config,
        name=config.name + run_folder.SMOKE_SUFFIX,
        data=dataclasses.replace(config.data, batch_size=size),
        optimizer=dataclasses.replace(
            config.optimizer,
            warmup_steps=min(config.optimizer.warmup_steps, 1),
            accumulate=math.gcd(config.optimizer.accumulate, size // jax.device_count()),
        ),
        ema=dataclasses.replace(config.ema, snapshots=min(config.ema.snapshots, 1)),
        training=dataclasses.replace(
            training,
            num_steps=_FIRST_STEPS,
            steps_per_dispatch=0,  # The steps that are timed to choose it are reported.
            num_held_out=min(training.num_held_out, size),
            likelihood_timesteps=min(training.likelihood_timesteps, _FEW_TIMESTEPS),
            num_samples=min(training.num_samples, size),
            sample_steps=min(training.sample_steps, _FEW_STEPS),
            quality_samples=_FEW_SAMPLES,
            quality_features=_FEW_FEATURES,
            checkpoint_every=0,  # At the end of a start there is one anyway.
            best_by="held_out_loss",
            **_intervals(config, 0),
        ),
        sampling=dataclasses.replace(
            sampling,
            steps=min(sampling.steps, _FEW_STEPS),
            timesteps=_few_of(sampling.timesteps),
            spacing="" if sampling.spacing == AUTO else sampling.spacing,
            batch_size=min(sampling.batch_size, size),
        ),
    )


def _batch_size(plan: Plan, num_devices: int) -> int:
    """Return the batch size of the config, or on a CPU one that takes a few seconds."""
    whole = plan.config.data.batch_size
    if jax.default_backend() != "cpu":
        return whole
    params = jax.eval_shape(plan.init_fn, jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, *plan.config.data.shape), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)

    def forward(params, x, t):
        return plan.model.apply_fn(params, x, t, {}, train=False, key=None)

    cost: Any = jax.jit(forward).lower(params, x, t).cost_analysis()
    per_device = int(_FLOP / max(cost["flops"], 1)) // num_devices
    return min(whole, max(1, per_device) * num_devices)


def _intervals(config: Config, every: int) -> dict[str, Any]:
    """Return the intervals of what a config evaluates and draws at all; 0: never.

    That of log lines stays, as it is part of the compiled program, which both starts use.
    """
    names = ("eval_every", "likelihood_every", "sample_every", "quality_every")
    return {name: every if getattr(config.training, name) else 0 for name in names}


def _few_of(timesteps: tuple[float, ...]) -> tuple[float, ...]:
    return timesteps[:: max(1, math.ceil(len(timesteps) / _FEW_STEPS))]


def _longer(small: Config, whole: Config, seconds_per_step: float) -> Config:
    """Return the config of the second start: more steps, about as many as take 2 s.

    What the whole run evaluates and draws is done at the last two, the second time without
    compilation.
    """
    most = int(_MORE_SECONDS / max(seconds_per_step, 1e-6))
    num_steps = _FIRST_STEPS + min(max(2, most), _MOST_MORE_STEPS)
    training = dataclasses.replace(
        small.training,
        num_steps=num_steps,
        best_by=_best_by(whole),
        **_intervals(whole, num_steps - 1),
    )
    return dataclasses.replace(small, training=training)


def _best_by(whole: Config) -> str:
    """Return the figure of the whole run, or another one if it is of more samples."""
    best_by = whole.training.best_by
    return best_by if best_by in (periodic.LOSS, periodic.BITS) else periodic.LOSS


def _first_times(took: _Took) -> dict[str, list[float]]:
    """Return the seconds of each piece of work, from its first time on."""
    return took.again.seconds | took.first.seconds


def _say_stages(took: _Took, workdir: pathlib.Path) -> None:
    total = sum(seconds for (seconds,) in took.stages.seconds.values())
    say(f"the smoke run is finished, and everything worked; it took {duration(total)}:")
    for stage, (seconds,) in took.stages.seconds.items():
        say(f"  {stage:15} {seconds:6.1f} s")
    say("of the two starts:")
    for piece, (at_first, *_) in _first_times(took).items():
        later = f"then {min(took.again.seconds[piece]):.3g} s"
        say(f"  {piece:15} {at_first:6.1f} s the first time, {later}")
    size = sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file())
    say(f"its pictures are in {workdir}/, a folder of {size / 2**20:,.0f} MiB")


def _say_whole_run(plan: Plan, small: Config, took: _Took) -> None:
    config, training = plan.config, plan.config.training
    first, again = _first_times(took), took.again.seconds
    size, whole = small.data.batch_size, config.data.batch_size
    num_held_out = min(training.num_held_out, len(plan.data.split("held_out")))
    batches = -(-num_held_out // size)
    strata = min(training.likelihood_timesteps, config.process.num_timesteps)
    grid, small_grid = preview_of(config), preview_of(small)
    of_grid = small_grid.batch_size * small_grid.steps
    each = {
        TRAIN_STEP: whole / size,
        periodic.HELD_OUT_LOSS: batches,
        periodic.BITS_PER_DIM: batches * strata / small.training.likelihood_timesteps,
        SAMPLE_GRID: grid.batch_size * grid.steps / of_grid,
        periodic.QUALITY: sample_quality.num_calls(config)
        / sample_quality.num_calls(small),
        CHECKPOINT: 1.0,
    }
    times = {
        TRAIN_STEP: training.num_steps,
        periodic.HELD_OUT_LOSS: times_due(training.eval_every, training.num_steps),
        periodic.BITS_PER_DIM: times_due(training.likelihood_every, training.num_steps),
        SAMPLE_GRID: times_due(training.sample_every, training.num_steps),
        periodic.QUALITY: times_due(training.quality_every, training.num_steps),
        CHECKPOINT: max(1, times_due(training.checkpoint_every, training.num_steps)),
    }
    seconds = {
        piece: times[piece] * each[piece] * min(again[piece])
        for piece in times
        if piece in again
    }
    compiling = sum(first[name][0] - min(again[name]) for name in seconds)
    seconds["data, compiling"] = took.stages.seconds[_DATA][0] + compiling
    say(
        f"the whole run on this machine: about {duration(sum(seconds.values()))} for "
        f"{training.num_steps:,} train steps of {whole:,} {kind_of(config.data).name}"
    )
    for piece, estimate in seconds.items():
        count = f"{times[piece]:,} times" if piece in times else ""
        say(f"  {piece:15} {duration(estimate):>12}  {count}".rstrip())
    if SAMPLE_GRID in seconds:
        per_call = min(again[SAMPLE_GRID]) / (2 * of_grid)
        _say_sampling(plan, per_call)


def _say_sampling(plan: Plan, seconds_per_call: float) -> None:
    sampling = build_sampler.before_choice(plan.config.sampling)
    calls = build_sampler.make_table(plan.model, sampling).num_rows
    num = -(-_SAMPLES // sampling.batch_size) * sampling.batch_size
    seconds = num * calls * seconds_per_call
    say(
        f"then {command('sample')} --num {_SAMPLES}, with {sampling.sampler} and its "
        f"{calls:,} network calls: about {duration(seconds)}"
    )
