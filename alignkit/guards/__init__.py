"""Guards of a run: they look at every step, and act when one goes wrong."""

from alignkit.guards.callback import Guards
from alignkit.guards.stopping import StoppedError

__all__ = ["Guards", "StoppedError"]
