"""Training: averages and rates by closed form, the step on one device and four."""

import dataclasses
import json
import math
import shutil
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from diffusion_jax.config import (
    Config,
    DataConfig,
    EMAConfig,
    LossConfig,
    MLPConfig,
    OptimizerConfig,
    ParallelConfig,
    ProcessConfig,
    SamplingConfig,
    TrainingConfig,
    UNetConfig,
    fields_of,
    from_json,
    to_json,
)
from diffusion_jax.data import kinds, sources
from diffusion_jax.data.pipeline import Loader, StepBatches
from diffusion_jax.diffusion import timestep_sampling
from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.diffusion.timestep_sampling import timestep_probabilities
from diffusion_jax.experiment import build
from diffusion_jax.experiment.setup import make_plan
from diffusion_jax.jobs import sample
from diffusion_jax.networks import UNet, as_functions
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.interrupts import Stop
from diffusion_jax.training import previews, train
from diffusion_jax.training.held_out import make_held_out_loss
from diffusion_jax.training.optimizer import (
    clip_by_global_norm,
    global_norm,
    learning_rate_schedule,
    make_optimizer,
    packed,
)
from diffusion_jax.training.train_state import TrainState, init_state
from diffusion_jax.training.train_step import (
    AS_THEY_LIE,
    JOINED,
    make_train_step,
    make_train_steps,
    value_and_grad_in_parts,
)
from helpers import SMALL, assert_same_bits, points_config, random_examples, tiny_unet


@pytest.fixture(scope="module")
def points():
    return sources.open_data_set(DataConfig(source="two_moons"))


# Learning rate, optimiser, EMA


def test_learning_rates_are_the_closed_forms():
    def at(decay, step):
        config = OptimizerConfig(learning_rate=0.5, warmup_steps=100, decay=decay)
        return float(learning_rate_schedule(config, 1100)(step))

    for decay in ("constant", "cosine", "inverse_sqrt"):
        assert at(decay, 0) == 0  # As in the DDPM code.
        assert at(decay, 50) == pytest.approx(0.25)
        assert at(decay, 100) == pytest.approx(0.5)
    assert at("constant", 1099) == pytest.approx(0.5)
    assert at("cosine", 350) == pytest.approx(0.25 * (1 + math.cos(math.pi / 4)), rel=1e-5)
    assert at("cosine", 1100) == pytest.approx(0, abs=1e-7)
    assert at("inverse_sqrt", 400) == pytest.approx(0.25)
    none = OptimizerConfig(learning_rate=0.5, warmup_steps=0, decay="inverse_sqrt")
    assert float(learning_rate_schedule(none, 10)(3)) == pytest.approx(0.25)


def test_the_first_adam_step_has_the_size_of_the_rate_and_clipping_its_norm():
    """Adam's first step is rate * sign(gradient); AdamW adds rate * decay * weight."""
    params = {"w": jnp.array([2.0, -3.0])}
    grads = {"w": jnp.array([30.0, 40.0])}

    def step(**options):
        config = OptimizerConfig(learning_rate=0.01, warmup_steps=0, **options)
        tx = make_optimizer(config, 10)
        return np.asarray(tx.update(grads, tx.init(params), params)[0]["w"])

    np.testing.assert_allclose(step(), [-0.01, -0.01], rtol=1e-5)
    decayed = step(name="adamw", weight_decay=0.1)
    np.testing.assert_allclose(decayed, [-0.012, -0.007], rtol=1e-5)
    # With an eps as large as the clipped gradient (0.6, 0.8), the step shows the clip.
    clipped = step(grad_clip=1.0, eps=1.0)
    np.testing.assert_allclose(clipped, [-0.01 * 0.6 / 1.6, -0.01 * 0.8 / 1.8], rtol=1e-5)
    unclipped = step(grad_clip=0.0, eps=1.0)
    np.testing.assert_allclose(unclipped, [-0.01 * 30 / 31, -0.01 * 40 / 41], rtol=1e-5)


# The step


def step_and_state(config, num_steps=100, placement=AS_THEY_LIE):
    """The train step of a config, without augmentation, and the state before it."""
    init_fn, _ = build.make_network(config)
    model = build.make_model(config)
    tx = make_optimizer(config.optimizer, num_steps)
    loss_fn = build.make_loss(config, model)
    step = make_train_step(
        config, loss_fn, model.process, tx, lambda key, batch: batch, placement
    )
    return step, jax.jit(lambda: init_state(init_fn, tx, config))()


@pytest.fixture(scope="module", params=SMALL)
def unet_steps(request):
    """The compiled train steps of a tiny U-Net of every block, and how often traced."""
    config = points_config()
    config.data = DataConfig(batch_size=8, **SMALL[request.param])
    config.model = UNetConfig(
        base_channels=8,
        channel_mults=(1, 1),
        num_res_blocks=1,
        attn_resolutions=(),
        dropout=0.1,
        num_groups=4,
    )
    step, initial = step_and_state(config)
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(make_train_steps(step), n=1)
    shape = (4, 8, *config.data.shape)
    batches = jax.random.uniform(jax.random.key(1), shape, minval=-1, maxval=1)
    return jax.jit(traced), initial, Batch(batches), step


