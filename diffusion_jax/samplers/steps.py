"""Which timesteps a sampler visits: S strictly falling indices out of 0 .. T-1."""

from collections.abc import Sequence

import numpy as np

SPACINGS = ("trailing", "linspace")


def trailing_timesteps(num_timesteps: int, num_sampling_steps: int) -> np.ndarray:
    """S timesteps from T - 1 downwards, evenly, the last one T // S - 1.

    Integer arithmetic, so that there are exactly S of them for every S in 1 .. T.

    Returns:
      int32 [S], strictly falling, the first T - 1.
    """
    _check_count(num_timesteps, num_sampling_steps)
    remaining = np.arange(num_sampling_steps, 0, -1, dtype=np.int64)
    return (remaining * num_timesteps // num_sampling_steps - 1).astype(np.int32)


def linspace_timesteps(num_timesteps: int, num_sampling_steps: int) -> np.ndarray:
    """S timesteps from T - 1 to 0, both visited, rounded half up.

    Returns:
      int32 [S], strictly falling, the first T - 1 (the only one if S is 1), the last 0.
    """
    _check_count(num_timesteps, num_sampling_steps)
    if num_sampling_steps == 1:
        return np.array([num_timesteps - 1], dtype=np.int32)
    gaps = num_sampling_steps - 1
    remaining = np.arange(gaps, -1, -1, dtype=np.int64)
    return ((2 * remaining * (num_timesteps - 1) + gaps) // (2 * gaps)).astype(np.int32)


def spaced_timesteps(
    spacing: str, num_timesteps: int, num_sampling_steps: int
) -> np.ndarray:
    """The timesteps of a spacing by its name; int32 [S], strictly falling."""
    if spacing == "trailing":
        return trailing_timesteps(num_timesteps, num_sampling_steps)
    if spacing == "linspace":
        return linspace_timesteps(num_timesteps, num_sampling_steps)
    raise ValueError(f"spacing {spacing!r} is unknown; it can be {', '.join(SPACINGS)}")


def check_timesteps(timesteps: Sequence[int] | np.ndarray, num_timesteps: int) -> None:
    """Raises ValueError unless the list is strictly falling within 0 .. T-1."""
    steps = np.asarray(timesteps)
    if steps.ndim != 1 or not steps.size or not np.issubdtype(steps.dtype, np.integer):
        raise ValueError(f"timesteps must be a list of integers; got {timesteps!r}")
    if steps.max() >= num_timesteps or steps.min() < 0:
        raise ValueError(
            f"timesteps must lie in 0 .. {num_timesteps - 1}; "
            f"got {steps.min()} .. {steps.max()}"
        )
    if (np.diff(steps) >= 0).any():
        raise ValueError("timesteps must fall strictly, from noise to image")


def _check_count(num_timesteps: int, num_sampling_steps: int) -> None:
    if not 1 <= num_sampling_steps <= num_timesteps:
        raise ValueError(
            f"steps ({num_sampling_steps}) must be between 1 and the process's "
            f"num_timesteps ({num_timesteps})"
        )
