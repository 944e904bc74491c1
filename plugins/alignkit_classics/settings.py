"""Checks that several objectives make of their settings."""

import math

from alignkit.types import Scored


def check_positive(owner: object, name: str, value: float) -> None:
    """Refuses a setting that is not a positive number."""
    if not 0 < value < math.inf:
        raise ValueError(f"{type(owner).__name__}: {name} must be positive, got {value}")


def check_weight(owner: object, name: str, value: float) -> None:
    """Refuses a factor that is negative or not a number."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{type(owner).__name__}: {name} must be at least 0, got {value}")


def check_flip_rate(owner: object, value: float) -> None:
    """Refuses a rate of wrong labels at which labels say nothing, or the opposite."""
    if not 0 <= value < 0.5:
        raise ValueError(f"{type(owner).__name__}: flip_rate must lie in [0, 0.5), got {value}")


def check_no_margin(owner: object, scored: Scored) -> None:
    """Refuses a weighting's margin where there is no logit that it could shift."""
    if scored.margin_B is not None:
        raise ValueError(
            f"{type(owner).__name__}: has no logit for a weighting's margin to shift; "
            "switch the margin off or use a logistic objective"
        )