def test_several_steps_a_dispatch_give_the_bits_of_one_at_a_time(unet_steps):
    """Dispatches of any number of steps give the same bits, by a program traced once."""
    steps, initial, batches, _ = unet_steps
    at_once, (metrics, _) = steps(initial, batches, 4)
    state, losses = initial, []
    for i in range(4):
        state, (m, _) = steps(state, Batch(jnp.roll(batches.x, -i, axis=0)), 1)
        losses.append(m.loss[0])
    assert_same_bits(at_once, state)
    np.testing.assert_array_equal(metrics.loss, np.stack(losses))
    last = Batch(jnp.roll(batches.x, -3, axis=0))
    state, (m, _) = steps(steps(initial, batches, 3)[0], last, 1)
    assert_same_bits(at_once, state)
    np.testing.assert_array_equal(m.loss[1:], 0)
    assert int(at_once.step) == 4


def test_a_step_follows_the_gradient_and_moves_the_average(unet_steps):
    """The state after a step against optax and a gradient taken by hand."""
    steps, initial, batches, _ = unet_steps
    state, (metrics, _) = steps(initial, batches, 2)
    moved = [
        float(jnp.abs(a - b).max())
        for a, b in zip(
            jax.tree.leaves(initial.params), jax.tree.leaves(state.params), strict=True
        )
    ]
    assert max(moved) > 0 and float(metrics.grad_norm[0]) > 0
    # The first step has rate 0 (warm-up), so only the second one moved the weights:
    # the average has gone 1 - 0.9 of the way.
    one = steps(initial, batches, 1)[0]
    counted = {"step": 0, "opt_state": 0, "tally": 0}
    assert_same_bits(one._replace(**counted), initial._replace(**counted))
    way = optax.tree.norm(jax.tree.map(jnp.subtract, state.emas["0.9"], initial.params))
    whole = optax.tree.norm(jax.tree.map(jnp.subtract, state.params, initial.params))
    assert float(way / whole) == pytest.approx(0.1, rel=1e-4)


def test_norm_and_clip_are_those_of_all_leaves():
    """Small and large leaves: the norm in float64, the clip by it, and the same values."""
    rng = np.random.default_rng(0)
    shapes = {"bias": (7,), "kernel": (3, 3, 40, 50), "scale": (64,), "one": ()}
    tree = {k: np.asarray(rng.normal(size=s), np.float32) for k, s in shapes.items()}
    whole = np.concatenate([x.reshape(-1) for x in tree.values()]).astype(np.float64)
    norm = np.sqrt((whole**2).sum())
    chex.assert_trees_all_equal(jax.jit(packed)(tree), tree)
    assert float(jax.jit(global_norm)(tree)) == pytest.approx(norm, rel=1e-6)
    for most in (norm / 3, norm * 3):
        clipped, _ = clip_by_global_norm(most).update(tree, optax.EmptyState())
        factor = min(1, most / norm)
        wanted = {name: x * factor for name, x in tree.items()}
        chex.assert_trees_all_close(clipped, wanted, rtol=1e-5)
    not_finite = {**tree, "bias": np.full(7, np.inf, np.float32)}
    assert not np.isfinite(global_norm(not_finite))
    large = {"kernel": tree["kernel"]}
    assert packed(large) is large
    assert float(global_norm(large)) == pytest.approx(
        np.sqrt((tree["kernel"].astype(np.float64) ** 2).sum()), rel=1e-6
    )


def test_joined_arrays_give_the_same_update(points):
    """A clipped step with small arrays in one vector, as a GPU takes it."""
    config = points_config()
    config.optimizer.grad_clip = 0.01
    batch = Batch(points.train[:32])
    (state, one), (joined, other) = (
        jax.jit(step)(initial, batch)
        for step, initial in (
            step_and_state(config, placement=p) for p in (AS_THEY_LIE, JOINED)
        )
    )
    assert float(one.grad_norm) > 0.01
    assert float(one.grad_norm) == pytest.approx(float(other.grad_norm), rel=1e-6)
    chex.assert_trees_all_close(state.params, joined.params, rtol=1e-4, atol=1e-7)


def steps_on_devices(step, n):
    """The compiled train steps with the batch split over the first n devices."""
    mesh = jax.make_mesh(
        (n,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:n]
    )
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    return jax.jit(
        make_train_steps(step), in_shardings=(whole, rows, whole), out_shardings=whole
    )


