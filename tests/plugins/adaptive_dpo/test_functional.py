"""Math of Adaptive-DPO.

z margins, y annotators' logits, c confidence, s stability, u score, w weight, g margin.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from alignkit.functional import bradley_terry_nll
from alignkit_adaptive_dpo.functional import (
    Minority,
    group_rho,
    minority,
    minority_margin,
    minority_weights,
    quadratic_weights,
    shared_scores,
    sigmoid_weights,
    sqrt_weights,
    standardized_scores,
    weighted_ipo_loss,
)
from alignkit_classics.functional import conservative_dpo_loss, robust_dpo_loss

# three annotators, four pairs; rho = 15, k = 10, b = 1, the released code's beta of 1000
MARGIN_AB = torch.tensor([[2, -1, 5, -4], [1, -0.5, 3, -3], [1.5, -1, 4, -3.5]], dtype=torch.float64) * 1e-4
KAPPA, BETA = 1000.0, 2000.0
CONFIDENCE = [0.0204649291, 0.8944798795, 0.0000245492, 0.9999114705]
STABILITY = [0.5047771414, 0.4817489891, 0.4013040819, 0.7141148435]
SCORE = [0.0103302284, 0.4309147777, 0.0000098517, 0.7140516233]
WEIGHT = [0.9063699171, 0.1883541468, 0.9999014927, 0.1228423323]
DIGITS = {"rtol": 0, "atol": 6e-11}
SHAPES = [minority_weights, quadratic_weights, sqrt_weights, sigmoid_weights]


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_margins(*, annotators: int = 3, prompts: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shared_B = torch.randn(prompts, generator=generator, dtype=torch.float64)
    own_AB = torch.randn(annotators, prompts, generator=generator, dtype=torch.float64)
    return 1e-4 * (shared_B + 0.5 * own_AB)


def logistic(margin_B: Tensor, shift_B: Tensor | float = 0.0) -> Tensor:
    """Diffusion-DPO's loss in the released code's units."""
    return bradley_terry_nll(KAPPA * margin_B - shift_B)


def test_golden_scores():
    found = minority(MARGIN_AB, rho=15.0)
    assert_close(found, Minority(vector(*CONFIDENCE), vector(*STABILITY), vector(*SCORE)), **DIGITS)


def test_golden_weights():
    assert_close(minority_weights(vector(*SCORE), k=10.0, b=1.0), vector(*WEIGHT), rtol=0, atol=1e-9)


def test_golden_scores_without_normalisation():
    found = minority(MARGIN_AB, rho=1e4, normalize=False)
    expected_B = vector(0.0950949779, 0.2005884661, 0.0240349780, 0.4842126144)
    assert_close(found.score_B, expected_B, **DIGITS)


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ({}, 0.3171311203),
        ({"power": 1}, 0.3171202619),
        ({"units": "reward"}, 0.3161810417),
        (None, 0.3171331206),
    ],
)
def test_golden_losses(options: dict | None, loss: float):
    """Mean of w (-log sigmoid(kappa z - g)) with the released margins, in reward units, and without one."""
    score_B = minority(MARGIN_AB, rho=15.0).score_B
    shift_B: Tensor | float = 0.0
    if options is not None:
        shift_B = minority_margin(score_B, MARGIN_AB[0].mean(), beta=BETA, **options)
    loss_B = minority_weights(score_B, k=10.0, b=1.0) * logistic(MARGIN_AB[0], shift_B)
    assert loss_B.mean().item() == pytest.approx(loss, abs=6e-11)


def test_golden_ipo_losses():
    score_B = minority(MARGIN_AB, rho=15.0).score_B
    weight_B = minority_weights(score_B, k=10.0, b=1.0)
    shift_B = minority_margin(score_B, MARGIN_AB[0].mean(), beta=BETA)
    loss_B = weighted_ipo_loss(MARGIN_AB[0], weight_B, shift_B, beta=BETA, tau=100.0)
    plain_B = weighted_ipo_loss(MARGIN_AB[0], torch.ones_like(weight_B), 0 * shift_B, beta=BETA, tau=100.0)
    assert loss_B.mean().item() == pytest.approx(1.24029822e-05, abs=6e-14)
    assert plain_B.mean().item() == pytest.approx(2.4615e-05, abs=6e-14)


def test_golden_baselines_of_the_released_script():
    """Plain, robust and conservative losses of the same margins; the latter two are other plugins' own."""
    logp_KB = torch.stack([MARGIN_AB[0], torch.zeros(4, dtype=torch.float64)])
    options = {"beta": BETA, "flip_rate": 0.1}
    robust_B = robust_dpo_loss(logp_KB, torch.zeros_like(logp_KB), **options)
    conservative_B = conservative_dpo_loss(logp_KB, torch.zeros_like(logp_KB), **options)
    assert logistic(MARGIN_AB[0]).mean().item() == pytest.approx(0.6824069415, abs=6e-11)
    assert robust_B.mean().item() == pytest.approx(0.6761569416, abs=1e-10)
    assert conservative_B.mean().item() == pytest.approx(0.6874069415, abs=6e-11)


