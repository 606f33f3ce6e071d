"""No formula can change by one percent without a test that notices (tests/mutants.py)."""

import time

import pytest

import mutants

# What no test can see, and why. Each key is "module.function: before -> after".
EQUIVALENT = {
    # The same value by another way.
    "likelihood.discretized_gaussian_log_likelihood: 0 -> 0.01": (
        "which bins are mirrored: the mass is the same up to rounding near the mean"
    ),
    "likelihood.bound_term: clip -> clip * 1.01": "as true, or as false, as before",
    "evaluation/best_timesteps.make_measure.measure: clip -> clip * 1.01": (
        "as true, or as false, as before"
    ),
    "evaluation/best_timesteps.last_costs: 0 -> 0.01": (
        "an index of a shape, or a ratio that is clamped to 0"
    ),
    **{
        f"evaluation/best_timesteps.module: {change}": (
            "at which variances a smooth cost is taken, to be interpolated"
        )
        for change in (
            "-7.0 * np.linspace(1, 0, 21) ** 2 -> -7.0 * np.linspace(1, 0, 21) ** 2 * 1.01",
            "np.linspace(1, 0, 21) -> np.linspace(1, 0, 21) * 1.01",
            "2 -> 2.02",
            "7.0 -> 7.07",
            "1 -> 1.01",
        )
    },
    "oracle.mixture: np.asarray(weights, np.float64) -> "
    "np.asarray(weights, np.float64) * 1.01": "weights are made to sum to 1 afterwards",
    "oracle.gaussian: 1.0 -> 1.01": "the one weight is made 1 afterwards",
    "oracle.sample: weights -> weights * 1.01": "jax.random.choice divides by their sum",
    "timestep_sampling.importance_timesteps: probabilities -> probabilities * 1.01": (
        "jax.random.choice divides by their sum"
    ),
    "schedules.jsd_betas: 0 -> 0.01": "np.arange stops before either",
    "schedules.cosine_betas: np.cos((u + offset) / (1 + offset) * math.pi / 2) -> "
    "np.cos((u + offset) / (1 + offset) * math.pi / 2) * 1.01": "only ratios are used",
    "schedules.cosine_betas: np.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2 -> "
    "np.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2 * 1.01": (
        "only ratios are used"
    ),
    "timestep_sampling.uniform_timesteps: 0 -> 0.01": "randint makes it an integer, 0",
    "timestep_sampling.stratified_timesteps: 0 -> 0.01": "randint makes it an integer, 0",
    "timestep_sampling.record_losses: size -> size * 1.01": (
        "integers are at least n - 10.1 where they are at least n - 10"
    ),
    "timestep_sampling.record_losses: 1 -> 1.01": "added to integers, as an integer",
    "process.q_trajectory: kept -> kept * 1.01": "zeros, all of which are overwritten",
    "samplers/steps.trailing_timesteps: 0 -> 0.01": "np.arange stops before either",
    "samplers/tables.langevin_table: 1 -> 1.01": "a number of rows, an integer",
    "samplers/tables.dpmpp_3m_table: 0.0 -> 0.01": "stands where nothing is read",
    "samplers/tables.unipc_table: 1.0 -> 1.01": "stands where nothing is read",
    "schedules.alphas_cumprod_at: 0.5 -> 0.505": "stands where nothing is read",
    "oracle._between: 1e-300 -> 1.01e-300": "no float32, and a square root of 0 in float64",
    "oracle._between: jnp.nan -> jnp.nan * 1.01": "not a number either way",
    "training/averages._products: n[:, None] * n[None] / both * np.exp(shared) -> "
    "n[:, None] * n[None] / both * np.exp(shared) * 1.01": "only ratios are used",
    "training/averages.rebuilding_weights: 1e-14 -> 1.0100000000000001e-14": (
        "what counts as zero, at the edge of float64"
    ),
    # Where a warning begins is a choice.
    "samplers/tables.module: 0.1 -> 0.101": "so much noise is warned of",
    # Clamps and tolerances that no valid input reaches.
    "samplers/tables.non_markovian_table: 1e-12 -> 1.01e-12": (
        "a tolerance for rounding in float64, which is near 1e-16"
    ),
    "process.q_sigma: 1e-12 -> 1.01e-12": (
        "a tolerance for rounding in float64, which is near 1e-16"
    ),
    "oracle.negative_log_likelihood: x0[:, None] - jnp.asarray(data.means[None], "
    "x0.dtype) -> (x0[:, None] - jnp.asarray(data.means[None], x0.dtype)) * 1.01": (
        "how near a point is met: no other level is nearer than 0.0078"
    ),
    "timestep_sampling.timestep_probabilities: 1.0 -> 1.01": (
        "a divisor that keeps 0 / 0 out of a branch that is not taken"
    ),
}


@pytest.mark.slow
def test_no_mutant_survives(capsys):
    every = [mutant for module in mutants.MODULES for mutant in mutants.mutants_of(module)]
    names = [mutant.name for mutant in every]
    missing = EQUIVALENT.keys() - set(names)
    assert not missing, f"listed, but no longer there: {missing}"
    start = time.monotonic()
    left = mutants.survivors([m for m in every if m.name not in EQUIVALENT])
    seconds = time.monotonic() - start
    with capsys.disabled():
        print(
            f"\n{len(every)} mutants in {seconds:.0f} s; {len(EQUIVALENT)} listed as "
            f"unobservable, {len(left)} survive"
        )
        for mutant in left:
            print(f"  {mutant.module}.py:{mutant.line} {mutant.name}")
    assert not left and seconds < 1800
