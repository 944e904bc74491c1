"""The classic losses: u is the logit, e and r errors of policy and reference, q the rate of wrong labels."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from alignkit.functional import bradley_terry_nll, preference_logit
from alignkit_classics.functional import (
    conservative_dpo_loss,
    conservative_dpo_slope,
    hinge_loss,
    hinge_slope,
    ipo_loss,
    kto_baseline,
    kto_loss,
    mapo_logit,
    mapo_loss,
    mapo_score,
    robust_dpo_loss,
    robust_dpo_slope,
    sft_loss,
    unpaired_kto_loss,
)

# margins r_w - e_w - (r_l - e_l) of four pairs, in units of mean squared error
MARGIN_B = torch.tensor([2e-4, -1e-4, 5e-4, -4e-4], dtype=torch.float64)

# losses of one logit, their slopes, and whether a weighting's margin can shift it
LOGISTIC = {
    "hinge": (hinge_loss, {}, hinge_slope),
    "conservative": (conservative_dpo_loss, {"flip_rate": 0.1}, conservative_dpo_slope),
    "robust": (robust_dpo_loss, {"flip_rate": 0.1}, robust_dpo_slope),
}


@pytest.fixture
def scores() -> tuple[Tensor, Tensor]:
    """Log-likelihoods of 2 x 7 candidates under a policy and under another reference, float64."""
    generator = torch.Generator().manual_seed(0)
    logp_KB, ref_logp_KB = -torch.rand(2, 2, 7, generator=generator, dtype=torch.float64)
    return logp_KB, ref_logp_KB


def pair(margin_B: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of which the winner alone gained, by the margin."""
    zero_B = torch.zeros_like(margin_B)
    return torch.stack([margin_B, zero_B]), zero_B.expand(2, -1)


def grid(low: float = -12.0, high: float = 12.0) -> Tensor:
    return torch.linspace(low, high, 2401, dtype=torch.float64)


def full(count: int, value: float) -> Tensor:
    return torch.full((count,), value, dtype=torch.float64)


# --- golden values -------------------------------------------------------------------------------------


def test_golden_values_of_four_pairs():
    """Kappa = 1000, so beta = 2000; q = 0.1; tau = 100, whose target is 0.005."""
    scores = pair(MARGIN_B)
    plain = bradley_terry_nll(preference_logit(*scores, beta=2000.0)).mean()
    robust = robust_dpo_loss(*scores, beta=2000.0, flip_rate=0.1).mean()
    conservative = conservative_dpo_loss(*scores, beta=2000.0, flip_rate=0.1).mean()
    found = torch.stack([plain, robust, conservative])
    expected = torch.tensor([0.6824069415, 0.6761569416, 0.6874069415], dtype=torch.float64)
    assert_close(found, expected, rtol=0, atol=1e-10)
    assert ipo_loss(*scores, tau=100.0).mean().item() == pytest.approx(2.4615e-05, rel=1e-12)


def test_golden_values_by_hand():
    """Gains of 0.3 and 0.1 at beta = 10: u = 1; sigma(-1.5) and sigma(0.5) for KTO without baseline."""
    logp_KB, ref_logp_KB = torch.tensor([[-0.2], [-0.3]]), torch.tensor([[-0.5], [-0.4]])
    sigma_one = 1 / (1 + math.exp(-1))
    loss, mirrored = -math.log(sigma_one), -math.log(1 - sigma_one)
    found = {
        "sft": sft_loss(logp_KB),
        "hinge": hinge_loss(logp_KB, ref_logp_KB, beta=5.0),
        "conservative": conservative_dpo_loss(logp_KB, ref_logp_KB, beta=10.0, flip_rate=0.2),
        "robust": robust_dpo_loss(logp_KB, ref_logp_KB, beta=10.0, flip_rate=0.2),
        "ipo": ipo_loss(logp_KB, ref_logp_KB, tau=10.0),
        "kto": kto_loss(logp_KB, ref_logp_KB, beta=10.0, baseline=torch.tensor(0.0)),
    }
    expected = {
        "sft": 0.2,
        "hinge": 0.5,
        "conservative": 0.8 * loss + 0.2 * mirrored,
        "robust": (0.8 * loss - 0.2 * mirrored) / 0.6,
        "ipo": (0.2 - 0.05) ** 2,
        "kto": (1 / (1 + math.exp(1.5)) + 1 / (1 + math.exp(-0.5))) / 2,
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-6)


