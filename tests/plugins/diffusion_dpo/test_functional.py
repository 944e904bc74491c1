"""The loss of Diffusion-DPO: u is the logit, e and r the errors of policy and reference, sigma sigmoid."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from alignkit_diffusion_dpo.functional import diffusion_dpo_loss, diffusion_dpo_slope

# u, -log sigma(u), -sigma(-u)
GOLDEN = [
    (-10.0, 10.000045, -0.999955),
    (-5.0, 5.006715, -0.993307),
    (-2.0, 2.126928, -0.880797),
    (-1.0, 1.313262, -0.731059),
    (-0.5, 0.974077, -0.622459),
    (0.0, 0.693147, -0.5),
    (0.5, 0.474077, -0.377541),
    (1.0, 0.313262, -0.268941),
    (2.0, 0.126928, -0.119203),
    (4.595120, 0.010050, -0.01),
    (5.0, 0.006715, -0.006693),
    (10.0, 0.000045, -0.000045),
]


def at_logit(logit_B: Tensor) -> Tensor:
    """The loss where the logit is given: with beta = 2 and a reference of zero, u = logp_w - logp_l."""
    zero_B = torch.zeros_like(logit_B)
    return diffusion_dpo_loss(torch.stack([logit_B, zero_B]), zero_B.expand(2, -1), beta=2.0)


def grid(low: float = -12.0, high: float = 12.0) -> Tensor:
    return torch.linspace(low, high, 2401, dtype=torch.float64)


@pytest.fixture
def scores() -> tuple[Tensor, Tensor]:
    """Log-likelihoods of 2 x 7 candidates under a policy and under another reference, float64."""
    generator = torch.Generator().manual_seed(0)
    logp_KB, ref_logp_KB = -torch.rand(2, 2, 7, generator=generator, dtype=torch.float64)
    return logp_KB, ref_logp_KB


def test_pair_that_gains_one_nat_more_costs_log_one_plus_inverse_e():
    """beta/2 * ((-1) - (-3) - ((-2) - (-3))) = 1 with beta = 2, and -log sigma(1) = log(1 + 1/e)."""
    loss_B = diffusion_dpo_loss(torch.tensor([[-1.0], [-2.0]]), torch.tensor([[-3.0], [-3.0]]), beta=2.0)
    assert_close(loss_B, torch.tensor([1 + 1 / math.e]).log())


@pytest.mark.parametrize(("logit", "loss", "slope"), GOLDEN)
def test_golden_values(logit: float, loss: float, slope: float):
    """-log sigma(u) and its derivative -sigma(-u), to the six digits given."""
    logit_B = torch.tensor([logit], dtype=torch.float64, requires_grad=True)
    loss_B = at_logit(logit_B)
    (slope_B,) = torch.autograd.grad(loss_B.sum(), logit_B)
    digits = {"rtol": 0, "atol": 6e-7}
    assert_close(loss_B, torch.tensor([loss], dtype=torch.float64), **digits)
    assert_close(slope_B, torch.tensor([slope], dtype=torch.float64), **digits)
    assert_close(diffusion_dpo_slope(logit_B), slope_B, rtol=1e-12, atol=0)


@pytest.mark.parametrize("beta", [1e-3, 2000.0, 1e6])
def test_policy_equal_to_reference_costs_exactly_log_two(beta: float):
    """U = (beta/2) * 0 = 0, and -log sigma(0) = log 2, in float32 and bit for bit."""
    logp_KB = -torch.rand(2, 5, generator=torch.Generator().manual_seed(1))
    loss_B = diffusion_dpo_loss(logp_KB, logp_KB.clone(), beta=beta)
    assert loss_B.dtype == torch.float32
    assert_close(loss_B, torch.full((5,), math.log(2)), rtol=0, atol=0)


def test_gradient_matches_finite_differences(scores):
    assert torch.autograd.gradcheck(
        lambda logp_KB, margin_B: diffusion_dpo_loss(logp_KB, scores[1], beta=7.0, margin_B=margin_B),
        (scores[0].requires_grad_(), torch.linspace(-1, 1, 7, dtype=torch.float64, requires_grad=True)),
    )


def test_gradient_by_the_errors(scores):
    """dL/de_w = (beta/2) sigma(-u) and dL/de_l its opposite, where logp = -e."""
    error_KB = (-scores[0]).requires_grad_()
    diffusion_dpo_loss(-error_KB, scores[1], beta=6.0).sum().backward()
    gain_KB = scores[0] - scores[1]
    factor_B = 3.0 * torch.sigmoid(-3.0 * (gain_KB[0] - gain_KB[1]))
    assert_close(error_KB.grad, torch.stack([factor_B, -factor_B]))


def test_gradient_at_the_reference_is_beta_over_four(scores):
    """sigma(0) = 1/2, so dL/de_w = beta/4: linear in beta."""
    for beta in (1000.0, 5000.0):
        error_KB = (-scores[0]).requires_grad_()
        diffusion_dpo_loss(-error_KB, scores[0], beta=beta).sum().backward()
        assert_close(
            error_KB.grad, beta / 4 * torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, 7)
        )


def test_swapping_a_pair_at_the_reference_negates_the_gradient_of_the_weights():
    """At u = 0 the gradient is (beta/4) * d(e_w - e_l), which the swap negates."""
    latent_KB = torch.tensor([[0.3, -0.8], [1.1, 0.4]], dtype=torch.float64)
    gradients = []
    for pair_KB in (latent_KB, latent_KB.flip(0)):
        weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        logp_KB = -(weight * pair_KB - 0.2).square()
        loss_B = diffusion_dpo_loss(logp_KB, logp_KB.detach(), beta=9.0)
        gradients += torch.autograd.grad(loss_B.sum(), weight)
    assert gradients[0].abs() > 0.1
    assert_close(gradients[0], -gradients[1], rtol=1e-12, atol=0)


def test_swapping_a_pair_changes_the_loss_by_the_logit(scores):
    """L(u) - L(-u) = -u; the swap maps u to -u."""
    logp_KB, ref_logp_KB = scores
    gain_KB = logp_KB - ref_logp_KB
    straight_B = diffusion_dpo_loss(logp_KB, ref_logp_KB, beta=8.0)
    swapped_B = diffusion_dpo_loss(logp_KB.flip(0), ref_logp_KB.flip(0), beta=8.0)
    assert_close(straight_B - swapped_B, -4.0 * (gain_KB[0] - gain_KB[1]))


def test_strictly_decreasing_and_convex():
    loss_B = at_logit(grid())
    assert (loss_B.diff() < 0).all()
    assert (loss_B.diff().diff() > 0).all()


@pytest.mark.parametrize(("row", "change"), [(0, 0.1), (1, -0.1)])
def test_better_winner_or_worse_loser_costs_less(scores, row: int, change: float):
    logp_KB, ref_logp_KB = scores
    moved_KB = logp_KB.clone()
    moved_KB[row] += change
    before_B = diffusion_dpo_loss(logp_KB, ref_logp_KB, beta=5.0)
    assert (diffusion_dpo_loss(moved_KB, ref_logp_KB, beta=5.0) < before_B).all()


def test_constant_added_to_both_candidates_changes_nothing(scores):
    """Only differences within the pair enter: what depends on the prompt alone cancels."""
    logp_KB, ref_logp_KB = scores
    constant_B = torch.linspace(-2, 2, 7, dtype=torch.float64)
    loss_B = diffusion_dpo_loss(logp_KB, ref_logp_KB, beta=5.0)
    assert_close(diffusion_dpo_loss(logp_KB + constant_B, ref_logp_KB, beta=5.0), loss_B)
    assert_close(diffusion_dpo_loss(logp_KB, ref_logp_KB + constant_B, beta=5.0), loss_B)


def test_small_beta_approaches_log_two_linearly(scores):
    """L = log 2 - u/2 + O(u^2) with u linear in beta; the next term is u^2/8, below 1e-8 here."""
    logp_KB, ref_logp_KB = scores
    gain_KB = logp_KB - ref_logp_KB
    loss_B = diffusion_dpo_loss(logp_KB, ref_logp_KB, beta=2e-4)
    assert_close(loss_B, math.log(2) - 0.5e-4 * (gain_KB[0] - gain_KB[1]), rtol=0, atol=1e-8)


def test_large_beta_approaches_a_hinge(scores):
    """L / beta -> max(0, D) / 2 with D = (e_w - e_l) - (r_w - r_l); the rest is at most log(2) / beta."""
    logp_KB, ref_logp_KB = scores
    delta_B = (ref_logp_KB[0] - ref_logp_KB[1]) - (logp_KB[0] - logp_KB[1])
    loss_B = diffusion_dpo_loss(logp_KB, ref_logp_KB, beta=1e6)
    assert_close(loss_B / 1e6, delta_B.clamp(min=0) / 2, rtol=0, atol=1e-6)


def test_identical_candidates_cost_log_two_and_teach_nothing():
    """e_w = e_l as functions of the weights, so u = 0 for every weight and its gradient is zero."""
    weight = torch.tensor([0.7, -0.3], requires_grad=True)
    logp_KB = -(weight * 0.9 - 0.2).square().expand(2, 2)
    loss_B = diffusion_dpo_loss(logp_KB, torch.full((2, 2), -0.4), beta=2000.0)
    loss_B.sum().backward()
    assert_close(loss_B.detach(), torch.full((2,), math.log(2)), rtol=0, atol=0)
    assert_close(weight.grad, torch.zeros(2), rtol=0, atol=0)


def test_mean_errors_with_beta_times_size_are_summed_errors():
    """(beta * C*H*W / 2) * mean = (beta / 2) * sum."""
    error_KBCHW = torch.rand(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ref_error_KBCHW = error_KBCHW.roll(1, 1)
    of_means_B = diffusion_dpo_loss(
        -error_KBCHW.mean((-3, -2, -1)), -ref_error_KBCHW.mean((-3, -2, -1)), beta=0.1 * 4 * 8 * 8
    )
    of_sums_B = diffusion_dpo_loss(
        -error_KBCHW.sum((-3, -2, -1)), -ref_error_KBCHW.sum((-3, -2, -1)), beta=0.1
    )
    assert_close(of_means_B, of_sums_B)


def test_half_the_beta_in_the_convention_without_one_half(scores):
    """Diffusers' SD script: -log sigma(-beta * ((e_w - e_l) - (r_w - r_l))). Its 2500 is 5000 here."""
    error_KB, ref_error_KB = (-scores[0], -scores[1])
    theirs_B = -torch.log(
        torch.sigmoid(-2.5 * ((error_KB[0] - error_KB[1]) - (ref_error_KB[0] - ref_error_KB[1])))
    )
    assert_close(diffusion_dpo_loss(-error_KB, -ref_error_KB, beta=5.0), theirs_B)


