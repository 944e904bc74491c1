"""Loss of DMPO: u is the logit, p = sigmoid(u), a alpha, kappa = log((1 - a) / a), H binary entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from alignkit.functional import bradley_terry_nll
from alignkit_dmpo.functional import dmpo_loss, dmpo_slope

ALPHAS = [0.1, 0.01, 1e-3]

# u, loss and its derivative at a = 0.01
GOLDEN = [
    (-10.0, 4.604462, -0.000663),
    (-5.0, 4.534236, -0.063789),
    (-2.0, 3.692085, -0.692445),
    (-1.0, 2.787149, -1.100067),
    (-0.5, 2.207478, -1.197372),
    (0.0, 1.614463, -1.148780),
    (0.5, 1.082048, -0.962368),
    (1.0, 0.663665, -0.706843),
    (2.0, 0.192468, -0.272471),
    (4.595120, 0.0, 0.0),
    (5.0, 0.000625, 0.002692),
    (10.0, 0.009760, 0.000245),
]


def at_logit(logit_B: Tensor, *, alpha: float) -> Tensor:
    """The loss where the logit is given: with beta = 2 and a reference of zero, u = logp_w - logp_l."""
    zero_B = torch.zeros_like(logit_B)
    return dmpo_loss(torch.stack([logit_B, zero_B]), zero_B.expand(2, -1), beta=2.0, alpha=alpha)


def log_odds(alpha: float) -> float:
    return math.log((1 - alpha) / alpha)


def grid(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, 2001, dtype=torch.float64)


def entropy(p_B: Tensor) -> Tensor:
    return -(p_B * p_B.log() + (1 - p_B) * (1 - p_B).log())


@pytest.fixture
def scores() -> tuple[Tensor, Tensor]:
    """Log-likelihoods of 2 x 7 candidates under a policy and under another reference, float64."""
    generator = torch.Generator().manual_seed(0)
    logp_KB, ref_logp_KB = -torch.rand(2, 2, 7, generator=generator, dtype=torch.float64)
    return logp_KB, ref_logp_KB


@pytest.mark.parametrize(("logit", "loss", "slope"), GOLDEN)
def test_golden_values(logit: float, loss: float, slope: float):
    """KL((p, 1 - p) || (0.99, 0.01)) and its derivative, to the six digits given."""
    logit_B = torch.tensor([logit], dtype=torch.float64, requires_grad=True)
    loss_B = at_logit(logit_B, alpha=0.01)
    (slope_B,) = torch.autograd.grad(loss_B.sum(), logit_B)
    digits = {"rtol": 0, "atol": 6e-7}
    assert_close(loss_B, torch.tensor([loss], dtype=torch.float64), **digits)
    assert_close(slope_B, torch.tensor([slope], dtype=torch.float64), **digits)


@pytest.mark.parametrize(("alpha", "loss"), [(0.1, 0.510826), (0.01, 1.614463), (1e-3, 2.761231)])
@pytest.mark.parametrize("beta", [1e-3, 2000.0])
def test_policy_equal_to_reference(alpha: float, loss: float, beta: float):
    """KL of a fair coin to (1 - a, a): 1/2 log(1/2 / (1 - a)) + 1/2 log(1/2 / a) = -1/2 log(4 a (1 - a))."""
    logp_KB = -torch.rand(2, 5, generator=torch.Generator().manual_seed(1))
    loss_B = dmpo_loss(logp_KB, logp_KB.clone(), beta=beta, alpha=alpha)
    assert_close(loss_B, torch.full((5,), -0.5 * math.log(4 * alpha * (1 - alpha))), rtol=3e-7, atol=0)
    assert_close(loss_B, torch.full((5,), loss), rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_is_negative_entropy_and_expected_log_odds(alpha: float):
    """KL = p log p + (1 - p) log(1 - p) - p log(1 - a) - (1 - p) log a = -H(p) - kappa p - log a."""
    logit_B = grid(-8, 8)
    p_B = logit_B.sigmoid()
    expected_B = -entropy(p_B) - log_odds(alpha) * p_B - math.log(alpha)
    assert_close(at_logit(logit_B, alpha=alpha), expected_B, rtol=1e-9, atol=1e-12)


def test_gradient_matches_finite_differences(scores):
    assert torch.autograd.gradcheck(
        lambda logp_KB, margin_B: dmpo_loss(logp_KB, scores[1], beta=7.0, alpha=0.01, margin_B=margin_B),
        (scores[0].requires_grad_(), torch.linspace(-1, 1, 7, dtype=torch.float64, requires_grad=True)),
    )


@pytest.mark.parametrize("alpha", [*ALPHAS, 0.5])
def test_slope_is_the_derivative(alpha: float):
    """The derivative d/du [-H(p) - kappa p] = p (1 - p) (u - kappa), since dH/dp = -u."""
    logit_B = grid(-12, 12).requires_grad_()
    (slope_B,) = torch.autograd.grad(at_logit(logit_B, alpha=alpha).sum(), logit_B)
    assert_close(dmpo_slope(logit_B.detach(), alpha=alpha), slope_B, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradient_by_the_errors(scores, alpha: float):
    """The chain rule gives dL/de_w = p (1 - p) (kappa - u) (beta/2), dL/de_l its opposite; logp = -e."""
    error_KB = (-scores[0]).requires_grad_()
    dmpo_loss(-error_KB, scores[1], beta=6.0, alpha=alpha).sum().backward()
    gain_KB = scores[0] - scores[1]
    logit_B = 3.0 * (gain_KB[0] - gain_KB[1])
    factor_B = 3.0 * logit_B.sigmoid() * (1 - logit_B.sigmoid()) * (log_odds(alpha) - logit_B)
    assert_close(error_KB.grad, torch.stack([factor_B, -factor_B]))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("beta", [1e-3, 5000.0])
def test_gradient_at_the_reference_is_half_kappa_times_the_logistic_one(scores, alpha: float, beta: float):
    """Kappa p (1 - p) = kappa/4 against 1/2: elementwise and linear in beta; 2.297560 at a = 0.01."""
    gradients = []
    for loss in (dmpo_at(beta, alpha), logistic_at(beta)):
        logp_KB = scores[0].clone().requires_grad_()
        gradients += torch.autograd.grad(loss(logp_KB, scores[0]).sum(), logp_KB)
    assert_close(gradients[0], log_odds(alpha) / 2 * gradients[1])
    assert_close(gradients[0][0], torch.full((7,), -log_odds(alpha) / 8 * beta, dtype=torch.float64))
    assert log_odds(0.01) / 2 == pytest.approx(2.297560, abs=5e-7)


def dmpo_at(beta: float, alpha: float):
    return lambda logp_KB, ref_logp_KB: dmpo_loss(logp_KB, ref_logp_KB, beta=beta, alpha=alpha)


def logistic_at(beta: float):
    """Diffusion-DPO's loss, written out: plugins do not know each other."""

    def loss(logp_KB: Tensor, ref_logp_KB: Tensor) -> Tensor:
        gain_KB = logp_KB - ref_logp_KB
        return bradley_terry_nll(beta / 2 * (gain_KB[0] - gain_KB[1]))

    return loss


