"""Helpers of tests in several rooms."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np

from diffusion_jax.config import (
    Config,
    DataConfig,
    EMAConfig,
    MLPConfig,
    OptimizerConfig,
    ProcessConfig,
    SamplingConfig,
    TrainingConfig,
    UNetConfig,
)
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.diffusion import oracle
from diffusion_jax.diffusion.schedules import cosine_betas, linear_betas, make_schedule

ROOT = pathlib.Path(__file__).parent.parent

# Names of files and folders that a file system allows and a program may trip over.
ODD_NAMES = [
    "a b",
    "[v2]",
    "*?",
    "%20#",
    "quote'\"",
    "back\\slash",
    "new\nline",
    "\x1b[2J",
    "gs:x",
    "-x",
    "~",
    "é",
    "\udcff",  # A byte that is no UTF-8.
    "$HOME {x,y}",
]

SHARED = ROOT.parent / "shared"  # Real data, on machines that have it.


# Shapes of one example of each kind, for what is the same whatever the axes.
SHAPES = {"point": (2,), "sound": (3, 2), "image": (2, 1, 2), "clip": (2, 3, 1, 2)}

# Fields of DataConfig for small examples of each kind that a U-Net takes.
SMALL = {
    "images": {"image_size": (8,), "channels": 1},
    "sounds": {"image_size": (), "sound_length": 16, "channels": 1},
    "clips": {"image_size": (8,), "num_frames": 3, "channels": 1},
}


def random_examples(config, num, seed=0):
    """Random examples of the shape and the kind of a DataConfig, as files have them."""
    rng = np.random.default_rng(seed)
    if kind_of(config).dtype == np.uint8:
        return rng.integers(0, 256, (num, *config.shape), np.uint8)
    return np.float32(rng.uniform(-1, 1, (num, *config.shape)))


def points_config(**training):
    """Config of a run of seconds: points, a tiny network."""
    return Config(
        name="points",
        data=DataConfig(source="two_moons", image_size=(), channels=2, batch_size=32),
        model=MLPConfig(width=16, num_blocks=1),
        process=ProcessConfig(num_timesteps=20, beta_end=0.6),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5),
        ema=EMAConfig(decay=0.9),
        sampling=SamplingConfig(steps=20),
        training=TrainingConfig(
            **{
                "num_steps": 30,
                "steps_per_dispatch": 4,
                "log_every": 5,
                "eval_every": 10,
                "num_held_out": 70,
                "checkpoint_every": 10,
                "sample_every": 0,
                "sample_steps": 5,
                **training,
            }
        ),
    )


def tiny_unet():
    """Config of the smallest U-Net, without attention."""
    return UNetConfig(
        base_channels=4,
        channel_mults=(1,),
        num_res_blocks=1,
        attn_resolutions=(),
        num_groups=4,
    )


def pictures_config(folder, channels, batch_size, held_out_fraction, **training):
    """Config of a run on 40 random pictures of 4x4, which lie in x.npz of a folder."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 4, 4, channels)).astype(np.uint8)
    np.savez(folder / "x.npz", arr_0=images)
    config = points_config(**training)
    config.data = DataConfig(
        source="npz",
        path=str(folder / "x.npz"),
        image_size=(4,),
        channels=channels,
        batch_size=batch_size,
        held_out_fraction=held_out_fraction,
    )
    config.model = tiny_unet()
    return config


@contextlib.contextmanager
def interrupted_after(seconds, error):
    """Raise `error` in what takes longer within this context, even if it waits."""

    def interrupt(*_):
        raise error

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def arrays_of(state):
    return [*jax.tree.leaves(state[:-1]), jax.random.key_data(state.key)]


