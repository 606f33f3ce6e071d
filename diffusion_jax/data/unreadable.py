"""Files that cannot be read: the exception, and the reason in words."""

from diffusion_jax.runtime import text


class Unreadable(ValueError):
    """A file that cannot be read; str() is the reason."""


def reason(error: BaseException) -> str:
    """Return why reading has failed, without the path, which the caller names."""
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = text.reason(error)
    named = isinstance(error, KeyError | IndexError | AssertionError | AttributeError)
    return f"{type(error).__name__}: {said}" if named else said
