"""The bits of tables, train steps, samples and likelihoods, recorded and compared.

    python benchmarks/same_bits.py --record before.json
    python benchmarks/same_bits.py --compare before.json

For changes of the code that must not change a result: record on the old commit, compare on
the new one, on the same machine with the same packages. Exit status 1 if anything differs.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import warnings

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from diffusion_jax.diffusion import schedules
from diffusion_jax.diffusion.model import Model
from diffusion_jax.samplers import methods, timesteps

ROOT = pathlib.Path(__file__).parent.parent
TINY = (
    "model.base_channels=8 model.channel_mults=(1,) model.attn_resolutions=() "
    "model.num_groups=4 data.batch_size=16 process.num_timesteps=50 sampling.steps=50 "
    "training.sample_steps=5 training.sample_every=20 training.eval_every=10 "
    "training.num_steps=20 training.log_every=10 training.steps_per_dispatch=10 "
    "training.num_samples=4 ema.snapshots=2"
).split()
# Short runs that together reach every loss, weighting, variance and draw of timesteps.
RUNS = {
    "eps_huber_p2": "loss.norm=huber loss.weighting=p2 data.random_flip=true",
    "x0_truncated_snr": "process.prediction=x0 loss.weighting=truncated_snr loss.norm=l1",
    "v_min_snr": "process.prediction=v loss.weighting=min_snr "
    "process.zero_terminal_snr=true",
    "v_sigmoid": "process.prediction=v loss.weighting=sigmoid loss.timesteps=stratified",
    "learned_hybrid": "process.variance=learned loss.kind=hybrid",
    "learned_variational": "process.variance=learned loss.kind=variational "
    "loss.timesteps=loss_second_moment training.likelihood_every=20 "
    "training.likelihood_timesteps=5",
    "fixed_large_variational": "process.variance=fixed_large loss.kind=variational",
    "eps_variational_weights": "loss.weighting=variational optimizer.name=adamw "
    "optimizer.decay=inverse_sqrt model.dropout=0.1 model.scale_shift_norm=true",
}
SAMPLINGS = [
    *(f"--sampler {name}" for name in methods.METHODS),
    "--sampler ddim --eta 0.5 --spacing uniform",
    "--sampler dpmpp_2m --eta 1 --spacing log_snr",
    "--sampler heun --churn 3",
    "--sampler ddpm --variance fixed_large --threshold dynamic",
    "--sampler dpmpp_3m --langevin_steps 1",
    "--sampler ddim --spacing auto",
    "--sampler unipc --weights raw --show_chain",
    "--sampler ddim --weights std:0.05 --threshold none",
]


def sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def of_array(array: np.ndarray) -> str:
    array = np.ascontiguousarray(array)
    return sha256(f"{array.dtype} {array.shape}".encode(), array.tobytes())


def of_tree(tree) -> str:
    def bits(leaf) -> str:
        is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return of_array(np.asarray(jax.random.key_data(leaf) if is_key else leaf))

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = sorted((jax.tree_util.keystr(path), bits(leaf)) for path, leaf in leaves)
    return sha256(json.dumps(named).encode())


def tables() -> dict[str, str]:
    """Every method over every spacing, schedule and prediction type that it takes."""
    found = {}
    for schedule_name in schedules.SCHEDULES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            betas = schedules.named_betas(schedule_name, 100)
            schedule = schedules.make_schedule(betas)
        for spacing in timesteps.SPACINGS:
            for prediction in ("eps", "x0", "v"):
                for name, method in methods.METHODS.items():
                    key = f"table {schedule_name} {spacing} {prediction} {name}"
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        try:
                            chosen = timesteps.spaced_timesteps(spacing, schedule, 10)
                            table = method(Model(schedule, prediction), chosen)
                        except ValueError as error:
                            found[key] = sha256(str(error).encode())
                            continue
                        corrected = methods.with_langevin(table)
                    # The noise levels are a column that version 0.1 did not have.
                    both = [dataclasses.replace(t, level=None) for t in (table, corrected)]
                    leaves = jax.tree.leaves(both)
                    found[key] = sha256(*(of_array(leaf).encode() for leaf in leaves))
    return found


def command(*arguments: str, cwd: pathlib.Path) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, str(ROOT / arguments[0]), *arguments[1:]],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{result.stdout}{result.stderr}")


def of_run(workdir: pathlib.Path) -> dict[str, str]:
    """The checkpoints' arrays, the lines of metrics without times, pictures, snapshots."""
    found = {}
    for folder in sorted(workdir.glob("checkpoints/[0-9]*")):
        tree = ocp.load(folder.absolute())
        for name, part in {**tree["parts"], "checksums": tree["checksums"]}.items():
            found[f"checkpoint {folder.name} {name}"] = of_tree(part)
    lines = []
    for text in (workdir / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        lines.append({k: v for k, v in line.items() if "per_sec" not in k})
    found["metrics"] = sha256(json.dumps(lines).encode())
    found["config"] = sha256((workdir / "config.json").read_bytes())
    for path in sorted([*workdir.glob("*.png"), *workdir.glob("ema_snapshots/*")]):
        found[path.name] = sha256(path.read_bytes())
    names = (str(p.relative_to(workdir)) for p in workdir.rglob("*") if p.is_file())
    kept = sorted(n for n in names if not n.startswith(("checkpoints", "tensorboard")))
    found["files"] = sha256(json.dumps(kept).encode())
    return found


def train(name: str, config: str, *fields: str, cwd: pathlib.Path) -> dict[str, str]:
    overrides = [f"--config.{field}" for field in fields]
    workdir = cwd / "runs" / name
    path = str(ROOT / "configs" / config)
    command("train.py", "--config", path, "--workdir", str(workdir), *overrides, cwd=cwd)
    return {f"{name}: {key}": value for key, value in of_run(workdir).items()}


def sample(name: str, flags: str, cwd: pathlib.Path) -> dict[str, str]:
    out = cwd / "out"
    short = ("--workdir", str(cwd / "runs" / name), "--num", "12", "--batch_size", "8")
    steps = ("--steps", "10", "--out", str(out), "--overwrite")
    command("sample.py", *short, *steps, *flags.split(), cwd=cwd)
    key = f"{name} sample {flags}"
    found = {key: of_array(np.load(f"{out}.npz")["arr_0"])}
    found[f"{key} png"] = sha256(out.with_suffix(".png").read_bytes())
    note = json.loads(out.with_suffix(".json").read_text())
    found[f"{key} timesteps"] = sha256(json.dumps(note["timesteps"]).encode())
    return found


def evaluate(name: str, flags: str, cwd: pathlib.Path) -> dict[str, str]:
    out = cwd / "evaluated"
    at = ("--workdir", str(cwd / "runs" / name), "--out", str(out), "--overwrite")
    command("evaluate.py", *at, "--max_examples", "20", *flags.split(), cwd=cwd)
    note = json.loads(out.with_suffix(".json").read_text())
    key = f"{name} evaluate {flags}"
    return {key: f"{note['bits_per_dim']!r} +- {note['standard_error']!r} bits/dim"}


def everything() -> dict[str, str]:
    began = time.monotonic()
    found = tables()
    with tempfile.TemporaryDirectory(prefix="same_bits_") as folder:
        cwd = pathlib.Path(folder)
        short = "training.num_steps=200 training.steps_per_dispatch=20"
        often = "training.sample_every=200 training.num_samples=16 training.sample_steps=10"
        found |= train("digits", "digits.py", *short.split(), *often.split(), cwd=cwd)
        print(f"digits: {time.monotonic() - began:.0f} s", flush=True)
        few = "training.num_steps=100 training.steps_per_dispatch=20 training.eval_every=50"
        found |= train("points", "swiss_roll.py", *few.split(), cwd=cwd)
        for name, fields in RUNS.items():
            found |= train(name, "digits.py", *TINY, *fields.split(), cwd=cwd)
        print(f"runs: {time.monotonic() - began:.0f} s", flush=True)
        for flags in SAMPLINGS:
            found |= sample("digits", flags, cwd)
        for name, flags in (
            ("points", "--sampler ddpm"),
            ("points", "--sampler heun"),
            ("learned_hybrid", "--sampler ddpm"),
            ("learned_hybrid", "--sampler ddim"),
            ("v_min_snr", "--sampler dpmpp_2m"),
        ):
            found |= sample(name, flags, cwd)
        print(f"samples: {time.monotonic() - began:.0f} s", flush=True)
        for name, flags in (
            ("digits", "--likelihood"),
            ("digits", "--likelihood --num_timesteps_sampled 20 --variance fixed_large"),
            ("digits", "--likelihood --steps 10 --spacing auto"),
            ("digits", "--ode --ode_steps 20"),
            ("points", "--ode --ode_steps 20"),
            ("learned_variational", "--likelihood"),
            ("v_sigmoid", "--ode --ode_steps 20"),
        ):
            found |= evaluate(name, flags, cwd)
        print(f"all: {time.monotonic() - began:.0f} s", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=pathlib.Path)
    parser.add_argument("--compare", type=pathlib.Path)
    arguments = parser.parse_args()
    found = everything()
    if arguments.record:
        arguments.record.write_text(json.dumps(found, indent=1) + "\n")
        print(f"recorded {len(found):,} results")
        return 0
    before = json.loads(arguments.compare.read_text())
    differ = [k for k in before.keys() | found.keys() if before.get(k) != found.get(k)]
    for key in sorted(differ):
        print(f"differs: {key}: {before.get(key)} -> {found.get(key)}")
    same = len(before.keys() & found.keys()) - len(differ)
    print(f"{same:,} of {len(before):,} results have the same bits")
    for key, value in found.items():
        if "bits/dim" in value or "digits: checkpoint" in key:
            print(f"  {key}: {value}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
