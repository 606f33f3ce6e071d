"""Fields of a config that describe themselves: checks, help and the page of the docs."""

import dataclasses

import pytest

from diffusion_jax import config as configs
from diffusion_jax.config import Config, MLPConfig, UNetConfig, page
from diffusion_jax.experiment import validation
from diffusion_jax.jobs.command_line import load_config
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.fields import check_values, leaves_of, without_effect
from helpers import ROOT

LEAVES = {
    leaf.path: leaf
    for model in (UNetConfig(), MLPConfig())
    for leaf in leaves_of(Config(model=model))
}
BOUNDED = [path for path, leaf in LEAVES.items() if leaf.about.range]
CHOSEN = [path for path, leaf in LEAVES.items() if leaf.about.choices]


def config_with(path, value):
    section, _, name = path.rpartition(".")
    is_mlp = section == "model" and name not in {
        field.name for field in dataclasses.fields(UNetConfig)
    }
    config = Config(model=MLPConfig() if is_mlp else UNetConfig())
    setattr(getattr(config, section) if section else config, name, value)
    return config


def test_every_field_has_help_and_every_number_its_bounds():
    for path, leaf in LEAVES.items():
        assert len(leaf.about.help) > 1 and leaf.about.help.endswith("."), path
        is_rate = path in ("process.beta_start", "process.beta_end", "ema.decay")
        if leaf.kind in (int, float) and not is_rate:
            assert leaf.about.range is not None, path
        assert leaf.value == leaf.default, path


@pytest.mark.parametrize("path", BOUNDED)
def test_a_number_just_outside_of_its_range_is_refused_by_name(path):
    low, high = LEAVES[path].about.range
    step = 1 if LEAVES[path].kind is int else 1e-9 * max(1, abs(low))
    for inside in (low, high):
        check_values(config_with(path, inside))
    for outside in (low - step, high * 1.5 + 1):
        with pytest.raises(BadRequest, match=rf"^{path} \(.*must be in"):
            check_values(config_with(path, outside))


@pytest.mark.parametrize("path", CHOSEN)
def test_every_choice_is_taken_and_a_misspelt_one_answered(path):
    choices = LEAVES[path].about.choices
    for choice in choices:
        check_values(config_with(path, choice))
    longest = max(choices, key=len)
    with pytest.raises(BadRequest, match=f"^{path} .*did you mean {longest}"):
        check_values(config_with(path, longest + "x"))


def test_a_field_that_another_one_makes_idle_is_told_of():
    found = without_effect(config_with("loss.min_snr_gamma", 3.0))
    assert len(found) == 1
    assert found[0].startswith("loss.min_snr_gamma (3.0) has no effect: it is for")
    config = config_with("loss.min_snr_gamma", 3.0)
    config.loss.weighting = "min_snr"
    assert without_effect(config) == []
    config = config_with("training.likelihood_timesteps", 7)
    assert len(without_effect(config)) == 1
    config.training.likelihood_every = 10
    assert without_effect(config) == []


@pytest.mark.parametrize("path", [p for p, x in LEAVES.items() if x.about.only_with])
def test_what_a_field_is_for_are_values_of_another_field(path):
    other, values = LEAVES[path].about.only_with
    choices = LEAVES[other].about.choices
    assert values == ("",) or set(values) <= set(choices)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=str)
def test_no_config_of_ours_has_an_idle_field(path):
    config = load_config(str(path))
    assert without_effect(config) == []
    if config.data.channels:
        validation.check(config)


def test_the_page_of_the_docs_is_up_to_date():
    assert (ROOT / "docs" / "config.md").read_text() == page()
    rows = [line for line in page().splitlines() if line.startswith("| `")]
    assert len(rows) == len(LEAVES) + 1  # model.dtype is in both networks.


def test_the_help_of_a_config_lists_every_field():
    text = configs.help_text(Config())
    for leaf in leaves_of(Config()):
        assert f"--config.{leaf.path}=" in text and leaf.about.help in text
