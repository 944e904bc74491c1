"""For those who test a component: toys, slopes, and the contracts that every component keeps.

``from alignkit.testing.contracts import *`` in a test file runs the contracts; they need pytest, the rest of
this package does not. ``alignkit.testing.pipelines`` writes tiny pipelines of diffusers' classes.
"""

from alignkit.testing.golden import assert_slopes, autograd_slopes, central_differences
from alignkit.testing.toys import ToyBackbone, ToyNetwork, ToyPairs, toy_batch, toy_scored

__all__ = [
    "ToyBackbone",
    "ToyNetwork",
    "ToyPairs",
    "assert_slopes",
    "autograd_slopes",
    "central_differences",
    "toy_batch",
    "toy_scored",
]
