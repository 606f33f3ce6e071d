"""A run that is stopped, killed or moved ends as one that was not."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import DataConfig
from diffusion_jax.data import sources
from diffusion_jax.data.pipeline import batch_indices
from diffusion_jax.experiment.setup import make_plan
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs import weight_files
from diffusion_jax.runs.checkpoint_choice import check_step, chosen_step
from diffusion_jax.runs.checkpoints import Checkpoints, parts_of
from diffusion_jax.runs.record import FORMAT, read_record, write_record
from diffusion_jax.runs.weights import load_from_run, save_to_file
from diffusion_jax.runtime import devices, files
from diffusion_jax.runtime.errors import BadRequest, RunFailed
from diffusion_jax.runtime.interrupts import Stop
from diffusion_jax.training import saving, train, trainer
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.train_state import init_state
from helpers import (
    SMALL,
    assert_same_bits,
    assert_same_run,
    files_of,
    lines_of,
    mesh_of,
    points_config,
    random_examples,
    tiny_unet,
)


def config_of(**training):
    """Config of intervals that are no multiples of each other, for stops in all of them."""
    options = {"log_every": 7, "eval_every": 8, "sample_every": 12, "num_samples": 4}
    config = points_config(**options, **training)
    config.loss.timesteps = "loss_second_moment"
    config.ema.more_decays = (0.5,)
    config.ema.snapshots = 5
    return config


@pytest.fixture(scope="module")
def points():
    data = sources.open_data_set(DataConfig(source="two_moons"))
    return data._replace(held_out=data.held_out[:50])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, points):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, train.train(config_of(), workdir, points)


def stopped_at(workdir, data, at, by_system=False, config=None):
    """Go on with a run, and stop it as a signal does after step `at`."""
    stop = Stop()
    with Checkpoints(workdir, writing=True) as checkpoints:
        plan = make_plan(config or config_of(), data)
        it = train.prepared_trainer(plan, workdir, checkpoints, stop)
        add = trainer.Reports.add

        def watched(self, first, count, dispatch):
            stop.wanted = first + count >= at
            stop.by_system = by_system
            return add(self, first, count, dispatch)

        trainer.Reports.add = watched
        try:
            return it.run()
        finally:
            trainer.Reports.add = add


def test_a_run_stopped_anywhere_ends_with_the_bits_of_one_that_was_not(
    whole,
    points,
    tmp_path,
):
    """Stops between the intervals, and at steps where a loss or samples are due: 8, 24."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    for at in (3, 8, 24):
        state = stopped_at(workdir, points, at)
        assert at <= int(state.step) < 30
    state = train.train(config_of(), workdir, points)
    assert_same_bits(state, whole[1])
    assert_same_run(workdir, whole[0])
    steps = [line["step"] for line in lines_of(workdir) if "loss" in line]
    assert steps == [7, 14, 21, 28, 30]
    assert [x["step"] for x in lines_of(workdir) if "held_out_loss" in x] == [8, 16, 24, 30]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("images", marks=pytest.mark.slow),
        "sounds",
        pytest.param("clips", marks=pytest.mark.slow),
    ],
)
def test_runs_on_every_kind_are_stopped_and_go_on_with_the_same_bits(kind, tmp_path):
    """Labelled examples; clips of which some train as images; sample grids at the end."""
    config = points_config(num_steps=4, checkpoint_every=0, sample_every=4, num_samples=4)
    config.training.eval_every = 0
    config.data = DataConfig(
        source="mine", batch_size=8, labels=True, num_classes=3, **SMALL[kind]
    )
    config.model = tiny_unet()
    config.loss.focus = 0.5 if kind == "clips" else 0.0
    examples = random_examples(config.data, 30)
    labels = np.arange(30) % 3
    data = sources.arrays(examples[:20], examples[20:], labels[:20], labels[20:])
    workdir, other = tmp_path / "run", tmp_path / "other"
    for path in (workdir, other):
        path.mkdir()
    assert int(stopped_at(workdir, data, 2, config=config).step) == 2
    state = train.train(config, workdir, data)
    assert_same_bits(state, train.train(config, other, data))
    assert_same_run(workdir, other)
    assert (workdir / "samples" / "step_000004.png").exists()


