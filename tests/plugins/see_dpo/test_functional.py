"""Math of SEE-DPO: kappa = beta / 2, e and r the errors of policy and reference, D = e_w - e_l.

The argument of the sigmoid is -kappa [(1 + gamma) D - D_ref] = kappa [z - gamma D], z = D_ref - D.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from alignkit.functional import bradley_terry_nll, preference_logit
from alignkit_see_dpo.functional import (
    entropy_term,
    from_entropy_weight,
    from_flattened_reference,
    from_h_dpo,
    see_dpo_logit,
    see_dpo_loss,
    see_step_loss,
)

# rows: winner, loser
ERROR_KB = torch.tensor([[0.100, 0.120, 0.090], [0.110, 0.100, 0.095]], dtype=torch.float64)
REF_ERROR_KB = torch.tensor([[0.105, 0.118, 0.092], [0.108, 0.104, 0.093]], dtype=torch.float64)
STEP_LOGP_KB = torch.tensor([[-0.480, -0.510], [-0.505, -0.495]], dtype=torch.float64)
STEP_REF_LOGP_KB = torch.tensor([[-0.500, -0.500], [-0.500, -0.498]], dtype=torch.float64)
GAMMAS = [0.0, 0.003, 0.1, 1.0, 5.0]


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def scores() -> tuple[Tensor, Tensor]:
    """Log-likelihoods of 2 x 7 candidates under a policy and under another reference, float64."""
    generator = torch.Generator().manual_seed(0)
    logp_KB, ref_logp_KB = -torch.rand(2, 2, 7, generator=generator, dtype=torch.float64)
    return logp_KB, ref_logp_KB


@pytest.mark.parametrize(
    ("gamma", "loss_B"),
    [
        (0.0, [0.4031860489, 1.0374879505, 0.5130152524]),
        (0.1, [0.3711006659, 1.1711006659, 0.4932489460]),
        (0.5, [0.2632824673, 1.7839007409, 0.4200553357]),
    ],
)
def test_golden_values(gamma: float, loss_B: list[float]):
    """Kappa = 100, so beta = 200."""
    found_B = see_dpo_loss(-ERROR_KB, -REF_ERROR_KB, beta=200.0, gamma=gamma)
    assert_close(found_B, double(*loss_B), rtol=0, atol=6e-11)


@pytest.mark.parametrize(("gamma", "mean"), [(0.1, 0.6784834259), (0.5, 0.8224128480)])
def test_golden_means(gamma: float, mean: float):
    found = see_dpo_loss(-ERROR_KB, -REF_ERROR_KB, beta=200.0, gamma=gamma).mean()
    assert found.item() == pytest.approx(mean, abs=1e-10)  # printed to ten digits, not rounded


def test_golden_values_at_the_reference():
    """The argument is -kappa gamma D_ref: +0.03, -0.14 and +0.01 at gamma = 0.1."""
    found_B = see_dpo_loss(-REF_ERROR_KB, -REF_ERROR_KB, beta=200.0, gamma=0.1)
    assert_close(found_B, double(0.6782596763, 0.7655951823, 0.6881596805), rtol=0, atol=6e-11)
    assert_close(found_B, torch.log1p(double(-0.03, 0.14, -0.01).exp()))


@pytest.mark.parametrize(
    ("gamma", "loss_B"),
    [
        (0.0, [0.5759394199, 0.7602581947]),
        (0.1, [0.5650706677, 0.7682730064]),
        (1.0, [0.4740769842, 0.8429153336]),
    ],
)
def test_golden_values_of_a_step(gamma: float, loss_B: list[float]):
    """SPO's beta of 10 has no factor 1/2: 20 here."""
    found_B = see_step_loss(STEP_LOGP_KB, STEP_REF_LOGP_KB, beta=20.0, gamma=gamma, clip=0.1)
    assert_close(found_B, double(*loss_B), rtol=0, atol=6e-11)


def test_without_entropy_it_is_diffusion_dpo(scores):
    """T1, value and gradient, bit for bit."""
    logp_KB, ref_logp_KB = scores
    results = []
    for loss in (
        lambda x_KB: see_dpo_loss(x_KB, ref_logp_KB, beta=9.0, gamma=0.0),
        lambda x_KB: bradley_terry_nll(preference_logit(x_KB, ref_logp_KB, beta=9.0)),
    ):
        x_KB = logp_KB.clone().requires_grad_()
        loss_B = loss(x_KB)
        results.append((loss_B.detach(), *torch.autograd.grad(loss_B.sum(), x_KB)))
    assert_close(results[0], results[1], rtol=0, atol=0)


