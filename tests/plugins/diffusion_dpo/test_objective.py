"""The component DiffusionDPO: settings, logs and errors. Its math is tested in test_functional.py."""

import math

import pytest
import torch
from torch.testing import assert_close

from alignkit.types import Batch, Noised, Scored
from alignkit_diffusion_dpo.functional import diffusion_dpo_loss
from alignkit_diffusion_dpo.objective import DiffusionDPO

LOGP_KB = torch.tensor([[-1.0, -2.0, -3.0], [-2.0, -2.0, -1.0]])
REF_LOGP_KB = torch.tensor([[-2.0, -2.0, -2.0], [-2.0, -2.0, -2.0]])


def batch() -> Batch:
    id_B = torch.arange(3)
    return Batch(torch.zeros(2, 3, 3, 4, 4), ("a", "b", "c"), id_B, id_B)


def scored(**fields: torch.Tensor) -> Scored:
    return Scored(Noised(*torch.zeros(3, 2, 3, 1, 1, 1)), **fields)


def test_loss_is_the_functions_one_per_prompt():
    loss_B, _ = DiffusionDPO(beta=2.0)(scored(logp_KB=LOGP_KB, ref_logp_KB=REF_LOGP_KB), batch())
    assert_close(loss_B, diffusion_dpo_loss(LOGP_KB, REF_LOGP_KB, beta=2.0), rtol=0, atol=0)


def test_logs_say_what_moved():
    """Gains are (1, 0, -1) on winners and (0, 0, 1) on losers, logits (1, 0, -2): right, tied and wrong."""
    logs = DiffusionDPO(beta=2.0)(scored(logp_KB=LOGP_KB, ref_logp_KB=REF_LOGP_KB), batch()).logs
    sigma = [1 / (1 + math.exp(logit)) for logit in (1, 0, -2)]  # sigma(-u)
    expected = {
        "rewards/chosen": 0.0,
        "rewards/rejected": 1 / 3,
        "rewards/margins": -1 / 3,
        "rewards/accuracies": 0.5,
        "logit/scale": 1.0,
        "logit/gradient": sum(sigma) / 3,
    }
    assert {name: value.item() for name, value in logs.items()} == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_margin_of_a_weighting_is_used_by_loss_and_logs():
    """A margin of 1 leaves logits of (0, -1, -3); rewards do not change."""
    margin_B = torch.ones(3)
    loss_B, logs = DiffusionDPO(beta=2.0)(
        scored(logp_KB=LOGP_KB, ref_logp_KB=REF_LOGP_KB, margin_B=margin_B), batch()
    )
    assert_close(
        loss_B, diffusion_dpo_loss(LOGP_KB, REF_LOGP_KB, beta=2.0, margin_B=margin_B), rtol=0, atol=0
    )
    assert_close(logs["logit/scale"], torch.tensor(4 / 3))
    assert_close(logs["rewards/margins"], torch.tensor(-1 / 3))


def test_gradient_reaches_the_policy_and_neither_reference_nor_logs():
    logp_KB, ref_logp_KB = LOGP_KB.clone().requires_grad_(), REF_LOGP_KB.clone().requires_grad_()
    loss_B, logs = DiffusionDPO()(scored(logp_KB=logp_KB, ref_logp_KB=ref_logp_KB), batch())
    loss_B.mean().backward()
    assert logp_KB.grad is not None
    assert ref_logp_KB.grad is None
    assert not any(value.requires_grad for value in logs.values())


def test_initial_loss_is_what_a_copy_of_the_reference_costs():
    objective = DiffusionDPO()
    loss_B, logs = objective(scored(logp_KB=LOGP_KB, ref_logp_KB=LOGP_KB), batch())
    assert_close(loss_B, torch.full((3,), objective.initial_loss()), rtol=0, atol=0)
    assert logs["rewards/accuracies"] == 0.5


def test_default_is_the_papers_beta_for_sd15():
    assert DiffusionDPO().beta == 2000


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
def test_beta_must_be_positive(beta: float):
    with pytest.raises(ValueError, match=rf"^DiffusionDPO: beta must be positive, got {beta}$"):
        DiffusionDPO(beta=beta)


def test_the_ends_of_what_is_allowed():
    assert DiffusionDPO(beta=1e-9).beta == 1e-9


def test_missing_likelihoods_are_named():
    with pytest.raises(ValueError, match="DiffusionDPO reads ref_logp"):
        DiffusionDPO()(scored(logp_KB=LOGP_KB), batch())
    with pytest.raises(ValueError, match="DiffusionDPO reads logp,"):
        DiffusionDPO()(scored(ref_logp_KB=LOGP_KB), batch())


def test_more_than_two_candidates_are_refused():
    with pytest.raises(ValueError, match="needs two candidates per prompt, winner first, got 3"):
        DiffusionDPO()(scored(logp_KB=torch.zeros(3, 3), ref_logp_KB=torch.zeros(3, 3)), batch())