@pytest.mark.slow
def test_one_device_and_four_give_the_same_losses(unet_steps):
    _, initial, batches, step = unet_steps
    found = {}
    for n in (1, 4):
        steps = steps_on_devices(step, n)
        state, (metrics, _) = steps(initial, batches, 4)
        found[n] = np.asarray(metrics.loss)
        assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == n
    np.testing.assert_allclose(found[1], found[4], rtol=1e-5)


@pytest.mark.parametrize("num_devices", [1, 4])
def test_a_batch_in_parts_gives_the_update_of_the_whole(points, num_devices):
    """Params, averages, and the losses by timestep, where each example has a weight."""
    config = points_config()
    config.loss.timesteps = "loss_second_moment"
    batches = Batch(jnp.asarray(points.train[: 20 * 32]).reshape(20, 32, 2))
    found = []
    for config.optimizer.accumulate in (1, 4, 8):
        step, initial = step_and_state(config)
        steps = steps_on_devices(step, num_devices)
        state, (metrics, _) = steps(initial, batches, 20)
        found.append((state.params, state.emas, state.loss_history, metrics))
        if num_devices > 1:  # Each device keeps its examples, and the sums are shared.
            text = steps.lower(state, batches, 20).compile().as_text()
            assert "all-reduce" in text
            assert "all-to-all" not in text and "collective-permute" not in text
    for other in found[1:]:
        for a, b in zip(*map(jax.tree.leaves, (found[0], other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)
    assert int(found[2][2].counts.sum()) == 20 * 32


@pytest.mark.slow
def test_parts_of_a_batch_save_memory():
    """Temporary memory of the compiled gradient in 8 parts, beside that of the whole."""
    x = jax.random.normal(jax.random.key(0), (32, 16, 16, 1))

    network = UNet(1, 8, (1, 1), 2, attn_resolutions=(), num_groups=4)
    init_fn, apply_fn = as_functions(network, (16, 16, 1))
    params = jax.eval_shape(init_fn, jax.random.key(0))

    def temporary(num_parts):
        def mean_loss(params, x, key):
            t = jnp.zeros(len(x))
            losses = jnp.square(apply_fn(params, x, t, train=True, key=key)).mean((1, 2, 3))
            return losses.mean(), losses

        @jax.jit
        def gradient(params, x):
            return value_and_grad_in_parts(
                mean_loss, params, x, jax.random.key(1), num_parts
            )

        compiled = gradient.lower(params, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(8) < 0.3 * temporary(1)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "said"),
    [
        (32, 3, "optimizer.accumulate .3. must divide data.batch_size .32."),
        (32, 16, "data.batch_size / optimizer.accumulate .2. must be divisible by"),
    ],
)
def test_parts_that_do_not_divide_are_refused(points, batch_size, accumulate, said):
    config = points_config()
    config.data.batch_size, config.optimizer.accumulate = batch_size, accumulate
    with pytest.raises(BadRequest, match=said):
        make_plan(config, points)


@pytest.mark.slow
def test_one_batch_can_be_overfitted(points):
    """Four points, learned by heart: the loss falls well below that of the silent net."""
    config = points_config()
    config.model = MLPConfig(width=64, num_blocks=2)
    config.optimizer = OptimizerConfig(learning_rate=3e-3, warmup_steps=10)
    step, initial = step_and_state(config, num_steps=1000)
    batches = jnp.tile(points.train[:4], (1000, 64, 1))
    _, (metrics, _) = jax.jit(make_train_steps(step))(initial, Batch(batches), 1000)
    assert float(metrics.loss[-100:].mean()) < 0.35 < 0.7 < float(metrics.loss[0])


def test_held_out_loss_is_fixed_and_covers_all_timesteps():
    config = points_config()
    seen = []

    def spy(params, x_t, t, cond, *, train, key):
        assert not train
        seen.append(t)
        return jnp.zeros_like(x_t)

    loss_fn = build.make_loss(config, model_of(config, spy))
    held_out_loss = make_held_out_loss(loss_fn, 20)
    x0, indices = jnp.zeros((40, 2)), jnp.arange(40)
    a = held_out_loss(None, Batch(x0), indices)
    b = held_out_loss(None, Batch(x0[::-1]), indices[::-1])
    np.testing.assert_array_equal(a, b[::-1])
    counts = np.bincount(seen[0], minlength=20)
    assert len(counts) == 20 and set(counts) <= {1, 2, 3}


def model_of(config, apply_fn):
    """The model of a config with another network."""
    return dataclasses.replace(build.without_network(config.process), apply_fn=apply_fn)


# The loop


@pytest.fixture(scope="module")
def finished(tmp_path_factory, points):
    workdir = tmp_path_factory.mktemp("runs") / "points"
    state = train.train(points_config(sample_every=20), workdir, points)
    return workdir, state


def test_a_run_leaves_what_a_user_looks_for(finished):
    workdir, state = finished
    assert int(state.step) == 30
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        ".lock",
        "config.json",
        "run.json",
        "checkpoints",
        "ema_snapshots",
        "metrics.jsonl",
        "events.jsonl",
        "tensorboard",
        "samples",
        "data.png",
        "forward.png",
        "reverse.png",
        "loss.png",
    }
    assert {p.name for p in (workdir / "samples").iterdir()} == {
        "step_000020.png",
        "step_000030.png",
    }
    assert run_folder.read_config(workdir) == points_config(sample_every=20)