def test_small_beta_makes_gradients_parallel_to_the_logistic_ones(scores):
    """As u -> 0 for any policy, the ratio tends to kappa/2, its error to O(u); |u| < 1e-3 here."""
    gradients = []
    for loss in (dmpo_at(1e-3, 0.01), logistic_at(1e-3)):
        logp_KB = scores[0].clone().requires_grad_()
        gradients += torch.autograd.grad(loss(logp_KB, scores[1]).sum(), logp_KB)
    assert_close(gradients[0], log_odds(0.01) / 2 * gradients[1], rtol=1e-3, atol=0)
    assert F.cosine_similarity(*(gradient.flatten() for gradient in gradients), dim=0) > 1 - 1e-6


@pytest.mark.parametrize("alpha", [*ALPHAS, 0.5])
def test_single_minimum_of_zero_where_the_policy_has_the_labels_odds(alpha: float):
    """KL >= 0 with equality iff p = 1 - a, i.e. u = kappa; falling before, rising after."""
    kappa = log_odds(alpha)
    assert_close(
        at_logit(torch.tensor([kappa]).double(), alpha=alpha), torch.zeros(1).double(), rtol=0, atol=1e-15
    )
    assert (at_logit(grid(kappa - 12, kappa), alpha=alpha).diff() < 0).all()
    assert (at_logit(grid(kappa, kappa + 12), alpha=alpha).diff() > 0).all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_bounded_tails(alpha: float):
    """As p -> 0 it leaves -log a, 4.605170 at 0.01; p -> 1 leaves -log(1 - a), 0.010050."""
    loss_B = at_logit(torch.tensor([-50.0, 50.0], dtype=torch.float64), alpha=alpha)
    assert_close(loss_B, -torch.tensor([alpha, 1 - alpha], dtype=torch.float64).log(), rtol=1e-12, atol=0)


