"""Fields of a config that describe themselves: checks, help and the page of the docs."""

import dataclasses

import pytest

from diffusion_jax.config import Config, MLPConfig, UNetConfig, help_text, page
from diffusion_jax.data import sources
from diffusion_jax.experiment import validation
from diffusion_jax.jobs.command_line import load_config
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.fields import (
    NOT_SET,
    SET,
    check_values,
    described,
    leaves_of,
    without_effect,
)
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
        # Tuples that are checked as a whole.
        of_own = path in ("data.image_size", "process.betas", "sampling.timesteps")
        if leaf.kind not in (str, bool) and not of_own:
            assert leaf.about.range is not None, path
        assert leaf.value == leaf.default, path


@pytest.mark.parametrize("path", BOUNDED)
def test_a_number_just_outside_of_its_range_is_refused_by_name(path):
    """Numbers outside, at ends that do not belong to the range, and in a tuple."""
    leaf = LEAVES[path]
    low, high = leaf.about.range
    whole = leaf.kind in (int, tuple[int, ...])
    below, above = (
        (low - 1, high + 1) if whole else (low - 1e-9, high + max(1e-9, 1e-9 * high))
    )

    def config_of(value):
        is_tuple = isinstance(leaf.default, tuple)
        return config_with(path, (value, high / 2) if is_tuple else value)

    for end, outside in ((low, below), (high, above)):
        if end not in leaf.about.excluded:
            check_values(config_of(end))
            end = outside
        with pytest.raises(BadRequest, match=rf"^{path} \({end}\) must be in {low} "):
            check_values(config_of(end))


@dataclasses.dataclass
class Section:
    share: float = described(0.5, "A share.", range=(0, 1), excluded=(0, 1))
    rate: float = described(0.5, "A rate.", range=(0, 1), excluded=(1,))
    sizes: tuple[int, ...] = described((), "Sizes.", range=(2, 9))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"share": 1.0}, "share (1.0) must be in 0 .. 1, both excluded"),
        ({"rate": 1.0}, "rate (1.0) must be in 0 .. 1, 1 excluded"),
        ({"rate": -0.5}, "rate (-0.5) must be in 0 .. 1, 1 excluded"),
        ({"sizes": (2, 10, 9)}, "sizes (10) must be in 2 .. 9"),
    ],
)
def test_a_refusal_says_which_ends_are_excluded_and_which_element_is_wrong(values, said):
    check_values(Section(0.1, 0.0, (2, 9)))
    with pytest.raises(BadRequest) as error:
        check_values(Section(**values))
    assert str(error.value) == said


@pytest.mark.parametrize("path", CHOSEN)
def test_every_choice_is_taken_and_a_misspelt_one_answered(path):
    choices = LEAVES[path].about.choices
    for choice in choices:
        check_values(config_with(path, choice))
    longest = max(choices, key=len)
    with pytest.raises(BadRequest, match=f"^{path} .*did you mean {longest}"):
        check_values(config_with(path, longest + "x"))


