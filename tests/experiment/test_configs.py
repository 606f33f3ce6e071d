"""The configs that come with the project: each is consistent, and is described."""

import math

import jax
import pytest

from diffusion_jax.config import from_json, to_json
from diffusion_jax.experiment import build, build_sampler, validation
from diffusion_jax.jobs.command_line import load_config
from helpers import ROOT

PATHS = sorted((ROOT / "configs").glob("*.py"))


def concrete(path):
    """A config whose channels are known; 0 stands for what the data has."""
    config = load_config(str(path))
    config.data.channels = config.data.channels or (2 if config.data.sound_length else 3)
    return config


@pytest.mark.parametrize("path", PATHS, ids=[p.stem for p in PATHS])
def test_a_config_holds_together_and_survives_the_way_to_the_run(path):
    config = concrete(path)
    validation.check(config)
    assert config.name == path.stem
    assert from_json(to_json(config)) == config
    model = build.without_network(config.process)
    table = build_sampler.make_table(model, config.sampling)
    assert table.num_rows == config.sampling.steps
    shapes = jax.eval_shape(build.make_network(config)[0], jax.random.key(0))
    assert jax.tree.leaves(shapes)


@pytest.mark.parametrize("path", PATHS, ids=[p.stem for p in PATHS])
def test_a_config_says_command_hardware_time_and_result(path):
    said = path.read_text().split('"""')[1]
    command = f"Command:   python train.py --config configs/{path.name}"
    for line in (command, "Hardware:  ", "Time:      ", "Result:    "):
        assert f"\n{line}" in said
    assert f"configs/{path.name}" in (ROOT / "docs/commands.md").read_text()


@pytest.mark.parametrize(
    ("name", "count"), [("cifar10", 35_746_307), ("folder256", 113_673_219)]
)
def test_the_papers_networks_have_their_size(name, count):
    config = concrete(ROOT / f"configs/{name}.py")
    shapes = jax.eval_shape(build.make_network(config)[0], jax.random.key(0))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == count