def test_confidently_wrong_pairs_teach_little():
    """At u = -10: p (1 - p) (u - kappa) = -6.6e-4, where Diffusion-DPO has -sigma(10) = -1."""
    slope_B = dmpo_slope(torch.tensor([-10.0], dtype=torch.float64), alpha=0.01)
    assert_close(slope_B, torch.tensor([-6.63e-4], dtype=torch.float64), rtol=0, atol=5e-7)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_swapping_a_pair(scores, alpha: float):
    """-H is even in u, so L(u) - L(-u) = -kappa (p(u) - p(-u)) = -kappa tanh(u/2); the swap maps u to -u."""
    logp_KB, ref_logp_KB = scores
    gain_KB = logp_KB - ref_logp_KB
    straight_B = dmpo_loss(logp_KB, ref_logp_KB, beta=8.0, alpha=alpha)
    swapped_B = dmpo_loss(logp_KB.flip(0), ref_logp_KB.flip(0), beta=8.0, alpha=alpha)
    assert_close(straight_B - swapped_B, -log_odds(alpha) * torch.tanh(2.0 * (gain_KB[0] - gain_KB[1])))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_swapping_the_pair_is_swapping_the_label(alpha: float):
    """The loss L(u; a) = L(-u; 1 - a): the function is symmetric, although the component refuses a > 1/2."""
    logit_B = grid(-8, 8)
    assert_close(at_logit(logit_B, alpha=alpha), at_logit(-logit_B, alpha=1 - alpha), rtol=1e-9, atol=1e-12)


