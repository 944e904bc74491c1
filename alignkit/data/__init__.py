"""From preference pairs to batches."""

from alignkit.data.module import AlignData

__all__ = ["AlignData"]
