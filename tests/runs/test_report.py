"""The report of a run: its numbers are those of the run, and its page is whole and safe."""

import base64
import hashlib
import html
import io
import json
import os
import pathlib
import re
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.config import fields_of
from diffusion_jax.jobs import report
from diffusion_jax.runs import events
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.report import curves, facts, quality, sections
from diffusion_jax.runs.report.curves import Curve
from diffusion_jax.runtime.errors import BadRequest
from helpers import ROOT
from report_runs import Page, add_chain, make_run, metrics

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def page_of(*workdirs, out=None):
    return Page(report.write(workdirs, out).read_text())


def curve_of(page, title, label):
    (chart,) = (chart for chart in page.data["charts"] if chart["title"] == title)
    (curve,) = (curve for curve in chart["curves"] if curve["label"] == label)
    return list(zip(curve["x"], curve["y"], strict=True))


def test_the_curves_have_the_numbers_of_metrics_jsonl(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    lines = [
        json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().split("\n") if x
    ]
    for title, label, name in (
        ("Loss", "training", "loss"),
        ("Loss", "held out", "held_out_loss"),
        ("Gradient norm", "gradient", "grad_norm"),
        ("Bits per dimension", "held out", "bits_per_dim"),
        ("Learning rate", "learning rate", "learning_rate"),
    ):
        wanted = [(line["step"], line[name]) for line in lines if name in line]
        assert wanted and curve_of(page, title, label) == wanted
    for part in ("0-4", "5-9", "10-14", "15-19"):
        name = "held_out_loss_by_t"
        wanted = [(line["step"], line[name][part]) for line in lines if name in line]
        assert curve_of(page, "Held-out loss by quarter of t", f"t = {part}") == wanted


def test_the_losses_of_denoisers_without_training_are_level_lines(tmp_path):
    """Two that are the same are one line; of several runs there are none."""
    reference = {"untrained": 1.0, "mean": 1.0, "linear": 0.3}
    lines = [
        {"step": 5, "loss": 0.9},
        {"step": 10, "held_out_loss": 0.8, "reference_loss": reference},
        {"step": 30, "held_out_loss": 0.2},
    ]
    run = make_run(tmp_path / "run", lines)
    page = page_of(run)
    assert curve_of(page, "Loss", "untrained") == [(10, 1.0), (30, 1.0)]
    assert curve_of(page, "Loss", "linear denoiser") == [(10, 0.3), (30, 0.3)]
    charts = page.data["charts"]
    assert [len(chart["curves"]) for chart in charts] == [4]
    both = page_of(run, make_run(tmp_path / "other", lines), out=tmp_path / "both.html")
    titles = [chart["title"] for chart in both.data["charts"]]
    assert titles == ["Loss, training", "Loss, held out"]


def test_the_terms_of_the_bound_add_up_to_the_bits(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    (chart,) = (c for c in page.data["charts"] if c["title"] == "Terms of the bound")
    total = np.sum([curve["y"] for curve in chart["curves"]], axis=0)
    bits = dict(curve_of(page, "Bits per dimension", "held out"))
    np.testing.assert_allclose(total, [bits[10], bits[20], bits[30]], rtol=1e-12)
    newest = dict(curve_of(page, "Bound by timestep, newest", "step 30"))
    assert newest == {0: 1.5, 2: 1 / 30 / 3, 11.5: 0.25 / 16}


def test_a_long_curve_keeps_its_ends_and_extremes():
    rng = np.random.default_rng(0)
    y = rng.normal(size=20_001)
    y[[777, 15_000]] = 50, -50
    whole = Curve("a", 0, list(range(len(y))), y.tolist(), (2 * y).tolist())
    found = curves.thinned(whole)
    assert len(found.x) <= curves.MOST_POINTS
    assert (found.x[0], found.x[-1]) == (0, 20_000)
    points = dict(zip(found.x, found.y, strict=True))
    assert points[777] == 50 and points[15_000] == -50
    assert all(y[x] == value for x, value in points.items())
    assert found.error == [2 * value for value in found.y]
    assert curves.thinned(whole, 20_001) is whole


def test_values_that_are_no_numbers_are_left_out_of_the_curves(tmp_path):
    lines = [
        {"step": 1, "loss": float("nan")},
        {"step": 2, "loss": 0.5},
        {"step": 3, "x": 1},
    ]
    page = page_of(make_run(tmp_path / "run", lines))
    assert curve_of(page, "Loss", "training") == [(2, 0.5)]
    assert curve_of(page, "x", "x") == [(3, 1)]


def test_names_in_a_page_are_text(tmp_path):
    """A page with HTML in every name has the elements of one with plain names."""
    pages = []
    for name in ("plain", HOSTILE):
        run = tmp_path / name.replace("/", "\N{DIVISION SLASH}")
        make_run(run, [{"step": 1, name: 0.5, "parts": {name: 1.0}}])
        add_chain(run)
        note = {"sampler": name, "steps": name, "num": 3, "weights": name}
        (run / "samples/x.json").write_text(json.dumps(note))
        figure = {name: {"value": 1.0, "standard_error": 0.5}}
        note = {"kind": "quality", "figures": figure, "sampler": name, "network": name}
        (run / "evaluations").mkdir()
        (run / "evaluations/x.json").write_text(json.dumps(note))
        events.add(run, events.WARNING, 3, name)
        pages.append(page_of(run))
    plain, hostile = ([name for name, _ in page.elements] for page in pages)
    assert plain == hostile and plain.count("script") == 2
    assert pages[1].text.count(HOSTILE) >= 5
    assert not any(key.startswith("on") for _, a in pages[1].elements for key in a)


@pytest.mark.parametrize("many", [False, True])
def test_a_page_leads_to_no_other_file(tmp_path, many):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")][: 1 + many]
    add_chain(runs[0])
    page = page_of(*runs)
    places = [
        value
        for name, attributes in page.elements
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "data", "action", "poster")
    ]
    assert places and all(value.startswith(("data:image/", "#")) for value in places)
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {value[1:] for value in places if value.startswith("#")} <= ids
    text = (tmp_path / ("comparison.html" if many else "a/report.html")).read_text()
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    assert "url(" not in style and "@import" not in style
    (policy,) = (
        a["content"]
        for _, a in page.elements
        if a.get("http-equiv", "").startswith("Content")
    )
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_frames_of_a_chain_are_those_of_its_animation(tmp_path):
    run = make_run(tmp_path / "run")
    frames = add_chain(run)
    found = page_of(run).data["chains"][0]
    assert [frame["title"] for frame in found] == [f"frame {i} of 5" for i in range(1, 6)]
    for frame, wanted in zip(found, frames, strict=True):
        kind, _, content = frame["src"].partition(",")
        assert kind == "data:image/png;base64"
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        np.testing.assert_array_equal(np.asarray(image), wanted)


def test_of_many_grids_some_are_kept_evenly_and_the_page_says_so(tmp_path):
    page = page_of(make_run(tmp_path / "run", num_grids=90))
    steps = [grid["step"] for grid in page.data["grids"][0]]
    assert len(steps) == 30 and (steps[0], steps[-1]) == (10, 900)
    assert set(np.diff(steps)) <= {30, 40}
    assert "has 90 grids, of which 30 are here" in page.text


def test_the_newest_results_have_pictures_and_many_have_a_row(tmp_path):
    """Results as of these minutes, the newest first; those of a sweep among them."""
    run = make_run(tmp_path / "run", num_grids=0)
    (run / "samples/sweep_eta0-1").mkdir(parents=True)
    names = [f"n{i}" for i in range(45)] + ["sweep_eta0-1/ddim_eta1"]
    for i, name in enumerate(names):
        path = run / f"samples/{name}.json"
        path.write_text(json.dumps({"sampler": "ddim", "steps": i, "seconds": 1.5}))
        Image.new("L", (4, 4)).save(path.with_suffix(".png"))
        os.utime(path, (60 * i, 60 * i))
    found = facts.read(run, "run", 2)
    assert [result.name for result in found.results] == names[:-41:-1]
    assert [bool(result.picture) for result in found.results] == [True] * 6 + [False] * 34
    page = page_of(run)
    assert "has 46 results, the newest are here" in page.text
    assert sum(name == "img" for name, _ in page.elements) == 6


def test_a_large_picture_is_shrunk_and_a_small_one_stays_as_it_is(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1500, 750, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    Image.fromarray(noise[:40, :40]).save(tmp_path / "small.png")
    large = facts.fitted("x", tmp_path / "large.png")
    with Image.open(io.BytesIO(large.content)) as image:
        assert image.size == (500, 1000) and image.format == "JPEG"
    assert large.kind == "image/jpeg" and "shrunk from 750 x 1500 pixels" in large.title
    small = facts.fitted("x", tmp_path / "small.png")
    assert small.content == (tmp_path / "small.png").read_bytes() and small.title == "x"


def test_skipped_updates_of_a_run_without_events_are_found_in_its_metrics(tmp_path):
    counts = {5: 0, 10: 0, 15: 2, 20: 2, 25: 5}
    lines = [{"step": step, "loss": 1.0, "skipped_steps": n} for step, n in counts.items()]
    run = make_run(tmp_path / "run", lines)
    found = [
        e
        for e in sections.happenings(facts.read(run, "run", 30))
        if e.kind == events.SKIPPED
    ]
    assert [(e.step, e.text[:17]) for e in found] == [
        (15, "2 updates skipped"),
        (25, "3 updates skipped"),
    ]


QUALITY = {"kind": "quality", "reference": "train", "num_samples": 10, "seed": 0}


def test_a_figure_known_at_several_steps_is_a_chart_by_sampler(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "evaluations").mkdir()
    values = {("ddim", 5): 3.0, ("ddim", 20): 1.0, ("heun", 5): 2.0, ("ddim", 10): 2.5}
    for (sampler, steps), value in values.items():
        figures = {"FD-pca20": {"value": value, "standard_error": value / 10}}
        figures["KID-pca20"] = {"value": value, "standard_error": None}
        note = {**QUALITY, "sampler": sampler, "steps": steps, "figures": figures}
        (run / f"evaluations/{sampler}{steps}.json").write_text(json.dumps(note))
    page = page_of(run)
    title = "FD-pca20 by sampling steps"
    assert curve_of(page, title, "ddim") == [(5, 3.0), (10, 2.5), (20, 1.0)]
    assert curve_of(page, title, "heun") == [(5, 2.0)]
    (chart,) = (chart for chart in page.data["charts"] if chart["title"] == title)
    assert [c["error"] for c in chart["curves"]] == [[0.3, 0.25, 0.1], [0.2]]
    assert (
        "3 ± 0.3" in page.text
        and len(list(quality.figures([facts.read(run, "run", 30)]))) == 8
    )


def test_curves_of_one_sampler_are_told_apart_by_what_differs(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "evaluations").mkdir()
    for eta, steps in ((0.0, 5), (0.0, 10), (1.0, 5), (1.0, 10)):
        note = {**QUALITY, "sampler": "ddim", "eta": eta, "steps": steps}
        note["figures"] = {"FD": {"value": steps + eta, "num_samples": 77}}
        (run / f"evaluations/{eta}_{steps}.json").write_text(json.dumps(note))
    Image.new("L", (9, 9)).save(run / "evaluations/1.0_10.png")
    page = page_of(run)
    assert curve_of(page, "FD by sampling steps", "ddim, eta 0.0") == [(5, 5.0), (10, 10.0)]
    assert curve_of(page, "FD by sampling steps", "ddim, eta 1.0") == [(5, 6.0), (10, 11.0)]
    assert (
        page.text.count(" 77 ") == 4 and "samples beside the nearest examples" in page.text
    )


def test_one_evaluation_is_in_the_table_and_no_chart(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "evaluations").mkdir()
    note = {**QUALITY, "sampler": "ddim", "steps": 5, "figures": {"FD": {"value": 8.25}}}
    (run / "evaluations/a.json").write_text(json.dumps(note))
    (run / "evaluations/torn.json").write_text('{"kind": "qual')
    bits = {"bits_per_dim": 3.125, "standard_error": 0.5, "rate": 2.0, "split": "train"}
    (run / "evaluations/likelihood.json").write_text(json.dumps(bits))
    page = page_of(run)
    assert "8.25" in page.text and "3.1250 ± 0.5" in page.text
    assert not any("sampling steps" in chart["title"] for chart in page.data["charts"])


def test_commands_are_those_given_then_those_that_the_results_were_made_by(tmp_path):
    run = make_run(tmp_path / "a b")
    add_chain(run)
    events.add(run, events.RESUMED, 10, "python train.py --config x.py")
    note = {"sampler": "ddim", "steps": 9, "timesteps": [1, 5], "eta": 0.5, "num": 4}
    note |= {"guidance_interval": [0.25, 0.5], "weights": "raw", "checkpoint_step": 20}
    (run / "samples/b.json").write_text(json.dumps(note))
    (run / "samples/c.json").write_text(json.dumps({**note, "guide": {"run": "x"}}))
    os.utime(run / "samples/b.json", (0, 0))
    (run / "samples/sweep_x").mkdir()
    (run / "samples/sweep_x/d.json").write_text(json.dumps(note))
    (run / "evaluations").mkdir()
    bits = {"bits_per_dim": 3.0, "split": "train", "num_examples": 8, "seed": 2}
    bits |= {"weights": "ema", "checkpoint_step": 30, "steps": 20, "spacing": "all"}
    for name, more in (
        ("a", {"num_timesteps_sampled": 5}),
        ("b", {"num_timesteps_sampled": 20}),
        ("c", {"spacing": "trailing", "num_timesteps_sampled": 20}),
    ):
        (run / f"evaluations/{name}.json").write_text(json.dumps({**bits, **more}))
    flow = {"bits_per_dim": 3.0, "ode_steps": 50, "split": "held_out"}
    (run / "evaluations/d.json").write_text(json.dumps(flow))
    note = {"kind": "quality", "network": "pca20", "sampler": "ddim", "num": 500}
    note |= {"seed": 1, "seeds": [1, 2, 3], "reference": "train", "num_reference": 300}
    others = (("f", {"network": "mine"}), ("g", {"reference": "x.npz"}))
    for name, more in (("e", {}), ("e_pca20", {"seeds": [1]}), *others):
        (run / f"evaluations/{name}.json").write_text(json.dumps({**note, **more}))
    text = report.write([run]).read_text()
    code = re.findall("<code>(.*?)</code>", text, re.DOTALL)[-1]
    at = f"--workdir '{run}'"
    of_quality = f"python evaluate.py {at} --quality --num 500"
    evaluate = (
        f"python evaluate.py {at} --likelihood --split train --max_examples 8 --seed 2"
    )
    assert html.unescape(code).split("\n") == [
        "python train.py --config x.py",
        f"python sample.py {at} --num 16 --seed 3 --sampler ddim --steps 5 --show_chain",
        f"python sample.py {at} --num 4 --seed 0 --sampler ddim --steps 9 --eta 0.5 "
        "--guidance_interval 0.25,0.5 --weights raw --step 20",
        f"{of_quality} --seed 1 --seeds 3 --max_examples 300 --sampler ddim",
        f"{of_quality} --features pca20 --seed 1 --max_examples 300 --sampler ddim",
        f"{evaluate} --num_timesteps_sampled 5",
        evaluate,
        f"{evaluate} --steps 20 --spacing trailing",
        f"python evaluate.py {at} --ode --split held_out --ode_steps 50",
    ]


def test_a_comparison_has_a_curve_for_each_run_and_the_fields_that_differ(tmp_path):
    a = make_run(tmp_path / "a", list(metrics(30, 1.0)), checkpoint_every=10)
    b = make_run(tmp_path / "b", list(metrics(40, 2.0)), checkpoint_every=20)
    page = page_of(a, b)
    for run, scale, last in ((a, 1.0, 30), (b, 2.0, 40)):
        wanted = [(step, scale / step) for step in range(5, last + 1, 5)]
        assert curve_of(page, "Loss, training", run.name) == wanted
        assert len(curve_of(page, "Held-out loss by quarter of t: t = 5-9", run.name))
    sections_there = [a["id"] for name, a in page.elements if name == "section"]
    assert sections_there[0] == "differences"
    whole = page.text[: page.text.index("All facts")]
    table = whole[whole.index("Fields and facts that differ") :]
    count = len(dict(fields_of(run_folder.read_config(a))))
    assert f"Of {count} fields of the configs, 1 differs." in whole
    assert re.findall(r"\w+[.]\w+", table) == ["training.checkpoint_every"]
    assert (tmp_path / "comparison.html").exists() and not (a / "report.html").exists()


def test_the_run_of_version_0_1_has_a_page(tmp_path):
    run = tmp_path / "old"
    shutil.copytree(ROOT / "tests/fixtures/run_0.1.0", run)
    page = page_of(run)
    assert curve_of(page, "Loss", "training") == [(20, 1.2608489036560058)]
    assert "362 parameters" in page.text and "swiss_roll" in page.text
    assert "kept no events" in page.text


def refused(said, *workdirs, out=None):
    with pytest.raises(BadRequest, match=said):
        report.write(workdirs, out)


def files_in(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_bad_requests_are_refused_before_anything_is_written(tmp_path):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", [{"step": 1, "loss": 1.0}])
    other = make_run(tmp_path / "other", [{"step": 1, "accuracy": 1.0}])
    empty = make_run(tmp_path / "empty", [])
    mine = tmp_path / "mine.html"
    mine.write_text("<html>a thesis</html>")
    (a / "link").symlink_to(a)
    before = files_in(tmp_path)
    refused("there is no run in", tmp_path / "nowhere")
    refused("there is no run in", a, tmp_path)
    refused("has no metrics to report", empty)
    refused("no metric in common", a, other)
    refused("given twice", a, b, a / "link")
    refused("is not a report of diffusion_jax", a, out=mine)
    refused("must end in .html", a, out=tmp_path / "x.png")
    refused("belongs to the run", a, out=a / "checkpoints/x.html")
    refused("belongs to the run", a, b, out=b / "report.html")
    (a / "report.html").write_text("a page of somebody")
    refused("is not a report of diffusion_jax", a)
    (a / "report.html").unlink()
    assert files_in(tmp_path) == before


def test_a_report_is_written_again_over_itself(tmp_path):
    run = make_run(tmp_path / "run")
    path = report.write([run])
    (run / "metrics.jsonl").write_text('{"step": 7, "loss": 0.5}\n')
    assert report.write([run]) == path
    assert curve_of(Page(path.read_text()), "Loss", "training") == [(7, 0.5)]
    folder = tmp_path / "pages"
    folder.mkdir()
    assert report.write([run], folder) == folder / "report.html"


def test_overwriting_a_run_deletes_its_report_and_events(tmp_path):
    run = make_run(tmp_path / "run")
    report.write([run])
    run_folder.delete_run(run)
    assert {path.name for path in run.iterdir()} == {"config.json"}


def test_a_report_that_fails_after_the_training_is_a_warning(tmp_path):
    run = make_run(tmp_path / "run", [])
    with pytest.warns(
        UserWarning, match="report was not written: .* has no metrics"
    ) as said:
        report.write_after_training(run)
    assert len(said) == 1 and not (run / "report.html").exists()
    (run / "metrics.jsonl").write_text('{"step": 7, "loss": 0.5}\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.write_after_training(run)
    assert (run / "report.html").exists()


def test_the_chart_library_is_the_published_one():
    """SHA-256 of the two files as npm's uplot 1.6.32 has them."""
    folder = pathlib.Path(facts.__file__).parent
    for name, wanted in (
        ("uPlot.js", "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"),
        ("uPlot.css", "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04"),
    ):
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == wanted


def test_a_page_has_the_licence_of_the_chart_library(tmp_path):
    licence = (pathlib.Path(facts.__file__).parent / "uPlot.LICENSE").read_text()
    assert "MIT" in licence and "Copyright (c)" in licence
    assert licence in report.write([make_run(tmp_path / "run")]).read_text()
