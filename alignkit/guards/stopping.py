"""How a guard ends a run."""

from alignkit.mistakes import UsageError


class StoppedError(UsageError):
    """A guard ended the run: its figures are not to be trusted from here on."""