def test_strips_are_kept_for_each_grid_if_asked(tmp_path, points):
    """The newest one is reverse.png. An epoch is 20,000 / 32 = 625 train steps."""
    config = points_config(epochs=0.04, sample_every_epochs=0.016, keep_strips=True)
    train.train(config, tmp_path, points)
    strips = sorted((tmp_path / "samples").glob("*_chain.png"))
    assert [path.name[5:11] for path in strips] == ["000010", "000020", "000025"]
    assert strips[-1].read_bytes() == (tmp_path / "reverse.png").read_bytes()
    assert strips[0].read_bytes() != strips[1].read_bytes()


def test_metrics_hold_every_interval_once_and_fall(finished):
    lines = [
        json.loads(x) for x in (finished[0] / "metrics.jsonl").read_text().splitlines()
    ]
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [5, 10, 15, 20, 25, 30]
    assert set(logged[-1]) == {
        *("step", "loss", "grad_norm", "learning_rate", "skipped_steps"),
        *("steps_per_sec", "images_per_sec"),
    }
    held_out = [(x["step"], x["held_out_loss"]) for x in lines if "held_out_loss" in x]
    assert [step for step, _ in held_out] == [10, 20, 30]
    assert held_out[-1][1] < held_out[0][1]
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)


def test_tensorboard_events_hold_the_same_numbers(finished):
    from tensorboardX.proto.event_pb2 import Event

    (file,) = (finished[0] / "tensorboard").iterdir()
    data, values = file.read_bytes(), {}
    while data:  # Length, its checksum, the record, its checksum.
        size = int.from_bytes(data[:8], "little")
        event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
        for value in event.summary.value:
            values[event.step, value.tag] = value.simple_value
    for line in (finished[0] / "metrics.jsonl").read_text().splitlines():
        line = json.loads(line)
        for name, value in line.items():
            parts = value if isinstance(value, dict) else {}
            for part in parts or [""] * (name != "step"):
                shown = values[line["step"], f"{name}/{part}" if part else name]
                assert shown == pytest.approx(parts.get(part, value), rel=1e-6)


def test_a_resumed_run_draws_timesteps_by_the_losses_of_before(tmp_path, points):
    """The history of losses is part of the state: counted over the run, the same bits."""
    config = points_config(eval_every=0)
    config.loss.timesteps = "loss_second_moment"
    whole = train.train(config, tmp_path / "whole", points)
    history = whole.loss_history
    assert int(history.counts.sum()) == 30 * 32 and int(history.counts.min()) >= 10
    assert (
        timestep_probabilities(history).max() > 1.5 * timestep_probabilities(history).min()
    )
    cut = dataclasses.replace(config, training=dataclasses.replace(config.training))
    cut.training.num_steps = 13
    train.train(cut, tmp_path / "cut", points)
    resumed = train.train(config, tmp_path / "cut", points)
    assert_same_bits(resumed, whole)


def test_the_history_of_losses_is_that_of_the_whole_batch_on_four_devices(points):
    """The batch is split, and the state of each device is still that of one device."""
    config = points_config()
    config.loss.timesteps = "loss_second_moment"
    step, initial = step_and_state(config)
    batches = Batch(jnp.asarray(points.train[: 40 * 32]).reshape(40, 32, 2))
    found = {}
    for n in (1, 4):
        steps = steps_on_devices(step, n)
        history = steps(initial, batches, 20)[0].loss_history
        found[n] = history
        copies = [np.asarray(shard.data) for shard in history.losses.addressable_shards]
        assert len(copies) == n and all((c == copies[0]).all() for c in copies)
    np.testing.assert_array_equal(found[1].counts, found[4].counts)
    assert int(found[4].counts.sum()) == 20 * 32
    np.testing.assert_allclose(found[1].losses, found[4].losses, rtol=1e-3)


def test_the_step_weighs_each_loss_and_records_it_alone(monkeypatch):
    """x_0 = 0, 1, .. 7 predicted as 0, drawn at t = 3, 4, .. with weights 1, 2, .."""
    t, weights = jnp.arange(3, 11), jnp.arange(1.0, 9.0)
    monkeypatch.setattr(timestep_sampling, "importance_timesteps", lambda *_: (t, weights))
    step, state = simple_step(
        process=ProcessConfig(num_timesteps=20, beta_end=0.6, prediction="x0"),
        loss=LossConfig(timesteps="loss_second_moment"),
    )
    x0 = jnp.arange(8.0)[:, None] * jnp.ones((8, 4))
    state, metrics = step(state, Batch(x0))
    squares = np.arange(8.0) ** 2
    assert float(metrics.loss) == pytest.approx((np.asarray(weights) * squares).mean())
    # The gradient of w is the mean of -2 weight x_0.
    gradient = (2 * np.asarray(weights) * np.arange(8)).mean()
    assert float(metrics.grad_norm) == pytest.approx(gradient)
    np.testing.assert_allclose(state.loss_history.losses[3:11, 0], squares)
    assert state.loss_history.counts.tolist() == [0] * 3 + [1] * 8 + [0] * 9