def test_mapo_by_hand():
    """The authors' form, e_w - beta log sigma(T [phi(e_w) - phi(e_l)]), phi(e) = s e / (exp(s e) - 1)."""
    error_KB = torch.tensor([[0.3, 0.02, 1.4], [0.301, 0.018, 1.4]], dtype=torch.float64)
    phi_KB = 0.5 * error_KB / (torch.exp(0.5 * error_KB) - 1)
    theirs_B = error_KB[0] - 0.1 * torch.log(torch.sigmoid(1000 * (phi_KB[0] - phi_KB[1])))
    assert_close(mapo_loss(-error_KB, beta=0.1), theirs_B, rtol=1e-11, atol=0)
    # 250 per unit of mean error where errors are small: like a beta of 500 in the logistic losses
    assert_close(mapo_logit(-error_KB / 1e4), 250 * (error_KB[1] - error_KB[0]) / 1e4, rtol=1e-3, atol=0)


# --- one logit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOGISTIC)
def test_slope_is_the_derivative(name: str):
    loss, settings, slope = LOGISTIC[name]
    logit_B = grid().requires_grad_()
    (slope_B,) = torch.autograd.grad(loss(*pair(logit_B), beta=2.0, **settings).sum(), logit_B)
    assert_close(slope(logit_B.detach(), **settings), slope_B, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", LOGISTIC)
def test_gradient_matches_finite_differences(scores, name: str):
    loss, settings, _ = LOGISTIC[name]
    margin_B = torch.linspace(-1, 1, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda logp_KB, margin_B: loss(logp_KB, scores[1], beta=7.0, margin_B=margin_B, **settings),
        (scores[0].requires_grad_(), margin_B),
    )


@pytest.mark.parametrize("name", LOGISTIC)
def test_margin_is_subtracted_from_the_logit(scores, name: str):
    """A margin that equals the logit leaves the loss of u = 0; 3 more that of u = -3."""
    loss, settings, _ = LOGISTIC[name]
    margin_B = preference_logit(*scores, beta=5.0)
    for shift in (0.0, 3.0):
        expected_B = loss(*pair(full(7, -shift)), beta=2.0, **settings)
        assert_close(loss(*scores, beta=5.0, margin_B=margin_B + shift, **settings), expected_B)


@pytest.mark.parametrize("name", LOGISTIC)
def test_finite_at_any_logit_in_float32(name: str):
    loss, settings, _ = LOGISTIC[name]
    logit_B = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss_B = loss(*pair(logit_B), beta=2.0, **settings)
    (slope_B,) = torch.autograd.grad(loss_B.sum(), logit_B)
    assert loss_B.isfinite().all()
    assert slope_B.isfinite().all()
    assert loss_B[0] > 100


@pytest.mark.parametrize("name", ["conservative", "robust"])
def test_labels_that_are_never_wrong_leave_diffusion_dpo(scores, name: str):
    loss, _, _ = LOGISTIC[name]
    expected_B = bradley_terry_nll(preference_logit(*scores, beta=9.0))
    assert_close(loss(*scores, beta=9.0, flip_rate=0.0), expected_B, rtol=0, atol=0)


# --- what each is for ----------------------------------------------------------------------------------


def test_hinge_stops_at_a_logit_of_one():
    loss_B = hinge_loss(*pair(torch.tensor([-2.0, 0.0, 0.999, 1.0, 5.0])), beta=2.0)
    assert_close(loss_B, torch.tensor([3.0, 1.0, 0.001, 0.0, 0.0]), rtol=0, atol=1e-6)
    assert_close(hinge_slope(torch.tensor([-2.0, 0.999, 1.0, 5.0])), torch.tensor([-1.0, -1.0, 0.0, 0.0]))


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.45])
def test_robust_loss_is_unbiased(rate: float):
    """T9 by enumeration: (1 - q) L_robust(u) + q L_robust(-u) = -log sigma(u), value and gradient."""
    logit_B = grid(-6, 6).requires_grad_()
    kept_B = robust_dpo_loss(*pair(logit_B), beta=2.0, flip_rate=rate)
    flipped_B = robust_dpo_loss(*pair(-logit_B), beta=2.0, flip_rate=rate)
    expected_B = (1 - rate) * kept_B + rate * flipped_B
    clean_B = bradley_terry_nll(logit_B)
    assert_close(expected_B, clean_B, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(x_B.sum(), logit_B, retain_graph=True) for x_B in (expected_B, clean_B)]
    assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


