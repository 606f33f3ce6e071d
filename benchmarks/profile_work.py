"""What the time of a forward pass or a train step is spent on, by kind of operation.

    python benchmarks/profile_work.py train cifar10 8
    python benchmarks/profile_work.py forward digits 64

Seconds of all threads, so that with two cores they add up to about twice the time. XLA
names a fusion by the operations in it: "ynn" are products of matrices and sums. What is
shared out among threads, as its own convolutions are, is not recorded: it is the
processor's time less the rest.
"""

import collections
import pathlib
import re
import sys
import tempfile
import time

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parent / "against"))

import ours
from compare import CPU_CASES, Case, as_json

REPEATS = 3
WAITING = re.compile(r"Execute|Wait|\$|end: |Pjit|Parse|Handle|^call|^while|::")
THREADS = ("tf_XLA", "python")


def main(case: Case) -> None:
    """Prints the table."""
    options = {"work": case.work, "config": as_json(case, "float32"), **case.options}
    with tempfile.TemporaryDirectory() as folder:
        run, _ = ours.prepare(folder=folder, **options)
        run()
        began = time.process_time()
        for _ in range(REPEATS):
            run()
        used = (time.process_time() - began) / REPEATS
        with jax.profiler.trace(f"{folder}/trace"):
            for _ in range(REPEATS):
                run()
        (path,) = pathlib.Path(folder, "trace").rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    seconds, counts = collections.Counter[str](), collections.Counter[str]()
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                kind = re.sub(r"[.\d]+$", "", event.name)
                if not WAITING.search(kind) and line.name.startswith(THREADS):
                    seconds[kind] += event.duration_ns / 1e9 / REPEATS
                    counts[kind] += 1
    print(f"{case}: {used:.4f} seconds of all threads")
    print(f"{100 * (1 - sum(seconds.values()) / used):6.1f} %  not recorded")
    for kind, value in seconds.most_common(15):
        print(f"{100 * value / used:6.1f} %  {counts[kind] // REPEATS:6} times  {kind}")


if __name__ == "__main__":
    cases = [case for case in CPU_CASES if case.work in ("forward", "train")]
    profiled = {f"{c.work} {c.config} {c.batch}": c for c in cases}
    asked = " ".join(sys.argv[1:])
    if asked not in profiled:
        sys.exit(f"usage: profile_work.py {' | '.join(profiled)}")
    main(profiled[asked])
