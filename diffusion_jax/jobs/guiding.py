"""Guidance of the samples of a request: by labels, by another run, by a function."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config import Config
from diffusion_jax.diffusion import guidance
from diffusion_jax.diffusion.guidance import Guidance, Prior
from diffusion_jax.diffusion.model import Model
from diffusion_jax.experiment import build, build_sampler
from diffusion_jax.jobs import python_file
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.weights import identity_of, load_from_run
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.files import check_regular, read_bytes
from diffusion_jax.runtime.hashing import sha256
from diffusion_jax.samplers import chain
from diffusion_jax.samplers.table import SamplerTable

GUIDE_HELP = (
    "Folder of another run, smaller or less trained, of the same data: guidance then leads "
    "away from what it predicts (autoguidance)."
)
GUIDE_STEP_HELP = "Checkpoint of --guide: its step, newest, or best."
PRIOR_HELP = (
    "Python file with a function log_p_of_x0(x0, level, cond) or log_p_of_x_t(x_t, level, "
    "cond) that returns [B]: its gradient joins the score (docs/priors.md)."
)
PRIOR_SCALE_HELP = "Factor of the gradient of --prior."
OF_X0, OF_X_T = "log_p_of_x0", "log_p_of_x_t"


class Guide(NamedTuple):
    """Another run that guides.

    Attributes:
      workdir: the run.
      step: of `checkpoint_choice.chosen_step`.
    """

    workdir: pathlib.Path
    step: int | None = None


class PriorFile(NamedTuple):
    """A file with a function that guides, and the scale of its gradient."""

    path: pathlib.Path
    scale: float = 1.0


class Guiding(NamedTuple):
    """The guidance of a request.

    Attributes:
      guidance, prior: of `chain.ChainOptions`.
      params: of the guide; None without one.
      about: what decides the samples, for their note.
    """

    guidance: Guidance | None
    prior: Prior | None
    params: Any
    about: dict[str, Any]


def make(
    config: Config,
    model: Model,
    guide: Guide | None,
    prior: PriorFile | None,
    sharding: jax.sharding.Sharding,
) -> Guiding:
    """Return the guidance that a config, another run and a file ask for.

    Args:
      config: of the run.
      model: of the run.
      guide: the other run.
      prior: the file.
      sharding: where the params of the guide are to lie.

    Raises:
      BadRequest: for a guide that does not fit, or a file without a function that does.
    """
    options = build_sampler.guidance_options(config.sampling)
    chosen, params, about = None, None, {}
    if guide is not None:
        other = run_folder.read_config(guide.workdir)
        _check_guide(config, model, guide.workdir, other)
        loaded = load_from_run(
            guide.workdir, other, "ema", sharding, flag="--guide", step=guide.step
        )
        params = loaded.params
        about["guide"] = {"run": str(guide.workdir), **identity_of(loaded)}
        chosen = guidance.by_model(model, build.make_model(other), **options)
    elif config.data.labels and build_sampler.needs_base(config.sampling):
        chosen = guidance.by_label(model, config.data.num_classes, **options)
    function = None
    if prior is not None:
        if model.process.has_zero_terminal_snr:
            raise BadRequest(
                f"--prior {prior.path}: the gradient cannot be added where the "
                "signal-to-noise ratio is zero, as at the end of this run's process"
            )
        function = read_prior(prior.path)
        digest = sha256([read_bytes(prior.path)])
        about["prior"] = {
            "file": str(prior.path),
            "sha256": digest,
            "scale": prior.scale,
        }
    return Guiding(chosen, function, params, about)


def _check_guide(
    config: Config, model: Model, workdir: pathlib.Path, other: Config
) -> None:
    """Check that another run can guide this one."""
    flag = f"--guide {workdir}"
    if other.data.shape != config.data.shape:
        raise BadRequest(
            f"{flag}: its examples have the shape {list(other.data.shape)}, and those of "
            f"the run {list(config.data.shape)}"
        )
    process = build.make_schedule(other.process)
    same = np.array_equal(process.alphas_cumprod, model.process.alphas_cumprod)
    if not same or other.process.prediction != model.prediction:
        raise BadRequest(
            f"{flag}: it has another process (schedule, timesteps or prediction) than the "
            "run; a guide needs the same"
        )
    classes = config.data.num_classes if config.data.labels else 0
    if other.data.labels and other.data.num_classes != classes:
        raise BadRequest(
            f"{flag}: it has {other.data.num_classes} classes, and the run "
            f"{classes or 'no labels'}"
        )


def read_prior(path: pathlib.Path) -> Prior:
    """Return the function of a file.

    Raises:
      BadRequest: unless the file defines one of the two functions.
    """
    try:
        check_regular(path)
    except OSError as error:
        raise BadRequest(f"--prior {path}: {error.strerror or error}") from error
    module = python_file.load("--prior", str(path), path)
    found = [name for name in (OF_X0, OF_X_T) if callable(getattr(module, name, None))]
    if len(found) != 1:
        raise BadRequest(
            f"--prior {path} must define one of {OF_X0}(x0, level, cond) and "
            f"{OF_X_T}(x_t, level, cond), and it defines {'both' if found else 'none'}"
        )
    return Prior(getattr(module, found[0]), is_of_x0=found[0] == OF_X0)


def check_prior(
    path: pathlib.Path,
    prior: Prior,
    table: SamplerTable,
    shape: tuple[int, ...],
    cond: dict[str, Any],
) -> None:
    """Check a function on noise at the level of the first row.

    Args:
      path: of its file, for messages.
      prior: the function.
      table: rows of the chain.
      shape: of one example.
      cond: what a batch is conditioned on.

    Raises:
      BadRequest: if it raises an error, returns another shape than [B], or has a gradient
        that is not finite.
    """
    num = len(cond[guidance.PRIOR_SCALE])
    x = jax.random.normal(jax.random.key(0), (num, *shape))
    level = jax.tree.map(lambda column: jnp.asarray(column[0], x.dtype), table.level)

    def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = prior.log_p(x, level, cond)
        return jnp.sum(value), value

    try:
        gradient, value = jax.jit(jax.grad(total, has_aux=True))(x)
    except Exception as error:  # Of the user's code, of any kind.
        raise python_file.refusal("--prior", str(path), path, error) from error
    if value.shape != (num,):
        raise BadRequest(
            f"--prior {path} must return one number per example, [{num}], and returns "
            f"{list(value.shape)}"
        )
    if not bool(jnp.isfinite(gradient).all()):
        raise BadRequest(
            f"--prior {path}: its gradient is not finite at step 1 (timestep "
            f"{float(table.t[0]):g}), where x is noise"
        )


def first_step_not_finite(
    model: Model,
    params: Any,
    table: SamplerTable,
    samples: chain.Samples,
    cond: dict[str, Any],
    options: chain.ChainOptions,
    shape: tuple[int, ...],
) -> str:
    """Return where a chain that ends with a number that is not finite gets it, in words.

    Arguments are those of `chain.sample_chain`. The rows are run one by one.
    """
    rows = chain.chain_rows(table)
    state = chain.start_chain(table, samples, shape, options)
    advance = jax.jit(
        lambda state, row: chain.run_rows(model, params, state, row, samples, cond, options)
    )
    for i in range(table.num_rows):
        state = advance(state, jax.tree.map(lambda c, i=i: c[i : i + 1], rows))
        if not bool(jnp.isfinite(state.x).all()):
            break
    return f"step {i + 1} of {table.num_rows} (timestep {float(table.t[i]):g})"


def cond_of(
    config: Config,
    guiding: Guiding,
    prior: PriorFile | None,
    labels: np.ndarray | None,
    num: int,
) -> dict[str, Any]:
    """Return what the chains of `num` samples are conditioned on.

    Args:
      config: of the run.
      guiding: of `make`.
      prior: its file, or None.
      labels: the classes of the samples; None for a run without.
      num: of samples.
    """
    cond: dict[str, Any] = {}
    if labels is not None:
        sampling = config.sampling
        is_without = sampling.guidance == 0 and not build_sampler.needs_base(sampling)
        none = np.full_like(labels, config.data.num_classes)
        cond[guidance.LABEL] = none if is_without else labels
    if guiding.guidance is not None:
        cond[guidance.SCALE] = np.full(num, config.sampling.guidance, np.float32)
    if prior is not None:
        cond[guidance.PRIOR_SCALE] = np.full(num, prior.scale, np.float32)
    return cond