def test_margin_is_subtracted_from_the_logit(scores):
    """A margin that equals the logit leaves -log sigma(0)."""
    logp_KB, ref_logp_KB = scores
    gain_KB = logp_KB - ref_logp_KB
    margin_B = 2.5 * (gain_KB[0] - gain_KB[1])
    loss_B = diffusion_dpo_loss(logp_KB, ref_logp_KB, beta=5.0, margin_B=margin_B)
    assert_close(loss_B, torch.full((7,), math.log(2), dtype=torch.float64))
    higher_B = diffusion_dpo_loss(logp_KB, ref_logp_KB, beta=5.0, margin_B=margin_B + 1)
    assert_close(higher_B, torch.full((7,), math.log(1 + math.e), dtype=torch.float64))


def test_finite_at_any_logit_in_float32():
    """log(sigmoid(-1e4)) would be -inf: logsigmoid is exact, L = 1e4 there and 0 at the other end."""
    logit_B = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss_B = at_logit(logit_B)
    (slope_B,) = torch.autograd.grad(loss_B.sum(), logit_B)
    assert_close(loss_B.detach(), torch.tensor([1e4, 0.0]))
    assert_close(slope_B, torch.tensor([-1.0, 0.0]))


def test_one_step_on_shared_noise_raises_the_mean_logit():
    """Gradient descent on a linear denoiser that starts at the reference ranks pairs better after it."""
    generator = torch.Generator().manual_seed(3)
    latent_KBD = torch.randn(2, 64, 8, generator=generator, dtype=torch.float64)
    noise_BD = torch.randn(64, 8, generator=generator, dtype=torch.float64)  # shared by winner and loser
    start = torch.randn(8, 8, generator=generator, dtype=torch.float64) / 8

    def logp(weight: Tensor) -> Tensor:
        return -((latent_KBD + noise_BD) @ weight - noise_BD).square().mean(-1)

    weight = start.clone().requires_grad_()
    ref_logp_KB = logp(start)
    loss = diffusion_dpo_loss(logp(weight), ref_logp_KB, beta=10.0).mean()
    (gradient,) = torch.autograd.grad(loss, weight)
    gain_KB = logp(weight.detach() - 1e-3 * gradient) - ref_logp_KB
    assert (gain_KB[0] - gain_KB[1]).mean() > 1e-6
