"""The component SEEDPO: settings, logs and errors. Its math is tested in test_functional.py."""

import math

import pytest
import torch
from torch.testing import assert_close

from alignkit.types import Batch, Noised, Scored
from alignkit_see_dpo.functional import see_dpo_loss
from alignkit_see_dpo.objective import SEEDPO

LOGP_KB = torch.tensor([[-1.0, -2.0, -3.0], [-2.0, -2.0, -1.0]])
REF_LOGP_KB = torch.tensor([[-2.0, -2.0, -2.0], [-2.0, -2.0, -2.0]])


def batch() -> Batch:
    id_B = torch.arange(3)
    return Batch(torch.zeros(2, 3, 3, 4, 4), ("a", "b", "c"), id_B, id_B)


def scored(**fields: torch.Tensor) -> Scored:
    return Scored(Noised(*torch.zeros(3, 2, 3, 1, 1, 1)), **fields)


def test_loss_is_the_functions_one_per_prompt():
    loss_B, _ = SEEDPO(beta=2.0, gamma=0.5)(scored(logp_KB=LOGP_KB, ref_logp_KB=REF_LOGP_KB), batch())
    assert_close(loss_B, see_dpo_loss(LOGP_KB, REF_LOGP_KB, beta=2.0, gamma=0.5), rtol=0, atol=0)


def test_logs_say_what_moved():
    """Margins (1, 0, -2) without gamma: right, tied, wrong. Policy's D is (1, 0, -2), gamma D (.5, 0, -1)."""
    logs = SEEDPO(beta=2.0, gamma=0.5)(scored(logp_KB=LOGP_KB, ref_logp_KB=REF_LOGP_KB), batch()).logs
    expected = {
        "rewards/chosen": 0.0,
        "rewards/rejected": 1 / 3,
        "rewards/margins": -1 / 3,
        "rewards/accuracies": 0.5,
        "logit/scale": (1.5 + 0 + 3) / 3,
        "logit/gradient": sum(1 / (1 + math.exp(logit)) for logit in (1.5, 0, -3)) / 3,
        "entropy/scale": 0.5,
        "entropy/ratio": 0.5,
    }
    assert {name: value.item() for name, value in logs.items()} == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_accuracy_does_not_depend_on_gamma():
    """A pair that the entropy term alone decides: margin -1 at a D of +4."""
    logp_KB, ref_logp_KB = torch.tensor([[-1.0], [-5.0]]), torch.tensor([[-1.0], [-6.0]])
    for gamma in (0.0, 1.0, 100.0):
        logs = SEEDPO(beta=2.0, gamma=gamma)(scored(logp_KB=logp_KB, ref_logp_KB=ref_logp_KB), batch()).logs
        assert logs["rewards/accuracies"] == 0
        assert_close(logs["rewards/margins"], torch.tensor(-1.0))
    assert_close(logs["logit/scale"], torch.tensor(399.0))


def test_margin_of_a_weighting_is_used_by_loss_and_logs():
    """A margin of 1 leaves logits of (0.5, -1, -4); rewards do not change."""
    margin_B = torch.ones(3)
    loss_B, logs = SEEDPO(beta=2.0, gamma=0.5)(
        scored(logp_KB=LOGP_KB, ref_logp_KB=REF_LOGP_KB, margin_B=margin_B), batch()
    )
    expected_B = see_dpo_loss(LOGP_KB, REF_LOGP_KB, beta=2.0, gamma=0.5, margin_B=margin_B)
    assert_close(loss_B, expected_B, rtol=0, atol=0)
    assert_close(logs["logit/scale"], torch.tensor(5.5 / 3))
    assert_close(logs["rewards/margins"], torch.tensor(-1 / 3))


def test_gradient_reaches_the_policy_and_neither_reference_nor_logs():
    logp_KB, ref_logp_KB = LOGP_KB.clone().requires_grad_(), REF_LOGP_KB.clone().requires_grad_()
    loss_B, logs = SEEDPO()(scored(logp_KB=logp_KB, ref_logp_KB=ref_logp_KB), batch())
    loss_B.mean().backward()
    assert logp_KB.grad is not None
    assert ref_logp_KB.grad is None
    assert not any(value.requires_grad for value in logs.values())


def test_initial_loss_is_known_only_without_entropy():
    objective = SEEDPO(gamma=0.0)
    loss_B, logs = objective(scored(logp_KB=LOGP_KB, ref_logp_KB=LOGP_KB), batch())
    assert_close(loss_B, torch.full((3,), objective.initial_loss()), rtol=0, atol=0)
    assert logs["entropy/ratio"] == 0
    assert SEEDPO(gamma=0.1).initial_loss() is None


def test_first_batch_logs_finite_numbers():
    """The margin is exactly 0 there, and the ratio has it below the line."""
    logs = SEEDPO(beta=500.0, gamma=0.01)(scored(logp_KB=LOGP_KB, ref_logp_KB=LOGP_KB), batch()).logs
    assert all(value.isfinite() for value in logs.values())
    assert logs["entropy/ratio"] > 1e6


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
def test_beta_must_be_positive(beta: float):
    with pytest.raises(ValueError, match=rf"^SEEDPO: beta must be positive, got {beta}$"):
        SEEDPO(beta=beta)


@pytest.mark.parametrize("gamma", [-0.1, math.nan, math.inf])
def test_gamma_must_not_be_negative(gamma: float):
    with pytest.raises(ValueError, match=rf"^SEEDPO: gamma must be at least 0, got {gamma}$"):
        SEEDPO(gamma=gamma)


def test_the_ends_of_what_is_allowed():
    assert SEEDPO(beta=1e-9).beta == 1e-9


def test_defaults_are_diffusion_dpos_beta_and_an_entropy_that_hardly_moves_it():
    assert (SEEDPO().beta, SEEDPO().gamma) == (2000, 0.003)


def test_missing_likelihoods_are_named():
    with pytest.raises(ValueError, match="SEEDPO reads ref_logp"):
        SEEDPO()(scored(logp_KB=LOGP_KB), batch())
    with pytest.raises(ValueError, match="SEEDPO reads logp,"):
        SEEDPO()(scored(ref_logp_KB=LOGP_KB), batch())