def test_stratified_timesteps_are_used_by_the_step():
    """Each batch of 10 out of 20 timesteps has every second one."""
    seen = []

    def spy(params, x_t, t, cond, *, train, key):
        seen.append(t)
        return constant(params, x_t, t, cond, train=train, key=key)

    process = ProcessConfig(num_timesteps=20, beta_end=0.6)
    with jax.disable_jit():
        step, state = simple_step(
            spy, process=process, loss=LossConfig(timesteps="stratified")
        )
        step(state, Batch(jnp.zeros((10, 4))))
    assert set(np.diff(np.asarray(seen[0])) % 20) == {2}


def test_a_finished_run_says_so_and_does_nothing(finished, capsys, points):
    before = (finished[0] / "metrics.jsonl").stat().st_mtime_ns
    train.train(points_config(sample_every=20), finished[0], points)
    assert "is finished: it has 30 steps of 30" in capsys.readouterr().out
    assert (finished[0] / "metrics.jsonl").stat().st_mtime_ns == before


def test_what_may_change_is_kept_in_a_finished_run(finished, tmp_path, points):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    config = points_config(sample_every=20)
    config.sampling.variance = "fixed_large"
    train.train(config, folder, points)
    assert run_folder.read_config(folder).sampling.variance == "fixed_large"


def test_a_changed_config_is_refused_by_name(finished, points):
    config = points_config(sample_every=20)
    config.optimizer.learning_rate = 1e-2
    config.model.width = 32
    before = run_folder.config_path(finished[0]).read_text()
    with pytest.raises(BadRequest) as error:
        train.train(config, finished[0], points)
    assert "model.width (16 -> 32)" in str(error.value)
    assert "optimizer.learning_rate (0.003 -> 0.01)" in str(error.value)
    assert run_folder.config_path(finished[0]).read_text() == before


# Fields that decide neither the weights nor what they are trained on.
MAY_CHANGE = {
    *(f"training.{f.name}" for f in dataclasses.fields(TrainingConfig)),
    *(f"sampling.{f.name}" for f in dataclasses.fields(SamplingConfig)),
    *(f"parallel.{f.name}" for f in dataclasses.fields(ParallelConfig)),
    *(
        "ema.snapshots",
        "name",
        "data.path",
        "data.origin",
        "data.held_out",
        "data.label_file",
        "data.memory_gib",
        "data.num_workers",
        "data.unreadable",
        "model.remat",
        "optimizer.accumulate",
    ),
}


def test_all_else_in_a_config_is_fixed_under_a_run(tmp_path):
    other = {int: 77, float: 0.77, str: "other", bool: True, tuple: (77,)}
    points = DataConfig(image_size=(), channels=2)
    for config in (
        Config(model=UNetConfig(attn_resolutions=(8,))),
        Config(model=MLPConfig(), data=points),
    ):
        run_folder.write_config(tmp_path, config)
        for path, value in fields_of(config):
            changed = from_json(to_json(config))
            section = changed
            for name in path.split(".")[:-1]:
                section = getattr(section, name)
            new = not value if isinstance(value, bool) else other[type(value)]
            setattr(section, path.split(".")[-1], new)
            if path in MAY_CHANGE:
                said = run_folder.check_resumable(tmp_path, changed)
                assert [text.partition(" ")[0] for text in said] == [path] * (
                    path != "name"
                )
            else:
                with pytest.raises(BadRequest, match=path.replace(".", r"\.")):
                    run_folder.check_resumable(tmp_path, changed)


def test_the_best_checkpoint_is_that_of_the_lowest_held_out_loss(finished):
    workdir, _ = finished
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    losses = {
        line["step"]: line["held_out_loss"] for line in lines if "held_out_loss" in line
    }
    with Checkpoints(workdir, writing=False) as checkpoints:
        for step, loss in losses.items():
            checkpoints.score(step, loss)
        assert checkpoints.best_step == min(losses, key=losses.get)


def trainer(tmp_path, config, data, wanted=False):
    checkpoints = Checkpoints(tmp_path, writing=True)
    plan = make_plan(config, data)
    return train.prepared_trainer(plan, tmp_path, checkpoints, Stop(wanted))