def test_without_entropy_a_step_is_that_of_spo_and_d3po():
    """T1: -log sigmoid(beta (log clip(exp d_w) - log clip(exp d_l))), as their code writes it."""
    generator = torch.Generator().manual_seed(4)
    logp_KB, ref_logp_KB = torch.randn(2, 2, 50, generator=generator, dtype=torch.float64) / 10
    results = []
    for loss in (
        lambda x_KB: see_step_loss(x_KB, ref_logp_KB, beta=20.0, gamma=0.0, clip=0.1),
        lambda x_KB: (
            -torch.log(
                torch.sigmoid(10.0 * (x_KB - ref_logp_KB).exp().clamp(0.9, 1.1).log().diff(dim=0)[0].neg())
            )
        ),
    ):
        x_KB = logp_KB.clone().requires_grad_()
        loss_B = loss(x_KB)
        results.append((loss_B.detach(), *torch.autograd.grad(loss_B.sum(), x_KB)))
    assert_close(results[0], results[1])
    assert 10 < (results[0][1] == 0).sum() < 90  # some ratios are clipped, some are not


def test_policy_equal_to_reference_costs_log_two_only_without_entropy_or_without_difference():
    """T2: -log sigmoid(-gamma kappa D_ref)."""
    same_KB = torch.full((2, 3), -0.4)
    assert_close(see_dpo_loss(same_KB, same_KB, beta=2e3, gamma=0.5), torch.full((3,), math.log(2)))
    assert_close(
        see_dpo_loss(-ERROR_KB, -ERROR_KB, beta=2e3, gamma=0.0), torch.full((3,), math.log(2)).double()
    )
    difference_B = see_dpo_loss(-ERROR_KB, -ERROR_KB, beta=2e3, gamma=0.1) - math.log(2)
    assert (difference_B.sign() == (ERROR_KB[0] - ERROR_KB[1]).sign()).all()


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("beta", [0.5, 10.0, 2000.0])
def test_parametrisations_agree(scores, beta: float, gamma: float):
    """T3: each written out as its own paper has it, to 1e-15 of the terms' size."""
    (w_B, l_B), (ref_w_B, ref_l_B) = scores
    policy_B, reference_B = w_B - l_B, ref_w_B - ref_l_B
    kappa = beta / 2
    entropy = beta * gamma
    steeper, exponent = beta * (1 + gamma), 1 / (1 + gamma)
    alpha = 1 + gamma
    written = {
        from_entropy_weight(beta, entropy): (kappa + entropy / 2) * policy_B - kappa * reference_B,
        from_flattened_reference(steeper, exponent): steeper / 2 * (policy_B - exponent * reference_B),
        from_h_dpo(beta, alpha): alpha * kappa * policy_B - kappa * reference_B,
    }
    size = steeper * (1 + gamma)
    for strength, argument_B in written.items():
        assert strength == pytest.approx((beta, gamma), rel=1e-15, abs=4e-16)
        logit_B = see_dpo_logit(*scores, beta=strength.beta, gamma=strength.gamma)
        assert_close(logit_B / size, argument_B / size, rtol=0, atol=1e-15)


def test_converters_by_hand():
    """Weights 2000 and 500: exponent 2000 / 2500 = 0.8, beta' 2500, alpha 1.25, gamma 0.25."""
    assert from_entropy_weight(2000.0, 500.0) == (2000.0, 0.25)
    assert from_flattened_reference(2500.0, 0.8) == (2000.0, 0.25)
    assert from_h_dpo(2000.0, 1.25) == (2000.0, 0.25)


def bradley_terry_optimum(reward_N: Tensor, ref_logp_N: Tensor, *, beta: float, gamma: float) -> Tensor:
    """Log-probabilities that minimise the expected loss on labels drawn by Bradley-Terry, by Newton."""
    first_P, second_P = torch.combinations(torch.arange(len(reward_N))).T
    right_P = torch.sigmoid(reward_N[first_P] - reward_N[second_P])

    def population(score_N: Tensor) -> Tensor:
        logp_N = score_N.log_softmax(0)
        pairs = [torch.stack([x_N[first_P], x_N[second_P]]) for x_N in (logp_N, ref_logp_N)]
        # a beta twice the tabular one: the factor 1/2
        kept_P = see_dpo_loss(*pairs, beta=2 * beta, gamma=gamma)
        flipped_P = see_dpo_loss(*(pair.flip(0) for pair in pairs), beta=2 * beta, gamma=gamma)
        return (right_P * kept_P + (1 - right_P) * flipped_P).mean()

    score_N = ref_logp_N / (1 + gamma)
    for _ in range(60):
        gradient_N = torch.func.grad(population)(score_N)
        # pinv: a constant added to all scores changes nothing
        score_N = (
            score_N - torch.linalg.pinv(torch.func.jacrev(torch.func.grad(population))(score_N)) @ gradient_N
        )
    return score_N.log_softmax(0)


