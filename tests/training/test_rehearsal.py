"""Rehearsals: the program is the one that runs, and what is read in it."""

import importlib.util
import json
import re

import jax
import pytest

from diffusion_jax.experiment.setup import make_plan, make_plan_of_shapes
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.runtime import devices, hlo, slices
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.interrupts import Stop
from diffusion_jax.training import rehearsal, train
from diffusion_jax.training.first_state import abstract_state
from helpers import pictures_config, points_config, tiny_unet


def without_metadata(text):
    """The text of a compiled program without where in our code its lines come from.

    Names are numbered as they come: a program out of the compilation cache has others.
    """
    text = re.sub(r", (metadata|frontend_attributes)=\{[^}]*\}", "", text)
    tables = "FileNames|FunctionNames|FileLocations|StackFrames"
    text = re.sub(rf"^({tables}|\d+ .*)\n", "", text, flags=re.MULTILINE)
    names: dict[str, str] = {}
    return re.sub(r"%[\w.-]+", lambda m: names.setdefault(m[0], f"%{len(names)}"), text)


def rehearsed(config):
    """The train step of a config for this process's devices, as a rehearsal lowers it."""
    mesh = train.mesh_of(config)
    plan = make_plan_of_shapes(config, mesh.devices.size, devices.platform_of(mesh))
    return rehearsal.train_step(plan, mesh, abstract_state(plan)), plan


@pytest.mark.parametrize(
    "kind", ["points", pytest.param("pictures", marks=pytest.mark.slow)]
)
def test_the_rehearsed_program_is_the_one_that_runs(kind, tmp_path):
    """Compiled from shapes alone, and as the trainer does from its arrays: the same HLO."""
    config = points_config()
    if kind == "pictures":
        config = pictures_config(tmp_path, 3, 8, 0.1)
    program, _ = rehearsed(config)
    workdir = tmp_path / "run"
    workdir.mkdir()
    with Checkpoints(workdir, 1, writing=True) as checkpoints:
        trainer = train.prepared_trainer(
            make_plan(config), workdir, checkpoints, Stop(lambda _: None)
        )
        with trainer._loader(0) as loader:
            batches = trainer._load(loader, 0, 2)
        lowered = trainer.train_steps.lower(trainer._first.state, batches, 2)
    ours = without_metadata(program.traced.lower().compile().as_text())
    theirs = without_metadata(lowered.compile().as_text())
    assert ours == theirs and "while(" in ours


def test_gradients_are_reduced_once_a_step():
    """Bytes of the all-reduces: the gradients, and a few scalars."""
    program, plan = rehearsed(points_config())
    found = hlo.read(program.traced.lower().compile().as_text())
    params = abstract_state(plan).params
    gradients = 4 * sum(x.size for x in jax.tree.leaves(params))
    assert set(found.collectives) == {"all-reduce"}
    assert gradients < found.collectives["all-reduce"].bytes < gradients + 100
    assert sum(found.kernels.values()) > 10