@pytest.mark.parametrize(
    ("what", "at"),
    [
        ("evaluate", 8),
        ("draw", 30),
        pytest.param("draw", 12, marks=pytest.mark.slow),
        pytest.param("evaluate", 30, marks=pytest.mark.slow),
    ],
)
def test_a_stop_while_it_evaluates_or_draws_leaves_nothing_out(
    whole,
    points,
    tmp_path,
    monkeypatch,
    capsys,
    what,
    at,
):
    """Stops at steps 8 and 12, which have no checkpoint of their own, and 30, the last."""
    workdir, stop = tmp_path / "run", Stop()
    workdir.mkdir()
    with Checkpoints(workdir, writing=True) as checkpoints:
        plan = make_plan(config_of(), points)
        it = train.prepared_trainer(plan, workdir, checkpoints, stop)
        held_out, previews = it.periodic.held_out, it.periodic.previews
        program = held_out._loss if what == "evaluate" else previews._drawing._sampler

        def interrupted(*arguments):
            stop.wanted |= it_is_at[0] == at
            return program(*arguments)

        it_is_at = [0]
        run_due = it.periodic.run_due

        def noted(state, step, *others):
            it_is_at[0] = step
            return run_due(state, step, *others)

        it.periodic.run_due = noted
        if what == "evaluate":
            held_out._loss = interrupted
        else:
            previews._drawing._sampler = interrupted
        assert int(it.run().step) == at and stop.wanted
    assert f"saved at step {at}" in capsys.readouterr().out
    train.train(config_of(), workdir, points)
    assert_same_run(workdir, whole[0])


def test_what_a_kill_left_behind_the_checkpoint_is_done_again(
    whole,
    points,
    tmp_path,
):
    """Lines, snapshots and pictures of later steps, and a torn line, are removed."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    stopped_at(workdir, points, 13)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "loss": 99.0}\n{"step": 24, "held_out_l')
    (workdir / "ema_snapshots/step_00000099_std0.05.safetensors").write_text("later")
    (workdir / "samples").mkdir(exist_ok=True)
    (workdir / "samples/step_000024.png").write_text("later")
    state = train.train(config_of(), workdir, points)
    assert_same_bits(state, whole[1])
    assert_same_run(workdir, whole[0])


def test_a_kill_after_the_last_checkpoint_leaves_nothing_undone(
    whole,
    points,
    tmp_path,
    capsys,
):
    """The state of step 30 is saved, but its loss, its samples and loss.png are not."""
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    (workdir / "loss.png").unlink()
    (workdir / "reverse.png").write_text("of step 24")
    (workdir / "samples/step_000030.png").unlink()
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert "held_out_loss" in lines[-1]
    (workdir / "metrics.jsonl").write_text("".join(lines[:-1]))
    train.train(config_of(), workdir, points)
    assert "finished 30 steps" in capsys.readouterr().out
    assert_same_run(workdir, whole[0])
    train.train(config_of(), workdir, points)
    assert "is finished" in capsys.readouterr().out
    (workdir / "loss.png").unlink()  # The very last thing that is written.
    train.train(config_of(), workdir, points)
    assert_same_run(workdir, whole[0])


def test_less_steps_than_there_are_change_nothing(whole, points, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    train.train(config_of(num_steps=20), workdir, points)
    assert "is finished: it has 30 steps of 20" in capsys.readouterr().out
    assert run_folder.read_config(workdir) == config_of()
    assert_same_run(workdir, whole[0])


def test_what_was_lost_from_a_run_is_not_done_over(whole, points, tmp_path):
    """A run without the checkpoint in its run.json, or without config.json, is not new."""
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    (workdir / "checkpoints").rename(tmp_path / "elsewhere")
    before = files_of(workdir), lines_of(workdir)
    with pytest.raises(RunFailed, match="run.json says .* checkpoint of step 30"):
        train.train(config_of(), workdir, points)
    assert (files_of(workdir), lines_of(workdir)) == before
    shutil.rmtree(workdir / "checkpoints")
    (tmp_path / "elsewhere").rename(workdir / "checkpoints")
    (workdir / "config.json").unlink()
    for overwrite in (False, True):
        with pytest.raises(BadRequest, match="no config.json"):
            train.train(config_of(), workdir, points, train.Request(overwrite=overwrite))
    assert (files_of(workdir), lines_of(workdir)) == before


def test_weights_to_start_from_are_part_of_the_run_at_once(whole, points, tmp_path, capsys):
    """A run stopped before its first checkpoint goes on without --init_from."""
    config = points_config(num_steps=8, eval_every=0)
    expected = train.train(
        config, tmp_path / "a", points, train.Request(init_from=whole[0])
    )
    workdir = tmp_path / "b"
    with pytest.raises(KeyboardInterrupt):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer.Trainer, "_dispatch", _interrupt)
            train.train(config, workdir, points, train.Request(init_from=whole[0]))
    capsys.readouterr()
    state = train.train(config, workdir, points)
    assert "resuming" in capsys.readouterr().out
    assert_same_bits(state, expected)
    with pytest.raises(BadRequest, match="no effect: the run in .* is finished"):
        train.train(config, workdir, points, train.Request(init_from=whole[0]))
    config.training.num_steps = 9
    train.train(config, workdir, points, train.Request(init_from=whole[0]))
    assert "--init_from is not used" in capsys.readouterr().out


def pointers(tree):
    return {
        shard.data.unsafe_buffer_pointer()
        for x in jax.tree.leaves(tree)
        if not jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
        for shard in x.addressable_shards
    }


def test_what_comes_from_files_is_not_trained_in_their_memory(whole, points, tmp_path):
    """Restored memory may be NumPy's, at times free again once the state is donated."""
    seen, states = [], []
    with pytest.MonkeyPatch.context() as patch:
        restore = Checkpoints.restore

        def spied(self, like, step=None):
            found = restore(self, like, step)
            seen.append(found)
            return found

        def note(self, state, step):
            states.append(pointers(state))
            raise KeyboardInterrupt

        patch.setattr(Checkpoints, "restore", spied)
        patch.setattr(trainer.Trainer, "_dispatch", note)
        workdir = tmp_path / "run"
        shutil.copytree(whole[0], workdir)
        with pytest.raises(KeyboardInterrupt):
            train.train(config_of(num_steps=40), workdir, points)
        with pytest.raises(KeyboardInterrupt):
            train.train(
                points_config(), tmp_path / "new", points, train.Request(init_from=whole[0])
            )
    read = [found for found in seen if found is not None]
    assert len(states) == 2 and len(read) == 2
    for found, used in zip(read, states, strict=True):
        assert not pointers(found.parts) & used