REWARD_N = double(2.0, 0.3, -0.5, 0.1, -1.2, 0.9)
REF_LOGP_N = double(0.4, 0.25, 0.15, 0.1, 0.06, 0.04).log()


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 5.0, 50.0])
def test_optimum_is_the_flattened_reference_tilted_by_the_reward(gamma: float):
    """T4: p_ref^(1 / (1 + gamma)) exp(r / (beta (1 + gamma))) / Z, to 1e-8."""
    found_N = bradley_terry_optimum(REWARD_N, REF_LOGP_N, beta=0.8, gamma=gamma).exp()
    expected_N = ((REF_LOGP_N + REWARD_N / 0.8) / (1 + gamma)).softmax(0)
    assert_close(found_N, expected_N, rtol=0, atol=1e-8)


def test_entropy_of_the_optimum_rises_with_gamma_towards_that_of_a_fair_die():
    """T5: log 6 = 1.792."""
    entropies = []
    for gamma in (0.0, 0.1, 0.5, 1.0, 5.0, 50.0):
        logp_N = bradley_terry_optimum(REWARD_N, REF_LOGP_N, beta=0.3, gamma=gamma)
        entropies.append(-(logp_N.exp() * logp_N).sum().item())
    assert all(low < high for low, high in pairwise(entropies))
    assert entropies[0] < 0.5
    assert math.log(6) - 0.01 < entropies[-1] < math.log(6)


def test_without_preferences_the_optimum_is_the_flattened_reference():
    """T5: a constant reward leaves p_ref^(1 / (1 + gamma)) / Z."""
    found_N = bradley_terry_optimum(torch.zeros(6).double(), REF_LOGP_N, beta=0.8, gamma=0.5)
    assert_close(found_N, (REF_LOGP_N / 1.5).log_softmax(0), rtol=0, atol=1e-8)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_gradient_by_the_errors(scores, gamma: float):
    """T6: dL/de_w = kappa (1 + gamma) sigmoid(-argument), dL/de_l its opposite."""
    error_KB = (-scores[0]).requires_grad_()
    see_dpo_loss(-error_KB, scores[1], beta=6.0, gamma=gamma).sum().backward()
    policy_B, reference_B = (x_KB[0] - x_KB[1] for x_KB in scores)
    factor_B = 3.0 * (1 + gamma) * torch.sigmoid(-3.0 * ((1 + gamma) * policy_B - reference_B))
    assert_close(error_KB.grad, torch.stack([factor_B, -factor_B]))


def test_gradient_matches_finite_differences(scores):
    margin_B = torch.linspace(-1, 1, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda logp_KB, margin_B: see_dpo_loss(logp_KB, scores[1], beta=7.0, gamma=0.3, margin_B=margin_B),
        (scores[0].requires_grad_(), margin_B),
    )


def test_gradient_of_a_step_matches_finite_differences():
    assert torch.autograd.gradcheck(
        lambda logp_KB: see_step_loss(logp_KB, STEP_REF_LOGP_KB, beta=20.0, gamma=0.3, clip=0.1),
        STEP_LOGP_KB.clone().requires_grad_(),
    )


@pytest.mark.parametrize("gamma", GAMMAS)
def test_swapping_a_pair_negates_the_argument(scores, gamma: float):
    """T7."""
    logp_KB, ref_logp_KB = scores
    straight_B = see_dpo_logit(logp_KB, ref_logp_KB, beta=8.0, gamma=gamma)
    swapped_B = see_dpo_logit(logp_KB.flip(0), ref_logp_KB.flip(0), beta=8.0, gamma=gamma)
    assert_close(swapped_B, -straight_B, rtol=0, atol=0)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_constant_of_the_prompt_changes_nothing(scores, gamma: float):
    """T7: what depends on prompt and noise level alone cancels, in policy and in reference."""
    logp_KB, ref_logp_KB = scores
    constant_B = torch.linspace(-2, 2, 7, dtype=torch.float64)
    loss_B = see_dpo_loss(logp_KB, ref_logp_KB, beta=5.0, gamma=gamma)
    assert_close(see_dpo_loss(logp_KB + constant_B, ref_logp_KB, beta=5.0, gamma=gamma), loss_B)
    assert_close(see_dpo_loss(logp_KB, ref_logp_KB + constant_B, beta=5.0, gamma=gamma), loss_B)


