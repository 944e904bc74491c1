"""The component MinorityAware: settings, logs, groups, errors. Its math is tested in test_functional.py."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from alignkit.functional import bradley_terry_nll, preference_logit
from alignkit.testing import toy_batch, toy_scored
from alignkit.types import Scored, Weights
from alignkit_adaptive_dpo import weighting as weighting_module
from alignkit_adaptive_dpo.functional import (
    minority,
    minority_margin,
    minority_weights,
    shared_scores,
    sigmoid_weights,
    standardized_scores,
)
from alignkit_adaptive_dpo.weighting import MinorityAware
from alignkit_diffusion_dpo.objective import DiffusionDPO

ANNOTATORS, PROMPTS = 3, 16


def logps(prompts: int = PROMPTS, annotators: int = ANNOTATORS) -> Tensor:
    """Log-likelihoods of annotators, then of the reference, (1 + annotators, 2, B), float64."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(1, 2, prompts, generator=generator, dtype=torch.float64)
    own = torch.randn(1 + annotators, 2, prompts, generator=generator, dtype=torch.float64)
    return -0.2 + 1e-4 * (shared + 0.5 * own)


def scored(logp: Tensor, step: int = 2) -> Scored:
    *annotators, reference = logp
    others = {"snapshot_logp_SKB": torch.stack(annotators[1:])} if annotators[1:] else {}
    return toy_scored(annotators[0], reference, **others)._replace(step=step)


def margins(logp: Tensor) -> Tensor:
    """The same written out, (A, B): D_ref - D of each annotator, D the winner's error less the loser's."""
    error = -logp
    difference = error[:, 0] - error[:, 1]
    return difference[-1] - difference[:-1]


def weigh(logp: Tensor, step: int = 2, **options: object) -> Weights:
    weights: Weights = MinorityAware(**options)(scored(logp, step), toy_batch(logp.shape[-1]))  # type: ignore[arg-type]
    return weights


def test_weights_margins_and_logs_are_the_functions():
    """16 prompts: rho as it is. The live policy comes first: its margins centre the margin."""
    found = minority(margins(logps()), rho=15.0)
    weight_B = minority_weights(found.score_B, k=10.0, b=1.0)
    margin_B = minority_margin(found.score_B, margins(logps())[0].mean(), beta=2000.0)
    weights = weigh(logps())
    assert_close(weights.weight_B, weight_B)
    assert_close(weights.margin_B, margin_B)
    assert {name: value.item() for name, value in weights.logs.items()} == pytest.approx(
        {
            "minority/confidence": found.confidence_B.mean().item(),
            "minority/stability": found.stability_B.mean().item(),
            "minority/score": found.score_B.mean().item(),
            "minority/weight": weight_B.mean().item(),
            "minority/margin": margin_B.mean().item(),
        }
    )


def test_score_rises_with_the_winners_error():
    """A pair whose winner all annotators lost on, more than the loser, is suspicious; its mirror is not."""
    logp = logps()
    logp[:3, 0, 0] -= 4e-4 * torch.tensor([0.8, 1.0, 1.2])
    weights = weigh(logp)
    mirrored = weigh(torch.cat([logp[:, :, :1].flip(1), logp[:, :, 1:]], dim=2))
    assert weights.weight_B[0] < 0.2 < 0.8 < mirrored.weight_B[0]


@pytest.mark.parametrize("step", [0, 1])
def test_nothing_is_suspicious_in_the_first_two_steps(step: int):
    """Score 0: weights 1 / b, margins the mean of z; what was found is logged all the same."""
    weights = weigh(logps(), step, b=2.0)
    assert_close(weights.weight_B, torch.full((PROMPTS,), 0.5, dtype=torch.float64), rtol=0, atol=0)
    assert_close(weights.margin_B, margins(logps())[0].mean().expand(PROMPTS))
    assert weights.logs["minority/score"] == 0
    assert weights.logs["minority/stability"] > 0
    assert weigh(logps(), step, warmup_steps=0).logs["minority/score"] > 0


def test_equal_policy_reference_and_snapshots_are_finite():
    logp = logps()[:1].expand(4, -1, -1)
    weights = weigh(logp)
    assert_close(weights.weight_B, torch.ones(PROMPTS, dtype=torch.float64), rtol=0, atol=0)
    assert_close(weights.margin_B, torch.zeros(PROMPTS, dtype=torch.float64), rtol=0, atol=0)


