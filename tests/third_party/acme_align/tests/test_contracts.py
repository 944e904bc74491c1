"""Acme's components keep alignkit's contracts: one line runs them, the other leaves all others out."""

from alignkit.testing.contracts import *  # noqa: F403

DISTRIBUTION = "acme-align"
