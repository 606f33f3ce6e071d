"""The two ways in which a command fails with one line."""


class BadRequest(Exception):
    """A request that cannot be met; str() is one line that says why."""


class RunFailed(Exception):
    """A run that cannot go on; str() is one line that says why and what to do."""