def test_without_slope_and_margin_it_is_diffusion_dpo():
    """T1: k = 0, b = 1, no margin: value and gradient, exactly."""
    losses, gradients = [], []
    for weighted in (True, False):
        logp = logps()
        live_KB = logp[0].clone().requires_grad_()
        one = scored(logp)._replace(logp_KB=live_KB)
        weights = MinorityAware(k=0.0, margin="none")(one, toy_batch(PROMPTS))
        assert weights.margin_B is None
        assert "minority/margin" not in weights.logs
        loss_B = DiffusionDPO()(one._replace(margin_B=weights.margin_B), toy_batch(PROMPTS)).loss_B
        loss = (weights.weight_B * loss_B).mean() if weighted else loss_B.mean()
        loss.backward()
        losses.append(loss.detach())
        gradients.append(live_KB.grad)
    assert torch.equal(*losses)
    assert torch.equal(*gradients)


def test_gradient_reaches_the_live_policy_through_the_logit_alone():
    """T6: dL/dlogp_w = -(beta / 2B) w sigmoid(-(logit - g)), with w and g as numbers; none elsewhere."""
    logp = logps()
    live_KB, ref_KB = logp[0].clone().requires_grad_(), logp[-1].clone().requires_grad_()
    snapshot_SKB = logp[1:3].clone().requires_grad_()
    one = scored(logp)._replace(logp_KB=live_KB, ref_logp_KB=ref_KB, snapshot_logp_SKB=snapshot_SKB)
    weights = MinorityAware()(one, toy_batch(PROMPTS))
    loss_B = DiffusionDPO(beta=2000.0)(one._replace(margin_B=weights.margin_B), toy_batch(PROMPTS)).loss_B
    (weights.weight_B * loss_B).mean().backward()
    expected = weigh(logps())
    logit_B = preference_logit(logp[0], logp[-1], beta=2000.0)
    assert expected.margin_B is not None
    factor_B = 1000 / PROMPTS * expected.weight_B * torch.sigmoid(expected.margin_B - logit_B)
    assert_close(live_KB.grad, torch.stack([-factor_B, factor_B]))
    assert ref_KB.grad is None
    assert snapshot_SKB.grad is None
    assert not any(value.requires_grad for value in weights.logs.values())


def test_margin_is_subtracted_from_the_objectives_logit():
    logp = logps()
    weights = weigh(logp, margin_units="reward")
    one = scored(logp)._replace(margin_B=weights.margin_B)
    logit_B = 1000 * margins(logp)[0]
    expected_B = bradley_terry_nll(logit_B + weights_score(logp).square() - 1000 * margins(logp)[0].mean())
    assert_close(DiffusionDPO(beta=2000.0)(one, toy_batch(PROMPTS)).loss_B, expected_B)


def weights_score(logp: Tensor) -> Tensor:
    return minority(margins(logp), rho=15.0).score_B


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shape": "sigmoid"}, lambda z: sigmoid_weights(minority(z, rho=15.0).score_B, k=10.0, b=1.0)),
        (
            {"normalize": False, "rho": 1e4, "k": 3.0, "b": 0.5},
            lambda z: minority_weights(minority(z, rho=1e4, normalize=False).score_B, k=3.0, b=0.5),
        ),
        (
            {"rescale": "sum"},
            lambda z: minority_weights(shared_scores(*[minority(z, rho=15.0).score_B] * 2), k=10.0, b=1.0),
        ),
        (
            {"rescale": "stability"},
            lambda z: minority_weights(
                standardized_scores(
                    minority(z, rho=15.0).score_B,
                    minority(z, rho=15.0).stability_B,
                    minority(z[:1], rho=15.0).confidence_B,
                ),
                k=10.0,
                b=1.0,
            ),
        ),
    ],
)
def test_settings_choose_the_functions(options: dict, expected: Callable[[Tensor], Tensor]):
    assert_close(weigh(logps(), **options).weight_B, expected(margins(logps())))


def test_linear_margin_in_the_score():
    expected_B = minority_margin(weights_score(logps()), margins(logps())[0].mean(), beta=500.0, power=1)
    assert_close(weigh(logps(), margin="linear", beta=500.0).margin_B, expected_B)


def test_without_snapshots_the_live_policy_judges_alone():
    logp = logps()[[0, -1]]
    found = minority(margins(logp), rho=15.0)
    assert_close(found.score_B, found.confidence_B)
    weights = weigh(logp, snapshots=())
    assert_close(weights.weight_B, minority_weights(found.confidence_B, k=10.0, b=1.0))


def test_larger_batches_are_judged_as_groups_of_16():
    """Rho is 15 for 16 prompts; the same 16 twice have twice the squared norm."""
    once, twice = weigh(logps()), weigh(logps().repeat(1, 1, 2))
    assert_close(twice.weight_B, once.weight_B.repeat(2))
    assert_close(twice.margin_B, once.margin_B.repeat(2))  # type: ignore[union-attr]


def test_without_a_norm_rho_is_a_factor_whatever_the_group():
    """Of 32 prompts, none is judged by the others."""
    logp = logps().repeat(1, 1, 2)
    found = minority(margins(logp), rho=1e4, normalize=False)
    weights = weigh(logp, rho=1e4, normalize=False)
    assert_close(weights.weight_B, minority_weights(found.score_B, k=10.0, b=1.0))