@pytest.mark.parametrize("fsdp", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_split_state_is_gathered_once_a_step(fsdp, tmp_path):
    """Bytes: the params gathered, the gradients reduced, and a number of each array."""
    config = pictures_config(tmp_path, 3, 8, 0.1)
    config.parallel.fsdp = fsdp
    program, plan = rehearsed(config)
    found = hlo.read(program.traced.lower().compile().as_text()).collectives
    leaves = jax.tree.leaves(abstract_state(plan).params)
    params = 4 * sum(x.size for x in leaves)
    assert set(found) == {"all-gather", "all-reduce"}
    assert 0.9 * params < found["all-gather"].bytes <= params
    # Over "fsdp" first, and what a device keeps of that over "data".
    reduced = params + (params / fsdp if fsdp < 4 else 0)
    assert 0.9 * reduced < found["all-reduce"].bytes <= reduced + 4 * len(leaves) + 100


def test_a_sampler_has_no_collectives():
    program, plan = rehearsed(points_config())
    mesh = devices.make_mesh()
    program = rehearsal.sampler(plan, mesh, abstract_state(plan))
    assert program.batch_size % mesh.devices.size == 0 and program.passes == 20
    assert not hlo.read(program.traced.lower().compile().as_text()).collectives


def test_where_the_all_reduce_is_hidden():
    """At the batch that is named computing takes longer, with one example less shorter."""
    slice_ = slices.parse("--rehearse", "v5e:16x16")
    reading = hlo.Reading({}, {"all-reduce": hlo.Collectives(2, 143_000_000)}, 10**9)

    def at(per_chip):
        flops = 3.6e10 * per_chip
        return rehearsal.roofline(flops, reading, slice_, "bfloat16", 256 * per_chip)

    least = at(4)["hidden_from_batch_size_per_chip"]
    assert least == at(32)["hidden_from_batch_size_per_chip"] > 1
    for per_chip, is_hidden in ((least, True), (least - 1, False)):
        found = at(per_chip)
        assert (found["compute_seconds"] >= found["collective_seconds"]) == is_hidden
    # 2 x 255/256 x 143 MB at 200 GB/s.
    assert at(1)["collective_seconds"] == pytest.approx(1.4244e-3, rel=1e-3)
    one = slices.parse("--rehearse", "h100")
    assert "hidden_from_batch_size" not in rehearsal.roofline(1e9, reading, one, "", 8)


def test_a_plan_of_shapes_needs_no_files(capsys):
    config = points_config()
    config.data.source, config.data.path = "folder", "/nowhere"
    config.data.image_size, config.data.channels = (8,), 0
    config.model = tiny_unet()
    plan = make_plan_of_shapes(config, 4, "tpu")
    assert plan.config.data.channels == 3 and "assumed" in capsys.readouterr().out
    assert plan.data.shape == (8, 8, 3) and not len(plan.data.train)
    with pytest.raises(BadRequest, match="number of devices, 64"):
        make_plan_of_shapes(config, 64, "tpu")
    # The convolutions of the other platform, which has none of this process's own.
    for platform, has_own in (("tpu", False), ("cpu", True)):
        plan = make_plan_of_shapes(config, 4, platform)
        x = jax.ShapeDtypeStruct((2, 8, 8, 3), "float32")
        t = jax.ShapeDtypeStruct((2,), "float32")
        params = jax.eval_shape(plan.init_fn, jax.random.key(0))
        jaxpr = jax.make_jaxpr(lambda p, x, t, f=plan: apply(f, p, x, t))(params, x, t)
        assert ("cpu_convolution" in str(jaxpr)) == has_own


def apply(plan, params, x, t):
    return plan.model.apply_fn(params, x, t, {}, train=False, key=None)


# The command


def test_bad_requests_are_refused_and_nothing_is_written(command, tmp_path):
    line = ["train.py", "--config", "digits", "--rehearse"]
    for options, said in (
        (["v5:2x2"], "did you mean v5p?"),
        (["h100:8", "--smoke"], "--rehearse and --smoke: give one of them"),
        (["h100:8", "--dry_run"], "--rehearse and --dry_run"),
        (["h100:8", "--overwrite"], "--rehearse and --overwrite"),
        (["h100:8", "--init_from", "x"], "--rehearse and --init_from"),
        (["h100:8", "--workdir", "x"], "--rehearse and --workdir"),
        (["h100:8", "--profile", "3:4"], "--rehearse and --profile"),
    ):
        result = command(*line, *options, cwd=tmp_path, check=2)
        assert said in result.stderr and len(result.stderr.splitlines()) == 1
    for name, extra, found in (
        ("v5e:2x2", "tpu", PLUGINS["v5e:2x2"]),
        ("h100:8", "cuda", PLUGINS["h100:1"]),
    ):
        if not found:
            result = command(*line, name, cwd=tmp_path, check=2)
            assert f'pip install -e ".[{extra}]"' in result.stderr
    assert not list(tmp_path.iterdir())


def has(*modules):
    return any(importlib.util.find_spec(name) for name in modules)


PLUGINS = {
    "v5e:2x2": has("libtpu"),
    "h100:1": importlib.util.find_spec("jax_plugins") is not None
    and has("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLUGINS)
def test_digits_are_rehearsed(name, command, tmp_path):
    if not PLUGINS[name]:
        pytest.skip(f"the compiler for {name} is not installed")
    result = command(
        "train.py", "--config", "digits", "--rehearse", name, cwd=tmp_path, check=0
    )
    path = tmp_path / "runs" / "rehearsals" / f"digits_{name.replace(':', '_')}.json"
    assert f"saved in {path.relative_to(tmp_path)}" in result.stdout
    found = json.loads(path.read_text())
    assert found["num_parameters"] == 284_513
    step, chain = found["train_step"], found["sampler"]
    assert not chain["collectives"] and step["kernels"]["convolution"] > 20
    if name == "v5e:2x2":
        assert 4 * 284_513 < step["collectives"]["all-reduce"]["bytes"] < 4 * 284_513 + 100
    assert step["flop"] == pytest.approx(3 * chain["flop"], rel=0.05)
