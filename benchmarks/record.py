"""Prints measured figures and writes them down.

One JSON line for each is appended to benchmarks/results/, in the file named like the
script, with date, machine, versions and git revision.
"""

import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator

import jax
from absl import logging

ROOT = pathlib.Path(__file__).parent.parent
Figure = tuple[str, float, str]  # What, its value, what is wanted of it ("": nothing).


def record(*parts: Callable[[], Iterator[Figure]], **versions: str) -> None:
    """Measures each part; `versions` are of what else is compared."""
    logging.set_verbosity(logging.ERROR)
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    about = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        + jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "revision": git.stdout.strip(),
        **versions,
    }
    results = ROOT / "benchmarks" / "results" / f"{pathlib.Path(sys.argv[0]).stem}.jsonl"
    results.parent.mkdir(exist_ok=True)
    with results.open("a") as file:
        for part in parts:
            for name, value, target in part():
                line = {"figure": name, "value": round(value, 6), "target": target}
                file.write(json.dumps({**line, **about}) + "\n")
                wanted = f"   (wanted {target})" if target else ""
                print(f"{name:55} {value:12,.4g}{wanted}", flush=True)