def assert_same_bits(a, b):
    for x, y in zip(arrays_of(a), arrays_of(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


SCHEDULES = {
    "linear": make_schedule(linear_betas(1000)),
    "cosine": make_schedule(cosine_betas(1000)),
}
SCHEDULE = SCHEDULES["linear"]


def gaussian(std, spread=3.2):
    """A Gaussian on the grid of 256 levels: (levels, probabilities)."""
    x = np.arange(256) / 127.5 - 1
    shares = np.exp(-((x - 0.2) ** 2) / (2 * std**2)) * (abs(x - 0.2) < spread * std)
    levels = np.flatnonzero(shares)
    return levels, shares[levels] / shares.sum()


LEVELS, SHARES = gaussian(0.06)


DATA = oracle.discrete(LEVELS[:, None], SHARES)


def mesh_of(num_devices):
    return jax.make_mesh(
        (num_devices, 1),
        ("data", "fsdp"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[:num_devices],
    )


def images(num, seed=0):
    return np.asarray(oracle.sample(DATA, jax.random.key(seed), num))


def run_table(table, network, x, noises, hook=None, cond=None):
    """Every state of a chain in NumPy float64: [S + 1, ...], by a plain loop.

    Args:
      table: rows to run.
      network: network(x, t) -> prediction.
      x: the initial noise.
      noises: one array for each row.
      hook: hook(x0, x, level, cond) -> x0.
      cond: the conditions that the hook gets.
    """
    anchor = prev = prev2 = np.zeros_like(x)
    states = [x]
    for i in range(table.num_rows):
        row = table.take(i)
        x0 = row.x0_from_x * x + row.x0_from_prediction * network(x, row.t)
        x0 = x0 if hook is None else hook(x0, x, row.level, cond)
        values = (x, anchor, x0, prev, prev2, noises[i], 0.0)
        x, anchor = (
            sum(c * v for c, v in zip(coefficients, values, strict=True))
            for coefficients in (row.to_x, row.to_anchor)
        )
        if row.is_remembered:
            prev, prev2 = x0, prev
        states.append(x)
    return np.array(states)


def gaussian_x0(level, mean, std):
    """(a, b) with E[x_0 | x] = a x + b at a noise level, for data N(mean, std^2)."""
    total = level.alpha_squared * std**2 + level.sigma_squared
    return level.alpha * std**2 / total, level.sigma_squared * mean / total


def gaussian_moments(table, mean, std, start=0.0, start_variance=1.0):
    """Mean and variance of the chain's end with the best network for N(mean, std^2).

    Exact: every row is affine in (x, anchor, two predictions) and the noise, whatever
    the network predicts. `start` and `start_variance` are those of the initial noise.
    """
    state, cov = np.array([start, 0, 0, 0]), np.zeros((4, 4))
    cov[0, 0] = start_variance
    for i in range(table.num_rows):
        row = table.take(i)
        a, b = gaussian_x0(row.level, mean, std)

        def new(c, a=a):
            return np.array([c.x + c.x0 * a, c.anchor, c.x0_prev, c.x0_prev2])

        step = np.array([new(row.to_x), new(row.to_anchor), [a, 0, 0, 0], [0, 0, 1, 0]])
        shift = np.array([row.to_x.x0 * b, row.to_anchor.x0 * b, b, 0])
        noise = np.array([row.to_x.noise, row.to_anchor.noise, 0, 0])
        if not row.is_remembered:
            step[2:], shift[2:] = np.eye(4)[2:], 0
        state = step @ state + shift
        cov = step @ cov @ step.T + np.outer(noise, noise)
    return state[0], cov[0, 0]


# The digits with a network that compiles in seconds.
TINY = (
    "--config=configs/digits.py",
    "--config.model.base_channels=8",
    "--config.model.channel_mults=(1,)",
    "--config.model.num_res_blocks=1",
    "--config.model.attn_resolutions=()",
    "--config.model.num_groups=4",
    "--config.data.batch_size=16",
    "--config.process.num_timesteps=50",
    "--config.sampling.steps=50",
    "--config.training.sample_steps=5",
    "--config.training.sample_every=0",
    "--config.training.eval_every=0",
    "--config.ema.snapshots=2",
)
# Fields of a line in metrics.jsonl that depend on time.
TIMING = {"steps_per_sec", "images_per_sec"}


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def train_arguments(workdir, *more):
    return (str(ROOT / "train.py"), *TINY, f"--workdir={workdir}", *more)


def start_training(workdir, log, *more, **options):
    """A process that trains; its output goes into the file `log`."""
    return subprocess.Popen(
        [sys.executable, *train_arguments(workdir, *more)],
        cwd=ROOT,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        **options,
    )


def lines_of(workdir):
    """Lines of metrics.jsonl without the fields that depend on time."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def steps_logged(workdir):
    return [line["step"] for line in lines_of(workdir) if "loss" in line]


def files_of(workdir):
    """Pictures and snapshots of a run, byte for byte."""
    samples = filter(pathlib.Path.is_file, workdir.glob("samples/**/*"))
    found = [*workdir.glob("*.png"), *samples, *workdir.glob("ema_*/*")]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in found}


def saved_steps(workdir):
    """Steps of the checkpoints that are whole."""
    done = workdir.glob("checkpoints/[0-9]*/commit_success.txt")
    return sorted(int(p.parent.name) for p in done if p.parent.name.isdigit())


def assert_same_run(a, b):
    assert lines_of(a) == lines_of(b)
    files_a, files_b = files_of(a), files_of(b)
    assert files_a.keys() == files_b.keys()
    assert [name for name in files_a if files_a[name] != files_b[name]] == []


NOTHING = ("[Gloo]",)  # Lines of gloo's own begin so.


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Group:
    """Processes that run the same command."""

    def __init__(self, folder, count, *line, each=None, devices=1, env=None):
        """Start them; `each` gives further arguments for each process."""
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = [folder / f"{i}.log" for i in range(count)]
        port = free_port()
        self.all = []
        for i, log in enumerate(self.logs):
            place = (f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}")
            if count == 1 or env:
                place = ()
            else:
                place = (*place, f"--process_id={i}")
            own = env(i, port) if env else {}
            self.all.append(
                subprocess.Popen(
                    [sys.executable, str(ROOT / line[0]), *map(str, line[1:]), *place]
                    + list(each[i] if each else []),
                    cwd=ROOT,
                    stdout=log.open("w"),
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), **own},
                )
            )

    def wait(self, seconds=300):
        """Return the exit status of each."""
        end = time.monotonic() + seconds
        return [p.wait(max(1, end - time.monotonic())) for p in self.all]

    def said(self, i):
        """Return what a process has printed, without gloo's own lines."""
        lines = self.logs[i].read_text().splitlines()
        return [line for line in lines if not line.startswith(NOTHING)]

    def end(self):
        """Kill what still runs."""
        for process in self.all:
            process.kill()
            process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()