def test_robust_loss_is_unbiased_over_drawn_flips():
    """T9 by simulation: 200 000 flips at q = 0.2; the standard error of the mean is about 0.002."""
    generator = torch.Generator().manual_seed(5)
    logit_B = 1 + torch.randn(200_000, generator=generator, dtype=torch.float64)
    sign_B = 1 - 2 * (torch.rand(200_000, generator=generator) < 0.2).double()
    robust = robust_dpo_loss(*pair(sign_B * logit_B), beta=2.0, flip_rate=0.2).mean()
    noisy = bradley_terry_nll(sign_B * logit_B).mean()
    clean = bradley_terry_nll(logit_B).mean()
    assert abs(robust - clean) < 0.01
    assert noisy - clean > 0.1  # the plain loss is not


def test_conservative_loss_is_lowest_at_the_labels_odds():
    """The cross entropy of sigma(u) to 1 - q, whose least value is the entropy of the label."""
    odds = full(1, math.log(9)).requires_grad_()
    loss_B = conservative_dpo_loss(*pair(odds), beta=2.0, flip_rate=0.1)
    assert loss_B.item() == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), rel=1e-12)
    (slope_B,) = torch.autograd.grad(loss_B.sum(), odds)
    assert_close(slope_B, full(1, 0.0), rtol=0, atol=1e-15)
    assert (
        conservative_dpo_slope(grid(2.3, 9), flip_rate=0.1) > 0
    ).all()  # past it the policy is pulled back


def test_robust_and_conservative_differ_in_the_sign_of_the_second_term():
    """(1 - 2 q) L_robust + 2 q L(-u) = L_conservative; the slope of one never fades, the other's turns."""
    logit_B = grid(-6, 6)
    robust_B = robust_dpo_loss(*pair(logit_B), beta=2.0, flip_rate=0.2)
    conservative_B = conservative_dpo_loss(*pair(logit_B), beta=2.0, flip_rate=0.2)
    assert_close(0.6 * robust_B + 0.4 * bradley_terry_nll(-logit_B), conservative_B)
    assert (robust_dpo_slope(grid(), flip_rate=0.2) < -0.2 / 0.6).all()
    assert robust_B.min() < 0


def test_ipo_is_zero_at_its_target_and_grows_on_both_sides():
    """The target is 1 / (2 tau) in units of mean error."""
    loss_B = ipo_loss(*pair(full(1, 0.005)), tau=100.0)
    assert_close(loss_B, full(1, 0.0), rtol=0, atol=1e-18)
    assert_close(ipo_loss(*pair(torch.tensor([0.0, 0.01]).double()), tau=100.0), full(2, 2.5e-5))


def test_ipo_gradient_by_the_errors(scores):
    """DL/de_w = -2 (h - target), its opposite for the loser; no factor 1/2 and no beta."""
    error_KB = (-scores[0]).requires_grad_()
    ipo_loss(-error_KB, scores[1], tau=4.0).sum().backward()
    gain_KB = scores[0] - scores[1]
    factor_B = -2 * (gain_KB[0] - gain_KB[1] - 0.125)
    assert_close(error_KB.grad, torch.stack([factor_B, -factor_B]))
    assert torch.autograd.gradcheck(
        lambda x_KB: ipo_loss(x_KB, scores[1], tau=4.0), scores[0].requires_grad_()
    )


