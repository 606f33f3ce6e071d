"""events.jsonl: what happened to a run is in it, in order, and nothing else is read."""

import datetime
import warnings

import numpy as np
import pytest

from diffusion_jax.data import sources
from diffusion_jax.data.pipeline import batch_indices
from diffusion_jax.runs import events
from diffusion_jax.runs.events import Event
from diffusion_jax.runtime.errors import RunFailed
from diffusion_jax.training import train
from helpers import points_config


def test_what_is_added_is_read_in_its_order(tmp_path):
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    events.add(tmp_path, events.STARTED, 0, 'python train.py --config "a b"\n')
    events.add(tmp_path, events.WARNING, np.int32(3), "é", "2026-01-01T00:00:00+00:00")
    first, second = events.read(tmp_path)
    assert first[:3] == ("started", 0, 'python train.py --config "a b"\n')
    after = datetime.datetime.now(datetime.UTC)
    assert before <= datetime.datetime.fromisoformat(first.time) <= after
    assert second == Event("warning", 3, "é", "2026-01-01T00:00:00+00:00")
    assert events.read(tmp_path / "nowhere") == []


def test_a_torn_line_costs_that_event_alone(tmp_path):
    """A kill within a line, then a start; and lines of other programs."""
    events.add(tmp_path, events.STARTED, 0, "a")
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes() + b'{"kind": "warning", "step": 1, "te')
    events.add(tmp_path, events.RESUMED, 1, "b")
    foreign = [
        "[1]",
        "nothing",
        '{"kind": "warning"}',
        '{"kind": "x", "step": 1, "text": "", "time": ""}',
        '{"kind": "warning", "step": -1, "text": "", "time": ""}',
        '{"kind": "warning", "step": "1", "text": "", "time": ""}',
        '{"kind": ["warning"], "step": 1, "text": "", "time": ""}',
    ]
    path.write_text(path.read_text() + "\n".join(foreign) + "\n")
    assert [(e.kind, e.text) for e in events.read(tmp_path)] == [
        ("started", "a"),
        ("resumed", "b"),
    ]


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("precious\n")
    (tmp_path / "events.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="a link, which is not written through"):
        events.add(tmp_path, events.WARNING, 1, "a")
    assert (tmp_path / "precious").read_text() == "precious\n"


def test_warnings_are_noted_and_shown(tmp_path):
    with pytest.warns(UserWarning) as shown:
        with events.noting_warnings() as notes:
            warnings.warn("of mine", stacklevel=1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.warn("hidden", stacklevel=1)
        warnings.warn("later", stacklevel=1)
    assert [str(w.message) for w in shown] == ["of mine", "later"]
    notes.write(tmp_path, 7)
    notes.write(tmp_path, 8)
    assert [e[:3] for e in events.read(tmp_path)] == [("warning", 7, "of mine")]


def data_with_bad_example(config, step):
    """Examples of which one, too large for float32 squares, is in the batch of a step."""
    size = config.data.batch_size
    examples = np.full((40 * size, 2), 0.5, np.float32)
    examples[batch_indices(len(examples), size, config.seed, step)[3]] = 1e30
    return sources.arrays(examples, np.zeros((8, 2), np.float32))


def config_of(num_steps, **training):
    config = points_config(num_steps=num_steps, eval_every=0, **training)
    config.optimizer.warmup_steps, config.optimizer.decay = 15, "constant"
    return config


def test_a_run_tells_of_its_starts_warnings_and_skipped_updates(tmp_path):
    data = data_with_bad_example(config_of(15), 12)
    with pytest.warns(UserWarning) as shown:
        request = train.Request(command="python train.py --config a.py")
        train.train(config_of(15), tmp_path, data, request)
    train.train(config_of(20), tmp_path, data, train.Request(command="again"))
    started, *warned, skipped, finished, resumed, changed, again = events.read(tmp_path)
    assert started[:3] == ("started", 0, "python train.py --config a.py")
    assert [e[:2] for e in warned] == [("warning", 0)] * 3
    assert [e.text for e in warned] == [str(w.message) for w in shown]
    assert warned[0].text.startswith("optimizer.warmup_steps (15) is not less than")
    assert skipped[:2] == ("skipped", 12) and "at step 12: loss" in skipped.text
    assert resumed[:3] == ("resumed", 15, "again")
    assert changed[:3] == ("changed", 15, "training.num_steps (15 -> 20)")
    assert [e[:2] for e in (finished, again)] == [("finished", 15), ("finished", 20)]


def test_a_run_that_fails_says_so(tmp_path):
    config = config_of(15, max_skipped_in_a_row=1)
    with pytest.raises(RunFailed) as error, pytest.warns(UserWarning):
        train.train(config, tmp_path, data_with_bad_example(config, 3))
    *_, last = events.read(tmp_path)
    assert last[:3] == ("failed", 3, str(error.value))
