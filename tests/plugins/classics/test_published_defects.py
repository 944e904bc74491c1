"""Defects of published alignment code that concern a loss, each as a property that it would break.

Every pairwise loss of the plugin is tried; D is the difference of errors, winner minus loser.
"""

import inspect
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

import alignkit_classics
from alignkit.components import Objective
from alignkit.functional import bradley_terry_nll
from alignkit.types import Batch, Noised, Scored
from alignkit_classics.functional import (
    conservative_dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    mapo_loss,
    robust_dpo_loss,
)

PairLoss = Callable[[Tensor, Tensor], Tensor]

# log-likelihoods and those of the reference to a loss per pair; kappa = beta / 2 = 2500 where there is a beta
PAIRWISE: dict[str, PairLoss] = {
    "hinge": lambda logp_KB, ref_KB: hinge_loss(logp_KB, ref_KB, beta=5000.0),
    "conservative": lambda logp_KB, ref_KB: conservative_dpo_loss(
        logp_KB, ref_KB, beta=5000.0, flip_rate=0.1
    ),
    "robust": lambda logp_KB, ref_KB: robust_dpo_loss(logp_KB, ref_KB, beta=5000.0, flip_rate=0.1),
    "ipo": lambda logp_KB, ref_KB: ipo_loss(logp_KB, ref_KB, tau=2500.0),
    # the baseline is a statistic of the batch on purpose: given, so that what is left is the pair's
    "kto": lambda logp_KB, ref_KB: kto_loss(logp_KB, ref_KB, beta=5000.0, baseline=torch.tensor(0.0)),
    "mapo": lambda logp_KB, ref_KB: mapo_loss(logp_KB, beta=0.1),
}
OBJECTIVES = sorted(alignkit_classics.alignkit_objectives())


def pairs(difference_B: Tensor, *, error: float = 0.1) -> tuple[Tensor, Tensor]:
    """Scores of policy and reference; the policy's winner has that much more error than its loser."""
    error_KB = torch.stack([error + difference_B / 2, error - difference_B / 2])
    return -error_KB, torch.full_like(error_KB, -error)


def gradient(loss: PairLoss, difference_B: Tensor, **where: float) -> Tensor:
    """The gradient by the errors of the mean loss, (K, B)."""
    logp_KB, ref_logp_KB = pairs(difference_B, **where)
    logp_KB.requires_grad_()
    (gradient_KB,) = torch.autograd.grad(loss(logp_KB, ref_logp_KB).mean(), logp_KB)
    return -gradient_KB


def component(name: str) -> type[Objective]:
    module, _, cls = alignkit_classics.alignkit_objectives()[name].partition(":")
    found: type[Objective] = getattr(__import__(module, fromlist=[cls]), cls)
    return found


# --- 1. the mean over the batch before the non-linearity -------------------------------------------------
# Both scripts of huggingface/diffusers until pull request 6754, invoke-training and diffengine: the pairs of
# a batch then have one common factor, and none is weighted by how wrong it is.


def test_reduced_early_the_four_pairs_of_the_report_have_one_gradient():
    """What the defect does: D of +-0.02 and +-0.001 at kappa = 2500 cost 0.693 rather than 13.4."""
    difference_B = torch.tensor([0.02, -0.02, 0.001, -0.001], dtype=torch.float64)
    early = -F.logsigmoid((-2500 * difference_B).mean())
    right_B = bradley_terry_nll(-2500 * difference_B)
    assert early.item() == pytest.approx(math.log(2))
    assert right_B.mean().item() > 13