def test_without_a_margin_the_rest_is_logged():
    weights, other = weigh(logps(), margin="none"), weigh(logps())
    assert weights.margin_B is None
    assert {**weights.logs, "minority/margin": other.logs["minority/margin"]} == other.logs


def test_annotators_that_agree_leave_the_live_policys_confidence(monkeypatch: pytest.MonkeyPatch):
    """Snapshots whose margins are all three times the live policy's: the same ``y``, so no stability.

    A process has 8 of the 16 pairs, and the norm is that of all.
    """
    live_KB, reference_KB = logps(annotators=1)
    logp = torch.stack([live_KB, reference_KB + 3 * (live_KB - reference_KB), reference_KB])
    found = minority(margins(logp)[:1], rho=15.0)
    monkeypatch.setattr(weighting_module, "gathered", lambda value_B, **_: margins(logp).T)
    weights = weigh(logp[:, :, :8], rescale="stability")
    assert_close(weights.weight_B, minority_weights(found.confidence_B[:8], k=10.0, b=1.0))


OPTIONS = [{}, {"rescale": "sum"}, {"rescale": "stability"}, {"margin_units": "reward"}]


@pytest.mark.parametrize("options", OPTIONS)
def test_two_processes_of_eight_are_one_of_sixteen(options: dict, monkeypatch: pytest.MonkeyPatch):
    """What is gathered of either half is the whole: norms, rho, mean margin and rescaling."""
    logp = logps()
    whole = weigh(logp, **options)
    monkeypatch.setattr(weighting_module, "gathered", lambda value_B, **_: margins(logp).T)
    for part in (slice(0, 8), slice(8, 16)):
        half = weigh(logp[:, :, part], **options)
        assert_close(half.weight_B, whole.weight_B[part])
        assert_close(half.margin_B, whole.margin_B[part])  # type: ignore[index]


def test_outside_training_processes_may_hold_unequal_batches(monkeypatch: pytest.MonkeyPatch):
    """A process of the first ten and one of the last six are one of all sixteen."""
    logp = logps()
    whole = weigh(logp)
    told: list[bool] = []

    def gathered(value_B: torch.Tensor, *, equal: bool) -> torch.Tensor:
        told.append(equal)
        return margins(logp).T

    monkeypatch.setattr(weighting_module, "gathered", gathered)
    weights = MinorityAware().eval()(scored(logp[:, :, :10]), toy_batch(10))
    assert_close(weights.weight_B, whole.weight_B[:10])
    assert told == [False]


def test_defaults_are_those_of_the_released_run():
    """Its beta of 1000 has no factor 1/2."""
    weighting = MinorityAware()
    assert (weighting.rho, weighting.k, weighting.b, weighting.beta) == (15, 10, 1, 2000)
    assert weighting.snapshots == (0.9999, 0.5)
    assert (weighting.warmup_steps, weighting.margin, weighting.margin_units) == (2, "quadratic", "code")


@pytest.mark.parametrize("name", ["rho", "b", "beta"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_settings_that_must_be_positive(name: str, value: float):
    with pytest.raises(ValueError, match=rf"^MinorityAware: {name} must be positive, got {value}$"):
        MinorityAware(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"), [("k", -1.0), ("k", math.nan), ("k", math.inf), ("warmup_steps", -1)]
)
def test_settings_that_must_not_be_negative(name: str, value: float):
    with pytest.raises(ValueError, match=rf"^MinorityAware: {name} must be at least 0, got {value}$"):
        MinorityAware(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("shape", "linear, quadratic, sqrt, sigmoid"),
        ("margin", "quadratic, linear, none"),
        ("margin_units", "code, reward"),
        ("rescale", "none, stability, sum"),
    ],
)
def test_words_that_are_not_known(name: str, allowed: str):
    with pytest.raises(ValueError, match=f"^MinorityAware: {name} must be one of {allowed}, got 'x'$"):
        MinorityAware(**{name: "x"})  # type: ignore[arg-type]


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, math.nan])
def test_decays_must_lie_between_0_and_1(decay: float):
    with pytest.raises(ValueError, match=r"^MinorityAware: snapshots must be decays between 0 and 1, got"):
        MinorityAware(snapshots=(0.5, decay))


def test_objective_without_reference_is_named():
    one = scored(logps())._replace(ref_logp_KB=None)
    with pytest.raises(ValueError, match=r"^MinorityAware: needs an objective that looks at the reference"):
        MinorityAware()(one, toy_batch(PROMPTS))


def test_single_candidates_are_refused():
    one = scored(logps()[:, :1])
    with pytest.raises(ValueError, match="needs two candidates per prompt, winner first, got 1"):
        MinorityAware()(one, toy_batch(PROMPTS))