def test_swapping_a_pair_at_the_reference_negates_the_gradient_of_the_weights():
    """At u = 0 the gradient is (kappa/4) (beta/2) * d(e_w - e_l), which the swap negates."""
    latent_KB = torch.tensor([[0.3, -0.8], [1.1, 0.4]], dtype=torch.float64)
    gradients = []
    for pair_KB in (latent_KB, latent_KB.flip(0)):
        weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        logp_KB = -(weight * pair_KB - 0.2).square()
        loss_B = dmpo_loss(logp_KB, logp_KB.detach(), beta=9.0, alpha=0.01)
        gradients += torch.autograd.grad(loss_B.sum(), weight)
    assert gradients[0].abs() > 0.1
    assert_close(gradients[0], -gradients[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_curvature_at_the_minimum(alpha: float):
    """At u = kappa, p (1 - p) [(1 - 2p)(u - kappa) + 1] = a (1 - a), as for the smoothed logistic loss."""

    def smoothed_logistic(logit: Tensor) -> Tensor:
        return (1 - alpha) * bradley_terry_nll(logit) + alpha * bradley_terry_nll(-logit)

    logit = torch.tensor(log_odds(alpha), dtype=torch.float64)
    ours = torch.func.grad(torch.func.grad(lambda u: at_logit(u[None], alpha=alpha)[0]))(logit)
    forward = torch.func.grad(torch.func.grad(smoothed_logistic))(logit)
    assert_close(ours, torch.tensor(alpha * (1 - alpha), dtype=torch.float64), rtol=1e-9, atol=0)
    assert_close(ours, forward, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("alpha", "low", "high"), [(0.1, -0.716, 3.276), (0.01, -0.405, 5.602), (1e-3, -0.280, 7.907)]
)
def test_convex_on_one_interval_only(alpha: float, low: float, high: float):
    """Between the zeros of (1 - 2p)(u - kappa) + 1, given to three digits, the slope rises, else falls."""
    convex_B = dmpo_slope(grid(low + 1e-3, high - 1e-3), alpha=alpha).diff() > 0
    assert convex_B.all()
    for outside in (grid(low - 3, low - 1e-3), grid(high + 1e-3, high + 3)):
        assert (dmpo_slope(outside, alpha=alpha).diff() < 0).all()


def test_steepest_descent():
    """At a = 0.01 the slope is lowest at the left end of the convex interval: -1.2001 at -0.405."""
    logit_B = grid(-12, 12)
    slope_B = dmpo_slope(logit_B, alpha=0.01)
    assert logit_B[slope_B.argmin()].item() == pytest.approx(-0.405, abs=0.012)  # the grid's step
    assert slope_B.min().item() == pytest.approx(-1.2001, abs=5e-5)


def test_label_without_information_pulls_to_the_reference():
    """A = 1/2: kappa = 0 and L = log 2 - H(p), zero with zero gradient at u = 0."""
    logit_B = grid(-8, 8)
    assert_close(
        at_logit(logit_B, alpha=0.5), math.log(2) - entropy(logit_B.sigmoid()), rtol=1e-9, atol=1e-12
    )
    zero_B = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss_B = at_logit(zero_B, alpha=0.5)
    (slope_B,) = torch.autograd.grad(loss_B.sum(), zero_B)
    assert_close(
        torch.cat([loss_B.detach(), slope_B]), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-15
    )


def test_hard_label_leaves_the_probability_of_a_wrong_ranking():
    """L / (-log a) -> 1 - p as a -> 0: the rest, (H + p log(1 - a)) / log a, is at most log 2 / -log a."""
    logit_B = grid(-8, 8)
    for alpha in (1e-8, 1e-100, 1e-300):
        difference_B = at_logit(logit_B, alpha=alpha) / -math.log(alpha) - torch.sigmoid(-logit_B)
        assert difference_B.abs().max() <= math.log(2) / -math.log(alpha) + 1e-12


def test_large_and_small_beta(scores):
    """As beta -> inf: -log a where D > 0, -log(1 - a) where D < 0. As beta -> 0: L(0), linearly in beta."""
    logp_KB, ref_logp_KB = scores
    delta_B = (ref_logp_KB[0] - ref_logp_KB[1]) - (logp_KB[0] - logp_KB[1])
    large_B = dmpo_loss(logp_KB, ref_logp_KB, beta=1e8, alpha=0.01)
    expected_B = torch.where(delta_B > 0, -math.log(0.01), -math.log(0.99)).double()
    assert (delta_B > 0).any()
    assert (delta_B < 0).any()
    assert_close(large_B, expected_B, rtol=1e-6, atol=0)
    small_B = dmpo_loss(logp_KB, ref_logp_KB, beta=1e-6, alpha=0.01)
    first_B = -0.5 * math.log(4 * 0.01 * 0.99) + log_odds(0.01) / 4 * 0.5e-6 * delta_B
    assert_close(small_B, first_B, rtol=0, atol=1e-11)


def test_equals_the_divergence_of_two_softmaxes(scores):
    """The form for any number of candidates: sum_i p_i (log p_i - log q_i), p = softmax(implicit rewards).

    It reproduces the pair's loss for q = (1 - a, a); permuting candidates and labels together, or adding a
    constant to the rewards, changes nothing.
    """

    def theirs(reward_KB: Tensor, q_K: Tensor) -> Tensor:
        log_p_KB = reward_KB.log_softmax(0)
        return (log_p_KB.exp() * (log_p_KB - q_K.log()[:, None])).sum(0)

    logp_KB, ref_logp_KB = scores
    reward_KB = 4.0 * (logp_KB - ref_logp_KB)
    q_K = torch.tensor([0.99, 0.01], dtype=torch.float64)
    ours_B = dmpo_loss(logp_KB, ref_logp_KB, beta=8.0, alpha=0.01)
    assert_close(ours_B, theirs(reward_KB, q_K))
    assert_close(ours_B, theirs(reward_KB.flip(0), q_K.flip(0)))
    constant_B = torch.linspace(-2, 2, 7, dtype=torch.float64)
    assert_close(dmpo_loss(logp_KB + constant_B, ref_logp_KB, beta=8.0, alpha=0.01), ours_B)


def test_gradient_flows_through_the_weights():
    """With p detached, sum_i p_i d log p_i = 0 (score-function identity).

    With the log-ratio detached, nothing changes.
    So what a detached weight would give is not what the loss gives.
    """
    logit_B = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    win_B = F.logsigmoid(logit_B) - math.log(0.99)
    lose_B = F.logsigmoid(-logit_B) - math.log(0.01)
    p_B, not_p_B = logit_B.sigmoid(), torch.sigmoid(-logit_B)
    (without_weights_B,) = torch.autograd.grad(
        (p_B.detach() * win_B + not_p_B.detach() * lose_B).sum(), logit_B, retain_graph=True
    )
    (without_ratio_B,) = torch.autograd.grad(
        (p_B * win_B.detach() + not_p_B * lose_B.detach()).sum(), logit_B
    )
    (ours_B,) = torch.autograd.grad(at_logit(logit_B, alpha=0.01).sum(), logit_B)
    assert_close(without_weights_B, torch.zeros_like(ours_B), rtol=0, atol=1e-15)
    assert_close(ours_B, without_ratio_B)
    assert (ours_B < -0.05).all()


@pytest.mark.parametrize("alpha", [*ALPHAS, 1e-30])
def test_finite_at_any_logit_in_float32(alpha: float):
    """The product sigmoid(-u) * logsigmoid(-u) tends to 0, not to 0 * inf; the ends are flat."""
    logit_B = torch.cat([-torch.logspace(4, -4, 50), torch.logspace(-4, 4, 50)]).requires_grad_()
    loss_B = at_logit(logit_B, alpha=alpha)
    (slope_B,) = torch.autograd.grad(loss_B.sum(), logit_B)
    assert loss_B.isfinite().all()
    assert slope_B.isfinite().all()
    assert_close(loss_B.detach()[[0, -1]], torch.tensor([-math.log(alpha), -math.log1p(-alpha)]))
    assert_close(slope_B[[0, -1]], torch.zeros(2))


def test_batch_of_pairs_is_pairs_one_by_one(scores):
    """One number per prompt: the mean of a batch is the mean of losses, not the loss of a mean logit."""
    logp_KB, ref_logp_KB = scores
    loss_B = dmpo_loss(logp_KB, ref_logp_KB, beta=8.0, alpha=0.01)
    one_by_one = [
        dmpo_loss(logp_K1, ref_logp_K1, beta=8.0, alpha=0.01)
        for logp_K1, ref_logp_K1 in zip(logp_KB.split(1, 1), ref_logp_KB.split(1, 1), strict=True)
    ]
    assert loss_B.shape == (7,)
    assert_close(loss_B, torch.cat(one_by_one), rtol=1e-12, atol=0)


def test_margin_is_subtracted_from_the_logit(scores):
    """A margin that equals the logit leaves the loss of u = 0, one lower by kappa leaves none."""
    logp_KB, ref_logp_KB = scores
    gain_KB = logp_KB - ref_logp_KB
    margin_B = 2.5 * (gain_KB[0] - gain_KB[1])
    loss_B = dmpo_loss(logp_KB, ref_logp_KB, beta=5.0, alpha=0.01, margin_B=margin_B)
    assert_close(loss_B, torch.full((7,), -0.5 * math.log(4 * 0.01 * 0.99), dtype=torch.float64))
    none_B = dmpo_loss(logp_KB, ref_logp_KB, beta=5.0, alpha=0.01, margin_B=margin_B - log_odds(0.01))
    assert_close(none_B, torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-14)