# A field, its changed value, other fields that leave it no effect, and a remedy.
IDLE = [
    ("data.resize", "squash", {}, {"data.source": "folder"}),
    ("data.resize", "squash", {"data.source": "two_moons"}, {"data.source": "npz"}),
    ("data.unreadable", "skip", {}, {"data.source": "tfds:cifar10"}),
    ("data.memory_gib", 0.5, {}, {"data.source": "tfds:mnist"}),
    ("data.num_workers", 4, {}, {"data.source": "folder"}),
    ("data.split", "train[:9%]", {"data.source": "folder"}, {"data.source": "tfds:x"}),
    ("data.held_out", "x", {"data.source": "swiss_roll"}, {"data.source": "npz"}),
    (
        "data.held_out_fraction",
        0.1,
        {"data.held_out": "x", "data.source": "npz"},
        {"data.held_out": ""},
    ),
    ("data.held_out_fraction", 0.2, {}, {"data.source": "npz"}),
    ("data.held_out_fraction", 0.3, {}, {"data.source": "tfds:mnist"}),
    ("process.zero_terminal_snr", True, {"process.schedule": "jsd"}, {}),
    ("process.beta_start", 0.01, {"process.schedule": "cosine"}, {}),
    (
        "process.beta_end",
        0.3,
        {"process.schedule": "jsd"},
        {"process.schedule": "constant"},
    ),
    ("loss.huber_delta", 2.0, {"loss.norm": "l1"}, {"loss.norm": "huber"}),
    ("loss.min_snr_gamma", 3.0, {}, {"loss.weighting": "min_snr"}),
    ("loss.p2_gamma", 0.5, {"loss.weighting": "snr"}, {"loss.weighting": "p2"}),
    ("loss.p2_k", 0.5, {}, {"loss.weighting": "p2"}),
    (
        "loss.p2_k",
        2.0,
        {"loss.weighting": "p2", "loss.p2_gamma": 0.0},
        {"loss.p2_gamma": 0.5},
    ),
    ("loss.sigmoid_bias", 2.0, {}, {"loss.weighting": "sigmoid"}),
    ("loss.variational_scale", 0.1, {"loss.kind": "variational"}, {"loss.kind": "hybrid"}),
    ("optimizer.weight_decay", 0.1, {}, {"optimizer.name": "adamw"}),
    ("ema.snapshots", 7, {"ema.stds": ()}, {"ema.stds": (0.1,)}),
    ("training.num_held_out", 9, {"training.eval_every": 0}, {}),
    ("training.num_samples", 9, {"training.sample_every": 0}, {}),
    ("training.sample_steps", 9, {"training.sample_every": 0}, {}),
    ("training.likelihood_timesteps", 7, {}, {"training.likelihood_every": 10}),
    ("sampling.steps", 7, {"sampling.timesteps": (9.0,)}, {"sampling.timesteps": ()}),
    ("sampling.spacing", "karras", {"sampling.timesteps": (9.0,)}, {}),
    ("sampling.eta", 0.5, {}, {"sampling.sampler": "dpmpp_3m"}),
    ("sampling.churn", 0.5, {"sampling.sampler": "ddim"}, {"sampling.sampler": "heun"}),
    ("sampling.variance", "learned", {"sampling.sampler": "ddim"}, {}),
    ("sampling.langevin_step_size", 0.1, {}, {"sampling.sampler": "langevin"}),
    ("sampling.langevin_step_size", 0.2, {}, {"sampling.langevin_steps": 1}),
    ("sampling.threshold", "none", {"data.image_size": ()}, {"data.image_size": (8,)}),
    ("sampling.dynamic_percentile", 0.9, {}, {"sampling.threshold": "dynamic"}),
]


@pytest.mark.parametrize(("path", "value", "others", "remedy"), IDLE)
def test_a_changed_field_that_has_no_effect_is_told_of(path, value, others, remedy):
    config = Config()

    def put(fields):
        for name, new in fields.items():
            section, _, field = name.partition(".")
            setattr(getattr(config, section), field, new)

    put(others)
    assert without_effect(config) == []  # The field has its default.
    put({path: value})
    (said,) = without_effect(config)
    assert said.startswith(f"{path} ({value!r}) has no effect: it is for ")
    other = next(iter(remedy or others))
    assert f"{other} is " in said and "\n" not in said
    put(remedy or {name: LEAVES[name].default for name in others})
    assert without_effect(config) == []


def test_a_field_of_another_that_has_no_effect_has_none_either():
    config = Config()
    config.sampling.threshold, config.sampling.dynamic_percentile = "dynamic", 0.9
    assert without_effect(config) == []
    config.data.image_size = ()
    threshold, percentile = without_effect(config)
    assert threshold.startswith("sampling.threshold ('dynamic') has no effect: ")
    assert percentile == (
        "sampling.dynamic_percentile (0.9) has no effect: it is for data.image_size set or "
        "data.sound_length set, and data.image_size is (), data.sound_length is 0"
    )


@pytest.mark.parametrize("path", [p for p, x in LEAVES.items() if x.about.only_with])
def test_what_a_field_is_for_are_values_of_other_fields(path):
    for other, wanted in LEAVES[path].about.only_with.items():
        if other == "data.source":  # The help has the names.
            assert all(w.rstrip("*") in LEAVES[other].about.help for w in wanted)
        elif wanted not in (SET, NOT_SET):
            assert set(wanted) <= set(LEAVES[other].about.choices)


def test_every_source_is_in_the_help():
    assert all(name in LEAVES["data.source"].about.help for name in sources.SOURCES)


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


@pytest.mark.parametrize("model", [UNetConfig(), MLPConfig()])
def test_the_help_of_a_config_lists_every_field_of_its_own_model(model):
    config = Config(model=model, seed=5)
    text = " ".join(help_text(config).split())
    for leaf in leaves_of(config):
        assert f"--config.{leaf.path}=" in text and leaf.about.help in text
        assert all(choice in text for choice in leaf.about.choices)
    assert "--config.seed=5 (default 0) Decides every random draw. In 0 .. 2,147" in text
    assert "Each in 0.015 .. 0.25." in text and "0 .. 1, both excluded. Only with" in text
    assert ("--config.model.width=" in text) == isinstance(model, MLPConfig)