def test_sft_is_the_error_of_the_winner_alone():
    logp_KB = torch.tensor([[-0.3, -0.1], [-0.7, -0.2]], requires_grad=True)
    loss_B = sft_loss(logp_KB)
    loss_B.sum().backward()
    assert_close(loss_B.detach(), torch.tensor([0.3, 0.1]))
    assert_close(logp_KB.grad, torch.tensor([[-1.0, -1.0], [0.0, 0.0]]))
    assert_close(sft_loss(logp_KB[:1]), loss_B)


# --- KTO -----------------------------------------------------------------------------------------------


def test_kto_of_a_policy_that_is_the_reference_is_one_half():
    """Sigma(0) for every sample, in float32 and bit for bit; 0.8 and 0.4 leave their mean's half, 0.3."""
    logp_KB = -torch.rand(2, 5, generator=torch.Generator().manual_seed(1))
    assert_close(kto_loss(logp_KB, logp_KB.clone(), beta=2e3), torch.full((5,), 0.5), rtol=0, atol=0)
    weighted_B = kto_loss(logp_KB, logp_KB, beta=2e3, desirable_weight=0.8, undesirable_weight=0.4)
    assert_close(weighted_B, torch.full((5,), 0.3))


def test_kto_counts_from_the_mean_gain_of_the_batch(scores):
    """Without a baseline: the mean over both rows, (beta / 2) (logp - ref_logp), not below 0."""
    reward_KB = 4.0 * (scores[0] - scores[1])
    for shift in (2.0, -2.0):
        shifted_KB = scores[0] + shift / 4
        baseline = (reward_KB + shift).mean().clamp(min=0)
        theirs_B = (1 - torch.sigmoid(reward_KB[0] + shift - baseline)) / 2
        theirs_B = theirs_B + (1 - torch.sigmoid(baseline - reward_KB[1] - shift)) / 2
        assert_close(kto_loss(shifted_KB, scores[1], beta=8.0), theirs_B)
    assert baseline == 0


def test_kto_baseline_has_no_gradient(scores):
    """With one the loss would change only by differences to the mean: it is a constant of the step."""
    logp_KB = (scores[0] + 0.5).requires_grad_()
    (ours_KB,) = torch.autograd.grad(kto_loss(logp_KB, scores[1], beta=8.0).sum(), logp_KB)
    reward_KB = 4.0 * (logp_KB - scores[1]).detach()
    baseline = reward_KB.mean().clamp(min=0)
    slope_KB = torch.sigmoid(reward_KB - baseline) * torch.sigmoid(baseline - reward_KB)
    assert baseline > 0
    assert_close(ours_KB, 2.0 * slope_KB * torch.tensor([[-1.0], [1.0]]).double())
    assert not kto_baseline(logp_KB).requires_grad


def test_kto_gradient_matches_finite_differences(scores):
    baseline = torch.tensor(0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda logp_KB: kto_loss(
            logp_KB, scores[1], beta=7.0, desirable_weight=1.6, undesirable_weight=0.4, baseline=baseline
        ),
        scores[0].requires_grad_(),
    )


def test_kto_of_pairs_is_the_mean_of_its_likes_and_dislikes(scores):
    baseline = torch.tensor(0.2, dtype=torch.float64)
    settings = {"beta": 7.0, "desirable_weight": 1.6, "undesirable_weight": 0.4, "baseline": baseline}
    liked_B = unpaired_kto_loss(scores[0][0], scores[1][0], full(7, 1.0), **settings)
    disliked_B = unpaired_kto_loss(scores[0][1], scores[1][1], full(7, 0.0), **settings)
    assert_close(kto_loss(*scores, **settings), (liked_B + disliked_B) / 2)


def test_kto_pushes_likes_up_and_dislikes_down_and_both_fade():
    """Slopes are minus and plus sigma'(reward), largest where the policy is undecided."""
    logp_B = torch.tensor([-9.0, 0.0, 9.0], dtype=torch.float64, requires_grad=True)
    for label, sign in ((1.0, -1), (0.0, 1)):
        loss_B = unpaired_kto_loss(
            logp_B, torch.zeros(3).double(), full(3, label), beta=2.0, baseline=torch.tensor(0.0)
        )
        (slope_B,) = torch.autograd.grad(loss_B.sum(), logp_B)
        assert_close(slope_B, sign * torch.sigmoid(logp_B) * torch.sigmoid(-logp_B))
        assert loss_B.min() >= 0
        assert loss_B.max() <= 1