@pytest.mark.parametrize("flip_rate", [0.1, 0.2, 0.3])
def test_robust_loss_is_unbiased(flip_rate: float):
    """T9: its mean over flips at the assumed rate is the clean loss, (1 - q) R(z) + q R(-z) = L(z)."""
    logp_KB = torch.stack([random_margins()[0], torch.zeros(16, dtype=torch.float64)])
    options = {"beta": BETA, "flip_rate": flip_rate}
    kept_B = robust_dpo_loss(logp_KB, torch.zeros_like(logp_KB), **options)
    swapped_B = robust_dpo_loss(logp_KB.flip(0), torch.zeros_like(logp_KB), **options)
    expected_B = logistic(logp_KB[0])
    assert_close((1 - flip_rate) * kept_B + flip_rate * swapped_B, expected_B, rtol=1e-12, atol=0)


def test_scores_by_hand():
    """Two annotators, y = (3, 4) / 5 and (1, 0): c = mean sigmoid(-y), s = |y0 - y1| / sqrt 2."""
    found = minority(vector(3.0, 4.0, 1.0, 0.0).view(2, 2), rho=1.0)

    def rejects(y: float) -> float:
        return 1 / (1 + math.exp(y))

    confidence = [(rejects(0.6) + rejects(1.0)) / 2, (rejects(0.8) + rejects(0.0)) / 2]
    stability = [0.4 / math.sqrt(2), 0.8 / math.sqrt(2)]
    assert_close(found.confidence_B, vector(*confidence))
    assert_close(found.stability_B, vector(*stability))
    assert_close(found.score_B, vector(*(c * s for c, s in zip(confidence, stability, strict=True))))


def test_annotators_that_agree_fully_find_nothing_suspicious():
    """T2: s = 0, so u = 0 and w = 1 / b, even where all of them reject the label."""
    margin_AB = random_margins()[:1].expand(3, -1)
    found = minority(margin_AB, rho=15.0)
    assert (found.confidence_B > 0.9).any()
    assert_close(found.score_B, torch.zeros_like(found.score_B), rtol=0, atol=1e-15)
    weight_B = minority_weights(found.score_B, k=10.0, b=2.0)
    assert_close(weight_B, torch.full_like(weight_B, 0.5), rtol=0, atol=1e-14)
    shift_B = minority_margin(found.score_B, margin_AB[0].mean(), beta=BETA)
    assert_close(shift_B, margin_AB[0].mean().expand(16), rtol=0, atol=1e-18)


@pytest.mark.parametrize("seed", range(5))
def test_scores_and_what_follows_stay_in_their_ranges(seed: int):
    """T3 for confidence, stability, score and the linear weight."""
    found = minority(random_margins(seed=seed), rho=15.0)
    for value_B in found:
        assert value_B.min() >= 0
        assert value_B.max() <= 1
    assert found.stability_B.max() == 1  # the clamp is at work here
    weight_B = minority_weights(found.score_B, k=10.0, b=1.0)
    assert weight_B.min() >= 1 / 11
    assert weight_B.max() <= 1


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_fall_with_the_score(shape):
    """T3; and k = 0 makes all weights the same."""
    score_B = torch.linspace(0, 1, 101, dtype=torch.float64)
    weight_B = shape(score_B, k=10.0, b=1.0)
    assert (weight_B.diff() < 0).all()
    assert_close(shape(score_B, k=0.0, b=2.0), shape(score_B[:1], k=10.0, b=2.0).expand(101))


@pytest.mark.parametrize(
    ("shape", "weights"),
    [
        (minority_weights, (1.0, 1 / 3.5, 1 / 11)),
        (quadratic_weights, (1.0, 1 / 1.625, 1 / 11)),
        (sqrt_weights, (0.5, 1 / (math.exp(5) + 1), 1 / (math.exp(10) + 1))),
        (sigmoid_weights, (0.5, 1 / (math.exp(2.5) + 1), 1 / (math.exp(10) + 1))),
    ],
)
def test_weights_by_hand(shape, weights: tuple[float, ...]):
    """At scores of 0, 1/4 and 1 with k = 10 and b = 1."""
    assert_close(shape(vector(0.0, 0.25, 1.0), k=10.0, b=1.0), vector(*weights))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("units", ["code", "reward"])
