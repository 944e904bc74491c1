"""Ends all processes of a run when one of them dies or hangs, and says which one it was."""

from alignkit.watch.callback import Watch, watched

__all__ = ["Watch", "watched"]