def test_an_uncertain_like_is_a_mixture():
    logp_B, ref_logp_B = torch.tensor([-0.2, -0.2]).double(), torch.tensor([-0.5, -0.5]).double()
    baseline = torch.tensor(0.1, dtype=torch.float64)
    loss = [
        unpaired_kto_loss(logp_B, ref_logp_B, full(2, label), beta=4.0, baseline=baseline)
        for label in (1.0, 0.0, 0.3)
    ]
    assert_close(loss[2], 0.3 * loss[0] + 0.7 * loss[1])


# --- MaPO ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snr", [0.5, 2.0])
def test_mapo_score_is_exact_near_and_far(snr: float):
    """X / expm1(x) in float64; both branches meet at 0.1, and x = 0 is its limit, 1."""
    error_N = torch.cat([torch.logspace(-12, 1, 200), torch.tensor([0.1, 0.1 - 1e-9, 0.1 + 1e-9]) / snr])
    x_N = snr * error_N.double()
    assert_close(mapo_score(-error_N.double(), snr=snr), x_N / torch.expm1(x_N), rtol=3e-14, atol=0)
    assert mapo_score(torch.zeros(1), snr=snr) == 1


def test_mapo_gradient_is_finite_and_right_in_float32_down_to_no_error():
    """Phi' = -1/2 at 0; between, float64 says."""
    error_N = torch.tensor([0.0, 1e-30, 1e-6, 1e-3, 0.05, 0.099, 0.101, 1.0, 5.0])
    slopes = []
    for dtype in (torch.float32, torch.float64):
        x_N = error_N.to(dtype).requires_grad_()
        slopes += torch.autograd.grad(mapo_score(-x_N, snr=1.0).sum(), x_N)
    assert_close(slopes[0][:2], torch.tensor([-0.5, -0.5]))
    assert_close(slopes[0].double(), slopes[1], rtol=3e-6, atol=0)


def test_mapo_score_falls_and_stays_between_zero_and_one():
    score_N = mapo_score(-torch.linspace(0, 20, 500, dtype=torch.float64), snr=0.5)
    assert (score_N.diff() < 0).all()
    assert (score_N > 0).all()
    assert score_N.max() == 1


def test_mapo_gradient_matches_finite_differences(scores):
    margin_B = torch.linspace(-1, 1, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda logp_KB, margin_B: mapo_loss(logp_KB, beta=0.1, snr=0.5, num_timesteps=10, margin_B=margin_B),
        (scores[0].requires_grad_(), margin_B),
    )


def test_mapo_without_preference_is_fine_tuning(scores):
    assert_close(mapo_loss(scores[0], beta=0.0), sft_loss(scores[0]), rtol=0, atol=0)


def test_mapo_margin_is_subtracted_from_the_logit(scores):
    """A margin that equals the logit leaves e_w + beta log 2."""
    loss_B = mapo_loss(scores[0], beta=0.1, margin_B=mapo_logit(scores[0]))
    assert_close(loss_B, sft_loss(scores[0]) + 0.1 * math.log(2))


# --- shapes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        lambda x_KB: hinge_loss(x_KB, x_KB, beta=1.0),
        lambda x_KB: robust_dpo_loss(x_KB, x_KB, beta=1.0, flip_rate=0.1),
        lambda x_KB: conservative_dpo_loss(x_KB, x_KB, beta=1.0, flip_rate=0.1),
        lambda x_KB: ipo_loss(x_KB, x_KB, tau=1.0),
        lambda x_KB: kto_loss(x_KB, x_KB, beta=1.0),
        lambda x_KB: mapo_loss(x_KB, beta=1.0),
    ],
)
def test_more_than_two_candidates_are_refused(loss):
    with pytest.raises(ValueError, match=r"needs two candidates per prompt, (winner|liked) first, got 3"):
        loss(torch.zeros(3, 2))