def test_margin_by_hand(power: int, units: str):
    """Margin = mean z - u^p / kappa; times kappa in reward units. It falls with the score (T3)."""
    score_B, mean = vector(0.0, 0.25, 1.0), vector(3e-4)[0]
    expected = [3e-4 - u**power / KAPPA for u in (0.0, 0.25, 1.0)]
    scale = KAPPA if units == "reward" else 1.0
    margin_B = minority_margin(score_B, mean, beta=BETA, power=power, units=units)  # type: ignore[arg-type]
    assert_close(margin_B, scale * vector(*expected))
    assert (margin_B.diff() < 0).all()


def test_factors_of_annotators_do_not_matter():
    """T4: each annotator is divided by its own norm."""
    margin_AB = random_margins()
    factor_A1 = vector(1e-3, 7.0, 300.0)[:, None]
    assert_close(minority(factor_A1 * margin_AB, rho=15.0), minority(margin_AB, rho=15.0))
    plain = minority(factor_A1 * margin_AB, rho=15.0, normalize=False)
    assert not torch.allclose(plain.score_B, minority(margin_AB, rho=15.0, normalize=False).score_B)


def test_order_of_annotators_does_not_matter_and_that_of_prompts_is_kept():
    """T4."""
    margin_AB = random_margins()
    found = minority(margin_AB, rho=15.0)
    assert_close(minority(margin_AB[[2, 0, 1]], rho=15.0), found)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    assert_close(minority(margin_AB[:, order], rho=15.0), Minority(*(value_B[order] for value_B in found)))


@pytest.mark.parametrize("pair", [0, 7])
def test_a_flipped_label_mirrors_the_confidence_of_its_pair_alone(pair: int):
    """T5: y -> -y keeps the spread, and sigmoid(-y) = 1 - sigmoid(y)."""
    margin_AB = random_margins()
    flipped_AB = margin_AB.clone()
    flipped_AB[:, pair] *= -1
    before, after = minority(margin_AB, rho=15.0), minority(flipped_AB, rho=15.0)
    expected_B = before.confidence_B.clone()
    expected_B[pair] = 1 - expected_B[pair]
    assert_close(after.confidence_B, expected_B)
    assert_close(after.stability_B, before.stability_B)


