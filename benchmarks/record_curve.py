"""The held-out losses of a run, as the fixture that the rule for stalled runs is tested on.

    python benchmarks/record_curve.py RUN [DATA_PATH]

writes tests/fixtures/held_out_curves/NAME.json: each held-out loss by its train step, and
the losses of denoisers without training, computed from the run's data again.
"""

import diffusion_jax.runtime.start  # noqa: F401  # isort: skip

import json
import pathlib
import sys

from diffusion_jax.experiment.setup import make_plan
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.metrics_log import losses_by_step
from diffusion_jax.training.references import references_of
from diffusion_jax.training.stalled import settled_after

ROOT = pathlib.Path(__file__).parent.parent


def main(workdir: pathlib.Path, data_path: str | None = None) -> None:
    config = run_folder.read_config(workdir)
    if data_path is not None:
        config.data.path = data_path
    reference = references_of(make_plan(config))
    assert reference is not None, "the loss is the bound, which has no reference"
    recorded = {
        "num_steps": config.training.num_steps,
        "settled": settled_after(config),
        "reference": reference._asdict(),
        "held_out_loss": losses_by_step(workdir / "metrics.jsonl", "held_out_loss"),
    }
    path = ROOT / "tests/fixtures/held_out_curves" / f"{config.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(recorded, indent=1) + "\n")
    print(f"saved {path}: {len(recorded['held_out_loss'])} losses")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *sys.argv[2:])
