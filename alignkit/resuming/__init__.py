"""Going on from a checkpoint: exactly where it stopped, and only as the run that it was."""

from alignkit.resuming.callback import Resuming
from alignkit.resuming.changes import Change, Onlooker, counted, differences, refuse

__all__ = ["Change", "Onlooker", "Resuming", "counted", "differences", "refuse"]