def test_an_unlikely_winner_teaches_more_than_a_likely_one():
    """At the reference the argument is -kappa gamma D: e_w > e_l makes it negative, sigmoid(-arg) > 1/2."""
    logp_KB = torch.tensor([[-0.3, -0.1], [-0.1, -0.3]], requires_grad=True)
    see_dpo_loss(logp_KB, logp_KB.detach(), beta=100.0, gamma=0.05).sum().backward()
    unlikely, likely = logp_KB.grad[0].abs()
    assert unlikely > 26.25 > likely  # kappa (1 + gamma) / 2


def test_entropy_term_is_a_part_of_the_argument_that_has_a_gradient(scores):
    """An entropy of a step of fixed variance has none: the regulariser acts through the reward."""
    logp_KB = scores[0].requires_grad_()
    term_B = entropy_term(logp_KB, beta=4.0, gamma=0.5)
    assert_close(term_B, logp_KB[0] - logp_KB[1])
    (gradient_KB,) = torch.autograd.grad(term_B.sum(), logp_KB)
    assert_close(gradient_KB, double(1.0, -1.0)[:, None].expand(2, 7))


def test_constants_of_a_narrow_gaussian_do_not_saturate_the_clip():
    """With sigma = 0.05 a step's logp is about 1.58; unsplit, exp(0.1 * 1.58) = 1.17 > 1.1 would be clipped.

    Both rows then would clip to 1.1 and the gradient would be exactly zero.
    """
    logp_KB = torch.tensor([[1.58], [1.57]], dtype=torch.float64, requires_grad=True)
    unsplit_KB = (1.1 * logp_KB - logp_KB.detach()).exp().clamp(0.9, 1.1).log()
    unsplit = bradley_terry_nll(10 * (unsplit_KB[0] - unsplit_KB[1]))
    (theirs_KB,) = torch.autograd.grad(unsplit.sum(), logp_KB)
    loss = see_step_loss(logp_KB, logp_KB.detach(), beta=20.0, gamma=0.1, clip=0.1)
    (ours_KB,) = torch.autograd.grad(loss.sum(), logp_KB)
    assert_close(theirs_KB, torch.zeros(2, 1).double(), rtol=0, atol=0)
    factor = 11 * torch.sigmoid(double(-10 * 0.1 * 0.01))
    assert_close(ours_KB, torch.stack([-factor, factor]))


def test_margin_is_subtracted_from_the_logit(scores):
    """A margin that equals the logit leaves -log sigmoid(0)."""
    margin_B = see_dpo_logit(*scores, beta=5.0, gamma=0.3)
    loss_B = see_dpo_loss(*scores, beta=5.0, gamma=0.3, margin_B=margin_B)
    assert_close(loss_B, torch.full((7,), math.log(2), dtype=torch.float64))
    higher_B = see_dpo_loss(*scores, beta=5.0, gamma=0.3, margin_B=margin_B + 1)
    assert_close(higher_B, torch.full((7,), math.log(1 + math.e), dtype=torch.float64))


def test_batch_of_pairs_is_pairs_one_by_one(scores):
    loss_B = see_dpo_loss(*scores, beta=8.0, gamma=0.2)
    one_by_one = [
        see_dpo_loss(scores[0][:, i : i + 1], scores[1][:, i : i + 1], beta=8.0, gamma=0.2) for i in range(7)
    ]
    assert_close(loss_B, torch.cat(one_by_one), rtol=1e-12, atol=0)


def test_finite_at_any_logit_in_float32():
    logp_KB = torch.tensor([[-1e4, 0.0], [0.0, -1e4]], requires_grad=True)
    loss_B = see_dpo_loss(logp_KB, torch.zeros(2, 2), beta=2.0, gamma=1.0)
    (gradient_KB,) = torch.autograd.grad(loss_B.sum(), logp_KB)
    assert_close(loss_B.detach(), torch.tensor([2e4, 0.0]))
    assert_close(gradient_KB, torch.tensor([[-2.0, 0.0], [2.0, 0.0]]))


def test_more_than_two_candidates_are_refused():
    with pytest.raises(ValueError, match="needs two candidates per prompt, winner first, got 3"):
        see_dpo_loss(torch.zeros(3, 2), torch.zeros(3, 2), beta=2.0, gamma=0.1)