def test_gradient_is_that_of_constant_weights_and_margins():
    """T6: dL/dz = -(kappa / B) w sigmoid(-(kappa z - g)), if what is called with is detached."""
    margin_B = MARGIN_AB[0].clone().requires_grad_()
    score_B = minority(MARGIN_AB, rho=15.0).score_B
    weight_B = minority_weights(score_B, k=10.0, b=1.0)
    shift_B = minority_margin(score_B, MARGIN_AB[0].mean(), beta=BETA)
    (weight_B * logistic(margin_B, shift_B)).mean().backward()
    expected_B = -KAPPA / 4 * weight_B * torch.sigmoid(shift_B - KAPPA * MARGIN_AB[0])
    assert_close(margin_B.grad, expected_B, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_margin_at_all_is_innocent(dtype: torch.dtype):
    """T7: a policy that equals its reference has z = 0: c = 1/2 and s = 0, not a division of 0 by 0."""
    found = minority(torch.zeros(3, 4, dtype=dtype), rho=15.0)
    half_B, zero_B = torch.full((4,), 0.5, dtype=dtype), torch.zeros(4, dtype=dtype)
    assert_close(found, Minority(half_B, zero_B, zero_B), rtol=0, atol=0)


def test_one_annotator_at_the_reference_leaves_the_others():
    margin_AB = random_margins()
    margin_AB[1] = 0
    found = minority(margin_AB, rho=15.0)
    y_AB = 15.0 * torch.stack(
        [F.normalize(margin_AB[0], dim=0), margin_AB[1], F.normalize(margin_AB[2], dim=0)]
    )
    assert_close(found.confidence_B, 1 - y_AB.sigmoid().mean(0))
    assert_close(found.stability_B, y_AB.std(0).clamp(max=1))


def test_a_single_prompt_is_finite():
    """T7: y = +-rho."""
    found = minority(vector(1e-4, 3e-4, -1e-4)[:, None], rho=3.75)
    y_A = vector(3.75, 3.75, -3.75)
    assert_close(found.confidence_B, 1 - y_A.sigmoid().mean()[None])
    assert_close(found.stability_B, vector(1.0))


def test_a_single_annotator_scores_by_its_confidence():
    """The released code without averages: u = c = |sigmoid(y) - 1|."""
    margin_AB = random_margins(annotators=1)
    found = minority(margin_AB, rho=15.0)
    confidence_B = (torch.sigmoid(15.0 * F.normalize(margin_AB[0], dim=0)) - 1).abs()
    assert_close(found, Minority(confidence_B, torch.ones_like(confidence_B), confidence_B))


def test_part_of_a_group_is_judged_as_within_it():
    margin_AG = random_margins(prompts=16)
    whole = minority(margin_AG, rho=15.0)
    for part in (slice(0, 8), slice(8, 16)):
        found = minority(margin_AG[:, part], rho=15.0, group_AG=margin_AG)
        assert_close(found, Minority(*(value_B[part] for value_B in whole)))
    assert not torch.allclose(minority(margin_AG[:, :8], rho=15.0).score_B, whole.score_B[:8])


def test_scaled_rho_makes_scores_independent_of_the_number_of_prompts():
    """Groups with the same distribution: 4 times 16 prompts. The norm doubles, and so does rho."""
    margin_AB = random_margins()
    assert group_rho(15.0, num_prompts=64) == 30.0
    found = minority(margin_AB.repeat(1, 4), rho=group_rho(15.0, num_prompts=64))
    once = minority(margin_AB, rho=group_rho(15.0, num_prompts=16))
    assert_close(found, Minority(*(value_B.repeat(4) for value_B in once)))


def test_unscaled_rho_finds_less_in_larger_groups():
    """The law that the scaling undoes: mean u of the same distribution, 16 against 1024 prompts."""
    small = minority(random_margins(prompts=16), rho=15.0).score_B.mean()
    large_AB = random_margins(prompts=1024)
    assert minority(large_AB, rho=15.0).score_B.mean() < small / 3
    scaled = minority(large_AB, rho=group_rho(15.0, num_prompts=1024)).score_B.mean()
    assert scaled.item() == pytest.approx(small.item(), rel=0.25)


def test_flipped_pairs_weigh_less():
    """T8: margins of clean pairs are mostly positive, snapshots differ; 20 % are flipped. Groups of 16."""
    generator = torch.Generator().manual_seed(0)
    clean_GB = 1.0 + 0.5 * torch.randn(500, 16, generator=generator, dtype=torch.float64)
    flipped_GB = torch.rand(500, 16, generator=generator) < 0.2
    label_GB = 1 - 2 * flipped_GB.double()
    noise_GAB = 0.3 * torch.randn(500, 3, 16, generator=generator, dtype=torch.float64)
    weight_GB = torch.stack(
        [
            minority_weights(minority(1e-4 * label_B * (clean_B + noise_AB), rho=15.0).score_B, k=10.0, b=1.0)
            for label_B, clean_B, noise_AB in zip(label_GB, clean_GB, noise_GAB, strict=True)
        ]
    )
    flipped, clean = weight_GB[flipped_GB].mean(), weight_GB[~flipped_GB].mean()
    assert flipped < 0.25
    assert clean > 0.6


def test_product_hole():
    """What all snapshots reject alike keeps its weight. The released code's behaviour, deliberately kept.

    Norms are equal, so y_0 = -15 * 3 / sqrt(11) for all three: c = 1, s = 0.
    """
    margin_AB = vector(-3, 1, 0, 1, -3, 1, 1, 0, -3, 0, 1, 1).view(3, 4)
    found = minority(margin_AB, rho=15.0)
    assert found.confidence_B[0].item() == pytest.approx(1, abs=1e-5)
    assert found.score_B[0].item() == pytest.approx(0, abs=1e-12)
    assert found.score_B[1:].min() > 0.1


def test_standardised_scores_by_hand():
    """Score / mean s; the live policy's confidence where the mean is 0."""
    score_B, confidence_B = vector(0.1, 0.3), vector(0.4, 0.6)
    assert_close(standardized_scores(score_B, vector(0.1, 0.3, 0.2, 0.2), confidence_B), vector(0.5, 1.5))
    assert_close(standardized_scores(0 * score_B, torch.zeros(4).double(), confidence_B), confidence_B)


def test_shared_scores_by_hand():
    """Of 16 prompts, u / sum u; of 32 with the same scores twice, the same."""
    score_G = torch.arange(16, dtype=torch.float64) / 16
    assert_close(shared_scores(score_G, score_G), score_G / score_G.sum())
    assert_close(shared_scores(score_G, score_G.repeat(2)), score_G / score_G.sum())
    assert_close(shared_scores(torch.zeros(4), torch.zeros(4)), torch.zeros(4), rtol=0, atol=0)