def _interrupt(self, state, step):
    raise KeyboardInterrupt


@pytest.mark.parametrize("num_devices", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_on_another_number_of_devices_it_goes_on_with_the_same_losses(
    whole,
    points,
    tmp_path,
    monkeypatch,
    num_devices,
):
    """A run stopped at step 13 on four devices goes on, with losses to 1e-5."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    stopped_at(workdir, points, 13)
    mesh = mesh_of(num_devices)
    monkeypatch.setattr(devices, "make_mesh", lambda *_: mesh)
    state = train.train(config_of(), workdir, points)
    assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == num_devices
    for a, b in zip(lines_of(workdir), lines_of(whole[0]), strict=True):
        for name in ("loss", "held_out_loss"):
            if name in b:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-5)


def test_the_run_says_what_it_is(whole):
    workdir, state = whole
    record = read_record(workdir)
    assert record.step == 30 and record.wall_time_s > 0 and record.format == FORMAT
    assert record.parameters == sum(x.size for x in jax.tree.leaves(state.params))
    assert record.data["train"] == 20_000 and record.data["shape"] == [2]
    assert set(record.versions) >= {"python", "jax", "flax", "optax", "orbax-checkpoint"}
    assert (record.steps_per_dispatch, record.snapshot_every) == (4, 6)


def test_the_wall_time_goes_on(tmp_path, points):
    train.train(points_config(num_steps=10), tmp_path, points)
    record = read_record(tmp_path)
    write_record(tmp_path, dataclasses.replace(record, wall_time_s=1000.0))
    train.train(points_config(num_steps=20), tmp_path, points)
    after = read_record(tmp_path)
    assert 1000 < after.wall_time_s < 1100 and after.started == record.started


def test_other_examples_are_refused(tmp_path, points):
    """Examples that differ in one number among those looked at, or in their order."""
    config = points_config(num_steps=5)
    train.train(config, tmp_path, points)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    examples = points.train.copy()
    examples[-1, 0] += 1e-6
    for other in (examples, points.train[::-1], points.train[:-1]):
        with pytest.raises(BadRequest, match="examples are not those") as error:
            train.train(config, tmp_path, points._replace(train=other))
        assert "fingerprint" in str(error.value)
    hidden = points.train.copy()
    hidden[1] += 1  # Not one of the 256 that are looked at when images are streamed.
    with pytest.raises(BadRequest, match="whole_fingerprint"):
        train.train(config, tmp_path, points._replace(train=hidden))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


# Updates that are not finite


def data_with_bad_example(config, step):
    """Examples of which one, too large for float32 squares, is in the batch of a step."""
    size, seed = config.data.batch_size, config.seed
    train = np.full((40 * size, 2), 0.5, np.float32)
    bad = batch_indices(len(train), size, seed, step)[3]
    train[bad] = 1e30
    batches = [batch_indices(len(train), size, seed, n) for n in range(80)]
    held_out = np.zeros((8, 2), np.float32)
    return sources.arrays(train, held_out), [n for n, b in enumerate(batches) if bad in b]


def test_an_update_that_is_not_finite_is_skipped_and_counted(tmp_path, capsys):
    """Updates are skipped at the steps whose batches hold the bad example, no others."""
    config = points_config(num_steps=80, log_every=1, eval_every=0, checkpoint_every=40)
    data, bad = data_with_bad_example(config, 12)
    assert bad[0] == 12 and len(bad) == 2 and bad[1] >= 40
    state = train.train(config, tmp_path, data)
    assert int(state.tally.skipped) == 2 and int(state.step) == 80
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    lines = {line["step"]: line for line in lines_of(tmp_path)}
    assert [n - 1 for n, line in lines.items() if "loss" not in line] == bad
    assert lines[12]["skipped_steps"] == 0 and lines[13]["skipped_steps"] == 1
    assert "update skipped at step 12:" in capsys.readouterr().out


def test_a_skipped_step_leaves_weights_and_optimiser_as_they_are(tmp_path):
    config = points_config(num_steps=13, eval_every=0, checkpoint_every=0)
    data, _ = data_with_bad_example(config, 12)
    skipped = train.train(config, tmp_path / "a", data)
    config.training.num_steps = 12
    before = train.train(config, tmp_path / "b", data)
    for part in ("params", "opt_state"):
        for x, y in zip(
            jax.tree.leaves(getattr(skipped, part)),
            jax.tree.leaves(getattr(before, part)),
            strict=True,
        ):
            np.testing.assert_array_equal(x, y)
    assert (int(skipped.step), int(before.step)) == (13, 12)


def data_bad_from(config, step):
    """Examples of which every batch from a step on holds some that are too large."""
    size, seed = config.data.batch_size, config.seed
    train = np.full((40 * size, 2), 0.5, np.float32)
    for n in range(step, 40):
        train[batch_indices(len(train), size, seed, n)[3]] = 1e30
    return sources.arrays(train, np.zeros((8, 2), np.float32))


def test_too_many_in_a_row_stop_the_run_and_name_the_newest_good_checkpoint(tmp_path):
    """Checkpoints are not saved while updates are skipped, or good ones would be lost."""
    config = points_config(num_steps=80, eval_every=0, max_skipped_in_a_row=20)
    config.training.checkpoint_every = 6
    with pytest.raises(RunFailed) as error:
        train.train(config, tmp_path, data_bad_from(config, 13))
    said = str(error.value)
    assert said.startswith("loss is nan at step 32, and 20 updates in a row were skipped")
    assert "from step 13 on" in said
    assert "the newest checkpoint is that of step 12, whose loss" in said
    assert sorted(int(p.name) for p in tmp_path.glob("checkpoints/[0-9]*")) == [6, 12]


def test_a_streak_goes_on_over_a_stop(tmp_path):
    """Ten steps in a row skipped, four of them before the stop."""
    config = points_config(num_steps=17, eval_every=0, checkpoint_every=0)
    data = data_bad_from(config, 13)
    train.train(config, tmp_path, data)
    config.training.num_steps = 40
    with pytest.raises(RunFailed, match="step 22, and 10 updates .* step 13 on"):
        train.train(config, tmp_path, data)


def test_the_learning_rate_changes_only_if_one_says_so(tmp_path, points):
    config = points_config(num_steps=5)
    train.train(config, tmp_path, points)
    config.optimizer.learning_rate = 1e-2
    config.training.num_steps = 10
    with pytest.raises(BadRequest, match="or --change_learning_rate to go on"):
        train.train(config, tmp_path, points)
    train.train(config, tmp_path, points, train.Request(change_learning_rate=True))
    rates = [x["learning_rate"] for x in lines_of(tmp_path) if "learning_rate" in x]
    assert rates == pytest.approx([0.003 * 4 / 5, 1e-2])
    assert run_folder.read_config(tmp_path).optimizer.learning_rate == 1e-2
    config.model.width = 32
    with pytest.raises(BadRequest) as error:
        train.train(config, tmp_path, points, train.Request(change_learning_rate=True))
    assert "change_learning_rate" not in str(error.value)


def test_a_save_that_cannot_be_read_stops_the_run_at_once(points, tmp_path, monkeypatch):
    """A save of Orbax itself, below a folder whose name it takes for a pattern."""
    monkeypatch.setattr(files, "plain", lambda path: path.absolute())
    with pytest.raises(RunFailed, match="step 10 was written, but cannot be read back"):
        train.train(config_of(checkpoint_every=10), tmp_path / "exp [v2]", points)
    assert lines_of(tmp_path / "exp [v2]")[-1]["step"] < 30  # Not at the end of the run.
    assert read_record(tmp_path / "exp [v2]").step == 0


def test_the_first_save_of_each_start_is_read_back(points, tmp_path, monkeypatch):
    """First saves are read back, and later ones if that takes less than 1 % of the time."""
    read, real = [], Checkpoints.read_back

    def noted(self, step, like):
        assert like.keys() == parts_of(whole_state).keys()
        read.append(step)
        real(self, step, like)

    monkeypatch.setattr(Checkpoints, "read_back", noted)
    whole_state = init_of(points)
    workdir = tmp_path / "run"
    train.train(config_of(num_steps=10, checkpoint_every=4), workdir, points)
    train.train(config_of(num_steps=20, checkpoint_every=4), workdir, points)
    assert read == [4, 12]
    monkeypatch.setattr(saving, "_READING_SHARE", 1e9)
    train.train(config_of(num_steps=30, checkpoint_every=4), workdir, points)
    assert read == [4, 12, 24, 28, 30]


def init_of(points):
    config = config_of()
    tx = make_optimizer(config.optimizer, 30)
    return jax.eval_shape(lambda: init_state(make_plan(config, points).init_fn, tx, config))


def test_a_checkpoint_is_chosen_by_its_step_or_its_loss(points, tmp_path):
    """The best checkpoint is by the logged losses; one that is missing is named."""
    workdir, config = tmp_path / "run", config_of(checkpoint_every=8, keep_checkpoints=5)
    train.train(config, workdir, points)
    assert run_folder.saved_steps(workdir) == [8, 16, 24, 30]
    log = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = {8: 3.0, 16: 0.5, 24: 2.0, 30: 1.0}
    for line in lines:
        if "held_out_loss" in line:
            line["held_out_loss"] = losses[line["step"]]
    foreign = ['{"step": 8, "held_out_loss": "-1"}', '{"step": 24, "held_out_loss": NaN}']
    log.write_text("\n".join([*map(json.dumps, lines), *foreign]) + "\n")

    def step_of(text, kind="ema"):
        chosen = chosen_step(workdir, config, check_step("--step", text))
        return load_from_run(workdir, config, kind, step=chosen).step

    assert [step_of(text) for text in ("newest", "best", "8", "24")] == [30, 16, 8, 24]
    weights = load_from_run(workdir, config, "raw", step=8)
    assert not np.array_equal(
        jax.tree.leaves(weights.params)[0],
        jax.tree.leaves(load_from_run(workdir, config, "raw").params)[0],
    )
    with pytest.raises(BadRequest, match="no checkpoint of step 9; it has 8, 16, 24, 30"):
        step_of("9")
    # A rebuilt average is of a snapshot's step: these are 6, 12, 18, 24 and 30.
    assert step_of("12", "std:0.08") == 12 and step_of("newest", "std:0.08") == 30
    with pytest.raises(BadRequest, match="none of step 8, but of 6, 12, 18, 24, 30"):
        step_of("8", "std:0.08")
    for text in ("last", "-1", "1e3", "", "8.0"):
        with pytest.raises(BadRequest, match="must be the number of a step, newest or"):
            check_step("--step", text)
    log.write_text("")
    with pytest.raises(BadRequest, match="best: .* no checkpoint with a held_out_loss"):
        step_of("best")
    for path in (workdir / "checkpoints/16/state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(RunFailed, match="16 cannot be .* checkpoints: 8, 24, 30"):
        step_of("16")


def test_weights_that_are_not_finite_are_refused_by_name(whole, points, tmp_path):
    """Weights that are not finite, from a file, from a checkpoint and from snapshots."""
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.npz"
    config = run_folder.read_config(whole[0])
    save_to_file(good, load_from_run(whole[0], config, "ema"), config)
    names = list(weight_files.read(good).params)
    for number in (np.nan, np.inf):
        found = weight_files.read(good)
        found.params[names[1]].reshape(-1)[0] = number
        weight_files.write(bad, found, config)
        with pytest.raises(BadRequest) as error:
            train.train(config_of(), tmp_path / "run", points, train.Request(init_from=bad))
        assert f"not all numbers are finite in {names[1]} (of" in str(error.value)
        assert not (tmp_path / "run").exists()
    workdir = tmp_path / "spoilt"
    shutil.copytree(whole[0], workdir)
    state = jax.tree.map(lambda x: x, whole[1])
    params = jax.tree.map(jnp.copy, state.params)
    params = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), params)
    state = state._replace(step=jnp.int32(31), params=params)
    with Checkpoints(workdir, writing=True) as checkpoints:
        checkpoints.save(state)
    with pytest.raises(BadRequest, match="raw of .* step 31: not all .* and 11 more"):
        load_from_run(workdir, config, "raw")
    assert load_from_run(workdir, config, "ema").step == 31
    for path in (workdir / "ema_snapshots").glob("*std0.05*"):
        found = weight_files.read(path)
        found.params[names[0]].reshape(-1)[0] = np.nan
        weight_files.write(path, found, config)
    with pytest.raises(BadRequest, match=f"std:0.08 of .* finite in {names[0]} "):
        load_from_run(workdir, config, "std:0.08")


def test_a_run_whose_every_update_was_skipped_has_failed(points, tmp_path):
    """A run without a single update has failed, also if it was stopped in between."""
    config = config_of(num_steps=6, max_skipped_in_a_row=100)
    nowhere = points._replace(train=np.full_like(points.train, np.nan))
    for name, steps in (("whole", (6,)), ("resumed", (3, 6, 6))):
        for num_steps in steps:
            config.training.num_steps = num_steps
            with pytest.raises(RunFailed, match=f"all {num_steps} updates were skipped"):
                train.train(config, tmp_path / name, nowhere)
    once = np.full_like(points.train, np.nan)
    once[batch_indices(len(once), config.data.batch_size, config.seed, 3)] = 0.1
    config.training.num_steps = 6
    state = train.train(config, tmp_path / "once", points._replace(train=once))
    assert int(state.tally.skipped) == 5


def test_what_was_done_to_a_run_by_hand_is_named(whole, tmp_path):
    """Checkpoints that are gone; a snapshot of another network among the run's own."""
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    config = run_folder.read_config(workdir)
    path = min((workdir / "ema_snapshots").iterdir())
    found = weight_files.read(path)
    name = next(iter(found.params))
    found.params[name] = np.zeros(77, np.float32)
    weight_files.write(path, found, config)
    with pytest.raises(RunFailed, match=f"{path.name} is of another network"):
        load_from_run(workdir, config, "std:0.08")
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(RunFailed, match="is gone, .* has a checkpoint of step 30"):
        load_from_run(workdir, config, "ema")
    tree = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps({**tree, "loss": ""}))
    with pytest.raises(BadRequest, match="LossConfig is not a section"):
        run_folder.read_config(workdir)
