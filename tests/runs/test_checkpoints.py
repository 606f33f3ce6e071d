"""Checkpoints: which are kept, what damage does, and what other versions have written."""

import contextlib
import errno
import gc
import json
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from diffusion_jax.config import Config
from diffusion_jax.runs import ema_snapshots
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.checkpoints import (
    Checkpoints,
    abstract,
    part_name,
    parts_of,
    with_parts,
)
from diffusion_jax.runs.ema import Moment
from diffusion_jax.runs.record import FORMAT, Record, read_record, write_record
from diffusion_jax.runtime.errors import BadRequest, RunFailed
from diffusion_jax.runtime.text import utc_now
from diffusion_jax.training.train_state import init_state
from helpers import ODD_NAMES

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def state():
    def init_fn(key):
        return {"w": jax.random.normal(key, (40, 7)), "b": jnp.ones(7)}

    return init_state(init_fn, optax.adam(0.1), Config())


def at(state, step):
    """The state at a step, with params of this step alone."""
    params = jax.tree.map(lambda x: x + step, state.params)
    return state._replace(step=jnp.int32(step), params=params)


def like(state):
    return parts_of(abstract(state, HERE))


def kept(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*"))


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def record(workdir, **changed):
    """Write run.json, as the trainer does before it saves."""
    values = {
        "format": FORMAT,
        "version": "0.1.0",
        "versions": {},
        "devices": "1 x cpu",
        "data": {},
        "parameters": 287,
        "started": utc_now(),
    }
    write_record(workdir, Record(**values | changed))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, state):
    """A run with checkpoints 1, 2, 3."""
    workdir = tmp_path_factory.mktemp("run")
    record(workdir)
    with Checkpoints(workdir, 3, writing=True) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(at(state, step))
    return workdir


def test_the_newest_and_the_best_are_kept(tmp_path, state):
    """The newest and the best checkpoint are kept, where losses come after their saves."""
    losses = {}
    with Checkpoints(tmp_path, 2, writing=True) as checkpoints:
        for step, loss in {1: 3.0, 2: 1.0, 3: 2.0, 4: 5.0, 5: None, 6: 4.0}.items():
            checkpoints.save(at(state, step))
            if loss is not None:
                losses[step] = loss
                checkpoints.score(step, loss)
    assert kept(tmp_path) == [2, 5, 6]
    with Checkpoints(tmp_path, 2, writing=False) as checkpoints:
        for step, loss in losses.items():
            checkpoints.score(step, loss)
        assert checkpoints.steps == (2, 5, 6) and checkpoints.best_step == 2


def test_without_held_out_losses_the_newest_are_kept_alone(tmp_path, state):
    with Checkpoints(tmp_path, 2, writing=True) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(at(state, step))
    assert kept(tmp_path) == [4, 5]


def test_all_of_a_state_comes_back(saved, state):
    with Checkpoints(saved, writing=False) as checkpoints:
        found = checkpoints.restore(like(state))
    assert (found.step, found.damaged) == (3, {})
    assert_same(with_parts(state, found.parts), at(state, 3))


def test_one_part_can_be_read_alone(saved, state):
    name = part_name("std:0.05")
    with Checkpoints(saved, writing=False) as checkpoints:
        found = checkpoints.restore({name: abstract(state.params, HERE)})
    assert list(found.parts) == [name]
    assert_same(found.parts[name], state.emas["std:0.05"])


def test_no_checkpoint_is_none(tmp_path, state):
    (tmp_path / "checkpoints").mkdir()
    with Checkpoints(tmp_path, writing=False) as checkpoints:
        assert checkpoints.restore(like(state)) is None


def flipped(path, rng):
    """Change one random bit of a file."""
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(bytes(content))


