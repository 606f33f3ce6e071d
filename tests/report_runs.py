"""Run folders made by hand, for the tests of the report, and what lies in a page."""

import html.parser
import json

import numpy as np
from PIL import Image

from diffusion_jax.runs import events, pictures
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.record import Record, write_record
from helpers import points_config

DATA = {"source": "two_moons", "train": 900, "held_out": 100, "shape": [2]}
DATA["fingerprint"] = "0123456789abcdef"


def metrics(num_steps=30, scale=1.0):
    """Lines of a metrics.jsonl, with what a training may write."""
    for step in range(5, num_steps + 1, 5):
        loss = scale / step
        yield {"step": step, "loss": loss, "grad_norm": 3 * loss, "learning_rate": 1e-3}
        quarters = {"0-4": 4 * loss, "5-9": loss / 3, "10-14": loss / 7, "15-19": loss / 9}
        yield {"step": step, "held_out_loss": loss + 0.1, "held_out_loss_by_t": quarters}
        if step % 10 == 0:
            terms = {"0": 1.5, "1-3": 1 / step, "4-19": 0.25}
            bits = 1.5 + 1 / step + 0.25 + 0.125
            line = {"bits_per_dim": bits, "bits_per_dim_standard_error": 0.01}
            yield {"step": step, **line, "prior_L_T": 0.125, "bits_per_dim_by_t": terms}


def make_run(workdir, lines=None, name="points", num_grids=3, **training):
    """Make a run folder without training one."""
    workdir.mkdir(parents=True)
    config = points_config(**training)
    config.name = name
    run_folder.write_config(workdir, config)
    versions = {"python": "3.11.7", "jax": "0.10.2"}
    when = "2026-11-01T10:00:00+00:00"
    record = Record(1, "0.1.0", versions, "1 x cpu", DATA, 1234, when, 30, 61.0)
    write_record(workdir, record)
    texts = [json.dumps(line) for line in (metrics() if lines is None else lines)]
    (workdir / "metrics.jsonl").write_text("".join(text + "\n" for text in texts))
    for i in range(num_grids):
        path = workdir / f"samples/step_{10 * (i + 1):06d}.png"
        pictures.save_png(path, Image.new("L", (40, 40), 10 * i))
    events.add(workdir, events.STARTED, 0, "python train.py --config x.py")
    return workdir


def add_chain(workdir, num_frames=5):
    """Add a result of sample.py with a chain; return its frames, uint8 [F, H, W]."""
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, 12, 16), np.uint8)
    images = [Image.fromarray(frame) for frame in frames]
    pictures.save_gif(workdir / "samples/ddim_5_chain.gif", images)
    pictures.save_png(workdir / "samples/ddim_5.png", images[-1])
    note = {"sampler": "ddim", "steps": 5, "eta": 0.0, "seed": 3, "num": 16}
    note |= {"show_chain": True, "checkpoint_step": 30, "network_calls": 5}
    (workdir / "samples/ddim_5.json").write_text(json.dumps(note))
    return frames


class Page(html.parser.HTMLParser):
    """The elements of a page: (name, attributes), the text, and the data of its script."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self._inside, self.scripts = [], "", [], []
        self.feed(text)
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = [tag] if tag in ("script", "style") else []
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = []
        self.text += " "

    def handle_data(self, text):
        if self._inside == ["script"]:
            self.scripts[-1] += text
        elif not self._inside:
            self.text += text