def test_the_held_out_loss_is_of_a_fixed_choice_of_the_examples(tmp_path):
    numbers = np.repeat(np.arange(100, dtype=np.float32)[:, None], 2, axis=1)
    data = sources.arrays(numbers, numbers)
    config = points_config(num_held_out=10)

    def examples():
        return trainer(tmp_path, config, data).periodic.held_out.examples().x[:, 0]

    chosen = examples().tolist()
    assert len(set(chosen)) == 10 and chosen != list(range(10))
    config.seed = 5
    assert examples().tolist() == chosen
    config.training.num_held_out = 1000
    assert examples().tolist() == list(range(100))


@pytest.mark.parametrize(
    ("stopping", "every", "done"),
    [(False, 4, {"evaluate", "draw", "save"}), (True, 4, {"save"}), (False, 0, {"save"})],
)
def test_the_last_step_does_what_is_wanted_of_it(
    tmp_path, points, stopping, every, done, monkeypatch
):
    """Work that is switched off, or that Ctrl-C would have to wait for, is not done."""
    config = points_config(eval_every=every, sample_every=every, checkpoint_every=every)
    it = trainer(tmp_path, config, points, stopping)
    called = []
    held_out = it.periodic.held_out
    monkeypatch.setattr(
        held_out, "loss", lambda *args: called.append("evaluate") or (1.0, {})
    )
    monkeypatch.setattr(it.periodic.previews, "draw", lambda *args: called.append("draw"))
    monkeypatch.setattr(it.saver, "save", lambda *args: called.append("save"))

    state = init_state(it.plan.init_fn, optax.sgd(0.1), config)
    it.finish_step(state, 8 if stopping else config.training.num_steps)
    assert set(called) == done


def test_samples_are_drawn_with_the_average(tmp_path, points, monkeypatch):
    """Samples of the average, and of the raw weights until the samples of both agree."""
    it = trainer(tmp_path, points_config(num_samples=4), points).periodic.previews
    drawn = {}
    for name in ("draw", "draw_side_by_side"):
        monkeypatch.setattr(
            it._kind, name, lambda what, name=name: drawn.update({name: what})
        )
    monkeypatch.setattr(previews.pictures, "save_png", lambda path, picture: None)

    def sampler(params, table, samples, cond):
        assert cond == {}  # A run without labels.
        ones = np.ones((len(it._drawing.frames) + 1, 4, 2), np.float32)
        return params * ones[0], params * ones[1:]

    it._drawing._sampler = sampler
    state = TrainState(0, 0.5, {"0.9": 0.25, "std:0.05": 9.0, "std:0.1": 9.0}, 0, 0, 0, 0)
    it.draw(state, 1)
    both = drawn.pop("draw_side_by_side")
    assert {k: v[0, 0] for k, v in both.items()} == {
        "raw weights": 0.5,
        "moving average": 0.25,
    }
    assert not drawn
    it.draw(state._replace(params=0.26), 1)
    assert drawn.pop("draw")[0, 0] == 0.25 and not drawn