def files_of(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


def test_a_flipped_bit_changes_no_weight_unnoticed(saved, state, tmp_path):
    """A bit in any file of the newest checkpoint: it is read whole, or not at all."""
    names = [p.relative_to(saved) for p in files_of(saved / "checkpoints/3")]
    refused = 0
    for i, name in enumerate(names * 2):
        workdir = tmp_path / str(i)
        shutil.copytree(saved, workdir)
        flipped(workdir / name, RNG)
        with Checkpoints(workdir, writing=False) as checkpoints:
            found = checkpoints.restore(like(state))
        assert_same(with_parts(state, found.parts), at(state, found.step))
        assert found.step == (2 if found.damaged else 3)
        refused += bool(found.damaged)
    assert refused > len(names) / 2


@pytest.mark.slow
def test_three_hundred_flipped_bits(saved, state, tmp_path):
    names = [p.relative_to(saved) for p in files_of(saved / "checkpoints/3")]
    # Every second bit is in the file with the numbers.
    large = max(names, key=lambda name: (saved / name).stat().st_size)
    for i in range(300):
        workdir = tmp_path / "run"
        shutil.copytree(saved, workdir)
        flipped(workdir / (large if i % 2 else names[i % len(names)]), RNG)
        with Checkpoints(workdir, writing=False) as checkpoints:
            found = checkpoints.restore(like(state))
        assert_same(with_parts(state, found.parts), at(state, found.step))
        shutil.rmtree(workdir)


def restored_after(change, state, workdir):
    """Restore after Orbax itself has written other parts, as a valid checkpoint."""
    record(workdir)
    with Checkpoints(workdir, writing=True) as checkpoints:
        checkpoints.save(at(state, 1))
        checkpoints.save(at(state, 2))
    path = workdir / "checkpoints/2"
    tree = ocp.load(path)
    change(tree["parts"])
    shutil.rmtree(path)
    with ocp.training.Checkpointer((workdir / "checkpoints").absolute()) as writer:
        writer.save(2, tree)
    with Checkpoints(workdir, writing=False) as checkpoints:
        return checkpoints.restore(like(state))


@pytest.mark.parametrize("part", ["params", "opt_state", "tally"])
def test_a_number_that_changed_in_the_file_is_noticed(state, tmp_path, part):
    def change(parts):
        leaves, treedef = jax.tree.flatten(parts[part])
        words = np.array(leaves[0]).reshape(-1).view(np.uint32)
        words[-1] ^= 1  # The last bit of a number.
        leaves[0] = jnp.asarray(words.view(leaves[0].dtype).reshape(leaves[0].shape))
        parts[part] = jax.tree.unflatten(treedef, leaves)

    found = restored_after(change, state, tmp_path)
    assert found.step == 1 and f"wrong checksum of {part}" in found.damaged[2]


def test_the_same_bits_of_another_type_are_noticed(state, tmp_path):
    """A key without its type, as one flipped bit of Orbax's own notes leaves it."""

    def change(parts):
        parts["key"] = jax.random.key_data(parts["key"])

    found = restored_after(change, state, tmp_path)
    assert found.step == 1 and "another type or shape of key" in found.damaged[2]


@pytest.mark.parametrize("how", ["emptied", "halved", "missing"])
def test_a_torn_checkpoint_is_set_aside_and_the_one_before_used(
    saved, state, tmp_path, how, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    for path in files_of(workdir / "checkpoints/3/state"):
        content = path.read_bytes()
        if how == "missing":
            path.unlink()
        else:
            path.write_bytes(content[: len(content) // 2] if how == "halved" else b"")
    with Checkpoints(workdir, writing=True) as checkpoints:
        found = checkpoints.restore(like(state))
        assert found.step == 2 and list(found.damaged) == [3]
        checkpoints.set_aside(found.damaged)
        assert checkpoints.steps == (1, 2)
        checkpoints.save(at(state, 3))
    assert kept(workdir) == [2, 3]
    assert "checkpoint 3 is damaged" in capsys.readouterr().out
    assert (workdir / "damaged_checkpoints/3").is_dir()


def test_with_none_left_nothing_is_touched(saved, state, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    for path in files_of(workdir / "checkpoints"):
        path.write_bytes(b"")
    before = sorted(workdir.rglob("*"))
    with Checkpoints(workdir, writing=True) as checkpoints:
        with pytest.raises(RunFailed) as error:
            checkpoints.restore(like(state))
    said = str(error.value)
    assert all(f"checkpoints/{step}:" in said for step in (1, 2, 3))
    assert "nothing was changed" in said and "\n" not in said
    assert "overwrite" not in said
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_run_under_any_name_is_saved_and_can_be_moved(saved, state, tmp_path, name):
    """Odd names of a run and of a folder above it; a run that is moved to or from one."""
    workdir, moved = tmp_path / name / name, tmp_path / f"moved {name}"
    workdir.mkdir(parents=True)
    record(workdir)
    with Checkpoints(workdir, 1, writing=True) as checkpoints:
        for step in (1, 2):
            checkpoints.save(at(state, step))
        checkpoints.wait()
        checkpoints.read_back(2, like(state))
    shutil.copytree(workdir, tmp_path / "plain")
    shutil.copytree(saved, moved)
    for folder, step in ((workdir, 2), (tmp_path / "plain", 2), (moved, 3)):
        with Checkpoints(folder, writing=False) as checkpoints:
            found = checkpoints.restore(like(state))
        assert (found.step, found.damaged) == (step, {})
        assert_same(with_parts(state, found.parts), at(state, step))


def copied(saved, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    return workdir


def test_what_cannot_be_read_back_is_said_at_once(saved, state, tmp_path):
    workdir = copied(saved, tmp_path)
    for path in files_of(workdir / "checkpoints/3/state/ocdbt.process_0/d"):
        os.truncate(path, path.stat().st_size // 2)
    shutil.rmtree(workdir / "checkpoints/2/state/d")
    with Checkpoints(workdir, writing=True) as checkpoints:
        checkpoints.read_back(1, like(state))
        for step in (2, 3):
            with pytest.raises(RunFailed, match=f"step {step} .* cannot be read back"):
                checkpoints.read_back(step, like(state))


@contextlib.contextmanager
def one_file_left_to_open():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/proc/self/fd"))) + 16
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    opened = []
    try:
        with contextlib.suppress(OSError):
            while True:
                opened.append(os.open(os.devnull, os.O_RDONLY))
        os.close(opened.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in opened:
            os.close(descriptor)


def test_too_many_open_files_are_not_the_checkpoints_fault(saved, state, tmp_path):
    workdir = copied(saved, tmp_path)
    before = sorted(workdir.rglob("*"))
    with Checkpoints(workdir, writing=True) as checkpoints:
        gc.collect()  # Files that would be closed meanwhile.
        with one_file_left_to_open(), pytest.raises(RunFailed) as error:
            checkpoints.restore(like(state))
        said = str(error.value)
        assert "Too many open files" in said and "damaged" not in said
        assert "though the checkpoint may be whole" in said
        assert "overwrite" not in said and "nothing was changed" in said
        assert checkpoints.restore(like(state)).step == 3
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize(
    "fault",
    [
        PermissionError(errno.EACCES, "Permission denied"),
        MemoryError(),
        ValueError("RESOURCE_EXHAUSTED: of memory"),
    ],
)
def test_the_newest_is_not_passed_over_for_want_of_permission(
    saved, state, tmp_path, monkeypatch, fault
):
    """An unreadable newest checkpoint is an error: the one before would lose work."""
    with Checkpoints(copied(saved, tmp_path), writing=True) as checkpoints:
        load = checkpoints._checkpointer.load

        def fails(step, *arguments):
            if step == 3:  # As Orbax does it, whatever the cause.
                raise KeyError("incompatible handler") from fault
            return load(step, *arguments)

        monkeypatch.setattr(checkpoints._checkpointer, "load", fails)
        with pytest.raises(RunFailed, match="3 cannot be .* checkpoint may be whole"):
            checkpoints.restore(like(state))


def test_a_fault_that_passes_costs_no_checkpoint(saved, state, tmp_path, monkeypatch):
    """A newest checkpoint that cannot be read, and a moment later can."""
    workdir, tried = copied(saved, tmp_path), []
    with Checkpoints(workdir, writing=False) as checkpoints:
        load = checkpoints._checkpointer.load

        def fails_first(step, *arguments):
            tried.append(step)
            if len(tried) == 1:
                raise ValueError("DATA_LOSS: of a moment")
            return load(step, *arguments)

        monkeypatch.setattr(checkpoints._checkpointer, "load", fails_first)
        found = checkpoints.restore(like(state))
    assert (found.step, found.damaged, tried) == (3, {}, [3, 2, 3])


@pytest.mark.parametrize("name", ["manifest.ocdbt", "_METADATA", "commit_success.txt"])
def test_a_named_pipe_in_a_checkpoint_is_not_waited_for(saved, state, tmp_path, name):
    workdir = copied(saved, tmp_path)
    (workdir / "checkpoints/3/state" / name).unlink()
    os.mkfifo(workdir / "checkpoints/3/state" / name)
    with Checkpoints(workdir, writing=False) as checkpoints:
        found = checkpoints.restore(like(state))
    assert found.step == 2 and "is a named pipe" in found.damaged[3]


def test_a_checkpoint_of_another_version_says_what_it_lacks(tmp_path, state):
    """A checkpoint of the first version: one average, no checksums, no run.json."""
    old = {"params": state.params, "ema_params": state.params, "step": state.step}
    folder = (tmp_path / "checkpoints").absolute()
    with ocp.training.Checkpointer(folder) as writer:
        writer.save(5, old)
    wanted = {part_name("std:0.1"): abstract(state.params, HERE)}
    with Checkpoints(tmp_path, writing=False) as checkpoints:
        with pytest.raises(RunFailed) as error:
            checkpoints.restore(wanted)
    said = str(error.value)
    assert "has no ema std:0.1, but ema_params, params, step" in said
    assert "before 0.1.0" in said


def test_the_checksum_notices_every_single_bit(state):
    """A changed bit of a small tree changes its checksum, computed as documented."""
    from diffusion_jax.runs.checkpoints import _checksum

    words = RNG.integers(0, 2**32, 5, np.uint32)
    whole = int(_checksum({"a": words}))
    odd = 2 * np.arange(5, dtype=np.uint64) + 1
    assert whole == int((words * odd).sum() % 2**32)
    for i in range(5):
        for bit in range(32):
            changed = words.copy()
            changed[i] ^= np.uint32(1 << bit)
            assert int(_checksum({"a": changed})) != whole


def test_run_json_is_read_as_it_was_written_or_refused(tmp_path):
    record(tmp_path, step=7, wall_time_s=1.5)
    found = read_record(tmp_path)
    assert (found.step, found.wall_time_s, found.format) == (7, 1.5, FORMAT)
    tree = json.loads((tmp_path / "run.json").read_text())
    # A later version may write more fields.
    (tmp_path / "run.json").write_text(json.dumps(tree | {"more": 1}))
    assert read_record(tmp_path) == found
    wrong = [{"step": "7"}, {"step": -1}, {"data": "abc"}, {"versions": None}]
    for broken in ("{", "[]", "{}", *(json.dumps(tree | change) for change in wrong)):
        (tmp_path / "run.json").write_text(broken)
        with pytest.raises(BadRequest, match="run.json is damaged"):
            read_record(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(tree | {"format": FORMAT + 1}))
    with pytest.raises(BadRequest, match="this version reads formats up to"):
        read_record(tmp_path)


def test_a_checkpoint_under_another_name_is_not_believed(saved, state, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    shutil.rmtree(workdir / "checkpoints/3")
    (workdir / "checkpoints/2").rename(workdir / "checkpoints/280")
    with Checkpoints(workdir, writing=False) as checkpoints:
        found = checkpoints.restore({"params": abstract(state.params, HERE)})
    assert found.step == 1 and "that of step 2" in found.damaged[280]


def test_what_are_no_snapshots_is_left_out(tmp_path):
    folder = run_folder.snapshots_path(tmp_path)
    folder.mkdir()
    for name in (
        "step_00000500_std0.05.safetensors",
        "step_00000500_std0.05-1.safetensors",
        "step_00000500_std0.5.safetensors",
        "step_00000000_std0.05.safetensors",
        "notes.txt",
        ".step_00000500_std0.1.safetensors.123",
    ):
        (folder / name).touch()
    assert list(ema_snapshots.moments(tmp_path)) == [Moment(500, 0.05)]
    ema_snapshots.delete_after(tmp_path, 499)
    assert len(list(folder.iterdir())) == 4  # The valid one and what a kill left are gone.
