"""Files of a run are input too: whatever they hold, a command fails in one line."""

import json
import math

import jax
import pytest

from diffusion_jax.config import Config, UNetConfig, fields_of, from_json, to_json
from diffusion_jax.experiment import build, validation
from diffusion_jax.jobs.likelihood_report import is_whole
from diffusion_jax.jobs.resumable import Partial
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.metrics_log import read_metrics
from diffusion_jax.runs.record import read_record
from diffusion_jax.runtime.errors import BadRequest
from helpers import ROOT, TINY

FIXTURE = ROOT / "tests" / "fixtures" / "run_0.1.0"
WRONG = [
    None,
    True,
    "",
    "x",
    {},
    [],
    [[]],
    [1] * 100_000,
    0,
    -1,
    1e308,
    math.nan,
    math.inf,
    10**30,
    [10**400],
    [math.nan],
    ["x"],
    10**6,
    [10**6],
]
"""In place of each field of a config."""


def tree_of(config):
    return json.loads(to_json(config))


def in_folder(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    return tmp_path


@pytest.mark.parametrize("kind", ["UNetConfig", "MLPConfig"])
def test_whatever_a_field_of_a_config_holds_it_is_refused_or_can_be_built(kind, tmp_path):
    """Fields are refused in one line, or give a network that JAX can lay out in seconds."""
    good = Config(model=UNetConfig(32, (1,), 1, attn_resolutions=()))
    if kind == "MLPConfig":
        good = run_folder.read_config(FIXTURE)
    refused = 0
    for path, _ in fields_of(good):
        for value in WRONG:
            tree = tree_of(good)
            section, _, name = path.rpartition(".")
            (tree[section] if section else tree)[name] = value
            try:
                config = run_folder.read_config(in_folder(tmp_path, json.dumps(tree)))
            except BadRequest as error:
                assert "\n" not in str(error) and len(str(error)) < 700, error
                refused += 1
                continue
            if section in ("data", "model"):
                jax.eval_shape(build.make_network(config)[0], jax.random.key(0))
    assert refused > 900


TOO_LARGE = {
    '"base_channels": 16384': "which no machine holds",
    '"num_res_blocks": 100000': "must be in 1 .. 100",
    '"num_res_blocks": 100, "channel_mults": [1, 1, 1, 1, 1, 1]': "1,206 blocks",
    '"channel_mults": []': "must hold one multiple",
    f'"channel_mults": {[1] * 20}': "at most 15 levels",
}


@pytest.mark.parametrize("fields", TOO_LARGE)
def test_a_network_that_no_machine_holds_is_refused(fields, tmp_path):
    tree = tree_of(Config())
    tree["data"]["image_size"] = [1024]
    tree["model"] |= {"attn_resolutions": [], **json.loads(f"{{{fields}}}")}
    with pytest.raises(BadRequest, match=TOO_LARGE[fields]):
        run_folder.read_config(in_folder(tmp_path, json.dumps(tree)))


def test_images_that_no_machine_holds_are_refused():
    for size in ((10**6,), (2**14,)):
        config = Config(model=UNetConfig(base_channels=512, attn_resolutions=()))
        config.data.image_size = size
        with pytest.raises(BadRequest, match=r"data\.image_size"):
            validation.check(config)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "null", "\x00", '{"name": 1e999}', "1" * 5000]
)
def test_no_text_is_more_than_a_wrong_file(text, tmp_path):
    with pytest.raises(BadRequest, match="is not the config of a run"):
        run_folder.read_config(in_folder(tmp_path, text))
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(BadRequest, match="run.json is damaged"):
        read_record(tmp_path)
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "request.json").write_text(text)
    with pytest.raises(BadRequest, match="holds other files|another request"):
        Partial(tmp_path / "out", {"a": 1}).claim([], overwrite=False, others="--out")


def test_a_record_of_impossible_numbers_is_refused(tmp_path):
    good = json.loads((FIXTURE / "run.json").read_text())
    for name, value in [
        ("step", True),
        ("step", 10**300),
        ("wall_time_s", math.nan),
        ("wall_time_s", math.inf),
        ("steps_per_dispatch", 10**9),
        ("data", []),
    ]:
        (tmp_path / "run.json").write_text(json.dumps({**good, name: value}))
        with pytest.raises(BadRequest, match=f"{name} is"):
            read_record(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(good))
    assert read_record(tmp_path).step == 20


def test_lines_of_metrics_that_no_run_has_written_are_left_out(tmp_path):
    foreign = [
        '{"step": 5, "loss": "x"}',
        '{"step": 1e400, "loss": 1}',
        '{"step": true, "loss": 1}',
        '{"step": -3, "loss": 1}',
        '{"step": 5, "loss": [1]}',
        '{"step": 5, "held_out_loss": {"a": {"b": 1}}}',
        '{"step": 5, "loss": 1' + "0" * 400 + "}",
        '{"step": 5, "loss": ' + "[" * 100_000,
        '{"step": null}',
        "[5]",
    ]
    own = '{"step": 6, "loss": 0.5, "held_out_loss_by_t": {"0-3": NaN}}'
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([*foreign, own]))
    assert [line["step"] for line in read_metrics(path)] == [6]


def test_the_config_of_a_run_goes_through_the_checks_of_train(command, tmp_path):
    """Three commands with three configs of a run that are wrong, as processes."""
    config = from_json((FIXTURE / "config.json").read_text())
    tree = tree_of(config)
    tree["model"] = {"kind": "UNetConfig", "channel_mults": [1], "attn_resolutions": []}
    tree["data"] |= {"image_size": [8], "channels": 1, "source": "digits"}
    sections = [
        ("export.py", "model", {"channel_mults": []}, "model.channel_mults ()"),
        ("evaluate.py", "model", {"num_res_blocks": 100_000}, "model.num_res_blocks"),
        ("sample.py", "data", {"image_size": [10**6]}, "data.image_size (1000000,)"),
    ]
    for name, section, wrong, said in sections:
        broken = {**tree, section: {**tree[section], **wrong}}
        in_folder(tmp_path, json.dumps(broken))
        more = ("--ode",) if name == "evaluate.py" else ()
        result = command(name, f"--workdir={tmp_path}", *more, check=2)
        assert said in result.stderr and result.stderr.count("\n") == 1
    result = command("train.py", *TINY, f"--workdir={tmp_path}", check=2)
    assert "is not the config of a run" in result.stderr


def test_a_result_without_its_figure_is_not_one():
    request = {"bits_per_dim": 1.5, "standard_error": None}
    assert is_whole(request) and is_whole({**request, "standard_error": 0.1})
    for wrong in (
        {},
        {"bits_per_dim": "x"},
        {"standard_error": []},
        {"bits_per_dim": None},
    ):
        assert not is_whole({**request, **wrong} if wrong else {})


def test_a_field_that_nobody_knows_is_no_config(tmp_path):
    """A damaged field name would mean the default of the field, and other samples."""
    config = Config(model=UNetConfig(attn_resolutions=()))
    config.process.schedule = "cosine"
    run_folder.write_config(tmp_path, config)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"schedule"', '"shedule"'))
    with pytest.raises(BadRequest, match="ProcessConfig has no field shedule"):
        run_folder.read_config(tmp_path)