def test_a_folder_of_something_else_is_left_alone(tmp_path, points):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(BadRequest, match="not the folder of a run"):
            request = train.Request(overwrite=overwrite)
            train.train(points_config(), tmp_path, points, request)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwrite_deletes_the_run_and_nothing_else(tmp_path, points):
    config = points_config(num_steps=2)
    train.train(config, tmp_path / "run", points)
    (tmp_path / "run/notes.txt").write_text("mine")
    config.seed = 1
    state = train.train(config, tmp_path / "run", points, train.Request(overwrite=True))
    assert int(state.step) == 2 and run_folder.read_config(tmp_path / "run").seed == 1
    assert (tmp_path / "run/notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_images_of_the_callers_own_with_learned_variances(tmp_path):
    """Images in colour and not square, from training by L_hybrid to samples of a chain."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 4, 3)).astype(np.uint8)
    config = points_config(num_steps=3, sample_every=3, num_samples=5, sample_steps=2)
    config.data = DataConfig(
        source="mine", image_size=(8, 4), channels=3, batch_size=8, random_flip=True
    )
    config.model = tiny_unet()
    config.process.variance = "learned"
    config.loss = LossConfig(kind="hybrid", timesteps="loss_second_moment")
    config.sampling.batch_size = 8
    data = sources.arrays(images[:32], images[32:])
    state = train.train(config, tmp_path / "run", data)
    assert int(state.step) == 3 and (tmp_path / "run/samples/step_000003.png").exists()
    sample.generate(tmp_path / "run", config, sample.Request(num=5), out=tmp_path / "out")
    with np.load(tmp_path / "out.npz") as file:
        assert file["arr_0"].shape == (5, 8, 4, 3)
    with pytest.raises(BadRequest, match=r"\(8, 8, 3\)"):
        make_plan(
            dataclasses.replace(config, data=DataConfig(image_size=(8,), channels=3)), data
        )


@pytest.mark.slow
def test_clips_that_all_train_as_images_teach_nothing_over_time(tmp_path):
    """With loss.focus 1 no query, key or bias of time is ever moved, with 0 they are."""
    for focus in (1.0, 0.0):
        config = points_config(num_steps=4, eval_every=0)
        config.data = DataConfig(source="mine", batch_size=8, **SMALL["clips"])
        config.model, config.loss.focus = tiny_unet(), focus
        examples = random_examples(config.data, 20)
        state = train.train(
            config, tmp_path / f"{focus}", sources.arrays(examples[:10], examples[10:])
        )
        init_fn, _ = build.make_network(config)
        tx = make_optimizer(config.optimizer, 4)
        first = jax.jit(lambda: init_state(init_fn, tx, config))().params  # noqa: B023
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), first, state.params)
        times = {name: m for name, m in moved.items() if "time" in name}
        assert all(m["v"]["kernel"] and m["out"]["kernel"] for m in times.values())
        for m in times.values():
            assert (m["q"]["kernel"], m["k"]["kernel"], m["bias"]) == (not focus,) * 3


class Numbered(sources.DataSet):
    """A data set whose examples and conditions are made of their own numbers."""

    def split(self, name):
        source = super().split(name).source
        return sources.Split(source, {"number": np.arange(len(source))})


def test_conditions_arrive_at_the_train_step_with_their_examples(tmp_path, monkeypatch):
    """Conditions of a run, from the data set to the devices, row for row."""
    numbers = np.repeat(np.arange(100, dtype=np.float32)[:, None], 2, axis=1)
    seen = []
    original = kinds.Kind.training_batch

    def spy(self, key, batch, *, flip):
        jax.debug.callback(lambda *rows: seen.append(rows), batch.x, batch.cond["number"])
        return original(self, key, batch, flip=flip)

    monkeypatch.setattr(kinds.Kind, "training_batch", spy)
    config = points_config(num_steps=6)
    train.train(config, tmp_path / "run", Numbered(*sources.arrays(numbers, numbers)))
    jax.effects_barrier()
    assert len(seen) == 6
    for x, number in seen:
        assert x.shape == (32, 2)
        np.testing.assert_array_equal(x[:, 0], number)


@pytest.mark.parametrize("workers", [0, 1])
def test_conditions_of_streamed_images_arrive_with_them(workers, tmp_path):
    """Conditions of files that threads or a process read, row for row."""
    for i in range(20):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i:02}.png")
    config = DataConfig(source="folder", path=str(tmp_path), batch_size=8)
    source = sources.open_data_set(config).train
    which = source[np.arange(len(source))][:, 0, 0, 0]
    seen = []

    def spy(key, batch):
        jax.debug.callback(lambda *rows: seen.append(rows), batch.x, batch.cond["number"])
        return kinds.PICTURES.training_batch(key, batch, flip=True)

    step, state = simple_step(to_network=spy)
    steps = jax.jit(make_train_steps(step))
    batches = StepBatches(sources.Split(source, {"number": which}), 8, 0, slice(0, 8))
    with Loader(batches, 0, most=3, num_workers=workers) as loader:
        for at, count in ((0, 3), (3, 2)):
            state, _ = steps(state, loader.load(at, count), count)
    jax.effects_barrier()
    assert len(seen) == 5 and len({tuple(number.tolist()) for _, number in seen}) == 5
    for x, number in seen:
        np.testing.assert_array_equal(x[:, 0, 0, 0], number)


# The step, with a network of one weight


def constant(params, x_t, t, cond, *, train, key):
    """A network whose prediction is its one weight everywhere."""
    return jnp.broadcast_to(params["w"], x_t.shape)


def simple_step(apply_fn=constant, to_network=lambda key, batch: batch, **sections):
    config = Config(**sections)
    model, tx = model_of(config, apply_fn), optax.sgd(0.1)
    loss_fn = build.make_loss(config, model)
    step = make_train_step(config, loss_fn, model.process, tx, to_network)
    return step, init_state(lambda key: {"w": jnp.float32(0.0)}, tx, config)


def test_every_step_has_draws_of_its_own_and_the_same_ones_again():
    """The loss at w = 0 is the mean square of the noise, drawn by the step's number."""
    step, state = simple_step()
    batch = Batch(jnp.zeros((8, 4)))
    found = [
        float(step(state._replace(step=jnp.int32(n)), batch)[1].loss) for n in (0, 1, 2, 1)
    ]
    assert len(set(found[:3])) == 3 and found[3] == found[1]


def test_the_step_trains_with_dropout_and_keys_that_differ():
    keys = []

    def spy(params, x_t, t, cond, *, train, key):
        assert train
        keys.append(key)
        return constant(params, x_t, t, cond, train=train, key=key)

    def to_network(key, batch):
        keys.append(key)
        return batch

    with jax.disable_jit():
        step, state = simple_step(spy, to_network)
        for n in range(2):
            step(state._replace(step=jnp.int32(n)), Batch(jnp.zeros((8, 4))))
    k_loss = jax.random.split(jax.random.fold_in(state.key, 0))[0]
    words = {tuple(jax.random.key_data(k).tolist()) for k in (*keys, k_loss, state.key)}
    assert len(words) == 6


def test_the_first_average_has_the_first_decay_of_the_warm_up():
    """An average of (1 + 0) / (10 + 0) of the old weight, 0, and 0.9 of the new one."""
    step, state = simple_step(ema=EMAConfig(decay=0.99, warmup=True))
    state, _ = step(state, Batch(jnp.ones((8, 4))))
    assert float(state.emas["0.99"]["w"]) == pytest.approx(0.9 * float(state.params["w"]))


@pytest.mark.parametrize(
    ("norm", "expected", "gradient"), [("l2", 9.0, 6.0), ("l1", 3.0, 1.0)]
)
def test_the_step_has_the_loss_and_the_gradient_of_the_config(norm, expected, gradient):
    """x_0 = -3 predicted as w = 0: |w - x_0| and (w - x_0)^2 by hand."""
    sections = {"process": ProcessConfig(prediction="x0"), "loss": LossConfig(norm=norm)}
    step, state = simple_step(**sections)
    batch = Batch(jnp.full((8, 4), -3.0))
    after, metrics = step(state, batch)
    assert float(metrics.loss) == pytest.approx(expected)
    assert float(metrics.grad_norm) == pytest.approx(gradient)
    assert float(after.params["w"]) == pytest.approx(-0.1 * gradient)

    def evaluated(params, x_t, t, cond, *, train, key):
        assert not train and key is None
        return constant(params, x_t, t, cond, train=train, key=key)

    config = Config(**sections)
    loss_fn = build.make_loss(config, model_of(config, evaluated))
    held_out = make_held_out_loss(loss_fn, config.process.num_timesteps)
    found = held_out(state.params, batch, jnp.arange(8))
    np.testing.assert_allclose(found, expected)


def test_held_out_noise_belongs_to_the_example():
    """A silent eps network: the loss is the mean square of example i's own noise."""
    config = Config()
    loss_fn = build.make_loss(config, model_of(config, constant))
    held_out = make_held_out_loss(loss_fn, config.process.num_timesteps)
    params, x0 = {"w": jnp.float32(0)}, jnp.zeros((4, 64))
    all_four = np.asarray(held_out(params, Batch(x0), jnp.arange(4)))
    assert len(set(all_four.tolist())) == 4
    np.testing.assert_array_equal(
        held_out(params, Batch(x0[:2]), jnp.array([3, 1])), all_four[[3, 1]]
    )


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_has_the_betas_and_epsilon_of_the_config(name):
    """Gradients 1 then 0, b1 = b2 = b: moments b (1 - b) / (1 - b^2) = b / (1 + b)."""
    b, eps = 0.5, 0.1
    config = OptimizerConfig(
        name=name, learning_rate=1.0, warmup_steps=0, b1=b, b2=b, eps=eps, grad_clip=0.0
    )
    tx = make_optimizer(config, 10)
    params = {"w": jnp.zeros(1)}
    state = tx.init(params)
    for gradient in (1.0, 0.0):
        update, state = tx.update({"w": jnp.full(1, gradient)}, state, params)
    moment = b / (1 + b)
    np.testing.assert_allclose(update["w"], -moment / (math.sqrt(moment) + eps), rtol=1e-5)


def test_the_logged_held_out_loss_is_that_of_the_average(finished, points):
    """The mean over each of 70 examples once, though three batches of 32 are run."""
    workdir, state = finished
    config = points_config()
    loss_fn = build.make_loss(config, build.make_model(config))
    loss = make_held_out_loss(loss_fn, config.process.num_timesteps)
    batch = Batch(points.held_out[sources.fixed_choice(2000, 70)])
    expected = float(loss(state.emas["0.9"], batch, jnp.arange(70)).mean())
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    logged = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    assert logged[-1] == pytest.approx(expected, rel=1e-5)


def test_the_logged_rate_is_that_of_the_last_step(finished):
    line = json.loads((finished[0] / "metrics.jsonl").read_text().splitlines()[0])
    assert line["step"] == 5 and line["learning_rate"] == pytest.approx(0.003 * 4 / 5)


def test_initialisation_training_and_sampling_share_no_key():
    seen = []

    def init_fn(key):
        seen.append(key)
        return {"w": jnp.zeros(1)}

    state = init_state(init_fn, optax.sgd(0.1), Config())
    samples = [jax.random.fold_in(jax.random.key(0), i) for i in range(4)]
    words = {tuple(jax.random.key_data(k).tolist()) for k in (seen[0], state.key, *samples)}
    assert len(words) == 6


@pytest.mark.parametrize(("num", "told"), [(9, True), (10, False)])
def test_too_few_held_out_examples_are_told_of(tmp_path, points, num, told):
    data = sources.arrays(points.train, points.held_out[:num])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train.prepare(points_config(), tmp_path, data)
    assert any("held out: the held-out loss" in str(w.message) for w in said) == told