@pytest.mark.parametrize("name", PAIRWISE)
def test_mean_of_a_batch_is_the_mean_of_its_pairs(name: str):
    """1. One number per pair, the same alone as in a batch."""
    difference_B = torch.tensor([0.02, -0.02, 0.001, -0.001], dtype=torch.float64)
    loss_B = PAIRWISE[name](*pairs(difference_B))
    alone = [PAIRWISE[name](*pairs(one_B)) for one_B in difference_B.split(1)]
    assert loss_B.shape == (4,)
    assert_close(loss_B, torch.cat(alone), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", PAIRWISE)
def test_pairs_of_a_batch_are_weighted_by_how_wrong_they_are(name: str):
    """1. Four margins, four gradients; reduced early, all four would be equal."""
    difference_B = torch.tensor([4e-4, -7e-4, 1e-3, -1e-4], dtype=torch.float64)
    difference_B[1] *= 3  # beyond the hinge, too
    factor_B = gradient(PAIRWISE[name], difference_B)[0]
    assert factor_B.max() > 1.05 * factor_B.min()


# --- 2. the sign of the preference -----------------------------------------------------------------------
# diffusion_orpo of huggingface/diffusers has log_odds = e_w - e_l: descent lowers the error of the *loser*.


def test_sign_of_the_orpo_script_lowers_the_error_of_the_loser():
    """What the defect does: dL/de_l = +0.05 at beta = 0.1, and e_l falls by descent."""
    error_w, error_l = torch.tensor(0.3, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    (error_w - 0.1 * F.logsigmoid(error_w - error_l)).backward()
    assert error_l.grad.item() == pytest.approx(0.05)


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("difference", [-1e-4, 0.0, 1e-4, 1e-3])
def test_descent_lowers_the_winners_error_and_raises_the_losers(name: str, difference: float):
    """2. dL/de_w > 0 > dL/de_l while the pair is undecided or wrong."""
    winner_B, loser_B = gradient(PAIRWISE[name], torch.full((1,), difference, dtype=torch.float64))
    assert winner_B > 0
    assert loser_B < 0


@pytest.mark.parametrize("name", PAIRWISE)
def test_a_better_ranked_pair_costs_less(name: str):
    """2. Up to IPO's target and the conservative odds, where more is too much."""
    loss_B = PAIRWISE[name](*pairs(torch.linspace(1e-3, -1.5e-4, 50, dtype=torch.float64)))
    assert (loss_B.diff() < 0).all()


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_robust_loss_subtracts_its_second_term(rate: float):
    """2. Copies that add it, or leave out a 1 - q, are biased: over flips the mean must be -log sigmoid."""
    logit_B = torch.tensor([-1.5, 0.4, 2.0], dtype=torch.float64)
    zero_B = torch.zeros_like(logit_B)
    kept_B, flipped_B = (
        robust_dpo_loss(torch.stack([x_B, zero_B]), zero_B.expand(2, -1), beta=2.0, flip_rate=rate)
        for x_B in (logit_B, -logit_B)
    )
    assert_close((1 - rate) * kept_B + rate * flipped_B, bradley_terry_nll(logit_B))
    loss_B, mirrored_B = bradley_terry_nll(logit_B), bradley_terry_nll(-logit_B)
    for wrong_B in (
        ((1 - rate) * loss_B + rate * mirrored_B) / (1 - 2 * rate),
        (loss_B - mirrored_B) / (1 - 2 * rate),
    ):
        assert (kept_B - wrong_B).abs().max() > 0.1


# --- 3. a loss that crashes when it is chosen ------------------------------------------------------------
# loss_type=ipo of diffusers' train_diffusion_dpo.py reads args.beta, which does not exist; so do its copies.


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_registered_objective_computes_a_loss_with_its_documented_settings(name: str):
    """3. From the name that a config uses, with defaults, through a backward pass."""
    cls = component(name)
    assert all(
        f"{setting}:" in (cls.__doc__ or "")
        for setting in inspect.signature(cls).parameters
        if setting not in {"args", "kwargs"}
    )
    objective = cls()
    count = 2 if cls.reads == "pair" else 1
    logp_KB = torch.tensor([[-0.3, -0.2], [-0.25, -0.4]])[:count].requires_grad_()
    ref_logp_KB = torch.tensor([[-0.31, -0.2], [-0.25, -0.41]])[:count]
    label_B = torch.tensor([1.0, 0.0]) if cls.reads == "either" else None
    id_B = torch.arange(2)
    batch = Batch(torch.zeros(count, 2, 3, 4, 4), ("a", "b"), id_B, id_B, label_B=label_B)
    used = {"logp": ("logp_KB", logp_KB), "ref_logp": ("ref_logp_KB", ref_logp_KB)}
    scored = Scored(Noised(*torch.zeros(3, count, 2, 1, 1, 1)), **dict(used[use] for use in cls.uses))
    loss_B, logs = objective(scored, batch)
    loss_B.mean().backward()
    assert loss_B.shape == (2,)
    assert loss_B.isfinite().all()
    assert all(torch.as_tensor(value).isfinite() for value in logs.values())
    assert logp_KB.grad.abs().sum() > 0


def test_ipo_squares_the_distance_to_the_target_that_its_own_setting_names():
    """3. h - 1 / (2 tau), with h in units of mean error."""
    logp_KB, ref_logp_KB = pairs(torch.tensor([-2e-4], dtype=torch.float64))
    assert_close(ipo_loss(logp_KB, ref_logp_KB, tau=2500.0), torch.zeros(1).double(), rtol=0, atol=1e-20)


# --- 4. a tie that is counted as a win -------------------------------------------------------------------
# Pick-a-Pic has label_0 = 0.5; several scripts then take one image for the winner. A tie that is kept is
# half of each: the core mixes a pair's loss with the mirrored one.


@pytest.mark.parametrize("name", [name for name in PAIRWISE if name != "mapo"])
def test_a_tie_at_the_reference_teaches_nothing_about_the_order(name: str):
    """4. Winner and loser get the same gradient, so the logit does not move."""
    logp_KB, ref_logp_KB = pairs(torch.zeros(1, dtype=torch.float64))
    logp_KB.requires_grad_()
    loss = (PAIRWISE[name](logp_KB, ref_logp_KB) + PAIRWISE[name](logp_KB.flip(0), ref_logp_KB.flip(0))) / 2
    (gradient_KB,) = torch.autograd.grad(loss.sum(), logp_KB)
    assert_close(gradient_KB[0], gradient_KB[1], rtol=0, atol=1e-12)


def test_a_tie_without_a_reference_pulls_the_two_together():
    """4. MaPO has no reference to hold on to: the image that the policy finds likelier loses by it."""
    logp_KB = torch.tensor([[-0.1], [-0.102]], dtype=torch.float64, requires_grad=True)
    loss = (mapo_loss(logp_KB, beta=10.0) + mapo_loss(logp_KB.flip(0), beta=10.0)) / 2
    (gradient_KB,) = torch.autograd.grad(loss.sum(), logp_KB)
    assert gradient_KB[0] - gradient_KB[1] > 0  # descent lowers logp_w - logp_l, which was positive


@pytest.mark.parametrize("name", ["conservative", "robust", "hinge", "ipo"])
def test_a_tie_holds_a_decided_pair_back(name: str):
    """4. Away from the reference the mixture's gradient points back to it."""
    difference_B = torch.full((1,), -1e-3, dtype=torch.float64)  # logit 2.5, in favour of the first
    logp_KB, ref_logp_KB = pairs(difference_B)
    logp_KB.requires_grad_()
    loss = PAIRWISE[name](logp_KB, ref_logp_KB) + PAIRWISE[name](logp_KB.flip(0), ref_logp_KB.flip(0))
    (gradient_KB,) = torch.autograd.grad(loss.sum(), logp_KB)
    assert gradient_KB[0] > 0 > gradient_KB[1]


# --- 12. half precision ----------------------------------------------------------------------------------
# 0.1 - 1e-4 is 0.1 in bfloat16: the differences that these losses look at are rounded away.


@pytest.mark.parametrize("name", PAIRWISE)
def test_differences_of_a_thousandth_of_the_error_survive(name: str):
    """12. Float32 scores of bfloat16 predictions: the cast comes before the square, see Noised.logp."""
    target = torch.zeros(2, 1, 4, 8, 8)
    prediction = torch.full((2, 1, 4, 8, 8), 0.3164, dtype=torch.bfloat16)
    prediction[1, :, 0, 0, 0] = 0.3340  # one of 256 values: the loser's mean error is 4e-5 larger
    logp_KB = Noised(target, torch.zeros(2, 1, dtype=torch.long), target).logp(prediction)
    assert logp_KB.dtype == torch.float32
    assert 2e-5 < (logp_KB[0] - logp_KB[1]).item() < 6e-5
    same_KB = logp_KB[:1].expand(2, 1)
    straight_B, level_B = (PAIRWISE[name](x_KB, same_KB) for x_KB in (logp_KB, same_KB))
    assert straight_B < level_B
