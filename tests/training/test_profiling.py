"""A profile of some train steps: where it begins and ends, and what is refused."""

import pytest

from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.training import train
from diffusion_jax.training.profiling import Profiler, window_of
from helpers import assert_same_run, points_config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("5", "--profile 5: must be FIRST:LAST"),
        ("5:", "must be FIRST:LAST"),
        ("-1:5", "must be FIRST:LAST"),
        ("a:b", "must be FIRST:LAST"),
        ("5:5", "--profile 5:5: the first step must be less"),
        ("6:5", "the first step must be less"),
        ("5:31", "--profile 5:31 ends beyond training.num_steps (30)"),
    ],
)
def test_what_is_no_window_is_refused_before_anything_is_written(text, said, tmp_path):
    with pytest.raises(BadRequest) as error:
        train.train(points_config(), tmp_path / "run", None, train.Request(profile=text))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_window_is_of_steps_of_the_run():
    assert window_of(None, 30) is None
    assert window_of("0:30", 30) == (0, 30)


def test_dispatches_end_at_both_ends_of_the_window(tmp_path, monkeypatch):
    """The dispatches of 4 steps would end at 4, 5, 8, 10, ...; the run is the same."""
    began, ended = [], []
    for name, steps in (("begin_at", began), ("end_at", ended)):
        method = getattr(Profiler, name)

        def noted(self, step, *more, method=method, steps=steps):
            steps.append(step)
            return method(self, step, *more)

        monkeypatch.setattr(Profiler, name, noted)
    config, request = points_config(), train.Request(profile="11:13")
    config.ema.snapshots = 0  # They end dispatches as well.
    train.train(config, tmp_path / "a", None, request)
    assert began[:6] == [0, 4, 5, 9, 10, 11] and ended[:6] == [4, 5, 9, 10, 11, 13]
    files = [p.name for p in (tmp_path / "a/profile/plugins/profile/steps_11_13").iterdir()]
    assert len([name for name in files if name.endswith(".xplane.pb")]) == 1
    monkeypatch.undo()
    train.train(config, tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_the_command_of_a_stopped_run_goes_on_without_the_profile(tmp_path, capsys):
    request = train.Request(profile="5:8")
    train.train(points_config(num_steps=10), tmp_path, None, request)
    train.train(points_config(num_steps=12), tmp_path, None, request)
    said = capsys.readouterr().out
    assert said.count("profile of steps 5 to 8 in") == 1
    assert "no profile: its steps begin at 5, and the run goes on from step 10" in said
    again = train.Request(overwrite=True)
    train.train(points_config(num_steps=2), tmp_path, None, again)
    assert not (tmp_path / "profile").exists()


def test_a_profile_that_is_cut_short_is_written(tmp_path):
    profiler = Profiler(window_of("2:9", 30), tmp_path, 0, print)
    profiler.begin_at(2)
    profiler.end()
    profiler.end()
    assert list(tmp_path.glob("profile/plugins/profile/steps_2_9/*.xplane.pb"))
