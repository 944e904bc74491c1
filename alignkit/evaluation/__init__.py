"""Generate with the reference and with the policy, score both, compare prompt by prompt."""

from alignkit.evaluation.callback import Evaluation

__all__ = ["Evaluation"]
