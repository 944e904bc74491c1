"""What a weighting promises. Shape suffixes: K candidates of a prompt, best first; B prompts; S snapshots."""

import torch
from torch import Tensor
from torch.testing import assert_close

from alignkit.components import Weighting
from alignkit.noise import normal
from alignkit.testing.contracts.objectives import Case, part
from alignkit.testing.toys import toy_batch, toy_scored
from alignkit.types import Key, Scored, Weights

__all__ = [
    "test_weighting_follows_the_order_of_prompts",
    "test_weighting_gives_weights_without_gradient",
    "test_weighting_names_snapshots_that_can_be_kept",
]

COUNT = 6
STEP = 1000


def pairs() -> Case:
    """Log-likelihoods that differ from prompt to prompt, and their batch."""
    batch = toy_batch(COUNT)
    key = Key(0, batch.id_B, batch.visit_B)
    ref_logp_KB = -0.1 - 0.02 * normal(key, "reference", (2,)).T.tanh()
    return Case((ref_logp_KB + 2e-4 * normal(key, "policy", (2,)).T), ref_logp_KB.contiguous(), batch)


def scored(weighting: Weighting, given: Case) -> Scored:
    """What a step hands to a weighting, of which autograd knows."""
    found = toy_scored(given.logp_KB.clone().requires_grad_(), given.ref_logp_KB)._replace(step=STEP)
    if not weighting.snapshots:
        return found
    key = Key(1, given.batch.id_B, given.batch.visit_B)
    noise_SKB = normal(key, "snapshots", (len(weighting.snapshots), 2)).permute(1, 2, 0)
    return found._replace(snapshot_logp_SKB=given.logp_KB + 2e-4 * noise_SKB)


def ask(weighting: Weighting, given: Case) -> Weights:
    """Runs a weighting on a case."""
    weights: Weights = weighting(scored(weighting, given), given.batch)
    return weights


def test_weighting_gives_weights_without_gradient(weighting: Weighting) -> None:
    """One float32 per prompt, none below zero and not all zero; the same of margins, if it gives any."""
    weight_B, margin_B, logs = ask(weighting, pairs())
    values: dict[str, Tensor] = {"weight_B": weight_B} | ({} if margin_B is None else {"margin_B": margin_B})
    for name, value_B in values.items():
        assert value_B.shape == (COUNT,), name
        assert value_B.dtype == torch.float32, name
        assert value_B.isfinite().all(), name
        assert not value_B.requires_grad, name
    assert (weight_B >= 0).all()
    assert (weight_B > 0).any()
    for name, value in logs.items():
        assert (value.shape, value.requires_grad) == ((), False), name
        assert value.isfinite(), name


def test_weighting_follows_the_order_of_prompts(weighting: Weighting) -> None:
    """Weights of shuffled prompts are the shuffled weights."""
    given, order = pairs(), torch.tensor([4, 2, 0, 5, 1, 3])
    weight_B, margin_B, _ = ask(weighting, given)
    other_weight_B, other_margin_B, _ = ask(weighting, part(given, order))
    assert_close(other_weight_B, weight_B[order], rtol=1e-4, atol=1e-6)
    assert (margin_B is None) == (other_margin_B is None)
    if margin_B is not None:
        assert_close(other_margin_B, margin_B[order], rtol=1e-4, atol=1e-6)


def test_weighting_names_snapshots_that_can_be_kept(weighting: Weighting) -> None:
    """Decays of averages: 0 would be the policy itself, 1 its start."""
    assert isinstance(weighting.snapshots, tuple)
    assert all(0 < decay < 1 for decay in weighting.snapshots)
